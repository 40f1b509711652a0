"""The squashed normal's log-density against calculus done in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.distributions import LOG_STD_MAX, LOG_STD_MIN, TanhNormal


def samples(mean: float, log_std: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` actions of a one-dimensional policy with their log-densities, in float64."""
    policy = TanhNormal(mean=jnp.full((count, 1), mean), log_std=jnp.full((count, 1), log_std))
    action, log_prob = policy.sample_and_log_prob(jax.random.key(0))
    return np.asarray(action[:, 0], np.float64), np.asarray(log_prob, np.float64)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-1.2, -0.5)])
def test_log_prob_is_the_change_of_variables(mean, log_std):
    action, log_prob = samples(mean, log_std, 2000)
    inside = np.abs(action) < 0.99  # float32 actions near +-1 no longer tell x
    assert inside.mean() > 0.8
    action, log_prob = action[inside], log_prob[inside]
    # p(a) = N(arctanh a; mean, std) |d arctanh / da|, the slope by a central difference.
    std = np.exp(log_std)
    normal = np.exp(-0.5 * ((np.arctanh(action) - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    step = 1e-6
    slope = (np.arctanh(action + step) - np.arctanh(action - step)) / (2 * step)
    np.testing.assert_allclose(log_prob, np.log(normal * slope), atol=2e-3)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, -0.5), (0.5, -1.0)])
def test_density_integrates_to_one(mean, log_std):
    action, log_prob = samples(mean, log_std, 20_000)
    order = np.argsort(action)
    mass = np.trapezoid(np.exp(log_prob[order]), action[order])
    assert mass == pytest.approx(1.0, abs=2e-3)


def test_log_prob_sums_over_the_actions_entries():
    mean, log_std = jnp.array([[0.3, -0.6], [0.1, 0.9]]), jnp.array([[-1.0, 0.2], [-0.4, 0.0]])
    joint = TanhNormal(mean=mean, log_std=log_std).sample_and_log_prob(jax.random.key(1))
    assert joint[0].shape == (2, 2) and joint[1].shape == (2,)
    x = np.arctanh(np.asarray(joint[0], np.float64))
    std = np.exp(np.asarray(log_std, np.float64))
    normal = np.exp(-0.5 * ((x - np.asarray(mean)) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    expected = np.log(normal / (1.0 - np.tanh(x) ** 2)).sum(axis=1)
    np.testing.assert_allclose(joint[1], expected, atol=1e-4)


@pytest.mark.parametrize("mean", [-300.0, -20.0, 20.0, 300.0])
def test_saturated_policy_stays_finite_with_a_finite_gradient(mean):
    def both(mean, log_std):
        policy = TanhNormal(mean=mean, log_std=log_std)
        action, log_prob = policy.sample_and_log_prob(jax.random.key(2))
        return jnp.sum(action) + log_prob, (action, log_prob)

    arguments = (jnp.full(2, mean), jnp.full(2, -3.0))
    grads, (action, log_prob) = jax.grad(both, argnums=(0, 1), has_aux=True)(*arguments)
    np.testing.assert_array_equal(action, np.sign(mean))  # exactly +-1 in float32
    assert np.isfinite(log_prob)
    assert all(np.isfinite(grad).all() for grad in grads)
    # Far out log(1 - tanh(x)^2) tends to 2 log 2 - 2|x|: each entry gives d log p / d mean = +-2.
    np.testing.assert_allclose(grads[0], 2.0 * np.sign(mean), rtol=1e-5)


def test_log_prob_of_an_action_is_that_of_its_sample():
    mean, log_std = jnp.array([0.3, -0.6]), jnp.array([-1.0, 0.2])
    policy = TanhNormal(mean=jnp.tile(mean, (500, 1)), log_std=jnp.tile(log_std, (500, 1)))
    action, log_prob = policy.sample_and_log_prob(jax.random.key(4))
    inside = np.abs(action).max(axis=1) < 0.99
    assert inside.mean() > 0.7
    np.testing.assert_allclose(policy.log_prob(action)[inside], log_prob[inside], atol=1e-3)


def test_log_prob_by_hand():
    # a = 0.6: x = arctanh 0.6 = log 2, 1 - a^2 = 0.64. With mean 0 and std 1
    # log p = -log(2)^2 / 2 - log(2 pi) / 2 - log 0.64 = -0.240227 - 0.918939 + 0.446287.
    policy = TanhNormal(mean=jnp.zeros(1), log_std=jnp.zeros(1))
    np.testing.assert_allclose(policy.log_prob(jnp.array([0.6])), -0.712878, atol=1e-5)


@pytest.mark.parametrize("mean", [-300.0, -20.0, 0.0, 0.5, 20.0, 300.0])
@pytest.mark.parametrize("action", [-1.0, -1.0 + 1e-7, 0.0, 1.0 - 1e-7, 1.0])
def test_log_prob_of_saturated_actions_is_finite(mean, action):
    def log_prob(mean, log_std, action):
        return TanhNormal(mean=mean, log_std=log_std).log_prob(action)

    arguments = (jnp.full(2, mean), jnp.full(2, LOG_STD_MIN), jnp.full(2, action))
    value, grads = jax.value_and_grad(log_prob, argnums=(0, 1, 2))(*arguments)
    assert np.isfinite(value)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_saturated_policy_finds_its_own_mode_likely():
    # tanh(20) is 1 in float32. What stands behind it is taken to be the mean itself, at the slope
    # of the edge a = 1 - 1e-6, log(1 - a^2) = log 2e-6 = -13.12:
    # log p = 3 - log(2 pi) / 2 + 13.12 = 15.20. For a = -1 it is the edge on the other side.
    policy = TanhNormal(mean=jnp.full(1, 20.0), log_std=jnp.full(1, -3.0))
    assert policy.mode() == 1.0
    np.testing.assert_allclose(policy.log_prob(policy.mode()), 15.20, atol=0.1)
    assert policy.log_prob(jnp.array([0.9])) < -1e4
    assert policy.log_prob(jnp.array([-1.0])) < policy.log_prob(jnp.array([0.9]))


def test_log_prob_is_continuous_where_saturation_begins():
    # A policy in the middle: the edge is the likeliest of what a saturated action stands for.
    policy = TanhNormal(mean=jnp.zeros(1), log_std=jnp.zeros(1))
    below, at = (policy.log_prob(jnp.array([action])) for action in (1.0 - 2e-6, 1.0))
    # x = arctanh grows by log(2) / 2 as 1 - a halves, from 6.91 to 7.25; -x^2 / 2 - log(1 - a^2).
    np.testing.assert_allclose(below, -0.5 * 6.907755**2 - 0.918939 + 12.429217, atol=0.2)
    np.testing.assert_allclose(at, -0.5 * 7.254329**2 - 0.918939 + 13.122364, atol=0.2)


def test_samples_are_reparameterised():
    # a = tanh(mean + std * noise): da/dmean = 1 - a^2 and da/dlog_std = (1 - a^2) * std * noise.
    mean, log_std = jnp.array([0.4]), jnp.array([-0.7])

    def action(mean, log_std):
        return TanhNormal(mean=mean, log_std=log_std).sample_and_log_prob(jax.random.key(3))[0][0]

    value, (by_mean, by_log_std) = jax.value_and_grad(action, argnums=(0, 1))(mean, log_std)
    slope = 1.0 - value**2
    np.testing.assert_allclose(by_mean[0], slope, rtol=1e-5)
    np.testing.assert_allclose(by_log_std[0], slope * (jnp.arctanh(value) - mean[0]), rtol=1e-4)


def test_output_splits_into_mean_and_bounded_log_std():
    output = jnp.array([0.2, -3.0, 0.0, 5.0, -100.0, 100.0])
    policy = TanhNormal.from_output(output)
    np.testing.assert_array_equal(policy.mean, output[:3])
    # raw 5: -5 + 3.5 * (1 + tanh 5) = 1.99968; the middle of the range is -1.5.
    np.testing.assert_allclose(policy.log_std, [1.99968, LOG_STD_MIN, LOG_STD_MAX], rtol=1e-5)
    middle = TanhNormal.from_output(jnp.zeros(2)).log_std
    np.testing.assert_allclose(middle, [-1.5])
    np.testing.assert_allclose(policy.mode(), np.tanh(output[:3]), rtol=1e-6)
