"""The data that flows through training, and the tuples of functions that make it flow.

Legend of shapes: `B` batch, `N` parallel environments, `n` bootstrap horizon, `A` action entries,
`Q` quantiles, `C` critics, `K` replay tables, `S` seeds. An observation is a dict of named float
arrays; an agent's `actor_obs` and `critic_obs` name the entries that each network reads.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import struct

Key = jax.Array  # a typed key, jax.random.key
Obs = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Params = Any


@struct.dataclass
class Transition:
    """One environment step; leading axes are free (`[N]` when it is stored)."""

    obs: Obs
    action: jax.Array  # [A] in [-1, 1]
    reward: jax.Array  # []
    terminated: jax.Array  # [] bool: the task ended, nothing follows
    truncated: jax.Array  # [] bool: the clock ended the episode, the task would go on
    next_obs: Obs  # what the step led to; never the observation of a reset


@struct.dataclass
class Batch:
    """Transitions folded over up to `n` steps, ready for a temporal-difference target."""

    obs: Obs
    action: jax.Array  # [A]
    n_step_reward: jax.Array  # [] sum_k gamma^k r_k
    bootstrap_discount: jax.Array  # [] gamma^steps, or 0 after a termination
    next_obs: Obs  # where the target bootstraps


class Agent(NamedTuple):
    """An algorithm: pure functions over one state pytree.

    `carry` is the recurrent state of a policy, `()` for feed-forward ones.
    """

    init: Callable[..., Any]  # (key, example_obs, hypers | None) -> AgentState
    carry: Callable[[int], Any]  # (num_envs) -> Carry
    act: Callable[..., tuple[jax.Array, Any]]  # (state, carry, obs[N], key) -> action[N, A], carry
    greedy: Callable[..., tuple[jax.Array, Any]]  # (state, carry, obs[N]) -> action[N, A], carry
    update: Callable[..., tuple[Any, Metrics]]  # (state, Batch[B], key) -> state, metrics
    deploy: Callable[[Any], Any]  # (state) -> the little of it that `greedy` reads, the rest None
    adopt: Callable[[Any, Any], Any]  # (fresh state, trained state) -> the fresh one, having learnt
    discount: Callable[[Any], jax.Array]  # (state) -> [] of the next update's targets, per step
    # (state, obs[...]) -> distribution of action[..., A] whose mode is what `greedy` does, if known
    policy: Callable[[Any, Obs], Any] | None = None


class Hindsight(NamedTuple):
    """How to learn as if what an episode achieved had been its goal (Andrychowicz et al. 2017,
    arXiv 1707.01495), for tasks whose goal matters to the reward of the last step only."""

    horizon: int  # steps within which the end of an episode is looked for
    goal: Callable[[Transition], tuple[jax.Array, jax.Array]]  # (last step) -> goal, bool if any
    reward: Callable[[Transition, jax.Array], jax.Array]  # (last step, goal) -> its reward then
    obs: Callable[[Obs, jax.Array], Obs]  # (obs, goal) -> what it would have been


class Afterstate(NamedTuple):
    """What critics may be told of an action: features of the state that it leads to, as far as a
    known model tells (afterstates: Sutton & Barto 2018, section 6.8). A critic then need not learn
    that model, and the actor's gradient passes through it. Deployed policies do without."""

    size: int  # F
    features: Callable[[Obs, jax.Array], jax.Array]  # (obs, action[A]) -> [F], of the order of 1


class Replay(NamedTuple):
    """Storage of transitions; see `core_rl.replay`."""

    init: Callable[..., Any]  # (example Transition) -> ReplayState
    add: Callable[..., Any]  # (state, Transition[N], table_mask[N, K]) -> ReplayState
    sample: Callable[..., Batch]  # (state, key, discount) -> Batch[B]


class Trainer(NamedTuple):
    """`init` fills the replay with random actions; `epoch` is one compiled stretch of training.

    An epoch alternates `collect`, one step of all environments, and `learn`, the updates after it.
    Whoever alternates them otherwise may do something between the two.
    """

    init: Callable[..., Any]  # (key, hypers | None) -> TrainState
    epoch: Callable[..., tuple[Any, Metrics]]  # (TrainState) -> TrainState, metrics
    collect: Callable[..., tuple[Any, Metrics]]  # (TrainState, key) -> TrainState, experience
    learn: Callable[..., tuple[Any, Metrics]]  # (TrainState, key) -> TrainState, losses
