"""Which language model a search asks, and what it may cost."""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from core_rl.errors import UsageError, storage_errors
from projects.reward_llm.llm.endpoint import check_base_url
from projects.reward_llm.llm.ledger import Ledger, LedgerClient, Limits
from projects.reward_llm.llm.pending import PendingClient
from projects.reward_llm.llm.protocol import ChatClient, Message, Request
from projects.reward_llm.llm.recording import RecordingClient, ReplayClient
from projects.reward_llm.llm.retry import RetryingClient
from projects.reward_llm.llm.scripted import ScriptedClient, read_script
from projects.reward_llm.llm.secret import take_key

LEDGER = "ledger.jsonl"
TRANSCRIPT = "transcript.jsonl"
PENDING = "pending"

# Fields that have flags of their own, or that change how a reply is charged or read.
NOT_EXTRA = ("model", "messages", "max_tokens", "max_completion_tokens", "n", "stream")


Mode = Literal["replay", "live", "record", "scripted", "pending"]
TokensField = Literal["max_tokens", "max_completion_tokens"]


@dataclasses.dataclass(frozen=True)
class LLMConfig:
    """A language model; nothing is sent anywhere unless mode is live or record."""

    mode: Mode = "replay"  # recordings, a server, a server and record it, a script, or files
    base_url: str = "https://api.openai.com/v1"  # any server of OpenAI's chat completions
    model: str = ""  # its name at that server; in replay empty takes that of the recordings
    api_key_env: str = "OPENAI_API_KEY"  # NAME of the environment variable with the key
    transcripts: tuple[str, ...] = ()  # recordings to replay, or replies of a script (JSONL)
    strict: bool = False  # replay only replies to the very same prompt, not to the same tag
    temperature: float = 1.0  # of sampling
    max_tokens: int = 4096  # of one reply
    max_tokens_field: TokensField = "max_tokens"  # what that server calls it
    extra_json: str = ""  # JSON object of more fields of each request
    concurrency: int = 4  # requests at a time
    timeout_s: float = 120.0  # [s] for one reply
    retries: int = 4  # further attempts at a request that fails for a while
    backoff_s: float = 1.0  # [s] pause before the first retry; doubles each time
    max_backoff_s: float = 60.0  # [s] longest pause, also where the server asks for a longer one
    max_requests: int | None = 500  # attempts, in all
    max_input_tokens: int | None = 5_000_000  # of all prompts
    max_output_tokens: int | None = 2_000_000  # of all replies
    max_usd: float | None = None  # [USD] in all; needs both prices
    price_in: float | None = None  # [USD per million tokens] of prompts
    price_out: float | None = None  # [USD per million tokens] of replies
    max_wall_s: float | None = None  # [s] of the search; no request begins later
    allow_insecure: bool = False  # send the key over plain http to another machine

    def __post_init__(self):
        check_base_url(self.base_url)
        if self.mode in ("live", "record") and not self.model:
            raise ValueError(f"model must be named in mode {self.mode}")
        # In capitals, which keys are not: one given here by mistake must not get into records.
        if re.fullmatch(r"[A-Z_][A-Z0-9_]{0,60}", self.api_key_env) is None:
            raise ValueError(
                "api_key_env must be the NAME of an environment variable, in capitals, not the key"
            )
        for name in ("max_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("retries", "backoff_s", "max_backoff_s", "temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative")
        if not 0 < self.timeout_s < math.inf:
            raise ValueError("timeout_s must be positive and finite")
        for field in dataclasses.fields(Limits):
            value = getattr(self, field.name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{field.name} must be finite and not negative, or none")
        if self.max_usd is not None and None in (self.price_in, self.price_out):
            raise ValueError("max_usd needs price_in and price_out: no prices are built in")
        taken = set(NOT_EXTRA) & set(self.extra())
        if taken:
            raise ValueError(f"extra_json cannot set {', '.join(sorted(taken))}")

    def extra(self) -> dict[str, Any]:
        try:
            extra = json.loads(self.extra_json) if self.extra_json else {}
        except ValueError:
            extra = None
        if not isinstance(extra, dict):
            raise ValueError("extra_json must be a JSON object, such as '{\"top_p\": 0.9}'")
        return extra

    def limits(self) -> Limits:
        return Limits(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Limits)}
        )

    def request(self, messages: Sequence[Message], tag: str, seed: int = 0) -> Request:
        return Request(tuple(messages), tag, self.temperature, self.max_tokens, seed)


def make_client(config: LLMConfig, directory: Path) -> ChatClient:
    """What `config` asks for; its files are in `directory`, one for each search.

    live, record, scripted: `ledger.jsonl`. record, pending: `transcript.jsonl`, which replay takes.
    pending: `pending/`. Raises UsageError where the configuration lacks something.
    """
    extra = config.extra()
    if config.mode in ("replay", "scripted") and not config.transcripts:
        raise UsageError(f"transcripts must name JSONL files in mode {config.mode}")
    if config.mode == "replay":
        paths = config.transcripts
        return ReplayClient(paths, model=config.model, extra=extra, strict=config.strict)
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    if config.mode == "pending":
        # What files say now counts, so replies are read from them each time.
        return RecordingClient(
            PendingClient(directory / PENDING),
            directory / TRANSCRIPT,
            model=config.model,
            extra=extra,
            reuse=False,
        )
    ledger = Ledger(config.limits(), directory / LEDGER)
    if config.mode == "scripted":
        return LedgerClient(ScriptedClient(read_script(config.transcripts)), ledger)
    client = _live_client(config, extra, ledger)
    if config.mode == "record":
        client = RecordingClient(client, directory / TRANSCRIPT, model=config.model, extra=extra)
    return client


def _live_client(config: LLMConfig, extra: dict[str, Any], ledger: Ledger) -> ChatClient:
    # Here, so that all other modes work without the package openai.
    from projects.reward_llm.llm.openai_client import OpenAIClient

    attempt = OpenAIClient(
        base_url=config.base_url,
        model=config.model,
        key=take_key(config.api_key_env),
        timeout_s=config.timeout_s,
        max_tokens_field=config.max_tokens_field,
        extra=extra,
        allow_insecure=config.allow_insecure,
        time_left_s=ledger.time_left_s,
    )
    # The ledger is inside the retries, so that each attempt is reserved and charged.
    return RetryingClient(
        LedgerClient(attempt, ledger),
        retries=config.retries,
        backoff_s=config.backoff_s,
        max_backoff_s=config.max_backoff_s,
    )
