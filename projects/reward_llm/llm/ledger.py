"""What language models may cost: reserved before each attempt, settled after it, kept in a file."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from core_rl.tracking import JsonlSink, read_metrics
from projects.reward_llm.llm.protocol import (
    BudgetExceeded,
    ChatClient,
    Completion,
    LLMError,
    Request,
    Usage,
)
from projects.reward_llm.llm.tokens import estimate_tokens

PER_MILLION = 1_000_000


@dataclasses.dataclass(frozen=True)
class Limits:
    """None: no limit. Each has the name of the flag that sets it."""

    max_requests: int | None = None
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    max_usd: float | None = None
    price_in: float | None = None  # [USD per million tokens]
    price_out: float | None = None  # [USD per million tokens]
    max_wall_s: float | None = None


class Spending(NamedTuple):
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def plus(self, other: "Spending") -> "Spending":
        return Spending(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "Spending") -> "Spending":
        return Spending(*(a - b for a, b in zip(self, other, strict=True)))


class Ledger:
    """Spending under limits that parallel attempts cannot pass together.

    `path` gets a row when an attempt is reserved and another when it is settled. Opening it again
    goes on from there; what was reserved and never settled counts as spent, since a killed process
    cannot know what its last requests cost. One process at a time may have it open.
    """

    def __init__(self, limits: Limits, path: Path, *, clock: Callable[[], float] = time.monotonic):
        self._limits = limits
        self._clock = clock
        self._changed = threading.Condition()
        self._spent = Spending()  # settled, or left open by an earlier process
        self._open: dict[int, Spending] = {}
        self._count = 0
        self._earlier_s = 0.0  # of earlier processes
        self._sink = JsonlSink(path)
        self._replay(read_metrics(path))
        self._began = clock()

    def reserve(self, tag: str, input_tokens: int, output_tokens: int) -> int:
        """Sets aside the worst case of one attempt, and returns the number to settle it by.

        Waits while other attempts hold what this one needs and may give it back. Raises
        BudgetExceeded where they cannot.
        """
        worst = Spending(1, input_tokens, output_tokens)
        with self._changed:
            while True:
                refusal = self._refusal(self._spent, worst)
                if refusal:
                    raise BudgetExceeded(refusal)
                if not self._refusal(self._reserved_and_spent(), worst):
                    break
                self._changed.wait()
            number = self._count
            self._write("reserve", number, worst, tag=tag)  # first: a full disk must not spend
            self._count += 1
            self._open[number] = worst
            return number

    def settle(self, number: int, usage: Usage | None, outcome: str) -> None:
        """Replaces a reservation by what was used; None: unknown, so all of it was."""
        with self._changed:
            worst = self._open.pop(number)
            if usage is None:
                used, estimated = worst, True
            else:
                used = Spending(1, usage.input_tokens, usage.output_tokens)
                estimated = usage.estimated
            self._spent = self._spent.plus(used)
            self._changed.notify_all()
            self._write("settle", number, used, estimated=estimated, outcome=outcome)

    def spent(self) -> Spending:
        """Settled and reserved."""
        with self._changed:
            return self._reserved_and_spent()

    def usd(self) -> float | None:
        """Cost of `spent`; None without prices."""
        return self._usd(self.spent())

    def wall_s(self) -> float:
        """Seconds that this process and those before it had the ledger open."""
        return self._earlier_s + self._clock() - self._began

    def time_left_s(self) -> float:
        limit = self._limits.max_wall_s
        return math.inf if limit is None else max(0.0, limit - self.wall_s())

    def close(self) -> None:
        self._sink.close()

    def _replay(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            number = row["number"]
            entry = Spending(*(row[name] for name in Spending._fields))
            if row["event"] == "reserve":
                self._open[number] = entry
            else:
                self._open.pop(number, None)
                self._spent = self._spent.plus(entry)
            self._count = max(self._count, number + 1)
            self._earlier_s = max(self._earlier_s, row["wall_s"])
        self._spent = self._reserved_and_spent()
        self._open.clear()

    def _reserved_and_spent(self) -> Spending:
        total = self._spent
        for entry in self._open.values():
            total = total.plus(entry)
        return total

    def _refusal(self, base: Spending, more: Spending) -> str:
        """Why `more` on top of `base` is not allowed; empty if it is."""
        total = base.plus(more)
        for name in Spending._fields:
            limit = getattr(self._limits, f"max_{name}")
            if limit is not None and getattr(total, name) > limit:
                return (
                    f"max_{name}={limit} would be passed: {getattr(base, name)} are spent, and the "
                    f"next request may need {getattr(more, name)}"
                )
        cost, limit = self._usd(total), self._limits.max_usd
        if limit is not None and cost is not None and cost > limit:
            return (
                f"max_usd={limit} would be passed: {self._usd(base):.4g} are spent, and the next "
                f"request may need {self._usd(more):.4g}"
            )
        if self._limits.max_wall_s is not None and self.time_left_s() <= 0:
            return f"max_wall_s={self._limits.max_wall_s} have passed"
        return ""

    def _usd(self, spending: Spending) -> float | None:
        price_in, price_out = self._limits.price_in, self._limits.price_out
        if price_in is None or price_out is None:
            return None
        cost = spending.input_tokens * price_in + spending.output_tokens * price_out
        return cost / PER_MILLION

    def _write(self, event: str, number: int, entry: Spending, **more: Any) -> None:
        row = {"event": event, "number": number, **entry._asdict(), **more}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._sink.write({**row, "wall_s": round(self.wall_s(), 3), "time": now})


class LedgerClient:
    """Books each call of `inner`, which must be one attempt, in a ledger."""

    def __init__(self, inner: ChatClient, ledger: Ledger):
        self._inner = inner
        self._ledger = ledger
        self.in_order = getattr(inner, "in_order", False)

    def complete(self, request: Request) -> Completion:
        number = self._ledger.reserve(
            request.tag, estimate_tokens(request.messages), request.max_tokens
        )
        usage: Usage | None = None
        outcome = "interrupted"
        try:
            completion = self._inner.complete(request)
            usage, outcome = completion.usage, completion.finish_reason
            return completion
        except LLMError as error:
            usage, outcome = error.usage, type(error).__name__
            raise
        finally:
            self._ledger.settle(number, usage, outcome)
