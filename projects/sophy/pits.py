"""What takes cars off the road and puts them back on it: marshals, and stops for tyres and fuel.

There is no lane for a stop: a car that is called in is off the road from the line on, and comes
back beside it when its time is over and nobody is near. The crew calls it in at the end of a lap
where, going on as in that lap, its tyres would pass the cliff of their wear or its tank run dry
before the next. It gets fresh tyres, and fuel for the laps that are left.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from projects.sophy import track as tracks
from projects.sophy.driving import CONTROL_STEP, DriveState, set_down
from projects.sophy.race import gaps
from projects.sophy.track import Track

SET_BACK_SHARE = 0.6  # of the half width, the farthest from the centre line that one is set back
EXIT_SPEED = 22.0  # at which one comes back from a stop [m/s]
EXIT_ROOM = (80.0, 3.0)  # along and across, where no other car may be then [m]
RESERVE = 1.1  # fuel for so many times the way that is left
ENDLESS = 1_000_000  # laps that are left where the race has no end


@dataclasses.dataclass(frozen=True)
class PitConfig:
    stops: bool = False  # whether cars stop for tyres and fuel
    lane: float = 20.0  # what a stop costs without any work [s]
    tyres: float = 12.0  # four tyres take so long, while fuel flows [s]
    fuel_rate: float = 2.5  # at which fuel flows [kg/s]

    def __post_init__(self):
        for name in ("lane", "tyres"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.fuel_rate > 0:
            raise ValueError(f"fuel_rate must be positive, got {self.fuel_rate}")


@struct.dataclass
class Pits:
    """The stops of cars; leaves [M]."""

    wait: Array  # until a stop is over, 0 on the road [s]
    stops: Array  # int32, so far
    fuel: Array  # on board when the lap began [kg]
    wear: Array  # of the most worn tyre when the lap began [-]


def no_stops(drives: DriveState) -> Pits:
    """At the start of a race of cars [M]."""
    motion = drives.motion
    zero = jnp.zeros(motion.fuel.shape)
    return Pits(zero, zero.astype(jnp.int32), motion.fuel, jnp.max(motion.wear, -1))


def put_back(
    track: Track,
    drives: DriveState,
    on_road: Array,
    calls: Array,
    offset: Array,
    speed: float,
    room: tuple[float, float],
) -> tuple[DriveState, Array]:
    """Cars [M] that ask for it (`calls`) roll along the road at `speed` [m/s], at an `offset` [M]
    [m] from the centre line; and which were moved, [M] bool: where another one that is `on_road`,
    or moved too, is within the `room` along and across [m], one stays as it is."""
    point = jax.vmap(tracks.at, (None, 0))(track, drives.s)
    offset = jnp.clip(
        offset, -SET_BACK_SHARE * point.width_right, SET_BACK_SHARE * point.width_left
    )
    rolls = jnp.full(offset.shape, speed)
    motion, placement = jax.vmap(set_down)(drives.car, point, offset, rolls)
    fuel, wear = drives.motion.fuel, drives.motion.wear
    back = dataclasses.replace(
        drives,
        motion=dataclasses.replace(motion, fuel=fuel, wear=wear),
        placement=placement,
        steering_target=jnp.zeros(offset.shape),
    )
    along, across = room
    near = jnp.abs(gaps(track, drives.s)) < along  # [M, M]
    not_self = ~jnp.eye(on_road.shape[0], dtype=bool)
    before = jnp.tri(on_road.shape[0], k=-1, dtype=bool)  # the second has the lower number

    def in_the_way(others: Array, there: Array) -> Array:
        """Whether any of `others` [M, M], at offsets `there` [M], is where a car would be [M]."""
        return jnp.any(others & near & (jnp.abs(there - offset[:, None]) < across), axis=1)

    free = calls & ~in_the_way(on_road & not_self, drives.placement.offset)
    # Of those who would be put into one place, the first goes; the others ask again.
    moves = free & ~in_the_way(free & before, offset)
    return where(moves, back, drives), moves


def where(which: Array, new: DriveState, old: DriveState) -> DriveState:
    """`new` for the cars [M] bool, `old` for the others."""
    return jax.tree.map(
        lambda new, old: jnp.where(which.reshape(-1, *(1,) * (old.ndim - 1)), new, old), new, old
    )


def parked(previous: DriveState, drives: DriveState, pits: Pits) -> DriveState:
    """`drives` after a step, but cars at a stop are where they were `previous`ly; their clocks
    run."""
    zero = jnp.zeros(pits.wait.shape)
    still = dataclasses.replace(
        previous,
        progress=zero,
        off_course=zero,
        wall_contact=zero,
        lap_clock=previous.lap_clock + CONTROL_STEP,
        lap_time=zero,
    )
    return where(pits.wait > 0.0, still, drives)


def serve(
    config: PitConfig,
    track: Track,
    before: Pits,
    previous: DriveState,
    drives: DriveState,
    on_road: Array,
    laps: Array,
) -> tuple[Pits, DriveState]:
    """The stops after a step of cars [M] from `previous` to `drives`.

    Args:
      on_road: [M] bool, cars that drive on.
      laps: [] int32, of the race, 0 without end.
    """
    motion, car = drives.motion, drives.car
    begins = on_road & (drives.laps_begun > previous.laps_begun)
    wear = jnp.max(motion.wear, -1)
    burnt, worn = before.fuel - motion.fuel, wear - before.wear
    left = jnp.where(laps > 0, laps - drives.laps_begun + 1, ENDLESS)
    # On a tank that burns nothing the needle does not move.
    dry = (burnt > 0.0) & (motion.fuel < RESERVE * burnt)
    bald = (worn > 0.0) & (wear + worn > 1.0) & (left > 1)
    calls = begins & (dry | bald)
    fill = jnp.clip(RESERVE * burnt * left, motion.fuel, car.fuel_load) - motion.fuel
    work = jnp.where(jnp.max(car.tyre.wear_rate, -1) > 0.0, config.tyres, 0.0)
    takes = config.lane + jnp.maximum(work, fill / config.fuel_rate)
    serviced = dataclasses.replace(
        motion,
        fuel=jnp.where(calls, motion.fuel + fill, motion.fuel),
        wear=jnp.where(calls[:, None], 0.0, motion.wear),
    )
    drives = dataclasses.replace(drives, motion=serviced)
    # The last step of a stop is tried again where the road is not clear.
    due = (before.wait > 0.0) & (before.wait <= CONTROL_STEP)
    right = jnp.full(before.wait.shape, -jnp.inf)  # as far as one is set back
    drives, leaves = put_back(track, drives, on_road, due, right, EXIT_SPEED, EXIT_ROOM)
    waits = jnp.maximum(before.wait - CONTROL_STEP, CONTROL_STEP)
    wait = jnp.where((before.wait > 0.0) & ~leaves, waits, 0.0)
    return (
        Pits(
            wait=jnp.where(calls, takes, wait),
            stops=before.stops + calls,
            fuel=jnp.where(begins, serviced.fuel, before.fuel),
            wear=jnp.where(begins, jnp.max(serviced.wear, -1), before.wear),
        ),
        drives,
    )
