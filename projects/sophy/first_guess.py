"""A first guess of the fastest lap: the quasi-steady lap on a line.

What `limit` starts from, and the circuit as numpy arrays that it needs. The speed on a line is
`reference`'s; slips, steering and pedal follow from the forces that both take. `smooth_line` is the
one of least squared curvature between the white lines (Heilmeier et al., "Minimum curvature
trajectory planning and control for an autonomous race car", Vehicle System Dynamics 58, 2020), by
linear least squares with bounds, from where `racing_line` finds a faster one.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import lsq_linear
from scipy.sparse import diags_array

from projects.sophy import drivetrain as drivetrains
from projects.sophy import track as tracks
from projects.sophy import tyre as tyres
from projects.sophy.car import AIR_DENSITY, Car, axles, steady_load
from projects.sophy.reference import line_at_nodes, reference_lap
from projects.sophy.track import NUM_NODES, Track
from projects.sophy.tyre import Ground

# States over arc length: forward and left velocity, yaw rate, offset, angle to the course, excess
# of the four wheels' circumferential speeds over the forward speed, the lagged accelerations
# forward and left that the loads follow, steering. Controls: the steering's rate and the pedal.
NUM_STATES, NUM_CONTROLS = 12, 2
GEAR_BAND = 0.025  # share of the speed over which one gear passes into the next [-]
LINE_SPACING, LINE_TOLERANCE = 10.0, 1e-4  # of a smooth line's points [m], of its least squares
WALL_MARGIN = 0.9  # of the wheels to the walls, since bodies are wider and hands not exact [m]
LINE_MARGIN = 0.3  # of the wheels to the white lines [m]


class Course(NamedTuple):
    """The circuit at stations [S], numpy."""

    width_left: np.ndarray  # [m]
    width_right: np.ndarray  # [m]
    wall_left: np.ndarray  # [m]
    wall_right: np.ndarray  # [m]
    curvature: np.ndarray  # [1/m]
    kerb: np.ndarray  # [m]
    ground: np.ndarray  # [S, 15] road, kerb and verge, fields of `Ground` each


def course_at(track: Track, s: np.ndarray) -> Course:
    """The circuit at stations [S] [m]."""
    # Always a whole number of these many: what has been compiled then fits most meshes.
    padded = np.pad(s, (0, -len(s) % NUM_NODES)).astype(np.float32)
    values = jax.device_get(_course_at(track, jnp.asarray(padded)))
    return Course(
        **{name: np.asarray(value[: len(s)], np.float64) for name, value in values.items()}
    )


@jax.jit
def _course_at(track: Track, s: jax.Array) -> dict[str, jax.Array]:
    def at(s: jax.Array):
        point = tracks.at(track, s)
        beyond = point.width_left + 0.5 * point.kerb
        kerb = jax.tree.map(
            lambda there, verge: jnp.where(point.kerb > 0.0, there, verge),
            tracks.surface_at(point, beyond),
            point.verge,
        )
        ground = jnp.stack(jax.tree.leaves((point.road, kerb, point.verge)))
        return {name: getattr(point, name) for name in Course._fields[:-1]} | {"ground": ground}

    return jax.vmap(at)(s)


def gear_ratio(car: Car, speed: Any, xp: Any) -> Any:
    """Ratio [-] of the gear that the gearbox takes when accelerating, by the speed at which the
    driven wheels roll [rad/s]."""
    ratios, engine = np.asarray(car.drivetrain.ratios), car.drivetrain
    ratio = ratios[0]
    for below, above in pairwise(ratios[: int(engine.num_gears)]):
        left = engine.shift_up / below
        ratio = ratio + (above - below) * (0.5 + 0.5 * xp.tanh((speed - left) / (GEAR_BAND * left)))
    return ratio


def smooth_line(track: Track, half_track: float) -> np.ndarray:
    """Lateral offsets [M] [m], evenly spaced, of the line with the least squared curvature that
    wheels `half_track` [m] to either side can take.

    To first order the curvature of a line at offset n is kappa + n'' + kappa^2 n.
    """
    length = float(track.length)
    num = max(int(length / LINE_SPACING), 200)
    step = length / num
    course = course_at(track, np.arange(num) * step)
    bend = diags_array(
        [1.0, course.curvature**2 * step**2 - 2.0, 1.0],
        offsets=[-1, 0, 1],  # pyright: ignore[reportArgumentType]
        shape=(num, num),
    ).tolil()
    bend[0, num - 1] = bend[num - 1, 0] = 1.0
    room = room_on(course, half_track)
    return lsq_linear(bend.tocsr(), -course.curvature * step**2, room, tol=LINE_TOLERANCE).x


def room_on(course: Course, half_track: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest lateral offsets [S] [m] that keep wheels `half_track` [m] to either side
    `LINE_MARGIN` inside the white lines and `WALL_MARGIN` from the walls; where a road is too
    narrow, its middle.
    """
    space, clear = half_track + LINE_MARGIN, half_track + WALL_MARGIN
    low = np.maximum(space - course.width_right, clear - course.wall_right)
    high = np.minimum(course.width_left - space, course.wall_left - clear)
    middle = 0.5 * (low + high)
    return np.minimum(low, middle - 0.05), np.maximum(high, middle + 0.05)


def first_guess(car: Car, track: Track, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States [N, 12] and controls [N, 2] at the circuit's nodes: the quasi-steady lap on a line of
    evenly spaced offsets [M], and what slips and steering it takes."""
    length, spacing = float(track.length), float(track.length) / NUM_NODES
    nodes = np.arange(NUM_NODES) * spacing
    offset = line_at_nodes(line, length)
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), car)
    lap = jax.device_get(reference_lap(single, track, offset=jnp.asarray(offset, jnp.float32)))
    course = course_at(track, nodes)
    bend = (np.roll(offset, -1) - 2.0 * offset + np.roll(offset, 1)) / spacing**2
    curvature = course.curvature / (1.0 - offset * course.curvature) + bend
    speed = 0.97 * np.asarray(lap.speed, np.float64)
    ahead, aside = np.gradient(speed, spacing) * speed, speed**2 * curvature

    arms = float(car.wheel_x[0]), -float(car.wheel_x[3])
    wheelbase = sum(arms)
    share = np.asarray(drivetrains.wheel_share(car.drivetrain))
    bias = 0.5 * axles(car.brake_bias, 1.0 - car.brake_bias)
    rolling = share / car.wheel_radius
    states, controls = np.zeros((NUM_NODES, NUM_STATES)), np.zeros((NUM_NODES, NUM_CONTROLS))
    for i in range(NUM_NODES):
        load = steady_load(car, speed[i], (ahead[i], aside[i]), np)  # pyright: ignore
        road = Ground(*course.ground[i, :5])
        peak = tyres.peak(car.tyre, load, road, np)
        steep = peak.shape * peak.stretch
        force = car.mass * ahead[i] + 0.5 * AIR_DENSITY * car.drag_area * speed[i] ** 2
        split = share if force > 0.0 else bias
        slip = force * split / (steep * peak.force_x / peak.ratio)
        stiffness = steep * peak.force_y / peak.angle
        push = car.mass * aside[i] / wheelbase
        front = np.clip(push * arms[1] / np.sum(stiffness[:2]), -0.1, 0.1)
        rear = np.clip(push * arms[0] / np.sum(stiffness[2:]), -0.1, 0.1)
        ratio = gear_ratio(car, np.sum(rolling * speed[i]), np)
        turning = max(ratio * np.sum(rolling * speed[i]), float(car.drivetrain.launch))
        torque = drivetrains.engine_torque(car.drivetrain, turning, 1.0, np)  # pyright: ignore
        full = torque * ratio * car.drivetrain.efficiency * np.sum(rolling)
        braking = np.sum(bias * car.brake_torque / car.wheel_radius)
        yaw_rate = speed[i] * curvature[i]
        states[i, :3] = speed[i], arms[1] * yaw_rate - rear * speed[i], yaw_rate
        states[i, 5:9] = np.clip(slip, -0.06, 0.06) * speed[i]
        states[i, 11] = wheelbase * curvature[i] + front - rear
        controls[i, 1] = np.clip(force / (full if force > 0.0 else braking), -0.95, 0.95)
    states[:, 3] = offset
    states[:, 4] = np.arctan((np.roll(offset, -1) - np.roll(offset, 1)) / (2.0 * spacing))
    states[:, 9], states[:, 10] = ahead, aside
    return states, controls
