"""The equations of QR-SAC, one unbatched function each; callers vmap them over the batch.

QR-SAC is Wurman et al. 2022 (Nature 602:223-228, Methods): soft actor-critic (Haarnoja et al. 2018)
whose critics predict quantiles by the quantile Huber loss (Dabney et al. 2018, eq. 10). Which of
the twin target critics is used follows Sony's own release (nnabla-rl, `qrsac`): the whole quantile
vector of the one with the smaller mean, neither an element-wise minimum nor a truncation.
"""

import chex
import jax
import jax.numpy as jnp


def quantile_huber_loss(quantiles: jax.Array, targets: jax.Array, kappa: float = 1.0) -> jax.Array:
    """Sum over predicted quantiles `[Q]` of the mean Huber pinball loss over `targets` `[M]`.

    With `delta_ij = target_j - quantile_i` and the midpoints `tau_i = (i + 1/2) / Q`:
    `sum_i mean_j |tau_i - 1{delta_ij < 0}| huber(delta_ij) / kappa`. Targets get no gradient.
    """
    chex.assert_rank([quantiles, targets], 1)
    num_quantiles = quantiles.shape[0]
    tau = (jnp.arange(num_quantiles) + 0.5) / num_quantiles
    delta = jax.lax.stop_gradient(targets)[None, :] - quantiles[:, None]
    distance = jnp.abs(delta)
    clipped = jnp.minimum(distance, kappa)
    huber = clipped * (distance - 0.5 * clipped)
    weight = jnp.where(delta < 0.0, 1.0 - tau[:, None], tau[:, None])
    return jnp.sum(jnp.mean(weight * huber, axis=1)) / kappa


def squared_loss(value: jax.Array, target: jax.Array) -> jax.Array:
    """Half the squared error of a scalar critic, `[1]` against `[1]`: plain SAC."""
    chex.assert_shape([value, target], (1,))
    return 0.5 * jnp.sum((jax.lax.stop_gradient(target) - value) ** 2)


def smaller_mean(quantiles: jax.Array) -> jax.Array:
    """Of critics `[C, Q]`, the whole quantile vector `[Q]` of the one with the smallest mean."""
    chex.assert_rank(quantiles, 2)
    return quantiles[jnp.argmin(jnp.mean(quantiles, axis=1))]


def soft_target(
    n_step_reward: jax.Array,
    bootstrap_discount: jax.Array,
    next_quantiles: jax.Array,
    next_log_prob: jax.Array,
    alpha: jax.Array,
) -> jax.Array:
    """Target quantiles `[Q]`: `R_n + gamma^n (theta_j - alpha log pi)`.

    The entropy enters where the target bootstraps and not inside the n steps.
    """
    chex.assert_rank([n_step_reward, bootstrap_discount, next_log_prob, alpha], 0)
    chex.assert_rank(next_quantiles, 1)
    return n_step_reward + bootstrap_discount * (next_quantiles - alpha * next_log_prob)


def actor_loss(quantiles: jax.Array, log_prob: jax.Array, alpha: jax.Array) -> jax.Array:
    """`alpha log pi - min_c mean_i theta_ci` with critics `[C, Q]`."""
    chex.assert_rank(quantiles, 2)
    chex.assert_rank([log_prob, alpha], 0)
    return alpha * log_prob - jnp.min(jnp.mean(quantiles, axis=1))


def temperature_loss(
    log_alpha: jax.Array, log_prob: jax.Array, target_entropy: jax.Array
) -> jax.Array:
    """`-log_alpha (log pi + target entropy)`: raises alpha while the entropy is below its target.

    Haarnoja et al. 2018 (v2), eq. 18, with the gradient taken in `log_alpha` as is common.
    """
    chex.assert_rank([log_alpha, log_prob, target_entropy], 0)
    return -log_alpha * jax.lax.stop_gradient(log_prob + target_entropy)
