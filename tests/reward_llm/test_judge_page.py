"""The page of a person who judges: over HTTP as a browser uses it, and against other sites."""

import html
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core_rl.errors import UsageError
from core_rl.flags import parse
from projects.reward_llm.judge.page import (
    LONGEST_WHY,
    Config,
    Session,
    read_pairs,
    serving,
    side_by_side,
)
from projects.reward_llm.judge.preferences import (
    Clip,
    JudgeError,
    append_preferences,
    read_preferences,
    save_clips,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = '<script>alert("x")</script>'
NO_REDIRECT = type(
    "NoRedirect",
    (urllib.request.HTTPRedirectHandler,),
    {"redirect_request": lambda *_: None},
)


def png():
    info, file = PngInfo(), io.BytesIO()
    info.add_text("Title", "secret-policy")
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def clip(k):
    picture = png() if k == 0 else None
    return Clip(
        f"clip{k}zq", f"marker: {k} m\nnote {k} & {SCRIPT}", picture, {}, f"secret-p{k}", "s"
    )


CLIPS = {each.id: each for each in map(clip, range(4))}
PAIRS = [("clip0zq", "clip1zq"), ("clip2zq", "clip1zq"), ("clip3zq", "clip0zq")]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "preferences.jsonl"


@pytest.fixture
def page(path):
    with serving(Session(CLIPS, PAIRS, path), goal=f"Drive {SCRIPT}") as page:
        yield page


def get(page, where="", **headers):
    request = urllib.request.Request(page.address + where, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as reply:
        return reply.read().decode(), reply.headers


def post(page, where, headers=None, **form):
    """Status of a form's reply, without following where it leads."""
    data = urllib.parse.urlencode({"token": page.token} | form).encode()
    request = urllib.request.Request(page.address + where, data=data, headers=headers or {})
    try:
        with urllib.request.build_opener(NO_REDIRECT).open(request, timeout=20) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def hidden(text, name):
    return re.search(rf'name="{name}" value="([^"]*)"', text)[1]


def sides(text):
    """Numbers of the clips at the left and at the right."""
    row = re.search(r"<td>(\d) m</td><th[^>]*>marker</th><td>(\d) m</td>", text)
    return f"clip{row[1]}zq", f"clip{row[2]}zq"


def test_a_person_answers_every_pair(page, path):
    given = []
    for number, side in enumerate(("left", "tie", "right")):
        text, _ = get(page)
        assert f"{number} of 3 answered" in text and hidden(text, "number") == str(number)
        left, right = sides(text)
        assert {left, right} == set(PAIRS[number])
        form = {"answer": side, "number": hidden(text, "number"), "why": f"remark {number}"}
        assert post(page, "answer", token=hidden(text, "token"), **form) == 303
        given.append((left, right, side))
        # On the disk at once: a kill after the reply loses nothing.
        assert len(read_preferences(path)) == number + 1
    text, _ = get(page)
    assert "3 of 3 answered" in text and "<form" in text and 'id="answers"' not in text
    for row, pair, (left, right, side) in zip(read_preferences(path), PAIRS, given, strict=True):
        assert (row.first, row.second) == pair and row.judge == "person"
        chosen = {"left": left, "right": right}.get(side)
        assert row.answer == (
            "tie" if chosen is None else "first" if chosen == pair[0] else "second"
        )
        assert row.shown == ("first" if left == pair[0] else "second")
        assert row.why.startswith("remark") and row.time.endswith("+00:00")


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_chosen_side_is_the_chosen_clip(tmp_path, side):
    shown = set()
    for seed in range(12):
        path = tmp_path / f"{seed}.jsonl"
        session = Session(CLIPS, PAIRS, path, seed=seed)
        chosen = session.shown(0)[side == "right"].id
        assert session.answer(0, side)
        row = read_preferences(path)[0]
        assert {"first": row.first, "second": row.second}[row.answer] == chosen
        shown.add(row.shown)
    assert shown == {"first", "second"}


def test_both_places_are_used_and_do_not_depend_on_the_list(path):
    clips = {f"c{k}": Clip(f"c{k}", "x", None, {}, f"p{k}") for k in range(40)}
    pairs = [(f"c{j}", f"c{k}") for j in range(40) for k in range(j)]
    session = Session(clips, pairs, path, seed=1)
    left = [session.shown(k)[0].id for k in range(len(pairs))]
    share = sum(name == first for name, (first, _) in zip(left, pairs, strict=True)) / len(pairs)
    assert share == pytest.approx(0.5, abs=0.07)  # sd 0.018 over 780 pairs
    turned = Session(clips, [pair[::-1] for pair in pairs[::-1]], path, seed=1)
    assert [turned.shown(k)[0].id for k in range(len(pairs))] == left[::-1]
    other = Session(clips, pairs, path, seed=2)
    assert [other.shown(k)[0].id for k in range(len(pairs))] != left


def test_a_later_start_goes_on_where_the_first_was_left(path):
    with serving(Session(CLIPS, PAIRS, path)) as page:
        post(page, "answer", answer="left", number=0)
        post(page, "answer", answer="skip", number=1)
        before = sides(get(page)[0])
    path.write_bytes(path.read_bytes() + b'{"first": "clip3zq", "sec')  # killed while writing
    with serving(Session(CLIPS, PAIRS, path)) as page:
        text, _ = get(page)
        assert hidden(text, "number") == "2" and sides(text) == before
        # Undo reaches back to before the restart, and to the skipped pair first.
        assert post(page, "undo") == 303
        assert hidden(get(page)[0], "number") == "1"
    rows = read_preferences(path)
    assert [(row.first, row.answer in ("first", "second")) for row in rows] == [("clip0zq", True)]
    # Another person judges the same pairs from the beginning, into the same file.
    with serving(Session(CLIPS, PAIRS, path, judge="second person")) as page:
        assert hidden(get(page)[0], "number") == "0"
        assert post(page, "undo") == 303  # has nothing of their own to take back
        assert read_preferences(path) == rows


def test_a_stale_page_answers_nothing(page, path):
    assert post(page, "answer", answer="left", number=0) == 303
    assert post(page, "answer", answer="right", number=0) == 303  # sent twice
    assert post(page, "answer", answer="right", number=2) == 303
    assert len(read_preferences(path)) == 1


@pytest.mark.parametrize(
    "form",
    [{"answer": "both"}, {"answer": "left", "number": "-1"}, {"answer": "left", "number": "²"}],
)
def test_forms_that_name_no_answer(page, path, form):
    assert post(page, "answer", **{"number": "0"} | form) == 400
    assert post(page, "elsewhere", answer="left", number=0) == 404
    assert read_preferences(path) == []


@pytest.mark.parametrize("token", ["", "wrong", "ü"])
def test_a_form_needs_the_token_of_the_page(page, path, token):
    post(page, "answer", answer="left", number=0)
    assert post(page, "answer", token=token, answer="left", number=1) == 403
    assert post(page, "undo", token=token) == 403
    assert len(read_preferences(path)) == 1


@pytest.mark.parametrize(
    "host,allowed",
    [
        ("127.0.0.1:{port}", True),
        ("localhost:{port}", True),
        ("localhost:9000", True),  # a forwarded port
        ("localhost", True),
        ("[::1]:{port}", True),
        ("evil.example", False),
        ("evil.example:{port}", False),
        ("localhost.evil.example:{port}", False),
        ("127.0.0.1:{port}@evil.example", False),
        ("", False),
    ],
)
def test_only_names_of_this_machine_are_served(page, path, host, allowed):
    host = host.format(port=page.server_address[1])
    origin = f"http://{host}"
    if allowed:
        assert page.token in get(page, Host=host)[0]
    else:
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            get(page, Host=host)
        assert page.token not in refused.value.read().decode()
    headers = {"Host": host, "Origin": origin}
    status = post(page, "answer", headers, answer="left", number=0)
    assert status == (303 if allowed else 403)
    assert len(read_preferences(path)) == allowed


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1"])
def test_forms_of_other_sites_are_refused(page, path, origin):
    assert post(page, "answer", {"Origin": origin}, answer="left", number=0) == 403
    assert read_preferences(path) == []


def test_the_port_is_open_on_this_machine_only(page):
    assert page.server_address[0] == "127.0.0.1"


def test_everything_of_a_clip_is_escaped(page):
    text, headers = get(page)
    assert SCRIPT not in text and html.escape(SCRIPT, quote=False).split("(")[0] in text
    assert text.count("<script") == 1
    nonce = re.search(r'<script nonce="([^"]+)"', text)[1]
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and f"script-src 'nonce-{nonce}'" in policy
    assert "frame-ancestors 'none'" in policy and headers["X-Content-Type-Options"] == "nosniff"
    assert re.search(r'<script nonce="([^"]+)"', get(page)[0])[1] != nonce


def test_the_page_is_blind_and_needs_nothing_from_elsewhere(page):
    for number in range(3):
        text, _ = get(page)
        assert "secret" not in text and "zq" not in text
        assert not re.search(r"""(src|href)=["'](?!data:)""", text)
        assert "http" not in text
        post(page, "answer", answer="tie", number=number)


def test_remarks_are_one_short_line(page, path):
    post(page, "answer", answer="tie", number=0, why=f"a\nb\x1b{SCRIPT}" + "y" * 900)
    why = read_preferences(path)[0].why
    assert len(why) == LONGEST_WHY and why.isprintable() and why.startswith("a b ")


def test_broken_requests_do_not_stop_the_page(page, path):
    connection = http.client.HTTPConnection("127.0.0.1", page.server_address[1], timeout=20)
    for size in ("-5", "abc", "1e3", "99999999", ""):
        connection.putrequest("POST", "/answer")
        connection.putheader("Content-Length", size)
        connection.endheaders()
        assert connection.getresponse().status == 400
        connection.close()
    for where in ("favicon.ico", "../etc/passwd", "?x"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(page, where)
    assert "0 of 3 answered" in get(page)[0] and read_preferences(path) == []


def test_summaries_stand_side_by_side_where_they_name_the_same():
    table = side_by_side(
        "distance: 5 m\nonly left: 1\n\nfree text\nlap | 1:23.4", "lap: none\ndistance: 6 m\nhm: 2"
    )
    assert table.rows == [("distance", "5 m", "6 m"), ("lap", "1:23.4", "none")]
    assert table.left == ["only left: 1", "free text"] and table.right == ["hm: 2"]
    assert side_by_side("", "") == ([], [], [])


def test_sessions_that_cannot_be(path, tmp_path):
    far = {"far": Clip("far", "", None, {}, "p", "elsewhere")}
    for pairs, words in [
        ([("clip0zq", "missing")], "'missing'"),
        ([("clip0zq", "clip1zq"), ("clip1zq", "clip0zq")], "twice"),
        ([("clip0zq", "far")], "different starts"),
        ([], "no pair"),
    ]:
        with pytest.raises(JudgeError, match=words):
            Session(CLIPS | far, pairs, path)
    assert not path.exists()
    listed = tmp_path / "pairs.jsonl"
    listed.write_text('{"first": "a", "second": "b"}\n{"first": "a"}\n')
    with pytest.raises(JudgeError, match="line 2"):
        read_pairs(listed)
    with pytest.raises(UsageError, match="--port"):
        parse(Config(), ["--port=70000"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_and_ends_in_order(tmp_path, number):
    save_clips(tmp_path / "clips", CLIPS.values())
    (tmp_path / "pairs.jsonl").write_text('{"first": "clip0zq", "second": "clip1zq"}\n')
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "projects.reward_llm.judge.page"]
    command += [f"--clips={tmp_path / 'clips'}", f"--out={out}", "--judge=anna"]
    command += [f"--pairs={tmp_path / 'pairs.jsonl'}"] if number == signal.SIGINT else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address, timeout=20) as reply:
            text = reply.read().decode()
        total = 1 if number == signal.SIGINT else 6
        assert f"0 of {total} answered" in text
        form = {"token": hidden(text, "token"), "number": "0", "answer": "left"}
        data = urllib.parse.urlencode(form).encode()
        with urllib.request.urlopen(f"{address}answer", data=data, timeout=20) as reply:
            assert f"1 of {total} answered" in reply.read().decode()
        process.send_signal(number)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and errors == ""
    assert f"1 of {total} pairs are answered" in rest
    assert [row.judge for row in read_preferences(out)] == ["anna"]
    assert json.loads(out.read_text())["answer"] in ("first", "second")


def test_the_command_says_what_is_wrong(tmp_path, path):
    append_preferences(path, [])
    save_clips(tmp_path / "one", [clip(0)])
    from projects.reward_llm.judge.page import run

    for config, words in [
        (Config(out=str(path)), "--clips"),
        (Config(clips=str(tmp_path / "none"), out=str(path)), "not a directory"),
        (Config(clips=str(tmp_path / "one"), out=str(path)), "no pair"),
    ]:
        with pytest.raises(JudgeError, match=words):
            run(config)
