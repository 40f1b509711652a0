"""The prompts of a search, from the versioned texts in `prompts/`."""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

import numpy as np

from core_rl.reward_task import RewardTask
from projects.reward_llm.judge.llm_judge import as_data
from projects.reward_llm.language import describe
from projects.reward_llm.llm.protocol import Message
from projects.reward_llm.population import REWARD_CLIP
from projects.reward_llm.search.diagnosis import digits
from projects.reward_llm.search.drivers import GOOD, Drives

PROMPTS = Path(__file__).parents[1] / "prompts"
RANDOM = "random"  # the driver beside the good one in the feature table
LONGEST_GOAL = 2000  # characters
LONGEST_HYPOTHESIS = 800
WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}

# The same prompt at temperature 1 brings near-copies; a line of style spreads them.
STYLES = (
    "Minimal: as few terms as can do it.",
    "Dense guidance first: the agent must learn fast, so reward the first small steps well.",
    "Safety as a gate: progress is paid in full only while nothing is wrong.",
    "Potentials: pay differences of a measure of being well placed, not states.",
    "Smoothness matters: shape how the agent acts, not only what it reaches.",
    "Anticipation: pay for being ready for what comes next, not only for now.",
    "Robust scales: every term bounded, magnitudes balanced, no term beyond 1.",
    "Bold: a structure that an expert would not think of first.",
)


@dataclasses.dataclass(frozen=True)
class Prompt:
    name: str
    text: Template

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.template.encode()).hexdigest()


def load_prompt(name: str) -> Prompt:
    return Prompt(name, Template((PROMPTS / f"{name}.txt").read_text()))


def prompt_versions() -> dict[str, str]:
    """SHA-256 of every prompt text, for the record."""
    return {path.stem: load_prompt(path.stem).sha256 for path in sorted(PROMPTS.glob("*.txt"))}


def feature_lines(task: RewardTask, drives: Drives) -> str:
    """The feature table of the prompt."""

    def seen(driver: str, index: int) -> str:
        values = drives.features[driver][drives.alive[driver]][:, index]
        feature = list(task.features.values())[index]
        least = 1e-4 * max(abs(feature.low), abs(feature.high))  # below it, noise of the rounding
        shown = np.percentile(values, (5, 50, 95))
        return ", ".join(digits(x if abs(x) >= least else 0.0) for x in shown)

    return "\n".join(
        f"{name} | {f.unit} | {digits(f.low)} to {digits(f.high)} | {seen(GOOD, i)} | "
        f"{seen(RANDOM, i)} | {f.doc}"
        for i, (name, f) in enumerate(task.features.items())
    )


def design_messages(
    task: RewardTask, goal: str, drives: Drives, style: str, feedback: str = ""
) -> tuple[Message, ...]:
    """The request for one reward; `feedback` is what `feedback_text` says."""
    system = load_prompt("system").text.substitute(rules=describe())
    user = load_prompt("design").text.substitute(
        goal=as_data(goal, LONGEST_GOAL),
        facts=task.facts,
        metrics="\n".join(f"- {name}: {doc}" for name, doc in task.metric_docs.items()),
        features=feature_lines(task, drives),
        clip=digits(REWARD_CLIP),
        style=style,
    )
    content = user if not feedback else f"{user}\n{feedback}"
    return ({"role": "system", "content": system}, {"role": "user", "content": content})


def feedback_text(
    *,
    history: Sequence[str],
    parent: str,
    updates: Sequence[int],
    diagnosis: str,
    metrics: str,
    second: str,
    operator: str,
) -> str:
    return load_prompt("feedback").text.substitute(
        history="\n".join(history),
        parent=parent,
        updates=updates[-1],
        moments=WORDS.get(len(updates), len(updates)),
        diagnosis=diagnosis,
        metrics_table=metrics,
        second=second,
        operator=operator,
    )


def repair_messages(
    messages: Sequence[Message], reply: str, reason: str, hint: str
) -> tuple[Message, ...]:
    """The request to write a refused reward again."""
    text = load_prompt("repair").text.substitute(reason=reason, hint=as_data(hint, 400))
    said = {"role": "assistant", "content": reply}
    return (*messages, said, {"role": "user", "content": text})


def hypothesis_of(reply: str) -> str:
    """What a reply says before its code."""
    said = re.split(r"^\s*(?:`{3,}|~{3,})", reply, maxsplit=1, flags=re.MULTILINE)[0]
    return as_data(re.sub(r"<think>.*?</think>", "", said, flags=re.DOTALL), LONGEST_HYPOTHESIS)
