"""Running mean and variance: merging, freezing, and float32's traps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.running_stats import init_stats, normalise, update_stats

update = jax.jit(update_stats)


def std(stats) -> np.ndarray:
    return np.sqrt(np.asarray(stats.deviation / stats.count))


def test_batches_merged_equal_all_at_once():
    rng = np.random.default_rng(0)
    batches = [rng.normal([3.0, -200.0], [2.0, 50.0], (size, 2)) for size in (1, 7, 64, 3, 25)]
    batches[3] += 500.0  # a batch unlike the others: the shift between means counts
    stats = init_stats(2)
    for batch in batches:
        stats = update(stats, jnp.asarray(batch, jnp.float32), True)
    everything = np.concatenate(batches)
    assert stats.count == 100
    np.testing.assert_allclose(stats.mean, everything.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(std(stats), everything.std(axis=0), rtol=1e-5)


def test_disabled_update_changes_nothing():
    stats = update(init_stats(2), jnp.array([[1.0, 2.0], [3.0, 5.0]]), True)
    frozen = update(stats, jnp.full((4, 2), 1e6), False)
    jax.tree.map(np.testing.assert_array_equal, frozen, stats)


def test_large_mean_keeps_its_spread_in_float32():
    # Feature 1e4 +- 1, 5e5 samples. A sum of squares would reach 5e13 with a spacing of 4e6 between
    # neighbouring float32 numbers, eight times the whole sum of squared deviations, 5e5.
    def step(stats, key):
        batch = 1e4 + jax.random.normal(key, (500, 1))
        return update_stats(stats, batch, jnp.array(True)), None

    keys = jax.random.split(jax.random.key(0), 1000)
    stats, _ = jax.jit(lambda keys: jax.lax.scan(step, init_stats(1), keys))(keys)
    assert stats.count == 500_000
    np.testing.assert_allclose(stats.mean, 1e4, rtol=1e-5)
    np.testing.assert_allclose(std(stats), 1.0, rtol=0.01)
    # ... and standardising keeps the digits: one deviation above the mean is one.
    np.testing.assert_allclose(normalise(stats, jnp.array([10_001.0])), 1.0, atol=0.02)


def test_normalise_standardises_and_clips():
    stats = update(init_stats(2), jnp.array([[1.0, 10.0], [3.0, 30.0]]), True)
    # Mean 2 and 20, deviations 1 and 10.
    values = jnp.array([[2.0, 35.0], [1000.0, -1000.0]])
    np.testing.assert_allclose(normalise(stats, values), [[0.0, 1.5], [10.0, -10.0]], atol=1e-6)
    np.testing.assert_allclose(normalise(stats, values[1], limit=3.0), [3.0, -3.0])


def test_without_samples_values_pass_unchanged():
    values = jnp.array([-3.0, 1e6])
    np.testing.assert_array_equal(normalise(init_stats(2), values), values)


@pytest.mark.parametrize("constant", [0.0, 0.1, 12345.678])
def test_constant_feature_stays_near_zero(constant):
    stats = init_stats(1)
    for size in (96, 33, 100):
        stats = update(stats, jnp.full((size, 1), constant, jnp.float32), True)
    assert abs(normalise(stats, jnp.array([constant], jnp.float32))[0]) < 1.0


def test_a_feature_that_never_changed_is_heard_as_it_is_once_it_does():
    stats = update(init_stats(1), jnp.zeros((64, 1)), True)
    np.testing.assert_array_equal(normalise(stats, jnp.array([[0.0], [0.75]])), [[0.0], [0.75]])


def test_unbatched_input_is_refused():
    with pytest.raises(AssertionError):
        update_stats(init_stats(3), jnp.zeros(3), jnp.array(True))
