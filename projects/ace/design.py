"""The return of table tennis as a task for whoever designs its reward (`core_rl.reward_task`)."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from core_rl.env import State, named_obs
from core_rl.features import FeatureTable, feature_table
from core_rl.policy import load_policy
from core_rl.qr_sac import QRSACConfig
from core_rl.reward_task import Driver, RewardTask
from core_rl.train import TrainConfig
from core_rl.types import Key, Metrics
from projects.ace.actions import CONTROL_STEP
from projects.ace.arm import NUM_JOINTS, ArmParams, racket_motion
from projects.ace.bank import BankConfig
from projects.ace.return_env import (
    LEGAL,
    LONGEST,
    MISS,
    NET,
    TOUCH,
    VOLLEY,
    ReturnConfig,
    ReturnState,
    ReturnTask,
)
from projects.ace.reward import AIM

FEATURES = Path(__file__).with_name("features.json")
POLICY = Path(__file__).parent / "policies" / "return"
BALLS = BankConfig(num_balls=4096, spread=1.15)  # of training, a little wilder than the test's
TEST_BALLS = BankConfig(num_balls=512, seed=7_100_000)
TEST_EPISODES = 256
POSE = 0.2  # [s] before the ball's bounce, from which on the driver that poses stands still

# `projects.ace.reward` with the weights of its `RewardConfig`; precision is paid for in T2 alone.
HUMAN = """
def reward(f):
    approach = f["approach"]
    contact = f["contact"]
    landing = f["contact"] * jnp.exp(-f["landing_distance"])
    room = jnp.clip((f["net_clearance"] + 0.15) / 0.4, 0.0, 1.0)
    net = 0.5 * f["contact"] * room
    legal = 2.0 * f["legal"]
    volley = -0.5 * f["volley"]
    effort = -0.05 * f["effort"]
    touch = -0.5 * f["touch"]
    total = approach + contact + landing + net + legal + volley + effort + touch
    return total, {
        "approach": approach, "contact": contact, "landing": landing, "net": net,
        "legal": legal, "volley": volley, "effort": effort, "touch": touch,
    }
"""
TERMS = """
def reward(f):
    approach = f["approach"]
    contact = f["contact"]
    landing = f["contact"] * jnp.exp(-f["landing_distance"])
    net = f["contact"] * jnp.clip((f["net_clearance"] + 0.15) / 0.4, 0.0, 1.0)
    legal = f["legal"]
    volley = -f["volley"]
    effort = -f["effort"]
    touch = -f["touch"]
    total = approach + contact + landing + net + legal + volley + effort + touch
    return total, {
        "approach": approach, "contact": contact, "landing": landing, "net": net,
        "legal": legal, "volley": volley, "effort": effort, "touch": touch,
    }
"""
WEIGHTS = {
    "approach": 1.0,
    "contact": 1.0,
    "landing": 1.0,
    "net": 0.5,
    "legal": 2.0,
    "volley": 0.5,
    "effort": 0.05,
    "touch": 0.5,
}
SPARSE = """
def reward(f):
    return f["legal"], {"legal": f["legal"]}
"""


def _task(state: State) -> ReturnState:
    return state.pipeline_state  # pyright: ignore[reportReturnType]


def _true_ball(state: State) -> tuple[Array, Array, Array]:
    """Position [3] and velocity [3] of the ball as if nothing had touched it, and the time [] until
    its bounce, from what the critics observe: the state names the ball's row in a bank, but
    training and test have banks of their own."""
    known = named_obs(state)["privileged_state"]
    return known[:3], 8.0 * known[6:9], known[15] / 3.0


def measure(
    arm: ArmParams, table: FeatureTable, before: State, after: State, action: Array
) -> dict[str, Array]:
    """The features [] of one step, by the names of `features.json`."""
    previous, current = _task(before), _task(after)
    ball, velocity, until_bounce = _true_ball(after)
    racket, racket_velocity, _ = racket_motion(current.position, current.velocity)
    contact, volley = current.outcome >= NET, current.outcome == VOLLEY
    hit, lands = contact | volley, contact & current.down

    def flag(condition: Array) -> Array:
        return condition.astype(jnp.float32)

    def where(condition: Array, value: Array) -> Array:
        return jnp.where(condition, value, 0.0)

    distance = _length(current.landing - current.target)
    cosine = jnp.dot(racket.normal, velocity) / jnp.maximum(_length(velocity), 1e-3)
    return {
        "time": current.step * CONTROL_STEP,
        "since_bounce": -until_bounce,
        "ball_distance": where(~hit, _length(ball - racket.centre)),
        "ball_height": ball[2],
        "nearest_miss": current.nearest,
        "approach": previous.nearest - current.nearest,
        "contact": flag(contact),
        "volley": flag(volley),
        "touch": flag(current.outcome == TOUCH),
        "miss": flag(current.outcome == MISS),
        "legal": flag(current.outcome == LEGAL),
        "net_clearance": where(contact, current.net_clearance),
        "landing_distance": jnp.where(lands, distance, table["landing_distance"].high),
        "landing_x": where(lands, current.landing[0]),
        "landing_y": where(lands, current.landing[1]),
        "return_speed": where(hit, _length(current.returned.velocity)),
        "return_topspin": where(hit, current.returned.spin[1]),  # of a ball that flies along x
        "racket_speed": _length(racket_velocity),
        "facing": jnp.abs(cosine),
        "effort": jnp.mean(action**2),
        "joint_speed": jnp.max(jnp.abs(current.velocity) / arm.velocity_limit),
        "joint_acceleration": jnp.mean(
            jnp.abs(current.joints.acceleration) / arm.acceleration_limit
        ),
    }


def _length(vector: Array) -> Array:
    return jnp.sqrt(jnp.sum(vector**2))


def trained_driver() -> Driver:
    """The committed policy, which learnt to return the faster balls of T3."""
    policy = load_policy(POLICY)

    def act(state: State, key: Key) -> Array:
        del key
        return policy.apply(policy.params, named_obs(state))

    return Driver(act, "a policy that was trained to return elite players' balls")


def trivial_drivers(good: Driver) -> dict[str, Driver]:
    def always(value: float) -> Driver:
        return Driver(lambda state, key: jnp.full(NUM_JOINTS, value), "")

    def shake(state: State, key: Key) -> Array:
        del key
        return jnp.full(NUM_JOINTS, jnp.where(_task(state).step % 4 < 2, 1.0, -1.0))

    def wander(state: State, key: Key) -> Array:
        del state
        return jax.random.uniform(key, (NUM_JOINTS,), minval=-1.0, maxval=1.0)

    def pose(state: State, key: Key) -> Array:
        _, _, until_bounce = _true_ball(state)
        return jnp.where(until_bounce > POSE, good.act(state, key), 0.0)

    docs = {
        "still": (always(0.0), "stands still"),
        "plus": (always(1.0), "asks every joint for its largest velocity"),
        "minus": (always(-1.0), "asks every joint for its largest velocity backwards"),
        "shake": (Driver(shake, ""), "shakes all joints to and fro"),
        "random": (Driver(wander, ""), "acts at random"),
        "pose": (Driver(pose, ""), "goes to where the ball comes, then stands still"),
    }
    return {name: driver._replace(doc=doc) for name, (driver, doc) in docs.items()}


METRIC_DOCS = {
    "return_rate": "share of the balls that were returned legally; larger is better",
    "hit_rate": "share of the balls that were hit after their bounce; larger is better",
    "net_rate": "share of the balls that were hit and did not pass over the net; smaller is better",
    "out_rate": "share of the balls that were hit over the net, but not onto the far half; "
    "smaller is better",
    "fault_rate": "share of the balls with a volley or a touch of the table; smaller is better",
    "landing_error": "mean distance of legal returns from the aim [m]; smaller is better",
    "effort": "mean square of the actions; smaller is calmer",
    "score": "return_rate plus a tenth of hit_rate, which tells policies apart that return nothing "
    "yet; it chooses",
}


def metrics(totals: Metrics) -> Metrics:
    """Of sums over each episode, [N]; see `METRIC_DOCS`."""
    legal = jnp.sum(totals["legal"])
    return_rate, hit_rate = jnp.mean(totals["legal"]), jnp.mean(totals["hit"])
    return {
        "return_rate": return_rate,
        "hit_rate": hit_rate,
        "net_rate": jnp.mean(totals["ended/net"]),
        "out_rate": jnp.mean(totals["ended/out"]),
        "fault_rate": jnp.mean(totals["ended/volley"] + totals["ended/touch"]),
        "landing_error": jnp.sum(totals["landing_error"]) / legal,  # NaN without a legal return
        "effort": -jnp.sum(totals["reward/effort"]) / jnp.sum(totals["steps"]),
        "score": return_rate + 0.1 * hit_rate,
    }


def summary(features: Mapping[str, np.ndarray]) -> str:
    """A ball in words and numbers: a row for about every tenth of a second, and how it ended.

    The steps after the end of the episode, whose features are 0, are left out: `time` is never 0
    within it.
    """
    num_steps = int(np.sum(np.asarray(features["time"]) > 0))
    if num_steps == 0:
        return "nothing happened"
    last = {name: float(values[num_steps - 1]) for name, values in features.items()}
    lines = ["time [s]  ball to racket [m]  ball's height [m]  racket [m/s]  effort [0..1]"]
    for k in sorted({*range(0, num_steps, 3), num_steps - 1}):
        lines.append(
            f"{features['time'][k]:8.2f}  {features['ball_distance'][k]:18.2f}  "
            f"{features['ball_height'][k]:17.2f}  {features['racket_speed'][k]:12.1f}  "
            f"{features['effort'][k]:13.2f}"
        )
    bounced = last["time"] - last["since_bounce"]
    lines.append(
        f"the ball {'bounced' if last['since_bounce'] >= 0 else 'would bounce'} on the "
        f"robot's half at {bounced:.2f} s"
    )
    lines.append(f"end at {last['time']:.2f} s: {_ending(last)}")
    effort = np.mean(features["effort"][:num_steps])
    lines.append(
        f"mean effort {effort:.2f}; fastest joint "
        f"{np.max(features['joint_speed'][:num_steps]):.0%} of its limit; "
        f"fastest racket {np.max(features['racket_speed'][:num_steps]):.1f} m/s"
    )
    return "\n".join(lines)


def merit(features: Mapping[str, np.ndarray]) -> float:
    """How good the play of one ball looks: a return of it, and how near that lands; else how far it
    came on the way to one."""
    num_steps = int(np.sum(np.asarray(features["time"]) > 0))
    if num_steps == 0:
        return 0.0
    last = {name: float(values[num_steps - 1]) for name, values in features.items()}
    calm = 1.0 - float(np.mean(features["effort"][:num_steps]))
    closeness = np.exp(-last["landing_distance"])
    hit = last["contact"] * (1.0 + closeness + (last["net_clearance"] > 0.0))
    return float(3.0 * last["legal"] + hit - last["nearest_miss"] + 0.1 * calm)


def _ending(last: Mapping[str, float]) -> str:
    """The last step of an episode in words."""
    if last["volley"]:
        return "the racket hit the ball before its bounce, a fault"
    if last["touch"]:
        return "the arm touched the table or the net, a fault"
    if last["miss"]:
        return f"the ball was missed by {last['nearest_miss']:.2f} m"
    if not last["contact"]:
        return "still running"
    spin = last["return_topspin"]
    ball = (
        f"the ball left the racket at {last['return_speed']:.1f} m/s with "
        f"{abs(spin):.0f} rad/s of {'topspin' if spin >= 0 else 'backspin'}"
    )
    place = f"{last['landing_x']:.2f} m beyond the net, {last['landing_y']:.2f} m to the side"
    above = f"{100 * last['net_clearance']:.0f} cm above the net"
    if last["legal"]:
        away = last["landing_distance"]
        return (
            f"a legal return; {ball}, passed {above} and landed {place}, {away:.2f} m off the aim"
        )
    if last["net_clearance"] <= 0:
        return f"no return; {ball} and did not pass over the net"
    return f"no return; {ball}, passed {above} and came down off the far half, {place}"


def return_balls(
    balls: BankConfig = BALLS,
    test_balls: BankConfig = TEST_BALLS,
    test_episodes: int = TEST_EPISODES,
) -> RewardTask:
    """Slow balls to be returned (T1), learnt with small networks so that many rewards can be
    compared."""
    env = ReturnTask(ReturnConfig(task="T1", balls=balls))
    table = feature_table(FEATURES, "return")
    good = trained_driver()
    return RewardTask(
        name="ace:return",
        goal=(
            "Return the opponent's ball in table tennis: hit it after its bounce so that it flies "
            "over the net and lands on the far half, as reliably as possible and near the middle "
            "of that half, without needless motion."
        ),
        facts=(
            "A robot arm of eight joints (two slides, six hinges) holds the racket. An episode is "
            "one ball of slow play with some spin: it begins with the opponent's stroke and the "
            "arm at rest, and lasts at most "
            f"{LONGEST} steps of {1000 * CONTROL_STEP:.0f} ms ({LONGEST * CONTROL_STEP:.2f} s), "
            "mostly less. In each step every joint is asked for a velocity; it goes there as fast "
            "as its limits of acceleration and jerk let it, and a few milliseconds late, so the "
            "arm needs several steps to get anywhere. The ball is seen some 20 ms late and with "
            "noise. The ball bounces once on the robot's half after 0.2 to 0.7 s. The episode ends "
            "with the first of these: the racket hits the ball after its bounce (contact); it hits "
            "it before (volley); arm or racket touch table or net (touch); the ball touches "
            "something a second time (miss). The flight of a return is computed at the moment of "
            "the contact, so all that is known of it is known in that one step, the last one. The "
            f"aim is {AIM[0]:.2f} m beyond the net on the centre line. Lengths are in metres, the "
            "origin is the centre of the table top, x points to the opponent and z up. Most of "
            "the steps of an episode come before the ball can be reached; an untrained robot "
            "seldom hits a ball at all, and hardly ever returns one. Good players are early at "
            "the place that the ball will pass after its bounce, meet it with a face that looks "
            "over the net, and hit every ball with no more speed than it takes. The reward is "
            "given after every step; the discount is 0.98 per step."
        ),
        features=table,
        measure=lambda before, after, action: measure(env.arm, table, before, after, action),
        env=env,
        episode_length=LONGEST,
        agent=QRSACConfig(
            actor_obs=("state", "readings", "estimate"),
            critic_obs=("state", "estimate", "privileged_state"),
            afterstate=True,
            hidden=(128, 128),
            layer_norm=True,
            num_quantiles=16,
            n_step=3,
            discount=0.98,
            actor_lr=2e-3,
            critic_lr=2e-3,
            alpha_lr=1e-3,
            alpha=0.1,
            target_entropy_per_dim=-1.5,
            actor_average=0.998,
            batch_size=128,
        ),
        train=TrainConfig(
            num_envs=256, steps_per_epoch=16, warmup_steps=20, replay_capacity=100_000
        ),
        test_env=ReturnTask(ReturnConfig(task="T1", balls=test_balls)),
        test_episodes=test_episodes,
        test_length=LONGEST,
        metrics=metrics,
        metric_docs=METRIC_DOCS,
        score="score",
        human=HUMAN,
        sparse=SPARSE,
        terms=TERMS,
        weights=WEIGHTS,
        good=good,
        trivial=trivial_drivers(good),
        merit=merit,
        summary=summary,
        afterstate=env.afterstate,
    )


TASKS = {"return": return_balls}
