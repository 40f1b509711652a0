"""Many requests at once, answered in order."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from projects.reward_llm.llm.protocol import (
    ChatClient,
    Completion,
    LLMError,
    Pending,
    Request,
    Stop,
)


def ask_all(
    client: ChatClient, requests: Sequence[Request], concurrency: int = 4
) -> list[Completion | LLMError]:
    """What became of each request, in their order; at most `concurrency` are asked at a time.

    A Stop is raised after those under way have ended, and carries what they gave in `answers`;
    requests not yet begun are left. Only Pending lets all begin, since each writes its prompt: the
    one that is raised names all that wait.
    """
    ended = threading.Event()

    def ask(request: Request) -> Completion | LLMError | None:
        if ended.is_set():
            return None
        try:
            return client.complete(request)
        except LLMError as error:
            if isinstance(error, Stop) and not isinstance(error, Pending):
                ended.set()
            return error
        except BaseException:  # a defect of this program: no request should follow it
            ended.set()
            raise

    # A script is read from top to bottom, so its order must not depend on threads.
    workers = 1 if getattr(client, "in_order", False) else min(concurrency, len(requests))
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="llm") as pool:
        futures = [pool.submit(ask, request) for request in requests]
        try:
            wait(futures)
        except BaseException:  # Ctrl-C in this thread: begin nothing more
            ended.set()
            raise
    answers = [future.result() for future in futures]
    _raise_stop(answers)
    return [answer for answer in answers if answer is not None]


def _raise_stop(answers: Sequence[Completion | LLMError | None]) -> None:
    stops = [answer for answer in answers if isinstance(answer, Stop)]
    if not stops:
        return
    pending = [stop for stop in stops if isinstance(stop, Pending)]
    stop = next((stop for stop in stops if stop not in pending), None)
    if stop is None:
        stop = Pending(
            pending[0].directory,
            [name for each in pending for name in each.names],
            [name for each in pending for name in each.changed],
        )
    stop.answers = answers
    raise stop
