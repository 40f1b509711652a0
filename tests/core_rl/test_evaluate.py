"""Evaluation against episodes whose length and return follow from their start."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.env import State, named_obs
from core_rl.evaluate import make_evaluator
from core_rl.types import Agent
from tests.probes import EpisodeEnv

NUM_EPISODES, LENGTH, MAX_STEPS = 20, 4, 6


class BrokenAfterwards(EpisodeEnv):
    """Reports nonsense once its episode is over, as an environment outside its range may."""

    def step(self, state: State, action: jax.Array) -> State:
        after = super().step(state, action)
        over = state.done > 0.0
        nonsense = jnp.where(over, jnp.nan, 0.0)
        metrics = {name: value + nonsense for name, value in after.metrics.items()}
        done = jnp.where(over, 0.0, after.done)  # as if it were alive again
        return State(None, after.obs, after.reward + nonsense, done, metrics)


def constant_agent(action: float) -> Agent:
    """Counts its own steps in the carry, and acts the same for ever."""

    def unused(*_):
        raise NotImplementedError

    def greedy(state, carry, obs):
        num_envs = obs["state"].shape[0]
        return jnp.full((num_envs, 1), state * action), carry + 1

    return Agent(
        init=unused,
        carry=lambda num_envs: jnp.zeros(num_envs),
        act=unused,
        greedy=greedy,
        update=unused,
        deploy=unused,
        adopt=unused,
        discount=unused,
    )


class Evaluated(NamedTuple):
    metrics: dict[str, np.ndarray]  # [num_episodes]
    traces: np.ndarray  # [LENGTH, num_episodes, 2]


@pytest.fixture(scope="module", params=[EpisodeEnv, BrokenAfterwards], ids=["plain", "broken"])
def evaluated(request) -> Evaluated:
    evaluate = make_evaluator(
        request.param(MAX_STEPS),
        constant_agent(0.5),
        NUM_EPISODES,
        LENGTH,
        trace=lambda state: named_obs(state)["state"],
    )
    metrics, traces = jax.jit(evaluate)(jnp.ones(()), jax.random.key(0))
    return Evaluated(jax.tree.map(np.asarray, metrics), np.asarray(traces))


def test_every_episode_counts_to_its_own_end(evaluated):
    metrics, traces = evaluated
    due = 1 + np.floor(traces[0, :, 0] * MAX_STEPS)  # see EpisodeEnv
    steps = np.minimum(due, LENGTH)
    assert (due < LENGTH).any() and (due == LENGTH).any() and (due > LENGTH).any()
    np.testing.assert_array_equal(metrics["steps"], steps)
    np.testing.assert_array_equal(metrics["terminated"], due <= LENGTH)
    # The rewards are 1 + 0.5, 2 + 0.5, ...; the metric `clock` is 1, 2, ...
    np.testing.assert_allclose(metrics["clock"], steps * (steps + 1) / 2)
    np.testing.assert_allclose(metrics["return"], steps * (steps + 1) / 2 + 0.5 * steps)


def test_traces_hold_every_step_of_every_episode(evaluated):
    assert evaluated.traces.shape == (LENGTH, NUM_EPISODES, 2)
    clock = np.arange(1, LENGTH + 1)[:, None]
    np.testing.assert_array_equal(evaluated.traces[..., 1], np.broadcast_to(clock, (LENGTH, 20)))
    assert len(np.unique(evaluated.traces[0, :, 0])) == NUM_EPISODES


def test_without_a_trace_nothing_is_kept():
    evaluate = make_evaluator(EpisodeEnv(MAX_STEPS), constant_agent(0.5), 2, LENGTH)
    metrics, traces = jax.eval_shape(evaluate, jnp.ones(()), jax.random.key(0))
    assert traces is None
    assert set(metrics) == {"return", "steps", "terminated", "clock"}
