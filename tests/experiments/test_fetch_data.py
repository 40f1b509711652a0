"""Downloads from a server in this process: whole files, broken ones, and what is there already."""

import errno
import hashlib
import io
import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from core_rl import flags
from core_rl.errors import StorageError, UsageError, UserError
from core_rl.tracking import open_workdir
from experiments import fetch_data
from experiments.fetch_data import FetchConfig, File, Source

CIRCUITS = Path(__file__).parents[2].parent / "shared/data/racetracks"
LETTERS, NUMBERS, WORDS = b"abcdefghij" * 30, b"0123456789" * 20, b"some words\n" * 10
COMMIT = "0" * 40


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def known(path, content):
    return File(path, len(content), sha256(content))


SETS = {
    "signs": (
        Source(
            folder="signs",
            about="letters and numbers",
            repository="somebody/signs",
            commit=COMMIT,
            licence="Free for all, https://example.org/free",
            notice="(c) somebody",
            files=(known("data/letters.txt", LETTERS), known("numbers.txt", NUMBERS)),
        ),
    ),
    "words": (
        Source(
            folder="words/english",
            about="words",
            repository="somebody/words",
            commit=COMMIT,
            licence="",
            notice="(c) somebody else",
            files=(File("words.txt", None),),
        ),
    ),
}


class Server(ThreadingHTTPServer):
    """Serves `files` by path; the other attributes say what is wrong with it."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {
            f"/somebody/signs/{COMMIT}/data/letters.txt": LETTERS,
            f"/somebody/signs/{COMMIT}/numbers.txt": NUMBERS,
            f"/somebody/words/{COMMIT}/words.txt": WORDS,
        }
        self.asked = []  # path and range of each request
        self.knows_ranges = True
        self.tells_length = True
        self.stops_after = None  # bytes of a file
        self.kind = "text/plain"

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        asked = self.headers["Range"]
        self.server.asked.append((self.path.rpartition("/")[2], asked))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(asked[len("bytes=") : -1]) if asked and self.server.knows_ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", self.server.kind)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.tells_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.server.stops_after])

    def log_message(self, format, *args):
        pass


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
    monkeypatch.setattr(fetch_data, "SETS", SETS)
    monkeypatch.setattr(fetch_data, "CHUNK", 64)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.005,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def fetch(server, tmp_path):
    def run(*sets, **options):
        return fetch_data.main(FetchConfig(sets, str(tmp_path), server.url, **options))

    return run


def names(folder):
    """Files below a folder, without the records and locks."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in paths if path.name not in ("SOURCE.json", "lock"))


def test_files_come_with_a_record_of_their_source(fetch, server, tmp_path, capsys):
    assert fetch("signs") == 0
    assert (tmp_path / "signs/letters.txt").read_bytes() == LETTERS
    assert (tmp_path / "signs/numbers.txt").read_bytes() == NUMBERS
    assert names(tmp_path) == ["letters.txt", "numbers.txt"]
    record = json.loads((tmp_path / "signs/SOURCE.json").read_text())
    assert record["commit"] == COMMIT and record["licence"].startswith("Free for all")
    letters = record["files"]["letters.txt"]
    assert letters["sha256"] == sha256(LETTERS) and letters["bytes"] == len(LETTERS)
    assert letters["path"] == "data/letters.txt" and letters["server"] == server.url
    printed = capsys.readouterr()
    assert "2 files downloaded, 0 kept" in printed.out
    # Without a terminal: a line per file.
    assert f"letters.txt: {len(LETTERS)} bytes, SHA-256 as expected\n" in printed.err
    assert "\r" not in printed.err


def test_the_licence_is_shown_before_anything_is_written(fetch, server, tmp_path, capsys):
    server.files.clear()
    with pytest.raises(UserError, match="404"):
        fetch("signs")
    shown = capsys.readouterr().err
    assert "licence  Free for all, https://example.org/free" in shown
    assert "(c) somebody" in shown and f"somebody/signs, commit {COMMIT}" in shown
    assert not list(tmp_path.rglob("*.*"))


def test_a_set_without_licence_says_so(fetch, tmp_path, capsys):
    assert fetch("words") == 0
    assert "licence  none is stated" in capsys.readouterr().err
    assert "none is stated" in (tmp_path / "words/english/SOURCE.json").read_text()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("\n", 1), ("", 1)])
def test_a_person_at_a_terminal_is_asked(fetch, tmp_path, monkeypatch, capsys, answer, code):
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert fetch("signs") == code
    assert "Download 2 files" in capsys.readouterr().err
    assert bool(list(tmp_path.iterdir())) == (code == 0)


def test_yes_skips_the_question_but_not_the_licence(fetch, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert fetch("signs", yes=True) == 0
    shown = capsys.readouterr().err
    assert "Free for all" in shown and "[y/N]" not in shown


def test_on_a_terminal_one_line_changes_in_place(fetch, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(fetch_data, "SHOWN_EVERY", 0.0)
    assert fetch("signs") == 0
    states = screen.getvalue().split("\r\x1b[2K")[1:]
    assert len(states) > 4 and not any("\n" in state for state in states[:-1])
    assert all(re.fullmatch(r"\d of 2 files, .* MB, .* MB/s, ETA 0:00\n?", s) for s in states)
    assert states[-1].startswith("2 of 2 files") and states[-1].endswith("\n")


def test_files_that_are_there_are_kept_without_a_request(fetch, server, capsys):
    assert fetch("signs", "words") == 0
    server.asked.clear()
    capsys.readouterr()
    assert fetch("signs", "words") == 0
    printed = capsys.readouterr()
    assert not server.asked and "0 files downloaded, 2 kept" in printed.out
    assert not printed.err  # there is nothing to agree to


def test_only_what_is_missing_is_downloaded(fetch, server, tmp_path):
    assert fetch("signs") == 0
    (tmp_path / "signs/numbers.txt").unlink()
    server.asked.clear()
    assert fetch("signs") == 0
    assert server.asked == [("numbers.txt", None)]


def test_other_content_is_refused_before_anything_is_downloaded(fetch, server, tmp_path):
    (tmp_path / "signs").mkdir()
    mine = tmp_path / "signs/numbers.txt"
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"numbers\.txt has other content.*--overwrite") as error:
        fetch("signs")
    assert "\n" not in str(error.value) and str(mine) in str(error.value)
    assert mine.read_bytes() == b"mine" and not server.asked
    assert names(tmp_path) == ["numbers.txt"]
    assert fetch("signs", overwrite=True) == 0
    assert mine.read_bytes() == NUMBERS


def test_an_altered_file_is_refused_and_deleted(fetch, server, tmp_path):
    server.files[f"/somebody/signs/{COMMIT}/data/letters.txt"] = LETTERS[:-1] + b"!"
    with pytest.raises(UserError, match="is not the file that is expected") as error:
        fetch("signs")
    assert sha256(LETTERS) in str(error.value) and sha256(LETTERS[:-1] + b"!") in str(error.value)
    assert not names(tmp_path)


def test_a_file_that_replaces_another_is_good_or_does_not(fetch, server, tmp_path):
    (tmp_path / "signs").mkdir()
    mine = tmp_path / "signs/letters.txt"
    mine.write_bytes(b"mine")
    server.files[f"/somebody/signs/{COMMIT}/data/letters.txt"] = b"altered"
    with pytest.raises(UserError, match="is not the file that is expected"):
        fetch("signs", overwrite=True)
    assert mine.read_bytes() == b"mine" and names(tmp_path) == ["letters.txt"]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_truncated_download_goes_on_where_it_ended(fetch, server, tmp_path, knows_ranges):
    server.stops_after, server.knows_ranges = 150, knows_ranges
    with pytest.raises(UserError, match=r"connection ended after 150 of 300 bytes, kept as"):
        fetch("signs")
    assert names(tmp_path) == ["letters.txt.part"]
    server.stops_after = None
    server.asked.clear()
    assert fetch("signs") == 0
    assert server.asked == [("letters.txt", "bytes=150-"), ("numbers.txt", None)]
    assert (tmp_path / "signs/letters.txt").read_bytes() == LETTERS
    assert names(tmp_path) == ["letters.txt", "numbers.txt"]


def test_a_file_without_sha256_goes_on_too(fetch, server, tmp_path):
    server.stops_after = 50
    with pytest.raises(UserError, match="after 50 of 110 bytes"):
        fetch("words")
    server.stops_after = None
    assert fetch("words") == 0
    assert server.asked[-1] == ("words.txt", "bytes=50-")
    assert (tmp_path / "words/english/words.txt").read_bytes() == WORDS


def test_a_partial_file_of_unknown_origin_is_not_continued(fetch, server, tmp_path):
    (tmp_path / "words/english").mkdir(parents=True)
    (tmp_path / "words/english/words.txt.part").write_bytes(b"other")
    assert fetch("words") == 0
    assert server.asked == [("words.txt", None)]
    assert (tmp_path / "words/english/words.txt").read_bytes() == WORDS


@pytest.mark.parametrize("old", [b"other bytes", b"longer than the file " * 30, LETTERS])
def test_a_partial_file_of_other_bytes_starts_anew(fetch, tmp_path, old):
    (tmp_path / "signs").mkdir()
    (tmp_path / "signs/letters.txt.part").write_bytes(old)
    assert fetch("signs") == 0
    assert (tmp_path / "signs/letters.txt").read_bytes() == LETTERS
    assert names(tmp_path) == ["letters.txt", "numbers.txt"]


def test_a_killed_download_goes_on(fetch, server, tmp_path, monkeypatch):
    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetch_data.Progress, "add", kill)
        fetch("signs")
    assert names(tmp_path) == ["letters.txt.part"]
    assert fetch("signs") == 0
    assert server.asked[1] == ("letters.txt", "bytes=64-")
    assert (tmp_path / "signs/letters.txt").read_bytes() == LETTERS


def test_a_folder_that_another_process_fills_is_left_to_it(fetch, server, tmp_path):
    with open_workdir(tmp_path / "signs"):
        with pytest.raises(UserError, match=f"signs is in use by process {os.getpid()}"):
            fetch("signs")
    assert not server.asked and not names(tmp_path)
    assert fetch("signs") == 0


def test_a_kill_before_the_last_step_leaves_no_file_of_unknown_origin(fetch, tmp_path, monkeypatch):
    replace = os.replace

    def kill(source, target):
        if Path(target).name == "words.txt":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", kill)
        fetch("words")
    assert names(tmp_path) == ["words.txt.part"]
    assert fetch("words") == 0
    assert (tmp_path / "words/english/words.txt").read_bytes() == WORDS


def test_the_first_download_without_sha256_is_what_later_ones_must_match(
    fetch, server, tmp_path, capsys
):
    assert fetch("words") == 0
    printed = capsys.readouterr()
    assert "unchecked  no SHA-256 is recorded for words.txt" in printed.err
    assert f"words.txt: SHA-256 {sha256(WORDS)}, not checked" in printed.out
    (tmp_path / "words/english/words.txt").unlink()
    server.files[f"/somebody/words/{COMMIT}/words.txt"] = b"other words"
    with pytest.raises(UserError, match=r"expected [0-9a-f]{64} as noted in .*SOURCE\.json"):
        fetch("words")
    assert not names(tmp_path)
    server.files[f"/somebody/words/{COMMIT}/words.txt"] = WORDS
    assert fetch("words") == 0
    assert "not checked" not in capsys.readouterr().out


def test_another_size_than_recorded_is_told_where_there_is_no_sha256(fetch, monkeypatch, capsys):
    source = SETS["words"][0]._replace(files=(File("words.txt", 2000),))
    monkeypatch.setattr(fetch_data, "SETS", {"words": (source,)})
    assert fetch("words") == 0
    assert "not checked; 110 bytes, though 2,000 are recorded" in capsys.readouterr().out


def test_a_file_that_nothing_is_known_of_is_refused(fetch, tmp_path):
    (tmp_path / "words/english").mkdir(parents=True)
    (tmp_path / "words/english/words.txt").write_bytes(WORDS)
    with pytest.raises(UserError, match="no SHA-256 is known to compare it with"):
        fetch("words")
    assert fetch("words", overwrite=True) == 0


@pytest.mark.parametrize("old", ["{", "[]", '{"repository": "somebody/words", "commit": "1"}'])
def test_a_folder_of_another_commit_is_refused(fetch, server, tmp_path, old):
    folder = tmp_path / "words/english"
    folder.mkdir(parents=True)
    (folder / "SOURCE.json").write_text(old)
    (folder / "words.txt.part").write_bytes(b"of that commit")
    with pytest.raises(UserError, match=f"is not of commit {COMMIT} of somebody/words"):
        fetch("words")
    assert fetch("words", overwrite=True) == 0
    assert server.asked == [("words.txt", None)]
    assert json.loads((folder / "SOURCE.json").read_text())["commit"] == COMMIT


def test_a_web_page_instead_of_a_file_is_refused(fetch, server, tmp_path):
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(UserError, match="sends a web page"):
        fetch("words")
    assert not names(tmp_path)


def test_without_length_and_sha256_nobody_could_see_a_broken_connection(fetch, server):
    server.tells_length = False
    assert fetch("signs") == 0
    with pytest.raises(UserError, match="does not say how long the file is"):
        fetch("words")


def test_an_unreachable_server_is_one_clear_line(server, tmp_path, capsys):
    with Server() as closed:
        url = closed.url
    arguments = ["fetch_data", "signs", f"--dest={tmp_path}", f"--mirror={url}"]
    with pytest.raises(SystemExit) as stop:
        flags.main(fetch_data.main, FetchConfig(), argv=arguments, positional="sets")
    assert stop.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert url in last and "the server cannot be reached: Connection refused" in last
    assert not names(tmp_path)


def test_a_destination_that_is_a_file_is_refused(server, tmp_path):
    (tmp_path / "file").write_text("")
    for dest in ("file", "file/below"):
        with pytest.raises(UserError, match="file is a file, not a folder"):
            fetch_data.main(FetchConfig(("signs",), str(tmp_path / dest), server.url))
    (tmp_path / "signs/letters.txt").mkdir(parents=True)
    with pytest.raises(UserError, match=r"letters\.txt is a folder"):
        fetch_data.main(FetchConfig(("signs",), str(tmp_path), server.url))
    assert not server.asked


def test_a_full_disk_is_named(fetch, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def quiet(*_):
        pass

    monkeypatch.setattr(fetch_data, "write_record", quiet)
    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "signs").mkdir()
    with pytest.raises(StorageError, match=r"disk full: cannot write .*letters\.txt\.part"):
        fetch("signs")
    assert names(tmp_path) == ["letters.txt.part"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_disk_that_is_full_at_once_is_named(fetch, tmp_path):
    (tmp_path / "signs").mkdir()
    (tmp_path / "signs/letters.txt.part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"disk full: cannot write .*letters\.txt\.part"):
        fetch("signs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a set.*sets: signs, words"),
        (["sings", "--dest=a"], "there is no set 'sings'; sets: signs, words"),
        (["signs"], "--dest must name a folder"),
        (["signs", "--dest=a", "--mirror=ftp://a"], "--mirror must be http"),
        (["signs", "--dest=a", "--mirror=localhost:8000"], "--mirror must be http"),
    ],
)
def test_a_wrong_command_says_what_is_allowed(arguments, message):
    with pytest.raises(UsageError, match=message):
        fetch_data.main(flags.parse(FetchConfig(), arguments, "sets"))


def test_the_real_sets_are_well_formed(monkeypatch):
    monkeypatch.undo()
    sources = [source for sources in fetch_data.SETS.values() for source in sources]
    folders = [source.folder for source in sources]
    assert len(set(folders)) == len(folders)
    for source in sources:
        assert re.fullmatch(r"[0-9a-f]{40}", source.commit) and source.notice
        assert re.fullmatch(r"[\w-]+/[\w-]+", source.repository)
        assert len({file.name for file in source.files}) == len(source.files)
        for file in source.files:
            assert re.fullmatch(r"[0-9a-f]{64}|", file.sha256) and file.name != "SOURCE.json"
    assert all(file.sha256 for file in fetch_data.SETS["racetracks"][0].files)
    assert not fetch_data.SETS["ace_matches"][0].licence


@pytest.mark.skipif(not CIRCUITS.is_dir(), reason="needs the circuits")
def test_what_is_recorded_of_the_circuits_is_true(monkeypatch):
    monkeypatch.undo()
    for file in fetch_data.SETS["racetracks"][0].files:
        content = (CIRCUITS / file.name).read_bytes()
        assert (len(content), sha256(content)) == (file.size, file.sha256)
