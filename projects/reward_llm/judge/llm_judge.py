"""A language model as judge, on summaries in text or on pictures.

It sees the goal and the two clips, and nothing of the rewards: no values, no names of terms, no
code, no ids. What it judges by text is close to the metrics, so such results are partly circular
and are to be labelled so; pictures are better evidence.
"""

import base64
import dataclasses
import hashlib
import json
import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from projects.reward_llm.judge.judging import Place, Reading
from projects.reward_llm.judge.preferences import Clip, JudgeError, plain_png
from projects.reward_llm.llm.ask import ask_all
from projects.reward_llm.llm.protocol import ChatClient, Completion, LLMError, Message, Request

PROMPT = Path(__file__).parents[1] / "prompts" / "judge.txt"
SEPARATOR = "\n=====\n"
LONGEST_REPLY = 4000  # [characters] of a reply that is still read
LONGEST_WHY = 300  # [characters]
# Harmless twins of what could close a data block, open a fence or imitate a chat template.
TWINS = str.maketrans({"<": "‹", ">": "›", "`": "'", "~": "-"})
PICTURES = ("\x00A", "\x00B")  # stand in the text where the pictures belong
FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)


class UnreadableReplyError(JudgeError):
    """The reply is not the JSON object that was asked for; the message is one clause."""


@dataclasses.dataclass(frozen=True)
class LLMJudgeConfig:
    evidence: Literal["text", "picture", "both"] = "text"  # what of a clip is shown
    longest_text: int = 4000  # [characters] of a clip's summary
    longest_goal: int = 2000  # [characters] of the goal
    temperature: float = 0.0  # of the model
    max_tokens: int = 1024  # of a reply; models that think aloud need more
    concurrency: int = 4  # requests under way

    def __post_init__(self):
        for name in ("longest_text", "longest_goal", "max_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")


@dataclasses.dataclass(frozen=True)
class JudgePrompt:
    """The three parts of the prompt's file; `sha256` of the whole file goes into the record."""

    system: str
    user: string.Template
    correction: string.Template
    version: str
    sha256: str


def load_prompt(path: Path = PROMPT) -> JudgePrompt:
    content = path.read_bytes()
    parts = content.decode().split(SEPARATOR)
    if len(parts) != 4:
        raise JudgeError(f"{path} must have four parts, it has {len(parts)}")
    header, system, user, correction = (part.strip() for part in parts)
    found = re.search(r"version (\d+)", header)
    if found is None:
        raise JudgeError(f"{path} does not say its version in its first part")
    templates = string.Template(user), string.Template(correction)
    return JudgePrompt(system, *templates, found[1], hashlib.sha256(content).hexdigest())


def as_data(text: str, limit: int) -> str:
    """Text of unknown origin made fit for a data block of at most `limit` characters.

    Without control and invisible characters, which hide text from people, and without what marks
    the block's end, code or a chat's turns. Lines stay lines.
    """
    text = unicodedata.normalize("NFKC", text.replace("\r\n", "\n").replace("\r", "\n"))
    visible = "".join(
        character
        if character == "\n" or unicodedata.category(character)[0] != "C"
        else " "
        if character == "\t"
        else ""
        for character in text
    )
    visible = visible.translate(TWINS).strip()
    return visible if len(visible) <= limit else visible[: limit - 1] + "…"


def parse_answer(reply: str) -> tuple[Place, str]:
    """The answer and its sentence. One code fence around the object is forgiven, nothing else.

    Raises UnreadableReplyError.
    """
    if len(reply) > LONGEST_REPLY:
        raise UnreadableReplyError(f"it is longer than {LONGEST_REPLY} characters")
    text = reply.strip()
    fenced = FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text, object_pairs_hook=_no_repetition)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnreadableReplyError):
            raise
        raise UnreadableReplyError("it is not one JSON object") from None
    if not isinstance(value, dict) or set(value) != {"answer", "why"}:
        raise UnreadableReplyError('it must be an object with exactly "answer" and "why"')
    if value["answer"] not in ("A", "B", "tie"):
        raise UnreadableReplyError('"answer" must be "A", "B" or "tie"')
    why = value["why"]
    if not isinstance(why, str) or not why.strip():
        raise UnreadableReplyError('"why" must be a sentence')
    return value["answer"], as_data(" ".join(why.split()), LONGEST_WHY)


class LLMJudge:
    """`judging.Judge` by a chat model. `tag` must be unique among the batches of a search.

    `secrets` are words that must not be shown, such as ids of candidates and names of terms; ids
    and policies of the clips always count among them. `log` holds what `read` has asked and got.
    """

    def __init__(
        self,
        client: ChatClient,
        goal: str,
        *,
        config: LLMJudgeConfig | None = None,
        model: str = "",
        tag: str = "judge",
        seed: int = 0,
        secrets: Iterable[str] = (),
        prompt: JudgePrompt | None = None,
    ):
        self._client = client
        self._goal = goal
        self._config = config or LLMJudgeConfig()
        self._model = model
        self._tag = tag
        self._seed = seed
        self._secrets = tuple(secrets)
        self.prompt = prompt or load_prompt()
        self.log: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """Goes into the preferences: who, on which evidence, by which prompt."""
        return f"llm:{self._model or 'unknown'}:{self._config.evidence}:{self.prompt.sha256[:8]}"

    def requests(self, presentations: Sequence[tuple[Clip, Clip]]) -> list[Request]:
        """What is asked about each presentation, the first clip of which stands at place A."""
        return [self._request(k, a, b) for k, (a, b) in enumerate(presentations)]

    def read(self, presentations: Sequence[tuple[Clip, Clip]]) -> list[Reading]:
        """Asks, and asks once more where a reply cannot be read.

        A request without a completion is an unreadable reading; only a Stop is raised.
        """
        requests = self.requests(presentations)
        replies = ask_all(self._client, requests, self._config.concurrency)
        readings = [self._take(*each, 1) for each in zip(requests, replies, strict=True)]
        again = [
            k
            for k, reading in enumerate(readings)
            if reading.answer is None and isinstance(replies[k], Completion)
        ]
        corrections = [self._correction(requests[k], replies[k], readings[k]) for k in again]
        if again:
            second = ask_all(self._client, corrections, self._config.concurrency)
            for k, request, reply in zip(again, corrections, second, strict=True):
                readings[k] = self._take(request, reply, 2)
        return readings

    def _request(self, number: int, a: Clip, b: Clip) -> Request:
        words = {a.id, b.id, a.policy, b.policy, *self._secrets} - {""}
        goal = as_data(self._goal, self._config.longest_goal)
        evidence = [self._evidence(a, PICTURES[0]), self._evidence(b, PICTURES[1])]
        for text in (goal, *evidence):
            for word in sorted(words):
                if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text):
                    raise JudgeError(f"a judge would see {word!r}, which must stay hidden from it")
        text = self.prompt.user.substitute(goal=goal, clip_a=evidence[0], clip_b=evidence[1])
        # as_data leaves no control characters, so the marks of the pictures stand only where meant.
        content: list[dict[str, Any]] = []
        for part in re.split(f"({'|'.join(PICTURES)})", text):
            if part in PICTURES:
                content.append(_picture((a, b)[PICTURES.index(part)]))
            elif part.strip():
                content.append({"type": "text", "text": part.strip()})
        messages: tuple[Message, ...] = (
            {"role": "system", "content": self.prompt.system},
            {
                "role": "user",
                "content": content[0]["text"] if len(content) == 1 else content,
            },
        )
        return Request(
            messages,
            tag=f"{self._tag}/{number:04d}/r0",
            temperature=self._config.temperature,
            max_tokens=self._config.max_tokens,
            seed=self._seed,
        )

    def _evidence(self, clip: Clip, mark: str) -> str:
        shown = []
        if self._config.evidence != "text":
            shown.append(mark)
        if self._config.evidence != "picture":
            text = as_data(clip.text, self._config.longest_text)
            if not text:
                raise JudgeError(f"clip {clip.id} has no text to judge by")
            shown.append(f"<data>\n{text}\n</data>")
        return "\n".join(shown)

    def _correction(
        self, request: Request, reply: Completion | LLMError, reading: Reading
    ) -> Request:
        assert isinstance(reply, Completion)
        messages: tuple[Message, ...] = (
            *request.messages,
            # Some servers refuse an empty message.
            {"role": "assistant", "content": reply.text[:LONGEST_REPLY] or "(nothing)"},
            {"role": "user", "content": self.prompt.correction.substitute(reason=reading.why)},
        )
        tag = request.tag.removesuffix("r0") + "r1"
        return dataclasses.replace(request, messages=messages, tag=tag)

    def _take(self, request: Request, reply: Completion | LLMError, asked: int) -> Reading:
        entry: dict[str, Any] = {"tag": request.tag}
        if isinstance(reply, LLMError):
            reading = Reading(None, str(reply), asked)
            entry["error"] = str(reply)
        else:
            entry |= {"reply": reply.text[:LONGEST_REPLY], "model": reply.model}
            entry["usage"] = reply.usage._asdict()
            try:
                reading = Reading(*parse_answer(reply.text), asked)
            except UnreadableReplyError as error:
                reading = Reading(None, str(error), asked)
                entry["error"] = str(error)
        self.log.append(entry | {"answer": reading.answer})
        return reading


def _picture(clip: Clip) -> dict[str, Any]:
    if clip.picture is None:
        raise JudgeError(f"clip {clip.id} has no picture to judge by")
    data = base64.b64encode(plain_png(clip.picture)).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def _no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise UnreadableReplyError("an entry stands in it twice")
    return dict(pairs)
