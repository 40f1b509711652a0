"""A person as judge: a page on this machine that shows two clips and takes an answer.

    python -m projects.reward_llm.judge.page --clips=DIR --out=preferences.jsonl

prints an address to open in a browser. Keys: left and right arrow for the better clip, down for a
tie, S to skip, U to take the last answer back. Every answer is on the disk before the next pair is
shown, so the process may be killed at any time; the same command goes on where it was left. Ctrl-C
ends it.
"""

import base64
import contextlib
import dataclasses
import hmac
import json
import re
import secrets
import signal
import threading
import urllib.parse
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import jinja2
import numpy as np

from core_rl import flags
from core_rl.errors import UserError
from projects.reward_llm.judge.preferences import (
    Clip,
    JudgeError,
    Preference,
    PreferenceLog,
    draw_pairs,
    load_clips,
    plain_png,
    read_preferences,
)

Side = Literal["left", "right", "tie", "skip"]

ADDRESS = "127.0.0.1"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")  # any port: it may be forwarded
LONGEST_FORM = 10_000  # [bytes]
LONGEST_WHY = 300  # [characters]
PATIENCE = 30.0  # [s] that a silent connection is kept open
ROW = re.compile(r"\s*([^:|]{1,60}?)\s*[:|]\s+(\S.*?)\s*")  # "name: value"


@dataclasses.dataclass(frozen=True)
class Config:
    clips: str = ""  # directory of clips
    out: str = "preferences.jsonl"  # file that answers are appended to
    pairs: str = ""  # JSONL of {"first": ID, "second": ID}; empty draws num_pairs of them
    num_pairs: int = 60  # drawn among clips of the same start and different policies
    goal: str = ""  # what the clips are judged by, shown above them
    judge: str = "person"  # who answers; several people may share a file
    seed: int = 0  # of the drawn pairs and of who stands left
    port: int = 0  # 0 takes a free one

    def __post_init__(self):
        if self.num_pairs < 1:
            raise ValueError("num_pairs must be at least 1")
        if not 0 <= self.port < 65536:
            raise ValueError("port must be between 0 and 65535")
        if not self.judge:
            raise ValueError("judge must be a name")


class Table(NamedTuple):
    """The summaries of two clips side by side where both are lists of the same names."""

    rows: list[tuple[str, str, str]]  # name, left, right; equal ones are shown pale
    left: list[str]  # lines that are not rows
    right: list[str]


class Session:
    """Which pairs one judge has answered. Every method may be called from any thread."""

    def __init__(
        self,
        clips: Mapping[str, Clip],
        pairs: Sequence[tuple[str, str]],
        path: Path,
        *,
        judge: str = "person",
        seed: int = 0,
    ):
        for pair in pairs:
            for name in pair:
                if name not in clips:
                    raise JudgeError(f"a pair names the clip {name!r}, which is not at hand")
            if clips[pair[0]].start != clips[pair[1]].start:
                raise JudgeError(f"clips {pair[0]} and {pair[1]} begin from different starts")
        if len({tuple(sorted(pair)) for pair in pairs}) < len(pairs):
            raise JudgeError("a pair is listed twice")
        if not pairs:
            raise JudgeError("there is no pair of clips with the same start to compare")
        self._clips, self._pairs = clips, list(pairs)
        self._judge, self._seed = judge, seed
        self._lock = threading.Lock()
        number = {tuple(sorted(pair)): k for k, pair in enumerate(pairs)}
        self._answers: list[tuple[int, Preference]] = []  # number of the pair, in time
        for old in read_preferences(path):
            if old.judge == judge and old.pair in number:
                self._answers.append((number[old.pair], old))
        self._log = PreferenceLog(path)

    @property
    def total(self) -> int:
        return len(self._pairs)

    @property
    def answered(self) -> int:
        return len({number for number, _ in self._answers})

    def current(self) -> int | None:
        """Number of the first pair without an answer; None at the end."""
        done = {number for number, _ in self._answers}
        return next((k for k in range(len(self._pairs)) if k not in done), None)

    def shown(self, number: int) -> tuple[Clip, Clip]:
        """The clips at the left and at the right, the same whenever the pair is shown."""
        first, second = (self._clips[name] for name in self._pairs[number])
        return (first, second) if self._first_left(number) else (second, first)

    def answer(self, number: int, side: Side, why: str = "") -> bool:
        """Records the answer; False where the pair is not the current one, as on a stale page."""
        with self._lock:
            if number != self.current():
                return False
            first, second = self._pairs[number]
            left = self._first_left(number)
            preference = Preference(
                first,
                second,
                side
                if side in ("tie", "skip")
                else "first"
                if (side == "left") == left
                else "second",
                self._judge,
                "".join(c if c.isprintable() else " " for c in why).strip()[:LONGEST_WHY],
                "first" if left else "second",
                datetime.now(UTC).isoformat(timespec="seconds"),
            )
            self._log.append(preference)
            self._answers.append((number, preference))
            return True

    def undo(self) -> bool:
        """Takes back this judge's last answer, also one from before a restart."""
        with self._lock:
            if not self._answers:
                return False
            self._log.withdraw(self._answers[-1][1])
            self._answers.pop()
            return True

    def close(self) -> None:
        with self._lock:
            self._log.close()

    def _first_left(self, number: int) -> bool:
        # By the clips and not by the number, so that another list of pairs shows them alike.
        names = [zlib.crc32(name.encode()) for name in sorted(self._pairs[number])]
        flip = np.random.default_rng([self._seed, *names]).random() < 0.5
        return flip == (self._pairs[number][0] < self._pairs[number][1])


class Page(ThreadingHTTPServer):
    """Serves a session on the loopback interface; `address` is what to open."""

    daemon_threads = True

    def __init__(self, session: Session, *, goal: str = "", port: int = 0):
        self.session = session
        self.goal = goal
        # A page of another site can make the browser send a form here, but cannot read this.
        self.token = secrets.token_urlsafe(16)
        self.template = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        ).from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
        super().__init__((ADDRESS, port), _Handler)

    @property
    def address(self) -> str:
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def render(self, nonce: str) -> str:
        session = self.session
        number = session.current()
        clips = () if number is None else session.shown(number)
        return self.template.render(
            goal=self.goal,
            nonce=nonce,
            token=self.token,
            number=number,
            answered=session.answered,
            total=session.total,
            table=side_by_side(clips[0].text, clips[1].text) if clips else None,
            pictures=[_data_url(clip) for clip in clips],
            longest_why=LONGEST_WHY,
        )


class _Handler(BaseHTTPRequestHandler):
    server: Page
    server_version, sys_version = "judge", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        if not self._local():
            return self._refuse(HTTPStatus.FORBIDDEN, "this page is for this machine only")
        if self.path != "/":
            return self._refuse(HTTPStatus.NOT_FOUND, "there is only one page here: /")
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        page = self.server.render(nonce).encode()
        self._reply(HTTPStatus.OK, page, {"Content-Security-Policy": policy})

    def do_POST(self) -> None:
        if not self._local():
            return self._refuse(HTTPStatus.FORBIDDEN, "this page is for this machine only")
        size = self.headers.get("Content-Length", "")
        if not (size.isascii() and size.isdigit()) or int(size) > LONGEST_FORM:
            return self._refuse(HTTPStatus.BAD_REQUEST, "the form is too long or has no length")
        form = urllib.parse.parse_qs(self.rfile.read(int(size)).decode(errors="replace"))
        entry = {name: values[0] for name, values in form.items()}
        if not hmac.compare_digest(entry.get("token", "").encode(), self.server.token.encode()):
            return self._refuse(
                HTTPStatus.FORBIDDEN, "the page is from an earlier start of the program: reload it"
            )
        try:
            if self.path == "/undo":
                self.server.session.undo()
            elif self.path == "/answer":
                side, number = entry.get("answer", ""), entry.get("number", "")
                if side not in get_args(Side) or not (number.isascii() and number.isdigit()):
                    return self._refuse(HTTPStatus.BAD_REQUEST, "no answer is named")
                self.server.session.answer(int(number), cast(Side, side), entry.get("why", ""))
            else:
                return self._refuse(HTTPStatus.NOT_FOUND, "answers go to /answer and /undo")
        except UserError as error:
            return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        self._reply(HTTPStatus.SEE_OTHER, b"", {"Location": "/"})

    def _local(self) -> bool:
        """Whether the browser means this machine: another site's name may lead here as well."""
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        name = re.sub(r":\d{1,5}\Z", "", host)
        return name in LOOPBACK and origin in (None, f"http://{host}")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self.close_connection = True
        self._reply(status, f"{message}\n".encode(), {"Content-Type": "text/plain; charset=utf-8"})

    def _reply(self, status: HTTPStatus, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        defaults = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            # Not "no-referrer": with it a browser hides the origin of the page's own forms too.
            "Referrer-Policy": "same-origin",
        }
        for name, value in (defaults | headers).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the browser has gone on
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal is for the address and errors."""


def side_by_side(left: str, right: str) -> Table:
    """Rows of the names that both texts have, in the left one's order; other lines as they are."""
    parts = [[(line, ROW.fullmatch(line)) for line in text.splitlines()] for text in (left, right)]
    values = [{found[1]: found[2] for _, found in lines if found} for lines in parts]
    both = [name for name in values[0] if name in values[1]]
    rest = [
        [line for line, found in lines if line.strip() and not (found and found[1] in both)]
        for lines in parts
    ]
    return Table([(name, values[0][name], values[1][name]) for name in both], *rest)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Pairs of ids from a JSONL file of {"first": ID, "second": ID}."""
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            pairs.append((str(row["first"]), str(row["second"])))
        except (ValueError, KeyError, TypeError):
            raise JudgeError(
                f'{path}: line {number} is not {{"first": ID, "second": ID}}'
            ) from None
    return pairs


@contextlib.contextmanager
def serving(session: Session, *, goal: str = "", port: int = 0) -> Iterator[Page]:
    """The page, served by a thread until the block ends."""
    page = open_page(session, goal=goal, port=port)
    thread = threading.Thread(target=page.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield page
    finally:
        page.shutdown()
        thread.join()
        page.server_close()
        session.close()


def open_page(session: Session, *, goal: str = "", port: int = 0) -> Page:
    try:
        return Page(session, goal=goal, port=port)
    except OSError as error:
        raise JudgeError(f"port {port} cannot be used: {error.strerror}") from None


def run(config: Config) -> None:
    if not config.clips:
        raise JudgeError("--clips must name a directory of clips")
    clips = load_clips(Path(config.clips))
    if config.pairs:
        pairs = read_pairs(Path(config.pairs))
    else:
        pairs = draw_pairs(list(clips.values()), config.num_pairs, config.seed)
    session = Session(clips, pairs, Path(config.out), judge=config.judge, seed=config.seed)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with serving(session, goal=config.goal, port=config.port) as page:
        print(f"{page.address}  (Ctrl-C ends)", flush=True)
        stop.wait()
    print(f"{session.answered} of {session.total} pairs are answered in {config.out}")


def _data_url(clip: Clip) -> str:
    if clip.picture is None:
        return ""
    return "data:image/png;base64," + base64.b64encode(plain_png(clip.picture)).decode("ascii")


if __name__ == "__main__":
    flags.main(run, Config())
