"""The fastest laps that `limit` found, as a committed table.

`limits.jsonl` has a row per car and circuit, appended by `projects.sophy.limit --table`. A row is
found by what it was computed for (`car_digest`, `course_signature`), not by name, so that a car or
circuit that has changed since has no limit rather than a wrong one. Nothing here needs casadi.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from core_rl.errors import UserError
from projects.sophy.car import Car
from projects.sophy.track import Track

TABLE = Path(__file__).with_name("limits.jsonl")
NUM_POINTS = 200  # of a line in the table
TOLERANCE = 3e-3  # of a signature: splines differ a little between machines


class Row(NamedTuple):
    """One cell of the table."""

    circuit: str
    car: str
    compound: str
    surface: str
    lap_time: float  # [s]
    careful_lap_time: float  # with every wheel inside the lines and no slide [s]
    status: str
    mesh_error: float  # [-]
    guess_difference: float | None  # [s]
    car_digest: str
    course_signature: list[float]
    offset: list[float]  # [NUM_POINTS] evenly along the centre line [m]
    speed: list[float]  # [NUM_POINTS] [m/s]


def car_digest(car: Car) -> str:
    """A short hash of every parameter, to five digits."""
    leaves = [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(car)]
    text = ",".join(f"{value:.5g}" for value in np.concatenate(leaves))
    return hashlib.sha1(text.encode()).hexdigest()[:12]


def course_signature(track: Track) -> np.ndarray:
    """Numbers [K] that a change of any stretch of a circuit changes."""
    nodes = np.asarray(track.nodes, np.float64)
    ground = np.asarray(track.ground, np.float64)
    eighths = len(nodes) // 8
    # Mean curvature, widths and walls, and surfaces, by eighths of the lap.
    course = np.concatenate([nodes[:, 8:13] * [1000.0, 1.0, 1.0, 1.0, 1.0], 10.0 * ground], axis=1)
    means = course.reshape(8, eighths, -1).mean(axis=1)
    bends = np.abs(course[:, 0]).reshape(8, eighths).mean(axis=1)
    return np.concatenate([[float(track.length), float(track.kerb)], bends, means.ravel()])


@cache
def read_table(path: Path = TABLE) -> tuple[Row, ...]:
    """The rows of a table; none where the file does not exist. Raises UserError for a bad line."""
    if not path.exists():
        return ()
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(Row(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}:{number}: not a row of limits ({error})") from error
    return tuple(rows)


def find_limit(car: Car, track: Track, path: Path = TABLE) -> Row | None:
    """The table's row for this very car on this very circuit, None without one."""
    rows = [row for row in read_table(path) if row.car_digest == car_digest(car)]
    if rows:
        wanted = course_signature(track)
        for row in rows:
            if np.allclose(row.course_signature, wanted, rtol=TOLERANCE, atol=TOLERANCE):
                return row
    return None


def cheats(lap_times: Sequence[float], row: Row | None) -> str:
    """One loud line where a lap was faster than the limit, else nothing."""
    if row is None or not lap_times or min(lap_times) >= row.lap_time:
        return ""
    return (
        f"FASTER THAN THE LIMIT: a lap of {min(lap_times):.3f} s on {row.circuit} with {row.car},"
        f" where optimal control found {row.lap_time:.3f} s: the simulator is being cheated, or the"
        " limit is wrong"
    )
