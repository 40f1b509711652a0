"""Where the cells of a sweep run: in processes of this machine, on SLURM, or on a Ray cluster.

An executor starts `python ARGUMENTS` with its output in `log.txt` of a directory, and is asked
whether it has ended. An exit code below zero is the signal that ended the process, and one above
128 the signal on which it ended in order.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from core_rl.errors import UserError
from core_rl.tracking import is_held

PR_SET_PDEATHSIG = 1  # of prctl(2)
POLL = 0.2  # between two looks at what runs [s]
GPU_SHARE = 0.9  # of a GPU's memory, for all cells on it
# How SLURM's states begin of a job that it ended, and what submitit calls it here.
ENDED_BY_SLURM = ("CANCELLED", "TIMEOUT", "PREEMPTED", "INTERRUPTED")

Job = Any


class Grant(NamedTuple):
    """What a cluster grants each cell."""

    partition: str = ""  # empty: the cluster's default
    hours: float = 4.0
    cpus: int = 1
    gpus: int = 0


USUAL = Grant()


class Executor(Protocol):
    def start(self, name: str, arguments: list[str], directory: Path) -> Job: ...

    def poll(self, job: Job) -> int | None:
        """The exit code, or None while it runs."""
        ...

    def stop(self, jobs: Iterable[Job], at_once: bool = False) -> None:
        """Asks them to end in order, or ends them at once."""
        ...


@contextlib.contextmanager
def stop_on_signal(*more: signal.Signals) -> Iterator[list[int]]:
    """Fills the list with the numbers of signals that ask to stop, and says so at the first."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)
        name, first = signal.Signals(number).name, len(received) == 1
        what = "what runs ends its epoch and saves; once more ends it at once"
        sys.stderr.write(f"\n{name}: {what if first else 'ends at once'}\n")
        sys.stderr.flush()

    handled = (signal.SIGINT, signal.SIGTERM, *more)
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_until_free(directory: Path, received: Sequence[int]) -> None:
    """Until no process holds a run's directory, as one of a sweep that was killed does while it
    saves, or a signal asks to stop."""
    if is_held(directory):
        sys.stderr.write(f"{directory} is still in use; it begins when that process has ended\n")
    while is_held(directory) and not received:
        time.sleep(POLL)


def interrupted(code: int) -> bool:
    """Whether a process ended because it was asked to, by its exit code."""
    asked = (signal.SIGINT, signal.SIGTERM)
    return code in [128 + number for number in asked] + [-number for number in asked]


def why_failed(log: Path, code: int) -> str:
    """The last line that a process wrote, which is what our experiments say of an error."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    except OSError:
        lines = []
    said = next((line for line in reversed(lines) if line), "no message")
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}: {said[-300:]}"


def run_here(arguments: list[str], log: str) -> int:
    """One cell in a process of whoever calls this, to its end; its exit code.

    What asks this process to stop is passed on. A job of a killed sweep may still train the cell:
    then this one waits, and finds it done.
    """
    # SIGUSR2 is SLURM's warning that time is up.
    with stop_on_signal(signal.SIGUSR2) as received, open(log, "ab") as file:
        wait_until_free(Path(log).parent, received)
        if received:
            return 128 + signal.SIGTERM
        job = subprocess.Popen(
            _prepared(arguments, 0, 1), stdout=file, stderr=file, env=_environment("sweep")
        )
        passed_on = 0
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return job.wait(POLL)
            for number in received[passed_on:]:
                # All else SLURM sends to every process of a step itself; twice ends a cell at once.
                if number == signal.SIGUSR2 or "SLURM_JOB_ID" not in os.environ:
                    job.terminate()
            passed_on = len(received)


def _environment(role: str) -> dict[str, str]:
    return {"WANDB_JOB_TYPE": role, **os.environ}


class Local:
    """Processes of this machine, each on its share of the CPUs (and of CUDA_VISIBLE_DEVICES). They
    end in order when this process is gone, however it went."""

    def __init__(self, workers: int, out: Path, grant: Grant = USUAL, role: str = "sweep"):
        del out
        for name in ("partition", "cpus", "gpus"):
            if getattr(grant, name) != getattr(USUAL, name):
                raise UserError(
                    f"--{name}={getattr(grant, name)} is of a cluster: --executor=slurm"
                )
        self._role = role
        self._places: list[subprocess.Popen | None] = [None] * workers

    def start(self, name: str, arguments: list[str], directory: Path) -> subprocess.Popen:
        place = next(
            k for k, job in enumerate(self._places) if job is None or job.poll() is not None
        )
        workers = len(self._places)
        environment = _environment(self._role)
        sharers = workers  # without a list all take the first GPU, where there is one
        if environment.get("CUDA_VISIBLE_DEVICES"):
            devices = environment["CUDA_VISIBLE_DEVICES"].split(",")
            own = devices[place::workers] or [devices[place % len(devices)]]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
            sharers = -(-workers // len(devices))
        if sharers > 1:
            # JAX otherwise takes three quarters of a GPU for whoever comes first.
            environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{GPU_SHARE / sharers:.3f}")
        with (directory / "log.txt").open("ab") as log:
            job = subprocess.Popen(
                _prepared(arguments, place, workers),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                # Not of our terminal's group: Ctrl-C comes to us, and we end them once.
                start_new_session=True,
            )
        self._places[place] = job
        return job

    def poll(self, job: subprocess.Popen) -> int | None:
        return job.poll()

    def stop(self, jobs: Iterable[subprocess.Popen], at_once: bool = False) -> None:
        for job in jobs:
            if job.poll() is None:
                job.kill() if at_once else job.terminate()


# What a new process does before it becomes the cell, on Linux: in a process of its own, since code
# between fork and exec of a program with threads, as JAX's are, may never come to its end.
PREPARE = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {int(signal.SIGTERM)})
signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # of SLURM, for `run_here`
os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def _prepared(arguments: list[str], place: int, workers: int) -> list[str]:
    """The command of a cell on its share of the CPUs."""
    if not sys.platform.startswith("linux"):
        return [sys.executable, *arguments]
    cpus = sorted(os.sched_getaffinity(0))
    own = ",".join(map(str, cpus[place::workers] or cpus))
    return [sys.executable, "-c", PREPARE, own, *arguments]


class Slurm:
    """Jobs of a SLURM cluster by submitit, one cell each; `cluster` "local" runs them here."""

    def __init__(self, workers: int, out: Path, grant: Grant = USUAL, cluster: str = "slurm"):
        del workers  # who submits holds back the others
        try:
            import submitit
        except ImportError:
            raise UserError("--executor=slurm needs submitit: pip install submitit") from None
        try:
            self._executor = submitit.AutoExecutor(folder=out / "slurm", cluster=cluster)
        except RuntimeError as error:
            raise UserError(f"--executor=slurm: {error}") from None
        options: dict[str, Any] = {"timeout_min": max(1, round(60 * grant.hours))}
        options["cpus_per_task"] = grant.cpus
        if grant.gpus:
            options["gpus_per_node"] = grant.gpus
        if grant.partition:
            options["slurm_partition"] = grant.partition
        self._executor.update_parameters(**options)

    def start(self, name: str, arguments: list[str], directory: Path) -> Any:
        self._executor.update_parameters(name=f"cell-{name}")
        return self._executor.submit(run_here, arguments, str(directory / "log.txt"))

    def poll(self, job: Any) -> int | None:
        if not job.done():
            return None
        if job.exception() is None:
            return job.result()
        return 128 + signal.SIGTERM if job.state.startswith(ENDED_BY_SLURM) else 1

    def stop(self, jobs: Iterable[Any], at_once: bool = False) -> None:
        del at_once  # the cluster kills what does not end
        for job in jobs:
            job.cancel(check=False)


class Ray:
    """Tasks of the Ray cluster that RAY_ADDRESS names."""

    def __init__(self, workers: int, out: Path, grant: Grant = USUAL):
        del workers, out
        if grant.partition:
            raise UserError(f"--partition={grant.partition} is of SLURM: --executor=slurm")
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("--executor=ray needs ray: pip install ray") from None
        self._ray = ray
        if not ray.is_initialized():
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), include_dashboard=False)
        self._task = ray.remote(num_cpus=grant.cpus, num_gpus=grant.gpus)(run_here)

    def start(self, name: str, arguments: list[str], directory: Path) -> Any:
        return self._task.options(name=f"cell-{name}").remote(arguments, str(directory / "log.txt"))

    def poll(self, job: Any) -> int | None:
        done, _ = self._ray.wait([job], timeout=0)
        if not done:
            return None
        try:
            return self._ray.get(job)
        except self._ray.exceptions.TaskCancelledError:
            return 128 + signal.SIGTERM
        except self._ray.exceptions.RayError:
            return 1

    def stop(self, jobs: Iterable[Any], at_once: bool = False) -> None:
        for job in jobs:
            self._ray.cancel(job, force=at_once)


EXECUTORS: dict[str, Callable[[int, Path, Grant], Executor]] = {
    "local": Local,
    "slurm": Slurm,
    "ray": Ray,
}
