"""Shapley values: the axioms, closed forms, estimates against all coalitions, and the picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from matplotlib.figure import Figure

from core_rl.errors import UserError
from core_rl.shapley import (
    exact_shapley_values,
    importance_bars,
    shapley_values,
)

GROUPS = (0, 1, 1, 2, 3, 0)  # F = 6, G = 4
NUM_PERMUTATIONS = 256
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 6)).astype(np.float32)
BACKGROUND = RNG.normal(size=(16, 6)).astype(np.float32)
KEY = jax.random.key(1)


def curved(row):
    """Interactions of two and of three groups; group 3 is not read."""
    a, b, c, d, _, e = row
    return jnp.stack([jnp.sin(a * b) + c * d * e, jnp.tanh(b + c) ** 2 + a * d])


def additive(row):
    return jnp.sum(jnp.sin(row) + row**2)


def sampled(function, x=X, background=BACKGROUND, groups=GROUPS, **changes):
    count = changes.pop("num_permutations", NUM_PERMUTATIONS)
    return shapley_values(function, x, background, groups, KEY, count, **changes)


METHODS = pytest.mark.parametrize("method", [sampled, exact_shapley_values])


def exact(function, x=X, background=BACKGROUND, groups=GROUPS):
    return exact_shapley_values(function, x, background, groups)


def mean_over(function, rows):
    return np.mean([np.atleast_1d(function(row)) for row in rows], axis=0)


def test_estimate_agrees_with_all_coalitions():
    estimate, truth = sampled(curved, num_permutations=2048), exact(curved)
    assert estimate.value.shape == estimate.error.shape == (3, 4, 2)
    assert np.all(np.abs(estimate.value - truth.value) <= 4 * estimate.error + 1e-6)
    # Of the size that is claimed, and not merely covered by it.
    assert np.all(estimate.error[:, :3] > 0) and np.max(estimate.error) < 0.1
    assert np.max(np.abs(truth.value)) > 0.5
    np.testing.assert_allclose(estimate.base, truth.base, atol=1e-6)  # 1024 = 64 times 16 rows


def test_standard_error_is_the_spread_over_keys():
    keys = jax.random.split(KEY, 200)
    # One row: nothing is drawn but the orders, and the claimed error has nothing to overstate.
    values = jax.vmap(lambda k: shapley_values(curved, X[0], BACKGROUND[:1], GROUPS, k, 64))(keys)
    spread = values.value.std(axis=0)[0, :3]
    claimed = np.sqrt(np.mean(values.error**2, axis=0))[0, :3]
    random = spread > 1e-4  # a group whose walks forwards and backwards always agree has no spread
    assert np.sum(random) >= 3
    np.testing.assert_allclose(claimed[random], spread[random], rtol=0.25)
    np.testing.assert_allclose(claimed[~random], 0.0, atol=1e-5)


def test_reverse_orders_cancel_pairwise_interactions():
    def pairwise(row):
        return row[0] * row[1] - 2.0 * row[1] * row[2]

    estimate = sampled(pairwise, X, BACKGROUND[:1], (0, 1, 2, 2, 2, 2), num_permutations=4)
    truth = exact(pairwise, X, BACKGROUND[:1], (0, 1, 2, 2, 2, 2))
    np.testing.assert_allclose(estimate.value, truth.value, atol=1e-5)
    np.testing.assert_allclose(estimate.error, 0.0, atol=1e-5)


@METHODS
def test_efficiency(method):
    values = method(curved, X, BACKGROUND, GROUPS)
    np.testing.assert_allclose(values.value.sum(axis=1), values.full - values.base, atol=1e-5)
    np.testing.assert_allclose(values.full, [curved(row) for row in X], atol=1e-5)
    np.testing.assert_allclose(values.base, mean_over(curved, BACKGROUND), atol=1e-5)


def test_efficiency_where_not_all_rows_are_used():
    values = sampled(curved, num_permutations=10)
    np.testing.assert_allclose(values.value.sum(axis=1), values.full - values.base, atol=1e-5)


@METHODS
def test_a_group_that_is_not_read_gets_exactly_nothing(method):
    # Even where it repeats a feature that is read.
    background = BACKGROUND.copy()
    background[:, 4] = background[:, 0]
    values = method(curved, X, background, GROUPS)
    assert np.all(values.value[:, 3] == 0.0) and np.all(values.error[:, 3] == 0.0)


@METHODS
def test_symmetry(method):
    """Groups 0 and 2 play the same part, group 1 another."""

    def alike(row):
        return jnp.tanh(row[0] * row[3] + row[0] + row[3]) * row[1]

    x, background = X.copy(), BACKGROUND.copy()
    x[:, 3], background[:, 3] = x[:, 0], background[:, 0]
    values = method(alike, x, background, GROUPS)
    difference = np.abs(values.value[:, 0] - values.value[:, 2])
    assert np.all(difference <= 4 * (values.error[:, 0] + values.error[:, 2]) + 1e-6)
    assert np.min(np.abs(values.value[:, 0] - values.value[:, 1])) > 1e-3


@METHODS
def test_linearity(method):
    """The same key draws the same orders and rows, so it holds for the estimates too."""
    both = method(lambda row: 2.0 * curved(row) - additive(row), X, BACKGROUND, GROUPS)
    parts = [method(function, X, BACKGROUND, GROUPS).value for function in (curved, additive)]
    np.testing.assert_allclose(both.value, 2.0 * parts[0] - parts[1], atol=1e-4)


@METHODS
def test_linear_function(method):
    weights = RNG.normal(size=(6, 2)).astype(np.float32)
    values = method(lambda row: row @ weights + 3.0, X, BACKGROUND, GROUPS)
    by_feature = (X - BACKGROUND.mean(axis=0))[..., None] * weights
    expected = np.stack([by_feature[:, np.array(GROUPS) == g].sum(axis=1) for g in range(4)], 1)
    np.testing.assert_allclose(values.value, expected, atol=1e-5)


@METHODS
def test_unanimity_shares_alike(method):
    """A product over a background of zeros is worth something only to all: each gets a G-th."""
    values = method(lambda row: jnp.prod(row), X, np.zeros((1, 6)), GROUPS)
    expected = np.broadcast_to(np.prod(X, axis=1)[:, None] / 4, (3, 4))
    error = 4 * values.error[..., 0] + 1e-6
    assert np.all(np.abs(values.value[..., 0] - expected) <= error)


@METHODS
def test_a_group_is_the_sum_of_its_features_where_nothing_interacts(method):
    single = method(additive, X, BACKGROUND, range(6)).value
    grouped = method(additive, X, BACKGROUND, GROUPS).value
    expected = np.stack([single[:, np.array(GROUPS) == g].sum(axis=1) for g in range(4)], 1)
    np.testing.assert_allclose(grouped, expected, atol=1e-4)


@METHODS
@pytest.mark.parametrize("chunk", [1, 50, 10**6])
def test_chunks_change_nothing(method, chunk):
    usual, other = (method(curved, X, BACKGROUND, GROUPS, chunk=c) for c in (8192, chunk))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), usual, other)


@METHODS
def test_one_point_one_output_one_group(method):
    values = method(additive, X[0], BACKGROUND, [0] * 6)
    assert values.value.shape == values.error.shape == (1, 1, 1)
    expected = additive(X[0]) - mean_over(additive, BACKGROUND)
    np.testing.assert_allclose(values.value[0, 0], expected, atol=1e-5)


@METHODS
def test_compiles_once(method):
    traces = []

    def scaled(scale, row):
        traces.append(1)
        return scale * jnp.sum(row**2)

    once = method(Partial(scaled, jnp.float32(1.0)), X, BACKGROUND, GROUPS)
    count = len(traces)
    twice = method(Partial(scaled, jnp.float32(2.0)), X + 1.0, BACKGROUND, GROUPS)
    assert len(traces) == count
    assert not np.allclose(once.full, twice.full)
    np.testing.assert_allclose(twice.full[:, 0], 2.0 * np.sum((X + 1.0) ** 2, axis=1), rtol=1e-5)


def test_inside_another_program():
    def largest(weight, x):
        values = exact_shapley_values(lambda row: weight * row, x, BACKGROUND, GROUPS)
        return jnp.abs(values.value).max()

    compiled = jax.jit(largest)
    np.testing.assert_allclose(compiled(3.0, X), 3.0 * compiled(1.0, X), rtol=1e-5)


@METHODS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": (0, 1, 2)}, r"groups has shape \[3\].* 6 features"),
        ({"groups": (0.0, 1.0, 1.0, 2.0, 3.0, 0.0)}, "float64, expected one integer"),
        ({"groups": (0, 2, 2, 3, 4, 0)}, r"none left out, got \[0, 2, 3, 4\]"),
        ({"groups": (-1, 0, 0, 1, 2, 0)}, "none left out"),
        ({"background": np.zeros((0, 6))}, r"background has shape \[0, 6\].*M > 0"),
        ({"background": np.zeros((4, 5))}, r"background has shape \[4, 5\], expected \[M, 6\]"),
        ({"background": np.zeros(6)}, r"background has shape \[6\]"),
        ({"x": np.zeros((2, 3, 6))}, r"x has shape \[2, 3, 6\]"),
        ({"x": np.zeros((0, 6))}, r"x has shape \[0, 6\]"),
        ({"value": lambda row: jnp.outer(row, row)}, r"value returns shape \[6, 6\]"),
        ({"chunk": 0}, "chunk must be at least 1"),
    ],
)
def test_wrong_input(method, change, message):
    arguments = {"value": curved, "x": X, "background": BACKGROUND, "groups": GROUPS} | change
    with pytest.raises(UserError, match=message) as error:
        method(arguments.pop("value"), **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [0, 2, 7])
def test_permutations_come_in_two_pairs_or_more(count):
    with pytest.raises(UserError, match=f"even and at least 4, got {count}"):
        sampled(curved, num_permutations=count)


def test_too_many_groups_for_all_coalitions():
    with pytest.raises(UserError, match="13 are too many for exact values, allowed are 12"):
        exact(additive, np.zeros(13), np.zeros((1, 13)), range(13))


def test_the_largest_bar_is_on_top():
    names, sizes = ["mass", "aero", "tyres"], np.array([0.2, 0.05, 0.7])
    axes = Figure().subplots()
    importance_bars(axes, names, sizes, 0.1 * sizes)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["tyres", "mass", "aero"]
    assert axes.yaxis_inverted()  # the first bar is the top one
    bars = axes.containers[0].patches
    assert [bar.get_width() for bar in bars] == [0.7, 0.2, 0.05]
