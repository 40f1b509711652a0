"""Scripted drivers of graded strength, who race without having learnt anything.

A driver follows the line of least curvature at a share of the speed that the quasi-steady lap has
on it (`racing_line`), brakes some time earlier than that lap does, as people do, and minds the
others: who is slower ahead is passed on the side with more room, or followed where there is none;
who is alongside is left his width of road. Nothing is remembered from step to step.

How far that goes: alone they lap larkspur and thimble cleanly, but not every circuit; in a field of
ten they still run into each other after the start.

What hands and feet do is `path_following`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from projects.sophy import track as tracks
from projects.sophy.driving import CONTROL_STEP, DriveState
from projects.sophy.path_following import axles_of, careful_pedal, follow, forward_speed, reach_of
from projects.sophy.race import gaps, opponents_of
from projects.sophy.race_env import RaceEnv, RaceState
from projects.sophy.racing_line import RacingLines, along
from projects.sophy.track import Track

MOST_USAGE = 0.95  # of an axle's grip that the steering asks for [-]
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
    speed = forward_speed(drive)
    ahead = drive.s + speed * (REACTION + jnp.stack([jnp.zeros(()), level.early]))
    step = CONTROL_STEP * speed
    wanted, later = (
        jnp.minimum(level.pace * jnp.min(along(speeds, track, there)), top_speed)
        for there in (ahead, ahead + step)
    )
    axles = axles_of(track, drive)
    steering, demanded = follow(track, drive, axles, aim_offset, MOST_USAGE)
    return steering, careful_pedal(drive, axles, demanded, wanted, later, MOST_USAGE)


def scripted_actions(env: RaceEnv, lines: RacingLines, race: RaceState, levels: Level) -> Array:
    """What scripted drivers of `levels` [M] do in every slot: actions [M, 2]."""
    drives, track = race.drives, env.solo.track_of(race.drives.circuit[0])
    circuit, cars = drives.circuit[0], drives.car
    speed, offset = forward_speed(drives), drives.placement.offset
    reach = reach_of(drives)
    there = jax.vmap(tracks.at, (None, 0))(track, drives.s + reach)
    half_width = 0.5 * cars.width
    edge = jnp.max(cars.wheel_y, axis=1) + MARGIN
    most, least = there.width_left - edge, edge - there.width_right
    line = along(lines.offset[circuit], track, drives.s + reach)
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
    aside = offset - along(lines.offset[circuit], track, drives.s)
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
