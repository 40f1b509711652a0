"""Scripted drivers of graded strength, who race without having learnt anything.

A driver follows the racing line at a share of the speed that the quasi-steady lap has on it
(`racing_line`), brakes some time earlier than that lap does, as people do, and minds the others:
who is slower ahead is passed on the side with more room, or followed where there is none; who is
alongside is left its width of road. Nothing is remembered from step to step.

They act as a policy does, relative to the racing line (`env.steering=line`); what hands and feet
make of it is `path_following`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from projects.sophy import track as tracks
from projects.sophy.path_following import REACTION, action_towards, forward_speed, reach_of
from projects.sophy.race import gaps, opponents_of
from projects.sophy.race_env import RaceEnv, RaceState
from projects.sophy.racing_line import along

ASIDE = 2.5  # speed at which one goes aside for others [m/s]
LEAST_SKILL, MOST_SKILL = -2.0, 1.5  # levels are continued so far
OFF_LINE, SLOWEST_OFF_LINE = 0.08, 0.3  # speed given up in bends per metre off the line, at most
TIGHT = 150.0  # radius of a bend in which that is given up whole [m]
MARGIN = 0.2  # from the wheels to the white lines [m]


class Level(NamedTuple):
    """How strong a driver is; leaves [] or [M]."""

    pace: Array  # share of the speed on the line
    early: Array  # how much earlier it brakes than it must [s]
    room: Array  # left between it and a car alongside [m]
    distance: Array  # kept behind a car that it cannot pass [s]


LEVELS: dict[str, tuple[float, float, float, float]] = {
    "beginner": (0.78, 0.6, 1.5, 0.9),
    "amateur": (0.82, 0.4, 1.3, 0.7),
    "club": (0.86, 0.25, 1.1, 0.5),
    "pro": (0.90, 0.1, 0.9, 0.4),
    "expert": (0.93, 0.0, 0.8, 0.3),
}


def level_of(skill: Array) -> Level:
    """The level of a skill [...], between and beyond those of `LEVELS`: 0 beginner, 1 expert."""
    table = jnp.asarray(list(LEVELS.values()), jnp.float32)
    place = jnp.clip(skill, LEAST_SKILL, MOST_SKILL) * (len(LEVELS) - 1)
    below = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, len(LEVELS) - 2)
    low, high = table[below], table[below + 1]
    return Level(*jnp.moveaxis(low + (place - below)[..., None] * (high - low), -1, 0))


def scripted_actions(env: RaceEnv, race: RaceState, levels: Level) -> Array:
    """What scripted drivers of `levels`, leaves [M], do in every slot: actions [M, 2].

    The actions are those of `steering=line`, which `env` must have.
    """
    drives, track = race.drives, env.solo.track_of(race.drives.circuit[0])
    lines, cars = jax.vmap(env.solo.line_of)(drives), drives.car
    along_each = jax.vmap(along, (0, None, 0))
    speed, offset = forward_speed(drives), drives.placement.offset
    reach = reach_of(drives)
    there = jax.vmap(tracks.at, (None, 0))(track, drives.s + reach)
    half_width = 0.5 * cars.width
    edge = jnp.max(cars.wheel_y, axis=1) + MARGIN
    most, least = there.width_left - edge, edge - there.width_right
    line = along_each(lines.offset, track, drives.s + reach)
    wish = line

    num_cars = speed.shape[0]
    others = opponents_of(race.on_road)
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
    aside = offset - along_each(lines.offset, track, drives.s)
    change = jnp.clip(wish - line - aside, -ASIDE * reach / speed, ASIDE * reach / speed)
    wish = line + aside + change

    # Where there is no room for two, who is behind lifts.
    leads = jnp.where(alongside & (gap > 0.0), speed[None], jnp.inf)
    top_speed = jnp.where(squeezed, jnp.minimum(top_speed, jnp.min(leads, axis=1) - 2.0), top_speed)

    later = REACTION + jnp.stack([jnp.zeros(num_cars), levels.early], 1)
    ahead = drives.s[:, None] + speed[:, None] * later
    wanted = levels.pace * jnp.min(along_each(lines.speed, track, ahead), axis=1)
    # Off the line a bend is tighter than that speed is for.
    places = drives.s[:, None] + reach[:, None] * jnp.array([0.5, 1.0, 2.0, 3.0])
    bends = jax.vmap(jax.vmap(lambda s: tracks.at(track, s).curvature))(places)
    bend = jnp.minimum(jnp.max(jnp.abs(bends), axis=1) * TIGHT, 1.0)
    wanted *= 1.0 - bend * jnp.minimum(OFF_LINE * jnp.abs(aside), SLOWEST_OFF_LINE)
    wanted = jnp.minimum(wanted, top_speed)
    return jax.vmap(action_towards, (None, 0, 0, 0, 0, None))(
        track, drives, lines, wish, wanted, env.config.solo.line
    )
