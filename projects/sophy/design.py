"""The time trial as a task for whoever designs its reward (`core_rl.reward_task`)."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from core_rl.env import State
from core_rl.features import feature_table
from core_rl.qr_sac import QRSACConfig
from core_rl.reward_task import Driver, RewardTask
from core_rl.train import TrainConfig
from core_rl.types import Key, Metrics
from projects.sophy import track as tracks
from projects.sophy.driving import CONTROL_STEP, DriveState
from projects.sophy.model import clearance
from projects.sophy.time_trial import TimeTrial, TimeTrialConfig, with_calm_starts

FEATURES = Path(__file__).with_name("features.json")
CAR = "roadster_fr"  # forgiving: small networks learn to drive it in ten thousand updates
EPISODE = 12.0  # [s] of training; in longer ones most of the replay is cars that stick in a wall
TEST_LAPS = 2.1  # time of a test episode, in lap times of the reference
TEST_CARS = 8
CAREFUL = 0.75  # share of the reference's speed that the careful driver goes

# Wurman et al. 2022, Extended Data Table 1, as `projects.sophy.reward` has it, times its scale 0.1.
HUMAN = """
def reward(f):
    kmh = 3.6 * f["speed"]
    progress = 0.1 * f["progress"] * (1.0 - f["off_course"])
    off_course = -0.0001 * f["off_course"] * kmh**2
    wall = -0.0001 * f["wall_contact"] * kmh**2
    tyre_slip = -0.025 * f["tyre_slip"]
    total = progress + off_course + wall + tyre_slip
    return total, {
        "progress": progress, "off_course": off_course, "wall": wall, "tyre_slip": tyre_slip,
    }
"""
TERMS = """
def reward(f):
    speed = 0.036 * f["speed"]
    progress = f["progress"] * (1.0 - f["off_course"])
    off_course = -f["off_course"] * speed**2
    wall = -f["wall_contact"] * speed**2
    tyre_slip = -f["tyre_slip"]
    total = progress + off_course + wall + tyre_slip
    return total, {
        "progress": progress, "off_course": off_course, "wall": wall, "tyre_slip": tyre_slip,
    }
"""
SPARSE = """
def reward(f):
    return f["line_crossed"], {"line_crossed": f["line_crossed"]}
"""


def _drive(state: State) -> DriveState:
    return state.pipeline_state  # pyright: ignore[reportReturnType]


def measure(env: TimeTrial, before: State, after: State) -> dict[str, Array]:
    """The features [] of one step, by the names of `features.json`."""
    previous, current = _drive(before), _drive(after)
    motion = current.motion
    pedal = motion.throttle - motion.brake
    slip = jnp.minimum(jnp.abs(motion.slip_ratio), 1.0) * jnp.abs(motion.slip_angle)
    return {
        "progress": current.progress,
        "speed": jnp.sqrt(jnp.sum(motion.velocity**2)),
        "off_course": current.off_course,
        "wall_contact": current.wall_contact,
        "edge_distance": clearance(env.track, current),
        "lateral_offset": current.placement.offset,
        "heading_error": jnp.arctan2(current.placement.sine, current.placement.cosine),
        "sideslip": jnp.arctan2(motion.velocity[1], motion.velocity[0]),
        "yaw_rate": motion.yaw_rate,
        "curvature": tracks.at(env.track, current.s).curvature,
        "acceleration_forward": motion.acceleration[0],
        "acceleration_left": motion.acceleration[1],
        "steering": motion.steering,
        "steering_change": current.steering_target - previous.steering_target,
        "throttle": motion.throttle,
        "brake": motion.brake,
        "pedal_change": pedal - (previous.motion.throttle - previous.motion.brake),
        "tyre_slip": jnp.sum(slip),
        "line_crossed": (current.crossings > previous.crossings).astype(jnp.float32),
    }


def careful_driver(env: TimeTrial) -> Driver:
    """Follows the centre line at `CAREFUL` of the speed of the reference (pure pursuit: Coulter
    1992, CMU-RI-TR-92-01)."""
    wheelbase = float(env.car.wheel_x[0] - env.car.wheel_x[3])

    def act(state: State, key: Key) -> Array:
        del key
        drive = _drive(state)
        motion = drive.motion
        speed = jnp.sqrt(jnp.sum(motion.velocity**2))
        reach = jnp.maximum(0.6 * speed, 6.0)
        gap = tracks.at(env.track, drive.s + reach).position - motion.position
        bearing = jnp.arctan2(gap[1], gap[0]) - motion.heading
        steering = jnp.arctan(2.0 * wheelbase * jnp.sin(bearing) / jnp.sqrt(jnp.sum(gap**2)))
        turn = (steering - drive.steering_target) / env.config.steering_step
        # What it must brake for lies ahead.
        ahead = drive.s + jnp.linspace(0.0, 1.0, 8) * 1.5 * speed
        reference = jnp.interp(ahead, env.reference.s, env.reference.speed, period=env.track.length)
        pedal = 0.3 * (CAREFUL * jnp.min(reference) - speed)
        return jnp.clip(jnp.stack([turn, pedal]), -1.0, 1.0)

    return Driver(act, "follows the centre line, slower than the car could")


def _always(*action: float) -> Driver:
    return Driver(lambda state, key: jnp.array(action, jnp.float32), "")


def trivial_drivers() -> dict[str, Driver]:
    def zigzag(state: State, key: Key) -> Array:
        del key
        side = jnp.sign(jnp.sin(8.0 * _drive(state).lap_clock))
        return jnp.stack([side, 0.3])

    def wander(state: State, key: Key) -> Array:
        del state
        return jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)

    docs = {
        "stand": (_always(0.0, -1.0), "brakes and stands"),
        "straight": (_always(0.0, 1.0), "full throttle without steering, into the wall"),
        "circle": (_always(1.0, 0.3), "turns in circles"),
        "zigzag": (Driver(zigzag, ""), "steers left and right in turns"),
        "random": (Driver(wander, ""), "acts at random"),
    }
    return {name: driver._replace(doc=doc) for name, (driver, doc) in docs.items()}


def metrics_of(
    env: TimeTrial, num_steps: int
) -> tuple[dict[str, str], Callable[[Metrics], Metrics]]:
    """What each metric is, and the metrics of episodes of `num_steps` steps."""
    reference_time = float(env.reference.lap_time)
    reference_distance = float(env.track.length) * num_steps * CONTROL_STEP / reference_time

    def metrics(totals: Metrics) -> Metrics:
        laps = jnp.sum(totals["laps"])
        off_course = jnp.mean(totals["off_course_steps"]) / num_steps
        wall = jnp.mean(totals["wall_contact_steps"]) / num_steps
        pace = jnp.mean(totals["distance"]) / reference_distance
        return {
            "lap_ratio": jnp.sum(totals["lap_seconds"])
            / laps
            / reference_time,  # NaN without a lap
            "cars_with_a_lap": jnp.mean((totals["laps"] > 0).astype(jnp.float32)),
            "pace": pace,
            "off_course": off_course,
            "wall_contact": wall,
            "steering_activity": jnp.mean(totals["steering_change"]) / num_steps,
            "score": pace * jnp.exp(-10.0 * (off_course + wall)),
        }

    docs = {
        "lap_ratio": "mean time of flying laps over a reference driver's; smaller is better",
        "cars_with_a_lap": "share of the cars that completed a flying lap",
        "pace": "distance over the reference driver's in the same time; larger is better",
        "off_course": "share of the steps with time off course; smaller is better",
        "wall_contact": "share of the steps with a touch of a wall; smaller is better",
        "steering_activity": "mean |change of the steering| per step [rad]; smaller is smoother",
        "score": "pace, 10 % less for each 1 % of the time off course or in a wall; it chooses",
    }
    return docs, metrics


def summary(features: Mapping[str, np.ndarray]) -> str:
    """A drive in words and numbers: every two seconds of it, and what went wrong."""
    speed = np.asarray(features["speed"]) * 3.6
    num_steps = len(speed)
    every = max(1, round(2.0 / CONTROL_STEP))
    lines = ["time [s]  speed [km/h]  distance [m]  to the edge [m]  steering [deg]  pedal"]
    distance = np.cumsum(features["progress"])
    for k in range(0, num_steps, every):
        pedal = features["throttle"][k] - features["brake"][k]
        lines.append(
            f"{k * CONTROL_STEP:8.0f}  {speed[k]:12.0f}  {distance[k]:12.0f}  "
            f"{features['edge_distance'][k]:15.1f}  {np.degrees(features['steering'][k]):14.0f}  "
            f"{pedal:5.1f}"
        )
    turning = np.mean(np.abs(features["steering_change"])) / CONTROL_STEP
    lines += [
        f"distance along the course: {distance[-1]:.0f} m in {num_steps * CONTROL_STEP:.0f} s",
        f"time off course: {np.sum(features['off_course']) * CONTROL_STEP:.1f} s",
        f"time in contact with a wall: {np.sum(features['wall_contact']) * CONTROL_STEP:.1f} s",
        f"mean rate of the steering: {np.degrees(turning):.0f} degrees per second",
        f"largest sideslip: {np.degrees(np.max(np.abs(features['sideslip']))):.0f} degrees",
    ]
    return "\n".join(lines)


def merit(features: Mapping[str, np.ndarray]) -> float:
    """Distance [m] of a drive, less what a marshal would object to: 10 m per 0.1 s off the road or
    in a wall, and a little for a restless wheel."""
    faults = np.sum(features["off_course"]) + np.sum(features["wall_contact"])
    restless = np.sum(np.abs(features["steering_change"]))
    return float(np.sum(features["progress"]) - 10.0 * faults - 2.0 * restless)


def time_trial(config: TimeTrialConfig | None = None) -> RewardTask:
    """Laps of a circuit alone, learnt with small networks so that many rewards can be compared."""
    config = config or TimeTrialConfig(
        car=CAR, steering="delta", episode_seconds=EPISODE, start_speed=(0.2, 1.0)
    )
    env = TimeTrial(config)
    test_length = int(TEST_LAPS * float(env.reference.lap_time) / CONTROL_STEP)
    docs, metrics = metrics_of(env, test_length)
    return RewardTask(
        name="sophy:time_trial",
        goal=(
            "Drive laps of the circuit as fast as possible, without leaving the road and without "
            "touching walls, smoothly."
        ),
        facts=(
            f"One car ({config.car}) alone on a circuit of {float(env.track.length):.0f} m. "
            "The driver decides every 0.1 s (one step): a change of the steering angle, and one "
            "pedal, throttle or brake. A good lap takes about "
            f"{float(env.reference.lap_time):.0f} s, at a mean of "
            f"{float(env.track.length / env.reference.lap_time):.0f} m/s. Training episodes last "
            f"{config.episode_seconds:.0f} s, begin anywhere on the circuit at any speed, and are "
            "never cut short: a car that stands or sticks in a wall stays there until the episode "
            "ends, and there is no reverse gear. Off the road the tyres grip less, and walls stand "
            "beyond it. The reward is given after every step; the discount is 0.98 per step."
        ),
        features=feature_table(FEATURES, "time_trial"),
        measure=lambda before, after, action: measure(env, before, after),
        env=env,
        episode_length=config.episode_length,
        agent=QRSACConfig(
            critic_obs=("state", "privileged_state"),
            hidden=(128, 128),
            num_quantiles=16,
            n_step=5,
            discount=0.98,
            target_entropy_per_dim=-1.5,
            batch_size=64,
            actor_lr=1e-3,
            critic_lr=1e-3,
            alpha_lr=1e-3,
            actor_average=0.998,
        ),
        train=TrainConfig(
            num_envs=128, steps_per_epoch=16, warmup_steps=64, replay_capacity=150_000
        ),
        test_env=with_calm_starts(env),
        test_episodes=TEST_CARS,
        test_length=test_length,
        metrics=metrics,
        metric_docs=docs,
        score="score",
        human=HUMAN,
        sparse=SPARSE,
        terms=TERMS,
        weights={"progress": 0.1, "off_course": 1.0, "wall": 1.0, "tyre_slip": 0.025},
        good=careful_driver(env),
        trivial=trivial_drivers(),
        merit=merit,
        summary=summary,
    )


TASKS = {"time_trial": time_trial}
