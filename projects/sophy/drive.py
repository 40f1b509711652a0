"""The record of a drive and what follows from it: laps, and the time lost to a reference.

Plain numpy, so that a drive that was saved by anything can be read. The reference is the lap of a
quasi-steady-state driver of the centre line.

Shapes: T samples of a drive, N points of an outline or a profile; wheels are FL FR RL RR.
"""

from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np

from core_rl.errors import UserError

UNKNOWN = "unknown"  # a surface without a name


class DriveError(UserError):
    """A record that cannot be drawn; the message is one line."""


@dataclass(frozen=True)
class Drive:
    """One car's drive, sampled at 10 Hz or finer."""

    time: np.ndarray  # [T] [s] increasing
    s: np.ndarray  # [T] [m] arc length on the centre line, wrapped to [0, length)
    position: np.ndarray  # [T, 2] [m]
    heading: np.ndarray  # [T] [rad]
    speed: np.ndarray  # [T] [m/s]
    lateral_offset: np.ndarray  # [T] [m] left of the centre line positive
    throttle: np.ndarray  # [T] 0..1
    brake: np.ndarray  # [T] 0..1
    steering: np.ndarray  # [T] [rad] road-wheel angle, left positive
    acceleration: np.ndarray  # [T, 2] [m/s^2] body frame: forward, left
    gear: np.ndarray  # [T] int
    slip_ratio: np.ndarray  # [T, 4]
    slip_angle: np.ndarray  # [T, 4] [rad]
    load: np.ndarray  # [T, 4] [N]
    off_course: np.ndarray  # [T] bool
    wall_contact: np.ndarray  # [T] bool
    lap: np.ndarray  # [T] int, one more whenever a lap begins
    car_size: tuple[float, float] = (4.5, 1.9)  # [m] length, width of the drawn car

    def __post_init__(self) -> None:
        width = {"position": 2, "acceleration": 2, "slip_ratio": 4, "slip_angle": 4, "load": 4}
        num_samples = len(np.atleast_1d(self.time))
        for entry in fields(self)[:-1]:
            values = np.asarray(getattr(self, entry.name))
            shape = (num_samples, width[entry.name]) if entry.name in width else (num_samples,)
            if values.shape != shape or num_samples == 0:
                raise DriveError(
                    f"drive.{entry.name} has shape {values.shape}, must be {shape} "
                    "with at least 1 sample"
                )
            if not np.all(np.isfinite(values)):
                bad = int(np.argwhere(~np.isfinite(values))[0][0])
                raise DriveError(f"drive.{entry.name} is not finite at sample {bad}")
            object.__setattr__(self, entry.name, values)
        if np.any(np.diff(self.time) <= 0):
            bad = int(np.argmax(np.diff(self.time) <= 0)) + 1
            raise DriveError(f"drive.time must increase, does not at sample {bad}")


@dataclass(frozen=True)
class CircuitOutline:
    """A closed circuit as polylines in the direction of travel; point 0 is the start line."""

    s: np.ndarray  # [N] [m] from 0
    centre: np.ndarray  # [N, 2] [m]
    left: np.ndarray  # [N, 2] [m] white line
    right: np.ndarray  # [N, 2] [m]
    wall_left: np.ndarray  # [N, 2] [m]
    wall_right: np.ndarray  # [N, 2] [m]
    length: float  # [m]
    # Surfaces by name, [N], each from its point to the next; [] for one all round.
    road: np.ndarray = field(default_factory=lambda: np.array("asphalt"))
    verge: np.ndarray = field(default_factory=lambda: np.array("grass"))
    kerb: float = 0.0  # [m] width of the kerbs outside the white lines

    def __post_init__(self) -> None:
        for name in ("road", "verge"):
            surfaces = np.asarray(getattr(self, name))
            if surfaces.shape not in ((), np.shape(self.s)):
                raise DriveError(
                    f"outline.{name} has shape {surfaces.shape}, must be () or {np.shape(self.s)}"
                )
            object.__setattr__(self, name, np.broadcast_to(surfaces, np.shape(self.s)))


def surface_patches(names: np.ndarray) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """The most common of the surfaces [N] of a closed circuit, and the stretches of the others.

    A stretch is its surface and its points [K], up to the first of what follows.
    """
    values, counts = np.unique(names, return_counts=True)
    most = str(values[np.argmax(counts)])
    starts = np.flatnonzero(names != np.roll(names, 1))
    ends = np.append(starts[1:], starts[:1] + len(names))
    return most, [
        (str(names[first]), np.arange(first, last + 1) % len(names))
        for first, last in zip(starts, ends, strict=True)
        if names[first] != most
    ]


@dataclass(frozen=True)
class ReferenceProfile:
    """The lap of the quasi-steady-state driver of the centre line."""

    s: np.ndarray  # [N] [m] increasing
    speed: np.ndarray  # [N] [m/s]
    lap_time: float  # [s]


class Lap(NamedTuple):
    number: int  # 1 for the first of the record
    first: int  # index of its first sample
    last: int  # index of its last sample
    start: float  # [s] when it began
    origin: float  # [m] where it began, on the scale of `progress`
    lap_time: float | None  # [s], None where the record does not hold the whole lap


def progress(drive: Drive, length: float) -> np.ndarray:
    """Arc length without wrapping, from drive.s[0] on, [T] [m]."""
    step = (np.diff(drive.s) + length / 2) % length - length / 2
    return drive.s[0] + np.concatenate([[0.0], np.cumsum(step)])


def split_laps(drive: Drive, length: float) -> list[Lap]:
    """Laps of a drive in order, at least one. Times at the line are interpolated between samples.

    The first lap counts as whole only where the record begins at the line (within 1 m).
    """
    travelled = progress(drive, length)
    firsts = np.concatenate([[0], np.flatnonzero(np.diff(drive.lap) != 0) + 1])
    lasts = np.append(firsts[1:] - 1, len(drive.time) - 1)
    starts, origins = [float(drive.time[0])], [float(drive.s[0])]
    for i in firsts[1:]:
        before, after = travelled[i - 1], travelled[i]
        line = length * np.floor(after / length)
        # A lap that is counted elsewhere than on the line begins with its first sample.
        origin = line if before < line else after
        fraction = (origin - before) / (after - before) if after > before else 1.0
        starts.append(float(drive.time[i - 1] + fraction * (drive.time[i] - drive.time[i - 1])))
        origins.append(float(origin))
    begins_on_line = min(drive.s[0], length - drive.s[0]) < 1.0
    laps = []
    for k, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        whole = k + 1 < len(firsts) and (k > 0 or begins_on_line)
        lap_time = starts[k + 1] - starts[k] if whole else None
        laps.append(Lap(k + 1, int(first), int(last), starts[k], origins[k], lap_time))
    return laps


def best_lap(drive: Drive, length: float) -> Lap:
    """The fastest whole lap; without one, the lap of which the record holds the most samples."""
    laps = split_laps(drive, length)
    whole = [lap for lap in laps if lap.lap_time is not None]
    if whole:
        return min(whole, key=lambda lap: lap.lap_time or np.inf)
    return max(laps, key=lambda lap: lap.last - lap.first)


def reference_delta(
    drive: Drive, outline: CircuitOutline, reference: ReferenceProfile
) -> np.ndarray:
    """Time lost to the reference since the lap (or the record) began, [T] [s]."""
    length = outline.length
    s = np.concatenate([[reference.s[-1] - length], reference.s, [reference.s[0] + length]])
    pace = 1.0 / np.concatenate([reference.speed[-1:], reference.speed, reference.speed[:1]])
    time = np.concatenate([[0.0], np.cumsum(np.diff(s) * (pace[1:] + pace[:-1]) / 2)])
    zero, end = np.interp([0.0, length], s, time)

    def reference_time(travelled: np.ndarray) -> np.ndarray:
        laps, along = np.divmod(travelled, length)
        return reference.lap_time * (laps + (np.interp(along, s, time) - zero) / (end - zero))

    elapsed = reference_time(progress(drive, length))
    delta = np.empty(len(drive.time))
    for lap in split_laps(drive, length):
        part = slice(lap.first, lap.last + 1)
        taken = elapsed[part] - reference_time(np.asarray(lap.origin))
        delta[part] = drive.time[part] - lap.start - taken
    return delta


def show_time(seconds: float | None) -> str:
    """`1:23.456`, or a dash for None."""
    if seconds is None:
        return "–"
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"
