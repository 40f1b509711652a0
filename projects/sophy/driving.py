"""A car on a course between two decisions, and how it gets from one to the next.

The driver decides at 10 Hz; in between the car is simulated in sub-steps (`car.step`) on what lies
under its wheels, between walls. Laps are counted where the arc length wraps, not by a line test; a
lap time is interpolated inside the control step in which it ends. Written for one car.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from flax import struct
from jax import Array

from projects.sophy import car as cars
from projects.sophy import track as tracks
from projects.sophy.car import Car, CarState, Command
from projects.sophy.track import Track, TrackPoint
from projects.sophy.walls import Placement, collide, course_step, offset_of, place

CONTROL_STEP = 0.1  # [s]
WHEELS_OUT = 3  # wheels beyond the white line that make a car off course


@struct.dataclass
class DriveState:
    """A car on a course between two decisions."""

    circuit: Array  # [] int32, number in the environment's stack
    car_index: Array  # [] int32, number among the environment's entrants
    pace: Array  # [] mean speed of the reference lap [m/s]
    progress_worth: Array  # [] what a metre of progress is paid: 1 unless it is relative
    car: Car
    motion: CarState
    placement: Placement
    s: Array  # [] arc length in [0, L) [m]
    progress: Array  # [] centre-line distance gained in the last step [m]
    steering_target: Array  # [] [rad]
    off_course: Array  # [] share of the last step spent off course
    wall_contact: Array  # [] share of the last step spent in contact with a wall
    crossings: Array  # [] int32, times over the line, backwards counted negative
    laps_begun: Array  # [] int32, the largest value that `crossings` had
    lap_clock: Array  # [] since the lap began [s]
    lap_time: Array  # [] of the flying lap that ended in the last step, else 0 [s]


class Underway(NamedTuple):
    """What changes from sub-step to sub-step."""

    motion: CarState
    s: Array  # [] arc length, predicted [m]
    off_course: Array  # [] sub-steps off course
    wall_contact: Array  # [] sub-steps in contact with a wall


def command_of(steering_target: Array, pedal: Array) -> Command:
    """Of one pedal [] in [-1, 1], positive throttle, negative brake."""
    return Command(
        steering=steering_target,
        throttle=jnp.maximum(pedal, 0.0),
        brake=jnp.maximum(-pedal, 0.0),
    )


def set_down(
    car: Car, point: TrackPoint, offset: Array, speed: Array
) -> tuple[CarState, Placement]:
    """A car that rolls along the course at a `speed` [] [m/s], its centre of gravity at an `offset`
    [] [m] from the centre line."""
    left = jnp.stack([-point.tangent[1], point.tangent[0]])
    heading = jnp.arctan2(point.tangent[1], point.tangent[0])
    motion = cars.rolling_start(car, point.position + offset * left, heading, speed)
    return motion, place(point, motion)


def set_off(drive: DriveState) -> Underway:
    zero = jnp.zeros(())
    return Underway(drive.motion, drive.s, zero, zero)


def at_present(track: Track, previous: DriveState, underway: Underway) -> DriveState:
    """`previous` where it is by now, for a hand that corrects between two decisions."""
    placement = place(tracks.at(track, underway.s), underway.motion)
    return dataclasses.replace(previous, motion=underway.motion, s=underway.s, placement=placement)


def advance(
    track: Track,
    car: Car,
    command: Command,
    underway: Underway,
    time_step: float,
    walls: bool = True,
) -> Underway:
    """One sub-step of `time_step` seconds, with `walls` or without."""
    motion, s, off_course, wall_contact = underway
    point = tracks.at(track, s)
    placement = place(point, motion)
    wheel_offset = offset_of(placement, car.wheel_x, car.wheel_y)
    outside = (wheel_offset > point.width_left) | (wheel_offset < -point.width_right)
    ground = tracks.surface_at(point, wheel_offset)
    touching = jnp.zeros((), bool)
    if walls:
        motion, touching = collide(car, motion, point, placement)
    motion = cars.step(car, motion, command, ground, time_step)
    return Underway(
        motion,
        s + course_step(point, placement, motion.velocity, time_step),
        off_course + (jnp.sum(outside) >= WHEELS_OUT),
        wall_contact + touching,
    )


def arrive(
    track: Track,
    previous: DriveState,
    underway: Underway,
    steering_target: Array,
    substeps: int,
) -> DriveState:
    """The state after a control step of so many sub-steps from `previous`."""
    motion = underway.motion
    s = tracks.project(track, motion.position, underway.s)
    return count_laps(
        previous,
        dataclasses.replace(
            previous,
            motion=motion,
            placement=place(tracks.at(track, s), motion),
            s=s,
            progress=tracks.wrap_difference(track, s, previous.s),
            steering_target=steering_target,
            # A division by a constant may round to a little more than one.
            off_course=jnp.minimum(underway.off_course / substeps, 1.0),
            wall_contact=jnp.minimum(underway.wall_contact / substeps, 1.0),
        ),
    )


def count_laps(previous: DriveState, current: DriveState) -> DriveState:
    """Counts crossings of the line and times flying laps, those begun at the line."""
    forwards = (current.progress > 0) & (current.s < previous.s)
    backwards = (current.progress < 0) & (current.s > previous.s)
    crossings = previous.crossings + forwards.astype(jnp.int32) - backwards.astype(jnp.int32)
    begins = crossings > previous.laps_begun
    # Arc length after the line over arc length of the step: the time since the crossing.
    beyond = current.s / jnp.maximum(current.progress, 1e-6) * CONTROL_STEP
    clock = previous.lap_clock + CONTROL_STEP
    flying = begins & (previous.laps_begun > 0)
    return dataclasses.replace(
        current,
        crossings=crossings,
        laps_begun=jnp.maximum(previous.laps_begun, crossings),
        lap_clock=jnp.where(begins, beyond, clock),
        lap_time=jnp.where(flying, clock - beyond, 0.0),
    )


def drive_metrics(drive: DriveState) -> dict[str, Array]:
    """What is measured of a step that led to `drive`, in every task."""
    return {
        "speed": jnp.sqrt(jnp.sum(drive.motion.velocity**2)),
        "distance": drive.progress,
        "off_course_steps": (drive.off_course > 0).astype(jnp.float32),
        "wall_contact_steps": (drive.wall_contact > 0).astype(jnp.float32),
    }
