"""The trajectory alignment coefficient: does a reward order clips as the judges do?

Muslimani et al., "Towards Improving Reward Design in RL: A Reward Alignment Metric for RL
Practitioners" (2025, arXiv 2503.05996): Kendall's tau-b between the labels of pairs of clips and
the order of the clips' returns. Ma et al., "Automated Reward Design for Gran Turismo" (2025, arXiv
2511.02094) filter candidates with tau-a of mean per-step returns before any training.

The coefficient does not change with a positive scale or an offset of the return, so it says nothing
about the scale of a reward. Potential-based shaping leaves it only where clips have the same start
and the potential at the end of a clip is accounted for.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from projects.reward_llm.judge.resampling import group_counts, interval

MIN_PAIRS = 30  # simulated with a true coefficient of 0.6, its sd is 0.18 at 20 pairs, 0.11 at 50


class Alignment(NamedTuple):
    """Coefficients of K rewards over the same N labelled pairs; NaN where one is undefined.

    The intervals are percentile bootstraps over groups of pairs. They are too narrow where clips
    stand in many pairs, and have no width where a reward agrees with every label.
    """

    tau_b: np.ndarray  # [K] (P - Q) / sqrt((P + Q + T_r) (P + Q + T_h))
    low: np.ndarray  # [K] of tau_b
    high: np.ndarray  # [K]
    tau_a: np.ndarray  # [K] (2P - N') / N' over the N' pairs without a labelled tie (Ma et al.)
    agreeing: np.ndarray  # [K] P, number of pairs that reward and label order alike
    opposing: np.ndarray  # [K] Q
    tied_by_reward: np.ndarray  # [K] T_r, pairs tied by the reward only
    tied_by_label: np.ndarray  # [K] T_h, pairs tied by the label only
    num_pairs: int  # N
    num_decided: int  # N', pairs whose label is not a tie


class Filtered(NamedTuple):
    """Which rewards go on, by their ids."""

    kept: tuple[str, ...]  # best first where a filter was applied, else in the order given
    survivor: str | None  # one of the dropped, drawn at random to go on as well
    applied: bool
    reason: str  # one line
    alignment: Alignment

    @property
    def going_on(self) -> tuple[str, ...]:
        return self.kept if self.survivor is None else (*self.kept, self.survivor)


def clip_returns(rewards: np.ndarray, discount: float | None = None) -> np.ndarray:
    """Returns [...] of rewards [..., T]: discounted sums, or without a discount means per step."""
    rewards = np.asarray(rewards)
    if discount is None:
        returns = rewards.mean(axis=-1, dtype=float)
    else:
        returns = rewards.astype(float) @ discount ** np.arange(rewards.shape[-1])
    # The type says how finely the rewards themselves are resolved, see `tie_width`.
    return returns.astype(np.result_type(rewards.dtype, np.float32))


def tie_width(returns: np.ndarray, relative: float = 1e-6) -> np.ndarray:
    """Differences up to this [K] are ties of the K rewards with returns [K, M].

    It is relative to the range of each reward's returns, so that scale and offset do not matter,
    and at least the rounding of the largest: a constant reward must not be ordered by noise.
    """
    returns = np.asarray(returns)
    kind = returns.dtype if np.issubdtype(returns.dtype, np.floating) else np.float64
    values = returns.astype(float)
    spread = values.max(axis=-1, initial=-np.inf) - values.min(axis=-1, initial=np.inf)
    rounding = 8 * np.finfo(kind).eps * np.abs(values).max(axis=-1, initial=0.0)
    return np.maximum(relative * spread, rounding)


def alignment(
    returns: np.ndarray,
    pairs: np.ndarray,
    labels: np.ndarray,
    *,
    tolerance: float = 1e-6,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Alignment:
    """Coefficients of K rewards with returns [K, M] on M clips.

    `pairs` [N, 2] holds positions of clips, `labels` [N] is 1 where the first is preferred, -1 the
    second, 0 neither (`preferences.label_arrays` gives both). `tolerance` is relative, see
    `tie_width`. Pairs of clips are resampled together, or else pairs of the same `groups` [N].
    """
    returns, pairs, labels = np.asarray(returns), np.asarray(pairs), np.asarray(labels)
    if returns.ndim != 2 or pairs.shape != (len(labels), 2) or labels.ndim != 1:
        raise ValueError(
            f"expected returns [K, M], pairs [N, 2], labels [N]; got {returns.shape}, "
            f"{pairs.shape}, {labels.shape}"
        )
    # A reward that is not a number on some clip orders nothing: its counts are all zero.
    finite = np.all(np.isfinite(returns), axis=1, keepdims=True)
    returns = np.where(finite, returns, 0)
    difference = returns[:, pairs[:, 0]].astype(float) - returns[:, pairs[:, 1]]  # [K, N]
    width = tie_width(returns, tolerance)[:, None]
    order = np.where(np.abs(difference) <= width, 0.0, np.sign(difference))
    decided = np.not_equal(labels, 0)[None]
    kinds = np.stack(
        [
            decided & (order == labels) & finite,
            decided & (order == -labels) & finite,
            decided & (order == 0) & finite,
            ~decided & (order != 0) & finite,
        ],
        axis=1,
    ).astype(float)  # [K, 4, N]
    counts = kinds.sum(axis=-1)
    if groups is None:
        groups = [tuple(pair) for pair in np.sort(pairs, axis=1).tolist()]
    weights = group_counts(groups, resamples, seed)  # [B, N]
    low, high = interval(_tau_b(np.einsum("bn,kcn->bkc", weights, kinds)), confidence)
    return Alignment(
        _tau_b(counts),
        low,
        high,
        _ratio(2 * counts[:, 0] - counts[:, :3].sum(axis=1), counts[:, :3].sum(axis=1)),
        *counts.T.astype(int),
        num_pairs=len(labels),
        num_decided=int(decided.sum()),
    )


def align_filter(
    ids: Sequence[str],
    returns: np.ndarray,
    pairs: np.ndarray,
    labels: np.ndarray,
    *,
    keep: int,
    seed: int,
    min_pairs: int = MIN_PAIRS,
    tolerance: float = 1e-6,
) -> Filtered:
    """The `keep` rewards of the highest coefficients, and one survivor of the others by chance.

    What becomes of the survivor says whether the filter is right. With fewer than `min_pairs` pairs
    that are not ties, or where no coefficient is defined, every reward is kept.
    """
    if len(ids) != len(returns) or len(set(ids)) != len(ids):
        raise ValueError(f"{len(returns)} rewards need as many different ids, got {list(ids)}")
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    result = alignment(returns, pairs, labels, tolerance=tolerance, seed=seed)
    if result.num_decided < min_pairs:
        reason = f"{result.num_decided} decided pairs are fewer than the {min_pairs} of a filter"
    elif keep >= len(ids):
        reason = f"there are only {len(ids)} rewards, and {keep} may be kept"
    elif not np.isfinite(result.tau_b).any():
        reason = "the coefficient is undefined for every reward"
    else:
        # Undefined ones come last; a stable sort lets the earlier of two equals pass.
        order = np.argsort(-np.nan_to_num(result.tau_b, nan=-np.inf), kind="stable")
        survivor = ids[int(np.random.default_rng(seed).choice(order[keep:]))]
        kept = tuple(ids[int(k)] for k in order[:keep])
        reason = f"the best {keep} of {len(ids)} by tau-b over {result.num_pairs} pairs"
        return Filtered(kept, survivor, True, reason, result)
    return Filtered(tuple(ids), None, False, f"no filter: {reason}", result)


def soft_tac(
    returns: jax.Array, pairs: jax.Array, labels: jax.Array, temperature: float | jax.Array
) -> jax.Array:
    """Mean of y tanh((G_i - G_j) / T), a differentiable form of the coefficient (arXiv 2601.16906).

    Of returns [M], pairs [N, 2], labels [N] and a temperature in units of the return. Unlike the
    coefficient it does depend on scale.
    """
    difference = returns[pairs[:, 0]] - returns[pairs[:, 1]]
    return jnp.mean(labels * jnp.tanh(difference / temperature))


def fit_weights(
    term_returns: np.ndarray,
    weights: np.ndarray,
    pairs: np.ndarray,
    labels: np.ndarray,
    *,
    steps: int = 300,
    learning_rate: float = 0.05,
    temperature: float = 0.3,
    max_change: float = 10.0,
) -> np.ndarray:
    """Weights [J] that raise `soft_tac`, starting from `weights` and keeping every sign and zero.

    `term_returns` [J, M] are the returns of the J unweighted terms on M clips. Each weight changes
    by a factor between 1 / max_change and max_change, as preferences of few pairs would otherwise
    send it anywhere. `temperature` is in units of the standard deviation of the return over clips,
    which is taken anew for every weight vector: only the direction of the weights is fitted, and
    their length stays that of `weights`.
    """
    start = jnp.asarray(weights, jnp.result_type(float))
    offsets = term_returns - np.mean(term_returns, axis=1, keepdims=True)
    terms = jnp.asarray(offsets / max(np.abs(offsets).max(initial=0.0), 1e-30))
    pairs_, labels_ = jnp.asarray(pairs), jnp.asarray(labels)
    reach = jnp.log(max_change)

    def rescaled(change: jax.Array) -> jax.Array:
        changed = start * jnp.exp(reach * jnp.tanh(change))
        return changed * jnp.linalg.norm(start) / jnp.maximum(jnp.linalg.norm(changed), 1e-12)

    def loss(change: jax.Array) -> jax.Array:
        returns = rescaled(change) @ terms
        # The square root has no slope at zero, where all clips have the same return.
        spread = jnp.sqrt(jnp.var(returns) + 1e-12)
        return -soft_tac(returns / spread, pairs_, labels_, temperature)

    optimiser = optax.adam(learning_rate)

    def step(carry, _):
        change, state = carry
        updates, state = optimiser.update(jax.grad(loss)(change), state)
        return (change + updates, state), None

    change = jnp.zeros_like(start)
    (change, _), _ = jax.lax.scan(step, (change, optimiser.init(change)), length=steps)
    return np.asarray(rescaled(change))


def _tau_b(counts: np.ndarray) -> np.ndarray:
    """tau-b [...] of counts [..., 4]: agreeing, opposing, tied by reward, tied by label."""
    agreeing, opposing, by_reward, by_label = np.moveaxis(counts, -1, 0)
    ordered = agreeing + opposing
    return _ratio(agreeing - opposing, np.sqrt((ordered + by_reward) * (ordered + by_label)))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(
        numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0
    )
