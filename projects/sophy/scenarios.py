"""Situations of a race to learn from and to be examined in: who stands where, how fast.

The mixed scenarios of Wurman et al. 2022 (Methods, "Mixed-scenario training"), each a row of
numbers, so that drawing one is no branch. Slot 0 is the car that the situation is about; the others
are its opponents.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.signal import find_peaks

from projects.sophy import track as tracks
from projects.sophy.race_env import GRID_GAP, GRID_SHARE, MOST_CARS, RaceEnv
from projects.sophy.racing_line import HALF_TRACK

ANYWHERE, LINE, STRAIGHT, CORNER = range(4)  # where a situation begins
FIRST, LAST, ANY_PLACE = range(3)  # of the car that it is about
BEFORE_CORNER, BEFORE_END = 150.0, 300.0  # of a corner's slowest point, of a straight's fastest [m]
DEEPEST = 5.0  # by how much a corner is slower than what lies around it [m/s]
HIGH = 0.7  # part of the lap that is slower than a straight's end, or faster than a corner
SPREAD = 0.05  # of the speeds, share


class Scenario(NamedTuple):
    """One situation; leaves [] or [K]."""

    cars: tuple[int, int]  # fewest and most in it
    gap: tuple[float, float]  # from one car to the next, along the course [m]
    speed: tuple[float, float]  # share of the reference's
    side: float = 0.5  # largest lateral offset, share of the half width
    columns: bool = False  # whether cars stand left and right in turn, all that far aside
    begins: int = ANYWHERE
    place: int = ANY_PLACE
    skill: tuple[float, float] = (0.0, 1.0)  # of opponents that are scripted
    scripted: bool = False  # whether all of them are
    outside: float = 0.0  # by how much all wheels of the car that it is about are off the road [m]


SCENARIOS: dict[str, Scenario] = {
    "alone": Scenario((1, 1), (10.0, 10.0), (0.2, 0.95)),
    "duel": Scenario((2, 2), (6.0, 25.0), (0.4, 0.9)),
    "grid": Scenario((2, MOST_CARS), (GRID_GAP, GRID_GAP), (0.0, 0.0), GRID_SHARE, True, LINE),
    "pack": Scenario((3, MOST_CARS), (8.0, 30.0), (0.4, 0.85)),
    "slow_ahead": Scenario(
        (2, 3), (15.0, 60.0), (0.5, 0.9), place=LAST, skill=(-1.5, -0.5), scripted=True
    ),
    "chase": Scenario((2, 3), (6.0, 20.0), (0.5, 0.9), place=LAST, skill=(0.8, 1.1), scripted=True),
    "slipstream": Scenario(
        (2, 2), (8.0, 25.0), (0.75, 0.95), side=0.2, begins=STRAIGHT, place=LAST
    ),
    "corner": Scenario((2, 2), (0.5, 4.0), (0.6, 0.85), GRID_SHARE, True, CORNER),
    "attacked": Scenario((2, 3), (5.5, 15.0), (0.5, 0.85), place=FIRST, skill=(0.5, 1.0)),
    "rejoin": Scenario((3, 5), (10.0, 40.0), (0.3, 0.6), place=FIRST, outside=0.08),
}


def table(names: tuple[str, ...]) -> Scenario:
    """The scenarios of that name, leaves [K]."""
    return jax.tree.map(lambda *values: jnp.asarray(values), *(SCENARIOS[name] for name in names))


def origins(env: RaceEnv, most: int = 16) -> Array:
    """Where situations may begin: arc lengths [T, 2, most] [m], straights and corners."""
    found = []
    for i in range(len(env.solo.circuits)):
        lap = jax.device_get(env.solo.reference_of(env.car_index[0], jnp.int32(i)))
        length = float(env.solo.tracks.length[i])
        twice = np.tile(lap.speed, 2)  # a peak may lie where the lap begins

        def stations(values: np.ndarray, before: float, lap=lap, length=length) -> np.ndarray:
            peaks, _ = find_peaks(values, prominence=DEEPEST, height=np.quantile(values, HIGH))
            peaks = np.unique(peaks % len(lap.s))
            peaks = peaks if len(peaks) else np.array([np.argmax(values[: len(lap.s)])])
            return np.resize((lap.s[peaks] - before) % length, most)

        found.append([stations(twice, BEFORE_END), stations(-twice, BEFORE_CORNER)])
    return jnp.asarray(np.asarray(found), jnp.float32)


class Setting(NamedTuple):
    """A situation that was drawn, as `RaceEnv.start` wants it."""

    circuit: Array  # []
    present: Array  # [M] bool
    origin: Array  # [] [m]
    distance: Array  # [M] [m]
    share: Array  # [M]
    speed_share: Array  # [M]


def draw_setting(env: RaceEnv, scenario: Scenario, places: Array, rng: Array) -> Setting:
    """One of a scenario (leaves []) on a circuit that is drawn; `places` are the `origins`."""
    num_cars = env.config.num_cars
    keys = jax.random.split(rng, 10)
    circuit = jax.random.randint(keys[0], (), 0, len(env.solo.circuits))
    track = env.solo.track_of(circuit)
    slots = jnp.arange(num_cars)
    fewest, most = (jnp.minimum(number, num_cars) for number in scenario.cars)
    size = jax.random.randint(keys[1], (), fewest, most + 1)
    # Slot 0 takes its place, the others those that are left.
    any_place = jax.random.randint(keys[2], (), 0, size)
    own = jnp.select([scenario.place == FIRST, scenario.place == LAST], [0, size - 1], any_place)
    place = jnp.where(slots == 0, own, jnp.where(slots - 1 < own, slots - 1, slots))

    def between(key: Array, bounds: tuple, shape: tuple[int, ...] = ()) -> Array:
        low, high = bounds
        return low + (high - low) * jax.random.uniform(key, shape)

    way = -jnp.cumsum(between(keys[3], scenario.gap, (num_cars,)))
    sign = jnp.where(jax.random.bernoulli(keys[4]), 1.0, -1.0)
    column = sign * jnp.where(place % 2 == 0, 1.0, -1.0)
    anywhere = jax.random.uniform(keys[5], (num_cars,), minval=-1.0)
    share = scenario.side * jnp.where(scenario.columns, column, anywhere)
    spread = 1.0 + SPREAD * jax.random.uniform(keys[6], (num_cars,), minval=-1.0)
    straight, corner = jax.random.choice(keys[7], places[circuit], axis=1)
    anywhere = jax.random.uniform(keys[8]) * track.length
    origin = jnp.select(
        [scenario.begins == LINE, scenario.begins == STRAIGHT, scenario.begins == CORNER],
        [0.0, straight, corner],
        anywhere,
    )
    way = way[place]
    # Where it stands off the road, that is as far as the wheels on the other side are.
    there = tracks.at(track, tracks.wrap(track, origin + way[0]))
    half = jnp.where(sign > 0.0, there.width_left, there.width_right)
    wall = jnp.where(sign > 0.0, there.wall_left, there.wall_right)
    beyond = HALF_TRACK + scenario.outside
    off_road = sign * (1.0 + beyond / half)
    # Where it would stand in a wall there, the situation begins on the road.
    body = 0.5 * env.solo.cars.width[env.car_index[0]]
    is_off = (scenario.outside > 0.0) & (wall - half > beyond + body)
    share = jnp.where((slots == 0) & is_off, off_road, share)
    return Setting(
        circuit=circuit,
        present=slots < size,
        origin=tracks.wrap(track, origin),
        distance=way,
        share=share,
        speed_share=between(keys[9], scenario.speed) * spread,
    )
