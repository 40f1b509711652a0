"""Which groups of features a function listens to: Shapley values of the groups.

The players of the game are groups of features, and a coalition `S` is worth
`v(S) = mean over rows b of the background of f(x_S, b_rest)`: what is absent is taken from a row of
the background (Lundberg & Lee 2017, arXiv 1705.07874). Rows stand in whole and without regard to
`x_S`, the interventional game: a group that `f` does not read gets zero even where it goes along
with one that `f` reads (Janzing et al. 2020, arXiv 1910.13413). The price is that `f` is asked
about mixtures that may exist nowhere. Groups as players: Jullum et al. 2021, arXiv 2106.12228.

Legend: `P` explained points, `F` features, `G` groups, `K` outputs of `f`, `M` background rows,
`J` pairs of permutations, `C` coalitions.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.tree_util import Partial
from matplotlib.axes import Axes

from core_rl.errors import UserError
from core_rl.report import GRID, INK, MUTED
from core_rl.types import Key

MAX_EXACT_GROUPS = 12  # 4096 coalitions, each with every row of the background
BLUE = "#0072B2"

Array = jax.Array | np.ndarray
Value = Callable[[jax.Array], jax.Array]  # f: (row [F]) -> [K] or []


@struct.dataclass
class ShapleyValues:
    """What each group adds to each output, in the output's unit.

    `full - base` is the sum of `value` over the groups, up to rounding.
    """

    value: jax.Array  # [P, G, K]
    error: jax.Array  # [P, G, K] standard error; zeros where the values are exact
    base: jax.Array  # [K] mean of the function over the rows that were used
    full: jax.Array  # [P, K] the function at the points


def shapley_values(
    value: Value,
    x: Array,
    background: Array,
    groups: Sequence[int] | np.ndarray,
    key: Key,
    num_permutations: int,
    chunk: int = 8192,
) -> ShapleyValues:
    """Estimates from random orders in which the groups join (Castro, Gomez & Tejada 2009).

    Each order is walked forwards and backwards (Mitchell et al. 2022, arXiv 2104.12199) from one
    row of the background to the point, so the values of every walk add up to `full - base`, and a
    group that the function does not read gets exactly 0. Points have orders of their own but share
    the rows, which are drawn without replacement, all of them before one comes again: `base` is the
    mean over the background itself where `num_permutations / 2` is a multiple of `M`. The error
    counts rows as if they were drawn independently, which is more than they add.

    Compiles once for the same `value` and shapes. A `jax.tree_util.Partial(f, params)` hands its
    parameters to the program as arguments, so others of the same shapes do not compile again.

    Args:
      value: `(row [F]) -> [K]` or a scalar, any jax function.
      x: point [F], or points [P, F], that are explained.
      background: rows [M, F] that stand in for absent groups.
      groups: group of each feature, [F] integers; all of 0 .. G - 1 occur. Never traced.
      key: random key.
      num_permutations: for each point, even and at least 4; costs `G` evaluations each.
      chunk: evaluations of `value` at a time, at least `2 G`; bounds the memory, next to
        `P J G K` numbers for the values of all walks.

    Raises:
      UserError: the shapes, groups or counts above do not fit.
    """
    points, rows, index, num_groups = _check(x, background, groups)
    if num_permutations < 4 or num_permutations % 2:
        raise UserError(f"num_permutations must be even and at least 4, got {num_permutations}")
    num_pairs = num_permutations // 2
    batch_size = _batch_size(chunk, 2 * num_groups)
    return _sampled(_as_tree(value), points, rows, index, key, num_groups, num_pairs, batch_size)


def exact_shapley_values(
    value: Value,
    x: Array,
    background: Array,
    groups: Sequence[int] | np.ndarray,
    chunk: int = 8192,
) -> ShapleyValues:
    """Values of the same game over all `2^G` coalitions and all rows of the background.

    Costs `2^G M` evaluations for each point; `chunk` of them at a time, at least `M`. Otherwise as
    `shapley_values`.

    Raises:
      UserError: the shapes or groups do not fit, or there are more than 12 groups.
    """
    points, rows, index, num_groups = _check(x, background, groups)
    if num_groups > MAX_EXACT_GROUPS:
        raise UserError(
            f"groups: {num_groups} are too many for exact values, allowed are {MAX_EXACT_GROUPS}"
        )
    batch_size = _batch_size(chunk, rows.shape[0])
    return _exact(_as_tree(value), points, rows, index, num_groups, batch_size)


def importance_bars(
    axes: Axes, names: Sequence[str], sizes: np.ndarray, errors: np.ndarray
) -> None:
    """Draws bars of `sizes` [G], the largest on top, with whiskers of `errors`, [G] or, below and
    above, [2, G]."""
    order = np.argsort(-sizes, kind="stable")
    places = np.arange(len(order))
    axes.barh(places, sizes[order], height=0.62, color=BLUE)
    whiskers = {"fmt": "none", "ecolor": INK, "elinewidth": 1.2, "capsize": 3}
    axes.errorbar(sizes[order], places, xerr=errors[..., order], **whiskers)
    axes.set_yticks(places, [names[int(k)] for k in order])
    axes.invert_yaxis()
    axes.grid(color=GRID, linewidth=0.7, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=8, length=3)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=9, length=0)


def _check(
    x: Array, background: Array, groups: Sequence[int] | np.ndarray
) -> tuple[jax.Array, jax.Array, np.ndarray, int]:
    """Points [P, F], background [M, F], groups [F], and the number of groups."""
    points, rows = jnp.asarray(x, float), jnp.asarray(background, float)
    points = jnp.atleast_2d(points)
    if points.ndim != 2 or 0 in points.shape:
        raise UserError(f"x has shape {list(np.shape(x))}, expected [F] or [P, F] with entries")
    num_features = points.shape[1]
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] != num_features:
        raise UserError(
            f"background has shape {list(rows.shape)}, expected [M, {num_features}] with M > 0"
        )
    index = np.asarray(groups)
    if index.shape != (num_features,) or not np.issubdtype(index.dtype, np.integer):
        raise UserError(
            f"groups has shape {list(index.shape)} of {index.dtype}, expected one integer for each "
            f"of {num_features} features"
        )
    num_groups = int(index.max()) + 1
    found = set(index.tolist())
    if found != set(range(num_groups)):
        raise UserError(
            f"groups must be numbered 0 .. G - 1 with none left out, got {sorted(found)}"
        )
    return points, rows, index, num_groups


def _batch_size(chunk: int, evaluations: int) -> int:
    if chunk < 1:
        raise UserError(f"chunk must be at least 1, got {chunk}")
    return max(1, chunk // evaluations)


def _as_tree(value: Value) -> Partial:
    """A function that can be an argument of a compiled one."""
    return value if isinstance(value, Partial) else Partial(value)


def _evaluate(value: Value, row: jax.Array) -> jax.Array:
    """[K]."""
    output = jnp.atleast_1d(value(row))
    if output.ndim != 1:
        raise UserError(f"value returns shape {list(output.shape)}, expected [K] or a scalar")
    return output


@partial(jax.jit, static_argnames=("num_groups", "num_pairs", "batch_size"))
def _sampled(
    value: Partial,
    x: jax.Array,
    background: jax.Array,
    groups: jax.Array,
    key: Key,
    num_groups: int,
    num_pairs: int,
    batch_size: int,
) -> ShapleyValues:
    P, J = len(x), num_pairs
    rows_key, orders_key = jax.random.split(key)
    drawn = jnp.resize(jax.random.permutation(rows_key, len(background)), (J,))

    def walk(number: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Contributions [G, K] over one order and its reverse, and both ends [K] of the walks."""
        point, row = x[number // J], background[drawn[number % J]]
        place = jax.random.permutation(jax.random.fold_in(orders_key, number), num_groups)
        joined = place < jnp.arange(num_groups)[:, None]
        # Forwards from nobody to all, then by the complements back to nobody: the groups leave in
        # the order in which they came, which is the reverse order walked from its end.
        members = jnp.concatenate([joined, ~joined])  # [2 G, G]
        mixtures = jnp.where(members[:, groups], point, row)
        worth = jax.vmap(partial(_evaluate, value))(mixtures)  # [2 G, K]
        steps = jnp.roll(worth, -1, axis=0) - worth
        return (steps[place] - steps[num_groups + place]) / 2, worth[0], worth[num_groups]

    value_of_walk, empty, full = jax.lax.map(walk, jnp.arange(P * J), batch_size=batch_size)
    value_of_walk, empty, full = (
        part.reshape(P, J, *part.shape[1:]) for part in (value_of_walk, empty, full)
    )
    return ShapleyValues(
        value=value_of_walk.mean(axis=1),
        error=value_of_walk.std(axis=1, ddof=1) / math.sqrt(J),
        base=empty[0].mean(axis=0),
        full=full[:, 0],
    )


@partial(jax.jit, static_argnames=("num_groups", "batch_size"))
def _exact(
    value: Partial,
    x: jax.Array,
    background: jax.Array,
    groups: jax.Array,
    num_groups: int,
    batch_size: int,
) -> ShapleyValues:
    P, G, C = len(x), num_groups, 2**num_groups
    # Coalition c holds the groups whose bits are set in c.
    members = (np.arange(C)[:, None] >> np.arange(G)) % 2 == 1  # [C, G]
    without = np.stack([np.flatnonzero(~members[:, g]) for g in range(G)])  # [G, C / 2]
    joined = without + 2 ** np.arange(G)[:, None]
    sizes = members.sum(axis=1)[without]
    weights = 1 / (G * np.array([math.comb(G - 1, size) for size in range(G)]))[sizes]

    def worth_of(number: jax.Array) -> jax.Array:
        present = jnp.asarray(members)[number % C][groups]
        mixtures = jnp.where(present, x[number // C], background)  # [M, F]
        return jax.vmap(partial(_evaluate, value))(mixtures).mean(axis=0)

    worth = jax.lax.map(worth_of, jnp.arange(P * C), batch_size=batch_size)
    worth = worth.reshape(P, C, -1)

    def values_of(worth: jax.Array) -> jax.Array:
        """[C, K] -> [G, K]; a point at a time, as all together would be large."""
        added = worth[joined] - worth[without]  # [G, C / 2, K]
        # No matrix product: that may round to fewer digits on a GPU.
        return jnp.sum(jnp.asarray(weights, worth.dtype)[..., None] * added, axis=1)

    values = jax.lax.map(values_of, worth)
    return ShapleyValues(
        value=values, error=jnp.zeros_like(values), base=worth[0, 0], full=worth[:, -1]
    )
