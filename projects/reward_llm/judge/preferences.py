"""What judges compare (clips) and what they answer (preferences), and the files of both.

A clip is a stretch of driving or play of fixed length. Judges see its text and its picture; a
reward reads its features, so that the alignment of a new reward needs no simulation.
"""

import dataclasses
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from core_rl.errors import UserError
from core_rl.tracking import JsonlSink, read_metrics, write_atomically, write_json

Answer = Literal["first", "second", "tie", "skip"]
Shown = Literal["first", "second", "both", "unknown"]

SCORES: Mapping[str, int] = {"first": 1, "tie": 0, "second": -1}  # of the first clip of a pair
OPPOSITE: Mapping[Answer, Answer] = {
    "first": "second",
    "second": "first",
    "tie": "tie",
    "skip": "skip",
}
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # ids are names of files
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What a picture needs to be drawn. Other chunks are comments, such as the name of an experiment.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"sRGB", b"gAMA", b"IDAT", b"IEND")


class JudgeError(UserError):
    """Clips, preferences or the use of a judge are not as they must be."""


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """What one policy did from one start, in T control steps."""

    id: str
    text: str  # the summary that a judge reads; lines "name: value" become a table
    picture: bytes | None  # PNG
    features: Mapping[str, np.ndarray]  # each [T], what a reward reads
    policy: str  # which agent or candidate acts; a judge never sees it
    start: str = ""  # clips are compared only with clips of the same start

    def __post_init__(self):
        if not ID.fullmatch(self.id):
            raise JudgeError(
                f"clip {self.id!r}: an id is up to 100 letters, digits, '.', '_' and '-', "
                "and begins with a letter or digit"
            )
        shapes = {name: np.shape(values) for name, values in self.features.items()}
        if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
            raise JudgeError(f"clip {self.id}: features must be [T] of one T, got {shapes}")
        if self.picture is not None and not self.picture.startswith(PNG_SIGNATURE):
            raise JudgeError(f"clip {self.id}: the picture is not a PNG")

    @property
    def length(self) -> int:
        """T, in control steps; 0 for a clip without features."""
        return len(next(iter(self.features.values()), ()))


@dataclasses.dataclass(frozen=True)
class Preference:
    """One answer of one judge about one pair of clips."""

    first: str  # id of a clip
    second: str
    answer: Answer
    judge: str  # such as "person", "llm:MODEL", "rule"
    why: str = ""  # a remark: data of unknown content, also where it reaches a prompt or a page
    shown: Shown = "unknown"  # which clip stood left or came first; both: asked in both orders
    time: str = ""  # UTC; empty where a repetition of the run must give the same file

    def __post_init__(self):
        for name, allowed in (("answer", get_args(Answer)), ("shown", get_args(Shown))):
            if getattr(self, name) not in allowed:
                raise JudgeError(
                    f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}"
                )
        for name in ("first", "second", "judge", "why", "time"):
            if not isinstance(getattr(self, name), str):
                raise JudgeError(f"{name} must be text, got {getattr(self, name)!r}")
        if self.first == self.second:
            raise JudgeError(f"clip {self.first!r} cannot be compared with itself")

    @property
    def pair(self) -> tuple[str, str]:
        """The two ids in an order that does not depend on how they were asked."""
        return (min(self.first, self.second), max(self.first, self.second))

    def answer_for(self, first: str) -> Answer:
        """The answer as if clip `first` had been named first."""
        return self.answer if first == self.first else OPPOSITE[self.answer]


class PreferenceLog:
    """Appends answers to a file; what a method has returned from survives a kill of the process.

    An answer is never erased: a withdrawal is a line of its own.
    """

    def __init__(self, path: Path):
        self._sink = JsonlSink(path)

    def append(self, preference: Preference) -> None:
        self._write(dataclasses.asdict(preference))

    def withdraw(self, preference: Preference) -> None:
        """Takes back the judge's latest standing answer about this pair."""
        row = {name: getattr(preference, name) for name in ("first", "second", "judge")}
        self._write({"withdrawn": True, **row})

    def close(self) -> None:
        self._sink.close()

    def _write(self, row: dict[str, Any]) -> None:
        self._sink.write(row)
        self._sink.sync()


def append_preferences(path: Path, preferences: Iterable[Preference]) -> None:
    log = PreferenceLog(path)
    try:
        for preference in preferences:
            log.append(preference)
    finally:
        log.close()


def read_preferences(path: Path) -> list[Preference]:
    """The standing answers of a file in order; empty without a file. A torn last line is left out.

    Raises JudgeError, or a RecordError of `core_rl.tracking`, naming a line that cannot be read.
    """
    if not path.exists():
        return []
    fields = {field.name for field in dataclasses.fields(Preference)}
    standing: list[Preference] = []
    for number, row in enumerate(read_metrics(path), 1):
        withdrawn = row.pop("withdrawn", False)
        try:
            known: dict[str, Any] = {name: row[name] for name in row if name in fields}
            if withdrawn:
                known["answer"] = "skip"  # there is none, and none is needed
            entry = Preference(**known)
        except (JudgeError, TypeError) as error:
            raise JudgeError(f"{path}: line {number}: {error}") from None
        if withdrawn:
            same = [
                k
                for k, old in enumerate(standing)
                if old.pair == entry.pair and old.judge == entry.judge
            ]
            if same:
                standing.pop(same[-1])
        else:
            standing.append(entry)
    return standing


def label_arrays(
    preferences: Iterable[Preference], ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs [N, 2] as positions in `ids`, and labels [N]: 1 first preferred, -1 second, 0 tie.

    Skipped pairs are left out. Raises JudgeError for a clip that is not in `ids`.
    """
    position = {name: k for k, name in enumerate(ids)}
    pairs, labels = [], []
    for preference in preferences:
        if preference.answer == "skip":
            continue
        for name in (preference.first, preference.second):
            if name not in position:
                raise JudgeError(f"a preference names the clip {name!r}, which is not at hand")
        pairs.append((position[preference.first], position[preference.second]))
        labels.append(SCORES[preference.answer])
    return np.array(pairs, int).reshape(-1, 2), np.array(labels, int)


def hold_out(
    preferences: Iterable[Preference], share: float, seed: int
) -> tuple[list[Preference], list[Preference]]:
    """Preferences to filter by, and about `share` of all to report the final alignment on.

    All answers about the same two clips are on one side, which does not change as a file grows.
    """
    sides: tuple[list[Preference], list[Preference]] = ([], [])
    for each in preferences:
        names = [zlib.crc32(name.encode()) for name in each.pair]
        sides[int(np.random.default_rng([seed, *names]).random() < share)].append(each)
    return sides


def stack_features(clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """Features of M clips as [M, T] each. Raises JudgeError unless names and lengths agree."""
    if not clips:
        raise JudgeError("there are no clips")
    names, length = list(clips[0].features), clips[0].length
    for clip in clips[1:]:
        differing = set(clip.features) ^ set(names)
        if differing:
            raise JudgeError(
                f"clips {clips[0].id} and {clip.id} differ in features: {sorted(differing)[:5]}"
            )
        if clip.length != length:
            raise JudgeError(
                f"clips must have one length: {clips[0].id} has {length} steps, "
                f"{clip.id} has {clip.length}"
            )
    return {name: np.stack([clip.features[name] for clip in clips]) for name in names}


def draw_pairs(clips: Sequence[Clip], num_pairs: int, seed: int) -> list[tuple[str, str]]:
    """Up to `num_pairs` pairs of ids with the same start and different policies.

    Every pair of policies gets its k-th comparison before any gets its next, so that a judge who
    stops early has still compared all of them about equally often.
    """
    possible = [
        (first, second)
        for k, first in enumerate(clips)
        for second in clips[k + 1 :]
        if first.start == second.start and first.policy != second.policy
    ]
    rounds: dict[tuple[str, ...], int] = {}
    pairs: list[tuple[int, int, str, str]] = []
    for k in np.random.default_rng(seed).permutation(len(possible)):
        first, second = possible[k]
        policies = tuple(sorted((first.policy, second.policy)))
        rounds[policies] = rounds.get(policies, 0) + 1
        pairs.append((rounds[policies], len(pairs), first.id, second.id))
    return [(first, second) for _, _, first, second in sorted(pairs)[:num_pairs]]


def plain_png(picture: bytes) -> bytes:
    """The picture without comments, times and profiles: those may say whose clip it is."""
    if not picture.startswith(PNG_SIGNATURE):
        raise JudgeError("the picture is not a PNG")
    kept, at = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while at < len(picture):
        size = int.from_bytes(picture[at : at + 4], "big")
        chunk = picture[at : at + 12 + size]  # length, name, data, checksum
        if len(chunk) < 12 + size:
            raise JudgeError("the picture is a truncated PNG")
        if chunk[4:8] in PNG_CHUNKS:
            kept.append(chunk)
        at += len(chunk)
    return b"".join(kept)


def save_clips(directory: Path, clips: Iterable[Clip]) -> None:
    """Writes `ID.npz` (features and picture) and `ID.json` for each clip.

    The JSON comes last and holds the checksum of the other file: a clip is whole or not there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for clip in clips:
        content = io.BytesIO()
        arrays = {f"feature{k}": values for k, values in enumerate(clip.features.values())}
        if clip.picture is not None:
            arrays["picture"] = np.frombuffer(clip.picture, np.uint8)
        np.savez_compressed(content, allow_pickle=False, **arrays)
        write_atomically(directory / f"{clip.id}.npz", content.getvalue())
        facts = {
            "id": clip.id,
            "policy": clip.policy,
            "start": clip.start,
            "text": clip.text,
            "features": list(clip.features),
            "sha256": hashlib.sha256(content.getvalue()).hexdigest(),
        }
        write_json(directory / f"{clip.id}.json", facts)


def load_clips(directory: Path) -> dict[str, Clip]:
    """The clips of a directory by id, in order of their ids."""
    if not directory.is_dir():
        raise JudgeError(f"{directory} is not a directory of clips")
    return {path.stem: _load_clip(path) for path in sorted(directory.glob("[!.]*.json"))}


def _load_clip(path: Path) -> Clip:
    arrays_path = path.with_suffix(".npz")
    try:
        facts = json.loads(path.read_bytes())
        content = arrays_path.read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise JudgeError(f"{arrays_path} does not belong to {path.name}: save the clip again")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            features = {name: arrays[f"feature{k}"] for k, name in enumerate(facts["features"])}
            picture = arrays["picture"].tobytes() if "picture" in arrays else None
        if facts["id"] != path.stem:
            raise JudgeError(f"{path} holds the clip {facts['id']!r}, not {path.stem!r}")
        return Clip(facts["id"], facts["text"], picture, features, facts["policy"], facts["start"])
    except JudgeError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JudgeError(f"{path} is not a clip: {type(error).__name__}: {error}") from None
