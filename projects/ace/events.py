"""A ball among table, net and floor, with exact impacts, for vmap and jit.

A step of a few milliseconds is flown by RK4 as if nothing were in the way. Along its cubic Hermite
path the gap to every surface is looked at in `SAMPLES` places; the first one below zero brackets an
impact, whose moment Newton's method finds. The ball is flown to it, bounced, and flown on, up to
`MAX_IMPACTS` times in a step. The order of RK4 holds through impacts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from projects.ace.ball import RADIUS, Air, Ball, FlightModel, between, fly
from projects.ace.contact import CORD, FLOOR, NET, TABLE, Surface, bounce

HALF_LENGTH, HALF_WIDTH = 1.37, 0.7625  # of the table [m], ITTF Laws 2.1
TABLE_THICKNESS = 0.03  # [m] of the board that stops a ball from the side; ours
TABLE_HEIGHT = 0.76  # [m] of its top above the floor, ITTF Laws 2.1
NET_HEIGHT, NET_HALF_WIDTH = 0.1525, 0.915  # [m] ITTF Laws 2.2
CORD_RADIUS = 0.003  # [m] ours; the cord's upper side is the net's height
_CORD_HEIGHT = NET_HEIGHT - CORD_RADIUS  # of its axis, and of the sheet below it [m]

SAMPLES = 8  # 4 ms at 40 m/s are looked at every 2 cm, half a ball's diameter
MAX_IMPACTS = 3  # per step
NEWTON_STEPS = 8

# Types of events, 0 is none. A touch of the table's side is not a touch of the playing surface.
NEAR, FAR, SIDE, TOUCHED_CORD, TOUCHED_NET, TOUCHED_FLOOR = range(1, 7)
EVENT_NAMES = ("none", "near", "far", "side", "cord", "net", "floor")


@struct.dataclass
class Court:
    """What may be randomised about the surfaces."""

    table: Surface = TABLE
    cord: Surface = CORD
    net: Surface = NET
    floor: Surface = FLOOR


COURT = Court()


class Events(NamedTuple):
    """Impacts in order; entries with type 0 are empty."""

    kind: Array  # [K] int32
    time: Array  # [K] since the step began [s]
    before: Ball  # [K]
    after: Ball  # [K]


def _box(position: Array, centre: Array, half: Array) -> Array:
    """Signed distance of a point from a box, [] [m]."""
    q = jnp.abs(position - centre) - half
    outside = jnp.maximum(q, 0.0)
    # The small number keeps the gradient finite inside.
    return jnp.sqrt(jnp.sum(outside**2) + 1e-18) + jnp.minimum(jnp.max(q), 0.0)


def gaps(position: Array) -> Array:
    """Distance of the ball's surface from table, net, cord and floor, [4] [m]."""
    y, z = position[1], position[2]
    table = _box(
        position,
        jnp.array([0.0, 0.0, -TABLE_THICKNESS / 2]),
        jnp.array([HALF_LENGTH, HALF_WIDTH, TABLE_THICKNESS / 2]),
    )
    net = _box(
        position,
        jnp.array([0.0, 0.0, _CORD_HEIGHT / 2]),
        jnp.array([0.0, NET_HALF_WIDTH, _CORD_HEIGHT / 2]),
    )
    beyond = jnp.maximum(jnp.abs(y) - NET_HALF_WIDTH, 0.0)
    cord = jnp.sqrt(position[0] ** 2 + beyond**2 + (z - _CORD_HEIGHT) ** 2 + 1e-18) - CORD_RADIUS
    return jnp.stack([table, net, cord, z + TABLE_HEIGHT]) - RADIUS


def _first_impact(start: Ball, end: Ball, time: Array) -> tuple[Array, Array]:
    """The surface [] that is touched first (-1: none) and when, as a share of the step []."""
    t = jnp.linspace(0.0, 1.0, SAMPLES + 1)
    positions = jax.vmap(between, in_axes=(None, None, None, 0))(start, end, time, t)
    gap = jax.vmap(gaps)(positions)  # [SAMPLES + 1, 4]
    below = gap[1:] < 0.0
    # A ball that rounding left a hair inside is touched only if it still moves inwards.
    below = below.at[0].set(below[0] & ((gap[0] >= 0.0) | (gap[1] < gap[0])))
    bracket = jnp.argmax(below, axis=0)
    touched = jnp.any(below, axis=0)

    def root(surface: Array, k: Array) -> Array:
        def value(s: Array) -> Array:
            return gaps(between(start, end, time, s))[surface]

        def refine(_, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            low, high, s = carry
            f, slope = jax.jvp(value, (s,), (jnp.ones_like(s),))
            low, high = jnp.where(f >= 0, s, low), jnp.where(f >= 0, high, s)
            newton = s - f / jnp.where(jnp.abs(slope) > 1e-12, slope, 1e-12)
            inside = (newton >= low) & (newton <= high)
            return low, high, jnp.where(inside, newton, 0.5 * (low + high))  # pyright: ignore[reportReturnType]

        f0, f1 = gap[k, surface], gap[k + 1, surface]
        low, high = t[k], t[k + 1]
        guess = low + (high - low) * jnp.clip(f0 / (f0 - f1), 0.0, 1.0)
        return jax.lax.fori_loop(0, NEWTON_STEPS, refine, (low, high, guess))[2]

    # Only the surface whose bracket comes first can be first; among equals, the earliest chord.
    f0 = jnp.take_along_axis(gap, bracket[None], axis=0)[0]
    f1 = jnp.take_along_axis(gap, bracket[None] + 1, axis=0)[0]
    chord = bracket + jnp.clip(f0 / jnp.where(f0 == f1, 1.0, f0 - f1), 0.0, 1.0)
    surface = jnp.argmin(jnp.where(touched, chord, jnp.inf))
    share = root(surface, bracket[surface])
    return jnp.where(jnp.any(touched), surface, -1), share


def _impact(court: Court, ball: Ball, surface: Array) -> tuple[Array, Ball]:
    """The event's type [] and the ball after touching a surface of `gaps`."""
    normal = jax.jacfwd(gaps)(ball.position)[surface]
    normal = normal / jnp.maximum(jnp.sqrt(jnp.sum(normal**2)), 1e-9)
    stack = (court.table, court.net, court.cord, court.floor)
    touched = jax.tree.map(
        lambda *leaves: jnp.stack([jnp.asarray(leaf, jnp.float32) for leaf in leaves])[surface],
        *stack,
    )
    on_top = jnp.where(ball.position[0] < 0.0, NEAR, FAR)
    kinds = jnp.stack(
        [
            jnp.where(normal[2] > 1e-3, on_top, SIDE),
            jnp.asarray(TOUCHED_NET),
            jnp.asarray(TOUCHED_CORD),
            jnp.asarray(TOUCHED_FLOOR),
        ]
    )
    into = jnp.dot(ball.velocity, normal)
    after = bounce(touched, ball, normal)
    # A ball that leaves already is let go.
    after = jax.tree.map(lambda new, old: jnp.where(into < 0.0, new, old), after, ball)
    return kinds[surface].astype(jnp.int32), after


def advance(
    model: FlightModel, air: Air, court: Court, ball: Ball, time: Array | float
) -> tuple[Ball, Events]:
    """The ball after `time` [s], at most a few milliseconds, and its impacts [MAX_IMPACTS]."""

    def slot(carry: tuple[Ball, Array], _):
        ball, left = carry
        end = fly(model, air, ball, left)
        surface, share = _first_impact(ball, end, left)
        happened = surface >= 0
        at = fly(model, air, ball, share * left)
        kind, after = _impact(court, at, jnp.maximum(surface, 0))
        ball = jax.tree.map(lambda hit, free: jnp.where(happened, hit, free), after, end)
        event = Events(jnp.where(happened, kind, 0), time - left + share * left, at, after)
        return (ball, jnp.where(happened, (1.0 - share) * left, 0.0)), event

    start = (ball, jnp.asarray(time, ball.position.dtype))
    (ball, left), events = jax.lax.scan(slot, start, None, length=MAX_IMPACTS)
    return fly(model, air, ball, left), events


class Flight(NamedTuple):
    """A ball's way, leaves [T, ...] per step, and its impacts [T, MAX_IMPACTS]."""

    ball: Ball  # after each step
    events: Events  # times since the flight began


def simulate(
    model: FlightModel,
    air: Air,
    court: Court,
    ball: Ball,
    num_steps: int,
    time_step: float = 0.004,
) -> Flight:
    """Flies a ball for `num_steps` steps of `time_step` [s]; no robot is in the way."""

    def step(ball: Ball, index: Array):
        ball, events = advance(model, air, court, ball, time_step)
        return ball, (ball, events._replace(time=events.time + index * time_step))

    return Flight(*jax.lax.scan(step, ball, jnp.arange(num_steps))[1])
