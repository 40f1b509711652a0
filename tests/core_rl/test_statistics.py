"""Aggregates and intervals against cases that can be computed by hand, and known coverage."""

import numpy as np
import pytest

from core_rl import statistics
from core_rl.statistics import (
    bootstrap,
    difference,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    paired_bootstrap,
    performance_profile,
    probability_of_improvement,
)

# Two runs of four tasks.
SCORES = np.array([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 107.0]])


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end():
    # Of 0 1 2 3 4 5 6 107 the middle half is 2 3 4 5.
    assert interquartile_mean(SCORES) == pytest.approx(3.5)
    # Five values: a quarter of five, rounded down, is one at either end: (2 + 3 + 4) / 3.
    assert interquartile_mean(np.array([[1.0, 2.0, 3.0, 4.0, 50.0]])) == pytest.approx(3.0)
    assert interquartile_mean(np.array([[1.0], [2.0], [6.0]])) == pytest.approx(3.0)


def test_the_median_is_of_the_tasks_means():
    # Means over runs: 2 3 4 55.
    assert median(SCORES) == pytest.approx(3.5)
    assert mean(SCORES) == pytest.approx(16.0)


def test_the_optimality_gap_counts_nothing_beyond_its_target():
    # Of a target of 2: shortfalls 2 1 0 0 0 0 0 0.
    assert optimality_gap(SCORES, 2.0) == pytest.approx(3.0 / 8.0)
    assert optimality_gap(np.full((3, 2), 5.0)) == pytest.approx(0.0)


def test_ties_are_half_an_improvement():
    ours, theirs = np.array([[1.0], [2.0]]), np.array([[1.0], [0.0], [3.0]])
    # 1 ties 1, beats 0, loses to 3; 2 beats two of three: 1.5 and 2 of 3 each.
    assert probability_of_improvement(ours, theirs) == pytest.approx((1.5 + 2.0) / 6.0)
    assert probability_of_improvement(theirs, ours) == pytest.approx(1.0 - 3.5 / 6.0)


def test_an_improvement_is_averaged_over_tasks():
    ours = np.array([[1.0, 0.0], [1.0, 0.0]])
    theirs = np.array([[0.0, 1.0], [0.0, 0.0]])
    # On the first task always better; on the second worse than one and level with the other.
    assert probability_of_improvement(ours, theirs) == pytest.approx((1.0 + 0.25) / 2.0)


def test_a_profile_is_the_share_above():
    profile = performance_profile(SCORES, np.array([-1.0, 2.0, 6.5, 200.0]))
    np.testing.assert_allclose(profile, [1.0, 5 / 8, 1 / 8, 0.0])


def test_aggregates_take_batches():
    batch = np.stack([SCORES, SCORES + 1.0])
    np.testing.assert_allclose(interquartile_mean(batch), [3.5, 4.5])
    np.testing.assert_allclose(median(batch), [3.5, 4.5])
    assert performance_profile(batch, np.array([2.0])).shape == (2, 1)


def test_a_bootstrap_of_equal_runs_has_no_width():
    value, low, high = bootstrap(interquartile_mean, np.full((3, 2), 7.0))
    assert value == low == high == 7.0


def test_resampling_stays_within_tasks():
    # Runs of a task are equal and tasks differ: every resample is the same, which it would not be
    # if runs were drawn across tasks.
    scores = np.tile([1.0, 100.0], (5, 1))
    _, low, high = bootstrap(mean, scores)
    assert low == high == pytest.approx(50.5)


def test_a_two_run_bootstrap_by_hand():
    # Two runs 0 and 1: their mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4; the interval that
    # leaves out 5 % at either end is the whole range, one that leaves out 30 % is the middle.
    scores = np.array([[0.0], [1.0]])
    value, low, high = bootstrap(mean, scores, level=0.9)
    assert (value, low, high) == (0.5, 0.0, 1.0)
    assert bootstrap(mean, scores, level=0.4)[1:] == (0.5, 0.5)


def test_intervals_cover_as_often_as_they_say():
    # The percentile bootstrap is a little narrow with few runs (here 20).
    random = np.random.default_rng(0)
    covered = 0
    for number in range(300):
        scores = random.normal(size=(20, 2))
        _, low, high = bootstrap(mean, scores, seed=number, repetitions=400)
        covered += low <= 0.0 <= high
    assert 0.89 < covered / 300 < 0.98


def test_pairs_take_what_they_share_out():
    random = np.random.default_rng(1)
    shared = random.normal(scale=10.0, size=(12, 1))
    ours, theirs = shared + 1.0 + 0.1 * random.normal(size=(12, 1)), shared
    paired = paired_bootstrap(difference(mean), ours, theirs)
    apart = bootstrap(difference(mean), ours, theirs)
    assert paired.value == apart.value == pytest.approx(1.0, abs=0.1)
    assert 0.8 < paired.low and paired.high < 1.2
    assert apart.low < 0.0 < 2.0 < apart.high


def test_the_same_seed_gives_the_same_interval():
    assert bootstrap(mean, SCORES, seed=3) == bootstrap(mean, SCORES, seed=3)
    assert bootstrap(mean, SCORES, seed=3) != bootstrap(mean, SCORES, seed=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap(mean, np.zeros(3)), r"\[runs, tasks\] and not empty, got shape \(3,\)"),
        (lambda: bootstrap(mean, np.zeros((0, 2))), "not empty"),
        (lambda: bootstrap(mean, np.array([[np.nan]])), "must be finite"),
        (lambda: bootstrap(mean, SCORES, level=1.0), "level must be in"),
        (
            lambda: paired_bootstrap(difference(mean), SCORES, SCORES[:1]),
            r"one shape, got \(2, 4\) and \(1, 4\)",
        ),
        (
            lambda: statistics.probability_of_improvement(SCORES, SCORES[:, :1]),
            "same tasks, got 4 and 1",
        ),
    ],
)
def test_wrong_scores_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
