"""Recorded steps by episodes, which models of dynamics are learned from.

Legend: `N` episodes or parallel environments, `T` steps of the longest, `F` observation entries,
`A` action entries.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from core_rl.env import Env, EnvSlots, make_env_loop, named_obs
from core_rl.errors import UserError
from core_rl.replay import ReplayState
from core_rl.types import Key, Obs, Transition

Array = jax.Array | np.ndarray


@struct.dataclass
class Episodes:
    """Recorded steps, one episode a row; numpy or jax arrays.

    Step `t` led from `obs[t]` under `action[t]` to `obs[t + 1]`, where it is valid; what stands at
    other steps is never read. An invalid step inside a row parts it as an end of episode would.
    """

    obs: Array  # [N, T + 1, F]
    action: Array  # [N, T, A]
    valid: Array  # [N, T] bool


def concat_entries(obs: Obs, entries: Sequence[str]) -> jax.Array:
    """The named entries side by side, `[..., F]`."""
    for name in entries:
        if name not in obs:
            raise UserError(
                f"the environment has no observation entry {name!r}; "
                f"it offers {', '.join(sorted(obs))}"
            )
    return jnp.concatenate([obs[name] for name in entries], axis=-1)


def cut_episodes(steps: Transition, entries: Sequence[str]) -> Episodes:
    """Episodes from parallel environments that restart by themselves, on the host.

    Every episode ends with its true last observation; one that the recording breaks off, or begins
    in the middle of, is kept as far as it goes.

    Args:
      steps: transitions `[steps, N]` in the order in which they happened.
      entries: observation entries that make up the vector.
    """
    obs, next_obs = (
        np.asarray(concat_entries(part, entries)) for part in (steps.obs, steps.next_obs)
    )
    action = np.asarray(steps.action)
    ended = np.asarray(steps.terminated | steps.truncated)
    num_steps, num_envs = ended.shape
    if num_steps == 0 or num_envs == 0:
        raise UserError(f"episodes: {num_steps} steps of {num_envs} environments hold none")
    pieces = []
    for env in range(num_envs):
        ends = np.append(np.flatnonzero(ended[:-1, env]) + 1, num_steps)
        pieces += zip([env] * len(ends), np.append(0, ends[:-1]), ends, strict=True)
    longest = max(end - begin for _, begin, end in pieces)
    rows = np.zeros((len(pieces), longest + 1, obs.shape[-1]), np.float32)
    actions = np.zeros((len(pieces), longest, action.shape[-1]), np.float32)
    valid = np.zeros((len(pieces), longest), bool)
    for row, (env, begin, end) in enumerate(pieces):
        length = end - begin
        rows[row, :length] = obs[begin:end, env]
        rows[row, length] = next_obs[end - 1, env]
        actions[row, :length] = action[begin:end, env]
        valid[row, :length] = True
    return Episodes(obs=rows, action=actions, valid=valid)


def collect(
    env: Env,
    policy: Callable[[Obs, Key], jax.Array],
    key: Key,
    *,
    num_envs: int,
    num_steps: int,
    episode_length: int,
    entries: Sequence[str] = ("state",),
    noise: float | Sequence[float] = 0.0,
) -> Episodes:
    """Episodes of a policy; at least `num_envs` of them, each from a real reset.

    Args:
      env: unbatched environment.
      policy: `(obs[N], key) -> action[N, A]` in [-1, 1].
      num_envs: environments in parallel.
      num_steps: steps of each; the last episodes break off there.
      episode_length: steps after which an episode is truncated.
      entries: observation entries that make up the vector, side by side.
      noise: standard deviation of what is added to the actions, clipped to [-1, 1] after that; or
        several, which the environments take in turn.
    """
    for name, count in (("num_envs", num_envs), ("num_steps", num_steps)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    deviations = np.resize(np.asarray(noise, np.float32), num_envs)
    if not np.all(deviations >= 0):
        raise ValueError(f"noise must not be negative, got {noise}")
    env_loop = make_env_loop(env, episode_length)

    def step(slots: EnvSlots, key: Key) -> tuple[EnvSlots, Transition]:
        policy_key, noise_key = jax.random.split(key)
        action = policy(named_obs(slots.state), policy_key)
        if np.any(deviations > 0):
            action += deviations[:, None] * jax.random.normal(noise_key, action.shape)
            action = jnp.clip(action, -1.0, 1.0)
        slots, transition, _ = env_loop.step(slots, action)
        # Only what is asked for is stored: other entries may be large.
        vector, next_vector = (
            {"vector": concat_entries(obs, entries)}
            for obs in (transition.obs, transition.next_obs)
        )
        return slots, dataclasses.replace(transition, obs=vector, next_obs=next_vector)

    def rollout(key: Key) -> Transition:
        reset_key, steps_key = jax.random.split(key)
        slots = env_loop.reset(reset_key, num_envs)
        return jax.lax.scan(step, slots, jax.random.split(steps_key, num_steps))[1]

    return cut_episodes(jax.jit(rollout)(key), ("vector",))


def from_replay(memory: ReplayState, num_envs: int, entries: Sequence[str]) -> Episodes:
    """What a replay of `num_envs` environments (`core_rl.replay`) holds, oldest first."""
    num_stored_rows = memory.storage.reward.shape[0] // num_envs
    num_rows = int(memory.num_rows)
    order = np.arange(max(num_rows - num_stored_rows, 0), num_rows) % num_stored_rows

    def in_order(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(num_stored_rows, num_envs, *leaf.shape[1:])[order]

    return cut_episodes(jax.tree.map(in_order, memory.storage), entries)
