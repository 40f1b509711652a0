"""Strengths from comparisons: what was planted comes back, and what cannot be known is said."""

import numpy as np
import pytest

from projects.reward_llm.judge.bradley_terry import fit_strengths, rank_policies
from projects.reward_llm.judge.preferences import JudgeError, Preference


def play(rng, strength, pairs):
    """What the first of each pair [N, 2] won."""
    gap = strength[pairs[:, 0]] - strength[pairs[:, 1]]
    return (rng.random(len(pairs)) < 1 / (1 + np.exp(-gap))).astype(float)


def every_pair(num_items, times):
    upper = np.stack(np.triu_indices(num_items, 1), axis=1)
    return np.tile(upper, (times, 1))


def information(strength, pairs):
    """Fisher information [I, I] of the strengths."""
    matrix = np.zeros((len(strength), len(strength)))
    for i, j in pairs:
        chance = 1 / (1 + np.exp(strength[j] - strength[i]))
        change = np.zeros(len(strength))
        change[i], change[j] = 1.0, -1.0
        matrix += chance * (1 - chance) * np.outer(change, change)
    return matrix


def preferences(*rows):
    return [Preference(first, second, answer, "rule") for first, second, answer in rows]


def test_two_policies_have_the_odds_of_their_wins():
    # 30 : 10, so s_1 - s_2 = log 3 where the ridge is negligible.
    pairs, share = np.tile([[0, 1]], (40, 1)), np.repeat([1.0, 0.0], [30, 10])
    strength = fit_strengths(pairs, share, 2, ridge=1e-9)
    np.testing.assert_allclose(strength, [np.log(3) / 2, -np.log(3) / 2], atol=1e-8)
    # The condition of the optimum with a ridge: wins - expected wins = ridge * strength.
    ridged = fit_strengths(pairs, share, 2, ridge=5.0)
    expected = 40 / (1 + np.exp(ridged[1] - ridged[0]))
    assert 30 - expected == pytest.approx(5.0 * ridged[0], abs=1e-8)


def test_planted_strengths_are_recovered():
    """The error of the maximum-likelihood estimate is normal with the inverse of the information.

    Its Mahalanobis length squared is then chi-squared with 5 degrees of freedom (6 strengths less
    their common offset), which is below 20.5 in 999 of 1000 cases.
    """
    truth = np.array([1.5, 0.8, 0.2, -0.1, -0.9, -1.5])
    truth -= truth.mean()
    rng = np.random.default_rng(0)
    pairs = every_pair(6, 150)
    strength = fit_strengths(pairs, play(rng, truth, pairs), 6)
    error = strength - truth
    assert error @ information(truth, pairs) @ error < 20.5
    # So much information is there that this is a tight statement: the sd of each is about 0.1.
    assert np.abs(error).max() < 0.4
    assert strength.sum() == pytest.approx(0.0, abs=1e-9)


def test_ties_are_half_a_win_for_each():
    pairs = np.array([[0, 1], [0, 1], [1, 2], [2, 1]])
    with_ties = fit_strengths(pairs, np.array([0.5, 0.5, 1.0, 0.0]), 3)
    split = fit_strengths(pairs, np.array([1.0, 0.0, 1.0, 0.0]), 3)
    np.testing.assert_allclose(with_ties, split, atol=1e-12)


def test_weights_are_repetitions_and_batches_are_alone():
    rng = np.random.default_rng(1)
    pairs = every_pair(4, 3)
    share = play(rng, np.array([1.0, 0.0, 0.0, -1.0]), pairs)
    weights = rng.integers(0, 4, size=(5, len(pairs))).astype(float)
    batch = fit_strengths(pairs, share, 4, weights=weights)
    for row, strength in zip(weights.astype(int), batch, strict=True):
        alone = fit_strengths(np.repeat(pairs, row, axis=0), np.repeat(share, row), 4)
        np.testing.assert_allclose(strength, alone, atol=1e-9)


@pytest.mark.parametrize("ridge", [1e-6, 0.01, 1.0])
def test_unbeaten_policies_stay_finite(ridge):
    pairs = every_pair(8, 200)
    strength = fit_strengths(pairs, np.ones(len(pairs)), 8, ridge=ridge)  # always the earlier
    assert np.isfinite(strength).all() and (np.diff(strength) < 0).all()
    with pytest.raises(ValueError, match="ridge"):
        fit_strengths(pairs, np.ones(len(pairs)), 8, ridge=0.0)


def test_intervals_cover_about_as_often_as_they_say():
    """60 studies of 4 policies: 240 intervals, correlated in fours through the common mean.

    If only 60 of them counted as independent, the standard error of a coverage of 0.95 would be
    0.028; three of those below 0.95 is 0.866. Intervals half as wide would cover 0.67.
    """
    truth = np.array([1.0, 0.3, -0.3, -1.0])
    rng = np.random.default_rng(2)
    policies = {f"p{i}x{k}": f"p{i}" for i in range(4) for k in range(25)}
    pairs = every_pair(4, 25)
    names = [(f"p{i}x{n // 6}", f"p{j}x{n // 6}") for n, (i, j) in enumerate(pairs)]
    covered = []
    for study in range(60):
        share = play(rng, truth, pairs)
        rows = [
            (a, b, "first" if won else "second") for (a, b), won in zip(names, share, strict=True)
        ]
        ranking = rank_policies(preferences(*rows), policies, resamples=200, seed=study)
        covered.append((ranking.low <= truth) & (truth <= ranking.high))
    assert 0.866 <= np.mean(covered) < 1.0


def test_a_ranking_in_full():
    policies = {"a1": "a", "a2": "a", "b1": "b", "b2": "b", "c1": "c", "c2": "c"}
    rows = [
        ("a1", "b1", "first"),
        ("b2", "a2", "second"),
        ("b1", "c1", "first"),
        ("c2", "b2", "tie"),
        ("c1", "a1", "tie"),
        ("a2", "c2", "first"),
        ("a1", "b2", "skip"),
        ("a1", "a2", "first"),  # says nothing about policies
    ]
    ranking = rank_policies(preferences(*rows), policies)
    assert ranking.items == ("a", "b", "c") and ranking.best() == "a"
    assert ranking.num_pairs == 6
    np.testing.assert_array_equal(ranking.num_comparisons, [4, 4, 4])
    assert ranking.components == (("a", "b", "c"),)
    assert ranking.rank[0] == 1.0 and sorted(ranking.rank) == [1.0, 2.0, 3.0]
    assert (ranking.low <= ranking.strength).all() and (ranking.strength <= ranking.high).all()
    assert (ranking.rank_low >= 1).all() and (ranking.rank_high <= 3).all()
    assert not ranking.warnings
    # The order of the answers does not matter, as it would to Elo.
    again = rank_policies(preferences(*reversed(rows)), policies)
    np.testing.assert_allclose(again.strength, ranking.strength, atol=1e-9)
    with pytest.raises(JudgeError, match="'d1'"):
        rank_policies(preferences(("d1", "a1", "tie")), policies)


def test_parts_that_were_never_compared_are_reported():
    policies = {name: name for name in "abcde"}
    rows = [("a", "b", "first"), ("b", "a", "first"), ("d", "c", "first"), ("c", "d", "tie")]
    ranking = rank_policies(preferences(*rows), policies)
    assert ranking.components == (("a", "b"), ("c", "d"), ("e",))
    assert "3 parts" in ranking.warnings[0] and "a, b; c, d; e" in ranking.warnings[0]
    with pytest.raises(JudgeError, match="3 parts"):
        ranking.best()
    # Ranks hold within a part: a and b are even, d is before c, and e is alone.
    np.testing.assert_array_equal(ranking.rank, [1.5, 1.5, 2.0, 1.0, 1.0])
    # A skipped pair does not join parts, an answered one does.
    for answer, parts in (("skip", 3), ("tie", 2)):
        more = rank_policies(preferences(*rows, ("a", "c", answer)), policies)
        assert len(more.components) == parts


def test_a_gap_that_only_the_ridge_sets_is_reported():
    policies = {name: name for name in "abc"}
    rows = [("a", "b", "first"), ("a", "c", "first"), ("b", "c", "first"), ("c", "b", "first")]
    ranking = rank_policies(preferences(*rows), policies)
    assert len(ranking.components) == 1 and "ridge" in ranking.warnings[0]
    assert ranking.best() == "a"
    closed = rank_policies(preferences(*rows, ("c", "a", "tie")), policies)
    assert not closed.warnings


def test_no_comparison_is_no_ranking():
    ranking = rank_policies([], {"a1": "a", "b1": "b"})
    np.testing.assert_array_equal(ranking.strength, [0.0, 0.0])
    assert ranking.components == (("a",), ("b",)) and ranking.num_pairs == 0
