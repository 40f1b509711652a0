"""One attempt at a chat completion, at any server that speaks the protocol of OpenAI's.

The only file that imports the package openai. What a server sends back is taken for hostile: it is
bounded in size and time, checked field by field, and cleaned of the key, which it could echo.
"""

import json
import math
import os
import re
import sys
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from core_rl.errors import UsageError
from projects.reward_llm.llm.endpoint import check_key_may_travel, is_loopback
from projects.reward_llm.llm.protocol import (
    AccessDenied,
    Completion,
    LLMError,
    ParameterDroppedError,
    Request,
    Stop,
    TransientError,
    Usage,
)
from projects.reward_llm.llm.secret import Secret, hide_in_logs
from projects.reward_llm.llm.tokens import estimate_text_tokens, estimate_tokens

try:
    import httpx2
    import openai
except ImportError:
    raise UsageError(
        "a live language model needs the package openai, of the extra llm: "
        "./run python -m pip install 'openai>=3.51,<4'"
    ) from None

NO_KEY = "no-key-needed"  # the SDK wants one, and local servers ignore it
LARGEST_REPLY = 8 * 2**20  # [bytes]
LONGEST_MESSAGE = 300  # characters that are shown of a server's own words
TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")


class OpenAIClient:
    """Each `complete` sends one HTTP request and never retries by itself.

    A parameter that the server refuses by name raises ParameterDroppedError and is not sent again.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        key: Secret | None,
        timeout_s: float = 120.0,
        max_tokens_field: str = "max_tokens",
        extra: dict[str, Any] | None = None,
        allow_insecure: bool = False,
        time_left_s: Callable[[], float] = lambda: math.inf,
    ):
        check_key_may_travel(base_url, key is not None, allow_insecure)
        if key is not None:
            hide_in_logs(key)
        if os.environ.get("OPENAI_LOG", "").lower() == "debug":
            print("warning: OPENAI_LOG=debug writes whole prompts to the log", file=sys.stderr)
        self._key = key or Secret(NO_KEY)
        self._model = model
        self._timeout_s = timeout_s
        self._time_left_s = time_left_s
        self._max_tokens_field = max_tokens_field
        self._extra = extra or {}
        self._dropped: tuple[str, ...] = ()
        # No redirects: they would take prompts to an address that nobody has named. No proxy for
        # this machine: it would take the key out of it.
        transport = openai.DefaultHttpxClient(
            follow_redirects=False, trust_env=not is_loopback(base_url)
        )
        # The address is given, or else the SDK takes one from an environment variable.
        self._sdk = openai.OpenAI(
            api_key=self._key.reveal(), base_url=base_url, max_retries=0, http_client=transport
        )

    def complete(self, request: Request) -> Completion:
        body = self._body(request)
        failure: LLMError | None = None
        answer = None, ""
        try:
            answer = self._send(body)
        except openai.APIStatusError as error:
            failure = self._refusal(error, request, body)
        except (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError) as error:
            failure = TransientError(f"no reply to {request.tag} within {self._timeout_s:g} s")
            failure.usage = _cost_of_break(error)
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError) as error:
            failure = TransientError(f"no reply to {request.tag}: {self._say(_reason(error))}")
            failure.usage = _cost_of_break(error)
        except (ValueError, RecursionError):
            failure = TransientError(f"the reply to {request.tag} is not JSON")
        if failure is not None:
            # Not in an except block: the SDK's exception holds the request, and so the key.
            raise failure
        return self._completion(request, body, *answer)

    def _body(self, request: Request) -> dict[str, Any]:
        body = {
            "model": self._model,
            "messages": list(request.messages),
            self._max_tokens_field: request.max_tokens,
            "temperature": request.temperature,
            # By the tag: a server that heeds it must not give one prompt the same reply twice.
            "seed": (zlib.crc32(request.tag.encode()) + request.seed) % 2**31,
            **self._extra,
        }
        return {name: value for name, value in body.items() if name not in self._dropped}

    def _send(self, body: dict[str, Any]) -> tuple[Any, str]:
        """The parsed reply and its request id. The time limit is one for the whole reply."""
        limit = min(self._timeout_s, max(0.001, self._time_left_s()))
        end = time.monotonic() + limit
        required = {"model": body["model"], "messages": body["messages"]}
        rest = {name: value for name, value in body.items() if name not in required}
        create = self._sdk.chat.completions.with_streaming_response.create
        with create(**required, extra_body=rest, timeout=limit) as response:
            content = bytearray()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > LARGEST_REPLY:
                    raise ValueError
                if time.monotonic() > end:
                    raise TimeoutError
            return json.loads(content), response.headers.get("x-request-id", "")

    def _completion(
        self, request: Request, body: dict[str, Any], answer: Any, request_id: str
    ) -> Completion:
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):  # some servers answer in parts
            content = "".join(
                str(p["text"]) for p in content if isinstance(p, dict) and "text" in p
            )
        usage = _usage(answer.get("usage"), request, content) if isinstance(answer, dict) else None
        if not isinstance(message, dict) or not (content is None or isinstance(content, str)):
            error = TransientError(f"the reply to {request.tag} holds no message")
            error.usage = usage
            raise error
        assert usage is not None and isinstance(choice, dict)
        return Completion(
            # Half of a surrogate pair is legal in JSON, and in no file.
            text=self._key.redact(content or "").encode("utf-8", "replace").decode(),
            finish_reason=self._say(choice.get("finish_reason") or "unknown"),
            usage=usage,
            model=self._say(answer.get("model") or self._model),
            request_id=self._say(request_id),
            date=datetime.now(UTC).date().isoformat(),
            source="live",
            dropped=tuple(name for name in self._dropped if name not in body),
        )

    def _refusal(
        self, error: openai.APIStatusError, request: Request, body: dict[str, Any]
    ) -> LLMError:
        """What an HTTP status says about this request, and about all others."""
        status = error.status_code
        details = error.body if isinstance(error.body, dict) else {}
        details = details.get("error", details)
        details = details if isinstance(details, dict) else {}
        said = f"{status}: {self._say(details.get('message') or error.message)}"
        address = f"{self._sdk.base_url.host} refuses {self._model}"
        if status in (401, 403, 404) or 300 <= status < 400:
            hint = {401: "the key", 403: "the key", 404: "base_url and model"}.get(
                status, "base_url"
            )
            failure: LLMError = AccessDenied(f"{address}, check {hint} ({said})")
        elif status == 402 or "insufficient_quota" in (error.code, details.get("code")):
            failure = Stop(f"{address}, the account has no credit ({said})")
        elif status in (400, 422):
            failure = self._bad_request(said, details, body)
        elif status in (408, 409, 429) or status >= 500:
            failure = TransientError(said)
            failure.retry_after = _retry_after(error.response.headers)
        else:
            failure = LLMError(said)
        # Some servers charge the prompt of a request that they refuse.
        failure.usage = Usage(estimate_tokens(request.messages), 0, estimated=True)
        return failure

    def _bad_request(self, said: str, details: dict[str, Any], body: dict[str, Any]) -> LLMError:
        optional = [name for name in body if name not in ("model", "messages")]
        named = details.get("param")
        if not named:  # some servers only say it in words
            words = (name for name in optional if _mentions(said, name))
            named = next(words, None)
        if named == self._max_tokens_field:
            # Without it a reply has no bound, and so has no reservation that covers it.
            other = next(name for name in TOKEN_FIELDS if name != named)
            return Stop(f"the server refuses {named}: try max_tokens_field={other} ({said})")
        if named not in optional:
            return LLMError(said)
        if named not in self._dropped:
            self._dropped = (*self._dropped, named)
        return ParameterDroppedError(f"{named} is not sent again ({said})")

    def _say(self, text: Any) -> str:
        """A server's words as one short printable line without the key."""
        line = "".join(c for c in " ".join(str(text).split()) if c.isprintable())
        return self._key.redact(line)[:LONGEST_MESSAGE]


def _usage(usage: Any, request: Request, content: Any) -> Usage:
    """What the server says it was; an estimate of what it does not say, or cannot mean."""
    known = usage if isinstance(usage, dict) else {}
    read, written = _count(known.get("prompt_tokens")), _count(known.get("completion_tokens"))
    estimated = read is None or written is None
    if read is None:
        read = estimate_tokens(request.messages)
    if written is None:
        bound = request.max_tokens
        written = min(bound, estimate_text_tokens(content)) if isinstance(content, str) else bound
    return Usage(read, written, estimated)


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text) is not None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None  # a bool is no count


def _retry_after(headers: Any) -> float | None:
    """Seconds from a Retry-After header, which holds a number or a date."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _chain(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__
    return chain


def _reason(error: BaseException) -> str:
    """What the transport says, which is more than the SDK's `Connection error.`"""
    chain = _chain(error)
    inner = next((each for each in chain if isinstance(each, httpx2.HTTPError)), chain[-1])
    return f"{type(inner).__name__}: {inner}"


def _cost_of_break(error: BaseException) -> Usage | None:
    """Nothing, if no connection was made; else the model may have answered in full."""
    unsent = (httpx2.ConnectError, httpx2.ConnectTimeout)
    return Usage(0, 0) if any(isinstance(each, unsent) for each in _chain(error)) else None
