"""Where the cells of a sweep run: in processes of this machine, on SLURM, or on a Ray cluster.

An executor starts `python ARGUMENTS` with its output in `log.txt` of a directory, and is asked
whether it has ended. An exit code below zero is the signal that ended the process, and one above
128 the signal on which it ended in order.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from core_rl.errors import UserError
from core_rl.tracking import is_held

PR_SET_PDEATHSIG = 1  # of prctl(2)
LOCK_WAIT = 120.0  # for the process of a sweep that was killed to end [s]

Job = Any


class Executor(Protocol):
    def start(self, name: str, arguments: list[str], directory: Path) -> Job: ...

    def poll(self, job: Job) -> int | None:
        """The exit code, or None while it runs."""
        ...

    def stop(self, jobs: Iterable[Job]) -> None:
        """Asks them to end in order, once each."""
        ...


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
    """One cell in a process of whoever calls this, to its end; its exit code."""
    with open(log, "ab") as file:
        return subprocess.call(
            [sys.executable, *arguments], stdout=file, stderr=file, env=_environment()
        )


def _environment() -> dict[str, str]:
    return {"WANDB_JOB_TYPE": "sweep", **os.environ}


class Local:
    """Processes of this machine, each on its share of the CPUs (and of CUDA_VISIBLE_DEVICES). They
    end in order when this process is gone, however it went."""

    def __init__(self, workers: int, out: Path, partition: str = "", hours: float = 0.0):
        del out, hours
        if partition:
            raise UserError(f"--partition={partition} is of a cluster: --executor=slurm")
        self._places: list[subprocess.Popen | None] = [None] * workers

    def start(self, name: str, arguments: list[str], directory: Path) -> subprocess.Popen:
        place = next(
            k for k, job in enumerate(self._places) if job is None or job.poll() is not None
        )
        workers = len(self._places)
        environment = _environment()
        if devices := environment.get("CUDA_VISIBLE_DEVICES"):
            own = devices.split(",")[place::workers] or devices.split(",")[:1]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        _wait_for(directory)
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

    def stop(self, jobs: Iterable[subprocess.Popen]) -> None:
        for job in jobs:
            if job.poll() is None:
                job.terminate()


# What a new process does before it becomes the cell, on Linux: in a process of its own, since code
# between fork and exec of a program with threads, as JAX's are, may never come to its end.
PREPARE = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {int(signal.SIGTERM)})
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


def _wait_for(directory: Path) -> None:
    """Until no process holds a run's directory: one of a sweep that was killed saves first."""
    began = time.monotonic()
    while is_held(directory) and time.monotonic() - began < LOCK_WAIT:
        time.sleep(0.2)


class Slurm:
    """Jobs of a SLURM cluster by submitit, one cell each; `cluster` "local" runs them here."""

    def __init__(
        self, workers: int, out: Path, partition: str, hours: float, cluster: str = "slurm"
    ):
        del workers  # who submits holds back the others
        try:
            import submitit
        except ImportError:
            raise UserError("--executor=slurm needs submitit: pip install submitit") from None
        try:
            self._executor = submitit.AutoExecutor(folder=out / "slurm", cluster=cluster)
        except RuntimeError as error:
            raise UserError(f"--executor=slurm: {error}") from None
        options: dict[str, Any] = {"timeout_min": max(1, round(60 * hours))}
        if partition:
            options["slurm_partition"] = partition
        self._executor.update_parameters(**options)

    def start(self, name: str, arguments: list[str], directory: Path) -> Any:
        self._executor.update_parameters(name=f"cell-{name}")
        return self._executor.submit(run_here, arguments, str(directory / "log.txt"))

    def poll(self, job: Any) -> int | None:
        if not job.done():
            return None
        if job.exception() is None:
            return job.result()
        return 128 + signal.SIGTERM if job.state == "CANCELLED" else 1

    def stop(self, jobs: Iterable[Any]) -> None:
        for job in jobs:
            job.cancel(check=False)


class Ray:
    """Tasks of the Ray cluster that RAY_ADDRESS names, a CPU each."""

    def __init__(self, workers: int, out: Path, partition: str = "", hours: float = 0.0):
        del workers, out, hours
        if partition:
            raise UserError(f"--partition={partition} is of a cluster: --executor=slurm")
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("--executor=ray needs ray: pip install ray") from None
        self._ray = ray
        if not ray.is_initialized():
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), include_dashboard=False)
        self._task = ray.remote(num_cpus=1)(run_here)

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

    def stop(self, jobs: Iterable[Any]) -> None:
        for job in jobs:
            self._ray.cancel(job)


EXECUTORS: dict[str, Callable[[int, Path, str, float], Executor]] = {
    "local": Local,
    "slurm": Slurm,
    "ray": Ray,
}
