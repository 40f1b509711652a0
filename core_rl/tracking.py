"""The records of a run: its directory, `record.json`, `metrics.jsonl` and the mirror to W&B.

`metrics.jsonl` is the source of truth, since W&B loses rows silently when a disk is full and can
block or fail when its server is away. JSON has no nan and no infinities: they are written as the
strings "nan", "inf" and "-inf", which `read_metrics` and `flags.from_dict` turn back.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from core_rl import flags
from core_rl.errors import UserError, storage_errors

RECORD = "record.json"
PRUNED = "pruned"  # in a run's directory: its checkpoints were deleted on purpose
ENVIRONMENT = ("XLA_", "JAX_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # what changes results
CODE = Path(__file__).parent
LOCK_WAIT = 1.0  # for who only looks whether a directory is held [s]
MIRRORED = "mirrored.json"  # in the directory of W&B's files: what is safely in the mirror


class RecordError(UserError):
    """A record is damaged, or the work directory belongs to another run."""


@dataclasses.dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases; offline runs are uploaded with `wandb sync WORKDIR/wandb/offline-run-*`."""

    mode: Literal["offline", "online", "disabled"] = "offline"  # only online needs an account
    project: str = "champion-control"  # W&B project
    entity: str | None = None  # W&B user or team
    group: str | None = None  # what is averaged over seeds; none: the same options but the seed
    job_type: str | None = None  # role, such as sweep or reproduce; none: what the program does
    tags: tuple[str, ...] = ()  # labels to filter by
    init_timeout: float = 60.0  # how long a run that begins waits for the server [s]

    def __post_init__(self):
        if not self.init_timeout > 0:
            raise ValueError(f"init_timeout must be positive, got {self.init_timeout}")


def cell_of_agent() -> Path | None:
    """Where, below its `--workdir`, a run is kept that W&B's agent has started; None: it has not.

    The agent gives all runs of a sweep the same command, up to what the sweep varies.
    """
    sweep, run = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    return Path(f"sweep-{sweep}", run) if sweep and run else None


@contextlib.contextmanager
def open_workdir(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Creates a run's directory and keeps other processes out of it until the block ends."""
    if not os.fspath(path):
        raise RecordError("workdir must name a directory")
    directory = Path(path).expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / "lock", "a+")
    except OSError as error:
        reason = "it is a file" if directory.is_file() else error.strerror
        raise RecordError(f"cannot use {directory} as work directory: {reason}") from None
    with lock:
        deadline = time.monotonic() + LOCK_WAIT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.seek(0)
                    owner = lock.read().strip() or "unknown"
                    raise RecordError(f"{directory} is in use by process {owner}") from None
                time.sleep(LOCK_WAIT / 20)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield directory


def is_held(workdir: Path) -> bool:
    """Whether a process is in `open_workdir` of this directory."""
    try:
        lock = open(workdir / "lock")
    except FileNotFoundError:
        return False
    with lock:
        try:
            # Shared, since NFS gives no exclusive lock of a file that is open for reading.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class JsonlSink:
    """Appends one JSON object per row; what `write` has returned from survives a kill.

    Opening cuts off a last line that a kill has torn, never a complete one. Errors of the storage
    become a StorageError that names the file, and leave no part of a row behind.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        with storage_errors(self._path):
            self._open()

    def write(self, row: dict[str, Any]) -> None:
        line = json.dumps(encode_json(row), allow_nan=False).encode() + b"\n"
        with storage_errors(self._path):
            size = os.fstat(self._file).st_size
            try:
                while line:
                    line = line[os.write(self._file, line) :]
            except OSError:
                os.ftruncate(self._file, size)
                raise

    def sync(self) -> None:
        """Blocks until every row is on the disk itself."""
        with storage_errors(self._path):
            os.fsync(self._file)

    def supersede_after(self, epoch: int) -> int:
        """Moves rows with a later `epoch` to `*.superseded.jsonl` and returns their number.

        For a resume from the checkpoint of `epoch`: what the killed process went on to record
        would stand in the file twice.
        """
        rows = read_metrics(self._path)
        late = [row for row in rows if row.get("epoch", epoch) > epoch]
        if late:
            superseded = JsonlSink(self._path.with_suffix(".superseded.jsonl"))
            for row in late:
                superseded.write(row)
            superseded.sync()
            superseded.close()
            kept = [row for row in rows if row.get("epoch", epoch) <= epoch]
            lines = "".join(json.dumps(encode_json(row)) + "\n" for row in kept)
            write_atomically(self._path, lines.encode())
            with storage_errors(self._path):
                os.close(self._file)
                self._open()
        return len(late)

    def close(self) -> None:
        self.sync()
        os.close(self._file)

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        content = self._path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if _is_object(content[complete:]):
            os.write(self._file, b"\n")
        elif complete < len(content):
            os.ftruncate(self._file, complete)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a JSONL file, also while it is being written: a torn last line is left out."""
    lines = Path(path).read_bytes().split(b"\n")
    if not _is_object(lines[-1]):
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not _is_object(line):
            raise RecordError(f"{path}: line {number} is not a JSON object")
    return [decode_json(json.loads(line)) for line in lines]


class WandbSink:
    """A mirror of the rows in W&B. Whatever fails here warns once and ends the mirror, not the run.

    Rows of several seeds hold lists: the mean goes under the row's own name, each number under
    `name/seed_k`. Steps are never passed to W&B, which drops rows whose step does not increase (as
    after a resume); `env_steps` is an ordinary value that the plots are drawn over.

    Every start of a run, a resume too, and what `show` adds are fragments with the same id, which
    `wandb sync` joins in order. A fragment that was not closed, as after a kill, ends anywhere, and
    `wandb sync` neither gets past it nor remembers that it sent it. So the next start hides it from
    `wandb sync`, as `*.wandb.killed`, and sends its rows again from `metrics.jsonl`, like rows of a
    time when the mirror was disabled or had failed: `mirrored.json` says up to which epoch closed
    fragments hold them.

    Rows hold `attempt`, the number of resumes before them. Where an epoch is there more than once,
    the latest attempt counts, and it has the value of `metrics.jsonl`: a run that ended in an error
    beyond its last checkpoint records those epochs again, and a fragment that was uploaded before
    it was hidden stays with the server.

    Args:
      job_type: what the program does, where the configuration names no other role.
      attempt: number of resumes before this start.
      rows: what `metrics.jsonl` holds when the run begins; None: send nothing again.
    """

    def __init__(
        self,
        config: WandbConfig,
        workdir: Path,
        name: str,
        run_config: Any,
        *,
        job_type: str = "train",
        attempt: int = 0,
        rows: Sequence[Mapping[str, Any]] | None = None,
    ):
        self._config, self._workdir, self._name = config, workdir, name
        self._run_config, self._job_type, self._attempt = run_config, job_type, attempt
        self._directory, self._began = workdir / "wandb", time.time()
        self._epoch = 0  # the last that is in the mirror
        self._latest: dict[str, Any] = {}  # of every column
        self._evaluated: dict[int, dict[str, Any]] = {}  # columns by epoch, where it was evaluated
        self._run: Any = None
        self._off = config.mode == "disabled"
        # A run that W&B's agent started is for its server, which proposes by what runs tell.
        agents = cell_of_agent() is not None and not self._off
        self._mode: Literal["offline", "online", "disabled"] = "online" if agents else config.mode
        with self._mirroring():
            if rows is not None:
                self._take_stock(rows)
            if not self._off:
                self._open()
                lacking = self._lacking(rows or ())
                for row in rows or ():
                    self._remember(row)
                for row in lacking:
                    self.write(row)

    def write(self, row: Mapping[str, Any]) -> None:
        with self._mirroring():
            if self._run is not None:
                self._run.log(self._remember(row))
                self._epoch = row.get("epoch", self._epoch)

    def keep(self, policy: Path) -> None:
        """Uploads a policy bundle that is the best so far; offline, `show` does once at the end."""
        with self._mirroring():
            if self._run is not None and self._mode == "online":
                self._log_policy(policy)

    def show(self, exit_code: int = 0) -> None:
        """Adds what a run leaves behind to its closed mirror: pages, pictures, videos, the table of
        its evaluations and the policy."""
        policy = self._workdir / "policy"
        with self._mirroring():
            # Of this start: the directory may hold what has nothing to do with the run.
            left = [
                path
                for path in sorted(self._workdir.iterdir())
                if path.suffix in (".html", ".png", ".gif") and path.stat().st_mtime >= self._began
            ]
            if self._off or not (left or policy.is_dir() or self._evaluated):
                return
            self._open()
            import wandb

            shown_as = {
                ".png": wandb.Image,
                ".gif": lambda name: wandb.Video(name, format="gif"),
                ".html": lambda name: wandb.Html(Path(name), inject=False),  # has its own style
            }
            media = {f"media/{path.stem}": shown_as[path.suffix](str(path)) for path in left}
            if self._evaluated:
                media["evaluations"] = self._evaluations()
            # A fragment's summary replaces those before it, and its axis begins at 0.
            self._run.summary.update(self._latest)
            if media:
                self._run.log({**media, "env_steps": self._latest.get("env_steps", 0)})
            if policy.is_dir():
                self._log_policy(policy)
        self.close(exit_code)

    def sync(self) -> None:
        """W&B writes in the background and has nothing to wait for."""

    def close(self, exit_code: int = 0) -> None:
        with self._mirroring():
            if self._run is not None:
                self._run.finish(exit_code=exit_code)
                self._run = None
                self._note([path.name for path in self._directory.glob("offline-run-*")])

    def _open(self) -> None:
        self._directory.mkdir(exist_ok=True)
        # W&B otherwise fills the home directory, whose quota is small on clusters.
        for variable in ("CACHE", "DATA", "ARTIFACT", "CONFIG"):
            path = self._directory / variable.lower()
            os.environ.setdefault(f"WANDB_{variable}_DIR", str(path))
        import wandb

        config, environment = self._config, os.environ.get
        self._run = wandb.init(
            mode=self._mode,
            project=config.project,
            entity=config.entity,
            group=config.group
            or environment("WANDB_RUN_GROUP")
            or group_of(self._name, self._run_config),
            tags=list(config.tags),
            name=self._name,
            job_type=config.job_type or environment("WANDB_JOB_TYPE") or self._job_type,
            id=environment("WANDB_RUN_ID") or _stable_id(self._directory / "run_id"),
            resume="allow",
            dir=str(self._workdir),
            config=flags.to_dict(self._run_config),
            # Not silent, W&B says of an absent server again and again, beyond the timeout.
            settings=wandb.Settings(
                console="off", init_timeout=config.init_timeout, finish_timeout=60, silent=True
            ),
        )
        self._run.define_metric("env_steps")
        self._run.define_metric("*", step_metric="env_steps")
        if self._mode == "online":
            print(f"W&B: {self._run.url}", file=sys.stderr)

    def _take_stock(self, rows: Sequence[Mapping[str, Any]]) -> None:
        path = self._directory / MIRRORED
        noted = json.loads(path.read_bytes()) if path.exists() else {"epoch": 0, "fragments": []}
        # Rows of later epochs are superseded: what is recorded in their place is to be sent.
        self._epoch = min(noted["epoch"], max((row["epoch"] for row in rows), default=0))
        if self._epoch < noted["epoch"]:
            self._note(noted["fragments"])
        if not self._off:
            for log in self._directory.glob("offline-run-*/*.wandb"):
                if log.parent.name not in noted["fragments"]:
                    log.rename(log.with_suffix(".wandb.killed"))

    def _lacking(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        known = self._epoch
        if self._mode == "online" and self._attempt > 0:
            # Of a killed run the server still tells the last row that it got.
            if self._run.summary.get("attempt") == self._attempt - 1:
                known = max(known, self._run.summary.get("epoch", 0))
        return [row for row in rows if row["epoch"] > known]

    def _remember(self, row: Mapping[str, Any]) -> dict[str, Any]:
        columns = {**_per_seed(row), "attempt": self._attempt}
        self._latest |= columns
        if any(name.startswith("eval/") for name in columns):
            self._evaluated[row["epoch"]] = columns
        return columns

    def _evaluations(self) -> Any:
        """A table with a line per evaluation."""
        import wandb

        lines = [self._evaluated[epoch] for epoch in sorted(self._evaluated)]
        shown = dict.fromkeys(name for line in lines for name in line if name.startswith("eval/"))
        names = [name for name in ("epoch", "env_steps", "updates") if name in lines[0]]
        names += shown
        return wandb.Table([*names], [[line.get(name) for name in names] for line in lines])

    def _note(self, fragments: Sequence[str]) -> None:
        write_json(
            self._directory / MIRRORED, {"epoch": self._epoch, "fragments": sorted(fragments)}
        )

    def _log_policy(self, policy: Path) -> None:
        import wandb

        # With the id, for `best` and `latest` are among the versions of one name.
        model = wandb.Artifact(f"{self._name}-{self._run.id}-policy", type="model")
        for path in sorted(policy.rglob("*")):  # `add_dir` would write to the terminal
            if path.is_file():
                model.add_file(str(path), name=str(path.relative_to(policy)))
        self._run.log_artifact(model, aliases=["latest", "best"])

    @contextlib.contextmanager
    def _mirroring(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever W&B raises must not stop the training
            self._run, self._off = None, True
            reason = " ".join(str(error).split())[:200]
            print(
                f"warning: the mirror to W&B ends ({type(error).__name__}: {reason}); "
                f"{self._workdir / 'metrics.jsonl'} goes on",
                file=sys.stderr,
            )


def group_of(name: str, run_config: Any) -> str:
    """The runs that are averaged: those whose options differ in seeds, and in how a run is kept and
    watched, alone."""
    options = {
        option: value
        for option, value in flatten(flags.to_dict(run_config)).items()
        if not is_below(option, ("seed", "num_seeds", "workdir", "run", "wandb"))
    }
    digest = hashlib.sha1(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
    return f"{re.sub('-s[0-9]+$', '', name)}-{digest}"


def write_record(
    workdir: Path,
    config: Any,
    *,
    seeds: list[int],
    resumed_epoch: int | None = None,
    may_differ: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Writes `record.json` when a run begins; a later call adds to its `resumes` instead.

    Returns the record. Raises RecordError if the run was started with another config, see
    `check_same_config`.
    """
    record = read_record(workdir)
    if record is None:
        record = {
            "started": _now(),
            "argv": sys.orig_argv,
            "module": _module_of(config),
            "seeds": seeds,
            "config": flags.to_dict(config),
            "code": code_version(),
            "versions": {
                "python": platform.python_version(),
                "jax": jax.__version__,
                "packages": _packages(),
            },
            "machine": machine(),
            "environment": {
                name: os.environ[name]
                for name in sorted(os.environ)
                if name.startswith(ENVIRONMENT)
            },
            "resumes": [],
        }
    else:
        check_same_config(record, config, may_differ)
        resume = {
            "time": _now(),
            "epoch": resumed_epoch,
            "argv": sys.orig_argv,
            "config": flags.to_dict(config),
            "code": code_version(),
        }
        record["resumes"].append(resume)
    write_json(workdir / RECORD, record)
    return record


def _module_of(config: Any) -> str:
    """The experiment whose options these are: what was started, unless that has others and led to
    this one."""
    started = getattr(sys.modules["__main__"], "CONFIG", None)
    own = type(config).__module__
    if isinstance(started, type(config)) or own == "__main__":
        return module_of(sys.orig_argv)
    return own


def module_of(argv: Sequence[str]) -> str:
    """The module of a command with `-m`; empty where there is none."""
    return argv[argv.index("-m") + 1] if "-m" in argv[:-1] else ""


def read_record(workdir: Path) -> dict[str, Any] | None:
    """The run's record, or None where no run has begun."""
    path = workdir / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise RecordError(f"{path} is damaged: {error}") from None
    if not isinstance(record, dict) or not {"config", "resumes"} <= set(record):
        raise RecordError(f"{path} is not the record of a run")
    return record


def check_same_config(
    record: dict[str, Any], config: Any, may_differ: tuple[str, ...] = ()
) -> None:
    """Raises RecordError naming the flags whose value is not the recorded one.

    `may_differ` holds dotted names of leaves or of whole groups, such as `run` for `run.minutes`.
    """
    old, new = flatten(record["config"]), flatten(flags.to_dict(config))
    differing = [
        f"--{name}={_text(old, name)} (now {_text(new, name)})"
        for name in changed(old, new)
        if not is_below(name, may_differ)
    ]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise RecordError(
            f"this run was started with {', '.join(differing[:5])}{more}: "
            "repeat those, or choose another --workdir"
        )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a recorded configuration by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What two mappings have not in common, or not with the same value."""
    return [name for name in {**old, **new} if old.get(name, ...) != new.get(name, ...)]


def is_below(name: str, groups: Iterable[str]) -> bool:
    """Whether a dotted name is one of `groups` or below one, as `run.minutes` is below `run`."""
    return any(f"{name}.".startswith(f"{group}.") for group in groups)


def text_of(value: Any) -> str:
    """A recorded value as a flag takes it."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return flags.format_text(tuples(value))


def write_json(path: Path, value: Any) -> None:
    content = json.dumps(encode_json(value), indent=1, allow_nan=False)
    write_atomically(path, content.encode() + b"\n")


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file as a whole: a kill leaves the old content or the new, never a mixture."""
    with storage_errors(path):
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise


def encode_json(value: Any) -> Any:
    """Plain JSON of dicts, sequences, numbers and arrays (numpy's or jax's); see the module."""
    if isinstance(value, dict):
        return {str(name): encode_json(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [encode_json(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return encode_json(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def decode_json(value: Any) -> Any:
    """Inverse of `encode_json` up to arrays, which stay lists."""
    if isinstance(value, dict):
        return {name: decode_json(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [decode_json(entry) for entry in value]
    return float(value) if value in flags.NON_FINITE else value


def _is_object(line: bytes) -> bool:
    # No proper beginning of a JSON object is JSON, so a torn line never passes.
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _per_seed(row: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, list | tuple | np.ndarray):
            values[name] = float(np.mean(value))
            values.update({f"{name}/seed_{k}": entry for k, entry in enumerate(value)})
        else:
            values[name] = value
    return values


def _stable_id(path: Path) -> str:
    """One W&B id per work directory, so that the parts of a resumed run belong together."""
    if not path.exists():
        write_atomically(path, secrets.token_hex(4).encode())
    return path.read_text()


def _text(flat: dict[str, Any], name: str) -> str:
    return text_of(flat[name]) if name in flat else "absent"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _packages() -> dict[str, str]:
    installed = {
        dist.name: dist.version for dist in importlib.metadata.distributions() if dist.name
    }
    return dict(sorted(installed.items()))


def code_version(but: Sequence[str] = ()) -> dict[str, Any]:
    """Commit of the repository that holds this file, and whether its files differ from it, `but`
    for those that match one of these patterns."""
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    others = (f":(top,exclude,glob){pattern}" for pattern in but)
    status = _git("status", "--porcelain", "--", ":(top)", *others) if tracked else None
    return {
        "git_sha": _git("rev-parse", "HEAD") if tracked else None,
        "dirty": None if status is None else bool(status),
    }


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(CODE), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def machine() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),  # [bytes]
        "device": devices[0].device_kind,
        "num_devices": len(devices),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
