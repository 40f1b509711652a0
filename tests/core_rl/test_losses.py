"""Golden values of the QR-SAC equations, derived by hand, plain, under jit and under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.losses import (
    actor_loss,
    quantile_huber_loss,
    smaller_mean,
    soft_target,
    squared_loss,
    temperature_loss,
)


def jitted(function):
    return jax.jit(function)


def vmapped(function):
    """Calls `function` under vmap on three equal copies and returns one of the equal results."""

    def call(*arrays):
        copies = [jnp.stack([jnp.asarray(array)] * 3) for array in arrays]
        result = jax.jit(jax.vmap(function))(*copies)
        assert np.ptp(result, axis=0).max() == 0.0
        return result[1]

    return call


@pytest.fixture(params=[lambda function: function, jitted, vmapped], ids=["plain", "jit", "vmap"])
def way(request):
    return request.param


def floats(*values):
    return jnp.array(values, jnp.float32)


# Two quantiles have the midpoints tau = 1/4 and 3/4. Per pair, weight * huber with kappa = 1:
#   theta_0 = 0: delta = 0.5 (inside):  1/4 * 0.5 * 0.5^2     = 0.03125
#                delta = 3   (outside): 1/4 * (3 - 0.5)       = 0.625     mean 0.328125
#   theta_1 = 1: delta = -0.5 (inside): (1 - 3/4) * 0.125     = 0.03125
#                delta = 2   (outside): 3/4 * (2 - 0.5)       = 1.125     mean 0.578125
# and the sum over the quantiles is 0.90625.
ABOVE = (floats(0.0, 1.0), floats(0.5, 3.0), 0.90625)
# Both deltas negative and outside: theta_0 = 0: delta = -2: 3/4 * 1.5 = 1.125;
# theta_1 = 1: delta = -3: 1/4 * 2.5 = 0.625; one target, so the sum is 1.75.
BELOW = (floats(0.0, 1.0), floats(-2.0), 1.75)
# On the target exactly there is no loss: (0.25 * 0 + 0.25 * 0.5) / 2 twice (delta = +-1) = 0.125.
EXACT = (floats(0.0, 1.0), floats(0.0, 1.0), 0.125)


@pytest.mark.parametrize("case", [ABOVE, BELOW, EXACT], ids=["above", "below", "exact"])
def test_quantile_huber_loss_matches_the_hand_derived_value(way, case):
    quantiles, targets, expected = case
    np.testing.assert_allclose(way(quantile_huber_loss)(quantiles, targets), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # One quantile: tau = 1/2, and kappa = 2 divides the whole.
        (1.0, 0.125),  # inside: 1/2 * 0.5 * 1^2 / 2
        (-1.0, 0.125),
        (2.0, 0.5),  # on the edge both forms agree: 1/2 * 2 / 2
        (3.0, 1.0),  # outside: 1/2 * 2 * (3 - 1) / 2
        (-3.0, 1.0),
    ],
)
def test_kappa_sets_the_edge_and_the_scale(way, target, expected):
    loss = way(lambda quantiles, targets: quantile_huber_loss(quantiles, targets, kappa=2.0))
    np.testing.assert_allclose(loss(floats(0.0), floats(target)), expected, rtol=1e-6)


def test_quantile_huber_gradient_pulls_each_quantile_by_its_own_weight(way):
    # d loss / d theta_i = -mean_j weight_ij * clip(delta_ij, -1, 1), on the case ABOVE:
    #   i = 0: -(1/4 * 0.5 + 1/4 * 1) / 2 = -0.1875
    #   i = 1: -(1/4 * -0.5 + 3/4 * 1) / 2 = -0.3125
    quantiles, targets, _ = ABOVE
    np.testing.assert_allclose(
        way(jax.grad(quantile_huber_loss))(quantiles, targets), [-0.1875, -0.3125], rtol=1e-6
    )


def test_targets_get_no_gradient():
    quantiles, targets, _ = ABOVE
    assert not jax.grad(quantile_huber_loss, argnums=1)(quantiles, targets).any()
    assert not jax.grad(squared_loss, argnums=1)(floats(1.0), floats(3.0)).any()
    assert jax.grad(temperature_loss, argnums=1)(*floats(-1.0, 3.0, -2.0)) == 0.0


def test_gradient_vanishes_at_the_true_quantiles():
    # Eight targets 0..70 in steps of 10 and a tiny kappa: theta_0 at the 1/4 quantile has two
    # targets below it (weight 3/4) and six above it (weight 1/4), which balance; so does theta_1.
    targets = 10.0 * jnp.arange(8.0)
    grad = jax.grad(lambda quantiles: quantile_huber_loss(quantiles, targets, kappa=0.1))
    np.testing.assert_allclose(grad(floats(15.0, 55.0)), 0.0, atol=1e-7)
    assert grad(floats(25.0, 45.0))[0] > 0.0 > grad(floats(25.0, 45.0))[1]


def test_squared_loss_is_half_the_square(way):
    np.testing.assert_allclose(way(squared_loss)(floats(1.0), floats(3.0)), 2.0)  # (3 - 1)^2 / 2
    np.testing.assert_allclose(way(jax.grad(squared_loss))(floats(1.0), floats(3.0)), [-2.0])


def test_smaller_mean_takes_the_whole_vector_of_one_critic(way):
    # Means 5 and 4.5: the second vector, although the first holds the smaller element 0.
    critics = jnp.array([[0.0, 10.0], [4.0, 5.0]])
    np.testing.assert_array_equal(way(smaller_mean)(critics), [4.0, 5.0])
    np.testing.assert_array_equal(way(smaller_mean)(critics[::-1]), [4.0, 5.0])


def test_soft_target_adds_the_entropy_where_it_bootstraps(way):
    # 1 + 0.5 * (2 - 0.1 * -1) = 2.05 and 1 + 0.5 * (4 + 0.1) = 3.05
    target = way(soft_target)(1.0, 0.5, floats(2.0, 4.0), -1.0, 0.1)
    np.testing.assert_allclose(target, [2.05, 3.05], rtol=1e-6)


def test_soft_target_after_a_termination_is_the_reward_alone(way):
    target = way(soft_target)(1.0, 0.0, floats(2.0, 4.0), -1.0, 0.1)
    np.testing.assert_array_equal(target, [1.0, 1.0])


def test_actor_loss_uses_the_smaller_of_the_critics_means(way):
    # 0.5 * 2 - min((0 + 4) / 2, (1 + 2) / 2) = 1 - 1.5; an element-wise minimum would give 1 - 1.
    critics = jnp.array([[0.0, 4.0], [1.0, 2.0]])
    np.testing.assert_allclose(way(actor_loss)(critics, 2.0, 0.5), -0.5)


def test_actor_gradient_reaches_the_chosen_critic_only(way):
    # d/d theta_ci of -min_c mean_i theta_ci: -1/2 for the second critic's two quantiles.
    critics = jnp.array([[0.0, 4.0], [1.0, 2.0]])
    np.testing.assert_allclose(
        way(jax.grad(actor_loss))(critics, 2.0, 0.5), [[0.0, 0.0], [-0.5, -0.5]]
    )


def test_temperature_loss_raises_alpha_while_the_entropy_is_too_low(way):
    # log pi = 3, an entropy of -3, under the target -2: loss = -(-1) * (3 - 2) = 1 and its
    # gradient in log alpha is -(3 - 2) = -1, so that descent raises alpha; and the reverse.
    np.testing.assert_allclose(way(temperature_loss)(-1.0, 3.0, -2.0), 1.0)
    np.testing.assert_allclose(way(jax.grad(temperature_loss))(-1.0, 3.0, -2.0), -1.0)
    np.testing.assert_allclose(way(jax.grad(temperature_loss))(-1.0, 1.0, -2.0), 1.0)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (quantile_huber_loss, [(5, 2), (5, 2)]),
        (quantile_huber_loss, [(2,), (5, 2)]),
        (squared_loss, [(5, 1), (5, 1)]),
        (squared_loss, [(5,), (5,)]),
        (squared_loss, [(), ()]),
        (smaller_mean, [(5, 2, 3)]),
        (smaller_mean, [(3,)]),
        (soft_target, [(5,), (), (3,), (), ()]),
        (soft_target, [(), (5,), (3,), (), ()]),
        (soft_target, [(), (), (5, 3), (), ()]),
        (soft_target, [(), (), (3,), (5,), ()]),
        (actor_loss, [(5, 2, 3), (), ()]),
        (actor_loss, [(2, 3), (5,), ()]),
        (temperature_loss, [(), (5,), ()]),
    ],
)
def test_batched_input_is_refused(function, shapes):
    # Broadcasting a forgotten batch axis would give a plausible number.
    with pytest.raises(AssertionError):
        function(*(jnp.zeros(shape) for shape in shapes))
