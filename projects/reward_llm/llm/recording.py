"""Completions kept in a file, and a client that answers from such files."""

import difflib
import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core_rl.errors import UserError
from core_rl.tracking import JsonlSink
from projects.reward_llm.llm.protocol import (
    ChatClient,
    Completion,
    LLMError,
    Message,
    Request,
    Stop,
    Usage,
)
from projects.reward_llm.llm.rows import read_rows

SHOWN = 60  # characters of each side where two prompts part


class Asked(NamedTuple):
    """What tells one request from another; `key` is its hash."""

    tag: str
    model: str
    temperature: float
    max_tokens: int
    seed: int
    extra: dict[str, Any]
    messages: list[Message]

    @property
    def key(self) -> str:
        text = json.dumps(self._asdict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def asked(request: Request, model: str, extra: dict[str, Any] | None = None) -> Asked:
    return Asked(
        request.tag,
        model,
        float(request.temperature),
        request.max_tokens,
        request.seed,
        extra or {},
        [_without_images(message) for message in request.messages],
    )


class RecordingClient:
    """Appends what `inner` answers to `path`, one line per completion.

    With `reuse`, a request that the file holds already is answered from it: a search that was
    killed and goes on does not pay twice for the same reply. Without it, such a reply is asked for
    again, and written again only if it differs. `model` is the one asked for.
    """

    def __init__(
        self,
        inner: ChatClient,
        path: Path,
        *,
        model: str = "",
        extra: dict[str, Any] | None = None,
        reuse: bool = True,
    ):
        self._inner = inner
        self._model = model
        self._extra = extra or {}
        self._reuse = reuse
        self._lock = threading.Lock()
        self._sink = JsonlSink(path)  # also mends a torn last line, so it comes before reading
        self._rows = {row.asked.key: row.completion for row in _read(path)}
        self.in_order = getattr(inner, "in_order", False)

    def complete(self, request: Request) -> Completion:
        question = asked(request, self._model, self._extra)
        known = self._rows.get(question.key)
        if known is not None and self._reuse:
            return known
        completion = self._inner.complete(request)
        with self._lock:
            known = self._rows.get(question.key)
            if known is None or known.text != completion.text:
                self._sink.write(_to_row(question, completion))
                self._rows[question.key] = completion
        return completion

    def close(self) -> None:
        self._sink.close()


class ReplayClient:
    """Answers from recordings: a request that is in them, or else, unless `strict`, its tag.

    A training metric in a prompt may differ in its last digit from one machine to the next. The
    reply recorded under the same tag is then given with `exact=False`. Where the recordings have
    neither, it is an LLMError, and a Stop if `strict`.

    An empty `model` and `extra` stand for those of the recordings.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        model: str = "",
        extra: dict[str, Any] | None = None,
        strict: bool = False,
    ):
        self._strict = strict
        self._where = ", ".join(str(path) for path in paths)
        rows = [row for path in paths for row in _read(Path(path))]
        if not rows:
            raise UserError(f"{self._where}: no replies are recorded there")
        self._by_key = {row.asked.key: row for row in rows}
        self._by_tag = {row.asked.tag: row for row in rows}  # as above, the last one counts
        self._asked_of = []
        for row in rows:
            settings = (model or row.asked.model, extra or row.asked.extra)
            if settings not in self._asked_of:
                self._asked_of.append(settings)

    def complete(self, request: Request) -> Completion:
        questions = [asked(request, model, extra) for model, extra in self._asked_of]
        for question in questions:
            row = self._by_key.get(question.key)
            if row is not None:
                return _replayed(row.completion, exact=True)
        row = self._by_tag.get(request.tag)
        if row is not None and not self._strict:
            return _replayed(row.completion, exact=False)
        error = Stop if self._strict else LLMError
        raise error(self._miss(request, questions))

    def _miss(self, request: Request, questions: list[Asked]) -> str:
        tags = list(self._by_tag)
        near = difflib.get_close_matches(request.tag, tags, 1, cutoff=0.0) or tags[-1:]
        nearest = self._by_tag[near[0]].asked
        pairs = [(difference(nearest, question), question) for question in questions]
        differing, question = min(pairs, key=lambda pair: len(pair[0]))
        return (
            f"no reply to {request.tag} (key {question.key[:12]}) is recorded in {self._where}; "
            f"the nearest is {nearest.tag} (key {nearest.key[:12]}), with another "
            + "; ".join(differing)
        )


def difference(recorded: Asked, now: Asked) -> list[str]:
    """The fields in which two requests differ, each with both values."""
    parts = []
    for name in Asked._fields[:-1]:
        old, new = getattr(recorded, name), getattr(now, name)
        if old != new:
            parts.append(f"{name} (recorded {old!r}, now {new!r})")
    if len(recorded.messages) != len(now.messages):
        parts.append(f"messages ({len(recorded.messages)} recorded, now {len(now.messages)})")
    for k, (old, new) in enumerate(zip(recorded.messages, now.messages, strict=False)):
        for name in sorted({**old, **new}):
            if old.get(name) != new.get(name):
                where = f"messages[{k}].{name}"
                parts.append(f"{where} {_parting(old.get(name), new.get(name))}")
    return parts


class _Row(NamedTuple):
    asked: Asked
    completion: Completion


def _replayed(completion: Completion, *, exact: bool) -> Completion:
    source = f"replay of {completion.source}" if completion.source else "replay"
    return completion._replace(source=source, exact=exact)


def _read(path: Path) -> list[_Row]:
    rows = []
    for number, row in enumerate(read_rows(path), 1):
        try:
            question = Asked(tag=row["tag"], messages=row["messages"], **row["request"])
            usage = Usage(**row["usage"])
            names = ("text", "finish_reason", "model", "date", "source")
            answer = {name: row[name] for name in names}
            dropped = tuple(row.get("dropped", ()))
            completion = Completion(**answer, usage=usage, dropped=dropped)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: line {number} is not a recorded reply: {error}") from None
        if row.get("key") != question.key:
            raise UserError(f"{path}: the request of line {number} was changed after its recording")
        rows.append(_Row(question, completion))
    return rows


def _to_row(question: Asked, completion: Completion) -> dict[str, Any]:
    request = {
        name: getattr(question, name) for name in Asked._fields if name not in ("tag", "messages")
    }
    answer = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "usage": completion.usage._asdict(),
        "model": completion.model,
        "date": completion.date,
        "source": completion.source,
    }
    if completion.dropped:
        answer["dropped"] = list(completion.dropped)
    return {
        "key": question.key,
        "tag": question.tag,
        "request": request,
        "messages": question.messages,
        **answer,
    }


def _without_images(message: Message) -> Message:
    """Pictures by their hash: a recording is text that is committed and read."""
    content = message.get("content")
    if isinstance(content, list | tuple):
        content = [_without_image(part) for part in content]
    return {**message, "content": content}


def _without_image(part: dict[str, Any]) -> dict[str, Any]:
    url = part.get("image_url", {}).get("url", "")
    if not url.startswith("data:"):
        return part
    digest = hashlib.sha256(url.encode()).hexdigest()
    return {**part, "image_url": {**part["image_url"], "url": f"sha256:{digest}"}}


def _parting(old: Any, new: Any) -> str:
    old, new = (each if isinstance(each, str) else json.dumps(each) for each in (old, new))
    at = next((k for k, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
    at = min(len(old), len(new)) if at is None else at
    begin = max(0, at - SHOWN // 3)
    shown = (each[begin : begin + SHOWN] for each in (old, new))
    return "at character {} (recorded {!r}, now {!r})".format(at, *shown)
