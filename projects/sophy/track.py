"""Closed circuits as equal-arc nodes: constant-time lookup and projection.

A circuit is a centre line of length L cut into N = 2048 nodes of equal arc length, with the lateral
distances to the white lines and to the walls at every node. Positions between nodes are cubic
Hermite in the nodes' positions and unit tangents; everything else is linear. A car carries its arc
length `s`, so finding its place on the centre line is not a search but two Newton steps on
`(p - c(s)) . c'(s) = 0` from a prediction (the refinement of Wang, Kearney and Atkinson, "Robust
and efficient computation of the closest point on a spline curve", 2002, without their search).
Where a circuit crosses itself, only this keeps a car on its own leg.

Lateral offsets `n` and curvature are positive to the left; arc length grows in driving direction.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

NUM_NODES = 2048  # a power of two: wrapping an index is a bit mask

X, Y, TANGENT_X, TANGENT_Y, CURVATURE, WIDTH_LEFT, WIDTH_RIGHT, WALL_LEFT, WALL_RIGHT = range(9)
MAX_NEWTON_STEP = 8.0  # [m]
MIN_NEWTON_SLOPE = 0.25  # floor of 1 - n * curvature, which vanishes at the centre of curvature


@struct.dataclass
class Surface:
    """What a tyre stands on: three factors on the tyre's own numbers and one coefficient."""

    grip: Array  # [] factor on peak friction
    peak_slip: Array  # [] factor on the slip at peak friction
    shape: Array  # [] factor on the tyre curve's shape factor Q; below 1: flatter beyond the peak
    rolling: Array  # [] rolling resistance coefficient, drag force / load


@struct.dataclass
class Track:
    """One circuit, or with a leading axis on every leaf a stack of circuits (`stack_tracks`)."""

    nodes: Array  # [N, 9] columns named above: [m], [-], [1/m], [m]
    first: (
        Array  # [] int32 row of `nodes` where this circuit starts; not 0 only after `select_track`
    )
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
    here, ahead, fraction, spacing = _segment(track, s)
    position, velocity, _ = _hermite(here, ahead, fraction, spacing)
    rest = here[CURVATURE:] + fraction * (ahead[CURVATURE:] - here[CURVATURE:])
    return TrackPoint(
        position=position,
        tangent=velocity * jax.lax.rsqrt(jnp.sum(velocity**2)),
        curvature=rest[0],
        width_left=rest[1],
        width_right=rest[2],
        wall_left=rest[3],
        wall_right=rest[4],
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
        here, ahead, fraction, spacing = _segment(track, s)
        centre, velocity, bend = _hermite(here, ahead, fraction, spacing)
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
    nearest = jnp.argmin(jnp.sum((rows[:, : Y + 1] - position) ** 2, axis=-1))
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
    small = jax.tree.map(lambda leaf: leaf[index], tracks.replace(nodes=tracks.length))
    return small.replace(
        nodes=tracks.nodes.reshape(-1, tracks.nodes.shape[-1]),
        first=jnp.asarray(index * NUM_NODES, jnp.int32),
    )


def _segment(track: Track, s: Array) -> tuple[Array, Array, Array, Array]:
    """The rows around `s`, the fraction of the way between them, and the node spacing."""
    spacing = track.length / NUM_NODES
    cell = s / spacing
    index = jnp.floor(cell)
    fraction = cell - index
    index = index.astype(jnp.int32)
    rows = track.nodes.at[track.first + (jnp.stack([index, index + 1]) & (NUM_NODES - 1))].get(
        mode="promise_in_bounds"
    )
    return rows[0], rows[1], fraction, spacing


def _hermite(here: Array, ahead: Array, t: Array, spacing: Array) -> tuple[Array, Array, Array]:
    """The cubic between two rows: position and two derivatives by arc length, each [2]."""
    start, end = here[: Y + 1], ahead[: Y + 1]
    slope_start = spacing * here[TANGENT_X : TANGENT_Y + 1]
    slope_end = spacing * ahead[TANGENT_X : TANGENT_Y + 1]
    quadratic = 3.0 * (end - start) - 2.0 * slope_start - slope_end
    cubic = 2.0 * (start - end) + slope_start + slope_end
    position = start + t * (slope_start + t * (quadratic + t * cubic))
    velocity = (slope_start + t * (2.0 * quadratic + 3.0 * t * cubic)) / spacing
    bend = (2.0 * quadratic + 6.0 * t * cubic) / spacing**2
    return position, velocity, bend
