"""Downloads public data sets from their authors' repositories, at pinned commits.

    ./run python -m experiments.fetch_data racetracks --dest=.
    ./run python -m experiments.fetch_data table_tennis ace_matches --dest=data --yes
    ./run python -m experiments.fetch_data racetracks --dest=. --mirror=http://localhost:8000

`racetracks`: six circuits of the TUM racetrack database, for `--circuit=data/racetracks/Spa.csv`.
`table_tennis`: ball states of Google DeepMind (JSON) and launcher trajectories of AIMY (HDF5), as
their authors keep them; `experiments.ace_physics_check --data` wants them rewritten as CSV.
`ace_matches`: Sony's events of Ace's matches, for `experiments.ace_physics_check --match_data`.

The licence is shown before anything is written. Every folder gets a SOURCE.json: where its files
come from, under which licence, and their SHA-256. A file whose SHA-256 was recorded here must have
it. Of the others the first download is taken as it comes, said so, and noted in SOURCE.json, which
every later download must match. Files that are there already are kept when their SHA-256 is right,
and refused otherwise; an interrupted download goes on where it ended. A mirror has the files at
OWNER/REPOSITORY/COMMIT/PATH.
"""

import dataclasses
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core_rl import flags
from core_rl.errors import UsageError, UserError, storage_errors
from core_rl.tracking import open_workdir, write_json

SERVER = "https://raw.githubusercontent.com"
RECORD = "SOURCE.json"
TIMEOUT = 30.0  # of a silent server [s]
CHUNK = 1 << 16  # bytes
SHOWN_EVERY = 0.1  # seconds between two states of the line


class File(NamedTuple):
    path: str  # in the repository
    size: int | None  # bytes, a guide where there is no SHA-256; None: the server will say it
    sha256: str = ""  # empty: nobody recorded it

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


class Source(NamedTuple):
    """Files of one repository, under one licence, that go into one folder."""

    folder: str
    about: str
    repository: str  # OWNER/REPOSITORY
    commit: str
    licence: str  # empty: none is stated
    notice: str
    files: tuple[File, ...]


SETS = {
    "racetracks": (
        Source(
            folder="racetracks",
            about="centre lines and widths of six circuits, from the TUM racetrack database",
            repository="TUMFTM/racetrack-database",
            commit="e59595d1f3573b30d1ded6a08984935b957688e0",
            licence="GNU Lesser General Public License 3.0, "
            "https://www.gnu.org/licenses/lgpl-3.0.html",
            notice="Chair of Automotive Technology, Technical University of Munich. The centre "
            "lines come from OpenStreetMap, (c) OpenStreetMap contributors, ODbL 1.0, "
            "https://www.openstreetmap.org/copyright. Whoever passes the files on keeps this "
            "notice and the licence with them, apart from code under another licence.",
            files=(
                File(
                    "tracks/Catalunya.csv",
                    32801,
                    "8d6dc9d50e98bdecd818cb880a4b12bb5cec25d699a6b774e0b593c0f8a9da5e",
                ),
                File(
                    "tracks/IMS.csv",
                    27320,
                    "4254dc23f263bbe6c85c67e48d9a466e4f710da03f1370dff3fdc378de705471",
                ),
                File(
                    "tracks/Monza.csv",
                    39894,
                    "4b5993986e67950df1b89efa03a4df02127f07b7213985917f0bad27ad3d48b6",
                ),
                File(
                    "tracks/Norisring.csv",
                    15935,
                    "8857d3c362ad2923c1f93c8d257498f50459770b9021adcc7969b71085c31d9a",
                ),
                File(
                    "tracks/Spa.csv",
                    49499,
                    "952673dfa772427be8a9013b8c1cb5ff5935f85c0c21d2a223adb04c6d640c8a",
                ),
                File(
                    "tracks/Suzuka.csv",
                    40662,
                    "b4d3e325edd1e85e4e73765a80f7203b741e6dff5cceec4260390716c10eee67",
                ),
            ),
        ),
    ),
    "table_tennis": (
        Source(
            folder="table_tennis/deepmind_ball_states",
            about="15,792 states of balls just after a hit, from real play against a robot",
            repository="google-deepmind/competitive_robot_table_tennis",
            commit="54cf18e41a8f134d98ad38710001ed50aabb8ebc",
            licence="Creative Commons Attribution 4.0 International, "
            "https://creativecommons.org/licenses/by/4.0/legalcode",
            notice="Copyright 2025 Google LLC; provided as it is, without warranties. D'Ambrosio, "
            "Abeyruwan, Graesser et al., Achieving Human Level Competitive Robot Table Tennis, "
            "ICRA 2025, arXiv:2408.03906.",
            files=(File("rallies.json", 3677067), File("serves.json", 765327)),
        ),
        Source(
            folder="table_tennis/mpi_aimy_trajectories",
            about="tracked balls of the AIMY launcher",
            repository="intelligent-soft-robots/ball_prediction",
            commit="6532302f11e715ee4bc20bfff25ca0391f5357ac",
            licence="BSD 3-Clause, https://opensource.org/license/bsd-3-clause",
            notice="Copyright (c) 2023, Intelligent Soft Robots. Whoever passes the files on "
            "keeps the copyright notice, the conditions and the disclaimer with them. Launcher: "
            "Dittrich et al., AIMY, ICRA 2023, arXiv:2210.06048.",
            files=(
                File("data/mn5008_backspin.hdf5", None),
                File("data/mn5008_no_spin.hdf5", None),
                File("data/mn5008_topspin.hdf5", None),
                File("data/no_spin_robot_simple.hdf5", None),
            ),
        ),
    ),
    "ace_matches": (
        Source(
            folder="ace_matches",
            about="4,024 events of Ace's matches against seven players",
            repository="SonyResearch/ace_public",
            commit="57ac16a42c25c47bde24cd2a592804f4b800085b",
            licence="",
            notice="(c) 2026 Sony Research Inc. Durr et al., Outplaying elite table tennis players "
            "with an autonomous robot, Nature 652:886-891 (2026).",
            files=(File("data/match_data.csv", 669148),),
        ),
    ),
}
NO_LICENCE = "none is stated: all rights stay with the owner; do not pass the file or rows of it on"


@dataclasses.dataclass(frozen=True)
class FetchConfig:
    sets: tuple[str, ...] = ()  # racetracks, table_tennis, ace_matches
    dest: str = ""  # folder that gets a folder for each set
    mirror: str = ""  # base URL that stands in for the authors' server
    overwrite: bool = False  # replace files that have other content
    yes: bool = False  # do not ask

    def __post_init__(self):
        if self.mirror:
            url = urllib.parse.urlsplit(self.mirror)
            if url.scheme not in ("http", "https") or not url.hostname:
                raise ValueError(f"mirror must be http://... or https://..., got {self.mirror!r}")


class Job(NamedTuple):
    """A file that is wanted."""

    source: Source
    file: File
    target: Path
    expected: str  # SHA-256; empty: whatever comes
    is_there: bool
    resume: bool  # whether a partial download is of this very file

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")


def sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def read_record(folder: Path, source: Source) -> dict[str, Any] | None:
    """The files that a folder has of this source, by name; None where it is not of this source."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if (record["repository"], record["commit"]) != (source.repository, source.commit):
            return None
        return {
            name: {**entry, "sha256": str(entry["sha256"])}
            for name, entry in record["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_record(folder: Path, source: Source, changes: dict[str, Any]) -> None:
    files = {**(read_record(folder, source) or {}), **changes}
    write_json(
        folder / RECORD,
        {
            "about": source.about,
            "repository": source.repository,
            "commit": source.commit,
            "licence": source.licence or NO_LICENCE,
            "notice": source.notice,
            "files": files,
        },
    )


def plan(config: FetchConfig, source: Source) -> list[Job]:
    """What is to be done for each file. Raises UserError for what stands in the way."""
    folder = Path(config.dest).expanduser() / source.folder
    for place in (*reversed(folder.parents), folder):
        if place.exists() and not place.is_dir():
            raise UserError(f"{place} is a file, not a folder")
    known = read_record(folder, source)
    if known is None and (folder / RECORD).exists() and not config.overwrite:
        raise UserError(
            f"{folder / RECORD}: this folder is not of commit {source.commit} of "
            f"{source.repository}; choose another --dest, or --overwrite"
        )
    jobs = []
    for file in source.files:
        target = folder / file.name
        expected = file.sha256 or (known or {}).get(file.name, {}).get("sha256", "")
        if target.is_dir():
            raise UserError(f"{target} is a folder, not a file")
        found = sha256_of(target) if target.exists() else ""
        is_there = bool(found) and found == expected
        if found and not is_there and not config.overwrite:
            why = (
                f"has other content: SHA-256 {found}, expected {expected}"
                if expected
                else "is there, and no SHA-256 is known to compare it with"
            )
            raise UserError(f"{target} {why}; move it away, or --overwrite")
        resume = bool(file.sha256) or known is not None
        jobs.append(Job(source, file, target, expected, is_there, resume))
    return jobs


def licence_text(jobs: Sequence[Job]) -> str:
    """What a person should know before files of one source are downloaded."""
    source = jobs[0].source
    lines = [
        f"{source.folder}: {source.about}",
        f"  from     https://github.com/{source.repository}, commit {source.commit}",
        f"  licence  {source.licence or NO_LICENCE}",
        f"  notice   {source.notice}",
    ]
    unknown = [job.file.name for job in jobs if not job.expected]
    if unknown:
        lines.append(
            f"  unchecked  no SHA-256 is recorded for {', '.join(unknown)}: the first download is "
            f"taken as it comes, and noted in {RECORD}"
        )
    return "\n".join(lines) + "\n"


def agreed(config: FetchConfig, jobs: Sequence[Job]) -> bool:
    if config.yes or not sys.stdin.isatty():
        return True
    sys.stderr.write(f"Download {len(jobs)} files to {config.dest}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


class Progress:
    """How far all is, in one line: it changes in place on a terminal, else each file has one."""

    def __init__(self, jobs: Sequence[Job]):
        self._sizes = {job.target: job.file.size for job in jobs}
        self._done = dict.fromkeys(self._sizes, 0)
        self._ended = 0
        self._got = 0  # bytes of this run
        self._began, self._shown = time.monotonic(), 0.0
        self._live = sys.stderr.isatty()

    def text(self, seconds: float) -> str:
        done, rate = sum(self._done.values()), self._got / max(seconds, 1e-3)
        sizes = [size for size in self._sizes.values() if size is not None]
        whole = sum(sizes) if len(sizes) == len(self._sizes) else None
        of = "" if whole is None else f" of {whole / 1e6:.1f}"
        parts = [f"{self._ended} of {len(self._sizes)} files", f"{done / 1e6:.1f}{of} MB"]
        parts.append(f"{rate / 1e6:.2f} MB/s")
        if whole is not None and rate:
            left = max(whole - done, 0) / rate
            parts.append(f"ETA {int(left // 60)}:{int(left % 60):02d}")
        return ", ".join(parts)

    def start(self, job: Job, held: int, size: int | None) -> None:
        self._done[job.target] = held
        self._sizes[job.target] = size if size is not None else job.file.size

    def add(self, job: Job, count: int) -> None:
        self._done[job.target] += count
        self._got += count
        self._show()

    def end(self, job: Job, told: str) -> None:
        self._ended += 1
        self._sizes[job.target] = self._done[job.target]
        if self._live:
            self._show(always=True)
        else:
            sys.stderr.write(f"{job.target}: {self._done[job.target]:,} bytes, {told}\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Leaves the line, so that what follows does not run into it."""
        if self._live and self._shown:
            sys.stderr.write("\n")

    def _show(self, always: bool = False) -> None:
        now = time.monotonic()
        if self._live and (always or now - self._shown > SHOWN_EVERY):
            self._shown = now
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[2K{self.text(now - self._began)[:width]}")
            sys.stderr.flush()


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", error)  # of a URLError: the error below it
    return str(getattr(reason, "strerror", None) or reason or type(reason).__name__)


def open_url(url: str, start: int) -> Any:
    """The server's answer, from byte `start` on where the server can. Raises UserError."""
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return open_url(url, 0)
        raise UserError(f"{url}: the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url}: the server cannot be reached: {_why(error)}") from None


def receive(job: Job, url: str, start: int, progress: Progress) -> None:
    """Fills the partial file, from byte `start` on. Raises UserError; what came stays there."""
    with open_url(url, start) as response:
        if response.headers.get_content_type() == "text/html":
            raise UserError(f"{url}: the server sends a web page instead of the file")
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0  # the server cannot go on, and sends all
        elif not re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
            raise UserError(f"{url}: the server sends other bytes than those from {start} on")
        length = response.headers.get("Content-Length", "")
        size = start + int(length) if length.isdecimal() else None
        if size is None and not job.expected and not response.chunked:
            # Then a broken connection would look like the end.
            raise UserError(f"{url}: the server does not say how long the file is")
        with storage_errors(job.target.parent):
            job.target.parent.mkdir(parents=True, exist_ok=True)
        write_record(job.target.parent, job.source, {})  # whose files the partial ones are
        progress.start(job, start, size)
        got, broken = start, ""
        with storage_errors(job.part), job.part.open("ab" if start else "wb") as file:
            while True:
                try:
                    chunk = response.read(CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    broken = _why(error)
                    break
                if not chunk:
                    break
                file.write(chunk)
                file.flush()
                got += len(chunk)
                progress.add(job, len(chunk))
            os.fsync(file.fileno())
    if not broken and size is not None and got < size:
        broken = "the connection ended"
    if broken:
        of = "" if size is None else f" of {size:,}"
        raise UserError(
            f"{url}: {broken} after {got:,}{of} bytes, kept as {job.part}; the same command goes "
            "on from there"
        )


def download(job: Job, server: str, progress: Progress) -> str:
    """Brings one file to its place and returns how far it was checked. Raises UserError."""
    path = f"{job.source.repository}/{job.source.commit}/{job.file.path}"
    url = f"{server.rstrip('/')}/{urllib.parse.quote(path)}"
    held = job.part.stat().st_size if job.resume and job.part.is_file() else 0
    found = size = None
    for start in dict.fromkeys((held, 0)):  # once more from the start if old bytes were bad
        receive(job, url, start, progress)
        found, size = sha256_of(job.part), job.part.stat().st_size
        if found == (job.expected or found):
            break
        job.part.unlink()
    else:
        wanted = "" if job.file.sha256 else f" as noted in {job.target.parent / RECORD}"
        raise UserError(
            f"{url}: is not the file that is expected: {size:,} bytes with SHA-256 {found}, "
            f"expected {job.expected}{wanted}; the download is deleted"
        )
    # Noted first: a kill between the two leaves a partial file, not one that nothing is known of.
    entry = {"path": job.file.path, "sha256": found, "bytes": size, "server": server}
    write_record(job.target.parent, job.source, {job.file.name: entry})
    with storage_errors(job.target):
        os.replace(job.part, job.target)
    told = "SHA-256 as expected" if job.expected else f"SHA-256 {found}, not checked"
    if job.file.size not in (None, size):
        told += f"; {size:,} bytes, though {job.file.size:,} are recorded"
    progress.end(job, told)
    return told


def main(config: FetchConfig) -> int:
    allowed = ", ".join(SETS)
    if not config.sets:
        raise UsageError(f"name a set, as in: fetch_data racetracks --dest=.; sets: {allowed}")
    for name in config.sets:
        if name not in SETS:
            raise UsageError(f"there is no set {name!r}; sets: {allowed}")
    if not config.dest:
        raise UsageError("--dest must name a folder for the files")
    sources = [source for name in dict.fromkeys(config.sets) for source in SETS[name]]
    plans = [plan(config, source) for source in sources]
    wanted = [[job for job in jobs if not job.is_there] for jobs in plans]
    jobs = [job for part in wanted for job in part]
    for part in wanted:
        if part:
            sys.stderr.write(licence_text(part))
    if jobs and not agreed(config, jobs):
        sys.stderr.write("nothing is downloaded\n")
        return 1
    progress, unchecked = Progress(jobs), []
    try:
        for job in jobs:
            with open_workdir(job.target.parent):  # a second process would spoil the partial file
                told = download(job, config.mirror or SERVER, progress)
            if not job.expected:
                unchecked.append(f"{job.target}: {told}")
    finally:
        progress.close()
    for part, whole in zip(wanted, plans, strict=True):
        kept = len(whole) - len(part)
        print(f"{whole[0].target.parent}: {len(part)} files downloaded, {kept} kept")
    for line in unchecked:
        print(line)
    return 0


if __name__ == "__main__":
    flags.main(main, FetchConfig(), positional="sets")
