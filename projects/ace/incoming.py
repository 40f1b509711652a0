"""A bank of incoming balls, flown once: before the racket touches it, a ball knows no robot.

An episode only reads its ball's way from the bank, so a step of the environment costs neither
flight nor impacts, and the way is the exact one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from projects.ace.ball import AIR, Air, Ball, FlightModel
from projects.ace.events import COURT, FAR, MAX_IMPACTS, NEAR, Court, Events, simulate
from projects.ace.shots import ShotKind

SAMPLE_STEP = 0.004  # [s] between the bank's samples
NUM_SAMPLES = 361  # 1.44 s of flight
COARSE_STEP = 0.012  # [s] enough to tell a legal ball: 26 m/s are looked at every 4 cm
CHUNK = 256  # balls that are flown together


@struct.dataclass
class Incoming:
    """`N` balls after the opponent's stroke; `S` samples every `SAMPLE_STEP`, the first at 0."""

    start: Array  # [N, 9] the state after the stroke
    position: Array  # [N, S, 3] [m]
    velocity: Array  # [N, S, 3] [m/s]
    spin: Array  # [N, 2, 3] before and after the bounce on the robot's half [rad/s]
    bounce_time: Array  # [N] of that bounce [s]
    end_time: Array  # [N] when the ball is dead: its next touch of anything [s]
    legal: Array  # [N] bool
    serve: Array  # [N] bool


def to_ball(states: Array) -> Ball:
    """States [..., 9] as balls."""
    return Ball(states[..., :3], states[..., 3:6], states[..., 6:])


def _judge(kind: Array, time: Array, serve: Array) -> tuple[Array, Array, Array, Array]:
    """From the events of a ball, [K] in order: whether it is legal, the index of its bounce on the
    robot's half, the times of that bounce and of the next event."""
    happened = kind > 0
    order = jnp.cumsum(happened) - 1  # the event's number, from 0
    own = jnp.where(serve, 1, 0)  # a serve touches the server's half first
    bounce = happened & (order == own) & (kind == NEAR)
    first_far = jnp.any(happened & (order == 0) & (kind == FAR))
    legal = jnp.any(bounce) & (first_far | ~serve)
    after = happened & (order == own + 1)
    end = jnp.where(jnp.any(after), time[jnp.argmax(after)], jnp.inf)
    index = jnp.argmax(bounce)
    return legal, index, time[index], end


Flights = Callable[[np.ndarray, np.ndarray], Incoming]  # states [N, 9], serve [N]


def make_flights(
    model: FlightModel,
    air: Air = AIR,
    court: Court = COURT,
    *,
    time_step: float = SAMPLE_STEP,
) -> Flights:
    """A function of states [N, 9] and serves [N] that flies them all, sampled every `time_step`
    [s] for 1.44 s; `end_time` is infinite for a ball that is still alive then."""
    num_steps = round((NUM_SAMPLES - 1) * SAMPLE_STEP / time_step)

    @jax.jit
    def fly(states: Array, serve: Array) -> Incoming:
        def one(state: Array, serve: Array) -> Incoming:
            ball = to_ball(state)
            flight = simulate(model, air, court, ball, num_steps, time_step)
            events: Events = jax.tree.map(
                lambda leaf: leaf.reshape((num_steps * MAX_IMPACTS, *leaf.shape[2:])),
                flight.events,
            )
            legal, index, bounce_time, end_time = _judge(events.kind, events.time, serve)
            with_start = lambda first, rest: jnp.concatenate([first[None], rest])  # noqa: E731
            return Incoming(
                start=state,
                position=with_start(ball.position, flight.ball.position),
                velocity=with_start(ball.velocity, flight.ball.velocity),
                spin=jnp.stack([events.before.spin[index], events.after.spin[index]]),
                bounce_time=bounce_time,
                end_time=end_time,
                legal=legal,
                serve=serve,
            )

        return jax.vmap(one)(states, serve)

    def run(states: np.ndarray, serve: np.ndarray) -> Incoming:
        parts = []
        for first in range(0, len(states), CHUNK):
            part = np.asarray(states[first : first + CHUNK], np.float32)
            chunk_serve = np.asarray(serve[first : first + CHUNK], bool)
            short = CHUNK - len(part)  # always the same shapes, so one compilation
            flown = fly(
                np.concatenate([part, np.repeat(part[:1], short, axis=0)]),
                np.concatenate([chunk_serve, np.repeat(chunk_serve[:1], short)]),
            )
            parts.append(select(jax.device_get(flown), slice(len(part))))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    return run


def select(bank: Incoming, rows: Any) -> Incoming:
    return jax.tree.map(lambda leaf: leaf[rows], bank)


def legal_states(flights: Flights, kind: ShotKind) -> Callable[[np.ndarray], np.ndarray]:
    """The legality test that `draw_shots` asks for."""
    return lambda states: np.asarray(flights(states, np.full(len(states), kind == "serve")).legal)
