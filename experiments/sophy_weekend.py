"""A race weekend of two teams: `sophy_championship --format=weekend`.

Practice, qualifying, a sprint and an endurance race, both with stops for tyres and fuel. In
practice and qualifying every car is alone on the circuit. Practice tells what a lap costs in fuel
and tyres, and so how much fuel a car sets off with; the best lap in qualifying gives the place on
the sprint's grid, the sprint's result that of the endurance race. Points are the championship's,
and the endurance race counts double. Tyres wear and fuel burns `wear` and `fuel_use` times as fast
as in the car, so that short races have stops.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from core_rl.devices import over_devices
from core_rl.env import State
from experiments.sophy_teams import (
    OF_FIRST,
    START_SEED,
    TEAM,
    drivers_of,
    mean_of,
    race_config_of,
    racer,
)
from projects.sophy.pits import RESERVE, PitConfig
from projects.sophy.race_env import RaceEnv, race_of
from projects.sophy.results import Results, drive_races, points_of

STAGES = ("practice", "qualifying", "sprint", "endurance")
WORTH = {"sprint": 1, "endurance": 2}  # of a race's points


@dataclasses.dataclass(frozen=True)
class WeekendConfig:
    practice: int = 4  # laps, the first from a standing start
    qualifying: int = 3  # laps, the first from a standing start
    sprint: int = 4  # laps
    endurance: int = 12  # laps
    wear: float = 6.0  # times the tyres' own, 0: none
    tank: float = 30.0  # fuel that a car can carry, 0: no fuel at all [kg]
    fuel_use: float = 3.0  # times the engine's own
    pits: PitConfig = PitConfig(stops=True)  # of both races

    def __post_init__(self):
        if self.practice < 2 or self.qualifying < 2:
            raise ValueError(
                "practice and qualifying must be at least 2 laps, since the first is not timed, "
                f"got {self.practice} and {self.qualifying}"
            )
        for name in ("sprint", "endurance"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("wear", "tank"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.fuel_use > 0:
            raise ValueError(f"fuel_use must be positive, got {self.fuel_use}")


class Weekends(NamedTuple):
    """Results by stage, leaves [N, M]; alone, every car is the first."""

    practice: Results
    qualifying: Results
    sprint: Results
    endurance: Results
    fuel: Array  # that a lap takes [kg]
    wear: Array  # that a lap takes of the most worn tyre [-]
    endured: State  # starts of the endurance races [N]


def weekend_env(config: WeekendConfig, teams: tuple[str, str], circuits: str) -> RaceEnv:
    """Raises UserError for teams that cannot race, and for electric cars with fuel."""
    race = race_config_of(teams, circuits)
    solo = dataclasses.replace(race.solo, wear=config.wear > 0.0, fuel=config.tank)
    env = RaceEnv(dataclasses.replace(race, solo=solo, pits=config.pits))
    cars = env.solo.cars
    tyre = dataclasses.replace(cars.tyre, wear_rate=config.wear * cars.tyre.wear_rate)
    env.solo.cars = dataclasses.replace(cars, tyre=tyre, fuel_flow=config.fuel_use * cars.fuel_flow)
    return env


def _prepared(state: State, laps: int | Array, fuel: Array) -> State:
    """The same start of a race of so many laps, with so much fuel [M] on board."""
    race = race_of(state)
    motion = dataclasses.replace(race.drives.motion, fuel=fuel)
    drives = dataclasses.replace(race.drives, motion=motion)
    pits = dataclasses.replace(race.pits, fuel=fuel)
    begun = dataclasses.replace(race, drives=drives, pits=pits, laps=jnp.int32(laps))
    return state.replace(pipeline_state=begun)  # pyright: ignore[reportAttributeAccessIssue]


def _alone(env: RaceEnv) -> RaceEnv:
    """The same course for one car, without stops."""
    one = copy.copy(env)
    one.config = dataclasses.replace(env.config, num_cars=1, pits=PitConfig())
    return one


def run_weekends(
    config: WeekendConfig,
    env: RaceEnv,
    teams: tuple[str, str],
    number: int,
    seed: int,
    penalty: float,
) -> Weekends:
    """Weekend k is on circuit k of the environment's, in turn."""
    one, numbers = _alone(env), jnp.arange(number)
    own = [jax.vmap(racer(team, one)) for team in teams]

    def begin_alone(number: Array, slot: Array, laps: Array, fuel: Array) -> State:
        its = copy.copy(one)
        its.car_index = env.car_index[slot][None]
        return _prepared(its.line_up(number, slot[None]), laps, fuel[None])

    @jax.jit
    def drive_alone(laps: Array, fuel: Array) -> Results:
        """With fuel [N, M]; leaves [N, M]."""
        parts = []
        for act, slots in zip(own, (np.arange(TEAM), TEAM + np.arange(TEAM)), strict=True):
            begin = jax.vmap(jax.vmap(begin_alone, (None, 0, None, 0)), (0, None, None, 0))
            states = begin(numbers, jnp.asarray(slots), laps, fuel[:, slots])
            flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), states)
            results = drive_races(one, act, flat, penalty)
            parts.append(
                jax.tree.map(lambda leaf: leaf.reshape(number, TEAM, *leaf.shape[2:]), results)
            )
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)

    act: Callable[[State], Array] = jax.vmap(drivers_of(teams, env))

    @jax.jit
    def line_up(place: Array, laps: Array, fuel: Array) -> State:
        states = jax.vmap(env.line_up)(numbers, place - 1)
        return jax.vmap(_prepared, (0, None, 0))(states, laps, fuel)

    race = over_devices(lambda states: drive_races(env, act, states, penalty))
    tank = jnp.broadcast_to(env.solo.cars.fuel_load[env.car_index], (number, 2 * TEAM))
    practice = drive_alone(jnp.int32(config.practice), tank)
    driven = jnp.maximum(practice.tally.laps, 1)
    fuel, wear = (tank - practice.fuel) / driven, practice.wear / driven

    def load(laps: int) -> Array:
        return jnp.minimum(RESERVE * laps * fuel, tank)

    qualifying = drive_alone(jnp.int32(config.qualifying), load(config.qualifying))
    lap = np.asarray(qualifying.tally.fastest_lap)
    lap = np.where(lap > 0.0, lap.round(2), np.inf)
    # Equal laps, such as those of one driver in the same cars, are put in a drawn order.
    draw = np.random.default_rng(START_SEED + seed).random(lap.shape)
    grid = jnp.asarray(np.argsort(np.lexsort((draw, lap), axis=1), axis=1) + 1)
    sprint = race(line_up(grid, jnp.int32(config.sprint), load(config.sprint)))
    endured = line_up(sprint.place, jnp.int32(config.endurance), load(config.endurance))
    weekends = Weekends(practice, qualifying, sprint, race(endured), fuel, wear, endured)
    return weekends._replace(qualifying=qualifying._replace(place=grid))


def weekend_points(weekends: Weekends) -> np.ndarray:
    """Points [N, M] of both races."""
    stages = weekends._asdict()
    return np.asarray(sum(worth * points_of(stages[name].place) for name, worth in WORTH.items()))


def tell_weekends(weekends: Weekends, teams: tuple[str, str]) -> dict[str, Any]:
    """Per team, means over weekends with intervals."""
    told = jax.tree.map(np.asarray, weekends)
    points, rows = weekend_points(told), {}
    for name, who, slots in (("team_a", teams[0], OF_FIRST), ("team_b", teams[1], ~OF_FIRST)):
        own, others = points[:, slots].sum(1), points[:, ~slots].sum(1)
        laps = np.maximum(told.endurance.tally.laps[:, slots].sum(1), 1)
        rows[name] = {
            "who": who,
            "points": mean_of(own),
            "weekends_won": mean_of((own > others).astype(float)),
            "practice_best_lap": mean_of(_best(told.practice.tally.fastest_lap[:, slots])),
            "fuel_per_lap": mean_of(told.fuel[:, slots].mean(1)),
            "wear_per_lap": mean_of(told.wear[:, slots].mean(1)),
            "qualifying_best_lap": mean_of(_best(told.qualifying.tally.fastest_lap[:, slots])),
            "qualifying_place": mean_of(told.qualifying.place[:, slots].mean(1)),
            "sprint_place": mean_of(told.sprint.place[:, slots].mean(1)),
            "endurance_place": mean_of(told.endurance.place[:, slots].mean(1)),
            "endurance_stops_per_car": mean_of(told.endurance.stops[:, slots].mean(1)),
            "endurance_hard_faults_per_car_and_lap": mean_of(
                told.endurance.faults[:, slots, 1:].sum((1, 2)) / laps
            ),
            "endurance_not_at_the_flag": mean_of((told.endurance.time[:, slots] == 0.0).mean(1)),
        }
    return rows


def _best(laps: np.ndarray) -> np.ndarray:
    """The fastest [N] of laps [N, K], of which 0 are none; nan where there is no lap."""
    best = np.where(laps > 0.0, laps, np.inf).min(1)
    return np.where(np.isfinite(best), best, np.nan)
