"""Drives flying laps with a trained policy and prints what came of it.

    ./run python -m experiments.sophy_evaluate --policy=DIR --circuit=NAME --laps=10 --json

Without `--circuit` and `--car` the policy drives what it was trained on. Where the table of limits
(`projects/sophy/limits.jsonl`) has this car on this circuit, lap times are also given over the
minimum that optimal control found. A lap below it says that the simulator was cheated, or that the
limit is wrong: that is said loudly, and the exit status is 3.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from core_rl import flags
from core_rl.errors import UsageError
from core_rl.policy import Policy, load_policy
from projects.sophy.drive import show_time
from projects.sophy.laps import Laps, drive_laps, driven_by
from projects.sophy.limits import TABLE, Row, cheats, existing_table, find_limit
from projects.sophy.time_trial import TimeTrial, TimeTrialConfig, with_calm_starts

START_SEED = 8_000_000  # the start of the drive; training and selection never see it


@dataclasses.dataclass(frozen=True)
class Evaluate:
    policy: str = ""  # directory of a policy bundle, such as WORKDIR/policy
    circuit: str = ""  # built-in name, generated:SEED or a path; empty: as trained
    car: str = ""  # a car of the catalogue; empty: as trained
    laps: int = 10  # flying laps in a row
    seed: int = 0  # chooses the place and speed of the start
    limits: str = ""  # a table of limits, as limit --table=FILE writes; empty: the committed one
    json: bool = False  # print one JSON object

    def __post_init__(self):
        if self.laps < 1:
            raise ValueError(f"laps must be at least 1, got {self.laps}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


class Evaluation(NamedTuple):
    env: TimeTrial
    laps: Laps
    steps_per_second: float  # control steps, compilation included
    limit: Row | None  # the minimum lap time, None where none is known


def env_config_of(policy: Policy, circuit: str = "", car: str = "") -> TimeTrialConfig:
    """What the policy was trained on, with another circuit or car where named.

    Raises UsageError for a policy that does not drive cars.
    """
    extra = policy.manifest["extra"]
    if extra.get("project") != "sophy":
        raise UsageError("this policy was not trained by projects/sophy: it cannot drive a car")
    if "race" in extra:
        raise UsageError(
            "this policy was trained for races: see sophy_championship and sophy_exams"
        )
    # Options that came after the policy keep their defaults.
    config = flags.from_dict(TimeTrialConfig, extra["env"], base=TimeTrialConfig())
    changes = {name: value for name, value in (("circuit", circuit), ("car", car)) if value}
    return dataclasses.replace(config, **changes)


def evaluate(
    policy: Policy, env: TimeTrial, num_laps: int, seed: int, limits: Path = TABLE
) -> Evaluation:
    env = with_calm_starts(env)
    began = time.monotonic()
    key = jax.random.key(START_SEED + seed)
    laps = drive_laps(env, driven_by(policy), policy.params, num_laps, key)
    rate = len(laps.drive.time) / (time.monotonic() - began)
    return Evaluation(env, laps, rate, find_limit(env.car, env.track, limits))


def summary(evaluation: Evaluation, num_laps: int) -> dict[str, Any]:
    """What `--json` prints; times in seconds, null where no lap was completed."""
    env, laps = evaluation.env, evaluation.laps
    done, limit = laps.lap_times, evaluation.limit
    return {
        "circuit": env.config.circuit,
        "car": env.config.car,
        "laps_asked": num_laps,
        "laps_completed": len(done),
        "lap_times": [round(value, 4) for value in done],
        "mean_lap_time": float(np.mean(done)) if done else None,
        "best_lap_time": min(done) if done else None,
        "reference_lap_time": laps.reference_time,
        "ratio_to_reference": laps.ratio if done else None,
        "limit_lap_time": limit.lap_time if limit else None,
        "ratio_to_limit": float(np.mean(done)) / limit.lap_time if limit and done else None,
        "off_course_steps": laps.off_course_steps,
        "wall_contact_steps": laps.wall_contact_steps,
        "steps_per_second": round(evaluation.steps_per_second),
    }


def main(config: Evaluate) -> int:
    if not config.policy:
        raise UsageError("--policy=DIR is missing: name the directory of a policy bundle")
    policy = load_policy(Path(config.policy))
    env = TimeTrial(env_config_of(policy, config.circuit, config.car))
    limits = existing_table(config.limits)
    evaluation = evaluate(policy, env, config.laps, config.seed, limits)
    result = summary(evaluation, config.laps)
    alarm = cheats(evaluation.laps.lap_times, evaluation.limit)
    if alarm:
        print(alarm, file=sys.stderr)
    status = 3 if alarm else 0
    if config.json:
        print(json.dumps(result))
        return status
    for number, lap_time in enumerate(result["lap_times"], start=1):
        print(f"lap {number:2d}  {show_time(lap_time)}")
    print(
        f"{result['laps_completed']} of {config.laps} laps on {result['circuit']}, "
        f"{result['off_course_steps']} steps off course, "
        f"{result['wall_contact_steps']} in contact with a wall"
    )
    if result["lap_times"]:
        mean, best, reference = (
            show_time(result[name])
            for name in ("mean_lap_time", "best_lap_time", "reference_lap_time")
        )
        print(
            f"mean {mean}, best {best}, "
            f"{result['ratio_to_reference']:.4f} of the reference {reference}"
        )
        if evaluation.limit is not None:
            print(
                f"{result['ratio_to_limit']:.4f} of the minimum lap time "
                f"{show_time(evaluation.limit.lap_time)}"
            )
        else:
            print(
                f"no limit is known for {result['car']} on {result['circuit']}: "
                "projects.sophy.limit --table=FILE computes it, --limits=FILE reads it"
            )
    return status


if __name__ == "__main__":
    flags.main(main, Evaluate())
