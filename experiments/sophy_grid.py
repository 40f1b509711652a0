"""From the last place of a grid: one driver against a field of scripted drivers of all levels.

    ./run python -m experiments.sophy_grid --policy=DIR
    ./run python -m experiments.sophy_grid --policy=scripted:expert --cars=12 --laps=5 --json

The others, from beginner to expert in even steps, stand before it in a drawn order. What came of
it: its places, overtakes, contacts and faults, with 95 % intervals (Student) over races, the chart
of the first race and its replay.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from core_rl import flags
from core_rl.devices import over_devices, use_all_cores
from core_rl.env import State
from experiments.sophy_teams import (
    START_SEED,
    check_team,
    mean_of,
    news_for,
    race_config_of,
    racer,
    show_intervals,
)
from projects.sophy.drivers import level_of, scripted_actions
from projects.sophy.race_env import MOST_CARS, RaceEnv, race_of
from projects.sophy.race_replay import show_race
from projects.sophy.results import Results, drive_races, row_of
from projects.sophy.stewards import RULES

PODIUM = 3  # places
LONGEST = 3000.0  # that the replayed race may last [s]


@dataclasses.dataclass(frozen=True)
class Grid:
    policy: str = ""  # policy bundle: DIR; DIR@pro, DIR@0.9: at less speed; or scripted:LEVEL
    circuits: str = ""  # of the races in turn; empty: as the policy was trained
    cars: int = MOST_CARS
    laps: int = 10
    races: int = 8
    penalty: float = 5.0  # per contact of medium or heavy severity with blame [s]
    seed: int = 0  # of the grids
    out: str = "runs/sophy_grid"  # directory of the results, a chart and a replay
    json: bool = False  # print one JSON object

    def __post_init__(self):
        if not 2 <= self.cars <= MOST_CARS:
            raise ValueError(f"cars must be 2 to {MOST_CARS}, got {self.cars}")
        for name in ("laps", "races"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.penalty >= 0:
            raise ValueError(f"penalty must not be negative, got {self.penalty}")


def start(env: RaceEnv, key: Array, number: Array) -> State:
    """Race number `number` []; the driver, in slot 0, stands last."""
    num_cars = env.config.num_cars
    place = jnp.append(num_cars - 1, jax.random.permutation(key, num_cars - 1))
    return env.line_up(number, place)


def drivers_of(policy: str, env: RaceEnv) -> Callable[[State], Array]:
    """What all cars do in a race: actions [M, 2]."""
    own = racer(policy, env)
    levels = level_of(jnp.append(0.0, jnp.linspace(0.0, 1.0, env.config.num_cars - 1)))

    def act(state: State) -> Array:
        scripted = scripted_actions(env, race_of(state), levels)
        return scripted.at[0].set(own(state)[0])

    return act


def summary(results: Results) -> dict[str, Any]:
    """Of the driver in slot 0, over races [N]."""
    place = results.place[:, 0]
    laps = np.maximum(results.tally.laps[:, 0], 1)
    return {
        "places": place.tolist(),
        "place": mean_of(place),
        "on_the_podium": mean_of((place <= PODIUM).astype(float)),
        "won": mean_of((place == 1).astype(float)),
        "overtakes": mean_of(results.tally.overtakes[:, 0]),
        "contacts_per_lap": mean_of(results.tally.contacts[:, 0].sum(-1) / laps),
        "hard_faults_per_lap": mean_of(results.faults[:, 0, 1:].sum(-1) / laps),
        "hard_faults_per_lap_of_the_others": mean_of(
            results.faults[:, 1:, 1:].sum((1, 2)) / np.maximum(results.tally.laps[:, 1:].sum(1), 1)
        ),
        "off_course_steps_per_lap": mean_of(results.tally.off_course_steps[:, 0] / laps),
        "others_not_at_the_flag": mean_of((results.time[:, 1:] == 0.0).mean(1)),
    }


def main(config: Grid) -> int:
    use_all_cores()
    check_team("policy", config.policy)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    race = race_config_of((config.policy,), config.circuits)
    env = RaceEnv(dataclasses.replace(race, num_cars=config.cars, laps=config.laps))
    sys.stderr.write("".join(f"{line}\n" for line in news_for((config.policy,), env)))
    act, began = drivers_of(config.policy, env), time.monotonic()
    keys = jax.random.split(jax.random.key(START_SEED + config.seed), config.races)
    numbers = jnp.arange(config.races)
    states = jax.jit(jax.vmap(lambda *grid: start(env, *grid)))(keys, numbers)
    drive = over_devices(lambda states: drive_races(env, jax.vmap(act), states, config.penalty))
    results = jax.tree.map(np.asarray, drive(states))
    with (out / "races.jsonl").open("w", encoding="utf-8") as file:
        for at in range(config.races):
            circuit = env.solo.circuits[at % len(env.solo.circuits)]
            row = {"circuit": circuit, "result": row_of(results, (at,))}
            file.write(json.dumps(row) + "\n")
    begun = jax.tree.map(lambda leaf: leaf[0], states)
    names = ["driver", *(f"{k + 1}" for k in range(config.cars - 1))]
    title = f"{config.policy} from the last of {config.cars} places on {env.solo.circuits[0]}"
    show_race(env, act, begun, names, LONGEST, title, out)
    told, seconds = summary(results), time.monotonic() - began
    if config.json:
        print(json.dumps({"rules": RULES, **told, "seconds": round(seconds, 1)}))
        return 0
    print(f"{config.policy}, places {', '.join(map(str, told['places']))}")
    print(show_intervals(told))
    written = ", ".join(str(out / name) for name in ("races.jsonl", "race.html", "race.png"))
    print(f"{written}, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    flags.main(main, Grid())
