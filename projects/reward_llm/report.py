"""The page that a search for a reward leaves behind, and its numbers for scripts.

Only finals are results: a score within a search is the best of many noisy ones. Intervals resample
searches first and then the finals of each (a hierarchical bootstrap; Agarwal et al. 2021,
arXiv 2108.13264, say why few runs need intervals and the interquartile mean).

What a model wrote is data of unknown content. The page shows it escaped, holds no script, and its
security policy would let none run.
"""

import dataclasses
import math
import re
import shlex
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from core_rl import report as page
from core_rl.reward_task import RewardTask
from core_rl.tracking import RecordError, read_metrics, read_record, write_atomically, write_json
from projects.reward_llm.judge.bradley_terry import rank_policies
from projects.reward_llm.judge.preferences import JudgeError, Preference, read_preferences
from projects.reward_llm.judge.resampling import interval
from projects.reward_llm.search.arms import ARMS, FIXED, MODEL_ARMS
from projects.reward_llm.search.diagnosis import remarks
from projects.reward_llm.search.drivers import GOOD

RESAMPLES = 4000
FEW_SEARCHES = 5  # with fewer of them the bootstrap's intervals are too narrow
FIRST = "first"  # stands for an arm in keys of the generation that the model arms share
LONGEST_TEXT = 6000  # characters of one text of a model on the page
SPARK = (112, 26)  # width and height of a candidate's curve

KEY = re.compile(r"s(\d+)/([^/]+)/g(\d+)/c(\d+)")
STEP = re.compile(r"(s\d+/[^/]+/g\d+)/(filter|rung\d+)")
FINAL = re.compile(r"s(\d+)/([^/]+)/final(\d+)")
BEST = re.compile(r"s(\d+)/([^/]+)/best")
FLAG = re.compile(r"--?search\.(arms|seeds|finals)[= ](\S+)")

# An arm's colour among the page's curves, and whether its line is dashed. What is not searched has
# the colour of text.
STYLES = {
    "human": (6, False),
    "sparse": (6, True),
    "random_weights": (4, False),
    "cma_es": (1, False),
    "random_programs": (2, False),
    "model": (0, False),
    "model_blind": (3, False),
    "model_shuffled": (5, False),
    "model_weights": (0, True),
}
QUESTIONS = (  # what a pair of arms tells: the first less the second
    ("a language model, over plain optimisation of weights", "model", "cma_es"),
    ("a model's programs with optimised weights, over weights alone", "model_weights", "cma_es"),
    ("feedback to the model", "model", "model_blind"),
    ("what the feedback says", "model", "model_shuffled"),
    ("a model, over random programs", "model", "random_programs"),
    ("optimisation, over the luck of as many draws", "cma_es", "random_weights"),
    ("optimised weights, over a person's", "cma_es", "human"),
    ("a person's shaping", "human", "sparse"),
)
STATUSES = {  # what became of a candidate: word -> its explanation
    "trained": "trained and tested",
    "given": "not searched, only its finals are trained",
    "passed over": "accepted, but there was no room to train it",
    "twin": "its reward is an earlier candidate's up to scale and offset",
    "hackable": "pays a trivial driver as much as the good one",
    "refused": "not a valid reward",
    "waiting": "the archive ends before it was filtered or trained",
}


class Budget(NamedTuple):
    """What one candidate's training costs."""

    env_steps_per_epoch: int
    updates_per_epoch: int
    warmup_steps: int = 0  # of environments, before the first update


class Estimate(NamedTuple):
    """A mean over finals with its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float
    finite: int  # finals that have the number
    count: int  # finals


class Rank(NamedTuple):
    """Where a judge's comparisons put a candidate within its generation; 1 is best."""

    judge: str
    rank: float
    low: float
    high: float
    of: int
    comparisons: int
    warnings: tuple[str, ...]


class Comparison(NamedTuple):
    """Two arms that differ in one thing."""

    question: str
    first: str
    second: str
    gap: Estimate  # of the score, first less second; `count` are searches
    verdict: str


class Final(NamedTuple):
    arm: str
    seed: int
    number: int
    candidate: str  # its key
    metrics: Mapping[str, float]
    updates: list[int]
    curve: Mapping[str, list[float]]


@dataclasses.dataclass
class Candidate:
    """A proposal and what became of it."""

    key: str
    seed: int
    group: str  # arm, or FIRST
    generation: int
    slot: int
    event: Mapping[str, Any]  # of its proposal
    status: str = "waiting"  # of STATUSES
    why: str = ""
    paid: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by driver
    exploiters: Collection[str] = ()
    tac: float | None = None
    epochs: int = 0
    updates: list[int] = dataclasses.field(default_factory=list)
    curve: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    statistics: Mapping[str, dict[str, float]] = dataclasses.field(default_factory=dict)  # last
    score: float | None = None  # the best of its tests
    chosen: list[str] = dataclasses.field(default_factory=list)  # arms whose best it is
    ranks: list[Rank] = dataclasses.field(default_factory=list)

    @property
    def path(self) -> str:
        return f"s{self.seed}/{self.group}/g{self.generation}"

    @property
    def last(self) -> dict[str, float]:
        """Metrics of the last test."""
        return {name: values[-1] for name, values in self.curve.items() if values}

    @property
    def rounds(self) -> list[Mapping[str, Any]]:
        return self.event.get("rounds") or []


@dataclasses.dataclass(frozen=True)
class Cost:
    proposed: int = 0
    accepted: int = 0
    hackable: int = 0
    twins: int = 0
    trained: int = 0
    env_steps: int = 0  # of the search; tests are not counted
    updates: int = 0
    final_env_steps: int = 0
    requests: int = 0  # that are recorded, also those that failed
    input_tokens: int = 0
    output_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Arm:
    name: str
    finals: list[Final]
    metrics: dict[str, Estimate]
    iqm: float  # interquartile mean of the score
    cost: Cost  # a model arm's holds the generation that it shares
    reason: str  # why there are no finals; empty if there are


@dataclasses.dataclass(frozen=True)
class Summary:
    score: str  # the metric that chooses
    arms: dict[str, Arm]
    candidates: dict[str, Candidate]  # by key
    cost: Cost  # of everything, what is shared counted once
    prompts: dict[str, str]  # hash by name

    @property
    def ranked(self) -> list[Arm]:
        """Arms that have a score, best first."""
        some = [arm for arm in self.arms.values() if math.isfinite(arm.metrics[self.score].mean)]
        return sorted(some, key=lambda arm: -arm.metrics[self.score].mean)

    @property
    def finals(self) -> list[Final]:
        return [final for arm in self.arms.values() for final in arm.finals]


# Statistics.


def estimate(searches: Mapping[int, Sequence[float]], seed: int = 0) -> Estimate:
    """The mean over all finals of all searches, given by the seed of their search.

    Finals without the number are left out, and counted. The interval resamples searches and then
    finals within each; a single number has none.
    """
    values = [list(finals) for finals in searches.values() if len(finals)]
    pooled = np.array([value for finals in values for value in finals], float)
    finite = pooled[np.isfinite(pooled)]
    low = high = math.nan
    if len(finite) > 1:
        random = np.random.default_rng(seed)
        picks = random.integers(len(values), size=(RESAMPLES, len(values)))
        low, high = map(float, interval(_resample(values, picks, random), 0.95))
    mean = float(np.mean(finite)) if len(finite) else math.nan
    return Estimate(mean, low, high, len(finite), len(pooled))


def compare(
    first: Mapping[int, Sequence[float]], second: Mapping[int, Sequence[float]], seed: int = 0
) -> Estimate:
    """The mean of `first` less that of `second` over the searches that both have, which share their
    tests. `count` and `finite` are searches; fewer than two have no interval."""
    common = sorted(set(first) & set(second))
    pairs = [(np.array(first[k], float), np.array(second[k], float)) for k in common]
    usable = [pair for pair in pairs if all(np.isfinite(values).any() for values in pair)]
    if not usable:
        return Estimate(math.nan, math.nan, math.nan, 0, len(common))
    left, right = ([list(values) for values in side] for side in zip(*usable, strict=True))
    mean = float(np.nanmean(np.concatenate(left)) - np.nanmean(np.concatenate(right)))
    low = high = math.nan
    if len(usable) > 1:
        random = np.random.default_rng(seed)
        picks = random.integers(len(usable), size=(RESAMPLES, len(usable)))
        gaps = _resample(left, picks, random) - _resample(right, picks, random)
        low, high = map(float, interval(gaps, 0.95))
    return Estimate(mean, low, high, len(usable), len(common))


def _resample(
    searches: Sequence[Sequence[float]], picks: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Means [R] over finals that are drawn with replacement within the picked searches [R, S]; NaN
    where none of those drawn is a number."""
    counts = np.array([len(values) for values in searches])
    table = np.full((len(searches), counts.max()), np.nan)
    for row, values in zip(table, searches, strict=True):
        row[: len(values)] = values
    number = counts[picks][..., None]  # [R, S, 1]
    which = (random.random((*picks.shape, table.shape[1])) * number).astype(int)
    drawn = table[picks[..., None], which]  # [R, S, F]
    used = (np.arange(table.shape[1]) < number) & np.isfinite(drawn)
    total, count = np.where(used, drawn, 0.0).sum(axis=(1, 2)), used.sum(axis=(1, 2))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def interquartile_mean(values: Iterable[float]) -> float:
    """The mean without the lowest and the highest quarter (rounded down) of the finite values."""
    kept = np.sort([value for value in values if math.isfinite(value)])
    cut = len(kept) // 4
    return float(np.mean(kept[cut : len(kept) - cut])) if len(kept) else math.nan


def by_search(finals: Iterable[Final], metric: str) -> dict[int, list[float]]:
    """A metric of finals by the seed of their search."""
    table: dict[int, list[float]] = {}
    for final in finals:
        table.setdefault(final.seed, []).append(final.metrics.get(metric, math.nan))
    return table


# From events to numbers.


def summarise(
    events: Iterable[Mapping[str, Any]],
    metrics: Sequence[str],
    score: str,
    budget: Budget,
    arms: Sequence[str] = (),
    preferences: Sequence[Preference] = (),
) -> Summary:
    """The numbers of a search, also of one that is not finished.

    `arms` are shown even where `events` have nothing of them.
    """
    events = [event for event in events if "key" in event]
    candidates = read_candidates(events, score, budget)
    finals = read_finals(events, budget)
    for event in events:
        if match := BEST.fullmatch(event["key"]):
            if event.get("candidate") in candidates:
                candidates[event["candidate"]].chosen.append(match[2])
    for key, ranks in rank_generations(candidates.values(), preferences).items():
        candidates[key].ranks = ranks
    seen = {one.group for one in candidates.values()} | {final.arm for final in finals}
    asked_first = FIRST in seen and not any(arm in MODEL_ARMS for arm in {*arms, *seen})
    shown = {*arms, *seen, *(MODEL_ARMS if asked_first else ())}
    table = {}
    for name in [arm for arm in ARMS if arm in shown]:
        own = [final for final in finals if final.arm == name]
        mine = [one for one in candidates.values() if one.group in groups_of(name)]
        table[name] = Arm(
            name,
            own,
            {metric: estimate(by_search(own, metric)) for metric in metrics},
            interquartile_mean(final.metrics.get(score, math.nan) for final in own),
            count_cost(mine, own, budget),
            "" if own else _why_empty(name, mine),
        )
    prompts = next((dict(e) for e in events if e["key"] == "prompts"), {})
    return Summary(
        score=score,
        arms=table,
        candidates=candidates,
        cost=count_cost(candidates.values(), finals, budget),
        prompts={k: v for k, v in prompts.items() if k not in ("key", "event")},
    )


def groups_of(arm: str) -> tuple[str, ...]:
    """Where an arm's candidates are in keys."""
    return (FIRST, arm) if arm in MODEL_ARMS else (arm,)


def read_candidates(
    events: Sequence[Mapping[str, Any]], score: str, budget: Budget
) -> dict[str, Candidate]:
    """Every candidate, in the order of the archive, with what later events say of it."""
    candidates: dict[str, Candidate] = {}
    for event in events:
        if match := KEY.fullmatch(event["key"]):
            seed, group, generation, slot = match.groups()
            one = Candidate(event["key"], int(seed), group, int(generation), int(slot), event)
            if not event.get("accept"):
                one.status, one.why = "refused", str(event.get("reason", ""))
            elif group in FIXED:
                one.status = "given"
            candidates[one.key] = one
    for event in events:
        match = STEP.fullmatch(event["key"])
        if match and match[2] == "filter":
            _apply_filter(candidates, match[1], event)
        elif match:
            _apply_rung(candidates, match[1], event, budget)
    for one in candidates.values():
        if one.epochs:
            tested = [value for value in one.curve.get(score, []) if math.isfinite(value)]
            one.score = max(tested, default=-math.inf)
    return candidates


def _apply_filter(candidates: Mapping[str, Candidate], path: str, event: Mapping[str, Any]):
    for slot, paid in event.get("paid", {}).items():
        one = candidates.get(f"{path}/c{slot}")
        if one is None:
            continue
        one.paid = paid
        one.tac = event.get("tac", {}).get(slot)
        one.exploiters = event.get("hackable", {}).get(slot, ())
        twin = event.get("twins", {}).get(slot)
        if one.exploiters:
            one.status, one.why = "hackable", f"paid at least as much: {', '.join(one.exploiters)}"
        elif twin is not None:
            one.status, one.why = "twin", f"of c{twin}"
        elif one.slot not in event.get("kept", []):
            one.status, one.why = (
                "passed over",
                event.get("tac_reason") or "earlier ones were taken: nothing to choose by",
            )


def _apply_rung(
    candidates: Mapping[str, Candidate], path: str, event: Mapping[str, Any], budget: Budget
):
    checked = event.get("checked") or [0]
    for lane in event.get("lanes", []):
        one = candidates.get(f"{path}/c{lane['slot']}")
        if one is None:
            continue
        one.status, one.why = "trained", ""
        one.updates += [(one.epochs + n) * budget.updates_per_epoch for n in checked]
        one.epochs += checked[-1]
        for name, values in lane.get("curve", {}).items():
            one.curve.setdefault(name, []).extend(values)
        if lane.get("statistics"):
            one.statistics = lane["statistics"][-1]


def read_finals(events: Iterable[Mapping[str, Any]], budget: Budget) -> list[Final]:
    finals = []
    for event in events:
        if match := FINAL.fullmatch(event["key"]):
            updates = [n * budget.updates_per_epoch for n in event.get("checked", [])]
            metrics, curve = event.get("metrics", {}), event.get("curve", {})
            source = event.get("candidate", "")
            seed, arm, number = int(match[1]), match[2], int(match[3])
            finals.append(Final(arm, seed, number, source, metrics, updates, curve))
    return finals


def count_cost(candidates: Iterable[Candidate], finals: Iterable[Final], budget: Budget) -> Cost:
    candidates = list(candidates)
    trained = [one for one in candidates if one.epochs]
    rounds = [each for one in candidates for each in one.rounds]
    final_updates = [final.updates[-1] for final in finals if final.updates]
    per_update = budget.env_steps_per_epoch / max(1, budget.updates_per_epoch)
    warm = budget.warmup_steps
    return Cost(
        proposed=len(candidates),
        accepted=sum(one.status != "refused" for one in candidates),
        hackable=sum(one.status == "hackable" for one in candidates),
        twins=sum(one.status == "twin" for one in candidates),
        trained=len(trained),
        env_steps=sum(one.epochs * budget.env_steps_per_epoch + warm for one in trained),
        updates=sum(one.epochs * budget.updates_per_epoch for one in trained),
        final_env_steps=round(sum(n * per_update + warm for n in final_updates)),
        requests=len(rounds),
        input_tokens=sum(each.get("input_tokens") or 0 for each in rounds),
        output_tokens=sum(each.get("output_tokens") or 0 for each in rounds),
    )


def _why_empty(arm: str, candidates: Sequence[Candidate]) -> str:
    """Why an arm has no finals, from what the archive has of it."""
    if not candidates:
        return "no replies recorded" if arm in MODEL_ARMS else "not begun"
    if any(arm in one.chosen for one in candidates):
        return "its finals are not trained yet"
    statuses = {one.status for one in candidates}
    if statuses == {"refused"}:
        return "nothing trained: no candidate was accepted"
    if "waiting" in statuses:
        return "nothing trained yet" if "trained" not in statuses else "its search is not finished"
    if "trained" not in statuses:
        return "nothing trained: every candidate was refused, hackable or a twin"
    if arm in MODEL_ARMS and all(one.group == FIRST for one in candidates):
        return "only the shared first generation: no replies recorded after it"
    return "its search is not finished"


def rank_generations(
    candidates: Iterable[Candidate], preferences: Sequence[Preference]
) -> dict[str, list[Rank]]:
    """Bradley-Terry ranks of candidates, within their generation and for each judge alone."""
    by_clip = {one.key.replace("/", "-"): one for one in candidates}  # ids are CANDIDATE-eEPISODE
    pools: dict[tuple[str, str], list[Preference]] = {}
    for each in preferences:
        ends = [by_clip.get(name.rsplit("-e", 1)[0]) for name in each.pair]
        if ends[0] and ends[1] and ends[0].path == ends[1].path and each.answer != "skip":
            pools.setdefault((ends[0].path, each.judge), []).append(each)
    ranks: dict[str, list[Rank]] = {}
    for (_, judge), pool in sorted(pools.items()):
        clips = dict.fromkeys(name for each in pool for name in (each.first, each.second))
        policies = {name: by_clip[name.rsplit("-e", 1)[0]].key for name in clips}
        try:
            ranking = rank_policies(pool, policies)
        except JudgeError:  # strengths that do not settle: no rank is better than a wrong one
            continue
        for k, key in enumerate(ranking.items):
            numbers = (ranking.rank[k], ranking.rank_low[k], ranking.rank_high[k])
            ranks.setdefault(key, []).append(
                Rank(
                    judge,
                    *map(float, numbers),
                    of=len(ranking.items),
                    comparisons=int(ranking.num_comparisons[k]),
                    warnings=ranking.warnings,
                )
            )
    return ranks


def lineage(key: str, candidates: Mapping[str, Candidate]) -> list[tuple[int, str]]:
    """(depth, key) of a candidate and all that it comes from, parents below their child; what
    stands there already is not repeated."""
    found: list[tuple[int, str]] = []
    seen: set[str] = set()

    def visit(key: str, depth: int):
        if key in seen:
            return
        seen.add(key)
        found.append((depth, key))
        for parent in candidates[key].event.get("parents", []) if key in candidates else []:
            visit(parent, depth + 1)

    visit(key, 0)
    return found


def ledger_totals(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Attempts and tokens of a ledger; what was reserved and never settled counts as spent."""
    entries: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        if row.get("event") == "settle" or row["number"] not in entries:
            entries[row["number"]] = row
    names = ("requests", "input_tokens", "output_tokens")
    totals = {name: sum(int(row[name]) for row in entries.values()) for name in names}
    open_rows = [row for row in entries.values() if row.get("event") != "settle"]
    return {**totals, "unsettled": len(open_rows)}


# In words.


def digits(value: float | None) -> str:
    """Three significant digits, and a dash for what is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 1000:
        return f"{rounded:,.0f}"
    return re.sub(r"e([+-])0*(\d)", r"e\1\2", f"{value:.3g}")


def whole(value: int) -> str:
    """A count: as it is, or with three digits and k, M or G."""
    if value < 10_000:
        return f"{value:,}"
    power = min(3, int(math.log10(float(f"{value:.3g}")) // 3))
    return f"{float(f'{value / 1000**power:.3g}'):g} {' kMG'[power]}"


def span(estimate: Estimate | Rank) -> str:
    return f"{digits(estimate.low)} to {digits(estimate.high)}"


def plain(text: Any) -> str:
    """A model's text for the page: nothing invisible that could reorder it, and not without end."""
    shown = "".join(
        c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd"
        for c in str(text).replace("\t", "    ")
    )
    more = len(shown) - LONGEST_TEXT
    return f"{shown[:LONGEST_TEXT]} … ({more} more characters)" if more > 0 else shown


def headline(summary: Summary, expected: int | None = None) -> str:
    """What came out, in one sentence; `expected` finals of each arm make it say whether that is
    all."""
    ranked = summary.ranked
    if ranked:
        best = ranked[0]
        score, searches = best.metrics[summary.score], {final.seed for final in best.finals}
        missing = any(len(arm.finals) < (expected or 0) for arm in summary.arms.values())
        text = "So far, " if missing else ""
        text += f"{best.name} has the highest mean {summary.score}, {digits(score.mean)}"
        if math.isfinite(score.low):
            text += f" (95 % interval {span(score)})"
        text += f", in {_plural(score.count, 'final')} of {_plural(len(searches), 'search')}"
        if len(ranked) > 1:
            second = ranked[1]
            gap = _gap(best, second, summary.score)
            apart = gap.low > 0
            text += (
                f", ahead of {second.name} by {digits(gap.mean)} ({span(gap)})"
                if apart
                else f", and cannot be told apart from {second.name}, "
                f"{digits(second.metrics[summary.score].mean)}"
            )
        return f"{text}."
    tried = [one for one in summary.candidates.values() if one.score is not None]
    if tried:
        best = max(tried, key=lambda one: one.score or -math.inf)
        return (
            f"No final is trained yet: the best of {_plural(len(tried), 'trained candidate')} "
            f"reached {summary.score} {digits(best.score)} within its search, which is the best of "
            "many noisy scores and no result."
        )
    if summary.candidates:
        return f"No result yet: {_plural(len(summary.candidates), 'candidate')}, none trained."
    return "No result yet: nothing is recorded."


def comparisons(summary: Summary) -> list[Comparison]:
    """What the arms of the comparison are for, where both of a pair have finals."""
    found = []
    for question, first, second in QUESTIONS:
        one, other = summary.arms.get(first), summary.arms.get(second)
        if one is None or other is None or not (one.finals and other.finals):
            continue
        gap = _gap(one, other, summary.score)
        if not math.isfinite(gap.low):
            verdict = "open: fewer than two searches in common"
        elif gap.low > 0:
            verdict = f"{first} beats {second}"
        elif gap.high < 0:
            verdict = f"{first} is worse than {second}"
        else:
            verdict = f"{first} does not beat {second}: the interval holds 0"
        found.append(Comparison(question, first, second, gap, verdict))
    return found


def _gap(first: Arm, second: Arm, metric: str) -> Estimate:
    return compare(by_search(first.finals, metric), by_search(second.finals, metric))


def _plural(count: int, noun: str) -> str:
    ending = "es" if noun.endswith("ch") else "s"
    return f"{count} {noun}{'' if count == 1 else ending}"


def results(
    summary: Summary, docs: Mapping[str, str], expected: int | None = None
) -> dict[str, Any]:
    """The page's numbers for scripts."""
    return {
        "score": summary.score,
        "metrics": dict(docs),
        "headline": headline(summary, expected),
        "arms": {
            name: {
                "finals": [final._asdict() for final in arm.finals],
                "metrics": {key: value._asdict() for key, value in arm.metrics.items()},
                "interquartile_mean": arm.iqm,
                "cost": dataclasses.asdict(arm.cost),
                "reason": arm.reason,
            }
            for name, arm in summary.arms.items()
        },
        "comparisons": [
            {**each._asdict(), "gap": each.gap._asdict()} for each in comparisons(summary)
        ],
        "cost": dataclasses.asdict(summary.cost),
        "prompts": summary.prompts,
    }


# Drawings.


def spark(one: Candidate, score: str, low: float, high: float, last: int) -> Markup:
    """The score over updates, on axes that all candidates of the page share."""
    width, height = SPARK
    values = one.curve.get(score, [])
    scale = (height - 6) / ((high - low) or 1.0)
    points = [
        (3 + (width - 6) * x / max(1, last), height - 3 - scale * (y - low))
        for x, y in zip(one.updates, values, strict=False)
        if math.isfinite(y)
    ]
    if not points:
        return Markup("")
    line = " ".join(f"{x:.0f},{y:.1f}" for x, y in points)
    label = f"{score} " + ", ".join(map(digits, values))
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" role="img" aria-label="{}"><polyline points="{}"/>'
        '<circle cx="{:.0f}" cy="{:.1f}" r="2.4"/></svg>'
    ).format(width, height, label, line, *points[-1])


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.tick_params(colors=page.TEXT, labelsize=9, length=3)
    axes.grid(color=page.RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(page.RULE)
    return figure, axes


def draw_dots(summary: Summary, metric: str) -> Markup:
    """Every final as a dot, the searches of an arm one below the other; mean and interval."""
    arms = list(summary.arms.values())
    figure, axes = _axes(0.62 + 0.42 * max(1, len(arms)))
    axes.grid(visible=False, axis="y")
    for row, arm in enumerate(arms):
        colour = page.SERIES[STYLES[arm.name][0]]
        searches = by_search(arm.finals, metric)
        for k, values in enumerate(searches.values()):
            offset = 0.16 * (k - (len(searches) - 1) / 2) if len(searches) < 5 else 0.0
            axes.plot(
                values, [row + offset] * len(values), "o", color=colour, ms=4.5, alpha=0.55, mew=0
            )
        found = arm.metrics[metric]
        if math.isfinite(found.low):
            axes.plot([found.low, found.high], [row, row], color=colour, lw=2.2)
        if math.isfinite(found.mean):
            axes.plot(
                [found.mean], [row], "D", color=colour, ms=7, mec=page.TEXT, mew=0.9, zorder=5
            )
        note = "no finals"
        if found.count:
            missing = found.count - found.finite
            note = f"none in {missing} of {found.count}" if missing else ""
        if note:
            # In the axes' own width: it stands where the row is, whatever the numbers are.
            at = axes.get_yaxis_transform()
            axes.text(
                0.99, row, note, color=page.TEXT, size=9, va="center", ha="right", transform=at
            )
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.set_ylim(max(1, len(arms)) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if not any(np.isfinite(arm.metrics[metric].mean) for arm in arms):
        axes.set_xticks([])
    axes.set_xlabel(metric, color=page.TEXT)
    return page.inline_svg(page._to_svg(figure), f"dots-{metric}")


def draw_curves(summary: Summary, metric: str) -> Markup | None:
    """Finals while they were trained: each thin, and the mean over an arm's where all have it."""
    figure, axes = _axes(3.0)
    empty = True
    for arm in summary.arms.values():
        index, dashed = STYLES[arm.name]
        colour, dashes = page.SERIES[index], "--" if dashed else "-"
        curves = [(final.updates, final.curve.get(metric, [])) for final in arm.finals]
        curves = [(x, y) for x, y in curves if len(x) == len(y) and np.isfinite(y).any()]
        for x, y in curves:
            axes.plot(x, y, dashes, color=colour, lw=0.8, alpha=0.4, marker="o", ms=1.8)
            empty = False
        if curves and len(curves) == len(arm.finals) and all(x == curves[0][0] for x, _ in curves):
            mean = np.mean([y for _, y in curves], axis=0)
            axes.plot(curves[0][0], mean, dashes, color=colour, lw=2.0, marker="o", ms=3.5)
    if empty:
        return None
    axes.set_xlim(0, 1.02 * max((f.updates[-1] for f in summary.finals if f.updates), default=1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("updates", color=page.TEXT)
    axes.set_ylabel(metric, color=page.TEXT)
    return page.inline_svg(page._to_svg(figure), f"curves-{metric}")


# The page.


def write_search_report(workdir: Path, task: RewardTask) -> Path:
    """Writes `results.json` and `report.html`, each whole or not at all; returns the page's path.

    A search that is not finished, or has not begun, gets a page that says what is missing.
    """
    warnings: list[str] = []
    record = read_record(workdir) or {}
    archive = workdir / "archive.jsonl"
    events = read_metrics(archive) if archive.exists() else []
    asked = asked_for(record)
    preferences = _read_preferences(workdir, asked, warnings)
    budget = Budget(
        task.train.env_steps_per_epoch,
        task.train.updates_per_epoch,
        task.train.warmup_steps * task.train.num_envs,
    )
    names = [task.score, *(name for name in task.metric_docs if name != task.score)]
    summary = summarise(events, names, task.score, budget, asked["arms"], preferences)
    ledger = workdir / "ledger.jsonl"
    spent = None
    if ledger.exists():
        try:
            spent = ledger_totals(read_metrics(ledger))
        except (RecordError, KeyError, TypeError, ValueError) as error:
            warnings.append(f"ledger.jsonl cannot be read: {error}")
    docs = {name: task.metric_docs.get(name, "") for name in names}
    write_json(
        workdir / "results.json", {"task": task.name, **results(summary, docs, _expected(asked))}
    )
    path = workdir / "report.html"
    text = render(summary, task.name, docs, budget, record, asked, spent, warnings)
    write_atomically(path, text.encode("utf-8", "replace"))
    return path


def asked_for(record: Mapping[str, Any]) -> dict[str, Any]:
    """The search's configuration. A resume may name other arms, seeds and finals; the record has
    those only in its commands."""
    search = dict(record.get("config", {}).get("search", {}))
    arms = list(search.get("arms", []))
    for argv in [record.get("argv", []), *(r.get("argv", []) for r in record.get("resumes", []))]:
        for name, value in FLAG.findall(" ".join(argv)):
            if name == "arms":
                arms += value.split(",")
            elif value.isdigit():
                search[name] = int(value)
    return {**search, "arms": [arm for arm in ARMS if arm in arms]}


def _read_preferences(
    workdir: Path, asked: Mapping[str, Any], warnings: list[str]
) -> list[Preference]:
    paths = [workdir / "preferences.jsonl"]
    if asked.get("preferences"):
        paths.append(Path(asked["preferences"]))
    found: list[Preference] = []
    for path in dict.fromkeys(paths):
        try:
            found += read_preferences(path)
        except (JudgeError, RecordError, OSError) as error:
            warnings.append(f"preferences cannot be read: {error}")
    return found


def render(
    summary: Summary,
    task: str,
    docs: Mapping[str, str],
    budget: Budget,
    record: Mapping[str, Any],
    asked: Mapping[str, Any],
    spent: Mapping[str, int] | None,
    warnings: Sequence[str],
) -> str:
    scores = [
        value
        for one in summary.candidates.values()
        for value in one.curve.get(summary.score, [])
        if math.isfinite(value)
    ]
    low, high = min([0.0, *scores]), max([0.0, *scores])
    longest = max(
        (one.updates[-1] for one in summary.candidates.values() if one.updates), default=1
    )
    first = next(name for name in (*docs, summary.score) if name != summary.score or len(docs) == 1)
    base = Path(page.__file__).with_name("report.html").read_text(encoding="utf-8")
    commands = [record.get("argv", []), *(r.get("argv", []) for r in record.get("resumes", []))]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"digits": digits, "whole": whole, "plain": plain, "span": span}
    environment.filters["zip_terms"] = lambda terms, factors: zip(terms, factors, strict=False)
    template = environment.from_string(
        Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    )
    return template.render(
        style=Markup(base[base.index("<style>") + 7 : base.index("</style>")]),
        title=f"Rewards for {task}",
        headline=headline(summary, _expected(asked)),
        comparisons=comparisons(summary),
        tiles=_tiles(summary, asked),
        summary=summary,
        docs=docs,
        dots=[
            (metric, draw_dots(summary, metric)) for metric in dict.fromkeys((summary.score, first))
        ],
        curves=[(m, svg) for m in docs if (svg := draw_curves(summary, m)) is not None],
        colours={arm: (f"var(--curve-{k})", dashed) for arm, (k, dashed) in STYLES.items()},
        arm_docs=ARMS,
        model_arms=[arm for arm in summary.arms if arm in MODEL_ARMS],
        few_searches=FEW_SEARCHES,
        expected=_expected(asked),
        searches=len({final.seed for final in summary.finals}),
        groups=_groups(summary),
        statuses=STATUSES,
        sparks={
            key: spark(one, summary.score, low, high, longest)
            for key, one in summary.candidates.items()
        },
        spark_range=(low, high, longest),
        remarks=remarks,
        good=GOOD,
        families=_families(summary),
        spent=spent,
        asked=asked,
        budget=budget,
        warnings=warnings,
        command=page._wrap_command(shlex.join(commands[-1])) if commands[-1] else "",
        record=page._record_groups(record),
    )


def _expected(asked: Mapping[str, Any]) -> int | None:
    """Finals of each arm; None where the record does not say."""
    if "seeds" not in asked or "finals" not in asked:
        return None
    return asked["seeds"] * asked["finals"]


def _tiles(summary: Summary, asked: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    cost, expected = summary.cost, _expected(asked)
    done = sum(1 for arm in summary.arms.values() if arm.finals)
    of = "" if expected is None else f" of {expected * len(summary.arms)}"
    tiles = [
        ("arms with finals", f"{done} of {len(summary.arms)}", f"{len(summary.finals)}{of} finals"),
        (
            "candidates",
            whole(cost.proposed),
            f"{whole(cost.accepted)} accepted, {whole(cost.trained)} trained",
        ),
        (
            "environment steps",
            whole(cost.env_steps + cost.final_env_steps),
            f"{whole(cost.final_env_steps)} of them for finals",
        ),
    ]
    if cost.requests:
        tokens = whole(cost.input_tokens + cost.output_tokens)
        note = f"{whole(cost.output_tokens)} written, in {_plural(cost.requests, 'request')}"
        tiles.append(("tokens", tokens, note))
    return tiles


def _groups(summary: Summary) -> list[tuple[int, list[tuple[str, int, list[Candidate]]]]]:
    """Candidates by seed, and in it by arm and generation."""
    order = {name: k for k, name in enumerate((*FIXED, *ARMS, FIRST)) if name not in MODEL_ARMS}
    order |= {name: len(order) + k for k, name in enumerate(MODEL_ARMS)}
    table: dict[int, dict[tuple[int, str, int], list[Candidate]]] = {}
    for one in summary.candidates.values():
        place = (order.get(one.group, len(order)), one.group, one.generation)
        table.setdefault(one.seed, {}).setdefault(place, []).append(one)
    return [
        (
            seed,
            [
                (group, generation, sorted(ones, key=lambda one: one.slot))
                for (_, group, generation), ones in sorted(groups.items())
            ],
        )
        for seed, groups in sorted(table.items())
    ]


def _families(summary: Summary) -> list[tuple[str, list[tuple[int, list[tuple[int, str]]]]]]:
    """Of each arm that is searched: (seed, lineage) of the best candidate of each search."""
    families = []
    for arm in (name for name in summary.arms if name not in FIXED):
        best = [one for one in summary.candidates.values() if arm in one.chosen]
        if best:
            best.sort(key=lambda one: one.seed)
            rows = [(one.seed, lineage(one.key, summary.candidates)) for one in best]
            families.append((arm, rows))
    return families
