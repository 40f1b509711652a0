"""Teams of drivers that race each other, and numbers of theirs with intervals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from core_rl import flags
from core_rl.env import State, named_obs
from core_rl.errors import UsageError
from core_rl.policy import load_policy
from experiments import sophy_race
from experiments.ablation import interval
from projects.sophy.drivers import LEVELS, level_of, scripted_actions
from projects.sophy.field import CIRCUIT_WORDS, listed
from projects.sophy.league import directory_and_share, load_racer
from projects.sophy.limits import find_limit
from projects.sophy.race_env import RaceConfig, RaceEnv, race_of
from projects.sophy.race_metrics import rear_end_speed
from projects.sophy.results import Results

TEAM = 4  # cars
OF_FIRST = np.arange(2 * TEAM) < TEAM  # the slots of the first team
START_SEED = 9_000_000  # grids; training and selection never see them
LEVEL_NAMES = tuple(LEVELS)


def check_team(flag: str, team: str) -> None:
    """Raises UsageError where `flag` names nobody, or a level of scripted drivers that does not
    exist."""
    if not team:
        raise UsageError(f"--{flag} is missing: name a policy bundle's directory or scripted:LEVEL")
    name = team.removeprefix("scripted:")
    if name != team and name not in LEVELS:
        raise UsageError(
            f"team {team!r}: there is no level {name!r}; allowed are {', '.join(LEVEL_NAMES)}"
        )


def race_config_of(teams: tuple[str, ...], circuits: str) -> RaceConfig:
    """The race that a policy among the teams was trained for, with two teams from a grid; contact,
    wakes, walls and marshals are there, whatever it was trained with."""
    config = sophy_race.CONFIG.env
    for team in teams:
        if not team.startswith("scripted:"):
            extra = load_policy(directory_and_share(team)[0]).manifest["extra"]
            if extra.get("project") != "sophy":
                raise UsageError(f"policy {team}: not trained by projects/sophy, it cannot race")
            if "race" in extra:
                config = flags.from_dict(RaceConfig, extra["race"], base=RaceConfig())
                break
    solo = dataclasses.replace(config.solo, **({"circuit": circuits} if circuits else {}))
    return dataclasses.replace(
        config,
        solo=solo,
        num_cars=2 * TEAM,
        field=(),
        start="grid",
        contact=True,
        slipstream=True,
        walls=True,
        marshals=sophy_race.CONFIG.env.marshals,
    )


def news_for(teams: tuple[str, ...], env: RaceEnv) -> list[str]:
    """A line for each policy of the teams that has not seen all circuits or such large fields."""
    lines = []
    for team in dict.fromkeys(teams):
        if team.startswith("scripted:"):
            continue
        extra = load_policy(directory_and_share(team)[0]).manifest["extra"]
        race = extra.get("race", {})
        seen = listed(race.get("solo", extra.get("env", {}))["circuit"], CIRCUIT_WORDS)
        new = [name for name in env.solo.circuits if name not in seen]
        if new:
            lines.append(f"policy {team}: it has never seen {', '.join(new)}")
        if (most := race.get("num_cars", 1)) < env.num_agents:
            lines.append(f"policy {team}: it knows fields of {most}, not of {env.num_agents} cars")
    return lines


def racer(team: str, env: RaceEnv) -> Callable[[State], Array]:
    """What a team's drivers do in every slot of a race: actions [M, 2].

    Raises UserError for a policy that does not fit the race.
    """
    if team.startswith("scripted:"):
        name = team.removeprefix("scripted:")
        skill = LEVEL_NAMES.index(name) / (len(LEVEL_NAMES) - 1)
        level = level_of(jnp.full(env.config.num_cars, skill))
        return lambda state: scripted_actions(env, race_of(state), level)
    policy = load_racer(team, env)
    return lambda state: policy(named_obs(state))


def drivers_of(teams: tuple[str, str], env: RaceEnv) -> Callable[[State], Array]:
    """What all cars do in a race: actions [M, 2]."""
    ours, theirs = (racer(team, env) for team in teams)
    return lambda state: jnp.where(OF_FIRST[:, None], ours(state), theirs(state))


def share_cars(env: RaceEnv) -> None:
    """Where cars of several kinds race, both teams have the same ones."""
    env.car_index = jnp.asarray(np.arange(2 * TEAM) % TEAM % len(env.solo.entrants), jnp.int32)


def limits_of(env: RaceEnv) -> np.ndarray:
    """The minimum lap times [T, M] of the slots' cars on the circuits, nan where there is none in
    the committed table [s]."""

    def limit(circuit: int, entrant: int) -> float:
        car = jax.tree.map(lambda leaf: leaf[entrant], env.solo.cars)
        row = find_limit(car, jax.tree.map(lambda leaf: leaf[circuit], env.solo.tracks))
        return np.nan if row is None else row.lap_time

    own, slots = np.unique(np.asarray(env.car_index), return_inverse=True)
    circuits = range(len(env.solo.circuits))
    return np.array([[limit(at, entrant) for entrant in own.tolist()] for at in circuits])[:, slots]


def manners(results: Results, slots: np.ndarray) -> dict[str, np.ndarray]:
    """How cars in `slots` [M] bool behaved in each event [N], per car and lap or as it says, nan
    where there was nothing to count; results of events with several races, leaves [N, K, M], as
    NumPy arrays."""
    tally = results.tally

    def total(values: Array) -> np.ndarray:
        """Of an event [N]."""
        return np.asarray(values)[:, :, slots].reshape(len(values), -1).sum(1).astype(float)

    laps = np.maximum(total(tally.laps), 1.0)
    contacts, faults = total(tally.contacts), total(results.faults)
    overtakes = total(tally.overtakes)
    hits = tally.rear_ends[:, :, slots].sum((1, 2))

    def ratio(values: np.ndarray, of: np.ndarray) -> np.ndarray:
        """nan in events without any."""
        return np.divide(values, of, out=np.full(len(of), np.nan), where=of > 0.0)

    paces = [total(values) for values in (tally.traffic_pace, tally.free_pace)]
    steps = [total(values) for values in (tally.traffic_steps, tally.free_steps)]
    in_traffic, alone = (ratio(*one) for one in zip(paces, steps, strict=True))
    per_lap = {
        "overtakes": overtakes,
        "overtaken": total(tally.overtaken),
        "contacts": contacts,
        "hard_contacts": total(tally.contacts[..., 1:]),
        "heavy_contacts": total(tally.contacts[..., 2:]),
        "faults": faults,
        "hard_faults": total(results.faults[..., 1:]),
        "off_course_steps": total(tally.off_course_steps),
        "corner_cuts": total(tally.corner_cuts),
        "wall_contacts": total(tally.wall_contacts),
        "wall_contact_steps": total(tally.wall_contact_steps),
        "defensive_moves": total(tally.defensive_moves),
        "forced_off": total(tally.forced_off),
    }
    return {
        **{f"{name}_per_car_and_lap": value / laps for name, value in per_lap.items()},
        # Of contacts that it was in, those it was blamed for.
        "share_at_fault": ratio(faults, contacts),
        "contacts_per_hundred_overtakes": ratio(100.0 * contacts, overtakes),
        "rear_end_speed": np.asarray(rear_end_speed(hits)),  # 95th percentile [m/s]
        "pace": ratio(np.sum(paces, 0), np.sum(steps, 0)),  # share of the reference's
        "pace_in_traffic": in_traffic,
        "pace_alone": alone,
    }


def mean_of(values: ArrayLike, alike: int = 1) -> dict[str, float | None]:
    """The mean of a number per event [N] and its 95 % interval, None where there is one draw only;
    where it is nan there was nothing to count.

    Args:
      alike: so many events in a row are one draw, since they share what is random.
    """
    numbers = np.asarray(values, float)
    draws = [numbers[at : at + alike] for at in range(0, len(numbers), alike)]
    draws = [draw[~np.isnan(draw)].mean() for draw in draws if not np.isnan(draw).all()]
    if not draws:
        return {"mean": np.nan, "low": None, "high": None}
    mean = float(np.nanmean(numbers))
    low, high = interval(np.array(draws)) if len(draws) > 1 else (None, None)
    if low is not None and high is not None:
        # Around the mean of all events, of which the last draw may have fewer.
        low, high = mean - (high - low) / 2, mean + (high - low) / 2
        if np.nanmin(numbers) >= 0.0:
            low = max(low, 0.0)  # counts, shares, times
    return {"mean": mean, "low": low, "high": high}


def show_intervals(row: dict[str, Any]) -> str:
    """The numbers of `mean_of` in a row, a line each."""
    lines = []
    for name, value in row.items():
        if isinstance(value, dict):
            shown = f"{value['mean']:8.3f}"
            if value["low"] is not None:
                shown += f"  ({value['low']:.3f} to {value['high']:.3f})"
            lines.append(f"  {name.replace('_', ' '):36} {shown}")
    return "\n".join(lines)
