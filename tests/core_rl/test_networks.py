"""Networks whose static inputs join behind the trunk, against the same forward pass in numpy."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.networks import Network, average_outputs, make_ensemble, make_mlp

STATIC, DYNAMIC, OUTPUTS = (3, 2), (4, 1), 2
SIZES = (*STATIC, *DYNAMIC)
HIDDEN, ENCODER = (8, 7, 6), (5, 9)


def make(layer_norm: bool = False, **changes) -> Network:
    arguments: dict[str, Any] = {
        "output_size": OUTPUTS,
        "hidden": HIDDEN,
        "activation": "tanh",  # smooth, for differences in place of derivatives
        "layer_norm": layer_norm,
        "num_static": len(STATIC),
        "static_hidden": ENCODER,
    }
    return make_mlp(SIZES, **{**arguments, **changes})


def some_inputs(*lead: int) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(*lead, size)), jnp.float32) for size in SIZES)


def some_params(network: Network, seed: int = 0) -> Any:
    """As they begin, but with biases and scales that are not all the same."""
    rng = np.random.default_rng(seed)
    params = network.init(jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf + rng.normal(0.0, 0.3, leaf.shape), params)


def shapes(params: Any) -> dict[str, tuple[int, ...]]:
    """By the names that bundles and checkpoints know."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def forward(params: Any, inputs: Any) -> np.ndarray:
    """What `make(layer_norm).apply` says it does, in float64: `[B, outputs]`."""

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    def hidden_layer(layer, norm, x):
        x = dense(layer, x)
        if norm is not None:
            x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
            x = x * norm["scale"] + norm["bias"]
        return np.tanh(x)

    def norm(layers, number):
        return layers.get(f"LayerNorm_{number}")

    static, dynamic = np.concatenate(inputs[:2], axis=-1), np.concatenate(inputs[2:], axis=-1)
    encoder = params["encoder"]
    trunk = hidden_layer(params["PartedDense_0"], norm(params, 0), dynamic)
    trunk = hidden_layer(params["Dense_0"], norm(params, 1), trunk)
    encoded = hidden_layer(encoder["PartedDense_0"], norm(encoder, 0), static)
    encoded = hidden_layer(encoder["Dense_0"], norm(encoder, 1), encoded)
    joined = np.concatenate([trunk, encoded], axis=-1)
    joined = hidden_layer(params["PartedDense_1"], norm(params, 2), joined)
    return dense(params["output"], joined)


def in_float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.array(leaf, np.float64), tree)


def test_without_static_inputs_the_parameters_are_named_as_ever():
    """Bundles and checkpoints hold these names, and the random numbers of a layer depend on its."""
    network = make_mlp((3, 2), OUTPUTS, (8, 7, 6), layer_norm=True, static_hidden=ENCODER)
    norms = {
        f"LayerNorm_{number}/{name}": (width,)
        for number, width in enumerate((8, 7, 6))
        for name in ("scale", "bias")
    }
    assert shapes(network.init(jax.random.key(0))) == norms | {
        "PartedDense_0/kernel": (5, 8),
        "PartedDense_0/bias": (8,),
        "Dense_0/kernel": (8, 7),
        "Dense_0/bias": (7,),
        "Dense_1/kernel": (7, 6),
        "Dense_1/bias": (6,),
        "output/kernel": (6, 2),
        "output/bias": (2,),
    }


def test_static_inputs_have_an_encoder_and_no_weight_in_the_trunk():
    assert shapes(make().init(jax.random.key(0))) == {
        "PartedDense_0/kernel": (sum(DYNAMIC), 8),
        "PartedDense_0/bias": (8,),
        "Dense_0/kernel": (8, 7),
        "Dense_0/bias": (7,),
        "encoder/PartedDense_0/kernel": (sum(STATIC), 5),
        "encoder/PartedDense_0/bias": (5,),
        "encoder/Dense_0/kernel": (5, 9),
        "encoder/Dense_0/bias": (9,),
        "PartedDense_1/kernel": (7 + 9, 6),
        "PartedDense_1/bias": (6,),
        "output/kernel": (6, 2),
        "output/bias": (2,),
    }
    normed = shapes(make(layer_norm=True).init(jax.random.key(0)))
    assert sum(name.endswith("scale") for name in normed) == len(HIDDEN) + len(ENCODER)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_static_network_equals_the_forward_pass_in_numpy_and_so_does_its_gradient(layer_norm):
    network = make(layer_norm)
    params, inputs = some_params(network), some_inputs(3)
    weights = np.random.default_rng(1).normal(size=(3, OUTPUTS))  # of the outputs, in one number

    def loss(params: Any, inputs: Any) -> jax.Array:
        return jnp.sum(weights * network.apply(params, inputs))

    at = in_float64((params, inputs))
    np.testing.assert_allclose(network.apply(params, inputs), forward(*at), rtol=1e-4, atol=1e-5)
    gradients = jax.grad(loss, argnums=(0, 1))(params, inputs)
    step, leaves = 1e-5, jax.tree.leaves(at)
    for leaf, gradient in zip(leaves, jax.tree.leaves(gradients), strict=True):
        expected = np.zeros_like(leaf)
        for index in itertools.product(*map(range, leaf.shape)):
            kept, sides = leaf[index], []
            for side in (step, -step):
                leaf[index] = kept + side  # in place: `at` holds this very array
                sides.append(np.sum(weights * forward(*at)))
            leaf[index] = kept
            expected[index] = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)
        assert np.abs(expected).max() > 1e-3  # every input and every layer tells in the output


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_leading_axes_are_free(lead):
    network = make()
    params, inputs = some_params(network), some_inputs(*lead)
    flat = [part.reshape(-1, part.shape[-1]) for part in inputs]
    expected = forward(*in_float64((params, flat))).reshape(*lead, OUTPUTS)
    np.testing.assert_allclose(network.apply(params, inputs), expected, rtol=1e-4, atol=1e-5)


def test_ensembles_and_averaged_outputs_work_with_static_inputs():
    network, inputs = make(), some_inputs(3)
    ensemble = make_ensemble(network, 2)
    params = some_params(ensemble)
    values = jax.jit(ensemble.apply)(params, inputs)
    for member in range(2):
        alone = jax.tree.map(lambda leaf, member=member: leaf[member], params)
        np.testing.assert_allclose(values[member], network.apply(alone, inputs), atol=1e-5)
    assert np.abs(values[0] - values[1]).max() > 0.01
    mean = make_ensemble(make(output_size=1), 2)
    np.testing.assert_allclose(
        mean.apply(average_outputs(params), inputs), values.mean(axis=-1, keepdims=True), atol=1e-5
    )


@pytest.mark.parametrize(
    "change", [{"hidden": (8,)}, {"static_hidden": ()}, {"num_static": len(SIZES)}]
)
def test_static_inputs_without_their_place_are_refused(change):
    with pytest.raises(ValueError, match=r"^static inputs need two hidden layers, an encoder"):
        make(**change)
