"""The minimum lap time of a car on a circuit, by optimal control of the simulator's own vehicle.

    ./run python -m projects.sophy.limit --circuit=larkspur --car=gt3_fr --out=runs/limit

Direct collocation in curvilinear coordinates (`collocation`), as for a Formula One car in Perantoni
and Limebeer 2014 and for varying grip in Christ, Wischnewski, Heilmeier and Lohmann, Vehicle System
Dynamics 59 (2021).

States over the centre line's arc length: velocity, yaw rate, lateral offset, angle to the course,
how much faster than the car each wheel turns, the accelerations that the load transfer follows,
and the steering. Controls: the steering's rate and the pedal. Loads, tyres, engine, couplings and
air are the very functions of `car`, `tyre` and `drivetrain`. Only what jumps is smoothed: gears,
the couplings' friction, throttle into brake, and surfaces at the white line; and kinks are rounded:
the rev limiter and the torque table, a slipping clutch, and a wheel that lifts off.

It should bound whoever drives the simulator, since the limit is allowed a little more: gears change
without a pause, into the gear that the gearbox takes when accelerating; the pedal acts at once; and
surfaces change some centimetres outside the line. What the rules allow it may do too: two wheels
beyond a white line, slides, but no touch of a wall. Before that a *careful* lap is found, with
every wheel inside the lines and no tyre far beyond its peak: the lap that a driver can follow.

IPOPT finds local optima, and controls are constant over an interval. The lap is therefore solved
from two first guesses and on two meshes, and a lap is called impossible only where it is faster by
more than the meshes differ, or by `limits.ONE_MESH_ERROR` where there was one.
Needs casadi (the extra `limit`), which nothing else imports.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from core_rl import flags
from core_rl.errors import UserError
from core_rl.report import encode_png
from projects.sophy import track as tracks
from projects.sophy.car import Car, fuelled
from projects.sophy.cars import load_car
from projects.sophy.circuits import DEFAULT, load_circuit
from projects.sophy.drive import show_time
from projects.sophy.field import CAR_WORDS, CIRCUIT_WORDS, listed
from projects.sophy.first_guess import course_at, first_guess
from projects.sophy.follow import Line, follow
from projects.sophy.limits import (
    CAREFUL_ONLY,
    NUM_POINTS,
    Row,
    car_digest,
    course_signature,
    find_limit,
    read_table,
)
from projects.sophy.racing_line import fastest_lines
from projects.sophy.reward import KMH
from projects.sophy.track import NUM_NODES, Track

try:
    from projects.sophy.collocation import (
        SOLVED,
        Report,
        Solution,
        mesh_of,
        refined,
        sampled,
        solve,
    )
except ModuleNotFoundError as error:
    if error.name != "casadi":
        raise
    sys.exit("projects.sophy.limit needs casadi; `./run` installs it")

COARSE, FINE = 0.2, 0.1  # intervals of the two meshes [s]


class LimitError(UserError):
    """A lap that cannot be computed; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """The fastest lap that was found; arrays at the S ends of the mesh's intervals,
    beginning at the line."""

    lap_time: float  # [s]
    status: str  # IPOPT's word for it, or CAREFUL_ONLY
    mesh_error: float  # change of the lap time between two meshes, of itself, NaN with one [-]
    guess_difference: float  # between two first guesses on the coarse mesh, NaN if one failed [s]
    careful_lap_time: float  # with every wheel inside the lines and no slide [s]
    iterations: int
    seconds: float  # of the solver
    s: np.ndarray  # [S] from 0 [m]
    states: np.ndarray  # [S, 12] see `first_guess`
    pedal: np.ndarray  # [S] throttle positive, brake negative [-]
    careful: Line  # the careful lap, to follow

    @property
    def speed(self) -> np.ndarray:
        return self.states[:, 0]

    @property
    def offset(self) -> np.ndarray:
        return self.states[:, 3]


def check_fits(car: Car, track: Track) -> None:
    """Raises LimitError where the road is too narrow or too tight for the car."""
    s = np.arange(NUM_NODES) * float(track.length) / NUM_NODES
    course = course_at(track, s)
    track_width = float(np.max(car.wheel_y) - np.min(car.wheel_y))
    room = course.width_left + course.width_right - track_width
    narrow = int(np.argmin(room))
    if room[narrow] <= 0.0:
        raise LimitError(
            f"the road is {room[narrow] + track_width:.2f} m wide {s[narrow]:.0f} m after the line,"
            f" the car's wheels are {track_width:.2f} m apart"
        )
    wheelbase = float(car.wheel_x[0] - car.wheel_x[3])
    smallest = wheelbase / np.tan(float(car.steering_limit))
    outer = np.where(course.curvature > 0.0, course.width_right, course.width_left)
    radius = 1.0 / np.maximum(np.abs(course.curvature), 1e-9) + outer
    tight = int(np.argmin(radius))
    if radius[tight] < smallest:
        raise LimitError(
            f"the road's outer radius is {radius[tight]:.1f} m {s[tight]:.0f} m after the line,"
            f" the car turns on no less than {smallest:.1f} m"
        )


def compute_limit(
    car: Car,
    track: Track,
    *,
    second_guess: bool = True,
    fine_mesh: bool = True,
    report: Report | None = None,
) -> Limit:
    """The minimum lap time of `car` on `track`; raises LimitError for one that is not found.

    From the quasi-steady lap on the line that makes it shortest, and (`second_guess`) from that on
    the centre line, on a coarse mesh; the better one from there with two wheels free to leave the
    road; both laps (`fine_mesh`) on a mesh twice as fine. Where no free lap is found that betters
    the careful one, the second guess is tried in any case; where that does not help, the careful
    lap is kept, and the status says so.
    """
    car = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), fuelled(car, car.fuel_load))
    check_fits(car, track)
    length, began = float(track.length), time.monotonic()
    nodes = np.arange(NUM_NODES) * length / NUM_NODES
    ran: list[Solution] = []

    def run(stage: str, *start: Any, free: bool = False, warm: bool = False) -> Solution:
        ran.append(solve(car, track, *start, stage=stage, free=free, warm=warm, report=report))
        return ran[-1]

    def attempt(stage: str, line: np.ndarray) -> Solution:
        states, controls = first_guess(car, track, line)
        edges = mesh_of(length, nodes, states[:, 0], COARSE)
        return run(stage, edges, *sampled(length, nodes, states, nodes, controls, edges))

    def refine(stage: str, start: Solution, free: bool) -> Solution:
        edges = mesh_of(length, start.edges[1:], start.states[1, :, 0], FINE)
        *values, multipliers = refined(start, edges)
        fine = run(stage, edges, *values, multipliers, free=free)
        return fine if fine.status in SOLVED else run(stage, edges, *values, free=free, warm=True)

    def finish(coarse: Solution) -> _Lap:
        inside = refine("fine mesh", coarse, False) if fine_mesh else coarse
        if inside.status not in SOLVED:
            return _Lap(coarse, inside, inside, inside.status)
        start = coarse.edges, coarse.states, coarse.controls
        free = run("free lap", *start, free=True, warm=True)
        if not fine_mesh:
            best = free
        elif free.status in SOLVED:
            best = refine("free lap, fine mesh", free, True)
        else:
            start = inside.edges, inside.states, inside.controls
            best = run("free lap, fine mesh", *start, free=True, warm=True)
        if best.status not in SOLVED or best.lap_time > inside.lap_time:
            return _Lap(coarse, inside, inside, CAREFUL_ONLY)
        return _Lap(coarse, inside, best, best.status)

    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), car)
    half_track = float(np.max(np.abs(car.wheel_y)))
    line = fastest_lines(tracks.stack_tracks([track]), single, half_track)[0]
    tried = [attempt("coarse mesh", np.asarray(line, np.float64))]
    if second_guess or tried[0].status not in SOLVED:
        tried.append(attempt("second guess", np.zeros(200)))
    solved = sorted((one for one in tried if one.status in SOLVED), key=lambda one: one.lap_time)
    if not solved:
        raise LimitError(
            f"no lap found: IPOPT ended with {tried[0].status} after {tried[0].iterations}"
            " iterations, from both first guesses; is the circuit too tight for the car?"
        )
    laps = [finish(solved[0])]
    if laps[0].status not in SOLVED:
        if len(tried) == 1:
            tried.append(attempt("second guess", np.zeros(200)))
            solved += [tried[1]] if tried[1].status in SOLVED else []
        laps += [finish(other) for other in solved[1:]]
    difference = abs(tried[0].lap_time - tried[1].lap_time) if len(solved) > 1 else np.nan
    found = [lap for lap in laps if lap.status in (*SOLVED, CAREFUL_ONLY)]
    if not found:
        failed = laps[0]
        raise LimitError(
            f"no lap found on the fine mesh: IPOPT ended with {failed.status} after"
            f" {failed.inside.iterations} iterations; on the coarse one it took"
            f" {failed.coarse.lap_time:.3f} s"
        )
    lap = min(found, key=lambda lap: lap.best.lap_time)
    line = _line(lap.best)
    return Limit(
        lap_time=lap.best.lap_time,
        status=lap.status,
        mesh_error=abs(lap.inside.lap_time - lap.coarse.lap_time) / lap.inside.lap_time
        if fine_mesh
        else np.nan,
        guess_difference=float(difference),
        careful_lap_time=lap.inside.lap_time,
        iterations=sum(solution.iterations for solution in ran),
        seconds=time.monotonic() - began,
        s=line.s,
        states=line.states,
        pedal=line.pedal,
        careful=_line(lap.inside),
    )


class _Lap(NamedTuple):
    """What came of one coarse lap: it and its refinement inside the lines, and the best lap."""

    coarse: Solution
    inside: Solution
    best: Solution
    status: str


def _line(solution: Solution) -> Line:
    """The lap at the ends of the intervals, from the line on."""
    edges, length = solution.edges, solution.edges[-1]
    # A control holds for an interval, everything else at its end.
    middles = 0.5 * (edges[1:] + edges[:-1])
    pedal = np.interp(edges[1:], middles, solution.controls[:, 1], period=length)
    s = np.append(0.0, edges[1:-1])
    return Line(s, np.roll(solution.states[1], 1, axis=0), np.roll(pedal, 1))


def row_of(limit: Limit, car: Car, track: Track, names: dict[str, str]) -> Row:
    """The lap as a row of the committed table."""
    length = float(track.length)
    at = np.arange(NUM_POINTS) * length / NUM_POINTS

    def sampled(values: np.ndarray) -> list[float]:
        return [round(float(value), 3) for value in np.interp(at, limit.s, values, period=length)]

    difference, mesh_error = limit.guess_difference, limit.mesh_error
    return Row(
        **names,
        lap_time=round(limit.lap_time, 4),
        careful_lap_time=round(limit.careful_lap_time, 4),
        status=limit.status,
        mesh_error=None if np.isnan(mesh_error) else round(mesh_error, 6),
        guess_difference=None if np.isnan(difference) else round(difference, 4),
        car_digest=car_digest(car),
        course_signature=[round(float(value), 3) for value in course_signature(track)],
        offset=sampled(limit.offset),
        speed=sampled(limit.speed),
    )


# What the columns of a line's file are called.
COLUMNS = (
    "s forward left yaw_rate offset angle spin_fl spin_fr spin_rl spin_rr pull push steering pedal"
).split()


def picture(limit: Limit, track: Track, title: str) -> Figure:
    """The line on the circuit, coloured by speed, and speed and pedal over the lap."""
    s = np.append(limit.s, float(track.length))
    point = jax.device_get(jax.vmap(tracks.at, (None, 0))(track, jnp.asarray(s, jnp.float32)))
    left = np.stack([-point.tangent[:, 1], point.tangent[:, 0]], axis=1)
    offset, speed, pedal = (
        np.append(values, values[0]) for values in (limit.offset, limit.speed, limit.pedal)
    )

    def beside(offset: np.ndarray) -> np.ndarray:
        return point.position + offset[:, None] * left

    figure = Figure(figsize=(11, 10), layout="constrained")
    course, above, below = figure.subplots(3, 1, height_ratios=(5, 2, 1))
    for edge in (point.width_left, -point.width_right):
        course.plot(*beside(np.asarray(edge)).T, color="0.6", linewidth=0.8)
    line = beside(offset)
    pieces = np.stack([line[:-1], line[1:]], axis=1)
    coloured = LineCollection(list(pieces), array=speed[1:] * KMH, cmap="viridis")
    coloured.set_linewidth(2.0)
    course.add_collection(coloured)
    course.set_aspect("equal")
    course.axis("off")
    course.set_title(f"{title}: {show_time(limit.lap_time)}")
    figure.colorbar(coloured, ax=course, label="km/h", shrink=0.7)
    above.plot(s, speed * KMH)
    above.set_ylabel("km/h")
    below.plot(s, pedal)
    below.set_ylabel("pedal")
    below.set_xlabel("m from the line")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.set_xlim(0.0, s[-1])
    return figure


@dataclasses.dataclass(frozen=True)
class ComputeLimit:
    circuit: str = DEFAULT  # circuits and words for many, as the environment's --env.circuit
    car: str = "gt3_fr"  # cars and words for many, as the environment's --env.car
    compound: str = ""  # tyres; empty: the car's own
    surface: str = ""  # another surface for the whole road, such as wet; empty: the circuit's own
    second_guess: bool = True  # also solve from the centre line, and keep the better lap
    fine_mesh: bool = True  # solve again on a mesh twice as fine
    follow: bool = False  # also learn to drive the careful lap in the simulator, in minutes
    out: str = ""  # directory for the line as a table and the picture
    table: str = ""  # a file of rows to append to; cells that it holds already are only told
    json: bool = False  # print one JSON object per cell


def cells(config: ComputeLimit) -> list[tuple[str, str]]:
    """Pairs of circuit and car that are asked for."""
    circuits, cars = listed(config.circuit, CIRCUIT_WORDS), listed(config.car, CAR_WORDS)
    return [(circuit, car) for circuit in circuits for car in cars]


def live_report(name: str) -> Report:
    """A line on stderr that shows how far a solve is."""
    began, shown = time.monotonic(), [0.0]

    def report(stage: str, iteration: int, objective: float) -> None:
        now = time.monotonic()
        if now - shown[0] > 0.5:
            shown[0] = now
            text = f"{name}: {stage}, iteration {iteration}, {objective:.3f} s, {now - began:.0f} s"
            print(f"\r{text:<78}", end="", file=sys.stderr, flush=True)

    return report


def main(config: ComputeLimit) -> int:
    table, out = (Path(name) if name else None for name in (config.table, config.out))
    todo = []
    # All of it before the first solve, which takes minutes.
    for circuit, car_name in cells(config):
        car, track = load_car(car_name, config.compound), load_circuit(circuit)
        if config.surface:
            track = tracks.resurface(track, config.surface)
        todo.append((circuit, car_name, car, track))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    if table is not None:
        table.open("a").close()
    failed = 0
    for circuit, car_name, car, track in todo:
        title = " ".join(filter(None, [car_name, config.compound, "on", circuit, config.surface]))
        known = find_limit(car, track, table) if table is not None else None
        if known:
            told = f"{show_time(known.lap_time)} ({known.status}) is in {table} already"
            print(f"{title}: {told}", file=sys.stderr)
            continue
        try:
            limit = compute_limit(
                car,
                track,
                second_guess=config.second_guess,
                fine_mesh=config.fine_mesh,
                report=live_report(title),
            )
        except LimitError as error:
            # The cells that follow may well be solvable.
            print(f"\r{title}: {error}", file=sys.stderr)
            failed += 1
            continue
        finally:
            print("\r" + " " * 78 + "\r", end="", file=sys.stderr, flush=True)
        names = {"circuit": Path(circuit).stem.replace(":", "_"), "car": car_name}
        names |= {"compound": config.compound, "surface": config.surface}
        if table is not None:
            with table.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row_of(limit, car, track, names)._asdict()) + "\n")
            read_table.cache_clear()
        summary = {**names, **{name: getattr(limit, name) for name in _SUMMARY}}
        if config.follow:
            followed = follow(car, track, limit.careful)
            summary |= {
                "followed_lap_time": None if np.isnan(followed.lap_time) else followed.lap_time,
                "followed_off_line": followed.off_line,
                "followed_wheels_out": followed.wheels_out,
            }
        for name in ("guess_difference", "mesh_error"):
            if np.isnan(summary[name]):
                summary[name] = None
        if out is not None:
            base = "-".join(filter(None, names.values())).replace(":", "_")
            columns = np.column_stack([limit.s, limit.states, limit.pedal])
            header = ",".join(COLUMNS)
            np.savetxt(out / f"{base}.csv", columns, "%.5f", ",", header=header, comments="")
            (out / f"{base}.png").write_bytes(encode_png(picture(limit, track, title)))
            (out / f"{base}.json").write_text(json.dumps(summary, indent=1) + "\n")
        if config.json:
            print(json.dumps(summary), flush=True)
        else:
            print(describe(title, summary), flush=True)
    return 1 if failed else 0


_SUMMARY = "lap_time careful_lap_time status mesh_error guess_difference iterations seconds".split()


def describe(title: str, summary: dict[str, Any]) -> str:
    difference, mesh_error = summary["guess_difference"], summary["mesh_error"]
    lap_time = summary["lap_time"]
    parts = [
        f"{title}: {show_time(lap_time)}",
        f"{show_time(summary['careful_lap_time'])} driven carefully",
        "on one mesh" if mesh_error is None else f"meshes {mesh_error:.2%} apart",
        "from one first guess" if difference is None else f"guesses {1000 * difference:.0f} ms",
        f"{summary['iterations']} iterations, {summary['seconds']:.0f} s",
    ]
    if "followed_lap_time" in summary:
        followed = summary["followed_lap_time"]
        parts.append(
            "not completed in the simulator"
            if followed is None
            else f"{followed / summary['careful_lap_time'] - 1.0:+.2%} in the simulator"
        )
    return "; ".join(parts)


if __name__ == "__main__":
    flags.main(main, ComputeLimit())
