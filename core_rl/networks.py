"""Network bodies, exposed as `(init, apply)` pairs; the only file that imports flax.linen."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from core_rl.types import Key, Params

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": nn.tanh,
    "elu": nn.elu,
}


class Network(NamedTuple):
    init: Callable[[Key], Params]
    apply: Callable[..., jax.Array]  # (params, inputs [..., F]) -> [..., output_size]


class MLP(nn.Module):
    """Dense layers; optional layer norm before each hidden activation."""

    hidden: Sequence[int]
    output_size: int
    activation: str
    layer_norm: bool

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        x = inputs
        for width in self.hidden:
            x = nn.Dense(width, kernel_init=nn.initializers.he_uniform())(x)
            if self.layer_norm:
                x = nn.LayerNorm()(x)
            x = ACTIVATIONS[self.activation](x)
        # A small last layer: the first actions and values depend little on the observation.
        return nn.Dense(
            self.output_size, kernel_init=nn.initializers.variance_scaling(0.01, "fan_in", "normal")
        )(x)


def make_mlp(
    input_size: int,
    output_size: int,
    hidden: Sequence[int],
    *,
    activation: str = "relu",
    layer_norm: bool = False,
) -> Network:
    """A feed-forward network `[..., input_size] -> [..., output_size]`."""
    module = MLP(tuple(hidden), output_size, activation, layer_norm)
    return Network(
        init=lambda key: module.init(key, jnp.zeros(input_size))["params"],
        apply=lambda params, inputs: module.apply({"params": params}, inputs),
    )


def make_ensemble(network: Network, num_members: int) -> Network:
    """`num_members` independent copies: parameters with a leading axis `[C, ...]`,
    outputs `[C, ..., output_size]`. All members read the same inputs."""
    return Network(
        init=lambda key: jax.vmap(network.init)(jax.random.split(key, num_members)),
        apply=jax.vmap(network.apply, in_axes=(0, None)),
    )
