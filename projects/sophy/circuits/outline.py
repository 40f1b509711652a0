"""A circuit drawn as a closed polygon whose vertices are rounded by clothoid, arc, clothoid.

This is how roads are laid out on a map: where straights would meet, and how tight the corner there
is. The loop is closed by construction. The curvature of every corner rises linearly, stays, and
falls linearly (the symmetric spiral-curve-spiral of road design manuals).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from projects.sophy.track import CircuitError, Track, make_track

SPIRAL = 0.25  # share of a corner's turning in each of its two clothoids
POINT_SPACING = 2.0  # [m] between the points handed to the spline, at most
POINT_TURN = 0.04  # [rad] turned between two points, at most
SMOOTHING = 1e-5  # [m^2] the points are exact: 3 mm


class Corner(NamedTuple):
    """Where two straights meet."""

    x: float  # [m]
    y: float  # [m]
    radius: float  # [m] of the arc, the smallest radius of the corner
    width: float  # [m] whole road at this corner; linear from one corner to the next


class Bend(NamedTuple):
    """A rounded corner in its own frame: it starts at the origin in the direction of x."""

    points: np.ndarray  # [K, 2] [m] both ends included
    tangent: float  # [m] from either end to the vertex


def make_bend(turn: float, radius: float) -> Bend:
    """The bend that turns by `turn` [rad], left positive, with `radius` [m] at its tightest."""
    # The spirals turn half as much per metre as the arc, so they are twice as long for it.
    length = radius * abs(turn) * (1.0 + 2.0 * SPIRAL)
    num = int(np.ceil(max(length / POINT_SPACING, abs(turn) / POINT_TURN, 8.0)))
    fine = 16 * num
    way = (np.arange(fine) + 0.5) / fine
    ramp = 2.0 * SPIRAL / (1.0 + 2.0 * SPIRAL)  # share of the length in each spiral
    share = np.clip(np.minimum(way, 1.0 - way) / ramp, 0.0, 1.0)
    heading = np.concatenate([[0.0], np.cumsum(share)])
    heading *= turn / heading[-1]
    middle = (heading[1:] + heading[:-1]) / 2.0
    steps = (length / fine) * np.column_stack([np.cos(middle), np.sin(middle)])
    points = np.vstack([[0.0, 0.0], np.cumsum(steps, axis=0)])[::16]
    end = points[-1]
    return Bend(points, abs(float(end[0] / (1.0 + np.cos(turn)))))


def bend_turns(vertices: np.ndarray) -> np.ndarray:
    """Angle [K] [rad] by which the road turns at each vertex [K, 2] of a polygon, left positive."""
    into = vertices - np.roll(vertices, 1, axis=0)
    heading = np.arctan2(into[:, 1], into[:, 0])
    return (np.roll(heading, -1) - heading + np.pi) % (2.0 * np.pi) - np.pi


def trace(corners: list[Corner]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre line [M, 2] and width [M] [m] of the circuit through `corners` in driving direction,
    and to which corner each point [M] belongs: those of a bend and of the straight before it.

    It starts in the middle of the straight from the last corner to the first. Raises `CircuitError`
    for a corner that does not fit between its neighbours.
    """
    vertices = np.array([corner[:2] for corner in corners], np.float64)
    into = vertices - np.roll(vertices, 1, axis=0)
    edges = np.hypot(*into.T)
    heading = np.arctan2(into[:, 1], into[:, 0])
    turns = bend_turns(vertices)
    bends = [
        make_bend(float(turn), corner.radius) for turn, corner in zip(turns, corners, strict=True)
    ]
    for i, bend in enumerate(bends):
        if edges[i] < bends[i - 1].tangent + bend.tangent:
            raise CircuitError(
                f"corners {(i - 1) % len(corners)} and {i} need"
                f" {bends[i - 1].tangent + bend.tangent:.1f} m, but are {edges[i]:.1f} m apart"
            )
    pieces = []
    # The straight before corner 0 reaches from one tangent length behind it to one after the last.
    back = (edges[0] + bends[0].tangent - bends[-1].tangent) / 2.0
    previous = vertices[0] - into[0] * (back / edges[0])
    for vertex, direction, bend in zip(vertices, heading, bends, strict=True):
        cos, sin = np.cos(direction), np.sin(direction)
        turned = bend.points @ np.array([[cos, sin], [-sin, cos]])
        curve = turned + vertex - bend.tangent * np.array([cos, sin])
        pieces += [_straight(previous, curve[0]), curve[:-1]]
        previous = curve[-1]
    pieces.append(_straight(previous, pieces[0][0]))
    centre = np.vstack(pieces)
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(centre, axis=0).T))])
    starts = np.cumsum([len(piece) for piece in pieces])
    apexes = [arc[(starts[2 * i] + starts[2 * i + 1]) // 2] for i in range(len(corners))]
    width = np.interp(arc, apexes, [corner.width for corner in corners], period=arc[-1])
    # A straight and a bend for each corner, and the rest of the straight before the first one.
    owners = [*np.repeat(np.arange(len(corners)), 2), 0]
    return centre, width, np.repeat(owners, [len(piece) for piece in pieces])


def _straight(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Points [K, 2] from `start` (included) to `end` (not included)."""
    num = max(int(np.ceil(np.hypot(*(end - start)) / POINT_SPACING)), 1)
    return start + np.linspace(0.0, 1.0, num, endpoint=False)[:, None] * (end - start)


def draw(
    corners: list[Corner],
    runoff: float,
    road: str | Sequence[str] = "asphalt",
    verge: str | Sequence[str] = "grass",
    kerb: float = 0.0,
) -> Track:
    """The circuit through `corners`, with walls `runoff` [m] outside the white lines.

    `road` and `verge` name surfaces, one for all or one per corner and the straight before it.
    """
    centre, width, corner = trace(corners)

    def per_point(names: str | Sequence[str]) -> str | Sequence[str]:
        return names if isinstance(names, str) else [names[int(i)] for i in corner]

    return make_track(
        centre,
        width / 2.0,
        width / 2.0,
        runoff=runoff,
        smoothing=SMOOTHING,
        road=per_point(road),
        verge=per_point(verge),
        kerb=kerb,
    )
