"""The page that replays drives: one file, drawn on a canvas, no network and no library needed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from projects.sophy.drive import (
    UNKNOWN,
    CircuitOutline,
    Drive,
    DriveError,
    ReferenceProfile,
    reference_delta,
    split_laps,
    surface_patches,
)

REPLAY_INTERVAL = 0.1  # [s] the page interpolates between samples this far apart
OUTLINE_TOLERANCE = 0.05  # [m] how far a thinned edge may leave the given one


class Event(NamedTuple):
    """Something that happened between two cars, numbered as the drives are."""

    time: float  # since the first sample [s]
    car: int
    other: int
    text: str
    blamed: bool  # whether one of them was at fault


class Way(NamedTuple):
    """How far a car of a race had come, and when it was at the flag."""

    distance: np.ndarray  # [T] [m]
    finish: float | None  # since the first sample [s]


class Paint(NamedTuple):
    """The colour of a surface, as #rrggbb."""

    light: str  # in pictures and on a light page
    dark: str  # on a dark page


PALETTE = {
    "asphalt": Paint("#343a42", "#39414a"),
    "damp": Paint("#1b4272", "#21466f"),
    "wet": Paint("#0b3f92", "#15478f"),
    "kerb": Paint("#c8372d", "#b5382f"),
    "grass": Paint("#dde2d9", "#20272c"),
    "gravel_trap": Paint("#e2cf9c", "#6b6044"),
    "dirt": Paint("#62412a", "#5c422f"),
    "snow": Paint("#fafcfe", "#d3dce4"),
    "deep_snow": Paint("#c3d3e2", "#4c5a68"),
    "ice": Paint("#b5e0f2", "#8fc3da"),
    UNKNOWN: Paint("#8d949b", "#6b737b"),
}


def paint_of(surface: str) -> Paint:
    return PALETTE.get(surface, PALETTE[UNKNOWN])


def is_bright(colour: str) -> bool:
    """Whether lines on the colour must be dark; of the primaries, green makes most of the light."""
    return int(colour[3:5], 16) > 128


def _thin_line(points: np.ndarray, tolerance: float) -> np.ndarray:
    """Indices of a polyline that stays within tolerance of the given one.

    Ramer, "An iterative procedure for the polygonal approximation of plane curves", 1972.
    """
    keep = np.zeros(len(points), bool)
    keep[[0, -1]] = True
    open_parts = [(0, len(points) - 1)]
    while open_parts:
        first, last = open_parts.pop()
        chord = points[last] - points[first]
        reach = np.linalg.norm(chord)
        inner = points[first + 1 : last] - points[first]
        if len(inner) == 0:
            continue
        if reach > 0:
            distance = np.abs(inner[:, 0] * chord[1] - inner[:, 1] * chord[0]) / reach
        else:
            distance = np.linalg.norm(inner, axis=1)
        farthest = int(np.argmax(distance))
        if distance[farthest] > tolerance:
            middle = first + 1 + farthest
            keep[middle] = True
            open_parts += [(first, middle), (middle, last)]
    return np.flatnonzero(keep)


def _numbers(values: np.ndarray, digits: int) -> list[float]:
    """Rounded, flat, and whole numbers without a point: about half the text."""
    rounded = np.round(np.asarray(values, float).ravel(), digits) + 0.0
    return [int(value) if value == int(value) else float(value) for value in rounded]


def _car_record(
    name: str,
    drive: Drive,
    way: Way | None,
    outline: CircuitOutline,
    reference: ReferenceProfile,
) -> dict[str, Any]:
    time = drive.time
    # The page needs no more than ten samples a second; an event in between is kept.
    tick = np.floor((time - time[0]) / REPLAY_INTERVAL + 1e-6)
    keep = np.flatnonzero(np.diff(tick, prepend=-1))
    off_course = np.logical_or.reduceat(drive.off_course, keep)
    wall_contact = np.logical_or.reduceat(drive.wall_contact, keep)
    delta = reference_delta(drive, outline, reference)
    return {
        "name": name,
        "size": list(drive.car_size),
        "time": _numbers(time[keep], 3),
        "s": _numbers(drive.s[keep], 1),
        "x": _numbers(drive.position[keep, 0], 2),
        "y": _numbers(drive.position[keep, 1], 2),
        "heading": _numbers(np.unwrap(drive.heading[keep]), 3),
        "speed": _numbers(drive.speed[keep], 2),
        "throttle": _numbers(drive.throttle[keep], 2),
        "brake": _numbers(drive.brake[keep], 2),
        "steering": _numbers(drive.steering[keep], 3),
        "forward": _numbers(drive.acceleration[keep, 0], 1),
        "left": _numbers(drive.acceleration[keep, 1], 1),
        "gear": _numbers(drive.gear[keep], 0),
        "off_course": _numbers(off_course, 0),
        "wall_contact": _numbers(wall_contact, 0),
        "delta": _numbers(delta[keep], 2),
        "distance": None if way is None else _numbers(way.distance[keep], 1),
        "finish": None if way is None else way.finish,
        "laps": [
            {
                "start": round(lap.start, 3),
                "first": int(np.searchsorted(keep, lap.first)),
                "lap_time": None if lap.lap_time is None else round(lap.lap_time, 3),
            }
            for lap in split_laps(drive, outline.length)
        ],
    }


def _surface_record(names: np.ndarray, left: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """The surface between two edges, and the edges of the stretches where it is another one."""
    surface, patches = surface_patches(names)

    def edge(line: np.ndarray) -> list[float]:
        return _numbers(line[_thin_line(line, OUTLINE_TOLERANCE)], 2)

    return {
        "surface": surface,
        "patches": [
            {"surface": name, "left": edge(left[points]), "right": edge(right[points])}
            for name, points in patches
        ],
    }


def replay_html(
    outline: CircuitOutline,
    drives: dict[str, Drive],
    reference: ReferenceProfile,
    title: str,
    ways: Sequence[Way] = (),
    events: Sequence[Event] = (),
) -> str:
    """A page that replays the drives together, on their own clocks from the first sample on.

    With the `ways` of all drives it is a race, whose order and gaps are shown; `events` are listed
    and marked.

    The fragment of its address sets it up: `#t=30&play&camera=follow&rate=2&car=1`.
    """
    if not drives:
        raise DriveError("no drive to replay, at least one is needed")
    edges = {}
    for side in ("left", "right", "wall_left", "wall_right"):
        points = getattr(outline, side)
        edges[side] = _numbers(points[_thin_line(points, OUTLINE_TOLERANCE)], 2)
    surfaces = dict.fromkeys([*outline.road, *outline.verge, "kerb"])
    every = slice(None, None, max(1, len(reference.s) // 400))
    ahead = outline.centre[1] - outline.centre[0]
    data = {
        "circuit": {
            "length": round(float(outline.length), 2),
            "start": _numbers(np.concatenate([outline.left[0], outline.right[0]]), 2),
            "start_heading": round(float(np.arctan2(ahead[1], ahead[0])), 3),
            **edges,
            "road": _surface_record(outline.road, outline.left, outline.right),
            "verge": _surface_record(outline.verge, outline.wall_left, outline.wall_right),
            "kerb": round(float(outline.kerb), 2),
        },
        "palette": {name: paint_of(name) for name in surfaces},
        "reference": {
            "lap_time": round(float(reference.lap_time), 3),
            "s": _numbers(reference.s[every], 1),
            "speed": _numbers(reference.speed[every], 2),
        },
        "cars": [
            _car_record(name, drive, way, outline, reference)
            for (name, drive), way in zip(drives.items(), ways or [None] * len(drives), strict=True)
        ],
        "events": [event._asdict() for event in events],
    }
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        Path(__file__).with_name("replay.html").read_text(encoding="utf-8")
    )
    packed = json.dumps(data, separators=(",", ":"), allow_nan=False)
    # Inside a script element only '<' could end the data early.
    return template.render(title=title, data=packed.replace("<", "\\u003c"))
