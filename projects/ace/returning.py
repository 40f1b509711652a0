"""What becomes of a ball after the racket's stroke: over the net or not, and where it comes down.

The outgoing ball is flown at the moment of contact, so the stroke is paid for when it is made.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from projects.ace.ball import RADIUS, Air, Ball, FlightModel, between, fly
from projects.ace.events import HALF_LENGTH, HALF_WIDTH, NET_HALF_WIDTH, NET_HEIGHT

FLIGHT_STEP = 0.025  # [s] RK4 is good to a millimetre per second of flight
NUM_STEPS = 56  # 1.4 s


@struct.dataclass
class Verdict:
    legal: Array  # [] bool: over or around the net, then first on the far half
    over_net: Array  # [] bool
    net_clearance: Array  # [] ball's underside above the net where it passes x = 0 [m]; -1: never
    down: Array  # [] bool: whether it comes down to the table's height in time
    landing: Array  # [2] x, y where it first does, as if there were no net [m]
    landed_on: Array  # [] int32: 0 off the table, 1 own half, 2 far half


def judge_return(model: FlightModel, air: Air, ball: Ball) -> Verdict:
    """Flies a ball [3] from the racket to where it first comes down to the table's plane.

    A touch of the net counts as a fault, also where the ball would roll over the cord.
    """

    def step(carry: tuple[Ball, Array, Array, Array], _):
        ball, clearance, landing, down = carry
        after = fly(model, air, ball, FLIGHT_STEP)

        def crossing(axis: int, level: float) -> tuple[Array, Array]:
            """Whether and where [3] the way passes a plane, downwards for z and forwards for x."""
            a, b = ball.position[axis] - level, after.position[axis] - level
            passes = (a > 0.0) & (b <= 0.0) if axis == 2 else (a < 0.0) & (b >= 0.0)
            share = jnp.clip(a / jnp.where(passes, a - b, 1.0), 0.0, 1.0)
            for _ in range(2):  # secant steps on the cubic
                error = between(ball, after, FLIGHT_STEP, share)[axis] - level
                share = jnp.clip(share - error / jnp.where(passes, b - a, 1.0), 0.0, 1.0)
            return passes, between(ball, after, FLIGHT_STEP, share)

        lands, place = crossing(2, RADIUS)
        passes, over = crossing(0, 0.0)
        # Of a step that does both, the net comes first if the landing is beyond it.
        passes &= ~down & (~lands | (place[0] > 0.0))
        around = jnp.abs(over[1]) > NET_HALF_WIDTH + RADIUS
        height = jnp.where(around, 1.0, over[2] - RADIUS - NET_HEIGHT)
        clearance = jnp.where(passes, height, clearance)
        landing = jnp.where(lands & ~down, place[:2], landing)
        return (after, clearance, landing, down | lands), None

    start = (ball, jnp.asarray(-1.0), jnp.zeros(2), jnp.asarray(False))
    (_, clearance, landing, down), _ = jax.lax.scan(step, start, None, length=NUM_STEPS)
    over_net = clearance > 0.0
    on_table = down & (jnp.abs(landing[0]) <= HALF_LENGTH) & (jnp.abs(landing[1]) <= HALF_WIDTH)
    landed_on = jnp.where(on_table, jnp.where(landing[0] > 0.0, 2, 1), 0)
    # A ball that is struck below the table's height would come up through the board.
    through = (ball.position[2] < RADIUS) & (ball.position[0] > -HALF_LENGTH)
    return Verdict(
        legal=over_net & (landed_on == 2) & ~through,
        over_net=over_net,
        net_clearance=clearance,
        down=down,
        landing=landing,
        landed_on=landed_on.astype(jnp.int32),
    )
