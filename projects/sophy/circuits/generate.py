"""Seeded circuits without end: random star-shaped polygons with rounded corners and chicanes.

Drawn again until every corner fits and the road keeps its distance from itself, so that each seed
gives a valid circuit, the same everywhere (counter-based numbers, Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011).
"""

import numpy as np

from projects.sophy.circuits.outline import Corner, bend_turns, draw, make_bend, trace
from projects.sophy.track import CircuitError, Track

NUM_CORNERS = (8, 19)  # of the polygon, before chicanes
MEAN_REACH = (280.0, 700.0)  # [m] from the middle to a vertex
REACH = (0.3, 1.3)  # of one vertex, relative to the mean
FLATTEN = (0.45, 1.0)  # how much narrower than long
WIDTH = (9.0, 15.0)  # [m]
RADIUS = (14.0, 160.0)  # [m] of a corner
EDGE_SHARE = 0.45  # of an edge, at most, for the corner at either end
RUNOFF = 5.0  # [m]
CHICANE_CHANCE = 0.4
CHICANE_EDGE = 260.0  # [m] shorter edges get no chicane
CHICANE_LENGTH = 40.0  # [m] along the edge
CHICANE_OFFSET = (16.0, 34.0)  # [m] across it
LENGTH = (1500.0, 6000.0)  # [m]
CHECK_SPACING = 6.0  # [m] between the points whose distances are compared
MAX_ATTEMPTS = 1000


def generate_circuit(seed: int) -> Track:
    """Circuit number `seed`, which must not be negative."""
    random = np.random.Generator(np.random.Philox(seed))
    for _ in range(MAX_ATTEMPTS):
        corners = _round(random, _polygon(random))
        try:
            centre, width, _ = trace(corners)
        except CircuitError:
            continue
        if _keeps_distance(centre, width.max() + 2.0 * RUNOFF):
            return draw(corners, RUNOFF)
    raise CircuitError(f"generated:{seed} found no valid circuit in {MAX_ATTEMPTS} attempts")


def _polygon(random: np.random.Generator) -> np.ndarray:
    """Vertices [K, 2] in either direction, the longest edge before the first one."""
    num = int(random.uniform(NUM_CORNERS[0], NUM_CORNERS[1] + 1))
    steps = random.uniform(0.4, 1.6, num)
    angle = 2.0 * np.pi * np.cumsum(steps) / steps.sum()
    reach = random.uniform(*MEAN_REACH) * random.uniform(*REACH, num)
    vertices = reach[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    vertices[:, 1] *= random.uniform(*FLATTEN)
    if random.uniform() < 0.5:
        vertices = vertices[::-1]
    edges = np.hypot(*(vertices - np.roll(vertices, 1, axis=0)).T)
    vertices = np.roll(vertices, -int(np.argmax(edges)), axis=0)
    edges = np.roll(edges, -int(np.argmax(edges)))
    with_chicanes = []
    for i, end in enumerate(vertices):
        # Not on the longest edge, where the race starts.
        if i > 0 and edges[i] > CHICANE_EDGE and random.uniform() < CHICANE_CHANCE:
            start = vertices[i - 1]
            along = (end - start) / edges[i]
            across = np.array([-along[1], along[0]]) * (1.0 if random.uniform() < 0.5 else -1.0)
            jog = along * CHICANE_LENGTH / 2.0 + across * random.uniform(*CHICANE_OFFSET) / 2.0
            with_chicanes += [(start + end) / 2.0 - jog, (start + end) / 2.0 + jog]
        with_chicanes.append(end)
    return np.array(with_chicanes)


def _round(random: np.random.Generator, vertices: np.ndarray) -> list[Corner]:
    """Give every vertex a radius that fits between its neighbours, and a road width."""
    into = vertices - np.roll(vertices, 1, axis=0)
    edges = np.hypot(*into.T)
    turns = bend_turns(vertices)
    room = EDGE_SHARE * np.minimum(edges, np.roll(edges, -1))
    wanted = RADIUS[0] * (RADIUS[1] / RADIUS[0]) ** random.uniform(size=len(vertices))
    mean_width = random.uniform(*WIDTH)
    widths = np.clip(mean_width + random.uniform(-1.5, 1.5, len(vertices)), *WIDTH)
    # Bends of one angle are similar, so the tangent grows in proportion to the radius. A corner
    # without room for the smallest radius is left to `trace` to refuse.
    return [
        Corner(x, y, max(RADIUS[0], min(want, space / make_bend(turn, 1.0).tangent)), width)
        for (x, y), want, space, turn, width in zip(
            vertices, wanted, room, turns, widths, strict=True
        )
    ]


def _keeps_distance(centre: np.ndarray, clearance: float) -> bool:
    """Whether a centre line [M, 2] has a fit length and nowhere comes near another part of itself.

    The nearest another part may come is `clearance`, or half the way along the road where that is
    less: a semicircle's ends are 2 / pi of the way apart.
    """
    steps = np.hypot(*(np.roll(centre, -1, axis=0) - centre).T)
    arc = np.concatenate([[0.0], np.cumsum(steps)])
    length = arc[-1]
    if not LENGTH[0] <= length <= LENGTH[1]:
        return False
    s = np.arange(0.0, length, CHECK_SPACING)
    x, y = (np.interp(s, arc[:-1], values, period=length) for values in centre.T)
    distance = np.hypot(x[:, None] - x, y[:, None] - y)
    way = np.abs(s[:, None] - s)
    way = np.minimum(way, length - way)
    return bool((distance >= np.minimum(clearance, 0.5 * way)).all())
