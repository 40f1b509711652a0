"""A learned model of one car's motion on a circuit that is known, for planning.

Learned (`core_rl.dynamics`) is what a tyre and an engine make of a command: how the vector `motion`
changes over a control step. The rest is computed, since it is known: where the predicted motion
takes the car on the map, what lies under its wheels there, its lap. A prediction is a whole
`DriveState`, so that observations, rewards and add-ons read predictions as they read the truth.

What is not predicted: contact with a wall moves nothing (`wall_contact` still tells of it), and
`off_course` is 0 or 1, by the place at the end of the step.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from core_rl.dynamics import Dynamics, DynamicsConfig, DynamicsState, Report, make_dynamics
from core_rl.env import State, Wrapper
from core_rl.episodes import Episodes, collect
from core_rl.types import Agent, Key
from projects.sophy import track as tracks
from projects.sophy.driving import WHEELS_OUT, DriveState, count_laps
from projects.sophy.time_trial import TimeTrial
from projects.sophy.track import Track
from projects.sophy.walls import corners, offset_of, place

MOTION = "motion"  # the observation entry that the model is trained on
# Parts of the vector and their sizes.
PARTS = {
    "velocity": 2,
    "yaw_rate": 1,
    "acceleration": 2,
    "steering": 1,
    "steering_target": 1,
    "throttle": 1,
    "brake": 1,
    "gear": 1,
    "shift_timer": 1,
    "wheel_speed": 4,
    "load": 4,
    "slip_ratio": 4,
    "slip_angle": 4,
    "grip": 4,  # under the wheels, by the map
    # Forward, left [m] and turn [rad], each step's in the frame at its start, summed up. Only the
    # change counts: where that takes the car is known.
    "odometer": 3,
}
MOTION_SIZE = sum(PARTS.values())
INVARIANT = tuple(range(MOTION_SIZE - 3, MOTION_SIZE))

Steps = Mapping[str, Array]
DriveDynamics = Callable[[DriveState, Array], DriveState]


def clearance(track: Track, drive: DriveState) -> Array:
    """Distance [] [m] of the outermost wheel's centre to the white line, negative beyond it."""
    point, car = tracks.at(track, drive.s), drive.car
    offset = offset_of(drive.placement, car.wheel_x, car.wheel_y)
    return jnp.min(jnp.minimum(point.width_left - offset, point.width_right + offset))


def motion_vector(track: Track, drive: DriveState, odometer: Array) -> Array:
    """The vector `[MOTION_SIZE]` of `PARTS` that the model reads and predicts."""
    motion, car = drive.motion, drive.car
    offset = offset_of(drive.placement, car.wheel_x, car.wheel_y)
    parts = {
        **{name: getattr(motion, name) for name in PARTS if hasattr(motion, name)},
        "steering_target": drive.steering_target,
        "grip": tracks.surface_at(tracks.at(track, drive.s), offset).grip,
        "odometer": odometer,
    }
    return jnp.concatenate([jnp.ravel(parts[name]).astype(jnp.float32) for name in PARTS])


def travel_between(before: DriveState, after: DriveState) -> Array:
    """How far a car came `[3]`: forward, left [m] and turn [rad], in the frame of `before`."""
    gap = after.motion.position - before.motion.position
    east, north = jnp.cos(before.motion.heading), jnp.sin(before.motion.heading)
    turn = after.motion.heading - before.motion.heading
    return jnp.stack([gap[0] * east + gap[1] * north, gap[1] * east - gap[0] * north, turn])


class MotionObserved(Wrapper):
    """A time trial that also offers the observation entry `motion`, to learn the model from."""

    def __init__(self, env: TimeTrial):
        super().__init__(env)
        self.env: TimeTrial = env

    def _observed(self, state: State, odometer: Array) -> State:
        drive: DriveState = state.pipeline_state  # pyright: ignore[reportAssignmentType]
        vector = motion_vector(self.env.track, drive, odometer)
        return state.replace(obs={**state.obs, MOTION: vector})  # pyright: ignore

    def reset(self, rng: Array) -> State:
        return self._observed(self.env.reset(rng), jnp.zeros(3))

    def step(self, state: State, action: Array) -> State:
        stepped = self.env.step(state, action)
        travel = travel_between(state.pipeline_state, stepped.pipeline_state)  # pyright: ignore
        return self._observed(stepped, state.obs[MOTION][-3:] + travel)  # pyright: ignore

    @property
    def observation_size(self):
        return {**self.env.observation_size, MOTION: MOTION_SIZE}


def drive_dynamics(env: TimeTrial, model: Dynamics, state: DynamicsState) -> DriveDynamics:
    """The model as a planner reads it: `(drive, action [2]) -> drive` one control step later."""
    track = env.track
    bounds = np.cumsum(list(PARTS.values()))[:-1]

    def dynamics(drive: DriveState, action: Array) -> DriveState:
        motion, car = drive.motion, drive.car
        vector = motion_vector(track, drive, jnp.zeros(3))
        predicted = model.predict(state, vector, jnp.clip(action, -1.0, 1.0))
        parts = dict(zip(PARTS, jnp.split(predicted, bounds), strict=True))
        single = {name: parts[name][0] for name, size in PARTS.items() if size == 1}

        forward, left, turn = parts["odometer"]
        east, north = jnp.cos(motion.heading), jnp.sin(motion.heading)
        step = jnp.stack([forward * east - left * north, forward * north + left * east])
        gear = jnp.round(single["gear"]).astype(motion.gear.dtype)
        moved = dataclasses.replace(
            motion,
            position=motion.position + step,
            heading=motion.heading + turn,
            gear=jnp.clip(gear, 1, None),
            **{name: single[name] for name in ("yaw_rate", "steering", "shift_timer")},
            **{name: jnp.clip(single[name], 0.0, 1.0) for name in ("throttle", "brake")},
            **{
                name: parts[name]
                for name in "velocity acceleration wheel_speed load slip_ratio slip_angle".split()
            },
        )
        along = step[0] * tracks.at(track, drive.s).tangent[0]
        along += step[1] * tracks.at(track, drive.s).tangent[1]
        s = tracks.project(track, moved.position, drive.s + along)
        point = tracks.at(track, s)
        placement = place(point, moved)
        offset = offset_of(placement, car.wheel_x, car.wheel_y)
        outside = (offset > point.width_left) | (offset < -point.width_right)
        corner = offset_of(placement, *corners(car))
        hit = jnp.any((corner > point.wall_left) | (corner < -point.wall_right))
        return count_laps(
            drive,
            dataclasses.replace(
                drive,
                motion=moved,
                placement=placement,
                s=s,
                progress=tracks.wrap_difference(track, s, drive.s),
                steering_target=env.command(drive, action)[0],
                off_course=(jnp.sum(outside) >= WHEELS_OUT).astype(jnp.float32),
                wall_contact=hit.astype(jnp.float32),
            ),
        )

    return dynamics


# Small enough to plan with in real time.
MODEL = DynamicsConfig(hidden=(128, 128, 128), num_epochs=40, patience=10)
NUM_CARS, EPISODE_STEPS = 128, 300
# Deviations of the noise on the prior's actions, car by car. A planner that knows only small ones
# sends the car into slides that its model has never seen.
EXPLORATION = (0.05, 0.15, 0.3, 0.5)


def drive_for_model(
    env: TimeTrial, agent: Agent, agent_state: Any, num_steps: int, key: Key
) -> Episodes:
    """`num_steps` control steps of the prior, with noise on its actions and starts anywhere."""
    return collect(
        MotionObserved(env),
        lambda obs, _: agent.greedy(agent_state, agent.carry(NUM_CARS), obs)[0],
        key,
        num_envs=NUM_CARS,
        num_steps=max(num_steps // NUM_CARS, 1),
        episode_length=EPISODE_STEPS,
        entries=(MOTION,),
        noise=EXPLORATION,
    )


def observed_step(env: TimeTrial, before: DriveState, action: Array, after: DriveState) -> Steps:
    """What `episodes_of` needs of one step of any drive."""
    zero = jnp.zeros(3)
    return {
        "from": motion_vector(env.track, before, zero),
        "to": motion_vector(env.track, after, zero),
        "travel": travel_between(before, after),
        "action": action,
    }


def episodes_of(steps: Mapping[str, np.ndarray], length: int = EPISODE_STEPS) -> Episodes:
    """Episodes of `length` steps from the steps `[T, N, ...]` of `N` cars that drove on without a
    restart; a shorter rest is left out."""
    pieces = len(steps["action"]) // length

    def cut(values: np.ndarray) -> np.ndarray:
        """`[T, N, ...]` to `[N * pieces, length, ...]`"""
        values = np.moveaxis(np.asarray(values[: pieces * length]), 0, 1)
        return values.reshape(-1, length, *values.shape[2:])

    vectors = np.concatenate([cut(steps["from"]), cut(steps["to"])[:, -1:]], axis=1)
    vectors[:, 1:, -3:] = np.cumsum(cut(steps["travel"]), axis=1)
    action = cut(steps["action"])
    return Episodes(obs=vectors, action=action, valid=np.ones(action.shape[:2], bool))


def learn_model(
    env: TimeTrial,
    agent: Agent,
    agent_state: Any,
    num_steps: int,
    key: Key,
    config: DynamicsConfig = MODEL,
    report: Report | None = None,
) -> tuple[Dynamics, DynamicsState]:
    """The motion model of a car as its prior drives it; some minutes on two CPU cores."""
    drive_key, fit_key = jax.random.split(key)
    episodes = drive_for_model(env, agent, agent_state, num_steps, drive_key)
    model = motion_model(config)
    return model, model.fit(fit_key, episodes, report)


def motion_model(config: DynamicsConfig = MODEL) -> Dynamics:
    return make_dynamics(config, MOTION_SIZE, 2, invariant=INVARIANT)
