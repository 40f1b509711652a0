"""A hand at the wheel: steering and pedal that take a car to a place on the road at a speed.

The path is found by pure pursuit (Coulter 1992, CMU-RI-TR-92-01); the front tyres are steered to
the slip angle whose force turns the car along it, by the tyres' own curve, never beyond its peak.
Nothing is remembered from step to step.

Worked out at the driver's 10 Hz only, the hand is too slow for many cars and they spin, so it is
worked out `CORRECTIONS` times per decision (`docs/benchmarks.md`).
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from projects.sophy import track as tracks
from projects.sophy import tyre as tyres
from projects.sophy.driving import CONTROL_STEP, DriveState
from projects.sophy.racing_line import RacingLine, along
from projects.sophy.track import Track

REACH, SHORTEST_REACH = 0.45, 7.0  # how far ahead a hand aims [s], but at least [m]
YAW_GAIN = 0.3  # of the error of the yaw rate [-]
SPEED_GAIN = 3.0  # acceleration asked for, per error of the speed [1/s]
FULL_DRIVING = 8.0  # what the whole throttle is taken for [m/s^2]
CORRECTIONS = 5  # of the hand per decision

REACTION = 0.15  # between a decision and what comes of it [s]


@dataclasses.dataclass(frozen=True)
class LineConfig:
    """What actions relative to a racing line ask for."""

    swerve: float = 1.0  # curvature of a full one, of the tightest that the tyres hold
    back: float = 2.0  # speed at which one goes back to the line [m/s]
    usual: float = 0.85  # share of the line's speed without an action
    haste: float = 0.35  # of the line's speed that a full action adds

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive, got {getattr(self, field.name)}")


class Axles(NamedTuple):
    """What the tyres of the two axles, front first, give at their present loads; leaves [2]."""

    force_x: Array  # largest forward force [N]
    angle: Array  # slip angle of the largest lateral force [rad]
    ratio: Array  # [4] slip ratio of each wheel's largest forward force [-]
    shape: Array  # of the tyres' curve [-]
    stretch: Array  # of the tyres' curve [-]
    pull: Array  # part of the axle's lateral force that a unit of curvature takes [m]


def axles_of(track: Track, drive: DriveState) -> Axles:
    """Those of one car on the road that is under it."""
    motion, car = drive.motion, drive.car
    arms = jnp.stack([car.wheel_x[0], -car.wheel_x[3]])
    ground = tracks.surface_at(tracks.at(track, drive.s), drive.placement.offset + jnp.zeros(4))
    peak = tyres.peak(car.tyre, motion.load, ground)

    def by_axle(values: Array) -> Array:
        return values.reshape(2, 2)

    weight = car.mass * forward_speed(drive) ** 2 * arms[::-1] / jnp.sum(arms)
    return Axles(
        force_x=jnp.sum(by_axle(peak.force_x), 1),
        angle=jnp.mean(by_axle(peak.angle), 1),
        ratio=peak.ratio,
        shape=peak.shape[::2],
        stretch=peak.stretch[::2],
        pull=weight / jnp.sum(by_axle(peak.force_y), 1),
    )


def forward_speed(drive: DriveState) -> Array:
    """[] or [M], at least 1 m/s."""
    return jnp.maximum(drive.motion.velocity[..., 0], 1.0)


def reach_of(drive: DriveState) -> Array:
    """How far ahead along the course one aims [] or [M] [m]."""
    return jnp.maximum(REACH * forward_speed(drive), SHORTEST_REACH)


def follow(
    track: Track, drive: DriveState, axles: Axles, aim_offset: Array, most_usage: float
) -> tuple[Array, Array]:
    """The road-wheel angle [] [rad] of one car that aims at an offset [] [m] from the centre line
    at its reach, and the curvature [] [1/m] of the way there.

    It asks for `most_usage` of an axle's grip at most.
    """
    motion, speed, pull = drive.motion, forward_speed(drive), axles.pull
    point = tracks.at(track, drive.s + reach_of(drive))
    left = jnp.stack([-point.tangent[1], point.tangent[0]])
    gap = point.position + aim_offset * left - motion.position
    east, north = jnp.cos(motion.heading), jnp.sin(motion.heading)
    aside = gap[1] * east - gap[0] * north
    demanded = 2.0 * aside / jnp.sum(gap**2)
    tightest = most_usage / jnp.max(pull)
    curvature = jnp.clip(demanded, -tightest, tightest)
    # The front tyres are set at the slip angle whose force turns the car like that, where they go.
    turning = pull[0] * (curvature + YAW_GAIN * (curvature - motion.yaw_rate / speed))
    turning = jnp.clip(turning, -most_usage, most_usage)
    bent = jnp.tan(jnp.arcsin(turning) / axles.shape[0])
    slip = axles.angle[0] * bent / axles.stretch[0]
    heading = jnp.arctan2(motion.velocity[1] + drive.car.wheel_x[0] * motion.yaw_rate, speed)
    return heading + slip, demanded


def pedals_for(drive: DriveState, wanted: Array, later: Array) -> tuple[Array, Array]:
    """Throttle and brake [] that take one car to the speeds [] [m/s] that are `wanted` now and a
    control step `later`, whatever the tyres carry."""
    car = drive.car
    asked = SPEED_GAIN * (wanted - forward_speed(drive)) + (later - wanted) / CONTROL_STEP
    brake = -asked * car.mass * car.wheel_radius[0] / car.brake_torque
    return jnp.clip(asked / FULL_DRIVING, 0.0, 1.0), jnp.clip(brake, 0.0, 1.0)


def careful_pedal(
    drive: DriveState,
    axles: Axles,
    demanded: Array,
    wanted: Array,
    later: Array,
    most_usage: float,
) -> Array:
    """The pedal [] of a driver without aids for those speeds, who leaves the tyres what they need
    sideways and slows down where the `demanded` curvature [] [1/m] is more than they hold."""
    motion, car, speed = drive.motion, drive.car, forward_speed(drive)
    tightest = most_usage / jnp.max(axles.pull)
    bearable = speed * jnp.sqrt(tightest / jnp.maximum(jnp.abs(demanded), 1e-6))
    throttle, brake = pedals_for(drive, jnp.minimum(wanted, bearable), jnp.minimum(later, bearable))
    usage = axles.pull * jnp.minimum(jnp.abs(demanded), tightest)
    slid = jnp.mean(jnp.abs(motion.slip_angle).reshape(2, 2), 1) / axles.angle
    taken = jnp.maximum(usage, slid)
    spare = jnp.sqrt(jnp.maximum(1.0 - taken * taken, 0.05))  # [2] of the axles' grip
    torque = car.brake_torque * jnp.stack([car.brake_bias, 1.0 - car.brake_bias])
    grip = axles.force_x * car.wheel_radius[::2]
    carried = jnp.min(jnp.where(torque > 0.0, spare * grip / jnp.maximum(torque, 1.0), jnp.inf))
    spinning = jnp.clip(1.6 - jnp.max(motion.slip_ratio / axles.ratio), 0.0, 1.0)
    throttle = jnp.minimum(throttle, jnp.min(spare)) * spinning
    return throttle - jnp.minimum(brake, most_usage * jnp.minimum(carried, 1.0))


def along_line(
    track: Track, drive: DriveState, line: RacingLine, action: Array, config: LineConfig
) -> tuple[Array, Array]:
    """The road-wheel angle [] [rad] and the pedal [] of an `action` [2] relative to a racing line.

    The first entry swerves from a gentle way back to the line, positive to the left; a full one
    asks for all the grip. The second is how much faster than usual the car should be; full ones are
    full throttle and hard braking nearly everywhere. Zeros are a lap on the line at `config.usual`
    of its speed.
    """
    speed, reach, axles = forward_speed(drive), reach_of(drive), axles_of(track, drive)
    swerve = action[0] * config.swerve * reach**2 / (2.0 * jnp.max(axles.pull))
    aside = drive.placement.offset - along(line.offset, track, drive.s)
    back = config.back * reach / speed
    there = tracks.at(track, drive.s + reach)
    aim = along(line.offset, track, drive.s + reach) + aside - jnp.clip(aside, -back, back) + swerve
    aim = jnp.clip(aim, -there.width_right, there.width_left)
    ahead = drive.s + speed * (REACTION + jnp.array([0.0, CONTROL_STEP]))
    wanted, later = along(line.speed, track, ahead) * (config.usual + config.haste * action[1])
    steering, _ = follow(track, drive, axles, aim, 1.0)
    throttle, brake = pedals_for(drive, wanted, later)
    return steering, throttle - brake
