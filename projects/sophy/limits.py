"""The fastest laps that `limit` found, as a committed table.

`limits.jsonl` has a row per car and circuit, appended by `projects.sophy.limit --table`. A row is
found by what it was computed for (`car_digest`, `course_signature`), not by name, so that a car or
circuit that has changed since has no limit rather than a wrong one. A variation of a car has its
limit estimated from the car's. Nothing here needs casadi.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core_rl.errors import UserError
from projects.sophy.car import NO_AID, Car
from projects.sophy.cars import load_car, load_cars
from projects.sophy.reference import (
    envelopes_by_road,
    lap_within,
    line_at_nodes,
)
from projects.sophy.track import NUM_NODES, Track

TABLE = Path(__file__).with_name("limits.jsonl")
NUM_POINTS = 200  # of a line in the table
CAREFUL_ONLY = "Careful_Lap_Only"  # the status of a limit that a slide might still beat
TOLERANCE = 3e-3  # of a signature: splines differ a little between machines
ONE_MESH_ERROR = 5e-3  # what a lap from one mesh may be wrong by (`docs/benchmarks.md`) [-]


class Row(NamedTuple):
    """One cell of the table."""

    circuit: str
    car: str
    compound: str
    surface: str
    lap_time: float  # [s]
    careful_lap_time: float  # with every wheel inside the lines and no slide [s]
    status: str
    mesh_error: float | None  # between two meshes, None where there was one [-]
    guess_difference: float | None  # [s]
    car_digest: str
    course_signature: list[float]
    offset: list[float]  # [NUM_POINTS] evenly along the centre line [m]
    speed: list[float]  # [NUM_POINTS] [m/s]

    @property
    def floor(self) -> float:
        """The lap time that no lap should be faster than [s], 0 where nothing is known."""
        if self.status == CAREFUL_ONLY:
            return 0.0
        error = ONE_MESH_ERROR if self.mesh_error is None else self.mesh_error
        return self.lap_time * (1.0 - error)


class Estimates(NamedTuple):
    lap_time: np.ndarray  # [K, T] minimum lap times [s]
    floor: np.ndarray  # [K, T] that no lap should be faster than, 0 but for the table's cars [s]


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


def existing_table(name: str) -> Path:
    """The table in the file `name`, the committed one where it is empty.

    Raises UserError where there is no such file.
    """
    if name and not Path(name).is_file():
        raise UserError(f"--limits={name}: there is no such file")
    return Path(name) if name else TABLE


def find_limit(car: Car, track: Track, path: Path = TABLE) -> Row | None:
    """The table's row for this very car on this very circuit, None without one.

    Driving aids do not count: they only take from what a driver may do.
    """
    no_aid = jnp.float32(NO_AID)
    digest = car_digest(dataclasses.replace(car, traction_control=no_aid, antilock=no_aid))
    rows = [row for row in read_table(path) if row.car_digest == digest]
    if rows:
        wanted = course_signature(track)
        for row in rows:
            if np.allclose(row.course_signature, wanted, rtol=TOLERANCE, atol=TOLERANCE):
                return row
    return None


def cheats(lap_times: Sequence[float], row: Row | None) -> str:
    """One loud line where a lap was faster than the limit, else nothing."""
    if row is None or not lap_times or min(lap_times) >= row.floor:
        return ""
    return faster_than(row.lap_time, min(lap_times), row.circuit, row.car)


def faster_than(limit: float, lap_time: float, circuit: str, car: str) -> str:
    """The line that says it; times in seconds."""
    return (
        f"FASTER THAN THE LIMIT: a lap of {lap_time:.3f} s on {circuit} with {car},"
        f" where optimal control found {limit:.3f} s: the simulator is being cheated, or the"
        " limit is wrong"
    )


def estimate_limits(
    names: Sequence[str], compounds: Sequence[str], stack: Track, path: Path = TABLE
) -> Estimates:
    """Minimum lap times of cars [K] on compounds, on circuits stacked as leaves [T, ...].

    Those of archetypes are the table's. That of a variation is its archetype's, times how much
    faster or slower the quasi-steady lap of the variation is than its archetype's, both on the
    archetype's fastest line. NaN where the archetype's is not in the table.
    """
    archetypes = [name.partition(":")[0] for name in names]
    bases = list(dict.fromkeys(zip(archetypes, compounds, strict=True)))
    row_of = np.array([bases.index(base) for base in zip(archetypes, compounds, strict=True)])
    cars = [load_cars([name], tyre) for name, tyre in [*zip(names, compounds, strict=True), *bases]]
    everyone = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *cars)
    within = jax.jit(
        jax.vmap(lambda within, track, line: lap_within(within, track, offset=line), (0, None, 0))
    )
    no_line = np.zeros(NUM_NODES)
    envelopes = envelopes_by_road(everyone)
    result = np.full((len(names), stack.length.shape[0]), np.nan)
    floor = np.zeros(result.shape)
    for index in range(stack.length.shape[0]):
        track = jax.tree.map(lambda leaf, at=index: leaf[at], stack)
        rows = [find_limit(load_car(*base), track, path) for base in bases]
        if not any(rows):
            continue
        lines = np.stack(
            [
                line_at_nodes(np.array(row.offset), float(track.length)) if row else no_line
                for row in rows
            ]
        ).astype(np.float32)
        times = within(envelopes(track), track, lines[[*row_of, *range(len(bases))]]).lap_time
        own, base = np.split(np.asarray(times, np.float64), [len(names)])
        known = np.array([row.lap_time if row else np.nan for row in rows])
        result[:, index] = (known / base)[row_of] * own
        proven = np.array([row.floor if row else 0.0 for row in rows])
        floor[:, index] = proven[row_of] * (np.array(names) == np.array(archetypes))
    return Estimates(result, floor)
