"""The real SDK of OpenAI against a server on this machine that misbehaves in every known way."""

import json
import logging
import os
import socket
import subprocess
import sys
import traceback
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import openai
import pytest

from core_rl.errors import UsageError
from projects.reward_llm.llm import secret, server
from projects.reward_llm.llm.ask import ask_all
from projects.reward_llm.llm.config import LLMConfig, make_client
from projects.reward_llm.llm.ledger import Ledger, LedgerClient, Limits
from projects.reward_llm.llm.openai_client import LARGEST_REPLY, OpenAIClient
from projects.reward_llm.llm.protocol import (
    AccessDenied,
    BudgetExceeded,
    LLMError,
    Request,
    Stop,
    TransientError,
)
from projects.reward_llm.llm.rows import read_rows
from projects.reward_llm.llm.secret import Secret
from projects.reward_llm.llm.server import LocalServer, refusal, reply
from projects.reward_llm.llm.tokens import estimate_text_tokens, estimate_tokens

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-recognisable-0123456789abcdef"
KEY_ENV = "REWARD_LLM_TEST_KEY"


@pytest.fixture(autouse=True)
def no_key_left_over(monkeypatch):
    monkeypatch.setattr(secret, "_taken", {})
    monkeypatch.delenv("OPENAI_LOG", raising=False)


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv(KEY_ENV, KEY)
    return KEY


def request(tag="s0/model/g0/c0/r0", **changes) -> Request:
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Design."})
    return Request(messages, tag, **changes)


def config(local: LocalServer, **changes) -> LLMConfig:
    values = {
        "mode": "live",
        "model": "m",
        "base_url": local.base_url,
        "api_key_env": KEY_ENV,
        "backoff_s": 0.001,
        "max_backoff_s": 0.002,
        **changes,
    }
    return LLMConfig(**values)


def sent_seed(tag: str, seed: int) -> int:
    """CRC-32 of the tag, so that two requests with one prompt do not get one reply."""
    return (zlib.crc32(tag.encode()) + seed) % 2**31


def attempt(local: LocalServer, **changes) -> OpenAIClient:
    """A client whose every failure is seen, since nothing retries."""
    return OpenAIClient(**{"base_url": local.base_url, "model": "m", "key": None, **changes})


def requests_charged(directory: Path) -> int:
    return sum(row["event"] == "settle" for row in read_rows(directory / "ledger.jsonl"))


class TestNetworkGuard:
    def test_refuses_all_but_this_machine(self):
        for address in (("192.0.2.1", 80), ("8.8.8.8", 53)):
            with socket.socket() as outside, pytest.raises(AssertionError, match="tried to reach"):
                outside.settimeout(0.1)
                outside.connect(address)
        with LocalServer([reply("x")]) as local:
            port = int(local.base_url.split(":")[2].split("/")[0])
            socket.create_connection(("127.0.0.1", port), 5).close()


class TestCompletion:
    def test_what_is_sent_and_what_comes_back(self, tmp_path):
        with LocalServer([reply("a reward", usage=(11, 22))]) as local:
            client = make_client(config(local, extra_json='{"top_p": 0.9}'), tmp_path)
            answer = client.complete(request(temperature=0.5, max_tokens=77, seed=3))
        (received,) = local.received
        assert received.body == {
            "model": "m",
            "messages": list(request().messages),
            "max_tokens": 77,
            "temperature": 0.5,
            "seed": sent_seed("s0/model/g0/c0/r0", 3),
            "top_p": 0.9,
        }
        assert (answer.text, answer.finish_reason) == ("a reward", "stop")
        assert answer.usage == (11, 22, False)
        assert (answer.model, answer.source, answer.exact) == ("local", "live", True)
        today = datetime.now(UTC).date()
        assert answer.date in (today.isoformat(), (today - timedelta(1)).isoformat())

    def test_the_field_of_the_limit_is_the_servers(self, tmp_path):
        with LocalServer([reply("x")]) as local:
            settings = config(local, max_tokens_field="max_completion_tokens")
            make_client(settings, tmp_path).complete(request(max_tokens=5))
        assert local.received[0].body["max_completion_tokens"] == 5
        assert "max_tokens" not in local.received[0].body

    def test_pictures_pass_through(self):
        parts = [
            {"type": "text", "text": "What is shown?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        ]
        with LocalServer([reply("a dot")]) as local:
            asked = Request(({"role": "user", "content": parts},), "judge")
            assert attempt(local).complete(asked).text == "a dot"
        assert local.received[0].body["messages"] == [{"role": "user", "content": parts}]

    def test_a_reply_cut_by_its_limit_says_so(self):
        with LocalServer([reply("def rew", finish_reason="length")]) as local:
            assert attempt(local).complete(request()).finish_reason == "length"

    def test_a_refusal_without_content_is_an_empty_reply(self):
        with LocalServer([reply(None, finish_reason="content_filter")]) as local:
            answer = attempt(local).complete(request())
        assert (answer.text, answer.finish_reason) == ("", "content_filter")

    def test_content_in_parts_is_joined(self):
        with LocalServer([reply([{"type": "text", "text": "a"}, {"text": "b"}, 3])]) as local:
            assert attempt(local).complete(request()).text == "ab"

    @pytest.mark.parametrize(
        ("usage", "counts"),
        [
            (None, (None, None)),
            ("many", (None, None)),
            ({"prompt_tokens": -1, "completion_tokens": 20}, (None, 20)),  # would refill a budget
            ({"prompt_tokens": 10, "completion_tokens": True}, (10, None)),
            ({"prompt_tokens": float("nan"), "completion_tokens": 1e300}, (None, None)),
        ],
    )
    def test_usage_that_is_missing_or_impossible_is_estimated(self, usage, counts):
        with LocalServer([reply("twelve chars", usage=usage)]) as local:
            answer = attempt(local).complete(request())
        guesses = estimate_tokens(request().messages), estimate_text_tokens("twelve chars")
        expected = tuple(g if c is None else c for c, g in zip(counts, guesses, strict=True))
        assert answer.usage == (*expected, True)

    def test_fifty_in_parallel_are_answered_and_never_pass_the_cap(self, tmp_path):
        cap, worst, used = 2000, 100, 60
        with LocalServer([reply("x", usage=(10, used))]) as local:
            settings = config(local, max_output_tokens=cap)
            client = make_client(settings, tmp_path)
            requests = [request(str(k), max_tokens=worst) for k in range(50)]
            with pytest.raises(BudgetExceeded, match="max_output_tokens=2000"):
                ask_all(client, requests, 50)
            generated = used * len(local.received)
        assert cap - worst < generated <= cap


class TestFailures:
    @pytest.mark.parametrize(
        "bad",
        [
            server.too_many(),
            refusal(500),
            refusal(503),
            refusal(408),
            refusal(409),
            server.cut(),
            server.bad_json(),
            server.empty_choices(),
            server.Answer(b"[" * 200_000),
            server.Answer(b'{"choices": {"0": 1}}'),
            server.Answer(b'{"choices": [{"message": {"content": 5}}]}'),
            server.Answer(b"\xff\xfe"),
            server.Answer(b""),
            server.Answer(b"null"),
        ],
        ids=lambda bad: f"{bad.status} {bad.body[:30]!r} {'cut' if bad.cut else ''}",
    )
    def test_what_may_pass_is_tried_again_and_each_attempt_charged(self, tmp_path, bad):
        with LocalServer([bad, bad, reply("at last")]) as local:
            assert make_client(config(local), tmp_path).complete(request()).text == "at last"
            assert len(local.received) == 3
        assert requests_charged(tmp_path) == 3

    def test_gives_up_after_the_retries(self, tmp_path):
        with LocalServer([refusal(500, "out of order")]) as local:
            with pytest.raises(LLMError, match=r"500: out of order \(3 attempts\)") as caught:
                make_client(config(local, retries=2), tmp_path).complete(request())
            assert len(local.received) == 3
        assert not isinstance(caught.value, Stop)

    @pytest.mark.parametrize(("header", "seconds"), [("2.5", 2.5), ("0", 0), ("-3", 0)])
    def test_retry_after_is_read_as_seconds(self, header, seconds):
        with LocalServer([server.too_many(header)]) as local:
            with pytest.raises(TransientError) as caught:
                attempt(local).complete(request())
        assert caught.value.retry_after == seconds

    def test_retry_after_is_read_as_date(self):
        # The date is made here, not while tests are collected: that may be an hour earlier.
        header = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
        with LocalServer([server.too_many(header)]) as local:
            with pytest.raises(TransientError) as caught:
                attempt(local).complete(request())
        assert caught.value.retry_after is not None
        assert 3000 <= caught.value.retry_after <= 3601

    @pytest.mark.parametrize("header", ["soon", "nan", "inf", ""])
    def test_a_retry_after_without_sense_is_none(self, header):
        with LocalServer([server.too_many(header)]) as local:
            with pytest.raises(TransientError) as caught:
                attempt(local).complete(request())
        assert caught.value.retry_after is None

    @pytest.mark.parametrize("delay_s", [30.0])
    def test_a_slow_server_is_left(self, delay_s):
        with LocalServer([reply("too late", delay_s=delay_s)]) as local:
            with pytest.raises(TransientError, match=r"within 0\.1 s"):
                attempt(local, timeout_s=0.1).complete(request())

    def test_no_request_lasts_longer_than_the_search_may(self):
        with LocalServer([reply("too late", delay_s=30.0)]) as local:
            with pytest.raises(TransientError, match="no reply"):
                attempt(local, timeout_s=60.0, time_left_s=lambda: 0.1).complete(request())

    def test_the_time_of_the_search_bounds_its_requests(self, tmp_path):
        with LocalServer([reply("too late", delay_s=10.0)]) as local:
            settings = config(local, max_wall_s=0.3, timeout_s=60.0)
            with pytest.raises(BudgetExceeded, match=r"max_wall_s=0\.3 have passed"):
                make_client(settings, tmp_path).complete(request())
            assert len(local.received) <= 3  # a timeout may come just before the end

    def test_a_reply_without_end_is_not_read_to_it(self):
        with LocalServer([reply("x" * (LARGEST_REPLY + 1))]) as local:
            with pytest.raises(TransientError):
                attempt(local).complete(request())

    def test_an_address_without_a_server_costs_requests_and_no_tokens(self, tmp_path):
        with LocalServer([reply("x")]) as local:
            pass  # its port is free again
        ledger = Ledger(Limits(), tmp_path / "ledger.jsonl")
        with pytest.raises(TransientError, match="ConnectError"):
            LedgerClient(attempt(local), ledger).complete(request())
        assert ledger.spent() == (1, 0, 0)

    @pytest.mark.parametrize(
        ("answer", "worst"),
        [(refusal(500), False), (server.cut(), True), (server.bad_json(), True)],
    )
    def test_what_a_failure_costs(self, tmp_path, answer, worst):
        ledger = Ledger(Limits(), tmp_path / "ledger.jsonl")
        with LocalServer([answer]) as local, pytest.raises(TransientError):
            LedgerClient(attempt(local), ledger).complete(request(max_tokens=100))
        prompt = estimate_tokens(request().messages)
        assert ledger.spent() == (1, prompt, 100 if worst else 0)

    @pytest.mark.parametrize(
        ("status", "hint"), [(401, "check the key"), (403, "check the key"), (404, "base_url and")]
    )
    def test_no_access_is_one_request_and_the_end(self, tmp_path, key, status, hint):
        with LocalServer([refusal(status, "not for you")]) as local:
            client = make_client(config(local), tmp_path)
            with pytest.raises(AccessDenied, match=f"{hint}.*{status}: not for you") as caught:
                ask_all(client, [request(str(k)) for k in range(12)], 6)
            with pytest.raises(AccessDenied):
                client.complete(request("later"))
            assert len(local.received) == 1
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(
        "answer", [refusal(402, "pay"), refusal(429, "quota", code="insufficient_quota")]
    )
    def test_no_credit_is_not_tried_again(self, tmp_path, answer):
        with LocalServer([answer]) as local:
            with pytest.raises(Stop, match="no credit"):
                make_client(config(local), tmp_path).complete(request())
            assert len(local.received) == 1

    def test_redirects_are_not_followed(self, tmp_path):
        with LocalServer([reply("stolen")]) as other:
            location = {"Location": f"{other.base_url}/chat/completions"}
            with LocalServer([refusal(307, "over there", headers=location)]) as local:
                with pytest.raises(AccessDenied, match="check base_url"):
                    make_client(config(local), tmp_path).complete(request())
            assert other.received == []

    def test_an_ordinary_bad_request_ends_only_itself(self, tmp_path):
        answers = [refusal(400, "the prompt is too long", param="messages"), reply("fine")]
        with LocalServer(answers) as local:
            client = make_client(config(local), tmp_path)
            with pytest.raises(LLMError, match="too long") as caught:
                client.complete(request())
            assert not isinstance(caught.value, Stop)
            assert client.complete(request("next")).text == "fine"


class TestDroppedParameters:
    @pytest.mark.parametrize(
        "answer",
        [
            refusal(400, "no", param="temperature"),
            refusal(400, "Unsupported value: 'temperature' of this model must be 1."),
            refusal(422, "no", param="temperature"),
        ],
    )
    def test_a_refused_parameter_is_dropped_once_and_noted(self, tmp_path, answer):
        with LocalServer([answer, reply("a"), reply("b")]) as local:
            client = make_client(config(local, mode="record", retries=0), tmp_path)
            assert client.complete(request("0")).dropped == ("temperature",)
            assert client.complete(request("1")).dropped == ("temperature",)
            sent = ["temperature" in received.body for received in local.received]
            assert sent == [True, False, False]
            assert all("seed" in received.body for received in local.received)
        assert requests_charged(tmp_path) == 3
        rows = read_rows(tmp_path / "transcript.jsonl")
        assert [row["dropped"] for row in rows] == [["temperature"]] * 2

    def test_several_are_dropped_one_after_the_other(self, tmp_path):
        def answer(body):
            refused = [name for name in ("seed", "top_p", "temperature") if name in body]
            return refusal(400, "no", param=refused[0]) if refused else reply("plain")

        with LocalServer(answer) as local:
            settings = config(local, extra_json='{"top_p": 1}', retries=0)
            answers = ask_all(make_client(settings, tmp_path), [request(str(k)) for k in range(8)])
        assert [each.text for each in answers] == ["plain"] * 8
        assert set(answers[-1].dropped) == {"seed", "top_p", "temperature"}

    @pytest.mark.parametrize("param", ["max_tokens", None])
    def test_the_limit_of_tokens_is_never_dropped(self, tmp_path, param):
        said = "'max_tokens' is not supported with this model, use 'max_completion_tokens'"
        with LocalServer([refusal(400, said, param=param)]) as local:
            with pytest.raises(Stop, match="max_tokens_field=max_completion_tokens"):
                make_client(config(local), tmp_path).complete(request())
            assert len(local.received) == 1

    @pytest.mark.parametrize("param", ["model", "messages[0].content", "other", ["seed"], 5])
    def test_other_names_are_not_dropped(self, param):
        with LocalServer([refusal(400, "seed", param=param)]) as local:
            with pytest.raises(LLMError) as caught:
                attempt(local).complete(request())
        assert not isinstance(caught.value, TransientError)


class TestKey:
    def test_a_key_travels_in_the_header_and_nowhere_else(self, tmp_path, key, caplog, capfd):
        caplog.set_level(logging.DEBUG)  # of every logger, the SDK's and its transport's as well
        log = tmp_path / "log.txt"
        handler = logging.FileHandler(log)
        logging.getLogger().addHandler(handler)

        def malicious(body):  # a server that gives back what it was sent, wherever it can
            authorization = local.received[-1].authorization
            number = len(local.received)
            if number == 1:
                return refusal(429, f"too many from {authorization}", param=authorization)
            if number == 2:
                return refusal(400, f"temperature {authorization}", param="temperature")
            if number == 3:
                return reply(f"your {authorization}", finish_reason=authorization)
            return refusal(401, f"wrong key {authorization}")

        try:
            with LocalServer(malicious) as local:
                client = make_client(config(local, mode="record"), tmp_path)
                answer = client.complete(request())
                with pytest.raises(AccessDenied) as caught:
                    client.complete(request("denied"))
            logging.getLogger("elsewhere").warning("key %s", key)
            logging.getLogger("elsewhere").warning({"key": key})
            try:
                raise RuntimeError(f"with {key}")
            except RuntimeError:
                logging.getLogger("elsewhere").exception("failed")
        finally:
            logging.getLogger().removeHandler(handler)
            handler.close()
        assert [r.authorization for r in local.received] == [f"Bearer {KEY}"] * 4
        assert "your Bearer [key]" in answer.text
        assert "wrong key Bearer [key]" in str(caught.value)
        shown = "".join(traceback.format_exception(caught.value))
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {path.name for path in files} == {"ledger.jsonl", "transcript.jsonl", "log.txt"}
        texts = [path.read_text() for path in files]
        out, err = capfd.readouterr()
        assert "key [key]" in log.read_text() and "with [key]" in log.read_text()
        assert len(caplog.records) > 10  # the SDK did log
        records = [f"{record.__dict__}" for record in caplog.records]
        for text in [*texts, *records, caplog.text, shown, out, err, repr(answer), repr(client)]:
            assert KEY not in text
        assert caught.value.__cause__ is None and caught.value.__context__ is None

    def test_children_do_not_inherit_it_and_later_clients_still_have_it(self, tmp_path, key):
        with LocalServer([reply("x")]) as local:
            for part in ("policy", "judge"):
                make_client(config(local), tmp_path / part).complete(request())
                program = "import os; print(sorted(os.environ.values()))"
                output = subprocess.run([sys.executable, "-c", program], capture_output=True)
                assert KEY.encode() not in output.stdout and output.returncode == 0
            assert [r.authorization for r in local.received] == [f"Bearer {KEY}"] * 2
        assert KEY_ENV not in os.environ

    def test_the_sdks_own_variables_choose_neither_key_nor_address(self, tmp_path, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", "http://192.0.2.1/v1")
        with LocalServer([reply("x")]) as local:
            make_client(config(local), tmp_path).complete(request())
            assert KEY not in local.received[0].authorization

    def test_a_proxy_gets_nothing_that_stays_on_this_machine(self, tmp_path, monkeypatch):
        with LocalServer([reply("intercepted")]) as proxy, LocalServer([reply("direct")]) as local:
            monkeypatch.setenv("HTTP_PROXY", proxy.base_url.removesuffix("/v1"))
            monkeypatch.delenv("NO_PROXY")
            assert make_client(config(local), tmp_path).complete(request()).text == "direct"

    @pytest.mark.parametrize(
        ("base_url", "has_key", "allowed"),
        [
            ("http://example.org/v1", True, False),
            ("http://example.org/v1", False, True),  # nothing to steal
            ("https://example.org/v1", True, True),
            ("https://example.org/v1", False, False),
            ("http://127.0.0.1:1/v1", False, True),
            ("http://localhost:1/v1", True, True),
            ("http://[::1]:1/v1", True, True),
            ("http://127.0.0.1.example.org/v1", True, False),
            ("http://localhost.example.org/v1", True, False),
            ("https://user:password@example.org/v1", True, False),
        ],
    )
    def test_where_it_may_go(self, base_url, has_key, allowed):
        settings = {"base_url": base_url, "model": "m", "key": Secret(KEY) if has_key else None}
        if allowed:
            OpenAIClient(**settings)
        else:
            with pytest.raises(UsageError) as caught:
                OpenAIClient(**settings)
            assert "password@" not in str(caught.value)

    def test_an_unencrypted_address_may_be_allowed(self):
        OpenAIClient(
            base_url="http://example.org/v1", model="m", key=Secret(KEY), allow_insecure=True
        )

    @pytest.mark.parametrize("value", ["sk-with a space", "sk-\nheader: x", "sk-ünicode"])
    def test_what_no_header_can_hold_is_refused_unseen(self, tmp_path, monkeypatch, value):
        monkeypatch.setenv(KEY_ENV, value)
        with LocalServer([reply("x")]) as local, pytest.raises(UsageError) as caught:
            make_client(config(local), tmp_path)
        assert "sk-" not in str(caught.value) and KEY_ENV in str(caught.value)

    def test_a_secret_shows_itself_to_nobody_by_accident(self):
        hidden = Secret(KEY)
        shown = [repr(hidden), str(hidden), f"{hidden}", f"{[hidden]}", f"{hidden!r:>40}"]
        assert not any(KEY in text for text in shown) and hidden.reveal() == KEY
        with pytest.raises(TypeError):
            __import__("pickle").dumps(hidden)

    def test_placeholders_are_not_cut_out_of_prose(self):
        assert Secret("none").redact("none of it") == "none of it"

    def test_warns_of_the_sdks_debug_log(self, tmp_path, monkeypatch, capsys):
        with LocalServer([reply("x")]) as local:
            make_client(config(local), tmp_path / "a")
            assert capsys.readouterr().err == ""
            monkeypatch.setenv("OPENAI_LOG", "debug")
            make_client(config(local), tmp_path / "b")
        assert "OPENAI_LOG=debug" in capsys.readouterr().err


class TestMaliciousReplies:
    @pytest.mark.parametrize(
        "text",
        [
            "\ud800 half a surrogate pair",
            "\x1b[2J\x00\x07 control characters",
            '", "source": "forged"}\n{"key": "x"}',
            "```python\nimport os\nos.system('true')\n```" * 100,
        ],
    )
    def test_are_recorded_and_replayed_as_texts(self, tmp_path, text):
        with LocalServer([reply(text, finish_reason="\x1b[2J stop\n" * 99)]) as local:
            client = make_client(config(local, mode="record"), tmp_path)
            answer = client.complete(request())
        assert answer.text == text.replace("\ud800", "?")
        assert answer.finish_reason.isprintable() and len(answer.finish_reason) <= 300
        path = tmp_path / "transcript.jsonl"
        path.read_text(encoding="utf-8")
        replay = make_client(LLMConfig(transcripts=(str(path),), strict=True), tmp_path)
        assert replay.complete(request()).text == answer.text


class TestRecordMode:
    def test_goes_on_after_a_kill_without_asking_again(self, tmp_path):
        with LocalServer(lambda body: reply(f"seed {body['seed']}")) as local:
            settings = config(local, mode="record")
            requests = [request(str(k), seed=k) for k in range(6)]
            first = ask_all(make_client(settings, tmp_path), requests[:4])
            path = tmp_path / "transcript.jsonl"
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(lines[:3]) + lines[3][:-20])
            again = ask_all(make_client(settings, tmp_path), requests)
            assert len(local.received) == 4 + 3  # the torn one, and the two that are new
        assert [answer.text for answer in again] == [
            f"seed {sent_seed(str(k), k)}" for k in range(6)
        ]
        assert again[:4] == first
        assert requests_charged(tmp_path) == 7
        replay = LLMConfig(transcripts=(str(path),), strict=True)
        replayed = ask_all(make_client(replay, tmp_path), requests)
        assert [answer.text for answer in replayed] == [answer.text for answer in again]

    def test_a_replay_needs_no_server(self, tmp_path, monkeypatch):
        with LocalServer([reply("once")]) as local:
            make_client(config(local, mode="record"), tmp_path).complete(request())
        monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
        replay = LLMConfig(transcripts=(str(tmp_path / "transcript.jsonl"),))
        assert make_client(replay, tmp_path).complete(request()).text == "once"


class TestServer:
    def test_the_sdk_lists_its_model(self):
        with LocalServer([reply("x")]) as local:
            sdk = openai.OpenAI(api_key="x", base_url=local.base_url, max_retries=0)
            assert [model.id for model in sdk.models.list()] == ["local"]

    @pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"messages": 3}'])
    def test_nonsense_is_a_bad_request(self, body):
        with LocalServer([reply("x")]) as local:
            host = local.base_url.removeprefix("http://").removesuffix("/v1").split(":")
            with socket.create_connection((host[0], int(host[1])), 5) as connection:
                head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)
                assert connection.recv(100).startswith(b"HTTP/1.1 400")
            assert local.received == []

    def test_fifty_connections_at_once(self):
        with LocalServer(lambda body: reply(str(body["seed"]))) as local:
            client = attempt(local)
            with ThreadPoolExecutor(50) as pool:
                texts = pool.map(lambda k: client.complete(request(seed=k)).text, range(50))
                tag = request().tag
                assert list(texts) == [str(sent_seed(tag, k)) for k in range(50)]

    def test_runs_on_its_own_with_a_recording_as_its_script(self, tmp_path):
        replies = tmp_path / "replies.jsonl"
        replies.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", "two")))
        command = [sys.executable, "-m", "projects.reward_llm.llm.server", "--port=0"]
        process = subprocess.Popen(
            [*command, f"--replies={replies}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            base_url = process.stdout.readline().split()[0]
            settings = LLMConfig(mode="live", model="local", base_url=base_url)
            client = make_client(settings, tmp_path)
            texts = [client.complete(request(str(k))).text for k in range(3)]
        finally:
            process.kill()
            process.communicate()
        assert texts == ["one", "two", "one"]
