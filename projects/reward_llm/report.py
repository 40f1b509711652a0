"""The page that a search for a reward leaves behind, drawn from its results.

What a model wrote is data of unknown content. The page shows it escaped, holds no script, and its
security policy would let none run.
"""

import math
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
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
from projects.reward_llm.judge.preferences import JudgeError, Preference, read_preferences
from projects.reward_llm.results import (
    FIRST,
    STATUSES,
    Budget,
    Candidate,
    Summary,
    by_search,
    comparisons,
    digits,
    headline,
    ledger_totals,
    lineage,
    plural,
    results,
    span,
    summarise,
)
from projects.reward_llm.search.arms import ARMS, FIXED, MODEL_ARMS
from projects.reward_llm.search.diagnosis import remarks
from projects.reward_llm.search.drivers import GOOD

FEW_SEARCHES = 5  # with fewer of them the bootstrap's intervals are too narrow
LONGEST_TEXT = 6000  # characters of one text of a model on the page
SPARK = (112, 26)  # width and height of a candidate's curve

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


# In words.


def whole(value: int) -> str:
    """A count: as it is, or with three digits and k, M or G."""
    if value < 10_000:
        return f"{value:,}"
    power = min(3, int(math.log10(float(f"{value:.3g}")) // 3))
    return f"{float(f'{value / 1000**power:.3g}'):g} {' kMG'[power]}"


def plain(text: Any) -> str:
    """A model's text for the page: nothing invisible that could reorder it, and not without end."""
    shown = "".join(
        c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd"
        for c in str(text).replace("\t", "    ")
    )
    more = len(shown) - LONGEST_TEXT
    return f"{shown[:LONGEST_TEXT]} … ({more} more characters)" if more > 0 else shown


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


class Palette(NamedTuple):
    series: Sequence[str]
    text: str
    rule: str


ON_PAGE = Palette(page.SERIES, page.TEXT, page.RULE)  # names that the page's style colours
ON_PAPER = Palette(
    ("#0072b2", "#d55e00", "#009e73", "#b0508a", "#b98200", "#3a9bd6", "#16202b"),
    "#16202b",
    "#dde1e6",
)


def _axes(height: float, palette: Palette = ON_PAGE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.tick_params(colors=palette.text, labelsize=9, length=3)
    axes.grid(color=palette.rule, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(palette.rule)
    return figure, axes


def draw_dots(summary: Summary, metric: str) -> Markup:
    return page.inline_svg(page.to_svg(dots(summary, metric)), f"dots-{metric}")


def dots(summary: Summary, metric: str, palette: Palette = ON_PAGE) -> Figure:
    """Every final as a dot, the searches of an arm one below the other; mean and interval."""
    arms = list(summary.arms.values())
    figure, axes = _axes(0.62 + 0.42 * max(1, len(arms)), palette)
    axes.grid(visible=False, axis="y")
    for row, arm in enumerate(arms):
        colour = palette.series[STYLES[arm.name][0]]
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
                [found.mean], [row], "D", color=colour, ms=7, mec=palette.text, mew=0.9, zorder=5
            )
        note = "no finals"
        if found.count:
            missing = found.count - found.finite
            note = f"none in {missing} of {found.count}" if missing else ""
        if note:
            # In the axes' own width: it stands where the row is, whatever the numbers are.
            at = axes.get_yaxis_transform()
            axes.text(
                0.99, row, note, color=palette.text, size=9, va="center", ha="right", transform=at
            )
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.set_ylim(max(1, len(arms)) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if not any(np.isfinite(arm.metrics[metric].mean) for arm in arms):
        axes.set_xticks([])
    axes.set_xlabel(metric, color=palette.text)
    return figure


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
    return page.inline_svg(page.to_svg(figure), f"curves-{metric}")


# The page.


def write_search_report(workdir: Path, task: RewardTask) -> Path:
    """Writes `results.json`, `finals.png` and `report.html`, each whole or not at all; returns the
    page's path.

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
    picture = dots(summary, task.score, ON_PAPER)
    picture.set_facecolor("white")
    write_atomically(workdir / "finals.png", page.encode_png(picture))
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
    longest = summary.search_updates or 1
    first = next(name for name in (*docs, summary.score) if name != summary.score or len(docs) == 1)
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
        style=page.style(),
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
        final_updates=summary.final_updates,
        search_updates=summary.search_updates,
        judgings=summary.judgings,
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
        command=page.wrap_command(shlex.join(commands[-1])) if commands[-1] else "",
        record=page.record_groups(record),
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
        note = f"{whole(cost.output_tokens)} written, in {plural(cost.requests, 'request')}"
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
