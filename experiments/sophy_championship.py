"""Two teams of four over a championship, as in the Race Together events of 2021.

    ./run python -m experiments.sophy_championship --team_a=DIR --team_b=scripted:expert
    ./run python -m experiments.sophy_championship --team_a=DIR --team_b=DIR@0.95

A championship is three races of 4, 6 and 7 laps from a standing grid, on which the teams' cars
stand in turn (who stands first is drawn, and the teams change places in every other
championship); points are 10-8-6-5-4-3-2-1, and the last race counts double. A contact of medium or
heavy severity that the stewards blame a car for costs it `penalty` seconds at the flag.

Published: Sophy 104, humans 52 (21 October 2021). All races are driven in one program; the numbers
are means over championships with 95 % intervals (Student).
"""

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from core_rl import flags
from core_rl.env import State, named_obs
from core_rl.errors import UsageError
from core_rl.policy import load_policy
from core_rl.report import encode_png, write_report
from experiments import sophy_race
from experiments.ablation import interval
from projects.sophy.drivers import LEVELS, level_of, scripted_actions
from projects.sophy.league import directory_and_share, load_racer
from projects.sophy.race_env import RaceConfig, RaceEnv, race_of
from projects.sophy.race_replay import show_race
from projects.sophy.results import Results, drive_races, points_of, row_of

LAPS = (4, 6, 7)
WORTH = (1, 1, 2)  # of a race's points
TEAM = 4  # cars
OF_FIRST = np.arange(2 * TEAM) < TEAM  # the slots of the first team
START_SEED = 9_000_000  # grids; training and selection never see them
LONGEST = 1200.0  # that the replayed race may last [s]
LEVEL_NAMES = tuple(LEVELS)


@dataclasses.dataclass(frozen=True)
class Championship:
    team_a: str = ""  # policy bundle's directory, DIR@0.95: less of its speed, or scripted:LEVEL
    team_b: str = "scripted:expert"  # the same
    circuits: str = ""  # of the three races in turn; empty: as the policy was trained
    races: int = 20  # championships of three races each
    penalty: float = 5.0  # per contact of medium or heavy severity with blame [s]
    seed: int = 0  # of the grids
    out: str = "runs/sophy_championship"  # directory of the results, pictures and a replay
    json: bool = False  # print one JSON object

    def __post_init__(self):
        if self.races < 1:
            raise ValueError(f"races must be at least 1, got {self.races}")
        if not self.penalty >= 0:
            raise ValueError(f"penalty must not be negative, got {self.penalty}")


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
    """The race that a policy among the teams was trained for, with eight cars from a grid."""
    config = sophy_race.CONFIG.env
    for team in teams:
        if not team.startswith("scripted:"):
            extra = load_policy(directory_and_share(team)[0]).manifest["extra"]
            if extra.get("project") != "sophy":
                raise UsageError(f"policy {team}: not trained by projects/sophy, it cannot race")
            if "race" in extra:
                config = flags.from_dict(RaceConfig, extra["race"], base=config)
                break
    solo = dataclasses.replace(config.solo, **({"circuit": circuits} if circuits else {}))
    return dataclasses.replace(
        config, solo=solo, num_cars=2 * TEAM, field=(), start="grid", laps=max(LAPS)
    )


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


def start(env: RaceEnv, key: Array, race: Array, swapped: Array) -> State:
    """The start of race number `race` [] of a championship; slots of the first team come first.

    Cars of a team stand in a drawn order, teams in turn, the first in front unless `swapped` [].
    """
    order = jnp.concatenate([jax.random.permutation(part, TEAM) for part in jax.random.split(key)])
    place = 2 * order + (jnp.where(OF_FIRST, 0, 1) ^ swapped)
    state = env.line_up(race, place)
    begun = dataclasses.replace(race_of(state), laps=jnp.asarray(LAPS, jnp.int32)[race])
    return state.replace(pipeline_state=begun)  # pyright: ignore[reportAttributeAccessIssue]


def grids_of(number: int, seed: int) -> tuple[Array, Array, Array]:
    """What `start` wants for so many championships, leaves [3 C].

    Two in a row have the same grids, with the teams' places changed.
    """
    keys = jax.random.split(jax.random.key(START_SEED + seed), -(-number // 2) * len(LAPS))
    championship, race = np.divmod(np.arange(number * len(LAPS)), len(LAPS))
    pick = (championship // 2) * len(LAPS) + race
    return keys[pick], jnp.asarray(race), jnp.asarray(championship % 2)


def drivers_of(teams: tuple[str, str], env: RaceEnv) -> Callable[[State], Array]:
    """What all cars do in a race: actions [M, 2]."""
    ours, theirs = (racer(team, env) for team in teams)
    return lambda state: jnp.where(OF_FIRST[:, None], ours(state), theirs(state))


def run_championships(
    env: RaceEnv, act: Callable[[State], Array], number: int, seed: int, penalty: float
) -> Results:
    """Results of championships, leaves [C, 3, M]."""

    @jax.jit
    def drive(keys: Array, race: Array, swapped: Array) -> Results:
        states = jax.vmap(lambda *grid: start(env, *grid))(keys, race, swapped)
        return drive_races(env, jax.vmap(act), states, penalty)

    shape = (number, len(LAPS), 2 * TEAM)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(*shape, *leaf.shape[2:]),
        drive(*grids_of(number, seed)),
    )


def mean_of(values: ArrayLike) -> dict[str, float | None]:
    """The mean of a number per championship [C] and its 95 % interval, None with one only."""
    numbers = np.asarray(values, float)
    low, high = interval(numbers) if len(numbers) > 1 else (None, None)
    return {"mean": float(numbers.mean()), "low": low, "high": high}


def points_in(results: Results) -> np.ndarray:
    """Points [C, 3, M] of all cars, as much as the races are worth."""
    return np.asarray(points_of(jnp.asarray(results.place))) * np.array(WORTH)[:, None]


def summary(results: Results, teams: tuple[str, str]) -> dict[str, Any]:
    """Per team: points, wins, and what happened per car and lap."""
    points = points_in(results)
    rows = {}
    for name, slots in (("team_a", OF_FIRST), ("team_b", ~OF_FIRST)):
        laps = np.maximum(np.asarray(results.laps)[..., slots].sum((1, 2)), 1)
        total, others = points[..., slots].sum((1, 2)), points[..., ~slots].sum((1, 2))
        best = np.where(results.fastest_lap > 0.0, results.fastest_lap, np.inf)[..., slots]
        best = best.min((0, 2))
        hard = results.faults[..., slots, 1:].sum((1, 2, 3))
        overtakes, contacts, faults = (
            values.sum((1, 2)).astype(float)
            for values in (
                results.overtakes[..., slots],
                results.contacts[..., slots],
                results.faults[..., slots, :].sum(-1),
            )
        )
        rows[name] = {
            "who": teams[0] if name == "team_a" else teams[1],
            "points": mean_of(total),
            "championships_won": mean_of((total > others).astype(float)),
            "races_won": mean_of((results.place[..., slots] == 1).sum((1, 2)) / len(LAPS)),
            "fastest_laps": [float(lap) if np.isfinite(lap) else None for lap in best],
            "place": mean_of(results.place[..., slots].mean((1, 2))),
            "overtakes_per_car_and_lap": mean_of(overtakes / laps),
            "contacts_per_car_and_lap": mean_of(contacts / laps),
            "faults_per_car_and_lap": mean_of(faults / laps),
            "hard_faults_per_car_and_lap": mean_of(hard / laps),
            # Of contacts that he was in, those he was blamed for.
            "share_at_fault": mean_of(faults / np.maximum(contacts, 1.0)),
            "contacts_per_hundred_overtakes": mean_of(
                100.0 * contacts / np.maximum(overtakes, 1.0)
            ),
            "penalty_seconds": mean_of(results.penalty[..., slots].sum((1, 2))),
            "off_course_steps_per_car_and_lap": mean_of(
                results.off_course_steps[..., slots].sum((1, 2)) / laps
            ),
            "wall_contact_steps_per_car_and_lap": mean_of(
                results.wall_contact_steps[..., slots].sum((1, 2)) / laps
            ),
            "not_at_the_flag": mean_of((results.time[..., slots] == 0.0).mean((1, 2))),
        }
    return rows


def picture(results: Results, teams: tuple[str, str]) -> Figure:
    """Points per championship, and where each team's cars finished."""
    points = points_in(results)
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    number = np.arange(1, len(points) + 1)
    for colour, team, slots in (("C0", teams[0], OF_FIRST), ("C1", teams[1], ~OF_FIRST)):
        total = points[..., slots].sum((1, 2))
        left.plot(number, total, "o-", color=colour, label=f"{team}: mean {total.mean():.0f}")
        places = np.bincount(results.place[..., slots].ravel(), minlength=2 * TEAM + 1)[1:]
        side = -0.2 if colour == "C0" else 0.2
        right.bar(np.arange(1, 2 * TEAM + 1) + side, places / places.sum(), 0.4, color=colour)
    left.set_title("Points per championship")
    left.set_xlabel("championship")
    left.set_ylim(0.0, 140.0)
    dashed = {"color": "0.6", "linewidth": 0.8, "linestyle": "--"}
    left.axhline(104.0, label="Sophy 104, humans 52 (2021)", **dashed)
    left.axhline(52.0, **dashed)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, loc="lower right", fontsize=8)
    right.set_title("Places of a team's cars")
    right.set_xlabel("place")
    right.set_ylabel("share")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


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


def numbers_of(told: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Label, value and note of both teams' numbers, for the page."""
    a, b = told["team_a"], told["team_b"]

    def between(row: dict[str, Any]) -> str:
        if row["low"] is None:
            return "one championship"
        return f"{row['low']:.3g} to {row['high']:.3g}"

    first = ("points", "championships_won", "hard_faults_per_car_and_lap")
    names = [*first, *(name for name in a if name not in first)]
    numbers = [
        (
            name.replace("_", " ").capitalize(),
            f"{a[name]['mean']:.3g} : {b[name]['mean']:.3g}",
            f"95 %: {between(a[name])}, {between(b[name])}",
        )
        for name in names
        if isinstance(a[name], dict)
    ]
    laps = (
        " ".join("none" if lap is None else f"{lap:.2f}" for lap in row["fastest_laps"])
        for row in (a, b)
    )
    return [*numbers, ("Fastest laps by race [s]", " : ".join(laps), "")]


def main(config: Championship) -> int:
    teams = config.team_a, config.team_b
    check_team("team_a", config.team_a)
    check_team("team_b", config.team_b)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    env = RaceEnv(race_config_of(teams, config.circuits))
    # Where cars of several kinds race, both teams have the same ones.
    env.car_index = jnp.asarray(np.arange(2 * TEAM) % TEAM % len(env.solo.entrants), jnp.int32)
    began = time.monotonic()
    sys.stderr.write(
        f"{config.races} championships of {len(LAPS)} races on {', '.join(env.solo.circuits)}\n"
    )
    act = drivers_of(teams, env)
    results = run_championships(env, act, config.races, config.seed, config.penalty)
    with (out / "races.jsonl").open("w", encoding="utf-8") as file:
        for at in np.ndindex(results.place.shape[:2]):
            circuit = env.solo.circuits[at[1] % len(env.solo.circuits)]
            row = {"championship": at[0], "circuit": circuit, "laps": LAPS[at[1]]}
            file.write(json.dumps({**row, "result": row_of(results, at)}) + "\n")
    pictured = encode_png(picture(results, teams))
    (out / "championship.png").write_bytes(pictured)
    begun = jax.jit(lambda *grid: start(env, *grid))(
        *(part[0] for part in grids_of(1, config.seed))
    )
    names = [f"{'AB'[k // TEAM]}{k % TEAM + 1}" for k in range(2 * TEAM)]
    title = f"A: {config.team_a}, B: {config.team_b}, {LAPS[0]} laps of {env.solo.circuits[0]}"
    page, chart = show_race(env, act, begun, names, LONGEST, title, out)
    told = summary(results, teams)
    write_report(
        out / "report.html",
        title=f"{config.team_a} against {config.team_b}",
        subtitle=f"{config.races} championships on {', '.join(env.solo.circuits)}",
        command=f"./run python -m experiments.sophy_championship {shlex.join(sys.argv[1:])}",
        record={},
        numbers=numbers_of(told),
        figures=[
            ("Championships", pictured, "The dashed lines are what Sophy and humans reached."),
            ("The first race", chart, "How far behind the leader each car was, in seconds."),
        ],
        embedded_pages=[("The first race", page, 640)],
        metrics=[],
        curves=[],
        is_run=False,
    )
    if config.json:
        print(json.dumps({**told, "seconds": round(time.monotonic() - began, 1)}))
        return 0
    for row in told.values():
        print(row["who"])
        print(show_intervals(row))
        laps = ", ".join("none" if lap is None else f"{lap:.2f} s" for lap in row["fastest_laps"])
        print(f"  {'fastest laps':36} {laps}")
    written = ("report.html", "races.jsonl", "championship.png", "race.html", "race.png")
    files = ", ".join(str(out / name) for name in written)
    print(f"{files}, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    flags.main(main, Championship())
