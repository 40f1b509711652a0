"""How many tokens a prompt may have, without any model's tokenizer."""

import math
from collections.abc import Iterable
from typing import Any

from projects.reward_llm.llm.protocol import Message

BYTES_PER_TOKEN = 3  # of words; English has about 4
MESSAGE_TOKENS = 8  # role and separators of one message, and once more for the reply's
IMAGE_TOKENS = 1600  # most models take fewer for any size


def estimate_tokens(messages: Iterable[Message]) -> int:
    """Tokens of a prompt, on the high side: budgets are reserved from it."""
    total = MESSAGE_TOKENS
    for message in messages:
        total += MESSAGE_TOKENS + _content_tokens(message.get("content", ""))
    return total


def estimate_text_tokens(text: str) -> int:
    """Digits and signs count one each: tables and programs have far shorter tokens than prose."""
    single = sum(character.isascii() and _stands_alone(character) for character in text)
    rest = len(text.encode("utf-8", "replace")) - single
    return single + math.ceil(rest / BYTES_PER_TOKEN)


def _stands_alone(character: str) -> bool:
    return not (character.isalpha() or character.isspace())


def _content_tokens(content: Any) -> int:
    if isinstance(content, str):
        return estimate_text_tokens(content)
    return sum(
        estimate_text_tokens(part.get("text", "")) if part.get("type") == "text" else IMAGE_TOKENS
        for part in content
    )
