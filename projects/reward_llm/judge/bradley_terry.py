"""Strengths of policies from comparisons of their clips.

Bradley and Terry (1952), "Rank analysis of incomplete block designs": policy i is preferred to j
with probability 1 / (1 + exp(s_j - s_i)). Ties are half a win for each. Unlike Elo, the result does
not depend on the order in which comparisons were made.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from projects.reward_llm.judge.preferences import SCORES, JudgeError, Preference
from projects.reward_llm.judge.resampling import group_counts, interval

RIDGE = 0.01  # an even comparison has the curvature 1/4: this is a twenty-fifth of one
MAX_STEPS = 100  # Newton's method needs about ten
LARGEST_STEP = 2.0  # [log odds] that a strength may move in one step


class Ranking(NamedTuple):
    """I policies in the order given. Strengths are log odds; their mean is 0 in each component."""

    items: tuple[str, ...]
    strength: np.ndarray  # [I]
    low: np.ndarray  # [I] interval of the strength; of an unbeaten policy only the ridge sets it
    high: np.ndarray  # [I]
    rank: np.ndarray  # [I] 1 is best, within the component; equals share the mean of their ranks
    rank_low: np.ndarray  # [I] interval of the rank
    rank_high: np.ndarray  # [I]
    num_comparisons: np.ndarray  # [I] of each policy
    components: tuple[tuple[str, ...], ...]  # only policies of one component can be compared
    num_pairs: int  # comparisons used
    warnings: tuple[str, ...]  # what a reader of the ranking must know, one line each

    def best(self) -> str:
        """The strongest policy. Raises JudgeError where not all policies can be compared."""
        if len(self.components) > 1:
            raise JudgeError(f"there is no best policy: {self.warnings[0]}")
        return self.items[int(np.argmax(self.strength))]


def fit_strengths(
    pairs: np.ndarray,
    share: np.ndarray,
    num_items: int,
    *,
    ridge: float = RIDGE,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Strengths [..., I] that maximise the likelihood less ridge / 2 |s|², in float64.

    `pairs` [N, 2] are positions of policies, `share` [N] is what the first won (1, 0.5 or 0), and
    `weights` [..., N] says how often each comparison counts. The ridge keeps a policy finite that
    always won. It also makes the strengths of each component sum to 0.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}")
    pairs, share = np.asarray(pairs, int).reshape(-1, 2), np.asarray(share, float)
    weights = np.ones(len(pairs)) if weights is None else np.asarray(weights, float)
    # Only sums per pair of policies matter: wins[i, j] of i over j.
    won = np.zeros((len(pairs), num_items, num_items))
    each = np.arange(len(pairs))
    won[each, pairs[:, 0], pairs[:, 1]] = share
    won[each, pairs[:, 1], pairs[:, 0]] = 1.0 - share
    wins = np.tensordot(weights, won, axes=1)
    played = wins + np.swapaxes(wins, -1, -2)
    strength = np.zeros((*weights.shape[:-1], num_items))
    for _ in range(MAX_STEPS):
        gap = strength[..., :, None] - strength[..., None, :]
        chance = expit(gap)
        gradient = (wins - played * chance).sum(axis=-1) - ridge * strength
        curvature = played * chance * np.swapaxes(chance, -1, -2)
        hessian = -curvature
        hessian[..., range(num_items), range(num_items)] += curvature.sum(axis=-1) + ridge
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        # Far from the solution the curvature nearly vanishes, and a full step overshoots.
        step /= np.maximum(1.0, np.abs(step).max(axis=-1, keepdims=True) / LARGEST_STEP)
        strength = strength + step
        # The error that is left is of the order of the square of the last step.
        if np.abs(step).max(initial=0.0) < 1e-6:
            return strength
    raise JudgeError(f"the strengths did not settle in {MAX_STEPS} steps")


def rank_policies(
    preferences: Iterable[Preference],
    policies: Mapping[str, str],
    *,
    ridge: float = RIDGE,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Ranking:
    """Strengths and ranks of the policies, of which `policies` gives one per id of a clip.

    Skipped pairs and pairs of one policy do not count. Intervals resample pairs of clips, so that
    several answers about the same two clips are one observation.
    """
    items = tuple(dict.fromkeys(policies.values()))
    position = {name: k for k, name in enumerate(items)}
    pairs, share, groups = [], [], []
    for each in preferences:
        for clip in (each.first, each.second):
            if clip not in policies:
                raise JudgeError(f"a preference names the clip {clip!r}, which has no policy")
        first, second = position[policies[each.first]], position[policies[each.second]]
        if each.answer != "skip" and first != second:
            pairs.append((first, second))
            share.append(0.5 + 0.5 * SCORES[each.answer])
            groups.append(each.pair)
    pair_array, share_array = np.array(pairs, int).reshape(-1, 2), np.array(share)
    strength = fit_strengths(pair_array, share_array, len(items), ridge=ridge)
    samples = fit_strengths(
        pair_array,
        share_array,
        len(items),
        ridge=ridge,
        weights=group_counts(groups, resamples, seed),
    )
    component = _components(pair_array, share_array, len(items), strong=False)
    low, high = interval(samples, confidence)
    rank_low, rank_high = interval(_ranks(samples, component), confidence)
    members = [
        tuple(items[k] for k in np.flatnonzero(component == c)) for c in dict.fromkeys(component)
    ]
    return Ranking(
        items=items,
        strength=strength,
        low=low,
        high=high,
        rank=_ranks(strength, component),
        rank_low=rank_low,
        rank_high=rank_high,
        num_comparisons=np.bincount(pair_array.ravel(), minlength=len(items)),
        components=tuple(members),
        num_pairs=len(pairs),
        warnings=tuple(_warnings(members, pair_array, share_array, len(items))),
    )


def _components(
    pairs: np.ndarray, share: np.ndarray, num_items: int, *, strong: bool
) -> np.ndarray:
    """The component [I] of each policy in the graph of wins; a tie is a win both ways."""
    first, second = pairs.T
    winner = np.concatenate([first[share > 0], second[share < 1]])
    loser = np.concatenate([second[share > 0], first[share < 1]])
    graph = coo_array((np.ones(len(winner)), (winner, loser)), shape=(num_items, num_items))
    kind = "strong" if strong else "weak"
    return connected_components(graph.tocsr(), directed=True, connection=kind)[1]


def _warnings(
    members: Sequence[tuple[str, ...]], pairs: np.ndarray, share: np.ndarray, num_items: int
) -> Iterable[str]:
    if len(members) > 1:
        groups = "; ".join(", ".join(group) for group in members)
        yield f"the comparisons fall into {len(members)} parts that were never compared: {groups}"
    # Ford (1957): without a ridge the solution exists only where everyone can be reached by wins.
    strong = len(set(_components(pairs, share, num_items, strong=True)))
    if strong > len(members):
        yield (
            "some policies never lost or never won against the rest: how far apart they are "
            "is set by the ridge, not by the comparisons"
        )


def _ranks(strength: np.ndarray, component: np.ndarray) -> np.ndarray:
    """Ranks [..., I] within components; 1 is the strongest, and equals share their mean rank."""
    same = component[:, None] == component[None]
    # Equal data may give strengths that differ by rounding.
    ahead = strength[..., None, :] - strength[..., :, None]  # [..., i, j]: j over i
    better = same & (ahead > 1e-9)
    equal = same & (np.abs(ahead) <= 1e-9)
    return 0.5 + better.sum(axis=-1) + 0.5 * equal.sum(axis=-1)
