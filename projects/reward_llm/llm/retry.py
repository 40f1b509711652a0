"""Asking again when a server is busy or a connection breaks."""

import random
import threading
import time
from collections.abc import Callable

from projects.reward_llm.llm.protocol import (
    AccessDenied,
    ChatClient,
    Completion,
    LLMError,
    ParameterDroppedError,
    Request,
    TransientError,
)


class RetryingClient:
    """Asks `inner` up to `1 + retries` times; each of these is an attempt of its own to `inner`.

    Pauses double from `backoff_s` up to `max_backoff_s`, with a jitter that depends on the request
    alone, and are at least what the server asks for, up to `max_backoff_s`.

    The very first attempt goes alone, and the others wait for its end: one refused key is one
    refused request, however many threads ask.
    """

    def __init__(
        self,
        inner: ChatClient,
        *,
        retries: int = 4,
        backoff_s: float = 1.0,
        max_backoff_s: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._inner = inner
        self._retries = retries
        self._backoff_s = backoff_s
        self._max_backoff_s = max_backoff_s
        self._sleep = sleep
        self._first = threading.Lock()
        self._access: bool | str | None = None  # None: not tried yet; a text: why it is denied

    def complete(self, request: Request) -> Completion:
        failures = 0
        while True:
            try:
                return self._attempt(request)
            except ParameterDroppedError:
                continue  # each parameter is dropped once, so this ends
            except TransientError as error:
                failures += 1
                if failures > self._retries:
                    raise LLMError(f"{error} ({failures} attempts)") from None
                pause = self._pause_s(request, failures, error.retry_after)
            self._sleep(pause)

    def _attempt(self, request: Request) -> Completion:
        if self._access is not True:
            with self._first:
                if isinstance(self._access, str):
                    raise AccessDenied(self._access)
                if self._access is None:
                    try:
                        return self._inner.complete(request)
                    except AccessDenied as error:
                        self._access = str(error)
                        raise
                    finally:
                        self._access = self._access or True
        try:
            return self._inner.complete(request)
        except AccessDenied as error:
            self._access = str(error)
            raise

    def _pause_s(self, request: Request, failures: int, retry_after: float | None) -> float:
        jitter = random.Random(f"{request.tag} {request.seed} {failures}").uniform(0.5, 1.0)
        pause = self._backoff_s * 2 ** (failures - 1) * jitter
        return min(self._max_backoff_s, max(pause, retry_after or 0.0))
