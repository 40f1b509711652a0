"""The minimum lap time of a car on a circuit, by optimal control of the simulator's own vehicle.

    ./run python -m projects.sophy.limit --circuit=larkspur --car=gt3_fr --out=runs/limit

Direct collocation (Radau IIA, two points, order 3) in curvilinear coordinates, as for a Formula One
car in Perantoni and Limebeer 2014 and for varying grip in Christ, Wischnewski, Heilmeier and
Lohmann, Vehicle System Dynamics 59 (2021); the problem is differentiated by CasADi (Andersson et
al. 2019) and solved by IPOPT (Waechter and Biegler 2006).

States over the centre line's arc length: velocity, yaw rate, lateral offset, angle to the course,
how much faster than the car each wheel turns, the accelerations that the load transfer follows,
and the steering. Controls: the steering's rate and the pedal. Loads, tyres, engine, couplings and
air are the very functions of `car`, `tyre` and `drivetrain`. Only what jumps is smoothed: gears,
the couplings' friction, throttle into brake, and surfaces at the white line.

It bounds whoever drives the simulator, since the limit is allowed a little more: gears change
without a pause, into the gear that the gearbox takes when accelerating; the pedal acts at once; and
surfaces change some centimetres outside the line. What the rules allow it may do too: two wheels
beyond a white line, slides, but no touch of a wall. Before that a *careful* lap is found, with
every wheel inside the lines and no tyre far beyond its peak: the lap that a driver can follow.

IPOPT finds local optima. The lap is therefore solved from two first guesses, and on two meshes.
Needs casadi (the extra `limit`), which nothing else imports.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import casadi as ca
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from core_rl import flags
from core_rl.errors import UserError
from core_rl.report import encode_png
from projects.sophy import drivetrain as drivetrains
from projects.sophy import track as tracks
from projects.sophy import tyre as tyres
from projects.sophy.car import (
    LOAD_LAG,
    Car,
    axles,
    body_acceleration,
    fuelled,
    steady_load,
    wheel_travel,
)
from projects.sophy.cars import load_car
from projects.sophy.circuits import DEFAULT, load_circuit
from projects.sophy.drive import show_time
from projects.sophy.field import CAR_WORDS, CIRCUIT_WORDS, listed
from projects.sophy.first_guess import (
    NUM_CONTROLS,
    NUM_STATES,
    course_at,
    first_guess,
    gear_ratio,
    smooth_line,
)
from projects.sophy.follow import Line, follow
from projects.sophy.limits import (
    NUM_POINTS,
    Row,
    car_digest,
    course_signature,
    find_limit,
    read_table,
)
from projects.sophy.reward import KMH
from projects.sophy.track import NUM_NODES, Track
from projects.sophy.tyre import Ground

# The states' units in the solver, in the order of `first_guess`. The offset's is large because an
# offset costs little: where a step has to be shortened, it should not be.
SCALES = np.array([40.0, 4.0, 1.0, 40.0, 1.0, 1.0, 1.0, 1.0, 1.0, 10.0, 10.0, 0.1])
# Weights of the equations: a wheel's spin follows its torques within milliseconds.
EASE = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.02, 0.02, 0.02, 0.02, 0.3, 0.3, 1.0])
POINTS = np.array([1.0 / 3.0, 1.0])  # of Radau IIA
WEIGHTS = np.array([0.75, 0.25])
# Slope at the two points of the quadratic through the interval's start and both points.
SLOPES = np.array([[-2.0, 1.5, 0.5], [2.0, -4.5, 2.5]])

LOCK_SPEED = 6.0  # difference of wheel speeds that a coupling takes for its torque [rad/s]
LOCK_TORQUE = 300.0  # drive torque below which a coupling hardly feels it [N m]
PEDAL_BAND = 0.03  # of the pedal, where throttle passes into brake [-]
EDGE = 0.05  # distance over which surfaces change, beginning at the white line [m]
CAREFUL_SLIP = 0.9  # of a careful lap's tyres, in slips at the peak [-]
MAX_SPIN = 20.0  # [m/s]
MAX_ANGLE = 1.2  # to the course [rad]
LOWEST_SPEED = 2.0  # [m/s]
VARIATION_COST = 1e-3  # of the squared change of a control between intervals [s]
STEERING_COST = 2e-4  # of the squared steering rate over its limit, per interval [s]

COARSE, FINE = 0.2, 0.1  # intervals of the two meshes [s]
MAX_ITERATIONS = 500
SOLVED = ("Solve_Succeeded", "Solved_To_Acceptable_Level")

Report = Callable[[str, int, float], None]  # stage, iteration, objective [s]


class LimitError(UserError):
    """A lap that cannot be computed; the message is one line."""


class Symbols:
    """CasADi's functions by numpy's names, as the vehicle's functions call them."""

    sqrt, tan, cos, sin, tanh, arctan = ca.sqrt, ca.tan, ca.cos, ca.sin, ca.tanh, ca.atan
    maximum, minimum, abs, sign, sum = ca.fmax, ca.fmin, ca.fabs, ca.sign, ca.sum1

    @staticmethod
    def clip(value: Any, low: float, high: float) -> Any:
        return ca.fmin(ca.fmax(value, low), high)


class SmoothSymbols(Symbols):
    """The same where a torque changes its sign."""

    @staticmethod
    def abs(value: Any) -> Any:
        return ca.sqrt(value * value + LOCK_TORQUE * LOCK_TORQUE)


@dataclasses.dataclass(frozen=True)
class Limit:
    """The fastest lap that was found; arrays at the S ends of the mesh's intervals,
    beginning at the line."""

    lap_time: float  # [s]
    status: str  # IPOPT's word for it
    mesh_error: float  # change of the lap time between the two meshes, of itself [-]
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


class Solution(NamedTuple):
    """What a solve ends with."""

    lap_time: float
    status: str
    iterations: int
    edges: np.ndarray  # [N + 1] [m]
    states: np.ndarray  # [2, N, 12] at the two points of each interval
    controls: np.ndarray  # [N, 2]


def dynamics(car: Any, ground: Ground, z: Any, u: Any) -> tuple[list[Any], Any]:
    """Time derivatives of all states but offset and angle, in their order, and the squared slips of
    the tyres [4] in slips at the peak.

    `car` holds numpy arrays; `ground` [4], states `z` [12] and controls `u` [2] are symbols.
    """
    xp = Symbols
    forward, left, yaw_rate = z[0], z[1], z[2]
    spin, pull, push, steering = z[5:9], z[9], z[10], z[11]
    steering_rate, pedal = u[0], u[1]
    size = ca.sqrt(pedal * pedal + PEDAL_BAND * PEDAL_BAND)
    throttle, brake = 0.5 * (size + pedal), 0.5 * (size - pedal)

    radius = car.wheel_radius
    wheel_speed = (forward + spin) / radius
    load = steady_load(car, forward, (pull, push), xp)  # pyright: ignore[reportArgumentType]
    along, across, cosine, sine = wheel_travel(car, forward, left, yaw_rate, steering, xp)
    scale = tyres.slip_scale(along, xp)
    peak = tyres.peak(car.tyre, load, ground, xp)
    slip, tangent = (forward + spin - along) / scale, -across / scale
    contact = tyres.contact(peak, slip, tangent, xp)
    ahead, aside, moment = body_acceleration(
        car, forward, left, contact.force_x, contact.force_y, cosine, sine, xp
    )

    engine, share = car.drivetrain, np.asarray(drivetrains.wheel_share(car.drivetrain))
    ratio = gear_ratio(car, ca.sum1(share * along / radius), xp)
    slipping = engine.idle + throttle * (engine.launch - engine.idle)
    turning = ca.fmax(ratio * ca.sum1(share * wheel_speed), slipping)
    torque = drivetrains.engine_torque(engine, turning, throttle, xp) * ratio * engine.efficiency
    bias = axles(car.brake_bias, 1.0 - car.brake_bias)
    braking = 0.5 * brake * car.brake_torque * bias + ground.rolling * radius * load
    wheels = share * torque - radius * contact.force_x - braking
    for index, sides in enumerate(drivetrains.COUPLED):
        if engine.lock_preload[index] or engine.lock_ramp[index]:
            bound = drivetrains.lock_torque(engine, index, torque, SmoothSymbols)
            wheels -= sides * (bound * ca.tanh(ca.sum1(sides * wheel_speed) / LOCK_SPEED))
    # Wheels and engine turn together, see `drivetrain.turn_wheels`.
    weighted = share / car.wheel_inertia
    inertia = engine.inertia * ratio * ratio
    carried = inertia / (1.0 + inertia * float(np.sum(share * weighted)))
    turned = wheels / car.wheel_inertia - weighted * (carried * ca.sum1(weighted * wheels))

    gain = ahead + yaw_rate * left
    slips = (slip / peak.ratio) ** 2 + (tangent / peak.angle) ** 2
    rates = [
        gain,
        aside - yaw_rate * forward,
        moment / car.yaw_inertia,
        radius * turned - gain,
        (ahead - pull) / LOAD_LAG,
        (aside - push) / LOAD_LAG,
        steering_rate,
    ]
    return rates, slips


def _ground(course: Any, offset: Any, free: bool) -> Ground:
    """The ground under wheels at lateral offsets [4]; `course` [21] as `Course`, flattened."""
    road, kerb, verge = course[6:11], course[11:16], course[16:21]
    if not free:
        return Ground(*(road[index] for index in range(5)))  # pyright: ignore[reportArgumentType]
    beyond = ca.fmax(offset - course[0], -course[1] - offset)

    def past(edge: Any) -> Any:
        return 0.5 + 0.5 * ca.tanh((beyond - edge - EDGE) / (0.5 * EDGE))

    # Without a kerb, its place has the verge's numbers already.
    on_kerb, on_verge = past(0.0), past(course[5])
    return Ground(
        *(
            road[index]
            + (kerb[index] - road[index]) * on_kerb
            + (verge[index] - kerb[index]) * on_verge
            for index in range(5)
        )
    )


def make_point(car: Any, free: bool) -> ca.Function:
    """`(state [12] in units of SCALES, controls [2], course [21])` -> slopes over arc length [12],
    path constraints [8] [m] that must not be positive, and dt/ds [s/m]."""
    scaled, u, course = ca.SX.sym("z", 12), ca.SX.sym("u", 2), ca.SX.sym("course", 21)
    z = scaled * SCALES
    forward, left, yaw_rate, offset, angle = (z[index] for index in range(5))
    cosine, sine = ca.cos(angle), ca.sin(angle)
    place = offset + car.wheel_x * sine + car.wheel_y * cosine
    rates, slips = dynamics(car, _ground(course, place, free), z, u)
    curvature = course[4]
    pace = (1.0 - offset * curvature) / (forward * cosine - left * sine)
    across = forward * sine + left * cosine
    turning = yaw_rate - curvature / pace
    slopes = ca.vertcat(*rates[:3], across, turning, *rates[3:]) * pace

    # The wheels of the far side stay inside; or those of the near side too.
    side = -1.0 if free else 1.0
    allowed = offset + car.wheel_x * sine + side * car.wheel_y * cosine
    middle, reach = 0.5 * (car.wheel_x[0] + car.wheel_x[3]), 0.5 * car.length
    corner = offset + (middle + reach * np.array([1.0, 1.0, -1.0, -1.0])) * sine
    corner += 0.5 * car.width * np.array([1.0, -1.0, 1.0, -1.0]) * cosine
    near = [allowed[0] - course[0], allowed[2] - course[0]]
    near += [-course[1] - allowed[1], -course[1] - allowed[3]]
    walls = [corner[0] - course[2], corner[2] - course[2]]
    walls += [-course[3] - corner[1], -course[3] - corner[3]]
    limits = [*near, *walls]
    if not free:
        limits.append(slips - CAREFUL_SLIP**2)
    return ca.Function("point", [scaled, u, course], [slopes / SCALES, ca.vertcat(*limits), pace])


class _Watch(ca.Callback):
    """Tells a `Report` of every iteration."""

    def __init__(self, stage: str, sizes: tuple[int, int], report: Report):
        ca.Callback.__init__(self)
        self.stage, self.sizes, self.report, self.iteration = stage, sizes, report, 0
        self.construct("watch", {})

    def get_n_in(self):
        return ca.nlpsol_n_out()

    def get_n_out(self):
        return 1

    def get_sparsity_in(self, i):
        name = ca.nlpsol_out(i)
        rows = {"f": 1, "x": self.sizes[0], "lam_x": self.sizes[0]}
        rows |= {"g": self.sizes[1], "lam_g": self.sizes[1]}
        return ca.Sparsity.dense(rows.get(name, 0), 1) if name in rows else ca.Sparsity(0, 0)

    def eval(self, arg):
        self.report(self.stage, self.iteration, float(arg[1]))
        self.iteration += 1
        return [0]


def solve(
    car: Car,
    track: Track,
    edges: np.ndarray,
    states: np.ndarray,
    controls: np.ndarray,
    *,
    stage: str,
    free: bool = False,
    warm: bool = False,
    report: Report | None = None,
) -> Solution:
    """One collocation problem.

    Args:
      car: with numpy leaves.
      edges: [N + 1] ends of the intervals [m].
      states: [2, N, 12] first guess at the intervals' two points.
      controls: [N, 2] first guess.
      free: whether two wheels may.
      warm: whether the first guess is nearly the solution.
    """
    num, steps = len(edges) - 1, np.diff(edges)
    courses = [
        np.column_stack([np.column_stack(course[:-1]), course.ground]).T
        for course in (course_at(track, edges[:-1] + point * steps) for point in POINTS)
    ]
    units = np.array([float(car.steering_rate), 1.0])
    point = make_point(car, free).map(num)
    z = [ca.MX.sym(f"z{index}", NUM_STATES, num) for index in range(2)]
    u = ca.MX.sym("u", NUM_CONTROLS, num)
    # A lap ends as it begins.
    start = ca.horzcat(z[1][:, -1], z[1][:, :-1])
    lengths, ease = ca.DM(steps).T, ca.DM(EASE)
    defects, limits, duration = [], [], 0.0
    for index in range(2):
        slopes, limit, pace = point(z[index], u * units, courses[index])
        a, b, c = SLOPES[index]
        gained = a * start + b * z[0] + c * z[1]
        defects.append(
            ca.repmat(ease, 1, num) * (gained - ca.repmat(lengths, NUM_STATES, 1) * slopes)
        )
        limits.append(limit)
        duration += WEIGHTS[index] * ca.dot(lengths, pace)
    before = ca.horzcat(u[:, -1], u[:, :-1])
    regular = VARIATION_COST * ca.sumsqr(u - before)
    regular += STEERING_COST * ca.sumsqr(u[0, :])

    x = ca.veccat(*z, u)
    g = ca.veccat(*defects, *limits)
    low, high = np.full(NUM_STATES, -np.inf), np.full(NUM_STATES, np.inf)
    low[0] = LOWEST_SPEED
    low[4], high[4] = -MAX_ANGLE, MAX_ANGLE
    low[5:9], high[5:9] = -MAX_SPIN, MAX_SPIN
    low[11], high[11] = -car.steering_limit, car.steering_limit
    ones = np.ones(NUM_CONTROLS * num)
    low = np.concatenate([np.tile(low / SCALES, 2 * num), -ones])
    high = np.concatenate([np.tile(high / SCALES, 2 * num), ones])
    guess = np.concatenate([(states / SCALES).ravel(), (controls / units).ravel()])
    num_defects = 2 * NUM_STATES * num
    # Bounds that are reached exactly stop an interior point from starting there.
    inward = 1e-3
    guess = np.clip(guess, low + inward, high - inward)

    ipopt = {
        "linear_solver": "mumps",
        "max_iter": MAX_ITERATIONS,
        "tol": 1e-5,
        # Torque tables and loads have kinks, between whose sides a solution may jump for ever.
        "acceptable_tol": 0.05,
        "acceptable_iter": 5,
        "acceptable_constr_viol_tol": 5e-4,
        "acceptable_obj_change_tol": 1e-6,
        "nlp_scaling_method": "none",
        "print_level": 0,
        "sb": "yes",
    }
    if warm:
        ipopt |= {"mu_init": 1e-4, "bound_push": 1e-4, "bound_frac": 1e-4}
    options: dict[str, Any] = {f"ipopt.{name}": value for name, value in ipopt.items()}
    options["print_time"] = False
    if report is not None:
        watch = _Watch(stage, (x.numel(), g.numel()), report)
        options["iteration_callback"] = watch
    solver = ca.nlpsol("lap", "ipopt", {"x": x, "f": duration + regular, "g": g}, options)
    result = solver(
        x0=guess,
        lbx=low,
        ubx=high,
        lbg=np.concatenate([np.zeros(num_defects), np.full(g.numel() - num_defects, -np.inf)]),
        ubg=np.zeros(g.numel()),
    )
    stats = solver.stats()
    values = np.asarray(result["x"]).ravel()
    split = 2 * NUM_STATES * num
    return Solution(
        lap_time=float(ca.Function("duration", [x], [duration])(values)),
        status=stats["return_status"],
        iterations=int(stats["iter_count"]),
        edges=edges,
        states=values[:split].reshape(2, num, NUM_STATES) * SCALES,
        controls=values[split:].reshape(num, NUM_CONTROLS) * units,
    )


def mesh_of(length: float, s: np.ndarray, speed: np.ndarray, interval: float) -> np.ndarray:
    """Edges [N + 1] [m] of intervals that take about `interval` seconds each at a speed profile."""
    grid = np.linspace(0.0, length, NUM_NODES + 1)
    pace = 1.0 / np.interp(0.5 * (grid[1:] + grid[:-1]), s, speed, period=length)
    clock = np.concatenate([[0.0], np.cumsum(np.diff(grid) * pace)])
    num = int(np.ceil(clock[-1] / interval))
    return np.interp(np.linspace(0.0, clock[-1], num + 1), clock, grid)


def _sampled(
    length: float, s: np.ndarray, states: np.ndarray, at: np.ndarray, controls: np.ndarray, edges
) -> tuple[np.ndarray, np.ndarray]:
    """States [2, N, 12] and controls [N, 2] for the mesh `edges`, by linear interpolation of states
    at `s` and controls at `at`."""
    steps = np.diff(edges)

    def read(where: np.ndarray, places: np.ndarray, values: np.ndarray) -> np.ndarray:
        order = np.argsort(places)
        columns = (
            np.interp(where, places[order], column[order], period=length) for column in values.T
        )
        return np.stack(list(columns), axis=-1)

    points = np.stack([edges[:-1] + point * steps for point in POINTS])
    return read(points, s, states), read(edges[:-1] + 0.5 * steps, at, controls)


def _resampled(length: float, solution: Solution, edges: np.ndarray):
    old = solution.edges
    steps = np.diff(old)
    s = np.concatenate([old[:-1] + point * steps for point in POINTS])
    states = np.concatenate(list(solution.states))
    return _sampled(length, s, states, old[:-1] + 0.5 * steps, solution.controls, edges)


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
    car: Car, track: Track, *, second_guess: bool = True, report: Report | None = None
) -> Limit:
    """The minimum lap time of `car` on `track`; raises LimitError for one that is not found.

    From the quasi-steady lap on a smoothed line, and (`second_guess`) from that on the centre line,
    on a coarse mesh; the better one on a fine mesh; from there with two wheels free to leave the
    road. What the last step does not better is kept.
    """
    car = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), fuelled(car, car.fuel_load))
    check_fits(car, track)
    length, began = float(track.length), time.monotonic()
    nodes = np.arange(NUM_NODES) * length / NUM_NODES
    iterations = 0

    def attempt(name: str, line: np.ndarray) -> Solution:
        states, controls = first_guess(car, track, line)
        edges = mesh_of(length, nodes, states[:, 0], COARSE)
        start = _sampled(length, nodes, states, nodes, controls, edges)
        return solve(car, track, edges, *start, stage=name, report=report)

    tried = [attempt("coarse mesh", smooth_line(track, car))]
    if second_guess or tried[0].status not in SOLVED:
        tried.append(attempt("second guess", np.zeros(200)))
    iterations += sum(solution.iterations for solution in tried)
    solved = sorted((one for one in tried if one.status in SOLVED), key=lambda one: one.lap_time)
    if not solved:
        raise LimitError(
            f"no lap found: IPOPT ended with {tried[0].status} after {tried[0].iterations}"
            " iterations, from both first guesses; is the circuit too tight for the car?"
        )
    coarse = solved[0]
    difference = abs(tried[0].lap_time - tried[1].lap_time) if len(solved) > 1 else np.nan

    edges = mesh_of(length, coarse.edges[1:], coarse.states[1, :, 0], FINE)
    inside = solve(
        car,
        track,
        edges,
        *_resampled(length, coarse, edges),
        stage="fine mesh",
        warm=True,
        report=report,
    )
    iterations += inside.iterations
    if inside.status not in SOLVED:
        raise LimitError(
            f"no lap found on the fine mesh: IPOPT ended with {inside.status} after"
            f" {inside.iterations} iterations; on the coarse one it took {coarse.lap_time:.3f} s"
        )
    best = solve(
        car,
        track,
        edges,
        inside.states,
        inside.controls,
        stage="free lap",
        warm=True,
        free=True,
        report=report,
    )
    iterations += best.iterations
    if best.status not in SOLVED or best.lap_time > inside.lap_time:
        best = inside
    line = _line(best)
    return Limit(
        lap_time=best.lap_time,
        status=best.status,
        mesh_error=abs(inside.lap_time - coarse.lap_time) / inside.lap_time,
        guess_difference=float(difference),
        careful_lap_time=inside.lap_time,
        iterations=iterations,
        seconds=time.monotonic() - began,
        s=line.s,
        states=line.states,
        pedal=line.pedal,
        careful=_line(inside),
    )


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

    difference = limit.guess_difference
    return Row(
        **names,
        lap_time=round(limit.lap_time, 4),
        careful_lap_time=round(limit.careful_lap_time, 4),
        status=limit.status,
        mesh_error=round(limit.mesh_error, 6),
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
    out: str = ""  # directory for the line as a table and the picture
    table: str = ""  # a file of rows to append to; cells that it holds already are left out
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
    table = Path(config.table) if config.table else None
    failed = 0
    for circuit, car_name in cells(config):
        car, track = load_car(car_name, config.compound), load_circuit(circuit)
        if config.surface:
            track = tracks.resurface(track, config.surface)
        title = " ".join(filter(None, [car_name, config.compound, "on", circuit, config.surface]))
        if table is not None and find_limit(car, track, table):
            continue
        try:
            limit = compute_limit(
                car, track, second_guess=config.second_guess, report=live_report(title)
            )
        except LimitError as error:
            # The cells that follow may well be solvable.
            print(f"\r{title}: {error}", file=sys.stderr)
            failed += 1
            continue
        finally:
            print("\r" + " " * 78 + "\r", end="", file=sys.stderr, flush=True)
        stem = Path(circuit).stem.replace(":", "_")
        names = {"circuit": stem, "car": car_name}
        names |= {"compound": config.compound, "surface": config.surface}
        if table is not None:
            with table.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row_of(limit, car, track, names)._asdict()) + "\n")
            read_table.cache_clear()
        followed = follow(car, track, limit.careful)
        summary = {
            **names,
            **{name: getattr(limit, name) for name in _SUMMARY},
            "followed_lap_time": None if np.isnan(followed.lap_time) else followed.lap_time,
            "followed_share": followed.share,
            "followed_off_line": followed.off_line,
        }
        if np.isnan(limit.guess_difference):
            summary["guess_difference"] = None
        if config.out:
            out = Path(config.out)
            out.mkdir(parents=True, exist_ok=True)
            base = f"{stem}-{car_name.replace(':', '_')}"
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
    difference, followed = summary["guess_difference"], summary["followed_lap_time"]
    lap_time = summary["lap_time"]
    parts = [
        f"{title}: {show_time(lap_time)}",
        f"{show_time(summary['careful_lap_time'])} driven carefully",
        f"meshes {summary['mesh_error']:.2%} apart",
        "one first guess failed" if difference is None else f"guesses {1000 * difference:.0f} ms",
        "not completed in the simulator"
        if followed is None
        else f"{followed / summary['careful_lap_time'] - 1.0:+.2%} in the simulator",
        f"{summary['iterations']} iterations, {summary['seconds']:.0f} s",
    ]
    return "; ".join(parts)


if __name__ == "__main__":
    flags.main(main, ComputeLimit())
