"""Drives the committed policy, which the default training run made: no training, under a minute.

    ./run demo

Writes the report's pictures and the replay; opens nothing.
"""

import dataclasses
from pathlib import Path

from core_rl import flags
from core_rl.policy import load_policy
from core_rl.tracking import open_workdir
from experiments.sophy_evaluate import env_config_of, evaluate
from experiments.sophy_report import drive_pictures, drive_replay, numbers_of
from projects.sophy.time_trial import TimeTrial

BUNDLE = Path(__file__).parents[1] / "projects/sophy/policies/time_trial"


@dataclasses.dataclass(frozen=True)
class Demo:
    policy: str = str(BUNDLE.relative_to(BUNDLE.parents[3]))  # bundle; relative: to the repository
    circuit: str = ""  # built-in name, generated:SEED or a path; empty: as trained
    car: str = ""  # a car of the catalogue; empty: as trained
    laps: int = 3  # flying laps
    out: str = "runs/demo"  # where the pictures go

    def __post_init__(self):
        if self.laps < 1:
            raise ValueError(f"laps must be at least 1, got {self.laps}")


def main(config: Demo) -> int:
    policy = load_policy(BUNDLE.parents[3] / config.policy)
    env = TimeTrial(env_config_of(policy, config.circuit, config.car))
    evaluation = evaluate(policy, env, config.laps, seed=0)
    for label, value, note in numbers_of(evaluation):
        print(f"{label}: {value}" + (f"  ({note})" if note else ""))
    with open_workdir(config.out) as out:
        for name, content in drive_pictures(evaluation).items():
            (out / f"{name}.png").write_bytes(content)
            print(out / f"{name}.png")
        (out / "replay.html").write_text(drive_replay(evaluation), encoding="utf-8")
        print(out / "replay.html")
    return 0


if __name__ == "__main__":
    flags.main(main, Demo())
