"""Closed circuits as equal-arc nodes: constant-time lookup and projection.

A circuit is a centre line of length L cut into N = 2048 pieces of equal arc length. Each piece is
one row: the cubic Hermite through the positions and unit tangents at its ends, and the curvature,
widths and wall distances, which are linear along it; a lookup is a gather of one row. A car carries
its arc length `s`, so finding its place on the centre line is not a search but two Newton steps on
`(p - c(s)) . c'(s) = 0` from a prediction (the refinement of Wang, Kearney and Atkinson, "Robust
and efficient computation of the closest point on a spline curve", 2002, without their search).
Where a circuit crosses itself, only this keeps a car on its own leg.

What a wheel stands on follows from its own place: the road between the white lines, a band of kerb
beside them, the verge beyond. Road and verge are constant along a piece; they lie in an array of
their own, so that course points, which ask only for the geometry, do not gather them.

Lateral offsets `n` and curvature are positive to the left; arc length grows in driving direction.
"""

import dataclasses
from collections.abc import Sequence
from difflib import get_close_matches

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from numpy.typing import ArrayLike
from scipy.interpolate import splev, splprep

from core_rl.errors import UserError
from projects.sophy.surfaces import SURFACES
from projects.sophy.tyre import Ground

NUM_NODES = 2048  # a power of two: wrapping an index is a bit mask

# Columns of a node's row, in the distance u [m] from the node: the centre line is the cubic with
# coefficients [4, 2] of 1, u, u^2, u^3, everything else is value + slope * u.
CUBIC = slice(0, 8)
VALUES = slice(8, 13)  # curvature, width left, width right, wall left, wall right
SLOPES = slice(13, 18)
# Columns of a node's row of `ground`: the fields of `Ground`, for the road and for the verge.
ROAD = slice(0, 5)
VERGE = slice(5, 10)
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
class Track:
    """One circuit, or with a leading axis on every leaf a stack of circuits (`stack_tracks`)."""

    nodes: Array  # [N, 18] one row per node, columns as above
    ground: Array  # [N, 10] what lies from each node to the next, columns as above
    kerb: Array  # [] width of the kerbs just outside the white lines; 0 where there are none [m]
    first: Array  # [] int32 row where this circuit starts: 0 until `select_track`
    length: Array  # [] [m]


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
    kerb: Array  # [] [m] width of the kerbs outside the white lines
    road: Ground  # between the white lines, every field []
    verge: Ground  # outside them and the kerbs


def at(track: Track, s: Array) -> TrackPoint:
    """The circuit at arc length `s` [] [m], any real number (wraps)."""
    index, u = _cell(track, s)
    row, ground = _row(track.nodes, index), _row(track.ground, index)
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
        kerb=track.kerb,
        road=Ground(*ground[ROAD]),
        verge=Ground(*ground[VERGE]),
    )


def project(track: Track, position: Array, guess: Array) -> Array:
    """Arc length [] [m] in [0, L) of the centre-line point nearest to `position` [2].

    `guess` [] [m] must be a prediction good to about a metre: the old arc length plus speed along
    the centre line times time. Two Newton steps, each at most 8 m, then reach the foot of the
    perpendicular to millimetres, except near the centre of curvature.
    """
    s = guess
    for _ in range(2):
        index, u = _cell(track, s)
        centre, velocity, bend = _centre(_row(track.nodes, index), u)
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


def surface_at(point: TrackPoint, n: Array) -> Ground:
    """What lies at lateral offsets `n` [...] [m], such as those of four wheels; leaves [...]."""
    beyond = jnp.maximum(n - point.width_left, -n - point.width_right)  # the white line [m]
    on_road, on_kerb = beyond <= 0.0, beyond <= point.kerb
    return jax.tree.map(
        lambda road, kerb, verge: jnp.where(on_road, road, jnp.where(on_kerb, kerb, verge)),
        point.road,
        _kerb(point.road),
        point.verge,
    )


def _kerb(road: Ground) -> Ground:
    """The kerb of a road: one on a wet road is wet."""
    kerb = SURFACES["kerb"]
    return Ground(
        grip=road.grip * kerb.grip,
        peak_slip=road.peak_slip * kerb.peak_slip,
        shape=road.shape * kerb.shape,
        rolling=jnp.maximum(road.rolling, kerb.rolling),
        water=jnp.maximum(road.water, kerb.water),
    )


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
    return Track(
        nodes=tracks.nodes.reshape(-1, tracks.nodes.shape[-1]),
        ground=tracks.ground.reshape(-1, tracks.ground.shape[-1]),
        kerb=tracks.kerb[index],
        first=jnp.asarray(index * NUM_NODES, jnp.int32),
        length=tracks.length[index],
    )


def resurface(track: Track, name: str) -> Track:
    """The circuit, or a stack of them, with its whole road of the surface `name` in `SURFACES`.

    Raises `CircuitError` for another name.
    """
    return dataclasses.replace(track, ground=track.ground.at[..., ROAD].set(_numbers(name)))


def make_track(
    centre: ArrayLike,
    width_right: ArrayLike,
    width_left: ArrayLike,
    *,
    runoff: ArrayLike = 5.0,
    smoothing: float = 0.05,
    road: str | Sequence[str] = "asphalt",
    verge: str | Sequence[str] = "grass",
    kerb: float = 0.0,
) -> Track:
    """A circuit from points along its centre line, in driving direction.

    `centre` [M, 2] [m] is an open list of a closed loop (a repeated first point is dropped, as are
    duplicates); the widths [M] [m] reach from it to the white lines and `runoff` [] or [M] [m] from
    there to the walls. The centre line becomes a periodic quintic spline whose mean square distance
    to the points is `smoothing` [m^2]; the widths are shifted by what it moved, so that the white
    lines stay. `road` and `verge` are names in `SURFACES`, one for all or one per point, which
    holds from there to the next; `kerb` [m] is the width of the kerbs between them. Raises
    `CircuitError` for a circuit that cannot be driven.
    """
    centre = np.asarray(centre, np.float64)
    columns = [width_right, width_left, np.broadcast_to(runoff, len(centre))]
    points = np.column_stack([centre, *columns]).astype(np.float64)
    rows = _check_points(points)
    points = points[rows]
    if not 0.0 <= kerb < np.inf:
        raise CircuitError(f"the kerb's width must be finite and not negative, got {kerb}")
    surfaces = np.column_stack([_surfaces(road, len(centre)), _surfaces(verge, len(centre))])[rows]

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
    before = np.searchsorted(s_rows, s_nodes, side="right") - 1  # the point that a node follows
    nodes = _pack(curve(u_nodes), first / pace[:, None], values, length / NUM_NODES)
    return Track(
        nodes=jnp.asarray(nodes, jnp.float32),
        ground=jnp.asarray(surfaces[before], jnp.float32),
        kerb=jnp.float32(kerb),
        first=jnp.int32(0),
        length=jnp.float32(length),
    )


def fit_spline(points: np.ndarray, smoothing: float) -> tuple[tuple, np.ndarray]:
    """The periodic quintic spline (for `scipy.interpolate.splev`) near points [M, 2].

    Returns it with its parameter [M], in [0, 1), at each point. `smoothing` is the mean square
    distance [m^2] that it may keep from the points.
    """
    loop = np.vstack([points, points[:1]])
    spline, u = splprep(loop.T, k=5, per=True, s=smoothing * len(points))
    return spline, u[:-1]


def _numbers(name: str, row: int | None = None) -> np.ndarray:
    """The fields [5] of the surface `name`, the one of point `row` if it is a point's."""
    if name in SURFACES:
        return np.array(dataclasses.astuple(SURFACES[name]), np.float32)
    close = get_close_matches(name.lower(), SURFACES, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise CircuitError(f"unknown surface {name!r}{hint}: allowed are {', '.join(SURFACES)}", row)


def _surfaces(names: str | Sequence[str], num: int) -> np.ndarray:
    """The fields [num, 5] of the surfaces at `num` points, named one by one or all at once."""
    if isinstance(names, str):
        return np.tile(_numbers(names), (num, 1))
    if len(names) != num:
        raise CircuitError(
            f"{len(names)} surfaces for {num} points; one for all or one per point is needed"
        )
    return np.stack([_numbers(name, row) for row, name in enumerate(names)])


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


def _cell(track: Track, s: Array) -> tuple[Array, Array]:
    """Number of the row of the node before `s` and the distance [m] from that node."""
    spacing = track.length / NUM_NODES
    cell = s / spacing
    index = jnp.floor(cell)
    return track.first + (index.astype(jnp.int32) & (NUM_NODES - 1)), (cell - index) * spacing


def _row(rows: Array, index: Array) -> Array:
    return rows.at[index].get(mode="promise_in_bounds")


def _centre(row: Array, u: Array) -> tuple[Array, Array, Array]:
    """The centre line at distance `u` from a node: position and two derivatives, each [2]."""
    start, slope, quadratic, cubic = row[CUBIC].reshape(4, 2)
    position = start + u * (slope + u * (quadratic + u * cubic))
    velocity = slope + u * (2.0 * quadratic + 3.0 * u * cubic)
    return position, velocity, 2.0 * quadratic + 6.0 * u * cubic
