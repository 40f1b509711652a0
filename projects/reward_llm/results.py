"""What a search found, as numbers: its archive's events, read and summarised.

Only finals are results: a score within a search is the best of many noisy ones. Intervals resample
searches first and then the finals of each (a hierarchical bootstrap; Agarwal et al. 2021,
arXiv 2108.13264, say why few runs need intervals and the interquartile mean).
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

from core_rl import statistics
from projects.reward_llm.judge.bradley_terry import rank_policies
from projects.reward_llm.judge.preferences import JudgeError, Preference
from projects.reward_llm.judge.resampling import interval
from projects.reward_llm.search.arms import ARMS, FIXED, MODEL_ARMS

RESAMPLES = 4000
FIRST = "first"  # stands for an arm in keys of the generation that the model arms share

KEY = re.compile(r"s(\d+)/([^/]+)/g(\d+)/c(\d+)")
STEP = re.compile(r"(s\d+/[^/]+/g\d+)/(filter|rung\d+)")
FINAL = re.compile(r"s(\d+)/([^/]+)/final(\d+)")
JUDGED = re.compile(r"(s\d+/[^/]+/g\d+)/judged")
BEST = re.compile(r"s(\d+)/([^/]+)/best")

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


class Judging(NamedTuple):
    """How a judge behaved in a generation; `judge.judging.Statistics` says what its numbers are."""

    judge: str
    void: str  # why its answers were not used; empty where they were
    num_pairs: int = 0
    unreadable: int = 0
    consistency: float = math.nan
    known: int = 0
    known_right: int = 0


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
    judgings: dict[str, Judging]  # by the path of the generation

    @property
    def ranked(self) -> list[Arm]:
        """Arms that have a score, best first."""
        some = [arm for arm in self.arms.values() if math.isfinite(arm.metrics[self.score].mean)]
        return sorted(some, key=lambda arm: -arm.metrics[self.score].mean)

    @property
    def finals(self) -> list[Final]:
        return [final for arm in self.arms.values() for final in arm.finals]

    @property
    def final_updates(self) -> list[int]:
        """How many updates finals were trained for; one number where all are alike."""
        return sorted({final.updates[-1] for final in self.finals if final.updates})

    @property
    def search_updates(self) -> int:
        """Updates of the candidates that were trained longest in their search; 0 without any."""
        trained = (one.updates[-1] for one in self.candidates.values() if one.updates)
        return max(trained, default=0)


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
    first: Mapping[int, Sequence[float]], second: Mapping[int, Sequence[float]]
) -> Estimate:
    """The mean of `first` less that of `second` over the searches that both have, which share their
    tests, with Student's 95 % interval of the paired differences. `count` and `finite` are
    searches; fewer than two have no interval. A bootstrap over three searches would find a
    difference in a quarter of the cases where there is none."""
    common = sorted(set(first) & set(second))
    pairs = [(np.array(first[k], float), np.array(second[k], float)) for k in common]
    gaps = np.array(
        [
            np.nanmean(one) - np.nanmean(other)
            for one, other in pairs
            if np.isfinite(one).any() and np.isfinite(other).any()
        ]
    )
    if not len(gaps):
        return Estimate(math.nan, math.nan, math.nan, 0, len(common))
    mean, low, high = float(gaps.mean()), math.nan, math.nan
    if len(gaps) > 1:
        half = float(student.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps)))
        low, high = mean - half, mean + half
    return Estimate(mean, low, high, len(gaps), len(common))


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
    """That of the finite values; nan without any."""
    kept = np.array([value for value in values if math.isfinite(value)])
    return float(statistics.interquartile_mean(kept[:, None])) if len(kept) else math.nan


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
        judgings=read_judgings(events),
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


def read_judgings(events: Iterable[Mapping[str, Any]]) -> dict[str, Judging]:
    """What judges did, by the path of the generation."""
    found = {}
    for event in events:
        if match := JUDGED.fullmatch(event["key"]):
            told = {name: event[name] for name in Judging._fields[2:] if name in event}
            found[match[1]] = Judging(event.get("judge", ""), event.get("void", ""), **told)
    return found


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


def span(estimate: Estimate | Rank) -> str:
    return f"{digits(estimate.low)} to {digits(estimate.high)}"


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
        text += f", in {plural(score.count, 'final')} of {plural(len(searches), 'search')}"
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
            f"No final is trained yet: the best of {plural(len(tried), 'trained candidate')} "
            f"reached {summary.score} {digits(best.score)} within its search, which is the best of "
            "many noisy scores and no result."
        )
    if summary.candidates:
        return f"No result yet: {plural(len(summary.candidates), 'candidate')}, none trained."
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


def plural(count: int, noun: str) -> str:
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
        "judgings": {path: each._asdict() for path, each in summary.judgings.items()},
        "prompts": summary.prompts,
    }
