"""The policy's distribution: a diagonal normal squashed by tanh.

Haarnoja et al. 2018 (arXiv 1812.05905), appendix C.
"""

import jax
import jax.numpy as jnp
from flax import struct

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


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
        # log(1 - tanh(x)^2), written so that it neither under- nor overflows.
        log_slope = 2.0 * (jnp.log(2.0) - x - jax.nn.softplus(-2.0 * x))
        return jnp.tanh(x), jnp.sum(log_normal - log_slope, axis=-1)
