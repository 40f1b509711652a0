"""The robot arm: two slides and six hinges that carry the racket; kinematics and clearances.

Limits are Ace's, published in the README of SonyResearch/feasible_action_for_optimal_control,
"configuration of the ACE table tennis robot". Sony gives neither link lengths nor the order of the
axes; the signs it gives for mirroring a pose in y = 0 (+ for J1, - for all others) fit a slide
along x, a slide along y, and hinges about z or x on an arm that stands upright at q = 0. So:

    J1 slide x, J2 slide y, J3 z | J4 x, J5 z | J6 x | J7 x, J8 z | racket, face along y
             trunk            upper arm     forearm    hand

The lengths are ours. They give the racket a speed along x that brackets the published 22 m/s when
every joint runs at its limit. With the base at x = -2.40 the trunk cannot reach the table.

Frame and units are those of `ball`: origin at the centre of the table top, x towards the opponent,
z up, SI, radians. Joint vectors [8] hold metres for the slides and radians for the hinges.
"""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from projects.ace.events import (
    HALF_LENGTH,
    HALF_WIDTH,
    NET_HALF_WIDTH,
    NET_HEIGHT,
    TABLE_HEIGHT,
    TABLE_THICKNESS,
)

NUM_JOINTS = 8
MIRROR = np.array([1, -1, -1, -1, -1, -1, -1, -1], np.float32)  # of a pose, in y = 0

# Geometry at q = 0, all on one vertical line [m].
BASE_X = -2.40  # of the trunk when J1 = 0
RAIL_Z, TRUNK_Z, SHOULDER_Z = -0.56, -0.40, 0.10  # of the slide, J3 and J4
UPPER_ARM = 0.45  # J4 to J6
SHOULDER = 0.05  # of it, J4 to J5
FOREARM = 0.36  # J6 to J7
WRIST = 0.10  # J7 to J8
GRIP = 0.15  # J8 to the blade's centre
HAND = WRIST + GRIP
BLADE_RADIUS = 0.076  # [m]
BLADE_THICKNESS = 0.013  # wood and two rubbers [m]

# The body for clearances: capsules around the axes, and the blade. Radii are ours [m].
RADII = np.array([0.09, 0.06, 0.05, 0.04, 0.016], np.float32)
CLEARANCES = (
    "trunk to table",
    "upper arm to table",
    "forearm to table",
    "wrist to table",
    "handle to table",
    "blade to table",
    "blade to net",
)
PROJECTIONS = 10  # of the blade's nearest point; within 1 mm where it is closer than 3 cm

# Home: the racket hangs in front of the base, 0.25 m above the table's plane and facing +x.
HOME = np.array([0.35, 0.0, np.pi / 2, 0.35, 0.0, 1.27, 1.52, 0.0], np.float32)


@struct.dataclass
class ArmParams:
    """Every parameter that may vary in a population, float32 leaves."""

    position_limit: Array  # [8] each side of zero [m, rad]
    velocity_limit: Array  # [8] [m/s, rad/s]
    acceleration_limit: Array  # [8] [m/s^2, rad/s^2]
    jerk_limit: Array  # [8] [m/s^3, rad/s^3]
    delay: Array  # [8] pure delay from reference to joint, at most 8 ms [s]
    lag: Array  # [8] time constant of the joint behind it [s]


@struct.dataclass
class JointState:
    """The joints' reference; leading axes, where there are any, are times."""

    position: Array  # [8] [m, rad]
    velocity: Array  # [8] [m/s, rad/s]
    acceleration: Array  # [8] [m/s^2, rad/s^2]


@struct.dataclass
class RacketPose:
    """Where the blade is; the two vectors are unit vectors at right angles."""

    centre: Array  # [3] of the blade [m]
    normal: Array  # [3] of the face that looks along +y at q = 0
    handle: Array  # [3] along the handle, from the grip to the blade


def ace_arm() -> ArmParams:
    """Ace's published limits; delay and lag are our estimate of a fast servo."""

    def column(*values: float) -> Array:
        return jnp.array(values, jnp.float32)

    return ArmParams(
        position_limit=column(0.925, 0.675, 3.14, 1.57, 3.14, 2.44, 2.40, 6.28),
        velocity_limit=column(4.0, 4.0, 7.85, 7.85, 12.56, 12.56, 7.85, 31.42),
        acceleration_limit=column(10.8, 15.7, 39.27, 39.27, 125.66, 125.66, 78.54, 628.32),
        jerk_limit=column(600.0, 600.0, 750.0, 750.0, 1500.0, 1500.0, 1000.0, 6000.0),
        delay=jnp.full(NUM_JOINTS, 0.002),
        lag=jnp.full(NUM_JOINTS, 0.004),
    )


def home(arm: ArmParams) -> JointState:
    """At rest in the home pose."""
    zero = jnp.zeros_like(arm.position_limit)
    return JointState(jnp.asarray(HOME), zero, zero)


@struct.dataclass
class _Chain:
    """Joints and axes of the arm in the world, [3] each."""

    shoulder: Array
    elbow: Array
    wrist: Array
    blade: Array
    trunk_x: Array  # J4
    upper_arm: Array  # J5, from shoulder to elbow
    elbow_x: Array  # J6 and J7
    forearm: Array
    hand: Array  # J8
    normal: Array


def _chain(q: Array) -> _Chain:
    sine, cosine = jnp.sin(q[2:]), jnp.cos(q[2:])
    s3, s4, s5, s6, _, s8 = (sine[i] for i in range(6))
    c3, c4, c5, c6, _, c8 = (cosine[i] for i in range(6))
    # J6 and J7 turn about the same axis.
    s67, c67 = jnp.sin(q[5] + q[6]), jnp.cos(q[5] + q[6])
    x3 = jnp.stack([c3, s3, jnp.zeros_like(c3)])
    y4 = jnp.stack([-s3 * c4, c3 * c4, s4])
    z4 = jnp.stack([s3 * s4, -c3 * s4, c4])
    x5 = c5 * x3 + s5 * y4
    y5 = c5 * y4 - s5 * x3
    forearm = c6 * z4 - s6 * y5
    hand = c67 * z4 - s67 * y5
    shoulder = jnp.stack([BASE_X + q[0], q[1], jnp.full_like(q[0], SHOULDER_Z)])
    elbow = shoulder + UPPER_ARM * z4
    wrist = elbow + FOREARM * forearm
    return _Chain(
        shoulder=shoulder,
        elbow=elbow,
        wrist=wrist,
        blade=wrist + HAND * hand,
        trunk_x=x3,
        upper_arm=z4,
        elbow_x=x5,
        forearm=forearm,
        hand=hand,
        normal=c8 * (c67 * y5 + s67 * z4) - s8 * x5,
    )


def racket_pose(q: Array) -> RacketPose:
    """The racket's pose at joint positions `q` [8]."""
    chain = _chain(q)
    return RacketPose(centre=chain.blade, normal=chain.normal, handle=chain.hand)


def joint_centres(q: Array) -> Array:
    """Rail, shoulder (J4), elbow (J6), wrist (J7) and the blade's centre, [5, 3] [m]."""
    chain = _chain(q)
    foot = chain.shoulder + jnp.array([0.0, 0.0, RAIL_Z - SHOULDER_Z])
    return jnp.stack([foot, chain.shoulder, chain.elbow, chain.wrist, chain.blade])


def cross(a: Array, b: Array) -> Array:
    """Cheaper to compile than `jnp.cross`, [3]."""
    return jnp.stack(
        [
            a[1] * b[2] - a[2] * b[1],
            a[2] * b[0] - a[0] * b[2],
            a[0] * b[1] - a[1] * b[0],
        ]
    )


def racket_motion(q: Array, qd: Array) -> tuple[RacketPose, Array, Array]:
    """Pose, velocity of the blade's centre [3] [m/s] and angular velocity [3] [rad/s].

    Args:
      q: [8] joint positions.
      qd: [8] joint velocities.
    """
    chain = _chain(q)
    turn = qd[3] * chain.trunk_x + jnp.array([0.0, 0.0, 1.0]) * qd[2]
    velocity = jnp.stack([qd[0], qd[1], jnp.zeros_like(qd[0])])
    velocity += UPPER_ARM * cross(turn, chain.upper_arm)
    turn += qd[4] * chain.upper_arm + qd[5] * chain.elbow_x
    velocity += FOREARM * cross(turn, chain.forearm)
    turn += qd[6] * chain.elbow_x
    velocity += HAND * cross(turn, chain.hand)
    turn += qd[7] * chain.hand
    pose = RacketPose(centre=chain.blade, normal=chain.normal, handle=chain.hand)
    return pose, velocity, turn


_TABLE_CENTRE = np.array([0.0, 0.0, -TABLE_THICKNESS / 2], np.float32)
_TABLE_HALF = np.array([HALF_LENGTH, HALF_WIDTH, TABLE_THICKNESS / 2], np.float32)
_NET_CENTRE = np.array([0.0, 0.0, NET_HEIGHT / 2], np.float32)
_NET_HALF = np.array([0.0, NET_HALF_WIDTH, NET_HEIGHT / 2], np.float32)


def _segments_to_box(start: Array, end: Array, half: np.ndarray) -> Array:
    """Distances [S] of segments, `start` to `end` [S, 3], from a box around the origin; 0 inside.

    The slope of the squared distance along a segment is piecewise linear and grows; it bends where
    the segment crosses a plane of the box. So its zero lies on the chord between two crossings.
    """
    way = end - start
    safe_way = jnp.where(jnp.abs(way) > 1e-9, way, 1e-9)
    t = jnp.concatenate([(half - start) / safe_way, (-half - start) / safe_way], axis=1)
    t = jnp.clip(jnp.pad(t, ((0, 0), (1, 1)), constant_values=((0, 0), (0.0, 1.0))), 0.0, 1.0)
    point = start[:, None] + t[..., None] * way[:, None]
    slope = jnp.sum((point - jnp.clip(point, -half, half)) * way[:, None], axis=2)  # [S, 8]
    before = slope <= 0.0
    t0 = jnp.max(jnp.where(before, t, 0.0), axis=1)
    t1 = jnp.min(jnp.where(before, 1.0, t), axis=1)
    slope0 = jnp.max(jnp.where(before, slope, -jnp.inf), axis=1)
    slope1 = jnp.min(jnp.where(before, jnp.inf, slope), axis=1)
    share = -slope0 / (slope1 - slope0)
    at = jnp.where(jnp.isfinite(share), t0 + share * (t1 - t0), jnp.where(before[:, 0], t0, 0.0))
    point = start + at[:, None] * way
    return jnp.sqrt(jnp.sum((point - jnp.clip(point, -half, half)) ** 2, axis=1))


def _disc_to_box(centre: Array, normal: Array, half: np.ndarray) -> Array:
    """Distance [] of the blade's flat disc from a box around the origin, by projecting to and fro.

    Never too small; 0 where they overlap.
    """
    point = centre
    for _ in range(PROJECTIONS):
        out = jnp.clip(point, -half, half) - centre
        out -= jnp.dot(out, normal) * normal
        length = jnp.sqrt(jnp.sum(out**2) + 1e-12)
        point = centre + out * jnp.minimum(1.0, BLADE_RADIUS / length)
    return jnp.sqrt(jnp.sum((point - jnp.clip(point, -half, half)) ** 2))


def clearances(q: Array) -> Array:
    """Distances [7] [m] of the arm from table and net at joint positions `q` [8]; see CLEARANCES.

    Negative where they touch. A capsule's distance is exact outside and stops at minus its radius,
    where its axis enters the table. The blade is a disc with a rounded rim. The net is measured to
    the blade alone: the rest of the arm ends before it.
    """
    chain = _chain(q)
    wrist, hand = chain.wrist, chain.hand
    foot = chain.shoulder + jnp.array([0.0, 0.0, RAIL_Z - SHOULDER_Z])
    neck = wrist + WRIST * hand
    rim = chain.blade - BLADE_RADIUS * hand
    start = jnp.stack([foot, chain.shoulder, chain.elbow, wrist, neck])
    end = jnp.stack([chain.shoulder, chain.elbow, wrist, neck, rim])
    body = _segments_to_box(start - _TABLE_CENTRE, end - _TABLE_CENTRE, _TABLE_HALF) - RADII
    blade = jnp.stack(
        [
            _disc_to_box(chain.blade - _TABLE_CENTRE, chain.normal, _TABLE_HALF),
            _disc_to_box(chain.blade - _NET_CENTRE, chain.normal, _NET_HALF),
        ]
    )
    return jnp.concatenate([body, blade - BLADE_THICKNESS / 2])


def mjcf() -> str:
    """The same arm with table and net as a MuJoCo model, for pictures and as a cross-check.

    Joints are J1 .. J8, capsules and blade are named as in CLEARANCES, the site `racket` is at the
    blade's centre with the normal along its y axis and the handle along its z axis.
    """
    limit = np.asarray(ace_arm().position_limit)

    def joint(number: int, kind: str, axis: str) -> str:
        bound = limit[number - 1]
        return (
            f'<joint name="J{number}" type="{kind}" axis="{axis}" limited="true" '
            f'range="{-bound:.6g} {bound:.6g}"/>'
        )

    def capsule(name: str, index: int, low: float, high: float) -> str:
        return (
            f'<geom name="{name}" type="capsule" size="{RADII[index]:.6g}" '
            f'fromto="0 0 {low:.6g} 0 0 {high:.6g}"/>'
        )

    def box(name: str, centre: np.ndarray, half: np.ndarray, colour: str) -> str:
        at = " ".join(f"{value:.6g}" for value in centre)
        # MuJoCo refuses a box without thickness.
        size = " ".join(f"{max(value, 1e-4):.6g}" for value in half)
        return f'<geom name="{name}" type="box" pos="{at}" size="{size}" rgba="{colour}"/>'

    step = (TRUNK_Z - RAIL_Z) / 2
    return f"""<mujoco model="ace">
  <compiler angle="radian" autolimits="true"/>
  <option gravity="0 0 0"/>
  <default><geom contype="0" conaffinity="0" rgba="0.85 0.85 0.88 1"/></default>
  <worldbody>
    <light pos="0 0 3" dir="0 0 -1" directional="true"/>
    <geom name="floor" type="plane" pos="0 0 {-TABLE_HEIGHT}" size="5 4 0.1" rgba="0.4 0.3 0.3 1"/>
    {box("table", _TABLE_CENTRE, _TABLE_HALF, "0.1 0.3 0.5 1")}
    {box("net", _NET_CENTRE, _NET_HALF, "0.9 0.9 0.9 0.6")}
    <body name="slide_x" pos="{BASE_X} 0 {RAIL_Z}">
      {joint(1, "slide", "1 0 0")}
      <geom type="box" size="0.12 0.12 0.02" mass="1"/>
      <body name="slide_y" pos="0 0 {step:.6g}">
        {joint(2, "slide", "0 1 0")}
        <geom type="box" size="0.1 0.1 0.02" mass="1"/>
        <body name="trunk" pos="0 0 {step:.6g}">
          {joint(3, "hinge", "0 0 1")}
          {capsule("trunk", 0, RAIL_Z - TRUNK_Z, SHOULDER_Z - TRUNK_Z)}
          <body name="shoulder" pos="0 0 {SHOULDER_Z - TRUNK_Z:.6g}">
            {joint(4, "hinge", "1 0 0")}
            <geom type="sphere" size="{RADII[1]:.6g}"/>
            <body name="upper_arm" pos="0 0 {SHOULDER}">
              {joint(5, "hinge", "0 0 1")}
              {capsule("upper arm", 1, -SHOULDER, UPPER_ARM - SHOULDER)}
              <body name="forearm" pos="0 0 {UPPER_ARM - SHOULDER:.6g}">
                {joint(6, "hinge", "1 0 0")}
                {capsule("forearm", 2, 0.0, FOREARM)}
                <body name="wrist" pos="0 0 {FOREARM}">
                  {joint(7, "hinge", "1 0 0")}
                  {capsule("wrist", 3, 0.0, WRIST)}
                  <body name="racket" pos="0 0 {WRIST}">
                    {joint(8, "hinge", "0 0 1")}
                    {capsule("handle", 4, 0.0, GRIP - BLADE_RADIUS)}
                    <geom name="blade" type="cylinder" pos="0 0 {GRIP}" zaxis="0 1 0"
                      size="{BLADE_RADIUS} {BLADE_THICKNESS / 2}" rgba="0.8 0.1 0.1 1"/>
                    <site name="racket" pos="0 0 {GRIP}"/>
                  </body>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
