"""Evaluation: complete episodes of the greedy policy under keys that never change within a run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from core_rl.env import Env, State, named_obs, num_agents
from core_rl.errors import UserError
from core_rl.types import Agent, Key, Metrics


def make_evaluator(
    env: Env,
    agent: Agent,
    num_episodes: int,
    episode_length: int,
    trace: Callable[[State], Any] | None = None,
) -> Callable[[Any, Key], tuple[Metrics, Any]]:
    """Builds `evaluate(agent_state, key) -> (metrics, traces)`.

    Metrics, each `[num_episodes]`: `return`, `steps`, `terminated`, and the sum over the episode of
    every entry of the environment's own metrics. Steps after a termination count for nothing.
    `traces` holds `trace(state)` of every step, `[episode_length, num_episodes, ...]`.

    Raises UserError for an environment with several agents, which needs an evaluation of its own.
    """
    if num_agents(env) is not None:
        raise UserError(
            "an environment with several agents cannot be evaluated alone: train it by its own "
            "experiment, as ./run train race"
        )

    def evaluate(agent_state: Any, key: Key) -> tuple[Metrics, Any]:
        def step(carry, _):
            state, policy_carry, alive, totals = carry
            action, policy_carry = agent.greedy(agent_state, policy_carry, named_obs(state))
            state = jax.vmap(env.step)(state, action)
            gains = {**state.metrics, "return": state.reward, "steps": jnp.ones(num_episodes)}
            # Selected, not multiplied: what follows a termination may not even be finite.
            totals = {
                name: total + jnp.where(alive > 0.0, gains[name], 0.0)
                for name, total in totals.items()
            }
            alive = alive * (1.0 - state.done)
            return (state, policy_carry, alive, totals), None if trace is None else trace(state)

        state = jax.vmap(env.reset)(jax.random.split(key, num_episodes))
        totals = {name: jnp.zeros(num_episodes) for name in [*state.metrics, "return", "steps"]}
        carry = (state, agent.carry(num_episodes), jnp.ones(num_episodes), totals)
        (_, _, alive, totals), traces = jax.lax.scan(step, carry, None, length=episode_length)
        return {**totals, "terminated": 1.0 - alive}, traces

    return evaluate
