"""The environment interface (brax's `Env` and `State`) and honest episodes over it.

brax is taken for its small classes only; its training wrappers lose the last observation of an
episode and reuse the first. Here an episode's end keeps `terminated` (the task is over, from the
environment's `done`) apart from `truncated` (the clock, from `episode_length`), `next_obs` is the
true last observation, and every episode begins with a real `reset` under a fresh key.

An environment may hold several agents that do the same task: it then says how many by an attribute
`num_agents`, and observations, actions, rewards and `done` have a leading axis [M]. Whoever learns
from it sees rows: `R` = `N` environments times `M`, those of one environment next to each other.
An environment that takes other actions than it was asked for says which in `State.info["action"]`,
and one in which others act too, which agents are the learner's, in `State.info["learns"]`.
"""

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct

from core_rl.types import Key, Obs, Transition

# mujoco-mjx, which brax imports, prints to stdout that an optional package of its own is missing.
with contextlib.redirect_stdout(io.StringIO()):
    from brax.envs import create, get_environment, register_environment
    from brax.envs.base import Env, State, Wrapper

__all__ = [
    "Env",
    "EnvLoop",
    "EnvSlots",
    "HeldActions",
    "State",
    "StepInfo",
    "Wrapper",
    "agents_as_rows",
    "create",
    "example_obs",
    "get_environment",
    "make_env_loop",
    "named_obs",
    "num_agents",
    "observation_sizes",
    "register_environment",
]


@struct.dataclass
class EnvSlots:
    """`N` environments in the middle of their episodes."""

    state: State  # [N]
    key: Key  # [N] the source of each slot's next reset
    clock: jax.Array  # [N] int32, runs to the episode length; ahead of num_steps if staggered
    num_steps: jax.Array  # [N] int32, steps of the episode so far
    episode_return: jax.Array  # [R]


@struct.dataclass
class StepInfo:
    """What a step led to, before any restart; returns and lengths are of whole episodes where
    `ended` (of the shorter first ones where the slots were staggered)."""

    state: State  # [N]
    counts: jax.Array  # [R] bool, whether the learner acted
    ended: jax.Array  # [R] bool
    episode_return: jax.Array  # [R]
    num_steps: jax.Array  # [R] int32


class EnvLoop(NamedTuple):
    reset: Callable[[Key, int], EnvSlots]  # (key, num_envs)
    step: Callable[[EnvSlots, jax.Array], tuple[EnvSlots, Transition, StepInfo]]
    observe: Callable[[EnvSlots], Obs]  # what the agents see now [R, ...]
    rows: Callable[[int], int]  # (num_envs) -> R


def num_agents(env: Env) -> int | None:
    """None where an environment has a single agent and no axis for it."""
    return getattr(env, "num_agents", None)


def agents_as_rows(values: Any) -> Any:
    """Leaves [N, M, ...] as [R, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), values)


def named_obs(state: State) -> Obs:
    """An environment with a plain observation array has the single entry `state`."""
    return dict(state.obs) if isinstance(state.obs, Mapping) else {"state": state.obs}  # pyright: ignore[reportReturnType]


def example_obs(env: Env) -> Obs:
    """Zeros of the shapes of one agent's observation, without running the environment."""
    state = jax.eval_shape(env.reset, jax.random.key(0))
    axes = 0 if num_agents(env) is None else 1
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[axes:], leaf.dtype), named_obs(state))


def observation_sizes(env: Env) -> dict[str, int]:
    """Length of each entry of the observation, without running the environment."""
    return {name: leaf.shape[-1] for name, leaf in example_obs(env).items()}


class HeldActions(Wrapper):
    """An environment whose every action is held for `num_steps` steps, or to the end of the task.

    Rewards and metrics are summed, and who learns in a part of it (`info["learns"]`) does in all.
    What a single short action is worth drowns in the error of a value function; held longer, it is
    worth more.
    """

    def __init__(self, env: Env, num_steps: int):
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        super().__init__(env)
        self.num_steps = num_steps

    def step(self, state: State, action: jax.Array) -> State:
        def hold(carry: tuple[State, jax.Array, Any], _: None):
            before, reward, metrics = carry
            after = self.env.step(before, action)
            over = jnp.all(before.done > 0.5)
            after = jax.tree.map(lambda old, new: jnp.where(over, old, new), before, after)
            counts = 1.0 - before.done
            metrics = jax.tree.map(lambda a, b: a + counts * b, metrics, after.metrics)
            if "learns" in after.info:
                # Or who leaves in the middle would never be seen to leave.
                learns = before.info["learns"] | after.info["learns"]
                after = after.replace(info={**after.info, "learns": learns})  # pyright: ignore[reportAttributeAccessIssue]
            return (after, reward + counts * after.reward, metrics), None

        zeros = jax.tree.map(jnp.zeros_like, (state.reward, state.metrics))
        info = state.info
        if "learns" in info:
            info = {**info, "learns": jnp.zeros_like(info["learns"])}
        state = state.replace(done=jnp.zeros_like(state.done), info=info)  # pyright: ignore[reportAttributeAccessIssue]
        begin = (state, *zeros)
        (state, reward, metrics), _ = jax.lax.scan(hold, begin, None, length=self.num_steps)
        return state.replace(reward=reward, metrics=metrics)  # pyright: ignore[reportAttributeAccessIssue]


def make_env_loop(env: Env, episode_length: int, *, stagger: bool = False) -> EnvLoop:
    """Builds `reset` and `step` over parallel environments that restart by themselves.

    Args:
      env: unbatched brax environment, of one agent or several.
      episode_length: steps after which an episode is truncated, at least 1.
      stagger: begin the first episodes at random clock positions, so that slots with equally long
        episodes do not all restart in the same step.
    """
    if episode_length < 1:
        raise ValueError(f"episode_length must be at least 1, got {episode_length}")
    agents = num_agents(env)

    def rows(num_envs: int) -> int:
        return num_envs * (agents or 1)

    def as_rows(values: Any) -> Any:
        return values if agents is None else agents_as_rows(values)

    def by_row(values: jax.Array) -> jax.Array:
        """What holds for environments [N], for their agents [R]."""
        return values if agents is None else jnp.repeat(values, agents)

    def observe(slots: EnvSlots) -> Obs:
        return as_rows(named_obs(slots.state))

    def reset(key: Key, num_envs: int) -> EnvSlots:
        reset_key, slot_key, clock_key = jax.random.split(key, 3)
        state = jax.vmap(env.reset)(jax.random.split(reset_key, num_envs))
        clock = jnp.zeros(num_envs, jnp.int32)
        if stagger:
            clock = jax.random.randint(clock_key, (num_envs,), 0, episode_length)
        return EnvSlots(
            state=state,
            key=jax.random.split(slot_key, num_envs),
            clock=clock,
            num_steps=jnp.zeros(num_envs, jnp.int32),
            episode_return=jnp.zeros(rows(num_envs)),
        )

    def restart(slots: EnvSlots, ended: jax.Array) -> EnvSlots:
        keys = jax.vmap(jax.random.split)(slots.key)
        fresh = jax.vmap(env.reset)(keys[:, 0])

        def choose(new: Any, old: Any) -> Any:
            return jnp.where(ended.reshape(ended.shape + (1,) * (new.ndim - 1)), new, old)

        return EnvSlots(
            state=jax.tree.map(choose, fresh, slots.state),
            key=choose(keys[:, 1], slots.key),
            clock=jnp.where(ended, 0, slots.clock),
            num_steps=jnp.where(ended, 0, slots.num_steps),
            episode_return=jnp.where(by_row(ended), 0.0, slots.episode_return),
        )

    def step(slots: EnvSlots, action: jax.Array) -> tuple[EnvSlots, Transition, StepInfo]:
        chex.assert_rank(action, 2)
        asked = action if agents is None else action.reshape(-1, agents, action.shape[-1])
        state = jax.vmap(env.step)(slots.state, asked)
        clock, num_steps = slots.clock + 1, slots.num_steps + 1
        # An environment with several agents is over when it is for all of them.
        over = jnp.all((state.done > 0.5).reshape(clock.shape[0], -1), axis=1)
        timed_out = ~over & (clock >= episode_length)
        ended = over | timed_out
        terminated = as_rows(state.done) > 0.5
        taken = as_rows(state.info["action"]) if "action" in state.info else action
        reward = as_rows(state.reward)
        transition = Transition(
            obs=observe(slots),
            action=taken,
            reward=reward,
            terminated=terminated,
            truncated=~terminated & by_row(timed_out),
            next_obs=as_rows(named_obs(state)),
        )
        episode_return = slots.episode_return + reward
        stepped = EnvSlots(
            state=state,
            key=slots.key,
            clock=clock,
            num_steps=num_steps,
            episode_return=episode_return,
        )
        counts = jnp.ones(reward.shape, bool)
        if "learns" in state.info:
            counts = as_rows(state.info["learns"])
        info = StepInfo(
            state=state,
            counts=counts,
            ended=by_row(ended),
            episode_return=episode_return,
            num_steps=by_row(num_steps),
        )
        # A reset can cost as much as a step, and most steps end nothing.
        slots = jax.lax.cond(jnp.any(ended), restart, lambda slots, _: slots, stepped, ended)
        return slots, transition, info

    return EnvLoop(reset=reset, step=step, observe=observe, rows=rows)
