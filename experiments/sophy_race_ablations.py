"""What the league's opponents and the many tables are worth in learning to race, over seeds.

    ./run python -m experiments.sophy_race_ablations  # two hours of a core; resumes
    ./run python -m experiments.sophy_race_ablations --only=full,one_table

A run's number is its score (`sophy_race`) among scripted experts, the mean of its last
evaluations. What the score is made of is in the runs' metrics: `eval/pace`, `eval/faults`,
`eval/off_course_steps`. The schedules are shortened with the run.
"""

import dataclasses
from typing import Any

from core_rl import flags
from experiments import sophy_race
from experiments.ablation import (
    Ablated,
    AblationConfig,
    Variant,
    ablate,
    agent,
    mean_of_last,
)
from experiments.sophy_garage import long_schedule
from experiments.sophy_race import SophyRace


def _one_table(base: SophyRace) -> SophyRace:
    return dataclasses.replace(base, train=dataclasses.replace(base.train, tables=(("all", 1.0),)))


def _self_play(share: float) -> Any:
    def change(base: SophyRace) -> SophyRace:
        return dataclasses.replace(base, league=dataclasses.replace(base.league, self_play=share))

    return change


VARIANTS = {
    "full": Variant("the full recipe: a table per situation, mixed opponents", lambda base: base),
    "one_table": Variant("one table of everything", _one_table),
    "scripted_only": Variant("scripted opponents only", _self_play(0.0)),
    "self_only": Variant("itself only, but for the slow cars ahead", _self_play(1.0)),
}


@dataclasses.dataclass(frozen=True)
class SophyRaceAblations(AblationConfig):
    variants = VARIANTS
    epochs: int = 30  # of 512 updates, per run: the recipe, cut short
    out: str = "runs/sophy_race_ablations"  # where the runs go


def run_config(config: SophyRaceAblations, variant: str, seed: int) -> SophyRace:
    """The configuration of one run."""
    base = agent(**long_schedule(config.epochs))(sophy_race.CONFIG)
    return config.shortened(base, variant, seed, evaluate_every=5, checkpoint_every=30)


def main(config: SophyRaceAblations) -> int:
    return ablate(
        config,
        Ablated(
            make_config=lambda variant, seed: run_config(config, variant, seed),
            make_experiment=sophy_race.make_experiment,
            column="eval/score",
            result=mean_of_last("eval/score"),
            measure="score",
            y_label="pace, less off-course steps and hard faults",
        ),
    )


if __name__ == "__main__":
    flags.main(main, SophyRaceAblations())
