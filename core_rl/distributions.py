"""The policy's distribution: a diagonal normal squashed by tanh.

Haarnoja et al. 2018 (arXiv 1812.05905), appendix C.
"""

import jax
import jax.numpy as jnp
from flax import struct

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
# Beyond this float32 no longer tells what an action was before tanh.
SATURATION = 1.0 - 1e-6


@struct.dataclass
class TanhNormal:
    """`tanh(x)` with `x ~ N(mean, exp(log_std)^2)`; event axis last."""

    mean: jax.Array  # [..., A] before tanh
    log_std: jax.Array  # [..., A]

    @classmethod
    def from_output(cls, output: jax.Array) -> "TanhNormal":
        """Splits a network's output `[..., 2A]`; log_std is squashed smoothly into its range."""
        mean, raw = jnp.split(output, 2, axis=-1)
        span = 0.5 * (LOG_STD_MAX - LOG_STD_MIN)
        return cls(mean=mean, log_std=LOG_STD_MIN + span * (1.0 + jnp.tanh(raw)))

    def mode(self) -> jax.Array:
        return jnp.tanh(self.mean)

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns an action `[..., A]` and its log-density `[...]`, reparameterised."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        x = self.mean + jnp.exp(self.log_std) * noise
        log_normal = -0.5 * noise**2 - self.log_std - 0.5 * jnp.log(2.0 * jnp.pi)
        return jnp.tanh(x), jnp.sum(log_normal - _log_slope(x), axis=-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-density `[...]` of any action `[..., A]` in [-1, 1], finite at -1 and 1 too.

        A saturated action stands for every `x` beyond; the likeliest of them is meant, so that
        a policy whose mode is saturated does not find its own mode unlikely. The slope there is
        that of the edge, which bounds the density.
        """
        edge = jnp.arctanh(jnp.asarray(SATURATION, self.mean.dtype))
        inside = jnp.arctanh(jnp.clip(action, -SATURATION, SATURATION))
        beyond = jnp.sign(action) * jnp.maximum(jnp.sign(action) * self.mean, edge)
        x = jnp.where(jnp.abs(action) < SATURATION, inside, beyond)
        noise = (x - self.mean) * jnp.exp(-self.log_std)
        log_normal = -0.5 * noise**2 - self.log_std - 0.5 * jnp.log(2.0 * jnp.pi)
        return jnp.sum(log_normal - _log_slope(inside), axis=-1)


def _log_slope(x: jax.Array) -> jax.Array:
    """`log(1 - tanh(x)^2)`, written so that it neither under- nor overflows."""
    return 2.0 * (jnp.log(2.0) - x - jax.nn.softplus(-2.0 * x))
