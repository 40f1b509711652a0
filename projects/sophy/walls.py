"""Walls along a circuit: one impulse per sub-step at the deepest corner of the car's body.

The impulse removes the corner's velocity into the wall with restitution and adds Coulomb friction
along it, both limited by the effective mass at the corner (Brach & Brach, "Vehicle Accident
Analysis and Reconstruction Methods", 2nd ed. 2011, planar impact mechanics); then the body is
pushed out. Walls are curves of constant offset in course coordinates, so the cost does not depend
on the circuit.
"""

import dataclasses

import jax.numpy as jnp
from flax import struct
from jax import Array

from projects.sophy.car import Car, CarState, body_middle
from projects.sophy.track import TrackPoint, lateral_offset

RESTITUTION = 0.2  # [-] estimate for a guard rail
FRICTION = 0.4  # [-] sliding friction of bodywork on a wall, estimate


@struct.dataclass
class Placement:
    """Where a car stands on the course."""

    offset: Array  # [] lateral offset of the centre of gravity, left positive [m]
    sine: Array  # [] of the angle from the course's direction to the car's heading
    cosine: Array  # []


def place(point: TrackPoint, state: CarState) -> Placement:
    """The car's lateral offset and its angle to the course at `point`."""
    east, north = jnp.cos(state.heading), jnp.sin(state.heading)
    along, across = point.tangent[0], point.tangent[1]
    return Placement(
        offset=lateral_offset(point, state.position),
        sine=along * north - across * east,
        cosine=along * east + across * north,
    )


def offset_of(placement: Placement, x: Array, y: Array) -> Array:
    """Lateral offsets [...] [m] of body points `x` forward and `y` left [...] [m], to first order
    in the course's curvature."""
    return placement.offset + x * placement.sine + y * placement.cosine


def course_step(
    point: TrackPoint, placement: Placement, velocity: Array, time_step: float
) -> Array:
    """How far a car with a velocity [2] comes along the centre line in a step [] [m]."""
    along = velocity[0] * placement.cosine - velocity[1] * placement.sine
    return time_step * along / jnp.maximum(1.0 - placement.offset * point.curvature, 0.25)


def corners(car: Car) -> tuple[Array, Array]:
    """Corners of the body, x [4] and y [4] [m], in the wheels' order."""
    middle = body_middle(car)
    half_length, half_width = 0.5 * car.length, 0.5 * car.width
    x = middle + half_length * jnp.array([1.0, 1.0, -1.0, -1.0])
    y = half_width * jnp.array([1.0, -1.0, 1.0, -1.0])
    return x, y


def collide(
    car: Car, state: CarState, point: TrackPoint, placement: Placement
) -> tuple[CarState, Array]:
    """Resolves contact with the walls. Returns the new state and whether there was contact []."""
    x, y = corners(car)
    offsets = offset_of(placement, x, y)
    depth_left = offsets - point.wall_left
    depth_right = -offsets - point.wall_right
    depth = jnp.maximum(depth_left, depth_right)
    deepest = jnp.max(depth)
    chosen = (depth == deepest).astype(jnp.float32)
    chosen = chosen / jnp.sum(chosen)
    x, y = jnp.sum(chosen * x), jnp.sum(chosen * y)
    side = jnp.where(jnp.max(depth_left) >= jnp.max(depth_right), 1.0, -1.0)

    # In the body frame the course's left is (sine, cosine) and its direction (cosine, -sine).
    out_x, out_y = side * placement.sine, side * placement.cosine
    along_x, along_y = placement.cosine, -placement.sine
    velocity_x = state.velocity[0] - state.yaw_rate * y
    velocity_y = state.velocity[1] + state.yaw_rate * x
    out_speed = velocity_x * out_x + velocity_y * out_y
    along_speed = velocity_x * along_x + velocity_y * along_y

    out_arm = x * out_y - y * out_x
    along_arm = x * along_y - y * along_x
    out_mobility = 1.0 / car.mass + out_arm * out_arm / car.yaw_inertia
    along_mobility = 1.0 / car.mass + along_arm * along_arm / car.yaw_inertia
    touching = deepest > 0.0
    push = jnp.where(
        touching, (1.0 + RESTITUTION) * jnp.maximum(out_speed, 0.0) / out_mobility, 0.0
    )
    drag = jnp.clip(along_speed / along_mobility, -FRICTION * push, FRICTION * push)

    impulse_x = -push * out_x - drag * along_x
    impulse_y = -push * out_y - drag * along_y
    way_out = jnp.maximum(deepest, 0.0) * side
    left = jnp.stack([-point.tangent[1], point.tangent[0]])
    state = dataclasses.replace(
        state,
        position=state.position - way_out * left,
        velocity=state.velocity + jnp.stack([impulse_x, impulse_y]) / car.mass,
        yaw_rate=state.yaw_rate + (x * impulse_y - y * impulse_x) / car.yaw_inertia,
    )
    return state, touching
