"""A paper run again: commands whose numbers are kept, and a table of theirs beside the paper's.

A paper is a table of lines and, for each scale, a list of steps. A step is one command of this
repository in a process of its own; when it has ended well, its numbers go as a row into
`results.jsonl` of the runs with command, commit, machine, date and time taken, and it is not done
again while its command is the same. A run that was stopped goes on with the same command; commands
that train resume themselves.
"""

import dataclasses
import fnmatch
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from core_rl import flags
from core_rl.errors import UserError
from core_rl.report import show_value
from core_rl.statistics import bootstrap, interquartile_mean
from core_rl.tracking import JsonlSink, code_version, machine, read_metrics
from experiments.executors import POLL, Local, stop_on_signal, wait_until_free, why_failed

RESULTS = "results.jsonl"
HERE = Path(__file__).parent
SCALES = ("smoke", "small", "full")
FEW = 3  # runs from which on an interval is given


class Step(NamedTuple):
    """One command: `python -m module arguments`, in which `{out}` is its directory and `{runs}` the
    one above, where step `a/b` has `a-b`."""

    key: str
    module: str
    arguments: tuple[str, ...]
    read: Callable[[Path, str], Mapping[str, float]]  # its numbers, of directory and what it wrote


class Line(NamedTuple):
    """A line of the table."""

    what: str
    published: str  # with its unit; empty: nothing comparable is published
    keys: str = ""  # of our steps, with * for seeds; empty: we have not run it
    number: str = ""  # which of their numbers
    unit: str = ""


class Paper(NamedTuple):
    name: str  # of its folder
    title: str
    citation: str
    source: str  # where in the paper the published numbers stand
    steps: Mapping[str, tuple[Step, ...]]  # by scale
    lines: tuple[Line, ...]
    deviations: tuple[str, ...]  # of ours from theirs, a sentence each
    cost: str  # of the small scale
    expected: str  # what one should find, before it has been run here or after
    full: str  # what the full scale would take

    @property
    def folder(self) -> Path:
        return HERE / self.name


@dataclasses.dataclass(frozen=True)
class ReproduceConfig:
    scale: Literal["smoke", "small", "full"] = "smoke"  # seconds; hours on 2 cores; as theirs
    only: tuple[str, ...] = ()  # steps by key, * for any; empty: all
    out: str = ""  # directory of the runs; empty: runs/reproduce/PAPER/SCALE
    keep: bool = False  # also put results into the paper's folder, where the tables are made from

    def __post_init__(self):
        if self.scale not in SCALES:
            raise ValueError(f"scale must be {', '.join(SCALES)}, got {self.scale!r}")
        if self.keep and self.scale == "smoke":
            raise ValueError("keep is not for the smoke scale, whose numbers mean nothing")


def printed(stdout: str) -> dict[str, Any]:
    """The JSON object that a command printed last."""
    lines = [line for line in stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise UserError("it printed no JSON object")
    return json.loads(lines[-1])


def read_training(directory: Path, _: str) -> Mapping[str, float]:
    """How long a training took whose `--workdir` is `{out}`."""
    last = read_metrics(directory / "metrics.jsonl")[-1]
    return {"updates": last["updates"], "train_seconds": last["time/train_seconds"]}


def run_paper(paper: Paper) -> NoReturn:
    """The main of a paper's `run.py`."""
    flags.main(lambda config: reproduce(paper, config), ReproduceConfig())


def reproduce(paper: Paper, config: ReproduceConfig) -> int:
    """Does the steps that have no row of their command yet. Raises UserError for keys that no step
    has."""
    steps = [
        step
        for step in paper.steps[config.scale]
        if not config.only or any(fnmatch.fnmatch(step.key, key) for key in config.only)
    ]
    if not steps:
        known = ", ".join(step.key for step in paper.steps[config.scale]) or "none: " + paper.full
        raise UserError(f"{paper.name} at scale {config.scale}: no such steps; there are {known}")
    out = Path(config.out or f"runs/reproduce/{paper.name}/{config.scale}")
    out.mkdir(parents=True, exist_ok=True)
    places = [out / RESULTS, paper.folder / RESULTS] if config.keep else [out / RESULTS]
    held = [_done(path, config.scale) for path in places]
    failed = 0
    with stop_on_signal() as received:
        for number, step in enumerate(steps, 1):
            said = f"{paper.name} {number}/{len(steps)} {step.key}"
            directory = out / step.key.replace("/", "-")
            command = f"./run python -m {step.module} {shlex.join(arguments_of(step, directory))}"
            known = [rows[step.key, command] for rows in held if (step.key, command) in rows]
            if known:
                row = known[0]
                sys.stderr.write(f"{said}: done before\n")
            else:
                sys.stderr.write(f"{said} ...\n")
                row = _do(step, directory, received)
                if "error" not in row:
                    told = ", ".join(
                        f"{name} {value:.5g}" for name, value in row["numbers"].items()
                    )
                    sys.stderr.write(f"{said}: {told} ({row['seconds']:.0f} s)\n")
                    told = {"paper": paper.name, "scale": config.scale, "key": step.key}
                    row = {**told, "numbers": row.pop("numbers"), "command": command, **row}
                elif not received:
                    failed += 1
                    sys.stderr.write(f"{said}: FAILED: {row['error']}\n")
            for path, rows in zip(places, held, strict=True):
                if "error" not in row and (step.key, command) not in rows:
                    sink = JsonlSink(path)
                    sink.write(row)
                    sink.close()
            if received:
                sys.stderr.write("stopped; the same command goes on with what is left\n")
                return 128 + received[0]
    return 1 if failed else 0


def _done(path: Path, scale: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of a file by key and command."""
    rows = read_rows(path)
    return {(row["key"], row["command"]): row for row in rows if row["scale"] == scale}


def arguments_of(step: Step, directory: Path) -> list[str]:
    return [
        argument.replace("{out}", str(directory)).replace("{runs}", str(directory.parent))
        for argument in step.arguments
    ]


def _do(step: Step, directory: Path, received: Sequence[int]) -> dict[str, Any]:
    """What a step has given, or its `error` in one line; `received` as of `stop_on_signal`."""
    directory.mkdir(parents=True, exist_ok=True)
    wait_until_free(directory, received)
    began, log = time.monotonic(), directory / "log.txt"
    before = log.stat().st_size if log.exists() else 0
    executor, passed_on = Local(1, directory, role="reproduce"), 0
    job = executor.start(step.key, ["-m", step.module, *arguments_of(step, directory)], directory)
    while (code := executor.poll(job)) is None:
        if len(received) > passed_on:
            passed_on = len(received)
            executor.stop([job], at_once=passed_on > 1)
        time.sleep(POLL)
    if code:
        return {"error": why_failed(log, code)}
    written = log.read_bytes()[before:].decode(errors="replace")
    try:
        numbers = {name: float(value) for name, value in step.read(directory, written).items()}
    except (KeyError, TypeError, ValueError, OSError) as error:
        return {"error": f"its numbers cannot be read: {type(error).__name__}: {error}"}
    return {
        "numbers": numbers,
        "seconds": time.monotonic() - began,
        "date": datetime.now(UTC).date().isoformat(),
        # What is kept is no code.
        "code": code_version(but=(f"**/{RESULTS}", "docs/*")),
        "machine": machine(),
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Raises RecordError for a damaged file."""
    return read_metrics(path) if path.is_file() else []


def ours(paper: Paper, line: Line, rows: Sequence[Mapping[str, Any]]) -> str:
    """What we measured, in a cell of the table; empty where we did not."""
    if not line.keys:
        return ""
    numbers = [
        row["numbers"].get(line.number, math.nan)
        for row in rows
        if fnmatch.fnmatch(row["key"], line.keys)
    ]
    values = [value for value in numbers if math.isfinite(value)]
    unit = f" {line.unit}" if line.unit else ""
    count = _runs(len(values))
    if lacking := len(numbers) - len(values):
        has = "has" if lacking == 1 else "have"
        count = f"{len(values)} of {len(numbers)} runs; {lacking} {has} none"
    if not values:
        return f"none ({_runs(len(numbers))})" if numbers else ""
    if len(values) < FEW:
        told = " and ".join(show_value(value) for value in values)
        return f"{told}{unit} ({count})"
    found = bootstrap(interquartile_mean, np.array(values)[:, None])
    value, low, high = (show_value(float(each)) for each in (found.value, found.low, found.high))
    return f"{value}{unit} ({low} to {high}, {count})"


def kept_rows(paper: Paper) -> list[dict[str, Any]]:
    """The results in the paper's folder: of the largest scale, and of each step the last."""
    rows = [row for row in read_rows(paper.folder / RESULTS) if row["paper"] == paper.name]
    scale = max((row["scale"] for row in rows), key=SCALES.index, default="")
    return list({row["key"]: row for row in rows if row["scale"] == scale}.values())


def _runs(count: int) -> str:
    return f"{count} run" + ("" if count == 1 else "s")


def _commit(code: Mapping[str, Any]) -> str:
    changed = " with files not committed" if code["dirty"] else ""
    return f"commit {str(code['git_sha'])[:7]}{changed}"


def markdown(paper: Paper) -> str:
    """The paper's section of the page, from the results that are kept in its folder."""
    rows = kept_rows(paper)
    text = [f"## {paper.title}", "", paper.citation, ""]
    text += ["| | published | ours |", "|---|---|---|"]
    text += [
        f"| {line.what} | {line.published} | {ours(paper, line, rows)} |" for line in paper.lines
    ]
    text += ["", f"Published numbers: {paper.source}", ""]
    if rows:
        dates = sorted({row["date"] for row in rows})
        commits = sorted({_commit(row["code"]) for row in rows})
        cpus = sorted({f"{row['machine']['cores']} cores, {row['machine']['cpu']}" for row in rows})
        span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        hours = sum(row["seconds"] for row in rows) / 3600.0
        text += [
            f"Ours: scale {rows[0]['scale']}, {len(rows)} steps in {hours:.1f} h, {span}, at "
            f"{', '.join(commits)}, on {'; '.join(cpus)}. Intervals: 95 %, bootstrap of the "
            "interquartile mean over runs. An empty cell was not run.",
            "",
        ]
    else:
        text += ["No results of these commands are kept yet.", ""]
    text += ["What is different here:", ""]
    text += [f"- {sentence}" for sentence in paper.deviations]
    text += ["", f"Full scale: {paper.full}", ""]
    text += [f"Again: `./run reproduce {paper.name} --scale=small`", ""]
    return "\n".join(text)


def readme(paper: Paper) -> str:
    """The README of the paper's folder."""
    text = [f"# {paper.title}", "", paper.citation, ""]
    text += ["```", f"./run reproduce {paper.name} --scale=small --keep", "```", ""]
    text += [f"Cost of the small scale: {paper.cost} `smoke` checks that every command runs.", ""]
    text += [f"Expected: {paper.expected}", "", "| | published |", "|---|---|"]
    text += [f"| {line.what} | {line.published} |" for line in paper.lines if line.published]
    text += ["", f"Published numbers: {paper.source}", "", "What is different here:", ""]
    text += [f"- {sentence}" for sentence in paper.deviations]
    text += ["", f"Full scale: {paper.full}", ""]
    text += [
        "What was really run stands in `results.jsonl`, where it exists, and in",
        "[docs/reproductions.md](../../../docs/reproductions.md).",
        "",
    ]
    return "\n".join(text)
