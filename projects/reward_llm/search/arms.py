"""Who proposes rewards: an arm of the comparison. All propose and may train equally many.

An arm proposes sources (and factors of their terms), or requests to a language model. What it knows
is the past of its own search: candidates and what became of them.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core_rl.reward_task import RewardTask
from projects.reward_llm.llm.protocol import Message
from projects.reward_llm.search import baselines, diagnosis, prompting
from projects.reward_llm.search.drivers import Drives

ARMS = {
    "human": "the reward of the people who made the task; nothing is searched",
    "sparse": "pays only for what the task is about; nothing is searched",
    "random_weights": "random weights of the human reward's terms",
    "cma_es": "CMA-ES on the weights of the human reward's terms",
    "random_programs": "random programs of a small grammar",
    "model": "a language model with feedback",
    "model_blind": "a language model that is asked again without feedback",
    "model_shuffled": "a language model with the feedback of other candidates",
    "model_weights": "a language model's programs, then CMA-ES on the best one's weights",
}
FIXED = ("human", "sparse")
MODEL_ARMS = ("model", "model_blind", "model_shuffled", "model_weights")
LONGEST_HISTORY = 12  # candidates that a prompt lists

OPERATORS = {
    "mutate": "Change one term of this reward, or add one, to mend its most important weakness. "
    "Keep what works.",
    "cross": "Combine what is good in the two rewards above into one.",
    "simplify": "Make this reward simpler without losing what works: drop or merge terms.",
    "fresh": "Write a reward of another structure than all that were tried.",
}
PLAN = ("mutate", "cross", "mutate", "fresh", "mutate", "simplify", "cross", "fresh")


class Proposal(NamedTuple):
    """One candidate before it is checked: a source, or what a language model is asked for one."""

    operator: str
    parents: tuple[str, ...] = ()  # keys of candidates
    source: str = ""
    factors: tuple[float, ...] = ()  # of the source's terms; empty: ones
    messages: tuple[Message, ...] = ()
    tag: str = ""  # of the request


@dataclasses.dataclass(frozen=True)
class Past:
    """A candidate of an earlier generation and what became of it."""

    key: str
    slot: int
    generation: int
    source: str
    terms: tuple[str, ...]
    factors: tuple[float, ...]
    score: float | None  # None: it was not trained
    curve: dict[str, list[float]]  # metrics at some moments of its training
    statistics: list[dict[str, dict[str, float]]]  # of its terms, at the same moments
    updates: list[int]  # those moments


class Plan(NamedTuple):
    """What an arm needs to know to propose a generation."""

    task: RewardTask
    goal: str
    drives: Drives
    generation: int
    seed: int  # of the search
    proposals: int  # how many
    scales: Sequence[float]  # mean magnitude of each term of the task's `terms`


def propose(arm: str, plan: Plan, past: Sequence[Past]) -> list[Proposal]:
    """The arm's proposals for a generation; the same for the same past."""
    task = plan.task
    if arm in FIXED:
        return [Proposal(arm, source=getattr(task, arm))] if plan.generation == 0 else []
    random = np.random.default_rng([plan.seed, plan.generation, list(ARMS).index(arm)])
    if arm == "random_weights":
        drawn = [baselines.random_weights(random, len(plan.scales)) for _ in range(plan.proposals)]
        return [_weighed(task, plan.scales, factors) for factors in drawn]
    if arm == "cma_es":
        asked = baselines.cma_weights(
            len(plan.scales), plan.proposals, _scores(past, plan, first=0), plan.seed
        )
        return [_weighed(task, plan.scales, factors) for factors in asked]
    if arm == "random_programs":
        return [
            Proposal("random", source=baselines.random_program(random, task.features))
            for _ in range(plan.proposals)
        ]
    # A model arm. All of them begin with the same replies.
    tried = [one for one in past if one.score is not None]
    if plan.generation == 0 or arm == "model_blind" or not tried:
        asker = "first" if plan.generation == 0 else arm
        return [_designed(plan, asker, slot) for slot in range(plan.proposals)]
    if arm == "model_weights":
        return _tuned(plan, past, tried)
    shown = _shuffled(tried, random) if arm == "model_shuffled" else tried
    return [_reflected(plan, arm, slot, tried, shown) for slot in range(plan.proposals)]


def _weighed(task: RewardTask, scales: Sequence[float], factors: Sequence[float]) -> Proposal:
    scaled = tuple(float(f / s) for f, s in zip(factors, scales, strict=True))
    return Proposal("weights", source=task.terms, factors=scaled)


def _scores(past: Sequence[Past], plan: Plan, first: int) -> list[list[float | None]]:
    """Scores by generation, from `first` on, in the order of the proposals."""
    table: list[list[float | None]] = []
    for generation in range(first, plan.generation):
        row: list[float | None] = [None] * plan.proposals
        for one in past:
            if one.generation == generation:
                row[one.slot] = one.score
        table.append(row)
    return table


def _tuned(plan: Plan, past: Sequence[Past], tried: Sequence[Past]) -> list[Proposal]:
    """CMA-ES on the weights of the best program of the first generation."""
    begun = [one for one in tried if one.generation == 0] or tried
    best = max(begun, key=_score)
    asked = baselines.cma_weights(
        len(best.terms), plan.proposals, _scores(past, plan, first=1), plan.seed
    )
    return [
        Proposal("weights", (best.key,), source=best.source, factors=tuple(factors))
        for factors in asked
    ]


def _style(plan: Plan, slot: int) -> str:
    return prompting.STYLES[(slot + plan.seed + plan.generation) % len(prompting.STYLES)]


def _designed(plan: Plan, asker: str, slot: int) -> Proposal:
    messages = prompting.design_messages(plan.task, plan.goal, plan.drives, _style(plan, slot))
    tag = f"s{plan.seed}/{asker}/g{plan.generation}/c{slot}"
    return Proposal("design", messages=messages, tag=tag)


def _reflected(
    plan: Plan, arm: str, slot: int, tried: Sequence[Past], shown: Sequence[Past]
) -> Proposal:
    """A request with feedback. `shown` has the results that the prompt tells, in the order of
    `tried`; parents, and the order in which the prompt lists what was tried, are by the true ones:
    shuffled feedback hides the numbers and not the ranking."""
    ranked = sorted(tried, key=_score, reverse=True)
    operator = PLAN[slot % len(PLAN)]
    # Half of the mutations begin with another one than the best, which may only have been lucky.
    parent = ranked[min(slot // 4, len(ranked) - 1)]
    told = {one.key: result for one, result in zip(tried, shown, strict=True)}
    parents, second = [parent], ""
    if operator == "cross" and len(ranked) > 1:
        other = next(one for one in ranked if one is not parent)
        parents.append(other)
        second = (
            f"# A second reward\n\n```python\n{other.source}\n```\n\nIts score: "
            f"{diagnosis.digits(_score(told[other.key]))}"
        )
    lines = [
        f"- {', '.join(one.terms)}: "
        + ", ".join(f"{name} {diagnosis.digits(v[-1])}" for name, v in told[one.key].curve.items())
        for one in ranked[:LONGEST_HISTORY]
    ]
    result = told[parent.key]
    feedback = prompting.feedback_text(
        history=lines,
        parent=parent.source,
        updates=result.updates,
        diagnosis=diagnosis.table(_renamed(result, parent), result.updates),
        metrics=diagnosis.metrics_table(result.curve, result.updates),
        second=second,
        operator=OPERATORS[operator],
    )
    messages = prompting.design_messages(
        plan.task, plan.goal, plan.drives, _style(plan, slot), feedback
    )
    tag = f"s{plan.seed}/{arm}/g{plan.generation}/c{slot}"
    return Proposal(operator, tuple(one.key for one in parents), messages=messages, tag=tag)


def _renamed(result: Past, parent: Past) -> list[dict[str, dict[str, float]]]:
    """The statistics of `result` under the names of the parent's terms."""
    moments = []
    for statistics in result.statistics:
        values = list(statistics.values())
        moments.append({name: values[i % len(values)] for i, name in enumerate(parent.terms)})
    return moments


def _shuffled(tried: Sequence[Past], random: np.random.Generator) -> list[Past]:
    """The results of others: nobody gets its own, where there are two at least."""
    order = random.permutation(len(tried))
    moved = np.empty(len(tried), int)
    moved[order] = np.roll(order, 1)
    return [tried[i] for i in moved]


def _score(one: Past) -> float:
    return -np.inf if one.score is None else one.score
