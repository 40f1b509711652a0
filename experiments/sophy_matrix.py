"""Drives every car of a list on every circuit of a list with one policy, all in one program.

    ./run python -m experiments.sophy_matrix --policy=DIR --cars=catalogue --circuits=asphalt

Each cell is one flying lap after a run-up of a fifth of the lap, at most 500 m, over the
quasi-steady reference of the archetype that the car is or varies, and over the minimum lap time
where the table of limits has it, or what it has for a variation's archetype (`estimate_limits`).
`OUT/cells.jsonl` gets the cells as they finish: the same command again drives only those that are
missing (another policy needs another directory), and measures all by today's table.
`OUT/matrix.png` shows the median ratio (to the limit where every cell has one) and the share of
clean laps by archetype and circuit. The exit status is 3 where a lap beat its limit.
"""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from core_rl import flags
from core_rl.env import State, named_obs
from core_rl.errors import UsageError
from core_rl.policy import Policy, load_policy
from core_rl.report import encode_png
from core_rl.tracking import JsonlSink, read_metrics
from experiments.sophy_evaluate import env_config_of
from projects.sophy.driving import CONTROL_STEP, DriveState
from projects.sophy.laps import SLACK
from projects.sophy.limits import (
    TABLE,
    Estimates,
    estimate_limits,
    existing_table,
    faster_than,
)
from projects.sophy.time_trial import TimeTrial

RUN_UP = 0.2, 500.0  # before the line: share of the lap, and at most [m]
START_SPEED = 0.6  # share of the reference speed
EXTRA = 30.0  # time beyond a slow lap [s]


@dataclasses.dataclass(frozen=True)
class Matrix:
    policy: str = ""  # directory of a policy bundle, such as WORKDIR/policy
    cars: str = "archetypes"  # cars and words for many, as the environment's --env.car
    circuits: str = "asphalt"  # circuits and words for many, as the environment's --env.circuit
    out: str = "runs/sophy_matrix"  # directory of the cells and the picture
    batch: int = 512  # cells driven at once
    limits: str = ""  # a table of limits, as limit --table=FILE writes; empty: the committed one
    json: bool = False  # print one JSON object

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")


class Driven(NamedTuple):
    """What came of cells [N]."""

    lap_time: Array  # of the first flying lap, 0 where none was completed [s]
    off_course_steps: Array  # of 0.1 s during that lap
    wall_contact_steps: Array


def make_batch_driver(env: TimeTrial, policy: Policy):
    """Builds `(params, circuit [N], car_index [N]) -> Driven`: until every lap is done or late."""

    def start(circuit: Array, car_index: Array) -> State:
        length = env.track_of(circuit).length
        s = length - jnp.minimum(RUN_UP[0] * length, RUN_UP[1])
        return env.start(circuit, car_index, s, jnp.zeros(()), jnp.float32(START_SPEED))

    def move(params: Any, state: State, driven: Driven, late: Array) -> tuple[State, Driven]:
        after = env.step(state, policy.apply(params, named_obs(state)))
        drive: DriveState = after.pipeline_state  # pyright: ignore[reportAssignmentType]
        before: DriveState = state.pipeline_state  # pyright: ignore[reportAssignmentType]
        # The step that ends the lap still belongs to it.
        counts = (before.laps_begun == 1) & (driven.lap_time == 0.0) & ~late
        return after, Driven(
            lap_time=jnp.where(counts, drive.lap_time, driven.lap_time),
            off_course_steps=driven.off_course_steps + (counts & (drive.off_course > 0.0)),
            wall_contact_steps=driven.wall_contact_steps + (counts & (drive.wall_contact > 0.0)),
        )

    @jax.jit
    def drive(params: Any, circuit: Array, car_index: Array) -> Driven:
        state = jax.vmap(start)(circuit, car_index)
        drives: DriveState = state.pipeline_state  # pyright: ignore[reportAssignmentType]
        lengths = jax.vmap(lambda index: env.track_of(index).length)(circuit)
        most = (SLACK * (1.0 + RUN_UP[0]) * lengths / drives.pace + EXTRA) / CONTROL_STEP
        zero = jnp.zeros(circuit.shape, jnp.int32)
        begin = Driven(jnp.zeros(circuit.shape), zero, zero)

        def goes_on(carry: tuple[State, Driven, Array]) -> Array:
            return jnp.any((carry[1].lap_time == 0.0) & (carry[2] < most))

        def advance(carry: tuple[State, Driven, Array]):
            state, driven, steps = carry
            late = steps >= most  # what others of the batch still need changes nothing
            state, driven = jax.vmap(move, (None, 0, 0, 0))(params, state, driven, late)
            return state, driven, steps + 1

        return jax.lax.while_loop(goes_on, advance, (state, begin, jnp.zeros((), jnp.int32)))[1]

    return drive


def digest_of(policy: str) -> str:
    """A short hash of the parameters in a bundle's directory."""
    return hashlib.sha1((Path(policy) / "params.npz").read_bytes()).hexdigest()[:12]


def read_cells(path: Path, policy: str) -> list[dict[str, Any]]:
    """Finished cells of an earlier run; a last line that was cut off is not there.

    Raises RecordError for another damaged line, and UsageError where the cells are another policy's
    than the one with the digest `policy`.
    """
    cells = read_metrics(path) if path.exists() else []
    if any(cell.get("policy") != policy for cell in cells):
        raise UsageError(f"--out: {path} holds another policy's cells; name another directory")
    return cells


class Yardsticks(NamedTuple):
    """What lap times are measured by, of cars [K] on circuits [T]."""

    reference: np.ndarray  # [K, T] quasi-steady laps of archetypes [s]
    limits: Estimates


def yardsticks(env: TimeTrial, table: Path = TABLE) -> Yardsticks:
    laps = jax.device_get(env.references)
    names, compounds = zip(*env.entrants, strict=True)
    limits = estimate_limits(names, compounds, env.tracks, table)
    return Yardsticks(laps.laps.lap_time[laps.row], limits)


def measured(cell: dict[str, Any], by: Yardsticks, circuit: int, car_index: int) -> dict[str, Any]:
    """A cell with its lap time over the yardsticks, and an alarm where it is below the limit."""
    lap_time, limits = cell["lap_time"], by.limits
    limit = float(limits.lap_time[car_index, circuit])
    ratio = {"limit": limit, "reference": float(by.reference[car_index, circuit])}
    alarm = ""
    if lap_time is not None and lap_time < limits.floor[car_index, circuit]:
        alarm = faster_than(limit, lap_time, cell["circuit"], cell["car"])
    return cell | {
        **{
            f"ratio_to_{name}": round(lap_time / value, 4)
            if lap_time is not None and value > 0.0
            else None
            for name, value in ratio.items()
        },
        "alarm": alarm,
    }


def drive_cells(
    env: TimeTrial,
    policy: Policy,
    digest: str,
    todo: list[tuple[int, int]],
    batch: int,
    by: Yardsticks,
) -> Iterator[dict[str, Any]]:
    """Drives pairs of circuit and car index; yields their rows, batch by batch."""
    driver = make_batch_driver(env, policy)
    # Laps of like length finish together.
    todo = sorted(todo, key=lambda cell: by.reference[cell[1], cell[0]])
    for first in range(0, len(todo), batch):
        cells = todo[first : first + batch]
        # One shape is one compilation: the last batch is filled up with its first cell.
        filled = np.array(cells + cells[:1] * (batch - len(cells)), np.int32)
        driven = jax.device_get(driver(policy.params, filled[:, 0], filled[:, 1]))
        for index, (circuit, car_index) in enumerate(cells):
            entrant = env.entrants[car_index]
            lap_time = float(driven.lap_time[index])
            done = lap_time > 0.0
            off = int(driven.off_course_steps[index])
            wall = int(driven.wall_contact_steps[index])
            cell = {
                "policy": digest,
                "car": entrant.car,
                "compound": entrant.compound,
                "circuit": env.circuits[circuit],
                "lap_time": round(lap_time, 3) if done else None,
                "off_course_steps": off,
                "wall_contact_steps": wall,
                "clean": done and off == 0 and wall == 0,
                "estimated": ":" in entrant.car,
            }
            yield measured(cell, by, circuit, car_index)


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and shares over all cells; those over the limit where it is known."""
    result: dict[str, Any] = {
        "cells": len(cells),
        "completed": sum(cell["lap_time"] is not None for cell in cells),
        "clean_share": float(np.mean([cell["clean"] for cell in cells])),
        "alarms": sum(bool(cell["alarm"]) for cell in cells),
    }
    for over in ("limit", "reference"):
        ratios = [value for cell in cells if (value := cell[f"ratio_to_{over}"]) is not None]
        result[f"median_ratio_to_{over}"] = float(np.median(ratios)) if ratios else None
    return result


def picture(cells: list[dict[str, Any]]) -> Figure:
    """Heat maps of the median ratio and of the share of clean laps: archetypes by circuits."""
    rows = list(dict.fromkeys(cell["car"].partition(":")[0] for cell in cells))
    columns = list(dict.fromkeys(cell["circuit"] for cell in cells))
    ratio = np.full((len(rows), len(columns)), np.nan)
    clean = np.full((len(rows), len(columns)), np.nan)
    over = (
        "reference"
        if any(one["ratio_to_limit"] is None and one["ratio_to_reference"] for one in cells)
        else "limit"
    )
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            here = [
                cell
                for cell in cells
                if cell["car"].partition(":")[0] == row and cell["circuit"] == column
            ]
            ratios = [value for cell in here if (value := cell[f"ratio_to_{over}"]) is not None]
            if ratios:
                ratio[i, j] = np.median(ratios)
            if here:
                clean[i, j] = 100.0 * np.mean([cell["clean"] for cell in here])
    size = (3.5 + 0.75 * len(columns), 2.6 + 0.9 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    above, below = figure.subplots(2, 1)
    shown = (
        (
            above,
            ratio,
            f"Median lap time over the {over}",
            "viridis_r",
            "{:.2f}",
        ),
        (below, clean, "Clean laps [%]", "RdYlGn", "{:.0f}"),
    )
    for axes, values, title, colours, form in shown:
        spread = {"vmin": 0.0, "vmax": 100.0} if axes is below else {}
        image = axes.imshow(values, cmap=colours, aspect="auto", **spread)
        axes.set_title(title)
        axes.set_xticks(
            range(len(columns)), [Path(name).stem for name in columns], rotation=40, ha="right"
        )
        axes.set_yticks(range(len(rows)), rows)
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                low, high = image.get_clim()
                dark = colours == "viridis_r" and value > low + 0.6 * (high - low)
                axes.text(
                    j,
                    i,
                    form.format(value),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
    return figure


def main(config: Matrix) -> int:
    if not config.policy:
        raise UsageError("--policy=DIR is missing: name the directory of a policy bundle")
    policy, table = load_policy(Path(config.policy)), existing_table(config.limits)
    env = TimeTrial(env_config_of(policy, config.circuits, config.cars))
    listed = env.entrants
    if len(listed) == 1 and ":" in listed[0].car:
        # Alone, it would be measured by its own reference instead of its archetype's.
        with_archetype = f"{config.cars},{listed[0].car.partition(':')[0]}"
        env = TimeTrial(env_config_of(policy, config.circuits, with_archetype))
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "cells.jsonl"
    wanted = {
        (name, *entrant): (circuit, car_index)
        for circuit, name in enumerate(env.circuits)
        for car_index, entrant in enumerate(env.entrants)
        if entrant in listed
    }
    digest = digest_of(config.policy)
    earlier, by = read_cells(path, digest), yardsticks(env, table)
    there = {(cell["circuit"], cell["car"], cell["compound"]): cell for cell in earlier}
    cells = [measured(cell, by, *wanted[key]) for key, cell in there.items() if key in wanted]
    for cell in cells:
        if cell["alarm"]:
            print(cell["alarm"], file=sys.stderr)
    todo = [indices for key, indices in wanted.items() if key not in there]
    began = time.monotonic()
    sink = JsonlSink(path)
    driven = drive_cells(env, policy, digest, todo, config.batch, by) if todo else ()
    for count, cell in enumerate(driven, start=1):
        sink.write(cell)
        cells.append(cell)
        if cell["alarm"]:
            print(cell["alarm"], file=sys.stderr)
        if count % config.batch == 0 or count == len(todo):
            took = time.monotonic() - began
            left = took / count * (len(todo) - count)
            print(
                f"{count} of {len(todo)} cells, {took:.0f} s, {left:.0f} s left, "
                f"{np.mean([one['clean'] for one in cells]):.0%} clean",
                file=sys.stderr,
            )
    sink.close()
    # In the order of the lists, however the cells finished.
    place = {key: number for number, key in enumerate(wanted)}
    cells.sort(key=lambda cell: place[cell["circuit"], cell["car"], cell["compound"]])
    result = {**summary(cells), "seconds": round(time.monotonic() - began, 1)}
    (out / "matrix.png").write_bytes(encode_png(picture(cells)))
    if config.json:
        print(json.dumps(result))
    else:
        print(", ".join(f"{name} {value}" for name, value in result.items()))
        print(f"{path}, {out / 'matrix.png'}")
    return 3 if result["alarms"] else 0


if __name__ == "__main__":
    flags.main(main, Matrix())
