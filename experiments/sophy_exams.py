"""Exams of a racing driver: the situations of `projects/sophy/scenarios`, each with a pass mark.

    ./run python -m experiments.sophy_exams --policy=DIR
    ./run python -m experiments.sophy_exams --policy=scripted:expert --json

Every situation is drawn `settings` times, the same ones for everybody, and lasts `SECONDS`; the
others in it are scripted drivers. A setting is passed without a contact that the stewards blame the
driver for, with few steps off course, and with what the situation asks for (`EXAMS`).
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core_rl import flags
from core_rl.devices import over_devices, use_all_cores
from core_rl.env import State
from experiments.sophy_teams import TEAM, check_team, news_for, race_config_of, racer
from projects.sophy.driving import CONTROL_STEP
from projects.sophy.league import LeagueConfig, LeagueRace
from projects.sophy.race_env import MOST_CARS, RaceEnv, race_of
from projects.sophy.stewards import RULES

EXAM_SEED = 9_500_000  # settings; training and selection never see them
SECONDS = 30.0


class Exam(NamedTuple):
    """What a setting asks for, and which share of settings must be passed."""

    gain: float  # places, at least
    pace: float  # the reference's time for the same way over the driver's, at least
    off_course_steps: int = 2  # after the grace, at most
    grace: float = 0.0  # in which being off course does not count [s]
    pass_mark: float = 0.9


EXAMS: dict[str, Exam] = {
    "alone": Exam(0, 0.95, pass_mark=0.95),
    "duel": Exam(0, 0.85),
    "grid": Exam(0, 0.6, pass_mark=0.8),
    "pack": Exam(0, 0.8, pass_mark=0.8),
    "slow_ahead": Exam(1, 0.75),
    "chase": Exam(1, 0.85, pass_mark=0.5),
    "slipstream": Exam(1, 0.85, pass_mark=0.7),
    "corner": Exam(0, 0.85),
    "attacked": Exam(-1, 0.85),
    "rejoin": Exam(-4, 0.7, grace=5.0),
}


@dataclasses.dataclass(frozen=True)
class Exams:
    policy: str = ""  # policy bundle: DIR; DIR@pro, DIR@0.9: at less speed; or scripted:LEVEL
    circuits: str = ""  # empty: as the policy was trained
    only: tuple[str, ...] = ()  # which exams; none: all
    settings: int = 64  # of each
    num_cars: int = 2 * TEAM  # that fit into the largest fields, of grid and pack
    json: bool = False  # print one JSON object

    def __post_init__(self):
        if self.settings < 1:
            raise ValueError(f"settings must be at least 1, got {self.settings}")
        for name in self.only:
            if name not in EXAMS:
                raise ValueError(f"only: no exam {name!r}; allowed are {', '.join(EXAMS)}")
        if len(set(self.only)) < len(self.only):
            raise ValueError(f"only: each exam at most once, got {','.join(self.only)}")
        if not 2 <= self.num_cars <= MOST_CARS:
            raise ValueError(f"num_cars must be 2 to {MOST_CARS}, got {self.num_cars}")


class Sat(NamedTuple):
    """What came of settings [N], for the driver who is examined."""

    gain: jax.Array  # places
    pace: jax.Array
    off_course_steps: jax.Array
    faults: jax.Array
    contacts: jax.Array  # control steps in contact


def make_exam(
    league: LeagueRace, env: RaceEnv, act: Callable[[State], jax.Array], num_settings: int
) -> Callable[[int, float], Sat]:
    """Builds `(scenario, grace) -> what came of its settings`, one program for all situations.

    `act` drives slot 0, the others drive as the league draws.
    """
    num_steps = round(SECONDS / CONTROL_STEP)

    def place(state: State, entered: jax.Array) -> jax.Array:
        distance = race_of(state).distance
        return jnp.sum(entered & (distance > distance[0]))

    def reference_time(state: State) -> jax.Array:
        """When the reference would be where the driver is [s]."""
        drive = jax.tree.map(lambda leaf: leaf[0], race_of(state).drives)
        lap = env.solo.reference_of(drive.car_index, drive.circuit)
        length = env.solo.track_of(drive.circuit).length
        # The last station's way to the first belongs to the lap.
        s = jnp.append(lap.s, length)
        return drive.crossings * lap.lap_time + jnp.interp(
            drive.s, s, jnp.append(lap.time, lap.lap_time)
        )

    def one(scenario: jax.Array, grace: jax.Array, key: jax.Array) -> Sat:
        begin = league.begin(scenario, key)
        entered = race_of(begin).present

        def step(state: State, number: jax.Array):
            state = league.step(state, act(state))
            late = number >= grace / CONTROL_STEP
            off_course, contact = (
                state.metrics[name][0] for name in ("off_course_steps", "contact_steps")
            )
            return state, (late * off_course, contact)

        end, (off_course, contact) = jax.lax.scan(step, begin, jnp.arange(num_steps))
        return Sat(
            gain=place(begin, entered) - place(end, entered),
            pace=(reference_time(end) - reference_time(begin)) / SECONDS,
            off_course_steps=jnp.sum(off_course),
            faults=jnp.sum(race_of(end).stewarding.record.faults[0]),
            contacts=jnp.sum(contact),
        )

    keys = jax.random.split(jax.random.key(EXAM_SEED), num_settings)
    all_settings = over_devices(jax.vmap(one))
    return lambda scenario, grace: jax.device_get(
        all_settings(
            jnp.full(num_settings, scenario), jnp.full(num_settings, grace, jnp.float32), keys
        )
    )


def judge_exam(exam: Exam, sat: Sat) -> dict[str, Any]:
    passed = (
        (sat.faults == 0)
        & (sat.off_course_steps <= exam.off_course_steps)
        & (sat.gain >= exam.gain)
        & (sat.pace >= exam.pace)
    )
    share = float(np.mean(passed))
    return {
        "rules": RULES,
        "passed": share >= exam.pass_mark,
        "share": share,
        "pass_mark": exam.pass_mark,
        **{name: float(np.mean(value)) for name, value in sat._asdict().items()},
    }


def main(config: Exams) -> int:
    use_all_cores()
    check_team("policy", config.policy)
    race = race_config_of((config.policy,), config.circuits)
    env = RaceEnv(dataclasses.replace(race, num_cars=config.num_cars, laps=0))
    sys.stderr.write("".join(f"{line}\n" for line in news_for((config.policy,), env)))
    names = config.only or tuple(EXAMS)
    # The driver's own slot is the league's learner; nobody else is.
    every = tuple((name, 1.0) for name in names)
    league = LeagueRace(env, LeagueConfig(scenarios=every, self_play=0.0))
    sit, rows = make_exam(league, env, racer(config.policy, env), config.settings), {}
    for number, name in enumerate(names):
        rows[name] = judge_exam(EXAMS[name], sit(number, EXAMS[name].grace))
        if not config.json:
            row = rows[name]
            print(
                f"{name:<12} {'passed' if row['passed'] else 'failed'}  "
                f"{row['share']:4.0%} of settings (mark {row['pass_mark']:.0%})  "
                f"places {row['gain']:+.2f}  pace {row['pace']:.3f}  "
                f"faults {row['faults']:.2f}  off course {row['off_course_steps']:.1f}",
                flush=True,
            )
    if config.json:
        print(json.dumps(rows))
    else:
        sys.stdout.write(f"{sum(row['passed'] for row in rows.values())} of {len(rows)} passed\n")
    return 0


if __name__ == "__main__":
    flags.main(main, Exams())
