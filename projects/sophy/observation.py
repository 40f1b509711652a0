"""What the driver sees, after Wurman et al. 2022 (Methods, "Observations").

Entry `state`: the car's motion, controls, slip and load per tyre, its place between the white
lines, and course points on the left line, the centre line and the right line over the next seconds
at the present speed, in the car's frame. Entry `privileged_state` is for critics only: the grip
under each wheel, each wheel's distance to the walls, and the place on the lap. Entries `car` and
`surface` are for drivers of many: `car_features`, which stay the same all episode, and the numbers
of the road under the car. Entry `racing_line` is what a driver plans before it has driven a metre:
where the racing line goes, and what acceleration takes the car to the speed that it
allows this car at each point ahead (`racing_line`).

Deviations from the paper: points are divided by how far ahead they are and the course's curvature
at each stands beside them, both easier to learn from; twenty points instead of sixty per line carry
the same course; the paper's driver has no plan.
"""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from projects.sophy import track as tracks
from projects.sophy.car import GRAVITY, Car
from projects.sophy.car_features import CAR_FEATURES, car_features
from projects.sophy.drivetrain import MAX_GEARS
from projects.sophy.racing_line import RacingLine, along
from projects.sophy.track import Track
from projects.sophy.walls import offset_of

if TYPE_CHECKING:
    from projects.sophy.driving import DriveState

SLOWEST = 8.0  # the look-ahead does not shrink below this speed [m/s]
DESCRIPTION = ("car", "surface")  # the entries that a driver of one car on one road needs not
HARDEST = 3.0  # bound of the accelerations that a plan asks for, in units of gravity
NEAR = 5.0  # distance added before dividing by it, so that near points stay finite [m]


@dataclasses.dataclass(frozen=True)
class ObservationConfig:
    num_points: int = 20  # course points per line; 0: none
    horizon: float = 6.0  # how far ahead they reach at the present speed [s]
    racing_line: bool = False  # whether there is an entry of that name

    def __post_init__(self):
        if self.num_points < 0:
            raise ValueError(f"num_points must not be negative, got {self.num_points}")
        if not self.horizon > 0:
            raise ValueError(f"horizon must be positive, got {self.horizon}")

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each entry."""
        line = {"racing_line": 2 + 2 * self.num_points} if self.racing_line else {}
        return {
            "state": 29 + 7 * self.num_points,
            "privileged_state": 14,
            **line,
            "car": len(CAR_FEATURES),
            "surface": 5,
        }


def course_points(
    track: Track, state: "DriveState", config: ObservationConfig
) -> tuple[Array, Array]:
    """Points [num_points, 3, 2] in the car's frame over distance, and curvature [num_points]."""
    ahead = distances_ahead(state, config)
    point = jax.vmap(tracks.at, in_axes=(None, 0))(track, state.s + ahead)
    left = jnp.stack([-point.tangent[:, 1], point.tangent[:, 0]], axis=-1)
    lines = jnp.stack(
        [
            point.position + point.width_left[:, None] * left,
            point.position,
            point.position - point.width_right[:, None] * left,
        ],
        axis=1,
    )
    scale = 1.0 / (ahead + NEAR)[:, None, None]
    return _in_car_frame(lines, state) * scale, point.curvature


def distances_ahead(state: "DriveState", config: ObservationConfig) -> Array:
    """Of the course points, along the centre line [num_points] [m]."""
    speed = jnp.sqrt(jnp.sum(state.motion.velocity**2))
    reach = config.horizon * jnp.maximum(speed, SLOWEST)
    return jnp.arange(1, config.num_points + 1) * (reach / config.num_points)


def _in_car_frame(positions: Array, state: "DriveState") -> Array:
    """Forward and left of the car [..., 2], of positions [..., 2] [m]."""
    gap = positions - state.motion.position
    east, north = jnp.cos(state.motion.heading), jnp.sin(state.motion.heading)
    forward = gap[..., 0] * east + gap[..., 1] * north
    return jnp.stack([forward, gap[..., 1] * east - gap[..., 0] * north], axis=-1)


def observe_line(
    track: Track, state: "DriveState", line: RacingLine, config: ObservationConfig
) -> Array:
    """The entry `racing_line`: how far left the line lies here, how much faster than planned the
    car is, then per point ahead the way left over the distance, and the acceleration to the speed
    that is planned there."""
    ahead = distances_ahead(state, config)
    s = state.s + ahead
    point = jax.vmap(tracks.at, in_axes=(None, 0))(track, s)
    left = jnp.stack([-point.tangent[:, 1], point.tangent[:, 0]], axis=-1)
    places = point.position + along(line.offset, track, s)[:, None] * left
    aside = _in_car_frame(places, state)[:, 1] / (ahead + NEAR)
    squared = jnp.sum(state.motion.velocity**2)
    needed = (along(line.speed, track, s) ** 2 - squared) / (2.0 * GRAVITY * (ahead + NEAR))
    here = [
        (along(line.offset, track, state.s) - state.placement.offset) / 5.0,
        5.0 * (jnp.sqrt(squared) / along(line.speed, track, state.s) - 1.0),
    ]
    return _flat([*here, aside * 5.0, jnp.clip(needed, -HARDEST, HARDEST)])


def observe(
    track: Track,
    car: Car,
    state: "DriveState",
    config: ObservationConfig,
    line: RacingLine | None = None,
) -> dict[str, Array]:
    """The named observation entries, see the module's text; sizes as `ObservationConfig.sizes`.

    `line` is needed where `config.racing_line` asks for it.
    """
    motion, placement = state.motion, state.placement
    here = tracks.at(track, state.s)
    points, curvature = course_points(track, state, config)
    wheel_offset = offset_of(placement, car.wheel_x, car.wheel_y)
    steering = jnp.stack([motion.steering, state.steering_target]) / car.steering_limit
    entries = [
        motion.velocity / jnp.array([50.0, 10.0]),
        motion.yaw_rate,
        motion.acceleration / GRAVITY,
        steering,
        motion.throttle,
        motion.brake,
        motion.gear / MAX_GEARS,
        jnp.clip(motion.slip_ratio, -1.0, 1.0) * 5.0,
        motion.slip_angle * 5.0,
        motion.load / (0.25 * GRAVITY * car.mass),
        (here.width_left - placement.offset) / 10.0,
        (here.width_right + placement.offset) / 10.0,
        placement.sine,
        placement.cosine,
        here.curvature * 50.0,
        state.off_course,
        state.wall_contact,
        points,
        curvature * 50.0,
    ]
    phase = 2.0 * jnp.pi * state.s / track.length
    privileged = [
        tracks.surface_at(here, wheel_offset).grip,
        (here.wall_left - wheel_offset) / 10.0,
        (here.wall_right + wheel_offset) / 10.0,
        jnp.sin(phase),
        jnp.cos(phase),
    ]
    road = here.road
    surface = [road.grip, road.peak_slip - 1.0, road.shape - 1.0, road.rolling * 10.0, road.water]
    planned = {} if line is None else {"racing_line": observe_line(track, state, line, config)}
    return {
        "state": _flat(entries),
        "privileged_state": _flat(privileged),
        **planned,
        "car": car_features(car),
        "surface": _flat(surface),
    }


def _flat(entries: list[Array]) -> Array:
    return jnp.concatenate([jnp.ravel(entry).astype(jnp.float32) for entry in entries])
