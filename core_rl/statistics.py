"""What few runs say: aggregates over runs and tasks, with bootstrap intervals.

The aggregates are those of Agarwal et al. 2021 (arXiv 2108.13264), computed as their library
rliable 1.2 does. Scores are [..., R, T], R runs of each of T tasks; leading axes are a batch. All
tasks must have as many runs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

Statistic = Callable[..., np.ndarray]  # of scores [..., R, T], one or two, to [...] or [..., K]
REPETITIONS, LEVEL = 2000, 0.95


class Interval(NamedTuple):
    """A statistic [...] of the scores and its percentile bootstrap interval."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean(scores: np.ndarray) -> np.ndarray:
    return np.mean(scores, (-2, -1))


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean [...] of the middle half of all R T scores; of fewer than four it is the mean."""
    flat = _flat(scores)
    return stats.trim_mean(flat, 0.25, axis=-1)


def median(scores: np.ndarray) -> np.ndarray:
    """Median [...] over tasks of the mean over runs."""
    return np.median(np.mean(scores, -2), -1)


def optimality_gap(scores: np.ndarray, target: float = 1.0) -> np.ndarray:
    """By how much [...] scores fall short of a target in the mean; beyond it they do not count."""
    return target - np.mean(np.minimum(scores, target), (-2, -1))


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Chance [...] that a run of ours beats one of theirs on a drawn task, ties counted half.

    `ours` [..., R, T] and `theirs` [..., S, T] may have different numbers of runs.
    """
    _check_tasks(ours, theirs)
    ahead = ours[..., :, None, :] - theirs[..., None, :, :]
    return np.mean((ahead > 0.0) + 0.5 * (ahead == 0.0), (-3, -2, -1))


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share [..., K] of the runs of all tasks that are above thresholds [K]."""
    return np.mean(_flat(scores)[..., None] > thresholds, -2)


def bootstrap(
    statistic: Statistic,
    *scores: np.ndarray,
    seed: int = 0,
    repetitions: int = REPETITIONS,
    level: float = LEVEL,
) -> Interval:
    """The interval of a statistic of one or two groups of runs [R, T].

    Stratified: runs are drawn anew within every task. Raises ValueError where a group is not
    [R, T], is empty or holds what is not finite.
    """
    random = np.random.default_rng(seed)
    groups = [_checked(group) for group in scores]

    def resample(group: np.ndarray) -> np.ndarray:
        runs, tasks = group.shape
        pick = random.integers(runs, size=(repetitions, runs, tasks))
        return np.take_along_axis(group[None], pick, axis=1)

    return _interval(statistic, groups, [resample(group) for group in groups], level)


def paired_bootstrap(
    statistic: Statistic,
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    seed: int = 0,
    repetitions: int = REPETITIONS,
    level: float = LEVEL,
) -> Interval:
    """The same of two groups [R, T] whose runs belong together, such as by seeds, grids or balls:
    both parts of a pair are drawn at once. Raises ValueError also where their shapes differ."""
    ours, theirs = _checked(ours), _checked(theirs)
    if ours.shape != theirs.shape:
        raise ValueError(f"pairs must have one shape, got {ours.shape} and {theirs.shape}")
    runs, tasks = ours.shape
    pick = np.random.default_rng(seed).integers(runs, size=(repetitions, runs, tasks))
    drawn = [np.take_along_axis(group[None], pick, axis=1) for group in (ours, theirs)]
    return _interval(statistic, [ours, theirs], drawn, level)


def difference(of: Statistic) -> Statistic:
    """How much more a statistic of one group is in the first of two."""
    return lambda ours, theirs: of(ours) - of(theirs)


def _interval(
    statistic: Statistic, groups: list[np.ndarray], drawn: list[np.ndarray], level: float
) -> Interval:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be in (0, 1), got {level}")
    tail = 0.5 * (1.0 - level)
    low, high = np.quantile(statistic(*drawn), (tail, 1.0 - tail), axis=0)
    return Interval(statistic(*groups), low, high)


def _flat(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, float)
    return scores.reshape(*scores.shape[:-2], -1)


def _check_tasks(ours: np.ndarray, theirs: np.ndarray) -> None:
    if ours.shape[-1] != theirs.shape[-1]:
        raise ValueError(
            f"both groups must have the same tasks, got {ours.shape[-1]} and {theirs.shape[-1]}"
        )


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, float)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores must be [runs, tasks] and not empty, got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite: leave out what failed, and say so")
    return scores
