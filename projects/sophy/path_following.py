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

EDGE = 0.3  # what one aims at is so far inside the white lines [m]
CLEARANCE = 0.7  # and the bodywork there so far from the walls, since it swings out and cuts in [m]
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

    angle: Array  # slip angle of the largest lateral force [rad]
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
        angle=jnp.mean(by_axle(peak.angle), 1),
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


def follow(track: Track, drive: DriveState, axles: Axles, aim: Array) -> Array:
    """The road-wheel angle [] [rad] of one car that aims at an offset [] [m] from the centre line
    at its reach, as far as the tyres' grip goes."""
    motion, speed, pull = drive.motion, forward_speed(drive), axles.pull
    point = tracks.at(track, drive.s + reach_of(drive))
    left = jnp.stack([-point.tangent[1], point.tangent[0]])
    gap = point.position + aim * left - motion.position
    east, north = jnp.cos(motion.heading), jnp.sin(motion.heading)
    aside = gap[1] * east - gap[0] * north
    tightest = 1.0 / jnp.max(pull)
    curvature = jnp.clip(2.0 * aside / jnp.sum(gap**2), -tightest, tightest)
    # The front tyres are set at the slip angle whose force turns the car like that, where they go.
    turning = pull[0] * (curvature + YAW_GAIN * (curvature - motion.yaw_rate / speed))
    turning = jnp.clip(turning, -1.0, 1.0)
    bent = jnp.tan(jnp.arcsin(turning) / axles.shape[0])
    slip = axles.angle[0] * bent / axles.stretch[0]
    heading = jnp.arctan2(motion.velocity[1] + drive.car.wheel_x[0] * motion.yaw_rate, speed)
    return heading + slip


def pedals_for(drive: DriveState, wanted: Array, later: Array) -> tuple[Array, Array]:
    """Throttle and brake [] that take one car to the speeds [] [m/s] that are `wanted` now and a
    control step `later`, whatever the tyres carry."""
    car = drive.car
    asked = SPEED_GAIN * (wanted - forward_speed(drive)) + (later - wanted) / CONTROL_STEP
    brake = -asked * car.mass * car.wheel_radius[0] / car.brake_torque
    return jnp.clip(asked / FULL_DRIVING, 0.0, 1.0), jnp.clip(brake, 0.0, 1.0)


def along_line(
    track: Track, drive: DriveState, line: RacingLine, action: Array, config: LineConfig
) -> tuple[Array, Array]:
    """The road-wheel angle [] [rad] and the pedal [] of an `action` [2] relative to a racing line.

    The first entry swerves from a gentle way back to the line, positive to the left; a full one
    towards the line asks for all the grip, one away from it for what that way leaves. The second is
    how much faster than usual the car should be; full ones are full throttle and hard braking
    nearly everywhere. Zeros are a lap on the line at `config.usual` of its speed.
    """
    axles, base = axles_of(track, drive), _way_back(track, drive, line, config)
    there = tracks.at(track, drive.s + reach_of(drive))
    aim = base + action[0] * _widest(drive, axles, config)
    clear = 0.5 * drive.car.width + CLEARANCE
    low = jnp.maximum(EDGE - there.width_right, clear - there.wall_right)
    high = jnp.minimum(there.width_left - EDGE, there.wall_left - clear)
    aim = jnp.clip(aim, low, jnp.maximum(high, low))
    wanted, later = _expected(track, drive, line) * (config.usual + config.haste * action[1])
    steering = follow(track, drive, axles, aim)
    throttle, brake = pedals_for(drive, wanted, later)
    return steering, throttle - brake


def action_towards(
    track: Track, drive: DriveState, line: RacingLine, aim: Array, wanted: Array, config: LineConfig
) -> Array:
    """The action [2] of `along_line` that takes a car to an offset [] [m] from the centre line at
    its reach, and to a speed [] [m/s]."""
    widest = _widest(drive, axles_of(track, drive), config)
    swerve = (aim - _way_back(track, drive, line, config)) / widest
    haste = (wanted / _expected(track, drive, line)[0] - config.usual) / config.haste
    return jnp.clip(jnp.stack([swerve, haste]), -1.0, 1.0)


def slowed(action: Array, share: float, config: LineConfig) -> Array:
    """Actions [..., 2] of `along_line` that ask for a `share` of the speed that `action` does."""
    swerve, haste = action[..., 0], action[..., 1]
    slower = (share * (config.usual + config.haste * haste) - config.usual) / config.haste
    return jnp.stack([swerve, jnp.clip(slower, -1.0, 1.0)], -1)


def _way_back(track: Track, drive: DriveState, line: RacingLine, config: LineConfig) -> Array:
    """The offset [] [m] at the reach of a gentle way back to the line."""
    reach = reach_of(drive)
    aside = drive.placement.offset - along(line.offset, track, drive.s)
    back = config.back * reach / forward_speed(drive)
    return along(line.offset, track, drive.s + reach) + aside - jnp.clip(aside, -back, back)


def _widest(drive: DriveState, axles: Axles, config: LineConfig) -> Array:
    """How far aside [] [m] a full swerve aims at the reach."""
    return config.swerve * reach_of(drive) ** 2 / (2.0 * jnp.max(axles.pull))


def _expected(track: Track, drive: DriveState, line: RacingLine) -> Array:
    """The line's speeds [2] [m/s] where a decision tells, and a control step later."""
    ahead = drive.s + forward_speed(drive) * (REACTION + jnp.array([0.0, CONTROL_STEP]))
    return along(line.speed, track, ahead)
