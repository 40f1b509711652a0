"""Directories of runs as they are found again: their records, seeds and columns of metrics."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core_rl.errors import UserError
from core_rl.qr_sac import combinations
from core_rl.tracking import RECORD, flatten, is_held, module_of, read_metrics, read_record

METRICS = "metrics.jsonl"
POPULATION = "agent.population"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's directory, read."""

    directory: Path
    record: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def config(self) -> dict[str, Any]:
        """By dotted name, as of the last start: a resume may change how long a run is."""
        starts = [self.record, *self.record["resumes"]]
        return flatten([start["config"] for start in starts if "config" in start][-1])

    @property
    def seeds(self) -> list[int]:
        return self.record.get("seeds") or [int(self.config.get("seed", 0))]

    @property
    def module(self) -> str:
        """The experiment; of older records what was started with `python -m`, empty where it was
        not."""
        return self.record.get("module") or module_of(self.record.get("argv", []))

    @property
    def is_running(self) -> bool:
        """Whether a process holds the directory."""
        return is_held(self.directory)


def read_run(directory: Path) -> Run:
    """Raises UserError where there is no run, or its files are damaged; a last line that is still
    being written is left out."""
    record = read_record(directory)
    if record is None:
        raise UserError(f"{directory}: no run is here, it has no {RECORD}")
    path = directory / METRICS
    return Run(directory, record, read_metrics(path) if path.is_file() else [])


def members_of(run: Run) -> list[Run]:
    """A population as runs of their own, each with its numbers in its configuration and with the
    columns of its seeds; any other run as it is."""
    population = run.config.get(POPULATION)
    if not population:
        return [run]
    changes, num_seeds = combinations(population), len(run.seeds)
    start = [start for start in (run.record, *run.record["resumes"]) if "config" in start][-1]
    members = []
    for number, changed in enumerate(changes):
        own = slice(number * num_seeds, (number + 1) * num_seeds)
        agent = {**start["config"]["agent"], **changed, "population": []}
        config = {**start["config"], "agent": agent}
        rows = [
            {name: value[own] if isinstance(value, list) else value for name, value in row.items()}
            for row in run.rows
        ]
        record = {**run.record, "config": config, "resumes": []}
        members.append(Run(run.directory, record, rows))
    return members


def find_runs(places: Iterable[str]) -> list[Path]:
    """The runs' directories among `places` and below them, in order, each once.

    Raises UserError for a place that does not exist or holds none.
    """
    found: dict[Path, None] = {}
    for place in places:
        path = Path(place).expanduser()
        if not path.is_dir():
            raise UserError(f"{place}: there is no such directory")
        if (path / RECORD).is_file():
            below = [path]
        else:
            below = sorted(record.parent for record in path.rglob(RECORD))
        if not below:
            raise UserError(f"{place}: no run is here or below, none has a {RECORD}")
        found |= dict.fromkeys(below)
    return list(found)
