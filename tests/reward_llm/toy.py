"""A task so small that whole searches run in seconds: a cart on a line with an edge."""

import jax
import jax.numpy as jnp
import numpy as np

from core_rl.env import Env, State
from core_rl.features import Feature
from core_rl.qr_sac import QRSACConfig
from core_rl.reward_task import Driver, RewardTask
from core_rl.train import TrainConfig

LENGTH = 12  # steps of an episode
EDGE = 3.0
FEATURES = {
    "gain": Feature("m per step", -1, 1, "way to the right"),
    "speed": Feature("m per step", 0, 1),
    "outside": Feature("0 or 1", 0, 1, kind="flag"),
}
HUMAN = """
def reward(f):
    gain = f["gain"]
    outside = -2.0 * f["outside"]
    return gain + outside, {"gain": gain, "outside": outside}
"""
TERMS = """
def reward(f):
    gain = f["gain"]
    outside = -f["outside"]
    return gain + outside, {"gain": gain, "outside": outside}
"""
SPARSE = """
def reward(f):
    near = jnp.where(f["speed"] > 0.9, 1.0, 0.0)
    return near, {"near": near}
"""
LAZY = """
def reward(f):
    still = 1.0 - f["speed"]
    return still, {"still": still}
"""


class Cart(Env):
    """Its state is the place; the action is the step. `traces` counts how often it is traced."""

    def __init__(self):
        self.traces = 0

    def reset(self, rng):
        place = jax.random.uniform(rng, minval=-0.5, maxval=0.5)
        zero = jnp.zeros(())
        return State(place, self._obs(place), zero, zero, self._metrics(zero, place))

    def step(self, state, action):
        self.traces += 1
        place = state.pipeline_state + 0.5 * jnp.clip(action[0], -1.0, 1.0)
        return state.replace(
            pipeline_state=place,
            obs=self._obs(place),
            metrics={**state.metrics, **self._metrics(place - state.pipeline_state, place)},
        )

    @staticmethod
    def _obs(place):
        return {"state": jnp.stack([place, jnp.sin(place)])}

    @staticmethod
    def _metrics(gain, place):
        return {"distance": gain, "outside_steps": (place > EDGE).astype(jnp.float32)}

    @property
    def observation_size(self):
        return {"state": 2}

    @property
    def action_size(self):
        return 1

    @property
    def backend(self):
        return "toy"


def measure(before, after, action):
    gain = after.pipeline_state - before.pipeline_state
    outside = (after.pipeline_state > EDGE).astype(jnp.float32)
    return {"gain": gain, "speed": jnp.abs(gain), "outside": outside}


def metrics(totals):
    distance = jnp.mean(totals["distance"])
    outside = jnp.mean(totals["outside_steps"])
    return {"distance": distance, "outside": outside, "score": distance - outside}


def steady(amount: float) -> Driver:
    return Driver(lambda state, key: jnp.full(1, amount), "")


def wander(state, key):
    return jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0)


def toy_task() -> RewardTask:
    env = Cart()
    return RewardTask(
        name="toy:cart",
        goal="Go to the right, but not beyond the edge.",
        facts="A cart on a line.",
        features=FEATURES,
        measure=measure,
        env=env,
        episode_length=LENGTH,
        agent=QRSACConfig(
            hidden=(8,),
            num_quantiles=4,
            n_step=2,
            discount=0.9,
            batch_size=8,
            actor_lr=1e-2,
            critic_lr=1e-2,
        ),
        train=TrainConfig(
            num_envs=4, steps_per_epoch=3, updates_per_step=1, warmup_steps=5, replay_capacity=40
        ),
        test_env=env,
        test_episodes=3,
        test_length=LENGTH,
        metrics=metrics,
        metric_docs={"distance": "way", "outside": "steps beyond", "score": "chooses"},
        score="score",
        human=HUMAN,
        sparse=SPARSE,
        terms=TERMS,
        weights={"gain": 1.0, "outside": 2.0},
        good=steady(0.3),
        trivial={"stand": steady(0.0), "back": steady(-1.0), "random": Driver(wander, "")},
        merit=lambda features: float(np.sum(features["gain"]) - np.sum(features["outside"])),
        summary=lambda features: f"way: {np.sum(features['gain']):.2f} m",
    )
