"""Compares runs by what they recorded: learning curves with bands, tables, differences of options.

    ./run python -m experiments.compare runs/sweeps/n_step --group_by=agent.n_step
    ./run python -m experiments.compare runs/a runs/b --group_by=run --html=compare.html

Reads `record.json` and `metrics.jsonl` alone, also of runs that are going on. Runs of a group are
averaged, so they may differ in their seeds only, and in what keeps and watches a run (`run.*`,
`workdir`); runs that differ elsewhere are refused, unless `--ignore` names the option.
`--task_by` tells the tasks of a benchmark apart, whose scores must be of one scale.

Numbers are those of the largest step that all runs have reached; intervals are stratified bootstrap
intervals of the interquartile mean (Agarwal et al. 2021), which for few runs are too narrow.
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from core_rl import flags
from core_rl.errors import UsageError, UserError
from core_rl.report import encode_png, read_series, write_report
from core_rl.runs import Run, find_runs, members_of, read_run
from core_rl.statistics import (
    bootstrap,
    difference,
    interquartile_mean,
    mean,
    paired_bootstrap,
    performance_profile,
    probability_of_improvement,
)
from core_rl.tracking import is_below, text_of

EACH = "run"  # a group per directory
FREE = ("seed", "num_seeds", "workdir", "run")  # options that may differ within a group
CURVE_POINTS, CURVE_REPETITIONS = 150, 300
SHOWN_DIFFERENCES = 6


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    runs: tuple[str, ...] = ()  # directories of runs, or that hold some
    metric: str = "eval/score"  # column that is compared
    x: str = "env_steps"  # column that it is drawn over
    group_by: tuple[str, ...] = ()  # options that tell groups apart; run: each directory is one
    task_by: tuple[str, ...] = ()  # options that tell tasks apart
    ignore: tuple[str, ...] = ()  # options that may differ within a group
    minimize: bool = False  # whether a small value is better
    html: str = ""  # file of the page; empty: none
    json: bool = False  # print one JSON object


class Column(NamedTuple):
    """The metric of one seed of a run."""

    run: Run
    seed: int
    x: np.ndarray  # [E] where it is finite
    y: np.ndarray  # [E]
    evaluated: np.ndarray  # every x that has it, finite or not


class Group(NamedTuple):
    name: str
    columns: list[Column]
    tasks: list[str]  # [T]
    order: list[list[Column]]  # [T] of R columns each, in order of their seeds


def columns_of(run: Run, metric: str, x: str) -> list[Column]:
    """One per seed. Raises UserError where the run has no such column, with those it has, and where
    a seed has no finite value."""
    series = read_series(run.rows, metric, x)
    if not len(series.x):
        known = sorted({key for row in run.rows for key in row if key.startswith("eval/")})
        offered = f"; it has {', '.join(known)}" if known else "; it has no evaluation yet"
        raise UserError(f"{run.directory}: no row has both {metric} and {x}{offered}")
    seeds = run.seeds if len(run.seeds) == series.y.shape[1] else range(series.y.shape[1])
    evaluated = read_series([row for row in run.rows if metric in row], x, x).x
    columns = []
    for seed, values in zip(seeds, series.y.T, strict=True):
        kept = np.isfinite(values)
        if not kept.any():
            raise UserError(f"{run.directory}: seed {seed} has no finite {metric}")
        columns.append(Column(run, seed, series.x[kept], values[kept], evaluated))
    return columns


def label(config: Mapping[str, Any], names: Sequence[str], run: Run) -> str:
    """What a group or a task is called. Raises UserError for an option that the run has not."""
    for name in names:
        if name != EACH and name not in config:
            raise UserError(f"{run.directory}: it has no option {name}; see its record.json")
    return ", ".join(
        str(run.directory) if name == EACH else f"{name}={text_of(config[name])}" for name in names
    )


def differing(configs: Sequence[Mapping[str, Any]], free: Sequence[str]) -> dict[str, list[str]]:
    """Options, not below `free` ones, that do not have one value: the values by name."""
    names = dict.fromkeys(name for config in configs for name in config)
    found = {}
    for name in names:
        if is_below(name, free):
            continue
        values = dict.fromkeys(text_of(config.get(name, "not set")) for config in configs)
        if len(values) > 1:
            found[name] = list(values)
    return found


def make_groups(config: CompareConfig, runs: Sequence[Run]) -> list[Group]:
    """Raises UserError where runs that would be averaged differ, and where tasks are missing."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(label(run.config, config.group_by, run) or "all", []).append(run)
    groups = []
    for name, members in by_name.items():
        free = (*FREE, *config.group_by, *config.task_by, *config.ignore)
        if found := differing([run.config for run in members], free):
            told = "; ".join(
                f"{option} ({' or '.join(values)})"
                for option, values in list(found.items())[:SHOWN_DIFFERENCES]
            )
            if len(found) > SHOWN_DIFFERENCES:
                told += f" and {len(found) - SHOWN_DIFFERENCES} more"
            raise UserError(
                f"group {name}: its runs differ in {told}: name the option in --group_by, or in "
                "--ignore"
            )
        columns = [column for run in members for column in columns_of(run, config.metric, config.x)]
        by_task: dict[str, list[Column]] = {}
        for column in columns:
            task = label(column.run.config, config.task_by, column.run)
            by_task.setdefault(task, []).append(column)
        by_task = dict(sorted(by_task.items()))  # the same tasks are paired in every group
        order = [sorted(part, key=lambda column: column.seed) for part in by_task.values()]
        for task, part in zip(by_task, order, strict=True):
            seeds = [column.seed for column in part]
            if len(set(seeds)) < len(seeds):
                again = next(column for column in part if seeds.count(column.seed) > 1)
                raise UserError(
                    f"group {name}{f', {task}' if task else ''}: seed {again.seed} is there twice, "
                    f"the second time in {again.run.directory}"
                )
        counts = {task: len(part) for task, part in zip(by_task, order, strict=True)}
        if len(set(counts.values())) > 1:
            raise UserError(f"group {name}: its tasks must have as many runs each, got {counts}")
        groups.append(Group(name, columns, list(by_task), order))
    tasks = {tuple(group.tasks) for group in groups}
    if len(tasks) > 1:
        raise UserError(f"the groups have different tasks: {' and '.join(map(str, sorted(tasks)))}")
    return groups


def scores_at(group: Group, at: float) -> np.ndarray:
    """The metric [R, T] of the last rows up to `at` where it is finite.

    Raises UserError for a seed that has none.
    """
    values = []
    for part in group.order:
        values.append([])
        for column in part:
            index = np.searchsorted(column.x, at, side="right") - 1
            if index < 0:
                raise UserError(
                    f"{column.run.directory}: seed {column.seed} has no finite value up to "
                    f"{at:,.0f}, where the groups are compared; its first is at {column.x[0]:,.0f}"
                )
            values[-1].append(column.y[index])
    return np.array(values).T


def common_end(groups: Sequence[Group]) -> float:
    return min(float(column.evaluated[-1]) for group in groups for column in group.columns)


def not_finite(groups: Sequence[Group], at: float) -> list[str]:
    """A line for each seed that has no finite value at its last row up to `at`."""
    lines = []
    for column in (column for group in groups for column in group.columns):
        taken = column.x[column.x <= at][-1]
        if taken < (last := column.evaluated[column.evaluated <= at][-1]):
            lines.append(
                f"{column.run.directory}: seed {column.seed} has no finite value at {last:,.0f}; "
                f"the one at {taken:,.0f} counts"
            )
    return lines


def table_of(config: CompareConfig, groups: Sequence[Group]) -> tuple[float, list[dict[str, Any]]]:
    """Where the groups are compared, and a row per group; differences are to the first group."""
    at = common_end(groups)
    first = scores_at(groups[0], at)
    rows = []
    for group in groups:
        scores = scores_at(group, at)
        aggregate = bootstrap(interquartile_mean, scores)
        row: dict[str, Any] = {
            "group": group.name,
            "runs": int(scores.size),
            "mean": float(mean(scores)),
            "iqm": float(aggregate.value),
            "low": float(aggregate.low) if len(scores) > 1 else None,
            "high": float(aggregate.high) if len(scores) > 1 else None,
            "worst": float(scores.max() if config.minimize else scores.min()),
            "best": float(scores.min() if config.minimize else scores.max()),
            "each": [[float(value) for value in part] for part in scores.T],
        }
        if group is not groups[0]:
            seeds = [[column.seed for column in part] for part in group.order]
            pairs = seeds == [[column.seed for column in part] for part in groups[0].order]
            ways = paired_bootstrap if pairs else bootstrap
            several = min(len(scores), len(first)) > 1
            change = ways(difference(interquartile_mean), scores, first)
            ours, theirs = (first, scores) if config.minimize else (scores, first)
            row["difference"] = {
                "value": float(change.value),
                "low": float(change.low) if several else None,
                "high": float(change.high) if several else None,
                "paired": pairs,
            }
            row["probability_of_improvement"] = float(probability_of_improvement(ours, theirs))
        rows.append(row)
    return at, rows


def curves(config: CompareConfig, groups: Sequence[Group]) -> Figure:
    """The groups' interquartile means with their bands, and every run thinly."""
    figure = Figure(figsize=(9.6, 5.0), layout="constrained")
    axes = figure.subplots()
    for number, group in enumerate(groups):
        colour = f"C{number % 10}"
        low = max(float(column.x[0]) for column in group.columns)
        high = max(low, min(float(column.x[-1]) for column in group.columns))
        at = np.unique(np.concatenate([column.x for column in group.columns]))
        at = at[(at >= low) & (at <= high)]
        at = at[np.unique(np.linspace(0, len(at) - 1, CURVE_POINTS).round().astype(int))]
        # [E, R, T]
        stack = np.array(
            [[np.interp(at, column.x, column.y) for column in part] for part in group.order]
        ).transpose(2, 1, 0)
        for column in group.columns:
            axes.plot(column.x, column.y, color=colour, linewidth=0.6, alpha=0.35)
        marker = "o" if len(at) < 3 else None
        middle = interquartile_mean(stack)
        axes.plot(at, middle, marker=marker, color=colour, linewidth=2.2, label=group.name)
        if stack.shape[1] > 1:
            bands = [
                bootstrap(interquartile_mean, scores, repetitions=CURVE_REPETITIONS)
                for scores in stack
            ]
            axes.fill_between(
                at,
                [float(band.low) for band in bands],
                [float(band.high) for band in bands],
                color=colour,
                alpha=0.15,
                linewidth=0.0,
            )
    axes.set_xlabel(config.x.replace("_", " "))
    axes.set_ylabel(config.metric)
    axes.set_title("interquartile mean and its 95 % band; thin: each run", fontsize=9)
    axes.grid(alpha=0.3)
    if len(groups) > 1:
        figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=2)
    return figure


def profiles(config: CompareConfig, groups: Sequence[Group], at: float) -> Figure:
    """The share of runs of all tasks that are better than a score."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    axes = figure.subplots()
    scores = {group.name: scores_at(group, at) for group in groups}
    everything = np.concatenate([part.ravel() for part in scores.values()])
    thresholds = np.linspace(everything.min(), everything.max(), 200)
    for name, part in scores.items():
        share = performance_profile(part, thresholds)
        axes.plot(thresholds, 1.0 - share if config.minimize else share, label=name)
    axes.set_xlabel(config.metric)
    axes.set_ylabel("share of runs below" if config.minimize else "share of runs above")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _interval(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}"


def _between(row: Mapping[str, Any], value: str = "iqm") -> str:
    interval = _interval(row)
    return f"{row[value]:.5g} ({interval})" if interval else f"{row[value]:.5g}"


def show_table(config: CompareConfig, at: float, rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{config.metric} at {config.x} {at:,.0f}; interval: 95 %, bootstrap"]
    width = max(len("group"), *(len(row["group"]) for row in rows))
    lines.append(
        f"{'group':{width}}  {'runs':>4}  {'mean':>9}  {'interquartile mean':32}  "
        f"{'worst':>9}  {'best':>9}  better than the first"
    )
    for row in rows:
        ahead = ""
        if "difference" in row:
            change = row["difference"]
            ahead = f"{row['probability_of_improvement']:.0%}, by {_between(change, 'value')}"
            ahead += ", paired" if change["paired"] else ""
        lines.append(
            f"{row['group']:{width}}  {row['runs']:4d}  {row['mean']:9.5g}  {_between(row):32}  "
            f"{row['worst']:9.5g}  {row['best']:9.5g}  {ahead}".rstrip()
        )
    return "\n".join(lines)


def write_page(
    config: CompareConfig,
    groups: Sequence[Group],
    at: float,
    rows: Sequence[Mapping[str, Any]],
    found: Mapping[str, Sequence[str]],
) -> None:
    numbers = [
        (
            row["group"],
            f"{row['iqm']:.5g}",
            f"interquartile mean{', 95 %: ' if _interval(row) else ''}{_interval(row)}; "
            f"{row['runs']} runs, mean {row['mean']:.5g}",
        )
        for row in rows
    ]
    numbers += [
        (
            f"{row['group']} over {rows[0]['group']}",
            f"{row['probability_of_improvement']:.0%}",
            f"of drawn pairs of runs; difference {_between(row['difference'], 'value')}",
        )
        for row in rows[1:]
    ]
    numbers += [
        (f"differs: {name}", " | ".join(values), "option") for name, values in found.items()
    ]
    figures = [("Learning curves", encode_png(curves(config, groups)), "")]
    if len(groups[0].tasks) > 1:
        figures.append(("Performance profiles", encode_png(profiles(config, groups, at)), ""))
    path = Path(config.html)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_report(
        path,
        title=f"{config.metric} of {len(groups)} groups",
        subtitle=f"{sum(row['runs'] for row in rows)} runs at {config.x} {at:,.0f}",
        command=f"./run python -m experiments.compare {shlex.join(sys.argv[1:])}",
        record={},
        numbers=numbers,
        figures=figures,
        embedded_pages=[],
        metrics=[],
        curves=[],
        is_run=False,
    )


def main(config: CompareConfig) -> int:
    if not config.runs:
        raise UsageError("name runs: python -m experiments.compare RUN... --metric=eval/score")
    runs = [run for each in find_runs(config.runs) for run in members_of(read_run(each))]
    groups = make_groups(config, runs)
    at, rows = table_of(config, groups)
    found = differing([run.config for run in runs], FREE)
    for line in not_finite(groups, at):
        sys.stderr.write(f"{line}\n")
    ends = sorted({float(column.evaluated[-1]) for group in groups for column in group.columns})
    if len(ends) > 1:
        sys.stderr.write(
            f"runs end at {config.x} {ends[0]:,.0f} to {ends[-1]:,.0f}; compared at {at:,.0f}\n"
        )
    commits = {str(run.record.get("code", {}).get("git_sha")) for run in runs}
    if len(commits) > 1:
        sys.stderr.write(f"runs are of {len(commits)} commits: {', '.join(sorted(commits))}\n")
    if config.html:
        write_page(config, groups, at, rows, found)
        sys.stderr.write(f"{config.html}\n")
    if config.json:
        told = {"metric": config.metric, "x": config.x, "at": at, "groups": rows}
        print(json.dumps({**told, "differing": found}))
    else:
        print(show_table(config, at, rows))
        for name, values in found.items():
            print(f"differs: {name}: {' | '.join(values)}")
    return 0


if __name__ == "__main__":
    flags.main(main, CompareConfig(), positional="runs")
