"""Steps that several papers share: a time trial is trained, and its policy drives flying laps.

A training ends with its last update and not by the clock, so that what it learns does not hang on
the machine's speed: 184,320 updates, 11 minutes at the 274 a second of two quiet cores.
"""

from collections.abc import Mapping
from pathlib import Path

from experiments.reproduce.paper import Step, printed, read_training

SMOKE = (
    "--env.circuit=copperbowl",
    "--train.num_envs=2",
    "--train.steps_per_epoch=2",
    "--train.warmup_steps=2",
    "--train.num_epochs=1",
    "--agent.hidden=8,8",
    "--agent.batch_size=4",
)


def read_laps(_: Path, stdout: str) -> Mapping[str, float]:
    told = printed(stdout)
    wanted = ("ratio_to_limit", "ratio_to_reference", "mean_lap_time", "off_course_steps")
    numbers = {name: told[name] for name in wanted if told[name] is not None}
    return {"laps_completed": told["laps_completed"], **numbers}


def training(key: str, seed: int, *more: str, smoke: bool = False) -> Step:
    arguments = (f"--seed={seed}", "--run.minutes=0", "--workdir={out}", *more)
    arguments += SMOKE if smoke else ()
    return Step(key, "experiments.sophy_time_trial", arguments, read_training)


def evaluation(key: str, trained: str, laps: int) -> Step:
    """Of the policy that step `trained` (its directory) kept."""
    arguments = (f"--policy={{runs}}/{trained}/policy", f"--laps={laps}", "--json")
    return Step(key, "experiments.sophy_evaluate", arguments, read_laps)
