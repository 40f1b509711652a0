"""Both orders of every pair, known answers in every batch, and agreement with people.

A judge that is a program or a model prefers places as well as clips: large models do so
systematically (Zheng et al. 2023, "Judging LLM-as-a-Judge", arXiv 2306.05685). So each pair is
asked twice with the places exchanged, and an answer that follows the place counts as a tie.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np

from projects.reward_llm.judge.preferences import Answer, Clip, JudgeError, Preference

Place = Literal["A", "B", "tie"]
MIN_CONSISTENCY = 0.5  # a judge without an opinion, and without ties, is as often consistent
MIN_KAPPA = 0.4  # "moderate" agreement begins here (Landis and Koch 1977)
MIN_CALIBRATION_PAIRS = 50


class Reading(NamedTuple):
    """One answer about one order of a pair."""

    answer: Place | None  # None: the judge gave no answer that can be read
    why: str = ""
    asked: int = 1  # how often it took to get it


class Judge(Protocol):
    """A program or a model that compares; a person has a page instead (`page.py`)."""

    @property
    def name(self) -> str: ...

    def read(self, presentations: Sequence[tuple[Clip, Clip]]) -> Sequence[Reading]:
        """One reading per presentation, of which the first clip stands at place A."""
        ...


class Verdict(NamedTuple):
    """Both readings of a pair, as answers about its first and second clip."""

    first: str  # id
    second: str
    forward: Reading  # the first clip at A
    backward: Reading  # the second clip at A
    answer: Answer
    why: str


@dataclasses.dataclass(frozen=True)
class Statistics:
    """How a judge behaved in a batch, known answers included; NaN where nothing was readable."""

    num_pairs: int
    unreadable: int  # pairs of which an order got no readable answer
    consistency: float  # share of readable pairs with the same answer in both orders
    first_slot: float  # share of place A among all answers that are not ties; 0.5 without a bias
    ties: float  # share of readable pairs that end as ties, also by disagreement
    known: int  # pairs with a known answer
    known_right: int
    repeated: int  # readings that took more than one request


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a judge said about a list of pairs. `preferences` is empty where the batch is void."""

    preferences: tuple[Preference, ...]  # one per pair in order; skip where it was unreadable
    verdicts: tuple[Verdict, ...]  # of all pairs, for the record
    known_verdicts: tuple[Verdict, ...]
    statistics: Statistics
    void: str  # why the batch must not be used; empty where it may


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How far a judge agrees with people on the pairs that both have answered."""

    num_pairs: int  # different pairs
    agreement: float  # share of equal answers, of first, second and tie
    kappa: float  # Cohen's (1960); NaN where it is undefined
    usable: bool  # agrees enough to be let choose; nothing enforces it
    reason: str  # one line


def judge_pairs(
    judge: Judge,
    pairs: Sequence[tuple[Clip, Clip]],
    known: Sequence[tuple[Clip, Clip]],
    *,
    min_consistency: float = MIN_CONSISTENCY,
) -> Batch:
    """Asks about every pair in both orders; `known` holds pairs whose first clip is clearly better.

    The batch is void where a known answer is missed, or where the answers follow the places.
    """
    if not known:
        raise JudgeError("a batch needs at least one pair whose answer is known")
    for first, second in [*pairs, *known]:
        if first.start != second.start:
            raise JudgeError(f"clips {first.id} and {second.id} begin from different starts")
    everything = [*pairs, *known]
    presentations = [order for a, b in everything for order in ((a, b), (b, a))]
    readings = judge.read(presentations)
    if len(readings) != len(presentations):
        raise ValueError(f"{judge.name}: {len(readings)} readings of {len(presentations)}")
    verdicts = [_settle(*pair, *readings[2 * k : 2 * k + 2]) for k, pair in enumerate(everything)]
    asked, checks = verdicts[: len(pairs)], verdicts[len(pairs) :]
    statistics = _statistics(verdicts, checks)
    if statistics.known_right < statistics.known:
        void = f"{statistics.known_right} of {statistics.known} known answers were right"
    elif not statistics.consistency >= min_consistency:
        void = (
            f"{statistics.consistency:.2f} of the pairs got the same answer in both orders, "
            f"which must be {min_consistency:.2f}; place A was preferred in "
            f"{statistics.first_slot:.2f}"
        )
    else:
        void = ""
    preferences = [
        Preference(each.first, each.second, each.answer, judge.name, each.why, "both")
        for each in asked
    ]
    return Batch(() if void else tuple(preferences), tuple(asked), tuple(checks), statistics, void)


def calibrate(
    machine: Iterable[Preference],
    people: Iterable[Preference],
    *,
    min_kappa: float = MIN_KAPPA,
    min_pairs: int = MIN_CALIBRATION_PAIRS,
) -> Calibration:
    """Compares a judge's answers with people's on the same pairs; skipped pairs do not count.

    Every answer of a person is compared with the judge's last about that pair. Which clip of a pair
    is called the first is arbitrary, so each comparison counts once either way round: otherwise
    kappa, which depends on the shares of the answers, would depend on the names.
    """
    latest = {each.pair: each for each in machine if each.answer != "skip"}
    kinds: list[Answer] = ["first", "second", "tie"]
    table = np.zeros((3, 3))  # [judge's, person's]
    met = set()
    for person in people:
        if person.answer == "skip" or person.pair not in latest:
            continue
        met.add(person.pair)
        for first in person.pair:
            answers = latest[person.pair].answer_for(first), person.answer_for(first)
            table[kinds.index(answers[0]), kinds.index(answers[1])] += 1
    if not met:
        return Calibration(0, math.nan, math.nan, False, "no pair has answers of both")
    table /= table.sum()
    agreement = float(np.trace(table))
    chance = float(table.sum(axis=0) @ table.sum(axis=1))
    kappa = (agreement - chance) / (1.0 - chance) if chance < 1.0 - 1e-12 else math.nan
    if len(met) < min_pairs:
        reason = f"{len(met)} common pairs are fewer than the {min_pairs} that are needed"
    elif not kappa >= min_kappa:
        reason = f"kappa {kappa:.2f} is below {min_kappa:.2f}"
    else:
        reason = ""
    return Calibration(
        len(met), agreement, kappa, not reason, reason or f"kappa {kappa:.2f} suffices"
    )


def _settle(first: Clip, second: Clip, forward: Reading, backward: Reading) -> Verdict:
    names: dict[Place, tuple[Answer, Answer]] = {
        "A": ("first", "second"),
        "B": ("second", "first"),
        "tie": ("tie", "tie"),
    }
    answer: Answer
    if forward.answer is None or backward.answer is None:
        answer, why = "skip", "no readable answer"
    elif names[forward.answer][0] != names[backward.answer][1]:
        answer, why = "tie", "the answer changed with the order"
    else:
        # The sentence speaks of places, so it is kept with what it calls them.
        answer, why = names[forward.answer][0], forward.why and f"(first is A) {forward.why}"
    return Verdict(first.id, second.id, forward, backward, answer, why)


def _statistics(verdicts: Sequence[Verdict], checks: Sequence[Verdict]) -> Statistics:
    readable = [each for each in verdicts if each.answer != "skip"]
    consistent = [each for each in readable if _consistent(each)]
    places = [
        reading.answer
        for each in verdicts
        for reading in (each.forward, each.backward)
        if reading.answer in ("A", "B")
    ]
    return Statistics(
        num_pairs=len(verdicts),
        unreadable=len(verdicts) - len(readable),
        consistency=_share(len(consistent), len(readable)),
        first_slot=_share(places.count("A"), len(places)),
        ties=_share(sum(each.answer == "tie" for each in readable), len(readable)),
        known=len(checks),
        known_right=sum(each.answer == "first" for each in checks),
        repeated=sum(r.asked > 1 for each in verdicts for r in (each.forward, each.backward)),
    )


def _consistent(verdict: Verdict) -> bool:
    return (verdict.forward.answer, verdict.backward.answer) in (
        ("A", "B"),
        ("B", "A"),
        ("tie", "tie"),
    )


def _share(count: int, total: int) -> float:
    return count / total if total else math.nan
