"""Drives a given lap in the simulator: its controls, with feedback on how far the car is off it.

The gains are those of a linear-quadratic regulator along the lap (Anderson and Moore, "Optimal
Control: Linear Quadratic Methods", 1990, chapter 2), from the simulator's own derivatives: at the
limit of its grip a car is hardly stable, and gains that suit one corner spin it in the next.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from projects.sophy import car as cars
from projects.sophy import drivetrain as drivetrains
from projects.sophy import track as tracks
from projects.sophy.car import Car, CarState, Command, steady_load
from projects.sophy.cars import AID_SLIP
from projects.sophy.track import Track
from projects.sophy.walls import course_step, offset_of, place

TIME_STEP = 0.005  # of the simulator [s]
SAMPLING = 0.02  # between the points with gains [s]
# Errors that weigh alike: offset [m], angle [rad], forward and left [m/s], yaw rate [rad/s],
# steering [rad]; and what of the controls: steering [rad], pedal.
ERRORS = np.array([0.4, 0.05, 0.7, 2.0, 0.4, 1.0])
EFFORTS = np.array([0.05, 0.2])
SHARES = 1.0, 0.995, 0.99, 0.985, 0.98, 0.97, 0.96, 0.94  # of the speed, tried in this order
LOST = 3.0  # from the line [m]
MOST_SLIP = 0.95  # of the front tyres, in slip angles at the peak [-]
NUDGE = 0.03  # of those, for differences


class Line(NamedTuple):
    """A lap at P points, numpy, with increasing arc length in [0, L)."""

    s: Any  # [P] [m]
    states: Any  # [P, 12] see `first_guess`
    pedal: Any  # [P] throttle positive, brake negative [-]


class Followed(NamedTuple):
    lap_time: float  # of the second lap, NaN where none was completed [s]
    share: float  # of the line's speed that was driven [-]
    off_line: float  # largest distance from the line [m]


def follow(car: Car, track: Track, line: Line) -> Followed:
    """Two laps on `line` from a flying start on it, at the largest of `SHARES` of its speed that
    keeps the car near it; with the aids on, since no path's feedback knows of a locked wheel.
    """
    car = dataclasses.replace(
        car, traction_control=jnp.float32(AID_SLIP), antilock=jnp.float32(AID_SLIP)
    )
    s, nominal, pedal, lap_time = _in_time(track, line)
    num_steps = int(2.2 * lap_time / min(SHARES) / TIME_STEP)
    drives = jax.device_get(_drive(car, track, s, nominal, pedal, jnp.array(SHARES), num_steps))
    length = float(track.length)
    times = (1 + np.arange(num_steps)) * TIME_STEP
    for share, travelled, off in zip(SHARES, *drives, strict=True):
        if np.max(off) < LOST and travelled[-1] > 2.0 * length:
            first, second = np.interp([length, 2.0 * length], travelled, times)
            return Followed(float(second - first), share, float(np.max(off)))
    return Followed(float("nan"), SHARES[-1], float(np.max(drives[1][-1])))


def _in_time(track: Track, line: Line) -> tuple[Array, Array, Array, float]:
    """Arc lengths [M], states [M, 12] and pedal [M] of the line about every `SAMPLING` seconds."""
    length = float(track.length)
    grid = np.arange(0.0, length, 0.2)
    columns = [np.interp(grid, line.s, column, period=length) for column in line.states.T]
    curvature = np.asarray(
        jax.vmap(tracks.at, (None, 0))(track, jnp.asarray(grid, jnp.float32)).curvature
    )
    forward, left, _, offset, angle = columns[:5]
    pace = (1.0 - offset * curvature) / (forward * np.cos(angle) - left * np.sin(angle))
    clock = np.concatenate([[0.0], np.cumsum(pace * np.diff(grid, append=length))])
    num = int(clock[-1] / SAMPLING)
    s = np.interp(np.arange(num) * clock[-1] / num, clock, np.append(grid, length))
    states = np.stack([np.interp(s, grid, column, period=length) for column in columns], 1)
    pedal = np.interp(s, line.s, line.pedal, period=length)
    found, along, controls = (jnp.asarray(v, jnp.float32) for v in (s, states, pedal))
    return found, along, controls, float(clock[-1])


def _state_at(car: Car, track: Track, s: Array, z: Array, pedal: Array) -> CarState:
    """The whole state of a car that has the states `z` [12] at `s`."""
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
        throttle=jnp.maximum(pedal, 0.0),
        brake=jnp.maximum(-pedal, 0.0),
        gear=drivetrains.starting_gear(car.drivetrain, rolling / 0.95),
    )


def _step(car: Car, track: Track, state: CarState, s: Array, control: Array):
    """One step of the simulator under steering and pedal [2]; the state and arc length after it."""
    point = tracks.at(track, s)
    placement = place(point, state)
    offset = offset_of(placement, car.wheel_x, car.wheel_y)
    command = Command(control[0], jnp.maximum(control[1], 0.0), jnp.maximum(-control[1], 0.0))
    state = cars.step(car, state, command, tracks.surface_at(point, offset), TIME_STEP)
    s = s + course_step(point, placement, state.velocity, TIME_STEP)
    return state, tracks.project(track, state.position, s)


def _reduced(track: Track, state: CarState, s: Array) -> Array:
    """Offset, angle, velocity, yaw rate and steering [6] of a car."""
    placement = place(tracks.at(track, s), state)
    angle = jnp.arctan2(placement.sine, placement.cosine)
    return jnp.stack([placement.offset, angle, *state.velocity, state.yaw_rate, state.steering])


REDUCED = np.array([3, 4, 0, 1, 2, 11])  # where those stand among the 12 states


def _gains(car: Car, track: Track, s: Array, nominal: Array, pedal: Array) -> Array:
    """Gains [M, 2, 6] of the regulator."""

    def after(error: Array, control: Array, s: Array, z: Array, pedal: Array) -> Array:
        state = _state_at(car, track, s, z.at[REDUCED].add(error), pedal)
        control = control + jnp.stack([z[11], pedal])
        state, s = jax.lax.fori_loop(
            0,
            round(SAMPLING / TIME_STEP),
            lambda _, carry: _step(car, track, carry[0], carry[1], control),
            (state, s),
        )
        return _reduced(track, state, s)

    # By differences: at the peak of a tyre automatic derivatives meet the root of zero.
    steps = NUDGE * jnp.concatenate([ERRORS, EFFORTS])
    nudges = jnp.diag(steps)

    def moved(nudge: Array) -> Array:
        ahead = jax.vmap(lambda *at: after(nudge[:6], nudge[6:], *at))
        back = jax.vmap(lambda *at: after(-nudge[:6], -nudge[6:], *at))
        return ahead(s, nominal, pedal) - back(s, nominal, pedal)

    # One nudge after the other, which is one compiled body.
    derivatives = jnp.moveaxis(jax.lax.map(moved, nudges), 0, -1) / (2.0 * steps)
    drift, effect = derivatives[..., :6], derivatives[..., 6:]
    cost, effort = jnp.diag(ERRORS**-2.0), jnp.diag(EFFORTS**-2.0)

    def back(value: Array, matrices: tuple[Array, Array]) -> tuple[Array, Array]:
        a, b = matrices
        gain = jnp.linalg.solve(effort + b.T @ value @ b, b.T @ value @ a)
        value = cost + a.T @ value @ (a - b @ gain)
        return 0.5 * (value + value.T), gain

    # Once around for the value of a lap that goes on, and once more for the gains.
    around = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), (drift, effect))
    _, gains = jax.lax.scan(back, cost, around, reverse=True)
    return gains[: len(s)]


@partial(jax.jit, static_argnames="num_steps")
def _drive(
    car: Car,
    track: Track,
    s: Array,
    nominal: Array,
    pedal: Array,
    shares: Array,
    num_steps: int,
) -> tuple[Array, Array]:
    """Way travelled and distance from the line, each [shares, num_steps] [m]."""
    drive = partial(_drive_at, car, track, s, nominal, pedal, num_steps)
    return jax.vmap(drive)(shares)


def _drive_at(
    car: Car,
    track: Track,
    s: Array,
    nominal: Array,
    pedal: Array,
    num_steps: int,
    share: Array,
) -> tuple[Array, Array]:
    # The same line at another speed: accelerations go with its square.
    powers = jnp.array([1, 1, 1, 0, 0, 1, 1, 1, 1, 2, 2, 0])
    nominal = nominal * share**powers
    gains = _gains(car, track, s, nominal, pedal)
    table = jnp.concatenate([nominal, pedal[:, None], gains.reshape(len(s), -1)], axis=1)
    ends = jnp.concatenate([s, s[:1] + track.length])
    table = jnp.concatenate([table, table[:1]])

    most = MOST_SLIP * jnp.arctan(car.tyre.peak_angle[0])

    def read(s: Array) -> Array:
        index = jnp.clip(jnp.searchsorted(ends, s, side="right") - 1, 0, len(ends) - 2)
        share = (s - ends[index]) / (ends[index + 1] - ends[index])
        return table[index] * (1.0 - share) + table[index + 1] * share

    def step(carry: tuple[CarState, Array, Array], _):
        state, s, travelled = carry
        here = read(s)
        error = _reduced(track, state, s) - here[REDUCED]
        # The controls that lead on, not those that led here.
        ahead = read(tracks.wrap(track, s + TIME_STEP * state.velocity[0]))
        control = jnp.stack([ahead[11], ahead[12]]) - here[13:].reshape(2, 6) @ error
        # More slip than at the peak steers less.
        sideways = state.velocity[1] + car.wheel_x[0] * state.yaw_rate
        rolling = jnp.arctan2(sideways, jnp.maximum(state.velocity[0], 1.0))
        steering = jnp.clip(control[0], rolling - most, rolling + most)
        control = jnp.stack([steering, control[1]])
        state, new = _step(car, track, state, s, control)
        travelled += tracks.wrap_difference(track, new, s)
        return (state, new, travelled), (travelled, jnp.abs(error[0]))

    start = _state_at(car, track, s[0], nominal[0], pedal[0]), s[0], jnp.zeros(())
    return jax.lax.scan(step, start, None, length=num_steps)[1]
