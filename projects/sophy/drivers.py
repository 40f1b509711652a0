"""Scripted drivers of graded strength, who race without having learnt anything.

A driver follows the line of least curvature (`first_guess.smooth_line`) at a share of the speed
that the quasi-steady lap has on it, brakes some time earlier than that lap does, as people do, and
minds the others: who is slower ahead is passed on the side with more room, or followed where there
is none; who is alongside is left his width of road. Nothing is remembered from step to step.

How far that goes: alone they lap larkspur and thimble cleanly, but not every circuit; in a field of
ten they still run into each other after the start.

The path is found by pure pursuit (Coulter 1992, CMU-RI-TR-92-01); the front tyres are steered to
the slip angle whose force turns the car along it, by the tyres' own curve, never beyond its peak.
Brake and throttle leave the tyres what they need sideways.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from projects.sophy import track as tracks
from projects.sophy import tyre as tyres
from projects.sophy.driving import CONTROL_STEP, DriveState
from projects.sophy.first_guess import smooth_line
from projects.sophy.race import gaps, opponents_of
from projects.sophy.race_env import RaceEnv, RaceState
from projects.sophy.reference import line_at_nodes, reference_lap
from projects.sophy.track import NUM_NODES, Track

NUM_STATIONS = 512  # of a line and its speeds
REACH, SHORTEST_REACH = 0.45, 7.0  # how far ahead a driver aims [s], but at least [m]
YAW_GAIN = 0.3  # of the error of the yaw rate [-]
MOST_USAGE = 0.95  # of an axle's grip that the steering asks for [-]
SPEED_GAIN = 3.0  # acceleration asked for, per error of the speed [1/s]
FULL_DRIVING = 8.0  # what the whole throttle is taken for [m/s^2]
REACTION = 0.15  # between a decision and what comes of it [s]
ASIDE = 2.5  # speed at which one goes aside for others [m/s]
MARGIN = 0.2  # from the wheels to the white lines [m]


class Level(NamedTuple):
    """How strong a driver is; leaves [] or [M]."""

    pace: Array  # share of the speed on the line
    early: Array  # how much earlier he brakes than he must [s]
    room: Array  # left between him and a car alongside [m]
    distance: Array  # kept behind a car that he cannot pass [s]


LEVELS: dict[str, tuple[float, float, float, float]] = {
    "beginner": (0.80, 0.6, 1.5, 0.9),
    "amateur": (0.87, 0.4, 1.3, 0.7),
    "club": (0.92, 0.25, 1.1, 0.5),
    "pro": (0.95, 0.1, 0.9, 0.4),
    "expert": (0.975, 0.0, 0.8, 0.3),
}


class Lines(NamedTuple):
    """What scripted drivers know of the circuits, by even stations along the lap."""

    offset: Array  # [T, S] of the line, left positive [m]
    speed: Array  # [K, T, S] of entrants on it [m/s]


def make_lines(env: RaceEnv) -> Lines:
    """Of all circuits and entrants of an environment; some seconds per circuit."""
    solo = env.solo
    stack = solo.tracks
    circuits = [
        jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(stack.length.shape[0])
    ]
    widest = int(jnp.argmax(jnp.max(jnp.abs(solo.cars.wheel_y), axis=1)))
    car = jax.tree.map(lambda leaf: np.asarray(leaf[widest], np.float64), solo.cars)
    offsets = np.stack(
        [line_at_nodes(smooth_line(track, car), float(track.length)) for track in circuits]
    ).astype(np.float32)
    lap = jax.vmap(lambda car, track, line: reference_lap(car, track, offset=line), (None, 0, 0))
    speeds = jax.jit(jax.vmap(lap, (0, None, None)))(solo.cars, stack, offsets).speed
    every = NUM_NODES // NUM_STATIONS
    return Lines(jnp.asarray(offsets[:, ::every]), speeds[..., ::every])


def _read(values: Array, track: Track, s: Array) -> Array:
    """Evenly spaced `values` [S] of a lap at arc lengths `s` [...]."""
    place = tracks.wrap(track, s) / track.length * NUM_STATIONS
    index = jnp.floor(place).astype(jnp.int32)
    share = place - index
    low, high = values[index % NUM_STATIONS], values[(index + 1) % NUM_STATIONS]
    return low + share * (high - low)


def _wheel(
    track: Track,
    drive: DriveState,
    aim_offset: Array,
    top_speed: Array,
    speeds: Array,
    level: Level,
) -> tuple[Array, Array]:
    """The road-wheel angle [] [rad] and the pedal [] of one car that aims at an offset [] [m]
    from the centre line at its reach, no faster than `top_speed` [] [m/s]."""
    motion, car = drive.motion, drive.car
    speed = jnp.maximum(motion.velocity[0], 1.0)
    reach = jnp.maximum(REACH * speed, SHORTEST_REACH)
    point = tracks.at(track, drive.s + reach)
    left = jnp.stack([-point.tangent[1], point.tangent[0]])
    gap = point.position + aim_offset * left - motion.position
    east, north = jnp.cos(motion.heading), jnp.sin(motion.heading)
    aside = gap[1] * east - gap[0] * north
    curvature = 2.0 * aside / jnp.sum(gap**2)
    arms = jnp.stack([car.wheel_x[0], -car.wheel_x[3]])
    wheelbase = jnp.sum(arms)

    ground = tracks.surface_at(tracks.at(track, drive.s), drive.placement.offset + jnp.zeros(4))
    peak = tyres.peak(car.tyre, motion.load, ground)
    force, angle = (jnp.sum(peak.force_y.reshape(2, 2), 1), jnp.mean(peak.angle.reshape(2, 2), 1))
    shape, stretch = peak.shape[::2], peak.stretch[::2]
    demanded = curvature
    pull = car.mass * speed**2 * arms[::-1] / wheelbase / force  # [2] usage per curvature
    curvature = jnp.clip(curvature, -MOST_USAGE / jnp.max(pull), MOST_USAGE / jnp.max(pull))
    usage = pull * curvature
    # The front tyres are set at the slip angle whose force turns the car like that, where they go.
    turning = pull[0] * (curvature + YAW_GAIN * (curvature - motion.yaw_rate / speed))
    turning = jnp.clip(turning, -MOST_USAGE, MOST_USAGE)
    slip = angle[0] * jnp.tan(jnp.arcsin(turning) / shape[0]) / stretch[0]
    steering = jnp.arctan2(motion.velocity[1] + arms[0] * motion.yaw_rate, speed) + slip
    slid = jnp.mean(jnp.abs(motion.slip_angle).reshape(2, 2), 1) / angle
    taken = jnp.maximum(jnp.abs(usage), slid)
    spare = jnp.sqrt(jnp.maximum(1.0 - taken * taken, 0.05))  # [2] of the axles' grip

    ahead = drive.s + speed * (REACTION + jnp.stack([jnp.zeros(()), level.early]))
    planned = level.pace * _read(speeds, track, ahead)
    # A tighter way than the line's is driven slower.
    bearable = speed * jnp.sqrt(MOST_USAGE / jnp.max(pull) / jnp.maximum(jnp.abs(demanded), 1e-6))
    top_speed = jnp.minimum(top_speed, bearable)
    wanted = jnp.minimum(jnp.min(planned), top_speed)
    step = CONTROL_STEP * speed
    later = jnp.minimum(level.pace * jnp.min(_read(speeds, track, ahead + step)), top_speed)
    asked = SPEED_GAIN * (wanted - speed) + (later - wanted) / CONTROL_STEP  # [m/s^2]
    # The pedal that asks for that, as far as tyres that also turn carry it.
    torque = car.brake_torque * jnp.stack([car.brake_bias, 1.0 - car.brake_bias])
    grip = jnp.sum(peak.force_x.reshape(2, 2), 1) * car.wheel_radius[::2]
    carried = jnp.min(jnp.where(torque > 0.0, spare * grip / jnp.maximum(torque, 1.0), jnp.inf))
    brake = -asked * car.mass * car.wheel_radius[0] / car.brake_torque
    brake = jnp.clip(brake, 0.0, MOST_USAGE * jnp.minimum(carried, 1.0))
    spinning = jnp.max(motion.slip_ratio / peak.ratio)
    throttle = jnp.clip(asked / FULL_DRIVING, 0.0, jnp.min(spare)) * jnp.clip(
        1.6 - spinning, 0.0, 1.0
    )
    return steering, throttle - brake


def scripted_actions(env: RaceEnv, lines: Lines, race: RaceState, levels: Level) -> Array:
    """What scripted drivers of `levels` [M] do in every slot: actions [M, 2]."""
    drives, track = race.drives, env.solo.track_of(race.drives.circuit[0])
    circuit, motion, cars = drives.circuit[0], drives.motion, drives.car
    speed, offset = jnp.maximum(motion.velocity[:, 0], 1.0), drives.placement.offset
    reach = jnp.maximum(REACH * speed, SHORTEST_REACH)
    there = jax.vmap(tracks.at, (None, 0))(track, drives.s + reach)
    half_width = 0.5 * cars.width
    edge = jnp.max(cars.wheel_y, axis=1) + MARGIN
    most, least = there.width_left - edge, edge - there.width_right
    line = _read(lines.offset[circuit], track, drives.s + reach)
    wish = line

    num_cars = speed.shape[0]
    others = opponents_of(race.present)
    gap = gaps(track, drives.s)  # [M, M] to the second from the first
    length = 0.5 * (cars.length[None] + cars.length[:, None])
    apart = half_width[None] + half_width[:, None] + levels.room[:, None]
    beside = offset[None] - offset[:, None]  # positive where the second is to the left

    # The next car ahead within about a second, and whether its place is wanted.
    ahead = jnp.where(others & (gap > length), gap, jnp.inf)
    next_one = jnp.argmin(ahead, axis=1)
    pick = jnp.arange(num_cars), next_one
    free = ahead[pick] - length[pick]
    seen = free < 10.0 + 1.5 * speed
    its_offset, its_speed, need = offset[next_one], speed[next_one], apart[pick]
    blocked = seen & (jnp.abs(wish - its_offset) < need)
    to_left, to_right = its_offset + need, its_offset - need
    left_fits, right_fits = to_left < most, to_right > least
    nearer_left = jnp.abs(to_left - offset) < jnp.abs(to_right - offset)
    goes_left = left_fits & (nearer_left | ~right_fits)
    around = jnp.where(goes_left, to_left, to_right)
    passes = blocked & (left_fits | right_fits)
    wish = jnp.where(passes, around, wish)
    # Whoever is still behind that car does not drive into it.
    in_line = seen & (jnp.abs(beside[pick]) < need - 0.5 * levels.room)
    follow = its_speed + 0.45 * (free - 1.0 - jnp.where(passes, 0.1, levels.distance) * its_speed)
    top_speed = jnp.where(in_line, jnp.maximum(follow, 0.0), jnp.inf)

    # Those alongside keep their width of road.
    alongside = others & (jnp.abs(gap) < length + 1.0)
    upper = jnp.min(jnp.where(alongside & (beside > 0.0), offset[None] - apart, jnp.inf), axis=1)
    lower = jnp.max(jnp.where(alongside & (beside <= 0.0), offset[None] + apart, -jnp.inf), axis=1)
    squeezed = (upper < least) | (lower > most) | (upper < lower)
    wish = jnp.where(upper < lower, 0.5 * (upper + lower), jnp.clip(wish, lower, upper))
    wish = jnp.clip(wish, jnp.minimum(least, most), jnp.maximum(least, most))
    # From the line one goes aside no faster than this.
    aside = offset - _read(lines.offset[circuit], track, drives.s)
    change = jnp.clip(wish - line - aside, -ASIDE * reach / speed, ASIDE * reach / speed)
    wish = line + aside + change

    # Where there is no room for two, who is behind lifts.
    leads = jnp.where(alongside & (gap > 0.0), speed[None], jnp.inf)
    top_speed = jnp.where(squeezed, jnp.minimum(top_speed, jnp.min(leads, axis=1) - 2.0), top_speed)

    speeds = lines.speed[drives.car_index, circuit]
    steering, pedal = jax.vmap(_wheel, (None, 0, 0, 0, 0, 0))(
        track, drives, wish, top_speed, speeds, levels
    )
    config = env.config.solo
    if config.steering == "delta":
        steering = (steering - drives.steering_target) / config.steering_step
    else:
        steering = steering / cars.steering_limit
    return jnp.clip(jnp.stack([steering, pedal], -1), -1.0, 1.0)
