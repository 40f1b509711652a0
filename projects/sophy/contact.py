"""Contact between cars: oriented boxes and planar impulses, for a list of pairs.

Boxes touch where none of their four axes separates them (the separating axis theorem; Gottschalk,
Lin and Manocha, "OBBTree", 1996, here in the plane). The axis of least overlap is the normal; the
point of contact is the mean of the corners of either box inside the other. The impulse there has
restitution and Coulomb friction (Brach & Brach, "Vehicle Accident Analysis and Reconstruction
Methods", 2nd ed. 2011, planar impact mechanics), equal and opposite on the two cars, so that
momentum and angular momentum are conserved. A car that touches several takes a part of each
impulse: one Jacobi pass, in which both cars of a pair take the same part.

Not all pairs are looked at, only the nearest 3 M of M cars: bodies that touch without overlapping
make a planar graph, which has fewer than three edges per node, so there is a place for each contact
unless longer bodies apart stand between.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from projects.sophy.car import Car, CarState, body_middle

RESTITUTION = 0.15  # [-] bodywork on bodywork, estimate
FRICTION = 0.3  # [-] sliding friction of bodywork on bodywork, estimate
PAIRS_PER_CAR = 3


class Pairs(NamedTuple):
    """Which cars may meet; every pair once, first < second."""

    first: Array  # [P] int32
    second: Array  # [P] int32
    near: Array  # [P] bool, false where the list is longer than there are pairs to look at


class Contacts(NamedTuple):
    """What the cars of each pair do; false or zero where they do not touch."""

    touching: Array  # [P] bool
    normal: Array  # [2, P] unit, in the world, from the first car to the second
    point: Array  # [2, P] where they touch [m]
    depth: Array  # [P] of the overlap along the normal [m]
    closing: Array  # [P] speed at which the gap closes at the point before the impulse [m/s]
    impulse: Array  # [P] along the normal [N s]


class _Body(NamedTuple):
    """Cars as boxes, every number an array of its own, so that a loop over pairs runs straight."""

    x: Array  # of the centre of gravity [m]
    y: Array
    cosine: Array  # of the heading
    sine: Array
    speed_x: Array  # in the world [m/s]
    speed_y: Array
    yaw_rate: Array
    # From here on nothing changes while cars move.
    middle: Array  # of the box, ahead of the centre of gravity [m]
    half_length: Array  # [m]
    half_width: Array
    mobility: Array  # over the mass [1/kg]
    turning: Array  # over the yaw inertia [1/(kg m^2)]

    @property
    def centre_x(self) -> Array:
        """Of the box [m]."""
        return self.x + self.middle * self.cosine

    @property
    def centre_y(self) -> Array:
        return self.y + self.middle * self.sine

    def of(self, pairs: Array) -> "_Body":
        """The first or the second cars of pairs, by rows of an identity [P, M]."""
        # Two products, so that a loop over sub-steps works out only the first of them anew.
        fixed = _Body._fields.index("middle")
        moving, constant = jnp.stack(self[:fixed]), jnp.stack(self[fixed:])
        return _Body(*(moving @ pairs.T), *(constant @ pairs.T))


def nearest_pairs(position: Array, may_meet: Array) -> Pairs:
    """The nearest pairs of cars at `position` [M, 2] of those that `may_meet` [M, M] bool."""
    num = position.shape[0]
    upper = np.triu_indices(num, 1)
    gap = position[upper[0]] - position[upper[1]]
    distance = jnp.where(may_meet[upper], jnp.sum(gap * gap, -1), jnp.inf)
    if len(upper[0]) <= PAIRS_PER_CAR * num:
        first, second = (jnp.asarray(index, jnp.int32) for index in upper)
        return Pairs(first, second, jnp.isfinite(distance))
    distance, order = jax.lax.top_k(-distance, PAIRS_PER_CAR * num)
    first, second = (jnp.asarray(index, jnp.int32)[order] for index in upper)
    return Pairs(first, second, jnp.isfinite(distance))


def _bodies(cars: Car, states: CarState) -> _Body:
    cosine, sine = jnp.cos(states.heading), jnp.sin(states.heading)
    (x, y), (forward, left) = states.position.T, states.velocity.T
    return _Body(
        x=x,
        y=y,
        cosine=cosine,
        sine=sine,
        speed_x=forward * cosine - left * sine,
        speed_y=forward * sine + left * cosine,
        yaw_rate=states.yaw_rate,
        middle=body_middle(cars),
        half_length=0.5 * cars.length,
        half_width=0.5 * cars.width,
        mobility=1.0 / cars.mass,
        turning=1.0 / cars.yaw_inertia,
    )


def _overlap(a: _Body, b: _Body) -> tuple[Array, Array, Array, Array, Array]:
    """Of pairs [P]: depth [m], negative where apart; x and y of the normal from `a` to `b`; x and y
    of the point of contact [m]."""
    gap_x, gap_y = b.centre_x - a.centre_x, b.centre_y - a.centre_y
    cosine = jnp.abs(a.cosine * b.cosine + a.sine * b.sine)
    sine = jnp.abs(a.cosine * b.sine - a.sine * b.cosine)
    depth: Array = jnp.full_like(gap_x, jnp.inf)
    normal_x, normal_y = jnp.zeros_like(gap_x), jnp.zeros_like(gap_x)
    for box, other in ((a, b), (b, a)):
        ahead = other.half_length * cosine + other.half_width * sine
        aside = other.half_length * sine + other.half_width * cosine
        for axis_x, axis_y, reach in (
            (box.cosine, box.sine, box.half_length + ahead),
            (-box.sine, box.cosine, box.half_width + aside),
        ):
            distance = gap_x * axis_x + gap_y * axis_y
            overlap = reach - jnp.abs(distance)
            sign = jnp.where(distance < 0.0, -1.0, 1.0)
            less = jnp.less(overlap, depth)
            depth = jnp.where(less, overlap, depth)
            normal_x = jnp.where(less, sign * axis_x, normal_x)
            normal_y = jnp.where(less, sign * axis_y, normal_y)

    total_x, total_y, count = jnp.zeros_like(depth), jnp.zeros_like(depth), jnp.zeros_like(depth)
    for box, other, sign in ((a, b, -1.0), (b, a, 1.0)):
        for along, across in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)):
            along, across = along * box.half_length, across * box.half_width
            corner_x = along * box.cosine - across * box.sine
            corner_y = along * box.sine + across * box.cosine
            there_x, there_y = corner_x + sign * gap_x, corner_y + sign * gap_y
            ahead = there_x * other.cosine + there_y * other.sine
            aside = there_y * other.cosine - there_x * other.sine
            inside = (jnp.abs(ahead) <= other.half_length) & (jnp.abs(aside) <= other.half_width)
            total_x += jnp.where(inside, box.centre_x + corner_x, 0.0)
            total_y += jnp.where(inside, box.centre_y + corner_y, 0.0)
            count += inside
    some, count = count > 0.0, jnp.maximum(count, 1.0)
    point_x = jnp.where(some, total_x / count, 0.5 * (a.centre_x + b.centre_x))
    point_y = jnp.where(some, total_y / count, 0.5 * (a.centre_y + b.centre_y))
    return depth, normal_x, normal_y, point_x, point_y


def collide_cars(cars: Car, states: CarState, pairs: Pairs) -> tuple[CarState, Contacts]:
    """Resolves the contacts between cars, leaves [M, ...], whose mass is with the fuel on board;
    returns the new states too."""
    bodies = _bodies(cars, states)
    # Rows of an identity [P, M]: a product with them picks the cars of pairs, exactly, or sums over
    # the pairs of cars; on a CPU both are several times as fast as gathers and scatters.
    number = jnp.arange(cars.mass.shape[0])
    first = (number == pairs.first[:, None]).astype(jnp.float32)
    second = (number == pairs.second[:, None]).astype(jnp.float32)
    a, b = bodies.of(first), bodies.of(second)
    depth, normal_x, normal_y, point_x, point_y = _overlap(a, b)
    touching = (depth > 0.0) & pairs.near
    touch = touching.astype(jnp.float32)
    depth = touch * depth

    arm_ax, arm_ay, arm_bx, arm_by = point_x - a.x, point_y - a.y, point_x - b.x, point_y - b.y
    closing_x = a.speed_x - a.yaw_rate * arm_ay - b.speed_x + b.yaw_rate * arm_by
    closing_y = a.speed_y + a.yaw_rate * arm_ax - b.speed_y - b.yaw_rate * arm_bx
    closing = touch * (closing_x * normal_x + closing_y * normal_y)
    sliding = closing_y * normal_x - closing_x * normal_y

    def mobility(x: Array, y: Array) -> Array:
        """Of the gap at the point in a direction, per impulse [1/kg]."""
        turning = a.turning * (arm_ax * y - arm_ay * x) ** 2
        return a.mobility + b.mobility + turning + b.turning * (arm_bx * y - arm_by * x) ** 2

    touches = touch @ (first + second)  # [M]
    part = touch / jnp.maximum(jnp.maximum(first @ touches, second @ touches), 1.0)
    push = part * (1.0 + RESTITUTION) * jnp.maximum(closing, 0.0) / mobility(normal_x, normal_y)
    drag = part * sliding / mobility(-normal_y, normal_x)
    drag = jnp.clip(drag, -FRICTION * push, FRICTION * push)
    impulse_x = push * normal_x - drag * normal_y  # on the second car
    impulse_y = push * normal_y + drag * normal_x
    # The overlap is split by inverse mass.
    apart = part * depth / (a.mobility + b.mobility)
    both = [impulse_x, impulse_y, apart * normal_x, apart * normal_y]
    on_second = jnp.stack([*both, arm_bx * impulse_y - arm_by * impulse_x])
    on_first = jnp.stack([*both, arm_ax * impulse_y - arm_ay * impulse_x])
    gained = on_second @ second - on_first @ first  # [5, M]
    kick_x, kick_y, move_x, move_y = gained[:4] * bodies.mobility
    kick = (
        kick_x * bodies.cosine + kick_y * bodies.sine,
        kick_y * bodies.cosine - kick_x * bodies.sine,
    )
    states = dataclasses.replace(
        states,
        position=states.position + jnp.stack([move_x, move_y], -1),
        velocity=states.velocity + jnp.stack(kick, -1),
        yaw_rate=states.yaw_rate + gained[4] * bodies.turning,
    )
    return states, Contacts(
        touching=touching,
        normal=touch * jnp.stack([normal_x, normal_y]),
        point=touch * jnp.stack([point_x, point_y]),
        depth=depth,
        closing=closing,
        impulse=push,
    )
