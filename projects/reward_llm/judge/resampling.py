"""The bootstrap over comparisons that belong together (Efron and Tibshirani 1993, ch. 8)."""

from collections.abc import Hashable, Sequence

import numpy as np


def group_counts(groups: Sequence[Hashable], resamples: int, seed: int) -> np.ndarray:
    """How often each comparison stands in each resample, [resamples, N].

    Whole groups are drawn with replacement, as many as there are: answers about the same pair of
    clips are not independent, and drawing them one by one makes intervals too narrow.
    """
    numbers: dict[Hashable, int] = {}
    member = np.array([numbers.setdefault(group, len(numbers)) for group in groups], int)
    if not numbers:
        return np.zeros((resamples, 0))
    share = np.full(len(numbers), 1.0 / len(numbers))
    drawn = np.random.default_rng(seed).multinomial(len(numbers), share, size=resamples)
    return drawn[:, member].astype(float)


def interval(samples: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over axis 0. NaN samples are left out; the interval of none is NaN."""
    tail = 50.0 * (1.0 - confidence)
    bounds = np.full((2, *samples.shape[1:]), np.nan)
    some = np.isfinite(samples).any(axis=0)
    if len(samples) and some.any():
        bounds[:, some] = np.nanpercentile(samples[:, some], [tail, 100.0 - tail], axis=0)
    return bounds[0], bounds[1]
