"""The record of a search: one JSON line per event, and nothing is done twice.

A search is a sequence of steps, each with a key; what a step found is written when it is found. The
same search over a file that has some of the steps takes them from there and goes on, so a search
can be killed at any moment and resumed, and ends with the same file. Events hold nothing that
changes from run to run, such as times.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from core_rl.tracking import JsonlSink, RecordError, read_metrics


class Archive:
    """Events by key, in the order in which they happened."""

    def __init__(self, path: Path):
        self._sink = JsonlSink(path)
        self._events: dict[str, dict[str, Any]] = {}
        for number, row in enumerate(read_metrics(path), 1):
            if "key" not in row:
                raise RecordError(f"{path}: line {number} is no event of a search")
            self._events[row["key"]] = row

    def __contains__(self, key: str) -> bool:
        return key in self._events

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._events[key]

    def once(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The event `key`: as recorded, or else computed and recorded."""
        if key not in self._events:
            self.add(key, compute())
        return self._events[key]

    def add(self, key: str, event: dict[str, Any]) -> None:
        """Records a new event."""
        if key in self._events:
            raise ValueError(f"{key} is recorded already")
        row = {"key": key, **event}
        self._sink.write(row)
        self._events[key] = row

    def events(self) -> list[dict[str, Any]]:
        return list(self._events.values())

    def close(self) -> None:
        self._sink.close()
