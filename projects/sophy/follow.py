"""Drives a given lap in the simulator: learns controls for it, run after run.

A lap that was computed for a smoother car than the simulator's cannot be driven by its controls:
gears change with a pause, the pedals lag, and at the limit of its grip a car is hardly stable. So a
run is repeated. After each, the simulator is linearised along what was driven, and a
linear-quadratic problem says how the controls of the next run change and how they react to its
being off what is planned (iterative LQR: Li and Todorov, ICINCO 2004). It begins at less than the
line's speed, and the last run, one drive from a flying start with those controls and that
reaction, is what counts.

Runs are compared at equal arc lengths, not times: a car that is late then brakes where it did
before. Errors have no part along the course, as in transverse linearisation (Banaszuk and Hauser,
Systems & Control Letters 26, 1995).
"""

import dataclasses
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from projects.sophy import car as cars
from projects.sophy import drivetrain as drivetrains
from projects.sophy import racing_line
from projects.sophy import track as tracks
from projects.sophy import tyre as tyres
from projects.sophy.car import Car, CarState, Command, steady_load, wheel_travel
from projects.sophy.cars import AID_SLIP
from projects.sophy.track import Track, TrackPoint
from projects.sophy.walls import Placement, corners, course_step, offset_of, place

TIME_STEP = 0.005  # of the simulator [s]
SUBSTEPS = 4  # of those that a control is held for
SPACING = 0.5  # of the line's points [m]
RUN_UP, RUN_OUT = 8.0, 2.0  # driven before and after the lap that counts [s]

# What a car has on the course, and changes of it that are small: offset [m], angle [rad], forward
# and left [m/s], yaw rate [rad/s], steering [rad], throttle, brake, each wheel's excess speed [m/s]
# and load [N].
SMALL = 0.05 * np.array([0.4, 0.05, 0.7, 1.0, 0.3, 0.03, 0.3, 0.3, *[0.3] * 4, *[500.0] * 4])
NUM_COORDINATES = len(SMALL)
# Controls: change of the steering [rad] and pedal; changes of them that cost one.
EFFORTS = np.array([0.01, 0.3])
# Errors that cost one: offset [m], angle [rad], forward and left [m/s], yaw rate [rad/s].
ERRORS = np.array([0.6, 0.1, 0.5, 3.0, 0.6])
MARGIN, MARGIN_ERROR = 0.1, 0.05  # a wheel nearer than this to a white line costs [m]
MOST_SLIP, SLIP_ERROR = 1.0, 0.1  # a tyre beyond it costs, in slips at the peak [-]
MOST_ANGLE = 0.97  # of the front tyres, in slip angles at the peak; more steers less [-]

STEPS = np.array([1.0, 0.5, 0.25, 0.1, 0.03])  # parts of a change that are tried
FIRST_SHARES = 0.96, 0.8  # of the line's speed, the first that is not lost begins
SHARE_STEP, LAST_SHARE = 0.005, 1.01  # no lap has more; what is asked beyond it draws on
LEAST_DAMPING, MOST_DAMPING = 0.3, 100.0  # factor on what changes of the controls cost
MOST_RUNS = 60
LOST = 2.5, 0.35  # offset [m] and angle [rad] from the line that end a run


class Line(NamedTuple):
    """A lap at P points, numpy, with increasing arc length in [0, L)."""

    s: Any  # [P] [m]
    states: Any  # [P, 12] see `first_guess`
    pedal: Any  # [P] throttle positive, brake negative [-]


class Followed(NamedTuple):
    lap_time: float  # from line to line, NaN where none was completed [s]
    off_line: float  # largest distance from the line [m]
    wheels_out: int  # most wheels beyond a white line at once


class Run(NamedTuple):
    """A drive at K times, each a control's duration after the one before."""

    states: CarState  # leaves [K, ...]
    s: Array  # [K] [m]
    controls: Array  # [K, 2] change of the steering [rad] and pedal
    counts: Array  # [K] 1 until a little after the lap, then 0


def follow(car: Car, track: Track, line: Line) -> Followed:
    """The lap on `line` as fast as was learnt; with the aids on, since a wheel that locks or spins
    is beyond what a linear reaction corrects.
    """
    car = dataclasses.replace(
        car, traction_control=jnp.float32(AID_SLIP), antilock=jnp.float32(AID_SLIP)
    )
    table = _table(track, line)
    for first in FIRST_SHARES:
        shares = np.append(np.arange(first, LAST_SHARE - 1e-6, SHARE_STEP), LAST_SHARE)
        run = _learn(car, track, [_at_share(table, share) for share in shares])
        if run is not None:
            return _judge(car, track, line, run)
    return Followed(float("nan"), float("nan"), 0)


def _learn(car: Car, track: Track, targets: list[Array]) -> Run | None:
    """The last run, after targets [M, 13] one after the other; None where the first is lost."""
    run, cost, damping, stage = _planned(car, track, targets[0]), np.inf, 1.0, 0
    for _ in range(MOST_RUNS):
        runs, costs = _improve(car, track, targets[stage], run, damping)
        best = int(np.argmin(costs))
        gain = 1.0 - float(costs[best]) / cost
        if stage == 0 and cost == costs[best] == np.inf:
            return None
        # A gear that changes elsewhere costs something for the moment.
        if costs[best] < 1.2 * cost + 20.0:
            run, cost = jax.tree.map(itemgetter(best), runs), float(costs[best])
            damping = max(0.5 * damping, LEAST_DAMPING)
            settled = gain < (0.1 if stage < len(targets) - 1 else 1e-3)
        else:
            damping *= 4.0
            settled = damping > MOST_DAMPING
        if settled and stage == len(targets) - 1:
            break
        if settled:
            stage, cost, damping = stage + 1, np.inf, LEAST_DAMPING
    return run


def _table(track: Track, line: Line) -> Array:
    """States and pedal [M, 13] of the line, evenly spaced from 0."""
    length = float(track.length)
    at = np.arange(int(length / SPACING)) * (length / int(length / SPACING))
    columns = np.column_stack([line.states, line.pedal]).T
    values = [np.interp(at, line.s, column, period=length) for column in columns]
    return jnp.asarray(np.stack(values, 1), jnp.float32)


def _at_share(table: Array, share: float) -> Array:
    """The same line at another speed: accelerations go with its square."""
    return table * share ** jnp.array([1, 1, 1, 0, 0, 1, 1, 1, 1, 2, 2, 0, 0])


def _planned(car: Car, track: Track, table: Array) -> Run:
    """The target [M, 13] itself as if it had been driven."""
    length, num = float(track.length), len(table)
    curvature = jax.vmap(tracks.at, (None, 0))(track, jnp.arange(num) * length / num).curvature
    forward, left, _, offset, angle = np.asarray(table[:, :5], np.float64).T
    pace = (1.0 - offset * curvature) / (forward * np.cos(angle) - left * np.sin(angle))
    clock = np.concatenate([[0.0], np.cumsum(pace) * length / num])
    lap_time, hold = clock[-1], SUBSTEPS * TIME_STEP
    times = np.arange(-RUN_UP, lap_time + RUN_OUT, hold)
    s = np.interp(times % lap_time, clock, np.linspace(0.0, length, num + 1))
    s = jnp.asarray(s, jnp.float32)
    z = jax.vmap(racing_line.along, (None, None, 0))(table, track, s)
    states = jax.vmap(partial(_state_at, car, track))(s, z)
    ahead = jnp.concatenate([z[1:], z[-1:]])
    controls = jnp.stack([ahead[:, 11] - z[:, 11], ahead[:, 12]], axis=1)
    return Run(states, s, controls, jnp.ones(len(s)))


def _state_at(car: Car, track: Track, s: Array, z: Array) -> CarState:
    """The whole state of a car that has the states and pedal `z` [13] at `s`."""
    point = tracks.at(track, s)
    left = jnp.stack([-point.tangent[1], point.tangent[0]])
    heading = jnp.arctan2(point.tangent[1], point.tangent[0]) + z[4]
    start = cars.rolling_start(car, point.position + z[3] * left, heading, z[0])
    share = drivetrains.wheel_share(car.drivetrain)
    rolling = jnp.sum(share * z[0] / car.wheel_radius)
    return start.replace(  # pyright: ignore[reportAttributeAccessIssue]
        velocity=z[:2],
        yaw_rate=z[2],
        wheel_speed=(z[0] + z[5:9]) / car.wheel_radius,
        load=steady_load(cars.fuelled(car, car.fuel_load), z[0], z[9:11]),
        acceleration=z[9:11],
        steering=z[11],
        throttle=jnp.maximum(z[12], 0.0),
        brake=jnp.maximum(-z[12], 0.0),
        gear=drivetrains.starting_gear(car.drivetrain, rolling / 0.95),
    )


def _advance(
    car: Car, track: Track, state: CarState, s: Array, control: Array
) -> tuple[CarState, Array]:
    """State and arc length after a control [2] was held."""
    pedal = control[1]
    command = Command(state.steering + control[0], jnp.maximum(pedal, 0.0), jnp.maximum(-pedal, 0))

    def step(_, carry: tuple[CarState, Array]) -> tuple[CarState, Array]:
        state, s = carry
        point = tracks.at(track, s)
        placement = place(point, state)
        offset = offset_of(placement, car.wheel_x, car.wheel_y)
        s = s + course_step(point, placement, state.velocity, TIME_STEP)
        state = cars.step(car, state, command, tracks.surface_at(point, offset), TIME_STEP)
        return state, tracks.project(track, state.position, s)

    return jax.lax.fori_loop(0, SUBSTEPS, step, (state, s))


def _coordinates(car: Car, track: Track, state: CarState, s: Array) -> Array:
    """What a car at `s` has on the course [NUM_COORDINATES], in the order of `SMALL`."""
    placement = place(tracks.at(track, s), state)
    angle = jnp.arctan2(placement.sine, placement.cosine)
    motion = [*state.velocity, state.yaw_rate, state.steering, state.throttle, state.brake]
    spin = car.wheel_radius * state.wheel_speed - state.velocity[0]
    return jnp.concatenate([jnp.stack([placement.offset, angle, *motion]), spin, state.load])


def _moved(car: Car, track: Track, state: CarState, s: Array, change: Array) -> CarState:
    """The car with other coordinates at the same arc length."""
    x = _coordinates(car, track, state, s) + change
    point = tracks.at(track, s)
    left = jnp.stack([-point.tangent[1], point.tangent[0]])
    return state.replace(  # pyright: ignore[reportAttributeAccessIssue]
        position=point.position + x[0] * left,
        heading=jnp.arctan2(point.tangent[1], point.tangent[0]) + x[1],
        velocity=x[2:4],
        yaw_rate=x[4],
        steering=x[5],
        throttle=x[6],
        brake=x[7],
        wheel_speed=(x[8:12] + x[2]) / car.wheel_radius,
        load=x[12:16],
    )


def _residual(car: Car, track: Track, table: Array, state: CarState, s: Array) -> Array:
    """What is wrong with a car at `s` [13]: errors, wheels at the white lines, tyres that slide."""
    here = racing_line.along(table, track, s)
    error = _coordinates(car, track, state, s)[:5] - here[np.array([3, 4, 0, 1, 2])]
    point = tracks.at(track, s)
    beyond, _ = _beyond(car, point, place(point, state))
    planned = Placement(here[3], jnp.sin(here[4]), jnp.cos(here[4]))
    allowed = jnp.maximum(_beyond(car, point, planned)[0], 0.0) - MARGIN
    forward, left = state.velocity
    along, across, _, _ = wheel_travel(car, forward, left, state.yaw_rate, state.steering)
    scale = tyres.slip_scale(along)
    peak = tyres.peak(car.tyre, state.load, point.road)
    slip = (car.wheel_radius * state.wheel_speed - along) / (scale * peak.ratio)
    slide = jnp.hypot(slip, across / (scale * peak.angle))
    near = jnp.maximum(beyond - allowed, 0.0) / MARGIN_ERROR
    return jnp.concatenate([error / ERRORS, near, jnp.maximum(slide - MOST_SLIP, 0.0) / SLIP_ERROR])


def _beyond(car: Car, point: TrackPoint, placement: Placement) -> tuple[Array, Array]:
    """How far each wheel is beyond the white line [4] and the body beyond the wall [] [m]."""
    wheels = offset_of(placement, car.wheel_x, car.wheel_y)
    body = offset_of(placement, *corners(car))
    return (
        jnp.maximum(wheels - point.width_left, -wheels - point.width_right),
        jnp.max(jnp.maximum(body - point.wall_left, -body - point.wall_right)),
    )


def _slope(track: Track, s: Array, x: Array) -> tuple[Array, Array]:
    """Way to the next of K points [K] and change of the coordinates per metre [K, ...]."""
    way = jnp.maximum(tracks.wrap_difference(track, jnp.append(s[1:], s[-1]), s), 1e-2)
    return way, (jnp.concatenate([x[1:], x[-1:]]) - x) / way[:, None]


def _linearised(car: Car, track: Track, table: Array, run: Run) -> tuple[Array, ...]:
    """Derivatives of the next coordinates [K, N, N + 2] and residuals [K, 13, N] at equal arc
    lengths by coordinates and controls, and the residuals [K, 13]."""
    # Gears that change a moment later are no derivative.
    gear = {"shift_up": jnp.float32(np.inf), "shift_down": jnp.float32(-np.inf)}
    held = dataclasses.replace(car, drivetrain=dataclasses.replace(car.drivetrain, **gear))
    x = jax.vmap(partial(_coordinates, car, track))(run.states, run.s)
    _, slope = _slope(track, run.s, x)
    slope = jnp.concatenate([slope[1:], slope[-1:]])
    # By differences: at the peak of a tyre automatic derivatives meet the root of zero.
    small = np.concatenate([SMALL, 0.05 * EFFORTS])

    def after(change: Array, state: CarState, s: Array, control: Array, slope: Array):
        moved = _moved(car, track, state, s, change[:NUM_COORDINATES])
        residual = _residual(car, track, table, moved, s)
        later, there = _advance(held, track, moved, s, control + change[NUM_COORDINATES:])
        ahead = tracks.wrap_difference(track, there, s)
        return _coordinates(car, track, later, there) - slope * ahead, residual

    def differences(change: Array) -> tuple[Array, Array]:
        both = [
            jax.vmap(partial(after, sign * change))(run.states, run.s, run.controls, slope)
            for sign in (1.0, -1.0)
        ]
        return both[0][0] - both[1][0], both[0][1] - both[1][1]

    # One change after the other, which is one compiled body.
    drift, bend = jax.lax.map(differences, jnp.diag(jnp.asarray(small, jnp.float32)))
    residual = jax.vmap(partial(_residual, car, track, table))(run.states, run.s)
    return (
        jnp.moveaxis(drift, 0, -1) / (2.0 * small),
        jnp.moveaxis(bend, 0, -1)[..., :NUM_COORDINATES] / (2.0 * SMALL),
        residual,
    )


def _gains(drift: Array, bend: Array, residual: Array, damping: Array) -> tuple[Array, Array]:
    """Gains [K, 2, N] and changes [K, 2] of the controls."""
    effort = damping * jnp.diag(jnp.asarray(EFFORTS**-2.0, jnp.float32))

    def back(value: tuple[Array, Array], at: tuple[Array, Array, Array]):
        (square, linear), (drift, bend, residual) = value, at
        a, b = drift[:, :NUM_COORDINATES], drift[:, NUM_COORDINATES:]
        cross = b.T @ square @ a
        both = jnp.column_stack([cross, b.T @ linear])
        solved = -jnp.linalg.solve(effort + b.T @ square @ b, both)
        gain, change = solved[:, :-1], solved[:, -1]
        square = bend.T @ bend + a.T @ square @ a + cross.T @ gain
        linear = bend.T @ residual + a.T @ linear + cross.T @ change
        return (0.5 * (square + square.T), linear), (gain, change)

    end = jnp.zeros((NUM_COORDINATES, NUM_COORDINATES)), jnp.zeros(NUM_COORDINATES)
    return jax.lax.scan(back, end, (drift, bend, residual), reverse=True)[1]


@jax.jit
def _improve(
    car: Car, track: Track, table: Array, run: Run, damping: Array | float
) -> tuple[Run, Array]:
    """Runs [S] with each of `STEPS` of the change, and their costs [S], infinite where lost."""
    drift, bend, residual = _linearised(car, track, table, run)
    bend, residual = run.counts[:, None, None] * bend, run.counts[:, None] * residual
    gain, change = _gains(drift, bend, residual, jnp.asarray(damping, jnp.float32))
    drive = partial(_drive, car, track, table, run, gain)
    return jax.vmap(lambda step: drive(step * change))(jnp.asarray(STEPS, jnp.float32))


def _drive(
    car: Car, track: Track, table: Array, run: Run, gain: Array, change: Array
) -> tuple[Run, Array]:
    """One drive with the controls of `run`, changes of them [K, 2] and gains [K, 2, N]."""
    x = jax.vmap(partial(_coordinates, car, track))(run.states, run.s)
    way, _ = _slope(track, run.s, x)
    rows = jnp.concatenate([x, run.controls + change, gain.reshape(len(gain), -1)], axis=1)
    travel = car.steering_rate * SUBSTEPS * TIME_STEP
    most = MOST_ANGLE * jnp.arctan(car.tyre.peak_angle[0])

    def step(carry: tuple[CarState, Array, Array, Array], _):
        state, s, index, travelled = carry
        for _ in range(3):
            passed = tracks.wrap_difference(track, s, run.s[index + 1]) >= 0.0
            index = jnp.minimum(index + passed, len(rows) - 2)
        part = jnp.clip(tracks.wrap_difference(track, s, run.s[index]) / way[index], 0.0, 1.0)
        row = rows[index] * (1.0 - part) + rows[index + 1] * part
        error = _coordinates(car, track, state, s) - row[:NUM_COORDINATES]
        planned, gain = jnp.split(row[NUM_COORDINATES:], [2])
        steering, pedal = planned + gain.reshape(2, NUM_COORDINATES) @ error
        # More slip than at the peak steers less.
        sideways = state.velocity[1] + car.wheel_x[0] * state.yaw_rate
        rolling = jnp.arctan2(sideways, jnp.maximum(state.velocity[0], 1.0)) - state.steering
        steering = jnp.clip(jnp.clip(steering, rolling - most, rolling + most), -travel, travel)
        control = jnp.stack([steering, jnp.clip(pedal, -1.0, 1.0)])

        counts = (travelled < 2.0 * track.length + 60.0).astype(jnp.float32)
        off = _coordinates(car, track, state, s)[:2] - racing_line.along(table, track, s)[3:5]
        lost = jnp.any(jnp.abs(off) > jnp.array(LOST)) | jnp.any(jnp.isnan(off))
        cost = jnp.where(lost, jnp.inf, jnp.sum(_residual(car, track, table, state, s) ** 2))
        drove = Run(state, s, control, counts), jnp.where(counts > 0.0, cost, 0.0)
        state, new = _advance(car, track, state, s, control)
        travelled += tracks.wrap_difference(track, new, s)
        return (state, new, index, travelled), drove

    start = jax.tree.map(lambda leaf: leaf[0], run.states), run.s[0], jnp.int32(0), run.s[0]
    drove, costs = jax.lax.scan(step, start, None, length=len(rows))[1]
    return drove, jnp.sum(costs)


def _judge(car: Car, track: Track, line: Line, run: Run) -> Followed:
    """What a run comes to between its first two passages of the line."""
    s, length = np.asarray(run.s, np.float64), float(track.length)
    step = np.diff(s)
    travelled = s[0] + np.append(0.0, np.cumsum(step - length * np.round(step / length)))
    times = np.arange(len(s)) * SUBSTEPS * TIME_STEP
    began, ended = np.interp([length, 2.0 * length], travelled, times, right=np.nan)

    @jax.jit
    @jax.vmap
    def at(state: CarState, s: Array) -> tuple[Array, Array, Array]:
        point = tracks.at(track, s)
        placement = place(point, state)
        return *_beyond(car, point, placement), placement.offset

    beyond, wall, offset = jax.device_get(at(run.states, run.s))
    lap = (times >= began) & (times <= ended)
    off = offset - np.interp(s, line.s, line.states[:, 3], period=length)
    touched = np.max(wall[lap], initial=-np.inf) > 0.0
    return Followed(
        lap_time=float("nan") if touched else float(ended - began),
        off_line=float(np.max(np.abs(off[lap]), initial=0.0)),
        wheels_out=int(np.max(np.sum(beyond[lap] > 0.0, axis=1), initial=0)),
    )
