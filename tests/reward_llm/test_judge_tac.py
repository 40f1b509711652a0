"""The alignment coefficient against scipy, its invariances, the filter and the fit of weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kendalltau

from projects.reward_llm.judge.resampling import group_counts, interval
from projects.reward_llm.judge.tac import (
    align_filter,
    alignment,
    clip_returns,
    fit_weights,
    soft_tac,
    tie_width,
)


def all_pairs(scores):
    """Every pair of clips, labelled by the scores of a person."""
    pairs = np.array(list(itertools.combinations(range(len(scores)), 2)))
    return pairs, np.sign(scores[pairs[:, 0]] - scores[pairs[:, 1]]).astype(int)


def some_pairs(rng, scores, count):
    pairs = rng.permuted(all_pairs(scores)[0], axis=1)
    pairs = pairs[rng.permutation(len(pairs))[:count]]
    return pairs, np.sign(scores[pairs[:, 0]] - scores[pairs[:, 1]]).astype(int)


@pytest.mark.parametrize("levels", [None, 6, 2])  # how many different values; None: no ties
def test_equals_kendalls_tau_b(levels):
    rng = np.random.default_rng(0)
    scores, returns = rng.normal(size=14), rng.normal(size=(5, 14))
    returns += scores
    if levels:
        edges = np.linspace(-0.5, 0.5, levels - 1) if levels > 2 else [0.2]
        scores, returns = (np.digitize(x, edges).astype(float) for x in (scores, returns))
    result = alignment(returns, *all_pairs(scores), resamples=0)
    expected = [kendalltau(scores, row, variant="b").statistic for row in returns]
    np.testing.assert_allclose(result.tau_b, expected, rtol=0, atol=1e-12)
    assert np.ptp(expected) > 0.1
    if levels:
        assert result.tied_by_reward.min() > 0 and result.tied_by_label.min() > 0


def test_tau_a_is_that_of_ma():
    returns = np.array([[3.0, 2.0, 1.0, 1.0]])
    pairs = np.array([[0, 1], [1, 2], [2, 0], [2, 3], [0, 3]])
    labels = np.array([1, 1, 1, 1, 0])
    result = alignment(returns, pairs, labels, resamples=0)
    # Decided: two agree, one opposes, one is tied by the reward, which Ma et al. count as wrong.
    assert result.tau_a[0] == (2 * 2 - 4) / 4
    assert (result.agreeing[0], result.opposing[0]) == (2, 1)
    assert (result.tied_by_reward[0], result.tied_by_label[0]) == (1, 1)
    assert result.tau_b[0] == pytest.approx((2 - 1) / 4)
    assert (result.num_pairs, result.num_decided) == (5, 4)


@pytest.mark.parametrize("scale,offset", [(1e-7, 0.0), (3.0, 1e3), (1e9, -5.0)])
def test_positive_affine_maps_change_nothing_and_negative_ones_the_sign(scale, offset):
    rng = np.random.default_rng(1)
    returns = rng.normal(size=(4, 20))
    returns[:, 10:] = returns[:, :10]  # true ties must stay ties
    pairs, labels = some_pairs(rng, rng.normal(size=20), 60)
    plain = alignment(returns, pairs, labels, resamples=50)
    mapped = alignment(scale * returns + offset, pairs, labels, resamples=50)
    for before, after in zip(plain, mapped, strict=True):
        np.testing.assert_array_equal(before, after)
    turned = alignment(-scale * returns + offset, pairs, labels, resamples=0)
    np.testing.assert_array_equal(turned.tau_b, -plain.tau_b)


def test_order_of_a_pair_does_not_matter():
    rng = np.random.default_rng(2)
    returns = rng.normal(size=(3, 12))
    pairs, labels = some_pairs(rng, rng.normal(size=12), 40)
    swap = rng.random(40) < 0.5
    turned = np.where(swap[:, None], pairs[:, ::-1], pairs)
    first = alignment(returns, pairs, labels)
    second = alignment(returns, turned, np.where(swap, -labels, labels))
    np.testing.assert_array_equal(first.tau_b, second.tau_b)
    np.testing.assert_array_equal(first.low, second.low)


def test_no_order_is_undefined_and_not_zero():
    scores = np.arange(6.0)
    returns = np.stack([np.zeros(6), np.full(6, np.nan), np.full(6, np.inf), scores])
    result = alignment(returns, *all_pairs(scores), resamples=20)
    np.testing.assert_array_equal(np.isnan(result.tau_b), [True, True, True, False])
    np.testing.assert_array_equal(np.isnan(result.low), [True, True, True, False])
    assert result.tau_a[0] == -1.0  # a constant reward orders no pair as the label does
    assert np.isnan(result.tau_a[1])
    assert np.isnan(alignment(scores[None], *all_pairs(np.zeros(6)), resamples=0).tau_b[0])
    assert np.isnan(alignment(scores[None], np.zeros((0, 2), int), np.zeros(0)).tau_b[0])


def test_rounding_of_a_constant_reward_is_no_order():
    rng = np.random.default_rng(3)
    noise = (1.0 + 1e-7 * rng.normal(size=(1, 30))).astype(np.float32)
    assert len(np.unique(noise)) > 2
    assert np.isnan(alignment(noise, *all_pairs(rng.normal(size=30))).tau_b[0])
    # The same numbers in float64 are an order: there they are not rounding.
    assert np.isfinite(alignment(noise.astype(float), *all_pairs(rng.normal(size=30))).tau_b[0])
    assert tie_width(np.array([[0.0, 1000.0]]), 1e-3)[0] == pytest.approx(1.0)


def test_bootstrap_interval_covers_about_as_often_as_it_says():
    """Of 200 studies with 60 independent pairs, labels right with probability 0.8 (tau-b 0.6).

    A coverage of 0.95 has the standard error 0.016 here. Percentile intervals of 60 pairs are
    known to cover a little less, so 0.90 to 0.99 must hold; an interval that is half as wide
    (about 0.67) or of wrong centre does not pass.
    """
    rng = np.random.default_rng(4)
    returns = np.tile([0.0, 1.0], 60)[None]
    pairs = np.arange(120).reshape(60, 2)
    covered = 0
    for study in range(200):
        labels = np.where(rng.random(60) < 0.8, -1, 1)
        result = alignment(returns, pairs, labels, resamples=300, seed=study)
        covered += result.low[0] <= 0.6 <= result.high[0]
    assert 0.90 <= covered / 200 <= 0.99


def test_answers_about_the_same_clips_are_one_observation():
    rng = np.random.default_rng(5)
    returns = rng.normal(size=(1, 40))
    pairs, labels = some_pairs(rng, returns[0] + rng.normal(size=40), 40)
    once = alignment(returns, pairs, labels)
    swapped = alignment(returns, np.tile(pairs, (9, 1)), np.tile(labels, 9))
    apart = alignment(returns, np.tile(pairs, (9, 1)), np.tile(labels, 9), groups=range(360))
    width = once.high - once.low
    np.testing.assert_allclose(swapped.high - swapped.low, width, rtol=1e-9)
    assert apart.high - apart.low < 0.5 * width  # a third is expected


def test_group_counts_draw_whole_groups():
    counts = group_counts(["a", "b", "a", "c", "c", "c"], 500, 0)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    np.testing.assert_array_equal(counts[:, 3], counts[:, 5])
    np.testing.assert_array_equal(counts[:, 0] + counts[:, 1] + counts[:, 3], 3)
    assert counts[:, 1].min() == 0 and counts[:, 1].max() == 3
    assert group_counts([], 3, 0).shape == (3, 0)
    low, high = interval(np.array([[np.nan, 1.0], [np.nan, 3.0]]), 1.0)
    np.testing.assert_array_equal([low, high], [[np.nan, 1.0], [np.nan, 3.0]])


def test_returns():
    rewards = np.array([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]])
    np.testing.assert_allclose(clip_returns(rewards), [7 / 3, 8 / 3])
    np.testing.assert_allclose(clip_returns(rewards, 0.5), [3.0, 2.0])
    assert clip_returns(rewards.astype(np.float32), 0.9).dtype == np.float32
    assert clip_returns(np.ones((2, 3), int)).dtype == np.float64


def candidates(rng, count, num_clips=24, num_pairs=60):
    """Rewards that follow the true scores ever less, and pairs with their labels."""
    scores = rng.normal(size=num_clips)
    returns = np.stack([scores + 0.6 * k * rng.normal(size=num_clips) for k in range(count)])
    return [f"c{k}" for k in range(count)], returns, *some_pairs(rng, scores, num_pairs)


def test_filter_keeps_the_best_and_one_by_chance():
    ids, returns, pairs, labels = candidates(np.random.default_rng(6), 8)
    returns[2] = 1.0  # undefined, so last
    result = align_filter(ids, returns, pairs, labels, keep=3, seed=0)
    tau = dict(zip(ids, np.nan_to_num(result.alignment.tau_b, nan=-2.0), strict=True))
    assert result.applied
    assert list(result.kept) == sorted(ids, key=lambda name: -tau[name])[:3]
    assert result.going_on == (*result.kept, result.survivor)
    survivors = {
        align_filter(ids, returns, pairs, labels, keep=3, seed=seed).survivor for seed in range(60)
    }
    assert survivors == set(ids) - set(result.kept)  # every dropped one has a chance
    again = align_filter(ids, returns, pairs, labels, keep=3, seed=0)
    assert (again.kept, again.survivor) == (result.kept, result.survivor)


def test_filter_gives_way():
    ids, returns, pairs, labels = candidates(np.random.default_rng(7), 4)
    for changes, words in [
        ({"pairs": pairs[:29], "labels": labels[:29]}, "29 decided pairs"),
        # Ties are labels too, but say nothing about order.
        ({"labels": np.where(np.arange(60) < 29, labels, 0)}, "29 decided pairs"),
        ({"returns": np.zeros_like(returns)}, "undefined"),
        ({"keep": 4}, "only 4 rewards"),
    ]:
        arguments = {"returns": returns, "pairs": pairs, "labels": labels, "keep": 2} | changes
        result = align_filter(ids, seed=0, **arguments)
        assert not result.applied and result.survivor is None and words in result.reason
        assert result.going_on == tuple(ids)
    assert align_filter(ids, returns, pairs[:30], labels[:30], keep=2, seed=0).applied
    with pytest.raises(ValueError, match="different ids"):
        align_filter(["c0"] * 4, returns, pairs, labels, keep=2, seed=0)


def test_soft_tac_tends_to_tau_and_has_the_gradient_of_its_formula():
    rng = np.random.default_rng(8)
    returns = rng.normal(size=(1, 15))
    pairs, labels = some_pairs(rng, returns[0] + 0.5 * rng.normal(size=15), 50)
    cold = soft_tac(jnp.asarray(returns[0]), jnp.asarray(pairs), jnp.asarray(labels), 1e-5)
    assert float(cold) == pytest.approx(alignment(returns, pairs, labels).tau_b[0], abs=1e-6)
    one = jax.grad(soft_tac)(jnp.array([0.5, 0.0]), jnp.array([[0, 1]]), jnp.array([1]), 2.0)
    slope = (1 - np.tanh(0.25) ** 2) / 2.0
    np.testing.assert_allclose(one, [slope, -slope], rtol=1e-6)


def test_fitted_weights_align_better_on_pairs_they_have_not_seen():
    rng = np.random.default_rng(9)
    terms = rng.normal(size=(4, 60)) * np.array([[1.0], [5.0], [0.2], [1.0]])
    start = np.array([1.0, -1.0, 1.0, 0.0])  # the second, loud term hides what matters
    true = np.array([1.0, -0.15, 4.0, 0.0])
    pairs, labels = some_pairs(rng, true @ terms, 400)
    fitted = fit_weights(terms, start, pairs[:200], labels[:200])
    before, after = alignment(np.stack([start, fitted]) @ terms, pairs[200:], labels[200:]).tau_b
    assert before < 0.7 and after > 0.9
    np.testing.assert_array_equal(np.sign(fitted), np.sign(start))
    assert np.linalg.norm(fitted) == pytest.approx(np.linalg.norm(start), rel=1e-5)
    # Only the direction counts: neither units nor offsets of the returns change the fit.
    same = fit_weights(1e-4 * terms + 3.0, start, pairs[:200], labels[:200])
    np.testing.assert_allclose(same, fitted, rtol=1e-3, atol=1e-4)
