"""A chat-completions server on this machine that says what it is told to: for tests and dry runs.

    python -m projects.reward_llm.llm.server --port=8000 --replies=FILE.jsonl

answers each request with the next `text` of the file, over and over (a recording will do), without
any model, key or network. Point a search at it with

    --llm.mode=live --llm.model=local --llm.base_url=http://127.0.0.1:8000/v1
"""

import dataclasses
import itertools
import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from core_rl import flags
from core_rl.errors import UserError
from projects.reward_llm.llm.rows import read_rows
from projects.reward_llm.llm.tokens import estimate_text_tokens, estimate_tokens

MODEL = "local"
LARGEST_REQUEST = 64 * 2**20  # [bytes]


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    port: int = 8000  # on 127.0.0.1; 0 takes a free one
    replies: str = ""  # JSONL file with a text per line

    def __post_init__(self):
        if not 0 <= self.port < 2**16:
            raise ValueError("port must be from 0 to 65535")


class Answer(NamedTuple):
    """What is sent back to one request."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    cut: bool = False  # close the connection in the middle of the body


class Received(NamedTuple):
    path: str
    body: dict[str, Any]
    authorization: str  # only here in memory: it is the key


def reply(
    text: Any, *, finish_reason: str = "stop", usage: Any = (10, 20), delay_s: float = 0.0
) -> Answer:
    """A completion. `usage` is (input, output) tokens, or None to leave it out, or any JSON."""
    if isinstance(usage, tuple):
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        usage = dict(zip(names, (*usage, sum(usage)), strict=True))
    message = {"role": "assistant", "content": text}
    body = {
        "id": "chatcmpl-local",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }
    if usage is not None:
        body["usage"] = usage
    return Answer(_json(body), delay_s=delay_s)


def refusal(
    status: int,
    message: str = "refused",
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    error = {"message": message, "type": "error", "param": param, "code": code}
    return Answer(_json({"error": error}), status, tuple((headers or {}).items()))


def too_many(retry_after: str = "0") -> Answer:
    return refusal(429, "too many requests", headers={"Retry-After": retry_after})


def empty_choices() -> Answer:
    return Answer(_json({"id": "x", "model": MODEL, "choices": []}))


def bad_json() -> Answer:
    return Answer(b'{"choices": [{"message": {"content": "never')


def cut() -> Answer:
    return reply("never read to its end")._replace(cut=True)


class LocalServer:
    """Use it in a `with` block; `base_url` is what a client takes, `received` what it sent.

    `answers` is a function of a request's body, or a sequence whose last entry repeats.
    """

    def __init__(
        self, answers: Sequence[Answer] | Callable[[dict[str, Any]], Answer], *, port: int = 0
    ):
        self._answers = answers
        self._lock = threading.Lock()
        self._closing = threading.Event()  # ends delays early
        self.received: list[Received] = []
        self._server = _Server(("127.0.0.1", port), self._handler())
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "LocalServer":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, received: Received) -> Answer:
        with self._lock:
            number = len(self.received)
            self.received.append(received)
        if callable(self._answers):
            return self._answers(received.body)
        return self._answers[min(number, len(self._answers) - 1)]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        local = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                if self.path == "/v1/models":
                    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": MODEL}
                    self._send(Answer(_json({"object": "list", "data": [model]})))
                else:
                    self._send(refusal(404, f"no {self.path} here"))

            def do_POST(self):
                size = self.headers.get("Content-Length", "")
                if not size.isdigit() or int(size) > LARGEST_REQUEST:
                    self.close_connection = True
                    return self._send(refusal(413, "the request has no length, or is too long"))
                content = self.rfile.read(int(size))
                try:
                    body = json.loads(content)
                    valid = isinstance(body["messages"], list)
                except (ValueError, TypeError, KeyError):
                    valid = False
                if self.path != "/v1/chat/completions":
                    return self._send(refusal(404, f"no {self.path} here"))
                if not valid:
                    return self._send(refusal(400, "the request is no JSON object with messages"))
                authorization = self.headers.get("Authorization", "")
                answer = local.answer(Received(self.path, body, authorization))
                local._closing.wait(answer.delay_s)
                return self._send(answer)

            def _send(self, answer: Answer) -> None:
                try:
                    self.send_response(answer.status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(answer.body)))
                    for name, value in answer.headers:
                        self.send_header(name, value)
                    self.end_headers()
                    if answer.cut:
                        self.wfile.write(answer.body[: len(answer.body) // 2])
                        self.close_connection = True
                    else:
                        self.wfile.write(answer.body)
                except OSError:  # the client has gone, which is its right
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass  # whoever runs this prints what matters

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the default of 5 resets connections of many parallel clients


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def run(config: ServerConfig) -> int:
    texts = ["This server has no replies: start it with --replies=FILE.jsonl."]
    if config.replies:
        texts = [row.get("text") for row in read_rows(Path(config.replies))]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{config.replies}: each line must be an object with a text")
    endless, lock = itertools.cycle(texts), threading.Lock()

    def answer(body: dict[str, Any]) -> Answer:
        with lock:
            text = str(next(endless))
        tokens = estimate_tokens(body["messages"]), estimate_text_tokens(text)
        print(f"{tokens[0]} tokens in, {tokens[1]} out", flush=True)
        return reply(text, usage=tokens)

    with LocalServer(answer, port=config.port) as server:
        print(f"{server.base_url} answers with {len(texts)} replies; Ctrl-C ends it", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    flags.main(run, ServerConfig())
