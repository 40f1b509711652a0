"""What a language model is to this package: requests in, completions out."""

import dataclasses
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
    seed: int = 0


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


class ChatClient(Protocol):
    def complete(self, request: Request) -> Completion:
        """Raises LLMError."""
        ...


class LLMError(UserError):
    """A request has no completion. A search goes on without it, unless it is one of those below."""


class Stop(LLMError):
    """No further request can succeed: the search ends in order, and says why."""


class AccessDenied(Stop):
    """The server refuses the key, the model or the address."""

    exit_code = 2


class BudgetExceeded(Stop):
    """The next request could spend more than what is allowed."""


class Pending(Stop):
    """Requests wait as files for their replies."""
