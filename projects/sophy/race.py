"""Many cars on one circuit through one control step: slipstream, contact, walls.

Every function takes a field of M slots, of which `present` says which hold a car. An absent car is
simulated like the others, since an array has no holes, but touches nobody and is seen by nobody:
the rest of the race is the same, up to the order of sums, however many slots there are.

A wake takes from the drag and the front downforce of who drives in it, the strongest wake alone,
with an exponential along it and a bell across. Only its direction and order are known for any one
car; the numbers are estimates. It changes slowly and is computed once per control step.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from projects.sophy import track as tracks
from projects.sophy.car import Car, Command, body_middle, fuelled
from projects.sophy.contact import collide_cars, nearest_pairs
from projects.sophy.driving import (
    CONTROL_STEP,
    DriveState,
    Underway,
    advance,
    arrive,
    at_present,
    set_off,
)
from projects.sophy.track import Track

# Who may touch in a control step is asked at its beginning: a car that stands is met from 8 m and a
# body's length away, and there is room to be faster.
NEAR = 20.0  # cars farther apart along the course then do not touch [m]
WAKE_REACH = 100.0  # behind a car its wake is gone [m]
WAKE_WIDTH = 1.5  # [m]
DRAG_LOSS, DRAG_DECAY = 0.30, 20.0  # right behind a car [-], falls to 1/e over [m]
DOWNFORCE_LOSS, DOWNFORCE_DECAY = 0.25, 12.0  # the same of the front axle's downforce


@struct.dataclass
class Meetings:
    """What pairs of cars did in a control step, first < second; zero elsewhere."""

    contact: Array  # [M, M] share of the step spent in contact
    push: Array  # [M, M, 2] impulse on the second car along the normals, in the world [N s]
    closing: Array  # [M, M] largest speed at which the gap closed in contact [m/s]


class Interaction(NamedTuple):
    """Which ways cars act on each other, and walls on them."""

    contact: bool = True
    slipstream: bool = True
    walls: bool = True


def no_meetings(num_cars: int) -> Meetings:
    zero = jnp.zeros((num_cars, num_cars))
    return Meetings(contact=zero, push=jnp.zeros((num_cars, num_cars, 2)), closing=zero)


def gaps(track: Track, s: Array) -> Array:
    """The way [M, M] [m] along the course from each car to every other, the short way round,
    positive ahead; `s` [M] [m]."""
    return tracks.wrap_difference(track, s[None], s[:, None])


def opponents_of(present: Array) -> Array:
    """Which pairs of cars [M, M] bool are two different ones, both `present` [M]."""
    return present & present[:, None] & ~jnp.eye(present.shape[0], dtype=bool)


def of_either(pairs: Array) -> Array:
    """Whether a car [M] is in a pair for which `pairs` [M, M] holds, first or second."""
    return jnp.any(pairs, 0) | jnp.any(pairs, 1)


def in_world(heading: Array, vector: Array) -> Array:
    """Vectors [M, 2] in the frames of cars with headings [M] [rad], in the world's."""
    forward, left = vector.T
    cosine, sine = jnp.cos(heading), jnp.sin(heading)
    return jnp.stack([forward * cosine - left * sine, forward * sine + left * cosine], -1)


def in_wake(track: Track, drives: DriveState, present: Array) -> Car:
    """The cars [M] with the drag and front downforce that the wakes of others leave them."""
    motion, cars = drives.motion, drives.car
    middle = body_middle(cars)
    forward = jnp.stack([jnp.cos(motion.heading), jnp.sin(motion.heading)], -1)
    nose = motion.position + (middle + 0.5 * cars.length)[:, None] * forward
    tail = motion.position + (middle - 0.5 * cars.length)[:, None] * forward
    # From the tail of the leader (second index) to the nose of the follower, in the leader's frame.
    gap = tail[None] - nose[:, None]
    behind = gap[..., 0] * forward[:, 0] + gap[..., 1] * forward[:, 1]
    aside = gap[..., 1] * forward[:, 0] - gap[..., 0] * forward[:, 1]
    ahead = gaps(track, drives.s)
    feels = (behind > 0.0) & (ahead > 0.0) & (ahead < WAKE_REACH) & present & present[:, None]
    bell = jnp.where(feels, jnp.exp(-((aside / WAKE_WIDTH) ** 2)), 0.0)

    def left(loss: float, decay: float) -> Array:
        return 1.0 - loss * jnp.max(bell * jnp.exp(-jnp.maximum(behind, 0.0) / decay), axis=1)

    front = left(DOWNFORCE_LOSS, DOWNFORCE_DECAY)
    share = jnp.stack([front, jnp.ones_like(front)], -1)
    return dataclasses.replace(
        cars,
        drag_area=cars.drag_area * left(DRAG_LOSS, DRAG_DECAY),
        downforce_area=cars.downforce_area * share,
    )


def drive_together(
    track: Track,
    previous: DriveState,
    present: Array,
    steer: Callable[[DriveState], tuple[Array, Command]],
    substeps: int,
    corrections: int,
    interaction: Interaction,
) -> tuple[DriveState, Meetings]:
    """All cars through one control step.

    Args:
      previous: [M].
      present: [M] bool.
      steer: the road-wheel angles [M] [rad] that drivers ask for and their commands [M].
      corrections: how often that is worked out anew, a divisor of `substeps`.
    """
    num_cars = present.shape[0]
    cars = in_wake(track, previous, present) if interaction.slipstream else previous.car
    may_meet = present & present[:, None] & (jnp.abs(gaps(track, previous.s)) < NEAR)
    pairs = nearest_pairs(previous.motion.position, may_meet)
    # What burns within the step weighs grams.
    loaded = fuelled(cars, previous.motion.fuel)
    move = jax.vmap(partial(advance, walls=interaction.walls), (None, 0, 0, 0, None))

    def meet_and_move(underway: Underway, met: Array, command: Command) -> tuple[Underway, Array]:
        if interaction.contact:
            motion, contacts = collide_cars(loaded, underway.motion, pairs)
            underway = underway._replace(motion=motion)
            push_x, push_y = contacts.impulse * contacts.normal
            met = jnp.stack(
                [
                    met[0] + contacts.touching / substeps,
                    met[1] + push_x,
                    met[2] + push_y,
                    jnp.maximum(met[3], contacts.closing),
                ]
            )
        return move(track, cars, command, underway, CONTROL_STEP / substeps), met

    def correct(carry: tuple[Underway, Array], _):
        target, command = steer(jax.vmap(at_present, (None, 0, 0))(track, previous, carry[0]))

        def substep(carry: tuple[Underway, Array], _):
            return meet_and_move(*carry, command), None

        return jax.lax.scan(substep, carry, None, length=substeps // corrections)[0], target

    begin = jax.vmap(set_off)(previous), jnp.zeros((4, pairs.first.shape[0]))
    (underway, met), targets = jax.lax.scan(correct, begin, None, length=corrections)
    current = jax.vmap(arrive, (None, 0, 0, 0, None))(
        track, previous, underway, targets[-1], substeps
    )
    met = jnp.zeros((num_cars, num_cars, 4)).at[pairs.first, pairs.second].set(met.T)
    return current, Meetings(contact=met[..., 0], push=met[..., 1:3], closing=met[..., 3])
