"""Gran Turismo Sophy's time trial, its ablations and its championship.

./run reproduce gt_sophy_2022 --scale=small --keep
"""

from collections.abc import Mapping
from pathlib import Path

from experiments.reproduce.paper import (
    Line,
    Paper,
    Step,
    printed,
    run_paper,
)
from experiments.reproduce.time_trials import evaluation, training

ABLATIONS = ("full", "scalar", "one_step", "no_points")
RACERS = {
    "race": "projects/sophy/policies/race",
    "many": "projects/sophy/policies/race_many",
}


def read_ablation(_: Path, stdout: str) -> Mapping[str, float]:
    (row,) = printed(stdout).values()
    return {"of_limit": row["mean"]}


def read_championship(_: Path, stdout: str) -> Mapping[str, float]:
    told = printed(stdout)
    ours, theirs = told["team_a"], told["team_b"]
    return {
        "points": ours["points"]["mean"],
        "points_of_the_others": theirs["points"]["mean"],
        "hard_faults": ours["hard_faults_per_car_and_lap"]["mean"],
        "hard_faults_of_the_others": theirs["hard_faults_per_car_and_lap"]["mean"],
    }


def ablation(name: str, seed: int) -> Step:
    arguments = (
        f"--only={name}",
        "--num_seeds=1",
        f"--first_seed={seed}",
        "--out={runs}/ablations",
        "--json",
    )
    return Step(f"ablation/{name}/s{seed}", "experiments.sophy_ablations", arguments, read_ablation)


def points_and_faults(
    name: str, team: str, published: tuple[str, str] = ("", "")
) -> tuple[Line, ...]:
    """The lines of a championship of a `team`; what is published of the agents' and the others'
    points."""
    key = f"championship/{name}"
    return (
        Line(f"twenty championships: points of 156, {team}", published[0], key, "points"),
        Line("its opponents' points", published[1], key, "points_of_the_others"),
        Line(
            f"medium or heavy contacts with blame per car and lap, {team}", "", key, "hard_faults"
        ),
        Line("its opponents'", "", key, "hard_faults_of_the_others"),
    )


def championship(name: str, races: int) -> Step:
    arguments = (
        f"--team_a={RACERS[name]}",
        "--team_b=scripted:expert",
        "--circuits=larkspur,thimble",
        f"--races={races}",
        "--out={out}/championship",
        "--json",
    )
    return Step(
        f"championship/{name}", "experiments.sophy_championship", arguments, read_championship
    )


PAPER = Paper(
    name="gt_sophy_2022",
    title="Gran Turismo Sophy",
    citation="Wurman et al. 2022, Outracing champion Gran Turismo drivers with deep reinforcement "
    "learning, Nature 602:223-228.",
    source="Wurman et al. 2022, figures 1 and 3 and Extended Data, as transcribed by readers; "
    "check them before quoting. Race Together: 21 October 2021.",
    steps={
        "smoke": (training("train/s0", 0, smoke=True), evaluation("laps/s0", "train-s0", laps=1)),
        "small": (
            *(
                step
                for seed in (0, 1, 2)
                for step in (
                    training(f"train/s{seed}", seed),
                    evaluation(f"laps/s{seed}", f"train-s{seed}", laps=10),
                )
            ),
            *(ablation(name, seed) for seed in (100, 101, 102) for name in ABLATIONS),
            *(championship(name, 20) for name in RACERS),
        ),
        "full": (),
    },
    lines=(
        Line(
            "time trial: the agent's mean lap over the best human's",
            "0.998 (114.249 s over 114.466 s, Lago Maggiore)",
        ),
        Line(
            "time trial: mean lap over the minimum lap time, 184,320 updates",
            "",
            "laps/*",
            "ratio_to_limit",
        ),
        Line("steps off course in ten laps", "", "laps/*", "off_course_steps"),
        Line("ablation: full recipe, over the limit", "", "ablation/full/*", "of_limit"),
        Line(
            "ablation: no quantiles, over the limit",
            "+0.69 s a lap (0.6 %)",
            "ablation/scalar/*",
            "of_limit",
        ),
        Line(
            "ablation: one step, over the limit",
            "+1.48 s a lap (1.3 %), instead of seven",
            "ablation/one_step/*",
            "of_limit",
        ),
        Line(
            "ablation: no course points, over the limit",
            "+2.64 s a lap (2.3 %)",
            "ablation/no_points/*",
            "of_limit",
        ),
        *points_and_faults("race", "the driver of two circuits", ("104", "52 (humans)")),
        *points_and_faults("many", "the driver of ten circuits"),
    ),
    deviations=(
        "Our own simulator, cars and circuits: no lap time can be compared, so laps are given over "
        "the minimum lap time that optimal control finds for the same car.",
        "184,320 updates (11 minutes on two quiet CPU cores) instead of days on a GPU with 20 "
        "consoles; ablations with 40,960 of them.",
        "The opponents in the championships are scripted drivers, not people; the two drivers "
        "differ in circuits, situations, prices, updates and observations (docs/racing.md).",
        "Five steps instead of seven, so one step is compared with five; layer norm, a learnt and "
        "annealed temperature, an annealed discount, an averaged actor.",
        "The course points are 20 per line instead of 60; one critic counts instead of the smaller "
        "of two (docs/benchmarks.md says why).",
    ),
    cost="some three hours on two cores (three trainings of ten minutes, twelve ablations of "
    "three, twice twenty championships), in parts by `--only`.",
    expected="laps at 1.05 of the minimum lap time without a step off course; without quantiles "
    "and without course points clearly worse; 115 points of 156 against scripted experts "
    "with no more faults than theirs; 101 with a few more by the driver of ten circuits.",
    full="a GPU for some days per driver: 4 x 2048 networks, millions of updates, 20-car races.",
)

if __name__ == "__main__":
    run_paper(PAPER)
