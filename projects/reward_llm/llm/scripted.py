"""A language model that says what it is told to, for tests and dry runs."""

import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from core_rl.errors import UsageError
from projects.reward_llm.llm.protocol import Completion, Request, Stop, Usage
from projects.reward_llm.llm.rows import read_rows
from projects.reward_llm.llm.tokens import estimate_text_tokens, estimate_tokens

Reply = str | Completion | Exception


class ScriptedClient:
    """Answers with `replies` one after the other, or with what `replies(request)` returns.

    An exception among them is raised. `requests` holds what was asked. The end of a sequence is a
    Stop. A sequence is read in the order of the calls, so `ask_all` calls one at a time.
    """

    def __init__(
        self, replies: Sequence[Reply] | Callable[[Request], Reply], *, model: str = "scripted"
    ):
        self._replies = replies
        self._model = model
        self._lock = threading.Lock()
        self.in_order = not callable(replies)
        self.requests: list[Request] = []

    def complete(self, request: Request) -> Completion:
        with self._lock:
            count = len(self.requests)
            self.requests.append(request)
        if callable(self._replies):
            reply = self._replies(request)
        elif count < len(self._replies):
            reply = self._replies[count]
        else:
            raise Stop(
                f"the script has {len(self._replies)} replies, and {request.tag} asks for one more"
            )
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, Completion):
            return reply
        tokens = estimate_tokens(request.messages), estimate_text_tokens(reply)
        return Completion(
            reply, "stop", Usage(*tokens, estimated=True), self._model, source="scripted"
        )


def read_script(paths: Sequence[str]) -> Callable[[Request], str]:
    """Replies from JSONL files with a `text` per line, and perhaps the `tag` that it answers.

    Where no line has the request's tag, the tag chooses among all lines: which reply a request
    gets depends neither on the order of the requests nor on what a killed run has asked before.
    """
    rows = [row for path in paths for row in read_rows(Path(path))]
    if not rows or any(not isinstance(row.get("text"), str) for row in rows):
        raise UsageError(f"{', '.join(paths)}: each line must be an object with a text")
    by_tag = {row["tag"]: row["text"] for row in rows if "tag" in row}

    def reply(request: Request) -> str:
        if request.tag in by_tag:
            return by_tag[request.tag]
        return rows[zlib.crc32(request.tag.encode()) % len(rows)]["text"]

    return reply
