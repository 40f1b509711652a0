"""Requests written as files, and replies read from files, where no model can be reached.

`NAME.prompt.md` is all that a person or another program needs to answer; the answer, and nothing
else, goes into `NAME.reply.md` beside it. `model.json` may say who answers:
`{"model": "...", "date": "2026-01-31"}`.
"""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from core_rl.errors import UserError, storage_errors
from core_rl.tracking import write_atomically
from projects.reward_llm.llm.protocol import Completion, Message, Pending, Request, Usage
from projects.reward_llm.llm.tokens import estimate_text_tokens, estimate_tokens

UNNAMED = "unnamed large language model"
MODEL = "model.json"
LONGEST_NAME = 100
PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,(.*)", re.DOTALL)


class PendingClient:
    """Completions from `directory`; a request without one is written there and raises Pending.

    A prompt that has changed since it was answered is asked again: the old reply is moved aside.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        with storage_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)

    def complete(self, request: Request) -> Completion:
        name = file_name(request.tag)
        reply_path = self._directory / f"{name}.reply.md"
        hash_path = self._directory / f"{name}.prompt.sha256"
        prompt, pictures = render_prompt(request, name)
        content = [prompt.encode("utf-8", "replace"), *pictures.values()]
        digest = hashlib.sha256(b"\0".join(content)).hexdigest()
        answered = _read(hash_path).strip()
        reply = _read(reply_path)
        changed = bool(reply.strip() and answered and answered != digest)
        if reply.strip() and not changed:
            return self._completion(request, reply, exact=answered == digest)
        if changed:
            # Before the new prompt is there: after a kill in between, the old reply is no answer.
            with storage_errors(reply_path):
                reply_path.rename(self._superseded(name))
        for picture, data in pictures.items():
            write_atomically(self._directory / picture, data)
        write_atomically(self._directory / f"{name}.prompt.md", content[0])
        write_atomically(hash_path, f"{digest}\n".encode())
        raise Pending(self._directory, [name], [name] if self._superseded_ones(name) else [])

    def _completion(self, request: Request, reply: str, *, exact: bool) -> Completion:
        author = self._author()
        usage = Usage(
            estimate_tokens(request.messages), estimate_text_tokens(reply), estimated=True
        )
        return Completion(
            reply,
            "stop",
            usage,
            author["model"],
            date=author["date"],
            source="pending",
            exact=exact,
        )

    def _author(self) -> dict[str, str]:
        path = self._directory / MODEL
        author: Any = {}
        if path.exists():
            try:
                author = json.loads(path.read_bytes())
            except ValueError:
                author = None
        if not isinstance(author, dict) or any(
            not isinstance(author.get(name, ""), str) for name in ("model", "date")
        ):
            raise UserError(f'{path} must be {{"model": "NAME", "date": "YYYY-MM-DD"}}')
        return {"model": author.get("model", UNNAMED), "date": author.get("date", "")}

    def _superseded(self, name: str) -> Path:
        return self._directory / f"{name}.reply.superseded-{self._superseded_ones(name) + 1}.md"

    def _superseded_ones(self, name: str) -> int:
        pattern = re.compile(re.escape(name) + r"\.reply\.superseded-\d+\.md")
        return sum(pattern.fullmatch(path.name) is not None for path in self._directory.iterdir())


def file_name(tag: str) -> str:
    """A tag as the beginning of a file's name; two tags never get the same one."""
    name = tag.replace("/", ".")
    if re.fullmatch(r"\w[\w/-]*", tag, re.ASCII) and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(tag.encode("utf-8", "replace")).hexdigest()[:12]
    safe = re.sub(r"[^\w-]+", "-", name[:LONGEST_NAME], flags=re.ASCII).strip("-")
    return f"{safe or 'request'}~{digest}"  # a tilde is in no name of the first kind


def render_prompt(request: Request, name: str) -> tuple[str, dict[str, bytes]]:
    """The text of NAME.prompt.md and the pictures, by file name, that it speaks of."""
    pictures: dict[str, bytes] = {}
    parts = [
        f"<!-- request {request.tag}\n"
        f"The reply goes, as it is, into {name}.reply.md beside this file.\n"
        f"It may have up to {request.max_tokens} tokens. "
        f"Sampling: temperature {request.temperature:g}, seed {request.seed}. -->"
    ]
    for message in request.messages:
        parts.append(f"# {message.get('role', 'user')}")
        parts.append(_render_content(message, name, pictures))
    return "\n\n".join(parts) + "\n", pictures


def _render_content(message: Message, name: str, pictures: dict[str, bytes]) -> str:
    content = message.get("content", "")
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        if part.get("type") == "text":
            texts.append(part["text"])
            continue
        url = part.get("image_url", {}).get("url", "")
        match = PICTURE.fullmatch(url)
        if match is None:
            texts.append(f"(a picture: {url[:200]})")
            continue
        picture = f"{name}.picture{len(pictures)}.{match.group(1)}"
        pictures[picture] = base64.b64decode(match.group(2))
        texts.append(f"![the picture {picture}, beside this file]({picture})")
    return "\n\n".join(texts)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
