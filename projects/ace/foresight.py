"""What would come of it if the racket went on as it moves: features for actor and critics.

All of it is rough and cheap; what is paid and counted comes from `racket` and `returning`.
"""

import jax.numpy as jnp
from jax import Array

from projects.ace.arm import cross
from projects.ace.ball import AIR, RADIUS, Ball, FlightModel, acceleration
from projects.ace.contact import Rubber, strike
from projects.ace.events import NET_HEIGHT
from projects.ace.racket import RacketMotion

FORESEEN = 0.1  # [s] for which the racket is taken to go on as it moves
LATEST = 0.02  # [s] by which the nearest moment may lie off a sample of the ball's way
ITERATIONS = 2  # of the mean acceleration of a flight


def foresee(
    model: FlightModel,
    rubber: Rubber,
    way: Ball,
    times: Array,
    racket: RacketMotion,
    target: Array,
) -> tuple[Array, ...]:
    """Features of the order of 1.

    Where the racket comes nearest to the ball's way, the ball is taken to be struck, wherever on
    the racket's plane it is; its flight after that is a rough one.

    Args:
      way: [T] the ball at `times` [T] from now on [s].
      racket: pose, velocity and angular velocity now.
      target: [2] where the return should land [m].
    """
    pose, velocity, turn = racket
    moved = jnp.minimum(times, FORESEEN)[:, None]
    centre = pose.centre + moved * velocity
    k = jnp.argmin(jnp.sum((way.position - centre) ** 2, axis=1))
    # Between the samples, by the speed at which they pass each other.
    gap, passing = way.position[k] - centre[k], way.velocity[k] - velocity
    late = -jnp.dot(gap, passing) / jnp.maximum(jnp.dot(passing, passing), 1e-3)
    late = jnp.clip(late, -LATEST, LATEST)
    gap = gap + late * passing
    time = jnp.minimum(times[k] + late, FORESEEN)
    normal = pose.normal + time * cross(turn, pose.normal)
    handle = pose.handle + time * cross(turn, pose.handle)
    normal, handle = normal / jnp.linalg.norm(normal), handle / jnp.linalg.norm(handle)
    touched = velocity + cross(turn, gap)
    closing = jnp.dot(way.velocity[k] - touched, normal)
    arriving = Ball(way.position[k] + late * way.velocity[k], way.velocity[k], way.spin[k])
    face = jnp.where(closing < 0.0, normal, -normal)
    out = strike(rubber, arriving, face, touched)
    net_height, landing = rough_flight(model, out)
    frame = jnp.stack([normal, handle, cross(normal, handle)])
    return (
        (times[k] + late) * 10.0,
        (frame @ gap) * 5.0,
        normal,
        closing / 8.0,
        out.velocity / 8.0,
        out.spin / 250.0,
        net_height * 2.0,
        landing - target,
    )


def rough_flight(model: FlightModel, ball: Ball) -> tuple[Array, Array]:
    """Height above the cord where a struck ball passes the net [] and its landing [2], clipped.

    The flight is a parabola under the acceleration that the ball has half-way, found by iteration.
    """
    position, velocity = ball.position, ball.velocity

    def down(a: Array) -> Array:
        """When it comes down to the table's plane."""
        fall = jnp.minimum(a[2], -2.0)
        # Not below a small number, where the root has no gradient.
        rest = jnp.maximum(velocity[2] ** 2 - 2.0 * fall * (position[2] - RADIUS), 1e-6)
        return jnp.clip(-(velocity[2] + jnp.sqrt(rest)) / fall, 0.0, 1.5)

    first = acceleration(model, AIR, velocity, ball.spin)
    mean = first
    for _ in range(ITERATIONS):
        mean = acceleration(model, AIR, velocity + 0.5 * down(mean) * mean, ball.spin)
    time = down(mean)

    def when_at_net(speed: Array) -> Array:
        return jnp.clip(-position[0] / jnp.maximum(speed, 0.5), 0.0, 1.5)

    to_net = when_at_net(velocity[0] + 0.5 * first[0] * when_at_net(velocity[0]))
    share = jnp.clip(to_net / jnp.maximum(time, 1e-3), 0.0, 1.0)
    until = first[2] + share * (mean[2] - first[2])
    height = position[2] + to_net * (velocity[2] + 0.5 * to_net * until) - RADIUS - NET_HEIGHT
    landing = position[:2] + time * (velocity[:2] + 0.5 * time * mean[:2])
    return jnp.clip(height, -1.5, 1.5), jnp.clip(landing, -4.0, 4.0)
