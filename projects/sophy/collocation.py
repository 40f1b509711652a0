"""The minimum-time problem of `limit`: the car in curvilinear coordinates, discretised and solved.

Direct collocation (Radau IIA, two points, order 3); the problem is differentiated by CasADi
(Andersson et al. 2019) and solved by IPOPT (Waechter and Biegler 2006). Loads, tyres, engine,
couplings and air are the very functions of `car`, `tyre` and `drivetrain`; what jumps or has kinks
is smoothed here.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import casadi as ca
import numpy as np

from projects.sophy import drivetrain as drivetrains
from projects.sophy import tyre as tyres
from projects.sophy.car import (
    LOAD_LAG,
    Car,
    axles,
    body_acceleration,
    body_middle,
    steady_load,
    wheel_travel,
)
from projects.sophy.first_guess import NUM_CONTROLS, NUM_STATES, course_at, gear_ratio
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
# Over what kinks are rounded, for Newton's method jumps between the sides of one for ever.
LOAD_BAND = 40.0  # of a wheel that lifts off [N]
ENGINE_BAND = 10.0  # of the rev limiter and of the clutch that begins to slip [rad/s]
TABLE_BAND = 0.1  # of the torque table, in its points [-]
PEDAL_BAND = 0.03  # of the pedal, where throttle passes into brake [-]
EDGE = 0.05  # distance over which surfaces change, beginning at the white line [m]
CAREFUL_SLIP = 0.9  # of a careful lap's tyres, in slips at the peak [-]
MAX_SPIN = 20.0  # [m/s]
MAX_ANGLE = 1.2  # to the course [rad]
LOWEST_SPEED = 2.0  # [m/s]
VARIATION_COST = 1e-3  # of the squared change of a control between intervals [s]
STEERING_COST = 2e-4  # of the squared steering rate over its limit, per interval [s]
# Added to the Hessian alone: what hardly matters to the lap time else wanders for many iterations.
PROXIMAL = 1e-4  # [s]

MAX_ITERATIONS = 600
SOLVED = ("Solve_Succeeded", "Solved_To_Acceptable_Level")

Report = Callable[[str, int, float], None]  # stage, iteration, objective [s]


class Symbols:
    """CasADi's functions by numpy's names, as the vehicle's functions call them."""

    sqrt, tan, cos, sin, tanh, arctan = ca.sqrt, ca.tan, ca.cos, ca.sin, ca.tanh, ca.atan
    maximum, minimum, abs, sign, sum = ca.fmax, ca.fmin, ca.fabs, ca.sign, ca.sum1

    @staticmethod
    def clip(value: Any, low: float, high: float) -> Any:
        return ca.fmin(ca.fmax(value, low), high)


def rounded(band: float) -> Any:
    """The same with kinks rounded over about `band`, in the units of what is compared."""
    return SimpleNamespace(
        abs=lambda value: ca.sqrt(value * value + band * band),
        maximum=lambda value, other: _rounded_maximum(value, other, band),
        sum=ca.sum1,
    )


def _rounded_maximum(value: Any, other: Any, band: float) -> Any:
    """The maximum of two, exact where they are `band` apart; two continuous derivatives."""
    apart = ca.fabs(value - other)
    near = ca.fmin(apart / band, 1.0)
    square = near * near
    lift = 0.375 - near + square * (0.75 - 0.125 * square)
    return 0.5 * (value + other + apart + band * lift)


def engine_torque(engine: Any, speed: Any, throttle: Any) -> Any:
    """`drivetrain.engine_torque` with rounded kinks: at the limiter's, where torque falls off most
    steeply, the fastest lap holds the engine wherever its wheels spin."""
    part = (speed - engine.idle) / (engine.rev_limit - engine.idle)
    ends = len(engine.torque) - 1
    bends = np.diff(np.pad(engine.torque, 1, "edge"), 2)
    distance = rounded(TABLE_BAND).abs(part * ends - np.arange(ends + 1))
    full = 0.5 * (engine.torque[0] + engine.torque[-1] + ca.sum1(bends * distance))
    limiting = rounded(ENGINE_BAND / drivetrains.LIMITER_BAND)
    limiter = limiting.maximum(1.0 + (engine.rev_limit - speed) / drivetrains.LIMITER_BAND, 0.0)
    limiter = 1.0 - limiting.maximum(1.0 - limiter, 0.0)
    return throttle * full * limiter - (1.0 - throttle) * engine.drag_torque * part


class Solution(NamedTuple):
    """What a solve ends with."""

    lap_time: float
    status: str
    iterations: int
    edges: np.ndarray  # [N + 1] [m]
    states: np.ndarray  # [2, N, 12] at the two points of each interval
    controls: np.ndarray  # [N, 2]
    # Multipliers, in the solver's units: of the defects [2, N, 12], of the path constraints
    # [2, N, 8 or 12] and of the controls' bounds [N, 2].
    multipliers: tuple[np.ndarray, np.ndarray, np.ndarray]


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
    load = steady_load(car, forward, (pull, push), rounded(LOAD_BAND))  # pyright: ignore[reportArgumentType]
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
    turning = rounded(ENGINE_BAND).maximum(ratio * ca.sum1(share * wheel_speed), slipping)
    torque = engine_torque(engine, turning, throttle) * ratio * engine.efficiency
    bias = axles(car.brake_bias, 1.0 - car.brake_bias)
    braking = 0.5 * brake * car.brake_torque * bias + ground.rolling * radius * load
    wheels = share * torque - radius * contact.force_x - braking
    for index, sides in enumerate(drivetrains.COUPLED):
        if engine.lock_preload[index] or engine.lock_ramp[index]:
            bound = drivetrains.lock_torque(engine, index, torque, rounded(LOCK_TORQUE))
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


def make_point(car: Any, free: bool) -> tuple[ca.SX, ca.SX, ca.SX, ca.SX]:
    """Symbols of a place, states in units of SCALES and controls [14], and of its course [21]; what
    follows from them: slopes over arc length [12] with path constraints that must not be positive,
    and dt/ds [s/m]."""
    place, course = ca.SX.sym("place", NUM_STATES + NUM_CONTROLS), ca.SX.sym("course", 21)
    z, u = place[:NUM_STATES] * SCALES, place[NUM_STATES:]
    forward, left, yaw_rate, offset, angle = (z[index] for index in range(5))
    cosine, sine = ca.cos(angle), ca.sin(angle)
    wheels = offset + car.wheel_x * sine + car.wheel_y * cosine
    rates, slips = dynamics(car, _ground(course, wheels, free), z, u)
    curvature = course[4]
    pace = (1.0 - offset * curvature) / (forward * cosine - left * sine)
    across = forward * sine + left * cosine
    turning = yaw_rate - curvature / pace
    slopes = ca.vertcat(*rates[:3], across, turning, *rates[3:]) * pace

    # The wheels of the far side stay inside; or those of the near side too.
    side = -1.0 if free else 1.0
    allowed = offset + car.wheel_x * sine + side * car.wheel_y * cosine
    middle, reach = body_middle(car), 0.5 * car.length
    corner = offset + (middle + reach * np.array([1.0, 1.0, -1.0, -1.0])) * sine
    corner += 0.5 * car.width * np.array([1.0, -1.0, 1.0, -1.0]) * cosine
    near = [allowed[0] - course[0], allowed[2] - course[0]]
    near += [-course[1] - allowed[1], -course[1] - allowed[3]]
    walls = [corner[0] - course[2], corner[2] - course[2]]
    walls += [-course[3] - corner[1], -course[3] - corner[3]]
    limits = [*near, *walls]
    if not free:
        limits.append(slips - CAREFUL_SLIP**2)
    return place, course, ca.vertcat(slopes / SCALES, *limits), pace


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


def make_problem(
    car: Any, free: bool, steps: np.ndarray, courses: np.ndarray, units: np.ndarray
) -> tuple[dict[str, ca.MX], dict[str, ca.Function], ca.Function]:
    """The problem for `ca.nlpsol`, its derivatives as options of that, and the lap time as a
    function of the variables.

    Everything nonlinear is a function of one point, so its derivatives are blocks, and constant
    matrices bring them to their rows and columns. CasADi's own take three times as long.

    Args:
      steps: [N] lengths of the intervals [m].
      courses: [21, 2N] at all first points, then at all second ones, see `make_point`.
      units: [2] of the controls in the solver.
    """
    num = len(steps)
    place, course, outputs, pace = make_point(car, free)
    count = outputs.numel()
    factors = ca.SX.sym("factors", count + 1)
    hessian, _ = ca.hessian(ca.dot(factors, ca.vertcat(outputs, pace)), place)
    jacobian, gradient = ca.jacobian(outputs, place), ca.densify(ca.gradient(pace, place))

    def at_all(inputs: list[ca.SX], outputs: list[ca.SX]) -> ca.Function:
        return ca.Function("at_all", inputs, outputs, {"cse": True}).map(2 * num)

    # States at all first points, at all second ones, then controls: linear in `x` and the outputs.
    x, y = ca.MX.sym("x", (2 * NUM_STATES + NUM_CONTROLS) * num), ca.MX.sym("y", count, 2 * num)
    z = ca.reshape(x[: 2 * NUM_STATES * num], NUM_STATES, 2 * num)
    u = ca.reshape(x[2 * NUM_STATES * num :], NUM_CONTROLS, num)
    first, second = z[:, :num], z[:, num:]
    # A lap ends as it begins.
    start = ca.horzcat(second[:, -1], second[:, :-1])
    gained = ca.horzcat(*(a * start + b * first + c * second for a, b, c in SLOPES))
    slopes = y[:NUM_STATES, :] @ ca.diag(np.tile(steps, 2))
    constraints = ca.veccat(ca.diag(EASE) @ (gained - slopes), y[NUM_STATES:, :])
    regular = VARIATION_COST * ca.sumsqr(u - ca.horzcat(u[:, -1], u[:, :-1]))
    regular += STEERING_COST * ca.sumsqr(u[0, :])
    places = ca.vertcat(z, ca.repmat(ca.diag(units) @ u, 1, 2))
    spread, linear, gather, cost = (
        ca.evalf(matrix)
        for matrix in (
            ca.jacobian(places, x),
            ca.jacobian(constraints, x),
            ca.jacobian(constraints, y),
            ca.hessian(regular, x)[0],
        )
    )
    clock = ca.DM(np.kron(WEIGHTS, steps)).T

    def blocks(values: ca.MX, block: ca.SX) -> ca.MX:
        return ca.sparsity_cast(values, ca.diagcat(*[block.sparsity()] * (2 * num)))

    p, lam_f, lam_g = ca.MX.sym("p", 0), ca.MX.sym("lam_f"), ca.MX.sym("lam_g", gather.size1())
    duration = ca.dot(clock, at_all([place, course], [pace])(places, courses))
    g = linear @ x + gather @ ca.vec(at_all([place, course], [outputs])(places, courses))
    gradients = at_all([place, course], [gradient])(places, courses)
    grad_f = spread.T @ ca.vec(gradients @ ca.diag(clock)) + cost @ x
    slopes = at_all([place, course], [jacobian])(places, courses)
    jac_g = linear + gather @ (blocks(slopes, jacobian) @ spread)
    weights = ca.vertcat(ca.reshape(gather.T @ lam_g, count, 2 * num), lam_f * clock)
    bends = at_all([place, course, factors], [hessian])(places, courses, weights)
    cost += PROXIMAL * ca.DM.eye(x.numel())
    hess_lag = ca.triu(spread.T @ blocks(bends, hessian) @ spread + lam_f * cost)
    functions = {"x": x, "f": duration + regular, "g": g}
    derivatives = {
        "grad_f": ca.Function("grad_f", [x, p], [functions["f"], grad_f]),
        "jac_g": ca.Function("jac_g", [x, p], [g, jac_g]),
        "hess_lag": ca.Function("hess_lag", [x, p, lam_f, lam_g], [hess_lag]),
    }
    return functions, derivatives, ca.Function("duration", [x], [duration])


def solve(
    car: Car,
    track: Track,
    edges: np.ndarray,
    states: np.ndarray,
    controls: np.ndarray,
    multipliers: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
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
      multipliers: of a lap that is the solution but for its mesh, as in `Solution`.
      free: whether two wheels may.
      warm: whether the first guess is nearly the solution.
    """
    num, steps = len(edges) - 1, np.diff(edges)
    courses = [
        np.column_stack([np.column_stack(course[:-1]), course.ground])
        for course in (course_at(track, edges[:-1] + point * steps) for point in POINTS)
    ]
    units = np.array([float(car.steering_rate), 1.0])
    functions, derivatives, duration = make_problem(car, free, steps, np.vstack(courses).T, units)
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
    num_limits = functions["g"].numel() - num_defects
    # Bounds that are reached exactly stop an interior point from starting there.
    inward = 1e-3
    guess = np.clip(guess, low + inward, high - inward)

    ipopt = {
        "linear_solver": "mumps",
        "mumps_pivot_order": 0,  # AMD, faster here than what MUMPS chooses
        "max_iter": MAX_ITERATIONS,
        "tol": 1e-5,
        # A lap that hardly changes any more, with its equations and constraints fulfilled.
        "acceptable_tol": 0.01,
        "acceptable_iter": 3,
        "acceptable_compl_inf_tol": 5e-6,
        "acceptable_constr_viol_tol": 1e-4,
        "acceptable_obj_change_tol": 1e-5,
        "nlp_scaling_method": "none",
        "print_level": 0,
        "sb": "yes",
    }
    if warm:
        ipopt |= {"mu_init": 1e-4, "bound_push": 1e-4, "bound_frac": 1e-4}
    multiplied = {}
    if multipliers is not None:
        pushes = ("bound_push", "bound_frac", "slack_bound_push", "slack_bound_frac")
        ipopt |= {f"warm_start_{name}": 1e-5 for name in (*pushes, "mult_bound_push")}
        ipopt |= {"warm_start_init_point": "yes", "mu_init": 1e-5}
        defects, limits, bounds = (part.ravel() for part in multipliers)
        multiplied["lam_g0"] = np.concatenate([defects, limits])
        multiplied["lam_x0"] = np.concatenate([np.zeros(num_defects), bounds])
    options: dict[str, Any] = {f"ipopt.{name}": value for name, value in ipopt.items()}
    options["print_time"] = False
    if report is not None:
        watch = _Watch(stage, (guess.size, num_defects + num_limits), report)
        options["iteration_callback"] = watch
    solver = ca.nlpsol("lap", "ipopt", functions, options | derivatives)
    result = solver(
        x0=guess,
        lbx=low,
        ubx=high,
        lbg=np.concatenate([np.zeros(num_defects), np.full(num_limits, -np.inf)]),
        ubg=np.zeros(num_defects + num_limits),
        **multiplied,
    )
    stats = solver.stats()
    if stats["return_status"] == "User_Requested_Stop":  # what becomes of Ctrl-C in a callback
        raise KeyboardInterrupt
    values = np.asarray(result["x"]).ravel()
    lam_g, lam_x = (np.asarray(result[name]).ravel() for name in ("lam_g", "lam_x"))
    return Solution(
        lap_time=float(duration(values)),
        status=stats["return_status"],
        iterations=int(stats["iter_count"]),
        edges=edges,
        states=values[:num_defects].reshape(2, num, NUM_STATES) * SCALES,
        controls=values[num_defects:].reshape(num, NUM_CONTROLS) * units,
        multipliers=(
            lam_g[:num_defects].reshape(2, num, NUM_STATES),
            lam_g[num_defects:].reshape(2, num, -1),
            lam_x[num_defects:].reshape(num, NUM_CONTROLS),
        ),
    )


def mesh_of(length: float, s: np.ndarray, speed: np.ndarray, interval: float) -> np.ndarray:
    """Edges [N + 1] [m] of intervals that take about `interval` seconds each at a speed profile."""
    grid = np.linspace(0.0, length, NUM_NODES + 1)
    pace = 1.0 / np.interp(0.5 * (grid[1:] + grid[:-1]), s, speed, period=length)
    clock = np.concatenate([[0.0], np.cumsum(np.diff(grid) * pace)])
    num = int(np.ceil(clock[-1] / interval))
    return np.interp(np.linspace(0.0, clock[-1], num + 1), clock, grid)


def sampled(
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


def refined(solution: Solution, edges: np.ndarray):
    """States, controls and multipliers of a solution on another mesh, by its own polynomials."""
    old, steps = solution.edges, np.diff(edges)

    def interval(where: np.ndarray) -> np.ndarray:
        return np.clip(np.searchsorted(old, where) - 1, 0, len(old) - 2)

    points = edges[:-1] + POINTS[:, None] * steps
    there, inside = interval(points), interval(edges[:-1] + 0.5 * steps)
    t = (points - old[there]) / np.diff(old)[there]
    nodes = np.append(0.0, POINTS)
    states = np.zeros((*t.shape, NUM_STATES))
    for i, values in enumerate((np.roll(solution.states[1], 1, axis=0), *solution.states)):
        others = np.delete(nodes, i)
        basis = np.prod((t[..., None] - others) / (nodes[i] - others), axis=-1)
        states += basis[..., None] * values[there]
    # The multiplier of what holds at every point is shared by the points of an interval.
    share = (steps / np.diff(old)[inside])[:, None]
    defects, limits, bounds = solution.multipliers
    multipliers = defects[:, inside], limits[:, inside] * share, bounds[inside] * share
    return states, solution.controls[inside], multipliers
