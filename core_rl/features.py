"""Named scalar features of one environment step: what a designed reward may read.

A task publishes a table of them; the table is JSON, so that a reward can be written and checked
against it without the environment:

    {task: {name: {"unit": ..., "low": ..., "high": ..., "doc": ..., "kind": ...}}}
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from core_rl.errors import UsageError

Kind = Literal["continuous", "flag", "count"]
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
FLAG_UNIT = "0 or 1"


@dataclasses.dataclass(frozen=True)
class Feature:
    unit: str  # physical unit, and per what
    low: float  # smallest value that it takes
    high: float  # largest
    doc: str = ""  # what it is and what its sign means
    kind: Kind = "continuous"  # flag: 0 or 1; count: whole numbers

    def __post_init__(self):
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low must be less than high, got {self.low} and {self.high}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.kind == "flag" and (self.low, self.high) != (0, 1):
            raise ValueError(f"a flag goes from 0 to 1, got {self.low} and {self.high}")


FeatureTable = Mapping[str, Feature]


def read_feature_tables(path: str | Path) -> dict[str, dict[str, Feature]]:
    """The tables of a JSON file, by task. A feature of unit "0 or 1" is a flag if no kind is given.

    Raises UsageError that says what is wrong and where.
    """
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise UsageError(f"cannot read the features {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{path}: expected an object of feature tables by task")
    return {task: _table(table, f"{path}: {task}") for task, table in content.items()}


def feature_table(path: str | Path, task: str) -> dict[str, Feature]:
    """One task's table. Raises UsageError for a file or task that is not there."""
    tables = read_feature_tables(path)
    if task not in tables:
        raise UsageError(f"{path} has no task {task!r}; there is: {', '.join(tables)}")
    return tables[task]


def _table(table: Any, where: str) -> dict[str, Feature]:
    if not isinstance(table, dict) or not table:
        raise UsageError(f"{where}: expected an object of features by name")
    return {name: _feature(name, entry, f"{where}.{name}") for name, entry in table.items()}


def _feature(name: str, entry: Any, where: str) -> Feature:
    if not NAME.fullmatch(name):
        raise UsageError(f"{where}: a feature's name is lower-case letters, digits and _")
    known = {field.name for field in dataclasses.fields(Feature)}
    if not isinstance(entry, dict) or not {"unit", "low", "high"} <= set(entry) <= known:
        raise UsageError(f"{where}: expected unit, low, high and perhaps doc and kind")
    if "kind" not in entry and entry["unit"] == FLAG_UNIT:
        entry = {**entry, "kind": "flag"}
    try:
        return Feature(**{**entry, "low": float(entry["low"]), "high": float(entry["high"])})
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from None
