"""Residual-SAC: a trained policy customised by training on, the expensive way.

Any agent that is trained on `omega' log pi(a|s) + r_R`, with the log-density of the prior policy
and the add-on reward `r_R`, learns what `omega r + r_R` asks for without knowing `r` (residual
Q-learning, Li et al. 2023, arXiv 2306.09526; the baseline of Wang et al. 2025, arXiv 2407.00898).
So it takes no algorithm of its own, only an environment that pays this reward.
`core_rl.residual_mppi` plans for the same sum.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from core_rl.env import Env, State, Wrapper, named_obs
from core_rl.residual_mppi import Distribution
from core_rl.types import Obs


class ResidualEnv(Wrapper):
    """An environment that pays `omega' log pi(a|s) + r_R` instead of its own reward.

    Its own reward stays as the metric `basic_reward`, beside `addon_reward` and `log_prior`.
    """

    def __init__(
        self,
        env: Env,
        prior: Callable[[Obs], Distribution],
        addon: Callable[[State, jax.Array, State], jax.Array],
        prior_weight: float,
    ):
        """
        Args:
          env: unbatched.
          prior: `(obs) -> distribution` of the action `[A]`.
          addon: `(state, action, next state) -> []`, r_R.
          prior_weight: omega'.
        """
        super().__init__(env)
        self.prior, self.addon, self.prior_weight = prior, addon, prior_weight

    def reset(self, rng: jax.Array) -> State:
        state = self.env.reset(rng)
        return self._paid(state, jnp.zeros(()), jnp.zeros(()), state.reward)

    def step(self, state: State, action: jax.Array) -> State:
        log_prior = self.prior(named_obs(state)).log_prob(action)
        stepped = self.env.step(state, action)
        addon = self.addon(state, action, stepped)
        return self._paid(stepped, log_prior, addon, stepped.reward)

    def _paid(
        self, state: State, log_prior: jax.Array, addon: jax.Array, basic: jax.Array
    ) -> State:
        metrics = {"log_prior": log_prior, "addon_reward": addon, "basic_reward": basic}
        return state.replace(  # pyright: ignore[reportAttributeAccessIssue]
            reward=self.prior_weight * log_prior + addon,
            metrics={**state.metrics, **metrics},
        )
