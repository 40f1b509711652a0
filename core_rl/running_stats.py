"""Running mean and variance by batched Welford updates (Chan, Golub & LeVeque 1983, eq. 2.1).

The sum of squared deviations is kept, never the sum of squares: in float32 the latter loses all
digits of a feature whose mean is large against its spread.
"""

import chex
import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class RunningStats:
    count: jax.Array  # []
    mean: jax.Array  # [F]
    deviation: jax.Array  # [F] sum of squared deviations from the mean


def init_stats(num_features: int) -> RunningStats:
    # Two arrays, not one twice: a buffer cannot be donated twice.
    mean, deviation = jnp.zeros(num_features), jnp.zeros(num_features)
    return RunningStats(count=jnp.zeros(()), mean=mean, deviation=deviation)


def update_stats(stats: RunningStats, batch: jax.Array, enabled: jax.Array) -> RunningStats:
    """Merges `batch` `[B, F]`; where `enabled` (a bool scalar) is false nothing changes."""
    chex.assert_rank(batch, 2)
    added = jnp.where(enabled, batch.shape[0], 0).astype(jnp.float32)
    count = stats.count + added
    share = added / jnp.maximum(count, 1.0)
    batch_mean = jnp.mean(batch, axis=0)
    batch_deviation = jnp.sum((batch - batch_mean) ** 2, axis=0)
    shift = batch_mean - stats.mean
    merged = batch_deviation + shift**2 * stats.count * batch.shape[0] / jnp.maximum(count, 1.0)
    return RunningStats(
        count=count,
        mean=stats.mean + shift * share,
        deviation=stats.deviation + jnp.where(enabled, merged, 0.0),
    )


def forget(stats: RunningStats, count: float = 1000.0) -> RunningStats:
    """The same mean and variance, as if they came from at most `count` values."""
    kept = jnp.minimum(1.0, count / jnp.maximum(stats.count, 1.0))
    return RunningStats(stats.count * kept, jnp.copy(stats.mean), stats.deviation * kept)


def normalise(stats: RunningStats, value: jax.Array, limit: float = 10.0) -> jax.Array:
    """Standardises `value` `[..., F]`, clipped to +-limit. Features that have never changed are
    only centred: the smallest spread would make them deafening once they do."""
    variance = stats.deviation / jnp.maximum(stats.count, 1.0)
    scale = jnp.where(variance > 0.0, jax.lax.rsqrt(jnp.maximum(variance, 1e-6)), 1.0)
    scaled = jnp.clip((value - stats.mean) * scale, -limit, limit)
    return jnp.where(stats.count > 0, scaled, value)
