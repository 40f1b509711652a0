"""Runs a Weights & Biases sweep file without a server: on this machine, or on a cluster.

    ./run python -m experiments.sweep --file=experiments/sweeps/n_step.yaml --workers=2
    ./run python -m experiments.sweep --file=... --executor=slurm --workers=16 --partition=cpu

The file is W&B's own (`program`, `method`, `metric`, `parameters`, `run_cap`), its parameters'
names are our flags, and the `sweeps` package proposes the cells as the server would; `wandb sweep`
and `wandb agent` run the same file. What a grid varies in consecutive seeds, and in numbers that a
compiled program takes (`core_rl.qr_sac.Hypers`), is trained side by side in one process and with
one compilation (`--novmap` keeps it apart).

Every cell is a directory with a run of its own, `OUT/cells/000` and so on, with `cell.json` and
`log.txt`. A sweep that was stopped or killed goes on with the same command: finished cells stay as
they are, unfinished ones resume from their checkpoints. A file that asks for something else than
`OUT/sweep.json` is refused, more cells are not. A cell that fails is told with its reason and stops
no other; `--retry` runs failed ones again.
"""

import dataclasses
import importlib
import json
import math
import random
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from core_rl import flags
from core_rl.errors import UsageError, UserError
from core_rl.qr_sac import Hypers, combinations
from core_rl.runs import METRICS, POPULATION, members_of, read_run
from core_rl.tracking import (
    RecordError,
    changed,
    encode_json,
    flatten,
    is_held,
    open_workdir,
    read_metrics,
    write_json,
)
from experiments.executors import (
    EXECUTORS,
    POLL,
    Executor,
    Grant,
    Job,
    interrupted,
    stop_on_signal,
    why_failed,
)

METHODS = ("grid", "random", "bayes")
GOALS = {"maximize": 1.0, "minimize": -1.0}
KEYS = ("program", "method", "metric", "parameters", "run_cap", "command", "name", "description")
RECORD = "sweep.json"
EPOCHS = "train.num_epochs"  # the flag of how long a run is


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    file: str = ""  # the sweep, YAML
    out: str = ""  # directory of the cells; empty: runs/sweeps/NAME, as the file is called
    workers: int = 2  # cells that run at once
    cells: int = 0  # at most so many in all; 0: the file's run_cap, or the whole grid
    vmap: bool = True  # seeds and numbers that need no other program are trained by one process
    retry: bool = False  # whether failed cells run again
    seed: int = 0  # of the proposals where they are random
    executor: Literal["local", "slurm", "ray"] = "local"
    partition: str = ""  # of the cluster; empty: its default
    hours: float = 4.0  # that a cluster grants a cell, which resumes in the next sweep
    cpus: int = 1  # that a cluster grants a cell
    gpus: int = 0  # that a cluster grants a cell
    json: bool = False  # print one JSON object

    def __post_init__(self):
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.cells < 0 or self.seed < 0:
            raise ValueError(f"cells and seed must not be negative, got {self.cells}, {self.seed}")
        if self.cpus < 1 or self.gpus < 0:
            raise ValueError(
                f"cpus and gpus must be at least 1 and 0, got {self.cpus}, {self.gpus}"
            )
        if not self.hours > 0:
            raise ValueError(f"hours must be positive, got {self.hours}")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep file, checked."""

    module: str  # the experiment
    defaults: Any  # its configuration
    plan: dict[str, Any]  # what the `sweeps` package wants
    metric: str
    sign: float  # 1 where the metric should be large
    cap: int  # cells at most, 0: the whole grid
    side_by_side: dict[str, list[Any]]  # what each cell trains all values of, by parameter


@dataclasses.dataclass
class Cell:
    """A proposal and what became of it, as in its `cell.json`."""

    directory: Path
    parameters: dict[str, Any]
    state: Literal["waiting", "running", "finished", "failed"] = "waiting"
    reason: str = ""  # why it failed, or finished early
    best: float | None = None  # of the metric

    def save(self) -> None:
        told = dataclasses.asdict(self)
        del told["directory"]
        if self.best is not None and not math.isfinite(self.best):
            told["best"] = None
        write_json(self.directory / "cell.json", told)

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def arguments(self) -> list[str]:
        return arguments_of(self.parameters)


def arguments_of(parameters: dict[str, Any]) -> list[str]:
    """Flags for parameters, in the form that `wandb agent` writes them."""
    return [f"--{name}={value}" for name, value in parameters.items()]


def read_sweep(path: str, vmap: bool) -> Sweep:
    """Raises UserError with one line for a file that no sweep can be made of."""
    try:
        plan = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(plan, dict):
        raise UserError(f"{path}: a sweep file holds {', '.join(KEYS[:4])}")
    for key in plan:
        if key not in KEYS:
            raise UserError(f"{path}: {key!r} is not supported; allowed are {', '.join(KEYS)}")
    for key in ("program", "method", "parameters"):
        if key not in plan:
            raise UserError(f"{path}: {key} is missing")
    if plan["method"] not in METHODS:
        raise UserError(f"{path}: method must be {', '.join(METHODS)}, got {plan['method']!r}")
    parameters = {
        name: _mapping(path, f"parameters.{name}", entry, "{values: [1, 2]}")
        for name, entry in _mapping(
            path, "parameters", plan["parameters"], "{seed: {values: [1, 2]}}"
        ).items()
    }
    plan["parameters"] = parameters
    metric = _mapping(path, "metric", plan.get("metric"), "{name: eval/score, goal: maximize}")
    cap = plan.get("run_cap") or 0
    if not isinstance(cap, int) or cap < 0:
        raise UserError(f"{path}: run_cap must be a whole number, got {cap!r}")
    if plan["method"] == "bayes" and "name" not in metric:
        raise UserError(f"{path}: method bayes needs a metric with a name and a goal")
    goal = metric.get("goal", "maximize")
    if goal not in GOALS:
        raise UserError(f"{path}: metric.goal must be {' or '.join(GOALS)}, got {goal!r}")
    module, defaults = _experiment(path, str(plan["program"]))
    known = flags.flatten(defaults)
    side_by_side = _fold(plan, known) if vmap else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's, of how the package is written
        import sweeps
    asked = {key: plan[key] for key in ("method", "metric", "parameters") if key in plan}
    if violations := sweeps.schema_violations_from_proposed_config(asked):
        raise UserError(f"{path}: {'; '.join(violations)}")
    for name, entry in parameters.items():
        if plan["method"] == "grid" and not {"value", "values"} & set(entry):
            raise UserError(
                f"{path}: parameters.{name} must have value or values in a grid, got {entry}"
            )
        if name not in known:
            # The experiment's own words, which name the nearest flag.
            try:
                flags.parse(defaults, [f"--{name}=0"])
            except UsageError as error:
                raise UserError(f"{path}: {module} has no such parameter: {error}") from None
    return Sweep(
        module=module,
        defaults=defaults,
        plan=asked,
        metric=str(metric.get("name", "")),
        sign=GOALS[goal],
        cap=cap,
        side_by_side=side_by_side,
    )


def _mapping(path: str, name: str, value: Any, example: str) -> dict[str, Any]:
    """A part of the file that holds others; empty where it is not there."""
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path}: {name} must be a mapping such as {example}, got {value!r}")
    return dict(value or {})


def _experiment(path: str, program: str) -> tuple[str, Any]:
    """The module that a sweep runs, named as such or by its file, and its default configuration."""
    name = program.removesuffix(".py").replace("/", ".").lstrip(".")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{path}: program {program!r} cannot be imported: {error}") from None
    if not hasattr(module, "CONFIG"):
        raise UserError(f"{path}: program {program!r} has no CONFIG, it is not an experiment")
    return name, module.CONFIG


def _fold(plan: dict[str, Any], known: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Puts what one process can train side by side into one parameter of the plan, and returns the
    values by the parameters that they were."""
    parameters = plan["parameters"]
    if plan["method"] != "grid":
        return {}
    folded = {}
    seeds = parameters.get("seed", {}).get("values") or []
    if len(seeds) > 1 and isinstance(seeds[0], int) and "num_seeds" not in parameters:
        if seeds == list(range(seeds[0], seeds[0] + len(seeds))):
            folded["seed"] = seeds
            parameters["seed"] = {"value": seeds[0]}
            parameters["num_seeds"] = {"value": len(seeds)}
    if POPULATION in known and POPULATION not in parameters:
        numbers = {
            name: values
            for name in (f"agent.{field}" for field in Hypers._fields)
            if len(values := parameters.get(name, {}).get("values") or []) > 1
            and all(isinstance(value, int | float) for value in values)
        }
        if numbers:
            members = [
                (name.removeprefix("agent."), float(value))
                for name, values in numbers.items()
                for value in values
            ]
            for name in numbers:
                del parameters[name]
            parameters[POPULATION] = {"value": flags.format_text(tuple(members))}
            folded |= numbers
    return folded


def read_cells(sweep: Sweep, out: Path, retry: bool) -> list[Cell]:
    """The cells that have been proposed, in order; what was running waits again."""
    cells = []
    for directory in sorted((out / "cells").glob("*")):
        path = directory / "cell.json"
        if not path.is_file():
            continue  # a kill came before anything was proposed here
        try:
            cell = Cell(directory, **json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise RecordError(f"{path} is damaged: {error}") from None
        if cell.state == "running" or (retry and cell.state == "failed"):
            cell.state, cell.reason = "waiting", ""
        cells.append(cell)
    for cell in cells:
        if unknown := set(cell.parameters) - set(sweep.plan["parameters"]):
            raise RecordError(
                f"{cell.directory}: this sweep has no parameter {sorted(unknown)[0]}; its file has "
                "changed: choose another --out"
            )
    return cells


def next_name(cells: list[Cell]) -> str:
    """Of a new cell's directory; one that was deleted leaves a gap."""
    numbers = [int(cell.name) for cell in cells if cell.name.isdecimal()]
    return f"{max(numbers, default=-1) + 1:03d}"


def keep_identity(sweep: Sweep, seed: int, out: Path) -> None:
    """Notes in `out` what the sweep asks for; only the number of its cells may change later.

    Raises UserError where the cells that are there were asked for otherwise.
    """
    asked = encode_json(
        {
            "program": sweep.module,
            "method": sweep.plan["method"],
            "metric": sweep.metric,
            "goal": next(goal for goal, sign in GOALS.items() if sign == sweep.sign),
            "parameters": sweep.plan["parameters"],
            "side_by_side": sweep.side_by_side,
            "seed": seed,
        }
    )
    path = out / RECORD
    if not path.is_file():
        write_json(path, asked)
        return
    try:
        old, new = flatten(json.loads(path.read_bytes())), flatten(asked)
    except (ValueError, AttributeError) as error:
        raise RecordError(f"{path} is damaged: {error}") from None
    differing = [
        f"{name} {old.get(name, 'absent')} (now {new.get(name, 'absent')})"
        for name in changed(old, new)
    ]
    if differing:
        raise RecordError(
            f"{out}: this sweep was started with {', '.join(differing[:3])}: repeat that, or "
            "choose another --out"
        )


def propose(sweep: Sweep, cells: list[Cell], seed: int) -> dict[str, Any] | None:
    """The parameters of the next cell, or None where there is none."""
    import sweeps

    states = {"waiting": "running", "running": "running", "finished": "finished"}
    runs = []
    for cell in cells:
        told = {} if cell.best is None else {sweep.metric: cell.best}
        runs.append(
            sweeps.SweepRun(
                name=cell.name,
                config={name: {"value": value} for name, value in cell.parameters.items()},
                state=sweeps.RunState(states.get(cell.state, "failed")),
                summaryMetrics=told,
                sampledHistory=[told] if told else [],
            )
        )
    # The package draws from NumPy's and Python's own generators: the same cell, the same draw.
    np.random.seed((seed * 1_000_003 + len(cells)) % 2**32)
    random.seed(seed * 1_000_003 + len(cells))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proposal = sweeps.next_run(sweep.plan, runs)
    if proposal is None:
        return None
    return {name: plain(entry["value"]) for name, entry in proposal.config.items()}


def plain(value: Any) -> Any:
    """What JSON holds of a NumPy number."""
    return value.item() if isinstance(value, np.generic) else value


def grid_size(sweep: Sweep) -> int:
    """Cells of the whole grid; 0 where a method has no end."""
    if sweep.plan["method"] != "grid":
        return 0
    return math.prod(len(entry.get("values", [0])) for entry in sweep.plan["parameters"].values())


def best_of(sweep: Sweep, directory: Path) -> float | None:
    """The metric of a run at its best, the mean over its seeds; None before it has one. Of a
    population, the best member's.

    Raises RecordError for a damaged file.
    """
    values = [value for value in bests_of(sweep, directory) if value is not None]
    return max(values, key=lambda value: sweep.sign * value, default=None)


def bests_of(sweep: Sweep, directory: Path) -> list[float | None]:
    """The same of every member of a run's population, in order of `members`."""
    if not sweep.metric or not (directory / METRICS).is_file():
        return [None] * len(members(sweep))
    best: list[float | None] = []
    for run in members_of(read_run(directory)):
        rows = [row[sweep.metric] for row in run.rows if sweep.metric in row]
        values = [sweep.sign * float(np.mean(np.asarray(row, float))) for row in rows]
        values = [value for value in values if math.isfinite(value)]
        best.append(sweep.sign * max(values) if values else None)
    return best


def members(sweep: Sweep) -> list[dict[str, Any]]:
    """What the members of a cell's population have of their own; one that has nothing where there
    is no population."""
    return combinations(
        (name, value)
        for name, values in sweep.side_by_side.items()
        if name != "seed"
        for value in values
    )


def apart(sweep: Sweep, cell: Cell) -> list[Cell]:
    """The cell as it would be without a population: one for each member, of the same directory."""
    try:
        bests = bests_of(sweep, cell.directory)
    except UserError:  # its metrics are damaged, which it says itself
        bests = [None] * len(members(sweep))
    parameters = {name: value for name, value in cell.parameters.items() if name != POPULATION}
    return [
        dataclasses.replace(cell, parameters={**parameters, **own}, best=best)
        for own, best in zip(members(sweep), bests, strict=True)
    ]


def ended_early(sweep: Sweep, cell: Cell) -> str:
    """Why a run that ended in order has not all its epochs; empty where it has."""
    config = flags.flatten(flags.parse(sweep.defaults, cell.arguments))
    path = cell.directory / "metrics.jsonl"
    if EPOCHS not in config or not path.is_file():
        return ""
    epoch = max((row.get("epoch", 0) for row in read_metrics(path)), default=0)
    wanted = config[EPOCHS]
    return f"time was up at epoch {epoch} of {wanted}" if epoch < wanted else ""


class Overview:
    """What is going on, in one line: it changes in place on a terminal, else it is written anew
    when a cell ends."""

    def __init__(self, sweep: Sweep, total: int):
        self._sweep, self._total = sweep, total
        self._began, self._live = time.monotonic(), sys.stderr.isatty()

    def text(self, cells: list[Cell], ended_now: int) -> str:
        count = {state: sum(cell.state == state for cell in cells) for state in _STATES}
        done = count["finished"] + count["failed"]
        total = self._total or max(len(cells), done)
        parts = [f"{done} of {total} cells done", f"{count['running']} running"]
        if count["failed"]:
            parts.append(f"{count['failed']} failed")
        ranked = ranking(self._sweep, cells)
        if ranked:
            parts.append(f"best {self._sweep.metric} {ranked[0].best:.4g} (cell {ranked[0].name})")
        if ended_now and self._total:
            seconds = (time.monotonic() - self._began) / ended_now * (total - done)
            parts.append(f"ETA {int(seconds // 60)}:{int(seconds % 60):02d}")
        return ", ".join(parts)

    def show(self, text: str, ended: bool) -> None:
        if self._live:
            sys.stderr.write(f"\r\x1b[2K{text}" + ("\n" if ended else ""))
        elif ended:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


_STATES = ("waiting", "running", "finished", "failed")


def ranking(sweep: Sweep, cells: list[Cell]) -> list[Cell]:
    """Cells that have a metric, the best first."""
    told = [cell for cell in cells if cell.best is not None]
    return sorted(told, key=lambda cell: -sweep.sign * float(cell.best or 0.0))


def run_cells(config: SweepConfig, sweep: Sweep, out: Path, executor: Executor) -> list[Cell]:
    """Runs what is left of a sweep and returns all its cells; stops in order on a signal."""
    cells = read_cells(sweep, out, config.retry)
    cap = config.cells or sweep.cap
    whole = grid_size(sweep)
    total = min(whole, cap) if whole and cap else whole or cap
    overview, running, ended_now = Overview(sweep, total), {}, 0
    exhausted, passed_on = False, 0
    left: set[str] = set()  # cells that somebody else has interrupted: not again in this sweep
    told: set[str] = set()
    with stop_on_signal() as received:
        while True:
            held = False
            while len(running) < config.workers and not received:
                idle = [cell for cell in cells if cell.state == "waiting" and cell.name not in left]
                waiting = next((cell for cell in idle if not is_held(cell.directory)), None)
                if idle and waiting is None:
                    held = True  # a process of a sweep that was killed ends first
                    if idle[0].name not in told:
                        told.add(idle[0].name)
                        where = idle[0].directory
                        overview.show(f"{where} is still in use; it begins after that", ended=True)
                    break
                if waiting is None:
                    if exhausted or (cap and len(cells) >= cap):
                        break
                    parameters = propose(sweep, cells, config.seed)
                    if parameters is None:
                        exhausted = True
                        break
                    directory = out / "cells" / next_name(cells)
                    directory.mkdir(parents=True, exist_ok=True)
                    waiting = Cell(directory, parameters)
                    waiting.save()
                    cells.append(waiting)
                waiting.state = "running"
                waiting.save()
                running[waiting.name] = (waiting, _begin(sweep, waiting, executor))
            if not running and not held:
                break
            if len(received) > passed_on:
                passed_on = len(received)
                executor.stop([job for _, job in running.values()], at_once=passed_on > 1)
            time.sleep(POLL)
            for cell, job in list(running.values()):
                code = executor.poll(job)
                if code is None:
                    continue
                del running[cell.name]
                if code == 0:
                    cell.state, cell.reason = "finished", ""
                elif interrupted(code) or passed_on > 1:
                    cell.state = "waiting"  # it goes on next time
                    if not received:
                        left.add(cell.name)
                        overview.show(f"cell {cell.name} was interrupted", ended=True)
                else:
                    cell.state = "failed"
                    cell.reason = why_failed(cell.directory / "log.txt", code)
                try:
                    cell.best = best_of(sweep, cell.directory)
                    if cell.state == "finished":
                        cell.reason = ended_early(sweep, cell)
                except UserError as error:  # of its metrics; it stops no other cell
                    cell.state, cell.reason = "failed", str(error)
                cell.save()
                ended_now += cell.state != "waiting"
                if cell.state == "failed":
                    overview.show(f"cell {cell.name} failed: {cell.reason}", ended=True)
                overview.show(overview.text(cells, ended_now), ended=True)
            overview.show(overview.text(cells, ended_now), ended=False)
    if received or left:
        sys.stderr.write("stopped; the same command goes on with the unfinished cells\n")
    return cells


def _begin(sweep: Sweep, cell: Cell, executor: Executor) -> Job:
    command = ["-m", sweep.module, *cell.arguments, f"--workdir={cell.directory}"]
    return executor.start(cell.name, command, cell.directory)


def saved_side_by_side(cells: list[Cell], count: int) -> float:
    """Seconds of compilation that training `count` side by side has saved, by the first epoch's
    time over the others'."""
    saved = 0.0
    for cell in cells:
        path = cell.directory / "metrics.jsonl"
        if cell.state != "finished" or not path.is_file():
            continue
        ends = [row["time/train_seconds"] for row in read_metrics(path)]
        if len(ends) > 2:
            usual = float(np.median(np.diff(ends)))
            saved += (count - 1) * max(ends[0] - usual, 0.0)
    return saved


def check_arguments(sweep: Sweep, cells: list[Cell], path: str, seed: int) -> None:
    """Raises UserError where the experiment does not take the first proposal's values, or another
    of those that the file lists."""
    parameters = (cells[0].parameters if cells else propose(sweep, [], seed)) or {}
    others = [
        {**parameters, name: value}
        for name, entry in sweep.plan["parameters"].items()
        for value in entry.get("values", ())
    ]
    for proposal in (parameters, *others):
        try:
            flags.parse(sweep.defaults, arguments_of(proposal))
        except UsageError as error:
            raise UserError(f"{path}: {sweep.module} does not take a proposal: {error}") from None


def main(config: SweepConfig) -> int:
    if not config.file:
        raise UsageError("--file is missing: name a sweep file, such as experiments/sweeps/*.yaml")
    sweep = read_sweep(config.file, config.vmap)
    if sweep.plan["method"] != "grid" and not (config.cells or sweep.cap):
        raise UsageError(
            f"{config.file}: method {sweep.plan['method']} has no end: name --cells, or run_cap in "
            "the file"
        )
    directory = config.out or f"runs/sweeps/{Path(config.file).stem}"
    with open_workdir(directory) as out:
        check_arguments(sweep, read_cells(sweep, out, False), config.file, config.seed)
        keep_identity(sweep, config.seed, out)
        if sweep.side_by_side:
            told = " x ".join(
                f"{len(values)} of {name}" for name, values in sweep.side_by_side.items()
            )
            sys.stderr.write(
                f"a cell trains {told} side by side in one program (--novmap: apart)\n"
            )
        grant = Grant(config.partition, config.hours, config.cpus, config.gpus)
        executor = EXECUTORS[config.executor](config.workers, out, grant)
        cells = run_cells(config, sweep, out, executor)
    if sweep.side_by_side and any(cell.state == "finished" for cell in cells):
        count = math.prod(len(values) for values in sweep.side_by_side.values())
        seconds = saved_side_by_side(cells, count)
        sys.stderr.write(f"that has saved {seconds:.0f} s of compilation\n")
    each = [part for cell in cells for part in apart(sweep, cell)]
    ranked = ranking(sweep, each)
    unranked = [cell for cell in each if cell.best is None]
    if config.json:
        rows = [
            {"cell": str(cell.directory), "state": cell.state, "reason": cell.reason}
            | {"parameters": cell.parameters, "best": cell.best}
            for cell in [*ranked, *unranked]
        ]
        print(json.dumps({"metric": sweep.metric, "cells": rows}))
    else:
        varied = [name for name, entry in sweep.plan["parameters"].items() if "value" not in entry]
        varied += [name for name in sweep.side_by_side if name != "seed"]
        for cell in [*ranked, *unranked]:
            value = "" if cell.best is None else f"{cell.best:.5g}"
            told = " ".join(f"--{name}={cell.parameters[name]}" for name in varied)
            print(f"{cell.directory}  {cell.state:8}  {value:>10}  {told}  {cell.reason}".rstrip())
    unfinished = sum(cell.state != "finished" for cell in cells)
    return 1 if unfinished else 0


if __name__ == "__main__":
    flags.main(main, SweepConfig())
