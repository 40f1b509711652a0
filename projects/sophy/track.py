"""Closed circuits as equal-arc nodes: constant-time lookup and projection.

A circuit is a centre line of length L cut into N = 2048 pieces of equal arc length. Each piece is
one row: the cubic Hermite through the positions and unit tangents at its ends, and the curvature,
widths and wall distances, which are linear along it; a lookup is a gather of one row. A car carries
its arc length `s`, so finding its place on the centre line is not a search but two Newton steps on
`(p - c(s)) . c'(s) = 0` from a prediction (the refinement of Wang, Kearney and Atkinson, "Robust
and efficient computation of the closest point on a spline curve", 2002, without their search).
Where a circuit crosses itself, only this keeps a car on its own leg.

Lateral offsets `n` and curvature are positive to the left; arc length grows in driving direction.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from numpy.typing import ArrayLike
from scipy.interpolate import splev, splprep

from core_rl.errors import UserError

NUM_NODES = 2048  # a power of two: wrapping an index is a bit mask

# Columns of a node's row, in the distance u [m] from the node: the centre line is the cubic with
# coefficients [4, 2] of 1, u, u^2, u^3, everything else is value + slope * u.
CUBIC = slice(0, 8)
VALUES = slice(8, 13)  # curvature, width left, width right, wall left, wall right
SLOPES = slice(13, 18)
MAX_NEWTON_STEP = 8.0  # [m]
MIN_NEWTON_SLOPE = 0.25  # floor of 1 - n * curvature, which vanishes at the centre of curvature
MIN_POINTS = 20
MAX_COORDINATE = 20_000.0  # [m] float32 is 2 mm apart there
MIN_GAP = 0.01  # [m] points nearer than this to the next are duplicates
MAX_CLOSING = 4.0  # closing distance / median distance between points: more is not a loop
MAX_BEND = (
    0.95  # curvature * inner width: at 1 the normals to the centre line meet on the white line
)
MAX_WALL_BEND = 0.9  # curvature * inner wall distance, where the run-off is what has to give way
DENSE = 16  # samples per node when measuring arc length


class CircuitError(UserError):
    """What is wrong with a circuit; `row` is the index of the offending point, if one is."""

    def __init__(self, reason: str, row: int | None = None):
        super().__init__(reason if row is None else f"point {row}: {reason}")
        self.reason = reason
        self.row = row


@struct.dataclass
class Surface:
    """What a tyre stands on: three factors on the tyre's own numbers and one coefficient."""

    grip: Array  # [] factor on peak friction
    peak_slip: Array  # [] factor on the slip at peak friction
    shape: Array  # [] factor on the tyre curve's shape factor Q; below 1: flatter beyond the peak
    rolling: Array  # [] rolling resistance coefficient, drag force / load


# Estimates from tables of road tyres on asphalt and grass: a locked wheel on dry grass keeps about
# half its friction, peaks late and flat, and rolls through something soft.
ASPHALT = Surface(grip=1.0, peak_slip=1.0, shape=1.0, rolling=0.013)  # pyright: ignore[reportArgumentType]
GRASS = Surface(grip=0.45, peak_slip=1.8, shape=0.75, rolling=0.08)  # pyright: ignore[reportArgumentType]


@struct.dataclass
class Track:
    """One circuit, or with a leading axis on every leaf a stack of circuits (`stack_tracks`)."""

    nodes: Array  # [N, 18] one row per node, columns as above
    first: Array  # [] int32 row of `nodes` where this circuit starts: 0 until `select_track`
    length: Array  # [] [m]
    road: Surface  # between the white lines
    verge: Surface  # outside them


@struct.dataclass
class TrackPoint:
    """The circuit at one arc length."""

    position: Array  # [2] [m]
    tangent: Array  # [2] unit, direction of travel
    curvature: Array  # [] [1/m] left turn positive
    width_left: Array  # [] [m] centre line to white line, positive
    width_right: Array  # [] [m]
    wall_left: Array  # [] [m] centre line to wall, at least the width
    wall_right: Array  # [] [m]
    road: Surface
    verge: Surface


def at(track: Track, s: Array) -> TrackPoint:
    """The circuit at arc length `s` [] [m], any real number (wraps)."""
    row, u = _row(track, s)
    position, velocity, _ = _centre(row, u)
    curvature, width_left, width_right, wall_left, wall_right = row[VALUES] + u * row[SLOPES]
    return TrackPoint(
        position=position,
        tangent=velocity * jax.lax.rsqrt(jnp.sum(velocity**2)),
        curvature=curvature,
        width_left=width_left,
        width_right=width_right,
        wall_left=wall_left,
        wall_right=wall_right,
        road=track.road,
        verge=track.verge,
    )


def project(track: Track, position: Array, guess: Array) -> Array:
    """Arc length [] [m] in [0, L) of the centre-line point nearest to `position` [2].

    `guess` [] [m] must be a prediction good to about a metre: the old arc length plus speed along
    the centre line times time. Two Newton steps, each at most 8 m, then reach the foot of the
    perpendicular to millimetres, except near the centre of curvature.
    """
    s = guess
    for _ in range(2):
        row, u = _row(track, s)
        centre, velocity, bend = _centre(row, u)
        gap = position - centre
        slope = jnp.maximum(jnp.sum(velocity**2) - jnp.sum(gap * bend), MIN_NEWTON_SLOPE)
        s = s + jnp.clip(jnp.sum(gap * velocity) / slope, -MAX_NEWTON_STEP, MAX_NEWTON_STEP)
    return wrap(track, s)


def locate(track: Track, position: Array) -> Array:
    """Arc length [] [m] of the centre-line point nearest to `position` [2] over the whole circuit.

    Costs N distances, and where a circuit crosses itself the nearest leg may be the wrong one: for
    resets only.
    """
    rows = jax.lax.dynamic_slice_in_dim(track.nodes, track.first, NUM_NODES)
    nearest = jnp.argmin(jnp.sum((rows[:, :2] - position) ** 2, axis=-1))
    return project(track, position, nearest * (track.length / NUM_NODES))


def lateral_offset(point: TrackPoint, position: Array) -> Array:
    """Distance [] [m] of `position` [2] from the centre line at `point`, left positive."""
    gap = position - point.position
    return point.tangent[0] * gap[1] - point.tangent[1] * gap[0]


def surface_at(point: TrackPoint, n: Array) -> Surface:
    """What lies at lateral offsets `n` [...] [m]: road up to the white lines, verge beyond."""
    inside = (n <= point.width_left) & (n >= -point.width_right)
    return jax.tree.map(lambda road, verge: jnp.where(inside, road, verge), point.road, point.verge)


def wrap(track: Track, s: Array) -> Array:
    """Arc length in [0, L)."""
    wrapped = s - track.length * jnp.floor(s / track.length)
    # A tiny negative s rounds up to L itself.
    return jnp.where((wrapped >= 0.0) & (wrapped < track.length), wrapped, 0.0)


def wrap_difference(track: Track, s_new: Array, s_old: Array) -> Array:
    """The signed way [] [m] from `s_old` to `s_new`, the short way round, in [-L/2, L/2)."""
    difference = s_new - s_old
    return difference - track.length * jnp.floor(difference / track.length + 0.5)


def node_stations(track: Track) -> Array:
    """Arc lengths [N] [m] of the nodes."""
    return jnp.arange(NUM_NODES) * (track.length / NUM_NODES)


def stack_tracks(tracks: Sequence[Track]) -> Track:
    """Circuits as one pytree with a leading axis [T] on every leaf, to vmap over or select from."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tracks)


def select_track(tracks: Track, index: Array) -> Track:
    """Circuit number `index` [] of a stack, as a view.

    Nothing is copied, so a batch of cars may each select its own circuit at every step
    (`tree.map(lambda leaf: leaf[index], tracks)` would copy all nodes once per car).
    """

    def pick(leaf: Array) -> Array:
        return leaf[index]

    return Track(
        nodes=tracks.nodes.reshape(-1, tracks.nodes.shape[-1]),
        first=jnp.asarray(index * NUM_NODES, jnp.int32),
        length=pick(tracks.length),
        road=jax.tree.map(pick, tracks.road),
        verge=jax.tree.map(pick, tracks.verge),
    )


def make_track(
    centre: ArrayLike,
    width_right: ArrayLike,
    width_left: ArrayLike,
    *,
    runoff: ArrayLike = 5.0,
    smoothing: float = 0.05,
    road: Surface = ASPHALT,
    verge: Surface = GRASS,
) -> Track:
    """A circuit from points along its centre line, in driving direction.

    `centre` [M, 2] [m] is an open list of a closed loop (a repeated first point is dropped, as are
    duplicates); the widths [M] [m] reach from it to the white lines and `runoff` [] or [M] [m] from
    there to the walls. The centre line becomes a periodic quintic spline whose mean square distance
    to the points is `smoothing` [m^2]; the widths are shifted by what it moved, so that the white
    lines stay. Raises `CircuitError` for a circuit that cannot be driven.
    """
    centre = np.asarray(centre, np.float64)
    columns = [width_right, width_left, np.broadcast_to(runoff, len(centre))]
    points = np.column_stack([centre, *columns]).astype(np.float64)
    rows = _check_points(points)
    points = points[rows]

    spline, u_rows = fit_spline(points[:, :2], smoothing)

    def curve(u: np.ndarray, derivative: int = 0) -> np.ndarray:
        return np.column_stack(splev(u, spline, der=derivative))

    # Arc length by the trapezoid rule, which is at its best on a smooth periodic integrand.
    u_dense = np.linspace(0.0, 1.0, DENSE * NUM_NODES + 1)
    pace = np.hypot(*curve(u_dense, 1).T)
    arc = np.concatenate([[0.0], np.cumsum((pace[1:] + pace[:-1]) / 2.0)]) / (DENSE * NUM_NODES)
    length = arc[-1]
    s_nodes = np.arange(NUM_NODES) * (length / NUM_NODES)
    s_rows = np.interp(u_rows, u_dense, arc)

    u_nodes = np.interp(s_nodes, arc, u_dense)
    first, second = curve(u_nodes, 1), curve(u_nodes, 2)
    pace = np.hypot(*first.T)
    curvature = _cross(first, second) / pace**3

    along = curve(u_rows, 1)
    shift = _cross(along, points[:, :2] - curve(u_rows)) / np.hypot(*along.T)
    right, left = points[:, 2] - shift, points[:, 3] + shift
    narrow = int(np.argmin(np.minimum(left, right)))
    if min(left[narrow], right[narrow]) <= 0.0:
        raise CircuitError(
            f"the smoothed centre line leaves the road, {abs(shift[narrow]):.2f} m from this point",
            int(rows[narrow]),
        )
    right, left, space = (
        np.interp(s_nodes, s_rows, values, period=length) for values in (right, left, points[:, 4])
    )
    inner = np.where(curvature > 0.0, left, right)
    bend = np.abs(curvature)
    worst = int(np.argmax(bend * inner))
    if bend[worst] * inner[worst] >= MAX_BEND:
        raise CircuitError(
            f"too tight for its width: radius {1.0 / bend[worst]:.1f} m, inner width"
            f" {inner[worst]:.1f} m; curvature times inner width must stay below {MAX_BEND}",
            int(rows[np.argmin(np.abs(s_rows - s_nodes[worst]))]),
        )
    reach = np.maximum(MAX_WALL_BEND / np.maximum(bend, 1e-9), inner)
    wall_left = np.where(curvature > 0.0, np.minimum(left + space, reach), left + space)
    wall_right = np.where(curvature < 0.0, np.minimum(right + space, reach), right + space)

    values = np.column_stack([curvature, left, right, wall_left, wall_right])
    nodes = _pack(curve(u_nodes), first / pace[:, None], values, length / NUM_NODES)
    return Track(
        nodes=jnp.asarray(nodes, jnp.float32),
        first=jnp.int32(0),
        length=jnp.float32(length),
        road=jax.tree.map(jnp.float32, road),
        verge=jax.tree.map(jnp.float32, verge),
    )


def fit_spline(points: np.ndarray, smoothing: float) -> tuple[tuple, np.ndarray]:
    """The periodic quintic spline (for `scipy.interpolate.splev`) near points [M, 2].

    Returns it with its parameter [M], in [0, 1), at each point. `smoothing` is the mean square
    distance [m^2] that it may keep from the points.
    """
    loop = np.vstack([points, points[:1]])
    spline, u = splprep(loop.T, k=5, per=True, s=smoothing * len(points))
    return spline, u[:-1]


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _check_points(points: np.ndarray) -> np.ndarray:
    """Refuse points [M, 5] (x, y, width right, width left, run-off) that make no closed circuit.

    Returns the rows that are left without duplicates.
    """

    def refuse(broken: ArrayLike, reason: str) -> None:
        if np.any(broken):
            raise CircuitError(reason, int(np.argmax(broken)))

    refuse(~np.isfinite(points).all(axis=1), "every number must be finite")
    refuse(
        (np.abs(points[:, :2]) > MAX_COORDINATE).any(axis=1),
        f"more than {MAX_COORDINATE:g} m from the origin, where float32 is too coarse",
    )
    refuse((points[:, 2:4] <= 0.0).any(axis=1), "both widths must be positive")
    refuse(points[:, 4] < 0.0, "the run-off must not be negative")
    gaps = np.hypot(*(points[:, :2] - np.roll(points[:, :2], -1, axis=0)).T)
    rows = np.flatnonzero(gaps > MIN_GAP)
    if len(rows) < MIN_POINTS:
        raise CircuitError(f"{len(rows)} different points; at least {MIN_POINTS} are needed")
    closing, between = gaps[-1], gaps[rows[:-1]]
    if closing > MAX_CLOSING * np.median(between) and closing > between.max():
        raise CircuitError(
            f"not a loop: the last point is {closing:.1f} m from the first, where points are"
            f" {np.median(between):.1f} m apart",
            len(points) - 1,
        )
    return rows


def _pack(
    position: np.ndarray, tangent: np.ndarray, values: np.ndarray, spacing: float
) -> np.ndarray:
    """Rows [N, 18] from what holds at the nodes, by the Hermite form of a cubic."""
    ahead, tangent_ahead, values_ahead = (
        np.roll(array, -1, axis=0) for array in (position, tangent, values)
    )
    chord = (ahead - position) / spacing
    quadratic = (3.0 * chord - 2.0 * tangent - tangent_ahead) / spacing
    cubic = (tangent + tangent_ahead - 2.0 * chord) / spacing**2
    slopes = (values_ahead - values) / spacing
    return np.column_stack([position, tangent, quadratic, cubic, values, slopes])


def _row(track: Track, s: Array) -> tuple[Array, Array]:
    """The row of the node before `s` and the distance [m] from that node."""
    spacing = track.length / NUM_NODES
    cell = s / spacing
    index = jnp.floor(cell)
    row = track.first + (index.astype(jnp.int32) & (NUM_NODES - 1))
    return track.nodes.at[row].get(mode="promise_in_bounds"), (cell - index) * spacing


def _centre(row: Array, u: Array) -> tuple[Array, Array, Array]:
    """The centre line at distance `u` from a node: position and two derivatives, each [2]."""
    start, slope, quadratic, cubic = row[CUBIC].reshape(4, 2)
    position = start + u * (slope + u * (quadratic + u * cubic))
    velocity = slope + u * (2.0 * quadratic + 3.0 * u * cubic)
    return position, velocity, 2.0 * quadratic + 6.0 * u * cubic
