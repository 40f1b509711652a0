"""What is counted while a race is driven: passes, contacts, manners, and pace with and without
others near.

An *overtake* counts when the car is half a length clear. A *corner cut* is a stretch off course in
which the car gained on its reference lap. A *defensive move* is a change of the side to which a car
goes on a straight, with another one close behind; the first on a straight is allowed and not
counted. A car has *forced off* another one that leaves the course within a second of having been
alongside with less room than its own width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from projects.sophy import track as tracks
from projects.sophy.driving import CONTROL_STEP
from projects.sophy.race import gaps, opponents_of
from projects.sophy.race_env import RaceEnv, RaceState, contacts_begun
from projects.sophy.stewards import NONE, REAR_END

SPEED_BIN, NUM_BINS = 1.0, 24  # of closing speeds [m/s]; the last bin holds all that are faster
TRAFFIC = 40.0  # a car so close ahead is traffic [m]
PRESSURE = 20.0  # a car so close behind presses [m]
MOVES = 0.7  # slower across the road is no move [m/s]
BENDS = 0.003  # a course that is straighter is a straight [1/m]
LATELY = 10  # control steps in which a squeeze counts as the cause
NEVER = 10 * LATELY


class Tally(NamedTuple):
    """Of one race; leaves [M] unless said otherwise."""

    laps: Array  # int32, completed
    fastest_lap: Array  # flying, 0 where there was none [s]
    overtakes: Array  # int32, times that an opponent was clearly ahead and then behind, on the road
    overtaken: Array  # int32, the same of the opponents
    contacts: Array  # [M, 3] int32, by the highest severity: light, medium, heavy
    rear_ends: Array  # [M, NUM_BINS] int32, into others' tails with blame, by closing speed
    off_course_steps: Array  # int32
    corner_cuts: Array  # int32
    wall_contact_steps: Array  # int32
    wall_contacts: Array  # int32, begun
    defensive_moves: Array  # int32, beyond the first on a straight
    forced_off: Array  # int32, opponents that it forced off
    traffic_steps: Array  # int32, with traffic ahead
    traffic_pace: Array  # sum of the reference's time over the car's in those steps
    free_steps: Array  # int32, without
    free_pace: Array


class Memory(NamedTuple):
    """What the counting has to remember."""

    ahead: Array  # [M, M] bool, whether the second was ahead of the first when last one clearly was
    gained: Array  # [M] on the reference in the present stretch off course [s]
    squeezed: Array  # [M, M] int32, control steps since the first left the second too little room
    side: Array  # [M] int32 of the last move on this straight: 1 left, -1 right, 0 none
    moves: Array  # [M] int32, changes of side on this straight


def no_tally(num_cars: int) -> tuple[Tally, Memory]:
    none, zero = jnp.zeros(num_cars, jnp.int32), jnp.zeros(num_cars)
    tally = Tally(
        *(none,) * len(Tally._fields),
    )._replace(
        fastest_lap=zero,
        contacts=jnp.zeros((num_cars, 3), jnp.int32),
        rear_ends=jnp.zeros((num_cars, NUM_BINS), jnp.int32),
        traffic_pace=zero,
        free_pace=zero,
    )
    squeezed = jnp.full((num_cars, num_cars), NEVER, jnp.int32)
    ahead = jnp.zeros((num_cars, num_cars), bool)
    return tally, Memory(ahead, zero, squeezed, none, none)


def count(
    env: RaceEnv, before: RaceState, after: RaceState, tally: Tally, memory: Memory
) -> tuple[Tally, Memory]:
    """The numbers of one race after a step from `before` to `after`."""
    track = env.solo.track_of(after.drives.circuit[0])
    takes_part, on_road = before.present, before.on_road
    old, new = before.drives, after.drives
    others = opponents_of(on_road)

    # Side by side, who is an inch ahead may change at every step.
    clear = 0.25 * (old.car.length[None] + old.car.length[:, None])
    lead, lead_now = (race.distance[None] - race.distance[:, None] for race in (before, after))
    ahead = jnp.where(jnp.abs(lead) > clear, lead > 0.0, memory.ahead)
    passed = others & ahead & (lead_now < -clear)
    lap_time = jnp.where(takes_part, new.lap_time, 0.0)
    # The first lap began at the line, but from the grid: it tells much about the start.
    past_first = old.laps_begun >= 2
    flying = past_first & (lap_time > 0.0)
    quicker = flying & ((tally.fastest_lap == 0.0) | (lap_time < tally.fastest_lap))

    verdicts = after.stewarding.verdicts
    judged = others & (verdicts.reason != NONE)
    worse = judged & ~contacts_begun(before.stewarding, after.meetings)
    old_kind, kind = (
        jax.nn.one_hot(race.stewarding.severity, 3, dtype=jnp.int32) for race in (before, after)
    )
    kinds = kind * judged[..., None] - old_kind * worse[..., None]
    hits_tail = judged & (verdicts.reason == REAR_END)
    binned = jnp.clip((after.meetings.closing / SPEED_BIN).astype(jnp.int32), 0, NUM_BINS - 1)
    binned = jax.nn.one_hot(binned, NUM_BINS, dtype=jnp.int32)
    rear_ends = jnp.sum(binned * (hits_tail & verdicts.first)[..., None], 1)
    rear_ends += jnp.sum(binned * (hits_tail & verdicts.second)[..., None], 0)

    reference = jax.vmap(env.solo.reference_speed)(old.car_index, old.circuit, old.s)
    pace = new.progress / (reference * CONTROL_STEP)
    is_off, was_off = new.off_course > 0.0, old.off_course > 0.0
    gained = jnp.where(is_off, memory.gained + (pace - 1.0) * CONTROL_STEP, 0.0)
    cuts = on_road & was_off & ~is_off & (memory.gained > 0.0)

    gap = gaps(track, new.s)
    traffic = jnp.any(others & (gap > 0.0) & (gap < TRAFFIC), 1)
    moves, side, on_straight = _moves(track, before, after, memory)
    squeezed = jnp.where(_squeezes(track, after), 0, jnp.minimum(memory.squeezed + 1, NEVER))
    leaves = on_road & is_off & ~was_off
    forced = others & (squeezed <= LATELY) & leaves[None]

    touches_wall = on_road & (new.wall_contact > 0.0)
    counts = on_road & past_first
    own_pace = jnp.where(counts, pace, 0.0)
    tally = Tally(
        laps=tally.laps + (lap_time > 0.0),
        fastest_lap=jnp.where(quicker, lap_time, tally.fastest_lap),
        overtakes=tally.overtakes + jnp.sum(passed, axis=1),
        overtaken=tally.overtaken + jnp.sum(passed, axis=0),
        contacts=tally.contacts + jnp.sum(kinds, 0) + jnp.sum(kinds, 1),
        rear_ends=tally.rear_ends + rear_ends,
        off_course_steps=tally.off_course_steps + (on_road & is_off),
        corner_cuts=tally.corner_cuts + cuts,
        wall_contact_steps=tally.wall_contact_steps + touches_wall,
        wall_contacts=tally.wall_contacts + (touches_wall & (old.wall_contact == 0.0)),
        defensive_moves=tally.defensive_moves + (on_road & (moves > jnp.maximum(memory.moves, 1))),
        forced_off=tally.forced_off + jnp.sum(forced, axis=1),
        traffic_steps=tally.traffic_steps + (counts & traffic),
        traffic_pace=tally.traffic_pace + jnp.where(traffic, own_pace, 0.0),
        free_steps=tally.free_steps + (counts & ~traffic),
        free_pace=tally.free_pace + jnp.where(traffic, 0.0, own_pace),
    )
    return tally, Memory(ahead, gained, squeezed, side * on_straight, moves * on_straight)


def _moves(
    track: tracks.Track, before: RaceState, after: RaceState, memory: Memory
) -> tuple[Array, Array, Array]:
    """Moves [M] on this straight by now, the side of the last, and whether the car is on one."""
    old, new = before.drives, after.drives
    bend = jax.vmap(jax.vmap(lambda s: tracks.at(track, s).curvature))(
        new.s[:, None] + jnp.array([0.0, 30.0, 60.0])
    )
    straight = jnp.all(jnp.abs(bend) < BENDS, axis=1)
    gap = gaps(track, new.s)
    pressed = jnp.any(opponents_of(after.on_road) & (gap < 0.0) & (gap > -PRESSURE), 1)
    across = (new.placement.offset - old.placement.offset) / CONTROL_STEP
    side = jnp.where(jnp.abs(across) > MOVES, jnp.sign(across), 0.0).astype(jnp.int32)
    turns = straight & pressed & (side != 0) & (side != memory.side)
    return memory.moves + turns, jnp.where(turns, side, memory.side), straight


def _squeezes(track: tracks.Track, race: RaceState) -> Array:
    """Which cars leave which others, who are alongside, less than their width of road [M, M]."""
    drives, cars = race.drives, race.drives.car
    point = jax.vmap(tracks.at, (None, 0))(track, drives.s)
    offset, half = drives.placement.offset, 0.5 * cars.width
    alongside = opponents_of(race.on_road) & (
        jnp.abs(gaps(track, drives.s)) < 0.5 * (cars.length[None] + cars.length[:, None])
    )
    to_left = offset[None] > offset[:, None]  # the second is to the left of the first
    room = jnp.where(
        to_left,
        (point.width_left - offset - half)[:, None],
        (point.width_right + offset - half)[:, None],
    )
    return alongside & (room < cars.width[None])


def rear_end_speed(rear_ends: Array, share: float = 0.95) -> Array:
    """The closing speed [...] [m/s] that so large a share of rear ends [..., NUM_BINS] does not
    exceed, to a bin; nan where there are none."""
    below = jnp.cumsum(rear_ends, -1)
    total = below[..., -1:]
    enough = below >= share * total
    bins = 1 + jnp.argmax(enough, -1)
    return jnp.where(total[..., 0] > 0, SPEED_BIN * bins, jnp.nan)
