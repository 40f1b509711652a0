"""Engine, clutch, automatic gearbox and differentials, as torques on four wheels.

The engine is a torque table times throttle, less its own drag. Layouts are numbers: `front_share`
is 1 for front, 0 for rear and between for all-wheel drive. The engine's speed is the shares' mean
of the wheel speeds, which makes the split conserve power. Every coupling is implicit: the engine's
inertia is part of the wheels' inertia matrix, and a differential or a brake is a friction clutch
whose impulse ends at equal speeds, so that neither overshoots however large it is.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

NUM_POINTS = 16  # torque table, evenly spaced from idle to the rev limit
MAX_GEARS = 8
LIMITER_BAND = 50.0  # the torque fades out over this range above the rev limit [rad/s]

FRONT = np.array([1.0, 1.0, 0.0, 0.0], np.float32)
REAR = np.array([0.0, 0.0, 1.0, 1.0], np.float32)

# How the two sides of the front, the rear and the centre differential are geared to the wheels.
COUPLED = np.array([[1, -1, 0, 0], [0, 0, 1, -1], [0.5, 0.5, -0.5, -0.5]], np.float32)


@struct.dataclass
class Drivetrain:
    """Engine to wheels. Couplings [3] are the front axle's, the rear axle's and the centre's."""

    torque: Array  # [NUM_POINTS] full-throttle torque, evenly from idle to rev_limit [N m]
    idle: Array  # lowest engine speed; the clutch slips below it [rad/s]
    launch: Array  # engine speed held by the slipping clutch at full throttle [rad/s]
    rev_limit: Array  # [rad/s]
    drag_torque: Array  # engine braking at the rev limit, falling linearly to 0 at idle [N m]
    inertia: Array  # engine and clutch, at the crankshaft [kg m^2]
    ratios: Array  # [MAX_GEARS] engine speed over wheel speed, final drive included [-]
    num_gears: Array  # [-]
    efficiency: Array  # engine to wheels [-]
    shift_up: Array  # engine speed for the next gear [rad/s]
    shift_down: Array  # the lower gear is taken when it would turn slower than this [rad/s]
    shift_time: Array  # no torque while shifting [s]
    front_share: Array  # of the torque [-]
    lock_preload: Array  # [3] torque that a coupling moves to the slower side at no load [N m]
    lock_ramp: Array  # [3] and its increase with the torque through the coupling [-]


class Drive(NamedTuple):
    """What the drivetrain does to the wheels in one sub-step."""

    share: Array  # [4] part of the torque that goes to each wheel [-]
    torque: Array  # [] on all driven wheels together [N m]
    inertia: Array  # [] engine inertia seen from the wheels, 0 with an open clutch [kg m^2]


def wheel_share(drivetrain: Drivetrain) -> Array:
    """Part of the drive torque that goes to each wheel, [4], before any locking."""
    front: Any = 0.5 * drivetrain.front_share
    return FRONT * front + REAR * (0.5 - front)


def gear_ratio(drivetrain: Drivetrain, gear: Array) -> Array:
    """Engine speed over wheel speed in `gear` (1 is the lowest)."""
    return jnp.sum(jnp.where(np.arange(1, MAX_GEARS + 1) == gear, drivetrain.ratios, 0.0))


def starting_gear(drivetrain: Drivetrain, wheel_speed: Array) -> Array:
    """The lowest gear that is not due for an upshift at this mean driven wheel speed [rad/s]."""
    due = drivetrain.ratios * wheel_speed > 0.95 * drivetrain.shift_up
    below_top = np.arange(1, MAX_GEARS + 1) < drivetrain.num_gears
    return 1 + jnp.sum(due & below_top).astype(jnp.int32)


def select_gear(
    drivetrain: Drivetrain,
    gear: Array,
    timer: Array,
    wheel_speed: Array,
    rolling_speed: Array,
    time_step: float,
) -> tuple[Array, Array]:
    """Automatic gearbox: the next (gear, shift timer).

    `wheel_speed` is the mean speed of the driven wheels, `rolling_speed` what it would be without
    slip [rad/s]. Spinning wheels cause no upshift and locked wheels no downshift, which is what
    keeps the box from hunting on a slippery ground.
    """
    timer = jnp.maximum(timer - time_step, 0.0)
    ready = timer <= 0.0
    up = rolling_speed * gear_ratio(drivetrain, gear) > drivetrain.shift_up
    lower = gear_ratio(drivetrain, gear - 1)
    down = jnp.maximum(wheel_speed, rolling_speed) * lower < drivetrain.shift_down
    up = ready & up & (gear < drivetrain.num_gears)
    down = ready & down & (gear > 1)
    gear = gear + up.astype(jnp.int32) - down.astype(jnp.int32)
    return gear, jnp.where(up | down, drivetrain.shift_time, timer)


def engine_torque(drivetrain: Drivetrain, speed: Array, throttle: Array, xp: Any = jnp) -> Array:
    """Crankshaft torque [N m] at an engine speed [rad/s] of at least idle, throttle in 0..1."""
    part = (speed - drivetrain.idle) / (drivetrain.rev_limit - drivetrain.idle)
    place = xp.clip(part, 0.0, 1.0) * (NUM_POINTS - 1)
    hats = xp.maximum(1.0 - xp.abs(place - np.arange(NUM_POINTS, dtype=np.float32)), 0.0)
    full = xp.sum(hats * drivetrain.torque)
    limiter = xp.clip(1.0 + (drivetrain.rev_limit - speed) / LIMITER_BAND, 0.0, 1.0)
    return throttle * full * limiter - (1.0 - throttle) * drivetrain.drag_torque * part


def drive(
    drivetrain: Drivetrain, gear: Array, timer: Array, throttle: Array, wheel_speed: Array
) -> Drive:
    """Torque and inertia that the engine puts on the wheels, for wheel speeds [4] in rad/s."""
    share = wheel_share(drivetrain)
    ratio = gear_ratio(drivetrain, gear)
    speed = ratio * jnp.sum(share * wheel_speed)
    slipping = drivetrain.idle + throttle * (drivetrain.launch - drivetrain.idle)
    torque = engine_torque(drivetrain, jnp.maximum(speed, slipping), throttle)
    engaged = timer <= 0.0
    closed = engaged & (speed >= slipping)
    return Drive(
        share=share,
        torque=jnp.where(engaged, torque * ratio * drivetrain.efficiency, 0.0),
        inertia=jnp.where(closed, drivetrain.inertia * ratio * ratio, 0.0),
    )


def lock_torque(drivetrain: Drivetrain, index: int, torque: Array, xp: Any = jnp) -> Array:
    """Most that coupling `index` of `COUPLED` moves at a drive torque [] on all wheels [N m]."""
    front = drivetrain.front_share
    through = xp.abs(torque) * (front, 1.0 - front, 1.0)[index]
    return drivetrain.lock_preload[index] + drivetrain.lock_ramp[index] * through


def turn_wheels(
    drivetrain: Drivetrain,
    drive: Drive,
    wheel_speed: Array,
    mobility: Array,
    torque: Array,
    friction: Array,
    time_step: float,
) -> Array:
    """Wheel speeds [4] after one step of all torques.

    `mobility` [4] is each wheel's speed gain for a unit impulse [1/(kg m^2)], `torque` [4] acts
    besides the drive [N m], `friction` [4] bounds the torque that brakes a wheel [N m]. Engine and
    wheels are one system of inertia matrix diag(1 / mobility) + I s s^T, s the shares, whose
    inverse is closed form (Sherman and Morrison 1950). The differentials, one after the other, take
    from the faster side what they give to the slower one; the brakes come last and stop a wheel at
    most.
    """
    share = drive.share
    weighted = mobility * share
    carried = drive.inertia / (1.0 + drive.inertia * jnp.sum(share * weighted))

    def gain(impulse: Array) -> Array:
        return mobility * impulse - weighted * (carried * jnp.sum(weighted * impulse))

    wheel_speed = wheel_speed + gain(time_step * (share * drive.torque + torque))

    for index in (2, 1, 0):
        bound = time_step * lock_torque(drivetrain, index, drive.torque)
        sides = COUPLED[index]
        response = gain(jnp.asarray(sides))
        impulse = jnp.sum(sides * wheel_speed) / jnp.sum(sides * response)
        wheel_speed = wheel_speed - response * jnp.clip(impulse, -bound, bound)

    bound = time_step * friction
    braked = wheel_speed - gain(jnp.clip(wheel_speed / mobility, -bound, bound))
    return jnp.where(braked * wheel_speed > 0.0, braked, 0.0)
