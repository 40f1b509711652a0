"""What a language model is to this package: requests in, completions out."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from core_rl.errors import UserError

# {"role": "system" | "user" | "assistant", "content": text, or a list of parts as in the
# chat-completions protocol: {"type": "text", ...} and {"type": "image_url", ...}}
Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Request:
    messages: tuple[Message, ...]
    tag: str  # who asks and for what, unique within a search, such as "s0/model/g1/c3/r0"
    temperature: float = 1.0
    max_tokens: int = 4096  # of the completion
    seed: int = 0  # what a server is sent depends on the tag as well


class Usage(NamedTuple):
    input_tokens: int
    output_tokens: int
    estimated: bool = False  # the server did not say


class Completion(NamedTuple):
    text: str
    finish_reason: str  # "stop", "length", or what the server says
    usage: Usage
    model: str
    request_id: str = ""
    date: str = ""  # UTC date on which the model answered; empty when nobody wrote it down
    source: str = ""  # "live", "pending", "scripted", or "replay" of one of these
    exact: bool = (
        True  # false: the reply was given to a prompt with the same tag, not the same text
    )
    dropped: tuple[str, ...] = ()  # parameters that the server refused, and that were not sent


class ChatClient(Protocol):
    def complete(self, request: Request) -> Completion:
        """Raises LLMError."""
        ...


class LLMError(UserError):
    """A request has no completion. A search goes on without it, unless it is one of those below."""

    usage: Usage | None = None  # what the failure cost; None: unknown, so assume the worst


class TransientError(LLMError):
    """The same request may succeed later."""

    retry_after: float | None = None  # [s] what the server asks for


class ParameterDroppedError(TransientError):
    """The server refuses a parameter, which will not be sent again: ask at once."""


class Stop(LLMError):  # noqa: N818 (an order rather than an error)
    """No further request can succeed: the search ends in order, and says why."""

    # What `ask_all` had of the other requests when this one ended the batch; None: not asked.
    answers: Sequence[Completion | LLMError | None] = ()


class AccessDenied(Stop):
    """The server refuses the key, the model or the address."""

    exit_code = 2


class BudgetExceeded(Stop):
    """The next request could spend more than what is allowed."""


class Pending(Stop):
    """Requests wait as files for their replies."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        names: Sequence[str],
        changed: Sequence[str] = (),
    ):
        self.directory = directory
        self.names = tuple(names)  # files are NAME.prompt.md and NAME.reply.md
        self.changed = tuple(changed)  # those of `names` whose reply was to an older prompt
        super().__init__(f"{len(names)} requests wait in {directory}: {self._advice()}")

    def _advice(self) -> str:
        first = self.names[0] if self.names else "NAME"
        advice = (
            "write the answer to each NAME.prompt.md into NAME.reply.md beside it (the first is "
            f"{first}.prompt.md) and run the same command again"
        )
        if self.changed:
            advice += (
                f"; {len(self.changed)} prompts have changed since they were answered, such as "
                f"{self.changed[0]}: their old replies are NAME.reply.superseded-N.md"
            )
        return advice
