"""Lists recorded runs, shows one, makes its command again, and clears space.

    ./run python -m experiments.runs                            # all below runs/
    ./run python -m experiments.runs runs/sweeps --filter=agent.n_step=3,train.num_envs=64
    ./run python -m experiments.runs --show=runs/sophy_time_trial
    ./run python -m experiments.runs --replay=runs/sophy_time_trial --workdir=runs/again
    ./run python -m experiments.runs runs/sweeps --prune     # says what it would delete; --yes does

`--replay` writes the command that has the recorded options, whatever the defaults are by now, and
says what is not as it was: versions, commit, device; a run with an option that is gone and was in
use has no such command. `--prune` deletes checkpoints of runs that finished, and directories that
hold nothing but a start; records, metrics and policies stay.
"""

import dataclasses
import importlib
import importlib.metadata
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from core_rl import flags
from core_rl.errors import UsageError, UserError
from core_rl.runs import METRICS, Run, find_runs, read_run
from core_rl.tracking import PRUNED, RECORD, RecordError, code_version, flatten, text_of

# What a run has before its first epoch; a directory with anything else is not only a run's.
START = (RECORD, METRICS, "lock", "wandb", "checkpoints")
SHOWN_PACKAGES = ("jax", "jaxlib", "flax", "optax", "brax", "numpy")


@dataclasses.dataclass(frozen=True)
class RunsConfig:
    places: tuple[str, ...] = ()  # directories of runs, or that hold some; empty: runs
    filter: tuple[str, ...] = ()  # option=value that runs must have
    metric: str = "eval/score"  # column that is listed
    show: str = ""  # a run whose record is printed
    replay: str = ""  # a run, or its record.json, whose command is made again
    workdir: str = ""  # of the replayed run
    start: bool = False  # whether the replayed run starts now
    prune: bool = False  # list what can be deleted
    yes: bool = False  # and delete it
    json: bool = False  # print JSON

    def __post_init__(self):
        for text in self.filter:
            if "=" not in text:
                raise ValueError(f"filter must hold option=value, got {text!r}")
        if self.yes and not self.prune:
            raise ValueError("yes goes with --prune")
        if (self.start or self.workdir) and not self.replay:
            raise ValueError("start and workdir go with --replay")
        if self.start and not self.workdir:
            raise ValueError("start needs --workdir, a directory for the new run")


def state_of(run: Run) -> str:
    """What became of a run, as far as its files tell."""
    if run.is_running:
        return "running"
    if not run.rows:
        return "no epoch"
    wanted, epoch = run.config.get("train.num_epochs"), run.rows[-1].get("epoch")
    return "finished" if wanted is not None and epoch == wanted else "stopped"


def row_of(run: Run, metric: str) -> dict[str, Any]:
    values = [row[metric] for row in run.rows if metric in row]
    return {
        "directory": str(run.directory),
        "module": run.module,
        "started": run.record.get("started", ""),
        "state": state_of(run),
        "epochs": run.rows[-1].get("epoch", 0) if run.rows else 0,
        "seeds": run.seeds,
        "metric": values[-1] if values else None,
        "commit": str(run.record.get("code", {}).get("git_sha") or "")[:7],
    }


def matches(run: Run, wanted: Sequence[str]) -> bool:
    """Whether a run has the values; those of an option that it has not never match."""
    for text in wanted:
        name, _, value = text.partition("=")
        if name not in run.config or text_of(run.config[name]) != value:
            return False
    return True


def read_all(places: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs, and a line for each one that cannot be read."""
    runs, damaged = [], []
    for directory in find_runs(places):
        try:
            runs.append(read_run(directory))
        except RecordError as error:
            damaged.append(str(error))
    return runs, damaged


def show_rows(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    def shown(value: Any) -> str:
        values = value if isinstance(value, list) else [value]
        return " ".join("-" if each is None else f"{each:.4g}" for each in values)

    table = [("directory", "experiment", "started", "state", "epochs", "seeds", metric, "commit")]
    for row in rows:
        seeds = row["seeds"]
        table.append(
            (
                row["directory"],
                row["module"].rpartition(".")[2],
                row["started"][:16],
                row["state"],
                str(row["epochs"]),
                f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}",
                shown(row["metric"]),
                row["commit"],
            )
        )
    widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


def default_of(run: Run) -> Any:
    """The experiment's configuration as it is by default today."""
    if not run.module:
        raise UserError(f"{run.directory}: its record names no module that was started with -m")
    try:
        module = importlib.import_module(run.module)
    except ImportError as error:
        raise UserError(f"{run.directory}: {run.module} cannot be imported: {error}") from None
    if not hasattr(module, "CONFIG"):
        raise UserError(f"{run.directory}: {run.module} has no CONFIG, it is not an experiment")
    return module.CONFIG


def command_of(run: Run, workdir: str) -> tuple[list[str], list[str]]:
    """The flags of a run that are not today's defaults, and what of its options is gone.

    Raises UserError where a value is not allowed any more, and where an option that is gone was in
    use.
    """
    default = default_of(run)
    today, arguments, gone = flags.flatten(default), [], []
    for name, value in run.config.items():
        if name == "workdir":
            continue
        if name not in today:
            gone.append(name)
            continue
        text = text_of(value)
        if text != flags.format_text(today[name]):
            arguments.append(f"--{name}={text}")
    if used := [f"{name}={text_of(run.config[name])}" for name in gone if run.config[name]]:
        raise UserError(f"{run.directory}: no command has its {', '.join(used)} any more")
    if workdir:
        arguments.append(f"--workdir={workdir}")
    made = flags.to_dict(flags.parse(default, arguments))
    asked = {**run.config, "workdir": workdir or today.get("workdir")}
    for name, value in flatten(made).items():
        if name in asked and asked[name] != value:
            raise UserError(f"{run.directory}: {name}={asked[name]} became {value}")
    return arguments, gone


def what_differs(run: Run) -> list[str]:
    """A line for each thing that is not as it was when the run began."""
    lines = []
    code, now = run.record.get("code", {}), code_version()
    if code.get("git_sha") != now["git_sha"]:
        lines.append(f"commit: {code.get('git_sha')} then, {now['git_sha']} now")
    if code.get("dirty"):
        lines.append("code: files then differed from the commit, and are not recorded")
    if now["dirty"]:
        lines.append("code: files differ from the commit now")
    packages = run.record.get("versions", {}).get("packages", {})
    for name in SHOWN_PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "none"
        if name in packages and packages[name] != version:
            lines.append(f"{name}: {packages[name]} then, {version} now")
    device = run.record.get("machine", {}).get("device")
    if device and device != jax.devices()[0].device_kind:
        lines.append(f"device: {device} then, {jax.devices()[0].device_kind} now")
    return lines


def replay(config: RunsConfig) -> int:
    path = Path(config.replay).expanduser()
    run = read_run(path.parent if path.name == RECORD else path)
    if config.workdir and Path(config.workdir).expanduser().joinpath(RECORD).exists():
        raise UserError(f"--workdir={config.workdir}: a run is there already")
    arguments, gone = command_of(run, config.workdir)
    lines = what_differs(run)
    lines += [f"option: {name}={run.config[name]} then, gone now" for name in gone]
    for line in lines:
        sys.stderr.write(f"{line}\n")
    print(f"./run python -m {run.module} {shlex.join(arguments)}".rstrip())
    if not config.start:
        return 0
    return subprocess.call([sys.executable, "-m", run.module, *arguments])


def prunable(run: Run) -> Path | None:
    """What of a run can go: its checkpoints, or all of it where there is nothing but a start."""
    state = state_of(run)
    if state == "no epoch":
        only_start = all(path.name in START for path in run.directory.iterdir())
        return run.directory if only_start else None
    folder = run.directory / "checkpoints"
    return folder if state == "finished" and folder.is_dir() else None


def prune(config: RunsConfig, runs: Sequence[Run]) -> int:
    total = 0
    for run in runs:
        path = prunable(run)
        if path is None:
            continue
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        total += size
        print(f"{'deletes' if config.yes else 'would delete'} {path}  {size / 1e6:.1f} MB")
        if config.yes:
            if path != run.directory:
                (run.directory / PRUNED).touch()
            shutil.rmtree(path)
    print(f"{total / 1e6:.1f} MB" + ("" if config.yes else "; --yes deletes them"))
    return 0


def main(config: RunsConfig) -> int:
    if config.replay:
        return replay(config)
    if config.show:
        record = read_run(Path(config.show).expanduser()).record
        print(json.dumps(record, indent=2))
        return 0
    runs, damaged = read_all(config.places or ("runs",))
    for line in damaged:
        sys.stderr.write(f"{line}\n")
    if config.filter:
        known = {name for run in runs for name in run.config}
        for text in config.filter:
            if text.partition("=")[0] not in known:
                raise UsageError(f"--filter={text}: no run has this option")
        runs = [run for run in runs if matches(run, config.filter)]
    if config.prune:
        return prune(config, runs)
    rows = [row_of(run, config.metric) for run in runs]
    print(json.dumps(rows) if config.json else show_rows(rows, config.metric))
    return 0


if __name__ == "__main__":
    flags.main(main, RunsConfig(), positional="places")
