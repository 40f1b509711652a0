"""Rewards by a language model against baselines that have none, from recorded replies.

./run reproduce reward_design_2025 --scale=small --keep
"""

import json
from collections.abc import Mapping
from pathlib import Path

from experiments.reproduce.paper import Line, Paper, Step, run_paper


def read_search(directory: Path, _: str) -> Mapping[str, float]:
    told = json.loads((directory / "results.json").read_text())
    scores = {arm: row["metrics"][told["score"]]["mean"] for arm, row in told["arms"].items()}
    return {arm: value for arm, value in scores.items() if isinstance(value, float)}


def search(key: str, *more: str) -> Step:
    arguments = ("--workdir={out}", *more)
    return Step(key, "experiments.reward_llm_search", arguments, read_search)


PAPER = Paper(
    name="reward_design_2025",
    title="Automated reward design",
    citation="Ma et al. 2025, Automated Reward Design for Gran Turismo, arXiv 2511.02094.",
    source="the abstract; result tables of the paper have not been found in public.",
    steps={
        "smoke": (
            search(
                "search",
                "--search.arms=human",
                "--search.seeds=1",
                "--search.generations=1",
                "--search.rungs=1",
                "--search.checks=1",
                "--search.finals=0",
            ),
        ),
        "small": (search("search"),),
        "full": (),
    },
    lines=(
        Line(
            "final score: rewards by a language model",
            "competitive with Sophy's",
            "search",
            "model",
        ),
        Line("final score: the human reward", "", "search", "human"),
        Line("final score: the sparse reward", "", "search", "sparse"),
    ),
    deviations=(
        "A time trial of minutes on two cores instead of races; replies were recorded from an "
        "unnamed large language model, two generations of eight candidates.",
        "Programs are evaluated in a reward language and never executed; pairs of clips are judged "
        "by a rule.",
        "Docs and baselines: docs/reward_llm.md.",
    ),
    cost="an hour and a half on two cores, from recorded replies, without network.",
    expected="docs/reward_llm.md has the numbers of this very search.",
    full="ten searches of four generations, a vision-language judge, 9 million updates per final.",
)

if __name__ == "__main__":
    run_paper(PAPER)
