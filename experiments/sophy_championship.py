"""Two teams of four over a championship, as in the Race Together events of 2021.

    ./run python -m experiments.sophy_championship --team_a=DIR --team_b=scripted:expert
    ./run python -m experiments.sophy_championship --team_a=DIR --team_b=DIR@pro

A championship is three races of 4, 6 and 7 laps from a standing grid, which is drawn for each; in
every other championship the teams change places. Points are 10-8-6-5-4-3-2-1, and the last race
counts double. A contact of medium or heavy severity that the stewards blame a car for costs it
`penalty` seconds at the flag.

`--format=weekend` holds race weekends instead: practice, qualifying, a sprint and an endurance
race, both with stops for tyres and fuel (`experiments/sophy_weekend.py`).

Published: Sophy 104, humans 52 (21 October 2021). All races are driven in one program; the numbers
are means over championships, or weekends, with 95 % intervals (Student) over the grids drawn, one
for two championships.
"""

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from core_rl import flags
from core_rl.devices import over_devices, use_all_cores
from core_rl.env import State
from core_rl.errors import UsageError
from core_rl.report import encode_png, write_report
from core_rl.tracking import encode_json
from experiments.sophy_teams import (
    OF_FIRST,
    START_SEED,
    TEAM,
    check_team,
    drivers_of,
    limits_of,
    manners,
    mean_of,
    news_for,
    race_config_of,
    share_cars,
    show_intervals,
)
from experiments.sophy_weekend import (
    STAGES,
    WeekendConfig,
    run_weekends,
    tell_weekends,
    weekend_env,
    weekend_points,
)
from projects.sophy.field import CIRCUIT_WORDS, listed
from projects.sophy.race_env import RaceConfig, RaceEnv, race_of
from projects.sophy.race_replay import show_race
from projects.sophy.results import Results, drive_races, points_of, row_of
from projects.sophy.stewards import RULES

LAPS = (4, 6, 7)
WORTH = (1, 1, 2)  # of a race's points
SUMMARY = "summary.json"  # what `--json` prints, in the directory of results
SHARED = 2  # championships in a row that have the same grids, with the teams' places changed
LONGEST = 3600.0  # that the replayed race may last [s]


@dataclasses.dataclass(frozen=True)
class Championship:
    team_a: str = ""  # policy bundle: DIR; DIR@pro, DIR@0.9: at less speed; or scripted:LEVEL
    team_b: str = "scripted:expert"  # the same
    circuits: str = ""  # of the races in turn; empty: the first that the policy was trained on
    races: int = 20  # championships of three races each, or weekends
    format: Literal["championship", "weekend"] = "championship"  # what is held
    weekend: WeekendConfig = WeekendConfig()
    penalty: float = 5.0  # per contact of medium or heavy severity with blame [s]
    seed: int = 0  # of the grids
    out: str = "runs/sophy_championship"  # directory of the results, pictures and a replay
    json: bool = False  # print one JSON object

    def __post_init__(self):
        if self.format not in ("championship", "weekend"):
            raise ValueError(f"format must be championship or weekend, got {self.format!r}")
        if self.races < 1:
            raise ValueError(f"races must be at least 1, got {self.races}")
        if not self.penalty >= 0:
            raise ValueError(f"penalty must not be negative, got {self.penalty}")


def start(env: RaceEnv, key: Array, race: Array, swapped: Array) -> State:
    """The start of race number `race` [] of a championship; slots of the first team come first.

    The grid is drawn as a whole: were teams to stand in turn, deterministic drivers in equal cars
    would drive the same race every time. `swapped` [] has the teams change places.
    """
    place = jax.random.permutation(key, 2 * TEAM)
    state = env.line_up(race, jnp.where(swapped, jnp.roll(place, TEAM), place))
    begun = dataclasses.replace(race_of(state), laps=jnp.asarray(LAPS, jnp.int32)[race])
    return state.replace(pipeline_state=begun)  # pyright: ignore[reportAttributeAccessIssue]


def grids_of(number: int, seed: int) -> tuple[Array, Array, Array]:
    """What `start` wants for so many championships, leaves [3 C]."""
    keys = jax.random.split(jax.random.key(START_SEED + seed), -(-number // SHARED) * len(LAPS))
    championship, race = np.divmod(np.arange(number * len(LAPS)), len(LAPS))
    pick = (championship // SHARED) * len(LAPS) + race
    return keys[pick], jnp.asarray(race), jnp.asarray(championship % SHARED)


def run_championships(
    env: RaceEnv, act: Callable[[State], Array], number: int, seed: int, penalty: float
) -> Results:
    """Results of championships, leaves [C, 3, M]."""

    @over_devices
    def drive(keys: Array, race: Array, swapped: Array) -> Results:
        states = jax.vmap(lambda *grid: start(env, *grid))(keys, race, swapped)
        return drive_races(env, jax.vmap(act), states, penalty)

    shape = (number, len(LAPS), 2 * TEAM)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(*shape, *leaf.shape[2:]),
        drive(*grids_of(number, seed)),
    )


def points_in(results: Results) -> np.ndarray:
    """Points [C, 3, M] of all cars, as much as the races are worth."""
    return np.asarray(points_of(jnp.asarray(results.place))) * np.array(WORTH)[:, None]


def summary(env: RaceEnv, results: Results, teams: tuple[str, str]) -> dict[str, Any]:
    """Per team: points, wins, and what happened per car and lap."""
    points, told = points_in(results), jax.tree.map(np.asarray, results)
    limits = limits_of(env)
    laps = np.where(told.tally.fastest_lap > 0.0, told.tally.fastest_lap, np.inf)  # [C, 3, M]
    shares = laps / limits[np.arange(len(LAPS)) % len(limits)]
    rows = {}
    for name, slots in (("team_a", OF_FIRST), ("team_b", ~OF_FIRST)):
        total, others = points[..., slots].sum((1, 2)), points[..., ~slots].sum((1, 2))
        best, over = (values[..., slots].min((0, 2)) for values in (laps, shares))
        numbers = {
            "points": total,
            "championships_won": total > others,
            "races_won": (told.place[..., slots] == 1).sum((1, 2)) / len(LAPS),
            "place": told.place[..., slots].mean((1, 2)),
            **manners(told, slots),
            "penalty_seconds": told.penalty[..., slots].sum((1, 2)),
            "not_at_the_flag": (told.time[..., slots] == 0.0).mean((1, 2)),
        }
        rows[name] = {
            "who": teams[0] if name == "team_a" else teams[1],
            **{name: mean_of(values, alike=SHARED) for name, values in numbers.items()},
            "fastest_laps": [float(lap) if np.isfinite(lap) else None for lap in best],
            "fastest_laps_over_limit": [float(x) if np.isfinite(x) else None for x in over],
        }
    return rows


def picture(points: np.ndarray, places: np.ndarray, teams: tuple[str, str], event: str) -> Figure:
    """Points [N, M] per event, and where each team's cars finished: places [..., M]."""
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    number = np.arange(1, len(points) + 1)
    for colour, team, slots in (("C0", teams[0], OF_FIRST), ("C1", teams[1], ~OF_FIRST)):
        total = points[:, slots].sum(1)
        left.plot(number, total, "o-", color=colour, label=f"{team}: mean {total.mean():.0f}")
        counted = np.bincount(places[..., slots].ravel(), minlength=2 * TEAM + 1)[1:]
        side = -0.2 if colour == "C0" else 0.2
        right.bar(np.arange(1, 2 * TEAM + 1) + side, counted / counted.sum(), 0.4, color=colour)
    left.set_title(f"Points per {event}")
    left.set_xlabel(event)
    left.set_ylim(0.0, 140.0)
    if event == "championship":
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


def numbers_of(told: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Label, value and note of both teams' numbers, for the page."""
    a, b = told["team_a"], told["team_b"]

    def between(row: dict[str, Any]) -> str:
        return "once" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}"

    first = [name for name in a if name.startswith(("points", "hard_faults", "endurance_hard"))]
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
    if "fastest_laps" not in a:
        return numbers
    laps = " : ".join(show_laps(row["fastest_laps"]) for row in (a, b))
    return [*numbers, ("Fastest laps by race [s]", laps, "")]


def show_laps(laps: list[float | None]) -> str:
    return " ".join("none" if lap is None else f"{lap:.2f}" for lap in laps)


class Held(NamedTuple):
    """What came of all championships or weekends."""

    told: dict[str, Any]  # by team
    rows: list[dict[str, Any]]  # of races.jsonl
    picture: Figure
    shown: State  # the start of the race that is replayed
    title: str  # of that race


def of_three_races(race: RaceConfig, named: str) -> RaceConfig:
    """A championship's, on no more circuits than it has races. Raises UsageError where more were
    `named`."""
    circuits = listed(race.solo.circuit, CIRCUIT_WORDS)
    if named and len(circuits) > len(LAPS):
        raise UsageError(
            f"--circuits={named}: a championship has {len(LAPS)} races, name so many circuits at "
            f"most, got {len(circuits)}"
        )
    solo = dataclasses.replace(race.solo, circuit=",".join(circuits[: len(LAPS)]))
    return dataclasses.replace(race, solo=solo)


def hold_championships(config: Championship, env: RaceEnv, teams: tuple[str, str]) -> Held:
    act = drivers_of(teams, env)
    results = run_championships(env, act, config.races, config.seed, config.penalty)
    rows = []
    for at in np.ndindex(results.place.shape[:2]):
        circuit = env.solo.circuits[at[1] % len(env.solo.circuits)]
        row = {"championship": at[0], "circuit": circuit, "laps": LAPS[at[1]]}
        rows.append({**row, "result": row_of(results, at)})
    shown = jax.jit(lambda *grid: start(env, *grid))(
        *(part[0] for part in grids_of(1, config.seed))
    )
    drawn = picture(points_in(results).sum(1), np.asarray(results.place), teams, "championship")
    title = f"{LAPS[0]} laps of {env.solo.circuits[0]}"
    return Held(summary(env, results, teams), rows, drawn, shown, title)


def hold_weekends(config: Championship, env: RaceEnv, teams: tuple[str, str]) -> Held:
    weekends = run_weekends(config.weekend, env, teams, config.races, config.seed, config.penalty)
    results = jax.tree.map(np.asarray, weekends._asdict())
    rows = []
    for number, stage in np.ndindex(config.races, len(STAGES)):
        circuit = env.solo.circuits[number % len(env.solo.circuits)]
        row = {"weekend": number, "circuit": circuit, "stage": STAGES[stage]}
        rows.append({**row, "result": row_of(results[STAGES[stage]], (number,))})
    shown = jax.tree.map(lambda leaf: leaf[0], weekends.endured)
    places = np.stack([results[stage].place for stage in STAGES[2:]])
    drawn = picture(weekend_points(weekends), places, teams, "weekend")
    title = f"endurance, {config.weekend.endurance} laps of {env.solo.circuits[0]}"
    return Held(tell_weekends(weekends, teams), rows, drawn, shown, title)


def main(config: Championship) -> int:
    use_all_cores()
    teams = config.team_a, config.team_b
    check_team("team_a", config.team_a)
    check_team("team_b", config.team_b)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if config.format == "weekend":
        env, hold = weekend_env(config.weekend, teams, config.circuits), hold_weekends
    else:
        race = race_config_of(teams, config.circuits)
        env, hold = RaceEnv(of_three_races(race, config.circuits)), hold_championships
    share_cars(env)
    event, circuits = config.format, ", ".join(env.solo.circuits)
    lines = [f"{config.races} {event}s on {circuits}", *news_for(teams, env)]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    held = hold(config, env, teams)
    with (out / "races.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in held.rows)
    pictured = encode_png(held.picture)
    (out / f"{event}.png").write_bytes(pictured)
    names = [f"{'AB'[k // TEAM]}{k % TEAM + 1}" for k in range(2 * TEAM)]
    title = f"A: {config.team_a}, B: {config.team_b}, {held.title}"
    page, chart = show_race(env, drivers_of(teams, env), held.shown, names, LONGEST, title, out)
    caption = "The dashed lines are what Sophy and humans reached."
    write_report(
        out / "report.html",
        title=f"{config.team_a} against {config.team_b}",
        subtitle=f"{config.races} {event}s on {circuits}",
        command=f"./run python -m experiments.sophy_championship {shlex.join(sys.argv[1:])}",
        record={},
        numbers=numbers_of(held.told),
        figures=[
            (f"{event.capitalize()}s", pictured, caption if event == "championship" else ""),
            (held.title, chart, "How far behind the leader each car was, in seconds."),
        ],
        embedded_pages=[(held.title, page, 640)],
        metrics=[],
        curves=[],
        is_run=False,
    )
    told = {"rules": RULES, "circuits": list(env.solo.circuits), f"{event}s": config.races}
    told |= held.told | {"seconds": round(time.monotonic() - began, 1)}
    (out / SUMMARY).write_text(json.dumps(encode_json(told), indent=1) + "\n", encoding="utf-8")
    if config.json:
        print(json.dumps(encode_json(told)))
        return 0
    for row in held.told.values():
        print(row["who"])
        print(show_intervals(row))
        if "fastest_laps" in row:
            print(f"  {'fastest laps':36} {show_laps(row['fastest_laps'])}")
    written = ("report.html", SUMMARY, "races.jsonl", f"{event}.png", "race.html", "race.png")
    files = ", ".join(str(out / name) for name in written)
    print(f"{files}, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    flags.main(main, Championship())
