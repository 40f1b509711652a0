"""Language models without a server: scripts, recordings, waiting files, retries, the ledger."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core_rl import flags
from core_rl.errors import UsageError, UserError
from projects.reward_llm.llm.ask import ask_all
from projects.reward_llm.llm.config import LLMConfig, make_client
from projects.reward_llm.llm.ledger import Ledger, LedgerClient, Limits, Spending
from projects.reward_llm.llm.pending import PendingClient, file_name
from projects.reward_llm.llm.protocol import (
    AccessDenied,
    BudgetExceeded,
    Completion,
    LLMError,
    Pending,
    Request,
    Stop,
    TransientError,
    Usage,
)
from projects.reward_llm.llm.recording import RecordingClient, ReplayClient
from projects.reward_llm.llm.retry import RetryingClient
from projects.reward_llm.llm.rows import read_rows
from projects.reward_llm.llm.scripted import ScriptedClient
from projects.reward_llm.llm.tokens import IMAGE_TOKENS, estimate_text_tokens, estimate_tokens

ROOT = Path(__file__).resolve().parents[2]
PNG = "data:image/png;base64,iVBORw0KGgo="


def request(tag="s0/model/g0/c0/r0", text="Design a reward.", **changes) -> Request:
    messages = (
        {"role": "system", "content": "You write rewards."},
        {"role": "user", "content": text},
    )
    return Request(messages, tag, **changes)


def completion(text="reply", usage=None, **changes) -> Completion:
    usage = usage or Usage(10, 20)
    return Completion(text, "stop", usage, "m-1", date="2026-01-31", source="live", **changes)


def picture_request() -> Request:
    parts = [
        {"type": "text", "text": "What is shown?"},
        {"type": "image_url", "image_url": {"url": PNG}},
    ]
    return Request(({"role": "user", "content": parts},), "judge/0")


class TestTokens:
    def test_numbers_count_digit_by_digit(self):
        # Several tokenizers give each digit a token; words have three letters per token or more.
        assert estimate_text_tokens("0.12345") == 7
        assert estimate_text_tokens("abcdef") == 2
        assert estimate_text_tokens("") == 0

    def test_other_scripts_are_counted_by_bytes(self):
        assert estimate_text_tokens("速度速度") >= 4

    def test_a_picture_is_a_constant(self):
        message = picture_request().messages[0]
        without = {**message, "content": message["content"][:1]}
        assert estimate_tokens([message]) - estimate_tokens([without]) == IMAGE_TOKENS

    def test_each_message_has_an_overhead(self):
        empty = {"role": "user", "content": ""}
        assert estimate_tokens([empty, empty]) > estimate_tokens([empty]) > estimate_tokens([]) > 0


class TestAskAll:
    def test_answers_stand_in_the_order_of_the_requests(self):
        second_done = threading.Event()

        def reply(asked):
            if asked.tag == "0":
                assert second_done.wait(10)  # the first can only end after the second
            second_done.set()
            return f"to {asked.tag}"

        answers = ask_all(ScriptedClient(reply), [request("0"), request("1")], 2)
        assert [answer.text for answer in answers] == ["to 0", "to 1"]

    def test_never_more_at_a_time_than_allowed(self):
        lock, running, most = threading.Lock(), set(), []
        barrier = threading.Barrier(3)

        def reply(asked):
            with lock:
                running.add(asked.tag)
                most.append(len(running))
            barrier.wait(10)  # passes only if three run at once
            with lock:
                running.remove(asked.tag)
            return "x"

        ask_all(ScriptedClient(reply), [request(str(k)) for k in range(9)], 3)
        assert max(most) == 3

    def test_an_ordinary_error_takes_the_place_of_its_answer(self):
        client = ScriptedClient(["a", LLMError("no"), "c"])
        first, error, third = ask_all(client, [request(str(k)) for k in range(3)], 3)
        assert (first.text, third.text) == ("a", "c")
        assert isinstance(error, LLMError) and str(error) == "no"

    def test_a_script_is_read_in_order_through_any_wrapper(self, tmp_path):
        texts = [str(k) for k in range(30)]
        ledger = Ledger(Limits(), tmp_path / "ledger.jsonl")
        client = RecordingClient(LedgerClient(ScriptedClient(texts), ledger), tmp_path / "t.jsonl")
        answers = ask_all(client, [request(str(k)) for k in range(30)], 8)
        assert [answer.text for answer in answers] == texts

    def test_a_stop_ends_the_batch_and_keeps_what_was_answered(self):
        client = ScriptedClient(["a", BudgetExceeded("enough"), "c", "d"])
        with pytest.raises(BudgetExceeded, match="enough") as caught:
            ask_all(client, [request(str(k)) for k in range(4)], 1)
        assert caught.value.answers[0].text == "a"
        assert caught.value.answers[2:] == [None, None] and len(client.requests) == 2

    def test_a_stop_waits_for_those_under_way(self):
        stopped, ended = threading.Event(), []

        def reply(asked):
            if asked.tag == "stop":
                stopped.set()
                raise Stop("over")
            assert stopped.wait(10)
            ended.append(asked.tag)
            return "late"

        with pytest.raises(Stop) as caught:
            ask_all(ScriptedClient(reply), [request("slow"), request("stop")], 2)
        assert ended == ["slow"] and caught.value.answers[0].text == "late"

    def test_a_defect_is_not_an_answer(self):
        def reply(asked):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ask_all(ScriptedClient(reply), [request()])

    def test_nothing_asked_is_nothing_answered(self):
        assert ask_all(ScriptedClient([]), []) == []


class TestScripted:
    def test_says_its_replies_and_then_stops(self):
        client = ScriptedClient(["a", completion("b"), LLMError("no")])
        assert client.complete(request("0")).text == "a"
        assert client.complete(request("1")) == completion("b")
        with pytest.raises(LLMError, match=r"^no$"):
            client.complete(request("2"))
        with pytest.raises(Stop, match="3 replies, and t3 asks"):
            client.complete(request("t3"))
        assert [asked.tag for asked in client.requests] == ["0", "1", "2", "t3"]

    def test_a_function_may_return_an_exception(self):
        with pytest.raises(Stop, match="by hand"):
            ScriptedClient(lambda asked: Stop("by hand")).complete(request())

    def test_of_files_depends_on_tags_and_not_on_order(self, tmp_path):
        script = tmp_path / "script.jsonl"
        rows = [{"text": f"reply {k}"} for k in range(5)] + [{"tag": "known", "text": "mine"}]
        script.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = LLMConfig(mode="scripted", transcripts=(str(script),))
        tags = [f"g0/c{k}" for k in range(20)]
        ahead = make_client(config, tmp_path / "a")
        back = make_client(config, tmp_path / "b")
        first = {tag: ahead.complete(request(tag)).text for tag in tags}
        second = {tag: back.complete(request(tag)).text for tag in reversed(tags)}
        assert first == second and len(set(first.values())) > 1
        assert ahead.complete(request("known")).text == "mine"


class TestRecording:
    def test_comes_back_as_it_went_in(self, tmp_path):
        path = tmp_path / "t.jsonl"
        reply = completion('Grüße "inf" \u2028 ```', dropped=("seed",), request_id="r-1")
        RecordingClient(ScriptedClient([reply]), path, model="m").complete(request())
        for model in ("", "m"):
            replayed = ReplayClient([path], model=model, strict=True).complete(request())
            assert replayed == reply._replace(source="replay of live", request_id="")

    @pytest.mark.parametrize("text", ["inf", "nan", "", "\n"])
    def test_replies_that_look_like_numbers_stay_texts(self, tmp_path, text):
        path = tmp_path / "t.jsonl"
        RecordingClient(ScriptedClient([text]), path).complete(request())
        assert ReplayClient([path]).complete(request()).text == text

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"text": "Design 2 rewards."}, r"messages\[1\].content at character 7"),
            ({"temperature": 0.5}, r"temperature \(recorded 1.0, now 0.5\)"),
            ({"max_tokens": 7}, r"max_tokens \(recorded 4096, now 7\)"),
            ({"seed": 3}, r"seed \(recorded 0, now 3\)"),
        ],
    )
    def test_another_request_under_the_same_tag(self, tmp_path, changes, field):
        path = tmp_path / "t.jsonl"
        RecordingClient(ScriptedClient(["reply"]), path).complete(request())
        loose = ReplayClient([path]).complete(request(**changes))
        assert (loose.text, loose.exact) == ("reply", False)
        strict = ReplayClient([path], strict=True)
        assert strict.complete(request()).exact
        with pytest.raises(Stop, match=field):
            strict.complete(request(**changes))

    def test_a_miss_names_the_nearest_tag_and_what_differs(self, tmp_path):
        path = tmp_path / "t.jsonl"
        client = RecordingClient(ScriptedClient(["a", "b"]), path)
        ask_all(client, [request("s0/g1/c3"), request("judge")])
        with pytest.raises(LLMError, match=r"nearest is s0/g1/c3 .*tag \(recorded") as caught:
            ReplayClient([path]).complete(request("s0/g1/c4"))
        assert not isinstance(caught.value, Stop)  # the search goes on without this one
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("settings", [{"model": "other"}, {"extra": {"top_p": 0.5}}])
    def test_a_named_model_or_field_must_be_the_recorded_one(self, tmp_path, settings):
        path = tmp_path / "t.jsonl"
        RecordingClient(ScriptedClient(["a"]), path, model="m", extra={"top_p": 1}).complete(
            request()
        )
        assert ReplayClient([path], strict=True).complete(request()).text == "a"
        with pytest.raises(Stop, match=next(iter(settings))):
            ReplayClient([path], strict=True, **settings).complete(request())

    def test_several_files_are_one_recording(self, tmp_path):
        paths = [tmp_path / f"{k}.jsonl" for k in range(2)]
        for k, path in enumerate(paths):
            RecordingClient(ScriptedClient([f"reply {k}"]), path, model=f"m{k}").complete(
                request(str(k))
            )
        client = ReplayClient(paths, strict=True)
        assert [client.complete(request(str(k))).text for k in range(2)] == ["reply 0", "reply 1"]

    def test_a_search_that_goes_on_does_not_pay_twice(self, tmp_path):
        path = tmp_path / "t.jsonl"
        RecordingClient(ScriptedClient(["first"]), path).complete(request())
        inner = ScriptedClient(["second"])
        client = RecordingClient(inner, path)
        assert client.complete(request()).text == "first"
        assert inner.requests == []
        assert client.complete(request("another")).text == "second"
        assert len(read_rows(path)) == 2

    @pytest.mark.parametrize("kept", [0, 1, 40, -1])
    def test_a_torn_last_line_is_left_out_and_mended(self, tmp_path, kept):
        path = tmp_path / "t.jsonl"
        ask_all(RecordingClient(ScriptedClient(["a", "b"]), path), [request("0"), request("1")])
        lines = path.read_bytes().splitlines(keepends=True)
        torn = lines[1][:-1][:kept]
        path.write_bytes(lines[0] + torn)
        assert ReplayClient([path]).complete(request("0")).text == "a"
        with pytest.raises(LLMError):
            ReplayClient([path], strict=True).complete(request("1"))
        RecordingClient(ScriptedClient(["c"]), path).complete(request("1"))
        assert [row["text"] for row in read_rows(path)] == ["a", "c"]
        assert path.read_bytes().startswith(lines[0])

    def test_parallel_writers_keep_whole_lines(self, tmp_path):
        path = tmp_path / "t.jsonl"
        client = RecordingClient(ScriptedClient(lambda asked: asked.tag * 500), path)
        ask_all(client, [request(str(k)) for k in range(100)], 16)
        assert sorted(int(row["tag"]) for row in read_rows(path)) == list(range(100))

    def test_pictures_are_kept_as_hashes_and_still_tell_requests_apart(self, tmp_path):
        path = tmp_path / "t.jsonl"
        RecordingClient(ScriptedClient(["a dot"]), path).complete(picture_request())
        assert "iVBOR" not in path.read_text() and "sha256:" in path.read_text()
        client = ReplayClient([path], strict=True)
        assert client.complete(picture_request()).text == "a dot"
        other = json.loads(json.dumps(picture_request().messages).replace("iVBOR", "jVBOR"))
        with pytest.raises(Stop):
            client.complete(Request(tuple(other), "judge/0"))

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda row: row["messages"][1].update(content="x"), "line 1 was changed"),
            (lambda row: row.pop("usage"), "line 1 is not a recorded reply"),
            (lambda row: row["request"].pop("seed"), "line 1 is not a recorded reply"),
        ],
    )
    def test_a_changed_recording_is_refused(self, tmp_path, damage, message):
        path = tmp_path / "t.jsonl"
        RecordingClient(ScriptedClient(["a"]), path).complete(request())
        row = json.loads(path.read_text())
        damage(row)
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(UserError, match=message):
            ReplayClient([path])

    def test_missing_and_empty_recordings_are_errors(self, tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            ReplayClient([tmp_path / "none.jsonl"])
        (tmp_path / "empty.jsonl").touch()
        with pytest.raises(UserError, match="no replies"):
            ReplayClient([tmp_path / "empty.jsonl"])


class TestPending:
    def answer(self, directory, tag, text):
        (directory / f"{file_name(tag)}.reply.md").write_bytes(text.encode())

    def test_all_prompts_of_a_batch_are_written_before_it_stops(self, tmp_path):
        requests = [request(f"s0/g0/c{k}", f"prompt number {k}") for k in range(9)]
        with pytest.raises(Pending, match=f"^9 requests wait in {tmp_path}") as caught:
            ask_all(PendingClient(tmp_path), requests, 2)
        assert caught.value.names == tuple(f"s0.g0.c{k}" for k in range(9))
        for k, name in enumerate(caught.value.names):
            prompt = (tmp_path / f"{name}.prompt.md").read_text()
            assert "You write rewards." in prompt and f"prompt number {k}" in prompt
            assert f"{name}.reply.md" in prompt

    def test_round_trip(self, tmp_path):
        requests = [request("a"), request("b")]
        client = PendingClient(tmp_path)
        with pytest.raises(Pending):
            ask_all(client, requests)
        self.answer(tmp_path, "a", "  unchanged\r\n```x```\n")
        with pytest.raises(Pending, match="1 requests wait") as caught:
            ask_all(client, requests)
        assert caught.value.names == ("b",)
        assert caught.value.answers[0].text == "  unchanged\r\n```x```\n"
        self.answer(tmp_path, "b", "second")
        first, second = ask_all(client, requests)
        assert (first.exact, second.text) == (True, "second")
        assert second.model == "unnamed large language model" and second.source == "pending"
        assert second.usage.estimated and second.usage.input_tokens > 0

    def test_an_empty_reply_is_still_awaited(self, tmp_path):
        self.answer(tmp_path, "a", " \n")
        with pytest.raises(Pending):
            PendingClient(tmp_path).complete(request("a"))

    def test_a_file_says_who_answers(self, tmp_path):
        (tmp_path / "model.json").write_text('{"model": "m-2", "date": "2026-02-03"}')
        client = PendingClient(tmp_path)
        with pytest.raises(Pending):
            client.complete(request("a"))
        self.answer(tmp_path, "a", "x")
        answer = client.complete(request("a"))
        assert (answer.model, answer.date) == ("m-2", "2026-02-03")
        (tmp_path / "model.json").write_text('{"model": 3}')
        with pytest.raises(UserError, match=r"model\.json must be"):
            client.complete(request("a"))

    @pytest.mark.parametrize("change", [{"text": "another"}, {"temperature": 0.0}])
    def test_a_changed_prompt_asks_again(self, tmp_path, change):
        client = PendingClient(tmp_path)
        with pytest.raises(Pending):
            client.complete(request("a"))
        self.answer(tmp_path, "a", "to the old prompt")
        assert client.complete(request("a")).text == "to the old prompt"
        for _ in range(2):  # also when the program is called again
            with pytest.raises(Pending, match="1 prompts have changed") as caught:
                client.complete(request("a", **change))
            assert caught.value.changed == ("a",)
        assert (tmp_path / "a.reply.superseded-1.md").read_text() == "to the old prompt"
        self.answer(tmp_path, "a", "to the new prompt")
        answer = client.complete(request("a", **change))
        assert (answer.text, answer.exact) == ("to the new prompt", True)

    def test_a_reply_to_no_known_prompt_is_marked(self, tmp_path):
        self.answer(tmp_path, "a", "from elsewhere")
        answer = PendingClient(tmp_path).complete(request("a"))
        assert (answer.text, answer.exact) == ("from elsewhere", False)

    def test_pictures_lie_beside_the_prompt(self, tmp_path):
        with pytest.raises(Pending) as caught:
            PendingClient(tmp_path).complete(picture_request())
        prompt = (tmp_path / f"{caught.value.names[0]}.prompt.md").read_text()
        assert "What is shown?" in prompt and "judge.0.picture0.png" in prompt
        assert (tmp_path / "judge.0.picture0.png").read_bytes() == b"\x89PNG\r\n\x1a\n"

    @pytest.mark.parametrize(
        "tag", ["", ".", "../../etc/x", "a b", "ä", "/abs", "a" * 300, "a\0b", "~x", "a.b"]
    )
    def test_no_tag_leaves_the_directory_or_breaks_a_name(self, tmp_path, tag):
        directory = tmp_path / "deep" / "pending"
        with pytest.raises(Pending) as caught:
            PendingClient(directory).complete(request(tag))
        (name,) = caught.value.names
        assert (directory / f"{name}.prompt.md").is_file()
        assert [path.name for path in tmp_path.iterdir()] == ["deep"]
        assert not name.startswith(".")

    def test_two_tags_never_share_a_file(self):
        tags = [
            "a/b",
            "a.b",
            "a-b",
            "a b",
            "a_b",
            "a~b",
            "a//b",
            "",
            "request",
            "x" * 150,
            "x" * 151,
        ]
        assert len({file_name(tag) for tag in tags}) == len(tags)

    def test_replies_become_a_transcript_for_replay(self, tmp_path):
        config = LLMConfig(mode="pending")
        with pytest.raises(Pending):
            make_client(config, tmp_path).complete(request("a"))
        self.answer(tmp_path / "pending", "a", "draft")
        assert make_client(config, tmp_path).complete(request("a")).text == "draft"
        self.answer(tmp_path / "pending", "a", "final")  # a person thinks again
        for _ in range(2):
            assert make_client(config, tmp_path).complete(request("a")).text == "final"
        assert [row["text"] for row in read_rows(tmp_path / "transcript.jsonl")] == [
            "draft",
            "final",
        ]
        replay = LLMConfig(transcripts=(str(tmp_path / "transcript.jsonl"),), strict=True)
        answer = make_client(replay, tmp_path).complete(request("a"))
        assert (answer.text, answer.source) == ("final", "replay of pending")


class TestLedger:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "ledger.jsonl"

    @pytest.mark.parametrize(
        ("limits", "fits", "message"),
        [
            (Limits(max_requests=2), 2, "max_requests=2 would be passed: 2 are spent"),
            (Limits(max_input_tokens=300), 3, "max_input_tokens=300"),
            (Limits(max_input_tokens=299), 2, "max_input_tokens=299"),
            (Limits(max_output_tokens=50), 1, "max_output_tokens=50"),
            (Limits(max_output_tokens=49), 0, "max_output_tokens=49"),
            # 100 tokens at 3 $ and 50 at 6 $ per million are 0.0006 $.
            (Limits(max_usd=0.0012, price_in=3, price_out=6), 2, r"max_usd=0\.0012"),
            (Limits(max_usd=0.00119, price_in=3, price_out=6), 1, r"max_usd=0\.00119"),
        ],
    )
    def test_a_limit_is_reached_and_never_passed(self, path, limits, fits, message):
        ledger = Ledger(limits, path)
        for k in range(fits):
            ledger.settle(ledger.reserve(str(k), 100, 50), Usage(100, 50), "stop")
        with pytest.raises(BudgetExceeded, match=message):
            ledger.reserve("one more", 100, 50)
        assert ledger.spent() == Spending(fits, fits * 100, fits * 50)

    def test_settling_gives_back_what_was_not_used(self, path):
        ledger = Ledger(Limits(max_output_tokens=1000), path)
        for k in range(9):
            ledger.settle(ledger.reserve(str(k), 10, 1000 - 10 * k), Usage(5, 10), "stop")
        assert ledger.spent() == Spending(9, 45, 90)

    def test_unknown_usage_costs_the_whole_reservation(self, path):
        ledger = Ledger(Limits(), path)
        ledger.settle(ledger.reserve("a", 10, 1000), None, "TransientError")
        assert ledger.spent() == Spending(1, 10, 1000)
        assert read_rows(path)[-1]["estimated"] is True

    def test_fifty_in_parallel_never_pass_the_cap_by_one_token(self, path):
        cap, worst, used = 3000, 100, 37
        ledger = Ledger(Limits(max_output_tokens=cap), path)
        lock, generated, refused = threading.Lock(), [], []
        peaks = []
        ready = threading.Barrier(50)

        def model(asked):
            with lock:
                peaks.append(ledger.spent().output_tokens)
                generated.append(used)
            return completion(usage=Usage(10, used))

        def ask(number):
            client = LedgerClient(ScriptedClient(model), ledger)
            ready.wait(30)
            while True:
                try:
                    client.complete(request(str(number), max_tokens=worst))
                except BudgetExceeded:
                    refused.append(number)
                    return

        with ThreadPoolExecutor(50) as pool:
            list(pool.map(ask, range(50)))
        assert len(refused) == 50
        assert max(peaks) <= cap
        assert ledger.spent().output_tokens == sum(generated) <= cap
        # All of it could be used, to within one worst case: nobody was refused for what others
        # only held.
        assert sum(generated) > cap - worst

    def test_waits_for_a_reservation_that_may_be_given_back(self, path):
        ledger = Ledger(Limits(max_output_tokens=100), path)
        first = ledger.reserve("first", 1, 100)
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(ledger.reserve, "second", 1, 60)
            ledger.settle(first, Usage(1, 40), "stop")
            ledger.settle(second.result(10), Usage(1, 60), "stop")
        assert ledger.spent().output_tokens == 100

    def test_goes_on_after_a_kill_with_open_reservations_spent(self, path):
        ledger = Ledger(Limits(), path)
        ledger.settle(ledger.reserve("a", 10, 100), Usage(8, 50), "stop")
        ledger.reserve("b", 10, 100)
        again = Ledger(Limits(max_output_tokens=250), path)
        assert again.spent() == Spending(2, 18, 150)
        again.settle(again.reserve("c", 1, 100), Usage(1, 100), "stop")
        with pytest.raises(BudgetExceeded):
            again.reserve("d", 1, 1)
        assert Ledger(Limits(), path).spent() == Spending(3, 19, 250)

    @pytest.mark.parametrize("kept", range(4))
    def test_a_kill_at_any_line_never_forgets_a_cost(self, path, kept):
        ledger = Ledger(Limits(), path)
        for _ in range(2):
            ledger.settle(ledger.reserve("a", 10, 100), Usage(8, 50), "stop")
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:25])
        costs = [(0, 0, 0), (1, 10, 100), (1, 8, 50), (2, 18, 150)]
        assert Ledger(Limits(), path).spent() == Spending(*costs[kept])

    def test_time_counts_over_restarts_and_not_between_them(self, path):
        now = [1000.0]
        ledger = Ledger(Limits(max_wall_s=100), path, clock=lambda: now[0])
        now[0] += 60
        ledger.settle(ledger.reserve("a", 1, 1), Usage(1, 1), "stop")
        assert ledger.time_left_s() == 40
        now[0] = 5e6
        again = Ledger(Limits(max_wall_s=100), path, clock=lambda: now[0])
        assert again.time_left_s() == 40
        now[0] += 39
        again.settle(again.reserve("b", 1, 1), Usage(1, 1), "stop")
        now[0] += 1
        with pytest.raises(BudgetExceeded, match="max_wall_s=100 have passed"):
            again.reserve("c", 1, 1)

    def test_a_failed_attempt_costs_what_it_says_or_else_the_worst(self, path):
        ledger = Ledger(Limits(), path)
        known, unknown = LLMError("refused"), LLMError("cut")
        known.usage = Usage(5, 0)
        client = LedgerClient(ScriptedClient([known, unknown, ZeroDivisionError()]), ledger)
        for error in (LLMError, LLMError, ZeroDivisionError):
            with pytest.raises(error):
                client.complete(request(max_tokens=100))
        worst = estimate_tokens(request().messages)
        assert ledger.spent() == Spending(3, 5 + 2 * worst, 200)
        outcomes = [row["outcome"] for row in read_rows(path) if row["event"] == "settle"]
        assert outcomes == ["LLMError", "LLMError", "interrupted"]

    def test_refused_before_it_is_sent(self, path):
        inner = ScriptedClient(["x"])
        client = LedgerClient(inner, Ledger(Limits(max_output_tokens=99), path))
        with pytest.raises(BudgetExceeded):
            client.complete(request(max_tokens=100))
        assert inner.requests == [] and read_rows(path) == []

    def test_retries_are_reserved_and_charged(self, path):
        ledger = Ledger(Limits(max_requests=3), path)
        inner = ScriptedClient([TransientError("busy")] * 10)
        client = RetryingClient(LedgerClient(inner, ledger), retries=9, sleep=lambda s: None)
        with pytest.raises(BudgetExceeded):
            client.complete(request())
        assert len(inner.requests) == ledger.spent().requests == 3


class TestRetries:
    def pauses(self, errors, tag="a", **settings):
        pauses = []
        script = ScriptedClient([*errors, "done"])
        client = RetryingClient(script, sleep=pauses.append, **settings)
        assert client.complete(request(tag)).text == "done"
        return pauses

    def busy(self, retry_after=None):
        error = TransientError("busy")
        error.retry_after = retry_after
        return error

    def test_pauses_double_with_a_jitter_of_the_request(self):
        errors = [self.busy() for _ in range(4)]
        pauses = self.pauses(errors, backoff_s=1.0, max_backoff_s=5.0)
        for pause, longest in zip(pauses, (1, 2, 4, 5), strict=True):
            assert longest / 2 <= pause <= longest
        assert pauses == self.pauses(errors, backoff_s=1.0, max_backoff_s=5.0)
        assert pauses != self.pauses(errors, tag="b", backoff_s=1.0, max_backoff_s=5.0)

    def test_what_the_server_asks_for_is_the_least_up_to_a_cap(self):
        errors = [self.busy(7.5), self.busy(3600.0)]
        assert self.pauses(errors, backoff_s=1.0, max_backoff_s=60.0) == [7.5, 60.0]

    def test_gives_up_with_the_last_reason(self):
        script = ScriptedClient([self.busy()] * 3)
        client = RetryingClient(script, retries=2, sleep=lambda s: None)
        with pytest.raises(LLMError, match=r"busy \(3 attempts\)") as caught:
            client.complete(request())
        assert not isinstance(caught.value, Stop) and len(script.requests) == 3

    def test_other_errors_are_not_retried(self):
        script = ScriptedClient([LLMError("bad request"), "never"])
        with pytest.raises(LLMError, match="bad request"):
            RetryingClient(script).complete(request())
        assert len(script.requests) == 1

    def test_many_threads_that_are_refused_send_one_request(self):
        asked, ready = [], threading.Barrier(20)

        def model(request):
            asked.append(request.tag)
            raise AccessDenied("wrong key")

        client = RetryingClient(ScriptedClient(model))

        def ask(number):
            ready.wait(30)
            with pytest.raises(AccessDenied, match="wrong key"):
                client.complete(request(str(number)))

        with ThreadPoolExecutor(20) as pool:
            list(pool.map(ask, range(20)))
        assert len(asked) == 1

    def test_after_the_first_answer_requests_run_side_by_side(self):
        barrier = threading.Barrier(4)

        def model(asked):
            if asked.tag != "first":
                barrier.wait(10)  # breaks if these four are not asked at once
            return "x"

        client = RetryingClient(ScriptedClient(model))
        client.complete(request("first"))
        assert len(ask_all(client, [request(str(k)) for k in range(4)], 4)) == 4


class TestConfig:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"mode": "live"}, "^model must be named"),
            ({"mode": "record"}, "^model must be named"),
            ({"max_usd": 1.0}, "^max_usd needs price_in and price_out"),
            ({"max_usd": 1.0, "price_in": 1.0}, "^max_usd needs price_in and price_out"),
            ({"max_requests": -1}, "^max_requests must be"),
            ({"max_wall_s": float("nan")}, "^max_wall_s must be"),
            ({"price_in": -1.0}, "^price_in must be"),
            ({"concurrency": 0}, "^concurrency must be"),
            ({"max_tokens": 0}, "^max_tokens must be"),
            ({"timeout_s": 0.0}, "^timeout_s must be"),
            ({"retries": -1}, "^retries must be"),
            ({"backoff_s": float("inf")}, "^backoff_s must be"),
            ({"temperature": -0.1}, "^temperature must be"),
            ({"extra_json": "[1]"}, "^extra_json must be a JSON object"),
            ({"extra_json": "{"}, "^extra_json must be a JSON object"),
            ({"extra_json": '{"n": 5}'}, "^extra_json cannot set n"),
            ({"extra_json": '{"stream": true}'}, "^extra_json cannot set stream"),
            ({"base_url": "ftp://host/v1"}, "^base_url must be like"),
            ({"base_url": "https:///v1"}, "^base_url must be like"),
            ({"base_url": "http://host:port/v1"}, "^base_url must be like"),
        ],
    )
    def test_checks_itself(self, changes, message):
        with pytest.raises(ValueError, match=message):
            LLMConfig(**changes)

    @pytest.mark.parametrize(
        "changes",
        [
            {"api_key_env": "sk-proj-recognisable"},
            {"api_key_env": "recognisable0123456789abcdef"},
            {"base_url": "https://user:recognisable@host/v1"},
            {"base_url": "https://recognisable@host/v1"},
            {"base_url": "https://host/v1?key=recognisable"},
        ],
    )
    def test_refuses_secrets_without_repeating_them(self, changes):
        with pytest.raises(ValueError) as caught:
            LLMConfig(**changes)
        assert "recognisable" not in str(caught.value)

    def test_is_a_group_of_flags_with_help(self):
        config = flags.parse(LLMConfig(), ["--mode=pending", "--transcripts=a.jsonl,b.jsonl"])
        assert (config.mode, config.transcripts) == ("pending", ("a.jsonl", "b.jsonl"))
        assert flags.from_dict(LLMConfig, flags.to_dict(config)) == config
        rows = [row.split("  ", 2) for row in flags.help_text(LLMConfig()).splitlines()]
        bare = [row[1] for row in rows if row[1:] and row[-1].strip().startswith("(")]
        assert bare == []

    def test_makes_requests_with_its_sampling(self):
        config = LLMConfig(temperature=0.5, max_tokens=7)
        made = config.request([{"role": "user", "content": "x"}], "tag", seed=3)
        assert made == Request(({"role": "user", "content": "x"},), "tag", 0.5, 7, 3)

    @pytest.mark.parametrize("mode", ["replay", "scripted"])
    def test_files_are_needed_where_replies_come_from_files(self, tmp_path, mode):
        with pytest.raises(UsageError, match="transcripts must name"):
            make_client(LLMConfig(mode=mode), tmp_path)


def run_without_openai(program: str) -> subprocess.CompletedProcess:
    """Runs `program` where importing openai, or what it brings along, fails as if not installed."""
    block = (
        "import sys\n"
        "for name in ('openai', 'httpx2', 'httpx', 'pydantic'): sys.modules[name] = None\n"
    )
    return subprocess.run(
        [sys.executable, "-c", block + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


class TestWithoutThePackage:
    def test_all_but_the_live_client_work_and_that_says_what_to_install(self, tmp_path):
        transcript = tmp_path / "t.jsonl"
        RecordingClient(ScriptedClient(["recorded"]), transcript).complete(request())
        result = run_without_openai(f"""
import importlib, pkgutil
import projects.reward_llm
import projects.reward_llm.llm as llm
from core_rl.errors import UsageError
for module in pkgutil.iter_modules(llm.__path__):
    if module.name != "openai_client":
        importlib.import_module(f"projects.reward_llm.llm.{{module.name}}")
from pathlib import Path
from projects.reward_llm.llm.config import LLMConfig, make_client
from projects.reward_llm.llm.protocol import Request
client = make_client(LLMConfig(transcripts=({str(transcript)!r},)), Path({str(tmp_path)!r}))
messages = {request().messages!r}
print(client.complete(Request(messages, {request().tag!r})).text)
try:
    make_client(LLMConfig(mode="live", model="m"), Path({str(tmp_path)!r}))
except UsageError as error:
    print(error)
""")
        assert result.returncode == 0, result.stderr
        recorded, advice = result.stdout.strip().splitlines()
        assert recorded == "recorded"
        assert "pip install 'openai" in advice
