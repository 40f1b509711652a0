"""Judges replies of a language model: is there a reward in it that may be trained on?

    python -m projects.reward_llm.validate --features=FILE --task=NAME --file=REPLY.txt --json
    python -m projects.reward_llm.validate --features=FILE --responses=REPLIES.jsonl

The first form exits with 0 (accepted), 1 (refused) or 2 (the command is wrong). The second reads
lines with `id`, `features` (the task), `response_text` and perhaps `finish_reason`, writes one
verdict per line in the same order, and exits with 0 whatever the replies are.

The allow-list of `language` is the barrier: text is evaluated there, never executed. The process
around it is containment for what the barrier cannot rule out, such as a fault of the parser or an
expression that takes for ever to compile; CPython is no sandbox.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib
import json
import math
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from core_rl import flags
from core_rl.errors import UsageError
from core_rl.features import Feature, FeatureTable, feature_table, read_feature_tables
from projects.reward_llm import language
from projects.reward_llm.language import REASONS, Program, Refused, one_line

ACCEPTED = "accepted"
MAX_EQUATIONS = 500
MAX_ELEMENTS = 256  # of an intermediate array
MAX_TOTAL = 1e4  # of |total| for any state within the ranges
UNIFORM_ROWS = 256  # at least
ROWS_MULTIPLE = 512  # that their number is rounded up to
VERTEX_ROWS = 64  # each feature low, high or zero
FLAG_ROWS = UNIFORM_ROWS  # of them, with joint combinations of flags: all, if they are no more
REAL_ROWS = 256  # logged states that are looked at
CONSTANT = 1e-6  # a total that varies by less than this share of its size steers nothing
DOMINATES = 0.9  # share of the magnitude at which one term drowns the others
MISSED = 1e-3  # by which total and the sum of its terms may differ, relatively
SHOWN_FEATURES = 4  # in a hint

# What the allowed functions become; no loops, callbacks or random numbers.
PRIMITIVES = frozenset(
    """
    abs acos acosh add and asin asinh atan atan2 atanh broadcast_in_dim cbrt ceil clamp closed_call
    concatenate convert_element_type copy cos cosh custom_jvp_call custom_vjp_call div dot_general
    eq exp exp2 expm1 floor ge gt integer_pow is_finite jit le log log1p logistic lt max min mul ne
    neg not or pjit pow reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum rem
    reshape round select_n sign sin sinh sqrt square squeeze sub tan tanh transpose xor
    """.split()
)

START_LIMIT = 120.0  # [s] for a worker to import jax
MEMORY_LIMIT = 4 << 30  # [bytes] of a worker's address space; importing jax takes 1.5 GiB of it
OPEN_FILES = 32
MAX_FRAME = 1 << 16  # [bytes] of a worker's answer
MAX_WARNINGS = 40
LENGTH_BYTES = 4

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Verdict:
    accept: bool
    reason: str = ACCEPTED  # or one of REASONS
    stage: str = ""  # that found the reason; empty when accepted
    hint: str = ""  # one line: where, and how to mend it
    line: int | None = None  # of the code
    warnings: tuple[str, ...] = ()  # advice on a reward that was accepted
    program: Program | None = None  # whenever the text is a program, accepted or not


@dataclasses.dataclass(frozen=True)
class Job:
    reply: str
    features: FeatureTable
    finish_reason: str = "stop"
    # Columns of states that were met, by name of the feature: probed as well, and what the advice
    # on constant and dominating terms is about.
    rows: Mapping[str, Sequence[float]] | None = None


class Validator:
    """Judges in worker processes, which it starts, limits and replaces. To be used in a `with`."""

    def __init__(
        self,
        num_workers: int = 2,
        *,
        time_limit: float = 10.0,  # [s] for one reply
        recycle_after: int = 200,  # replies of a worker: compiled code piles up in it
        require_grad: bool = False,  # refuse rewards whose gradient is not finite
        _selftest: str = "",  # module whose functions `_call` may run in a worker, for tests
    ):
        self.num_workers = num_workers
        self.time_limit = time_limit
        self.recycle_after = recycle_after
        self.require_grad = require_grad
        self._module = _selftest
        self._workers: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def __enter__(self) -> "Validator":
        self._stack = contextlib.ExitStack()
        # An empty place to be: what a worker might find or leave there is nobody's.
        self._directory = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._all = [_Worker(self) for _ in range(self.num_workers)]
        for worker in self._all:
            self._stack.callback(worker.stop)
            worker.start()
            self._workers.put(worker)
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="validator")
        self._stack.callback(pool.shutdown, cancel_futures=True)
        self._pool = pool
        return self

    def __exit__(self, *_: object):
        self._stack.close()

    def judge(self, jobs: Sequence[Job]) -> list[Verdict]:
        """One verdict per job, in order."""
        return list(self.stream(jobs))

    def stream(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
        """As `judge`, each verdict as soon as it and those before it are there."""
        jobs = list(jobs)
        for job, answer in zip(jobs, self._pool.map(self._answer, jobs), strict=True):
            # Programs are checked once more on this side, by the one thread that may parse.
            yield answer if isinstance(answer, Verdict) else _verdict(answer, job.features)

    def _answer(self, job: Job) -> "Verdict | dict[str, Any]":
        try:
            source = language.extract(job.reply, job.finish_reason)
        except Refused as refused:
            return _refusal(refused)
        features = [
            [name, feature.low, feature.high, feature.kind]
            for name, feature in job.features.items()
        ]
        rows = _columns(job.rows, job.features) if job.rows else None
        return self._ask(
            {
                "source": source,
                "features": features,
                "rows": rows,
                "require_grad": self.require_grad,
            }
        )

    def _ask(self, request: dict[str, Any]) -> "Verdict | dict[str, Any]":
        worker = self._workers.get()
        try:
            return worker.ask(request)
        finally:
            self._workers.put(worker)

    def _call(self, function: str) -> "Verdict | dict[str, Any]":
        """Runs a function of the module `_selftest` in a worker: {"result": text} or a verdict."""
        return self._ask({"call": function})


def _refusal(refused: Refused, **fields: Any) -> Verdict:
    return Verdict(False, refused.reason, refused.stage, refused.hint, refused.line, **fields)


def _columns(rows: Mapping[str, Sequence[float]], features: FeatureTable) -> dict[str, list[float]]:
    """At most REAL_ROWS of the rows, evenly chosen; ValueError if they do not fit the table."""
    missing = [name for name in features if name not in rows]
    if missing:
        raise ValueError(f"rows lack the feature {missing[0]}")
    columns = {name: np.asarray(rows[name], np.float32) for name in features}
    count = len(next(iter(columns.values()), ()))
    for name, column in columns.items():
        if column.shape != (count,) or not np.isfinite(column).all():
            raise ValueError(f"rows of {name}: expected {count} finite numbers")
    chosen = np.unique(np.linspace(0, count - 1, min(count, REAL_ROWS)).astype(int))
    return {name: column[chosen].tolist() for name, column in columns.items()}


def _verdict(answer: Mapping[str, Any], features: FeatureTable) -> Verdict:
    """The verdict in a worker's answer, which is trusted as far as its shape goes.

    A program is checked here again, so that no worker can bring in what the language refuses.
    """
    try:
        accept, reason, stage = answer["accept"], answer["reason"], answer["stage"]
        hint, line, source = answer["hint"], answer["line"], answer["source"]
        warnings = answer["warnings"]
        outcome = (ACCEPTED, "") if accept else (reason, stage)
        known = [
            set(answer) == {"id", *(field.name for field in dataclasses.fields(_Finding))},
            isinstance(accept, bool) and outcome == (reason, stage),
            accept or stage in REASONS[reason],
            line is None or type(line) is int,
            isinstance(hint, str) and isinstance(source, str) and (source or not accept),
            isinstance(warnings, list) and len(warnings) <= MAX_WARNINGS,
            all(isinstance(text, str) for text in warnings),
        ]
        if all(known):
            program = language.check(source, features) if source else None
            if program is None or program.source == source:
                shown = tuple(one_line(text) for text in warnings)
                return Verdict(accept, reason, stage, one_line(hint), line, shown, program)
    except (KeyError, TypeError, Refused):
        pass
    return _lost("crashed")


def _lost(reason: str) -> Verdict:
    hints = {
        "timeout": "took too long to judge; write a shorter, simpler expression",
        "out_of_memory": "took too much memory to judge; write a simpler expression",
        "crashed": "broke the process that judged it; write a simpler expression",
    }
    return Verdict(False, reason, REASONS[reason][0], hints[reason])


# This side of a worker.

_BOOTSTRAP = """
import json, sys
sys.path[:] = dict.fromkeys([*json.loads(sys.argv[1]), *sys.path])
from projects.reward_llm import validate
validate.serve(float(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
"""


class _WorkerLostError(Exception):
    pass


class _Worker:
    """One process; used by one thread at a time."""

    def __init__(self, validator: Validator):
        self.validator = validator
        self.process: subprocess.Popen[bytes] | None = None

    def start(self):
        validator = self.validator
        paths = [str(ROOT), *(os.path.abspath(path) for path in sys.path)]
        numbers = [str(validator.time_limit), str(validator.time_limit * validator.recycle_after)]
        command = [sys.executable, "-I", "-B", "-c", _BOOTSTRAP, json.dumps(paths), *numbers]
        self.process = subprocess.Popen(
            [*command, validator._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=validator._directory,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the parent, and a group can be killed whole
        )
        self.ready, self.served = False, 0
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)

    def stop(self) -> int | None:
        """Kills the process and what it may have started; the exit code that it had before."""
        process, self.process = self.process, None
        if process is None:
            return None
        code = process.poll()
        # Its group outlives it while there is anything in it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return code

    def ask(self, request: Mapping[str, Any]) -> "Verdict | dict[str, Any]":
        """The worker's answer, or a verdict if it was lost over it."""
        self._prepare()
        self.served += 1
        number = self.served
        try:
            deadline = time.monotonic() + self.validator.time_limit
            self._send({**request, "id": number}, deadline)
            answer = self._receive(deadline)
        except TimeoutError:
            self.stop()
            return _lost("timeout")
        except (_WorkerLostError, OSError):
            return _lost(self._cause())
        if not isinstance(answer, dict) or answer.get("id") != number:
            self.stop()
            return _lost("crashed")
        return answer

    def _prepare(self):
        """A worker that is ready: a fresh one if it is dead, used up, or speaks unasked."""
        process = self.process
        if process is not None and self.ready:
            assert process.stdout is not None
            spoke = _is_ready(process.stdout.fileno(), select.POLLIN, time.monotonic())
            if process.poll() is not None or spoke or self.served >= self.validator.recycle_after:
                self.stop()
        if self.process is None:
            self.start()
        if not self.ready:
            try:
                self.ready = self._receive(time.monotonic() + START_LIMIT) == "ready"
            except (TimeoutError, _WorkerLostError):
                pass
            if not self.ready:
                code = self.stop()
                raise RuntimeError(f"a validator process did not start (exit code {code})")

    def _cause(self) -> str:
        """Why the process went: its pipe is closed, so that its end is near."""
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        code = self.stop()
        if code == -signal.SIGXCPU:
            return "timeout"
        if code in (-signal.SIGKILL, EXIT_OUT_OF_MEMORY):  # the kernel kills for memory
            return "out_of_memory"
        return "crashed"

    def _send(self, message: Mapping[str, Any], deadline: float):
        assert self.process is not None and self.process.stdin is not None
        pipe = self.process.stdin.fileno()
        text = json.dumps(message).encode()
        rest = memoryview(len(text).to_bytes(LENGTH_BYTES, "big") + text)
        while rest:
            if not _is_ready(pipe, select.POLLOUT, deadline):
                raise TimeoutError
            rest = rest[os.write(pipe, rest[: select.PIPE_BUF]) :]

    def _receive(self, deadline: float) -> Any:
        size = int.from_bytes(self._read(LENGTH_BYTES, deadline), "big")
        if size > MAX_FRAME:
            raise _WorkerLostError
        try:
            return json.loads(self._read(size, deadline))
        except (ValueError, RecursionError):
            raise _WorkerLostError from None

    def _read(self, size: int, deadline: float) -> bytes:
        assert self.process is not None and self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        parts = b""
        while len(parts) < size:
            if not _is_ready(pipe, select.POLLIN, deadline):
                raise TimeoutError
            part = os.read(pipe, size - len(parts))
            if not part:
                raise _WorkerLostError
            parts += part
        return parts


def _is_ready(pipe: int, event: int, deadline: float) -> bool:
    """Whether the pipe can be read or written, or is closed, before the deadline."""
    poll = select.poll()  # select() knows no descriptor beyond 1023
    poll.register(pipe, event)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1e3))


def _environment() -> dict[str, str]:
    """From nothing: no keys, no home, no settings of ours."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0",
        "NPROC": "1",  # threads of XLA's pools
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


# The worker's side.

EXIT_OUT_OF_MEMORY = 71
READABLE = (".py", ".pyc", ".so")  # what late imports open
# Beginnings of the names of audit events that are refused.
REFUSED_EVENTS = tuple(
    """
    socket. subprocess. ctypes. shutil. tempfile. urllib. ftplib. http. smtplib. sqlite3. mmap. pty.
    signal. os.exec os.fork os.posix_spawn os.spawn os.system os.startfile os.kill os.putenv
    os.unsetenv os.chdir os.chmod os.chown os.chflags os.link os.symlink os.mkdir os.remove
    os.rename os.rmdir os.truncate os.utime os.setxattr
    """.split()
)


@dataclasses.dataclass(frozen=True)
class _Finding:
    """A verdict as it goes through the pipe."""

    accept: bool
    reason: str = ACCEPTED
    stage: str = ""
    hint: str = ""
    line: int | None = None
    warnings: tuple[str, ...] = ()
    source: str = ""  # canonical, once there is a program


def serve(time_limit: float, cpu_limit: float, module: str = ""):
    """A worker's main: answers requests until its input ends. Never returns."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # what is printed or read here goes nowhere
        os.dup2(null, descriptor)
    os.close(null)
    hostile = importlib.import_module(module) if module else None
    _warm_up()
    renew = _confine(time_limit, cpu_limit)
    _write_frame(answers, "ready")
    while request := _read_frame(requests):
        renew()
        try:
            if "call" in request:
                answer = _call(hostile, request["call"])
            else:
                answer = dataclasses.asdict(_find(request))
        except MemoryError:
            os._exit(EXIT_OUT_OF_MEMORY)
        _write_frame(answers, {**answer, "id": request["id"]})
    os._exit(0)


def _warm_up():
    """Makes jax load and start what it needs before the limits are set."""
    features = {"a": Feature("m", -1.0, 1.0), "b": Feature("0 or 1", 0.0, 1.0, kind="flag")}
    source = """\
def reward(f):
    a = jnp.where(f["b"] > 0.5, jnp.tanh(f["a"]), 0.5 * f["a"] ** 2)
    return a + jnp.sum(jnp.array([f["a"], f["b"]])), {"a": a}
"""
    table = [[name, entry.low, entry.high, entry.kind] for name, entry in features.items()]
    finding = _find({"source": source, "features": table, "rows": None, "require_grad": True})
    assert finding.accept, finding


def _confine(time_limit: float, cpu_limit: float):
    """Sets the limits for good; returns what renews the limit on processor time."""
    spent = time.process_time()
    hard = math.ceil(spent + cpu_limit) + 60
    for name, value in (
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_NOFILE", OPEN_FILES),
        ("RLIMIT_AS", MEMORY_LIMIT),
        # RLIMIT_NPROC would count all processes of the user, and XLA may start a thread late.
    ):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # macOS lacks some
            resource.setrlimit(getattr(resource, name), (value, value))

    def allowed() -> int:
        return min(hard, math.ceil(time.process_time() + time_limit) + 1)

    def watch(event: str, arguments: tuple[Any, ...]):
        if event == "open":
            path, _, open_flags = arguments
            writes = open_flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if not writes and str(path).endswith(READABLE):
                return
        elif event == "resource.setrlimit":
            if arguments == (resource.RLIMIT_CPU, (arguments[1][0], hard)):
                if arguments[1][0] <= allowed():
                    return
        elif event == "resource.prlimit":
            pass
        elif not event.startswith(REFUSED_EVENTS):
            return
        raise PermissionError(f"{event} is refused")

    def renew():
        resource.setrlimit(resource.RLIMIT_CPU, (allowed(), hard))

    sys.addaudithook(watch)
    return renew


def _read_frame(stream: IO[bytes]) -> dict[str, Any] | None:
    head = stream.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    return json.loads(stream.read(int.from_bytes(head, "big")))


def _write_frame(stream: IO[bytes], message: Any):
    text = json.dumps(message).encode()
    stream.write(len(text).to_bytes(LENGTH_BYTES, "big") + text)
    stream.flush()


def _call(module: Any, name: str) -> dict[str, Any]:
    try:
        return {"result": repr(getattr(module, name)())[:1000]}
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}"[:1000]}


def _find(request: Mapping[str, Any]) -> _Finding:
    features = {
        name: Feature("", low, high, kind=kind) for name, low, high, kind in request["features"]
    }
    source = ""
    try:
        program, tree = language.check_tree(request["source"], features)
        source = program.source
        trace(tree, program.features)
        used = {name: features[name] for name in program.features}
        advice = probe(tree, used, request["rows"], request["require_grad"])
        return _Finding(True, warnings=advice, source=source)
    except Refused as refused:
        reason, hint = refused.reason, refused.hint
        return _Finding(False, reason, refused.stage, hint, refused.line, source=source)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise MemoryError from None
        hint = f"cannot be compiled: {one_line(str(error), 200)}"
        return _Finding(False, "trace_error", REASONS["trace_error"][0], hint, source=source)


def trace(tree: ast.FunctionDef, names: Iterable[str]):
    """Traces the reward and audits what came of it, before anything is computed. Raises Refused."""
    structs = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in names}
    audit(jax.make_jaxpr(functools.partial(language.evaluate_tree, tree))(structs))


def audit(closed: Any):
    """Raises Refused for a jaxpr that is too large or does more than arithmetic."""
    count = 0
    pending: list[Any] = [closed]
    while pending:
        jaxpr = pending.pop()
        variables: list[Any] = list(getattr(jaxpr, "consts", ()))
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        count += len(jaxpr.eqns)
        if count > MAX_EQUATIONS:
            hint = f"more than {MAX_EQUATIONS} operations; write less"
            raise Refused("too_large", hint, stage="jaxpr")
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            if name not in PRIMITIVES:
                hint = f"the operation {name} is not allowed; use plain arithmetic"
                raise Refused("forbidden_primitive", hint)
            variables += [*equation.invars, *equation.outvars]
            for parameter in equation.params.values():
                entries = parameter if isinstance(parameter, tuple | list) else [parameter]
                pending += [e for e in entries if hasattr(e, "eqns") or hasattr(e, "jaxpr")]
        for variable in variables:
            shape = tuple(getattr(variable, "aval", variable).shape)
            if math.prod(shape) > MAX_ELEMENTS:
                hint = f"an array of shape {list(shape)}; at most {MAX_ELEMENTS} elements"
                raise Refused("too_large", hint, stage="jaxpr")


def probe_rows(features: FeatureTable, rows: Mapping[str, Sequence[float]] | None) -> np.ndarray:
    """States [N, F] to try a reward at: many within the ranges, the corners, and the real ones.

    The same features give the same states on every machine.
    """
    random = np.random.default_rng(0)
    whole = np.array([feature.kind != "continuous" for feature in features.values()])
    low = np.array([feature.low for feature in features.values()])
    high = np.array([feature.high for feature in features.values()])
    low, high = np.where(whole, np.ceil(low), low), np.where(whole, np.floor(high), high)
    zero = np.clip(0.0, low, high)
    count = len(features)
    parts = [zero[None], low[None], high[None]]
    for edge in (low, high):  # one at a time
        parts.append(np.where(np.eye(count, dtype=bool), edge, zero))
    parts.append(_choose(random, [low, high, zero], VERTEX_ROWS))
    real = np.stack([rows[name] for name in features], axis=1) if rows else np.zeros((0, count))
    # Few different numbers of states: what jax compiled for one reward then serves the next.
    num_uniform = UNIFORM_ROWS - (UNIFORM_ROWS + sum(map(len, (*parts, real)))) % -ROWS_MULTIPLE
    uniform = random.uniform(low, high, (num_uniform, count))
    uniform = np.where(whole, np.rint(uniform), uniform)
    flags_at = [i for i, feature in enumerate(features.values()) if feature.kind == "flag"]
    if flags_at:
        combinations = np.array([_bits(number, len(flags_at)) for number in range(FLAG_ROWS)])
        if 2 ** len(flags_at) > FLAG_ROWS:
            combinations = random.integers(0, 2, combinations.shape)
        uniform[:FLAG_ROWS, flags_at] = combinations
    return np.concatenate([*parts, uniform, real]).astype(np.float32)


def _bits(number: int, count: int) -> list[int]:
    return [number >> i & 1 for i in range(count)]


def _choose(random: np.random.Generator, edges: Sequence[np.ndarray], count: int) -> np.ndarray:
    """[count, F] each entry from one of the edges [F]."""
    chosen = random.integers(0, len(edges), (count, len(edges[0])))
    return np.choose(chosen, edges)


def probe(
    tree: ast.FunctionDef,
    features: FeatureTable,
    rows: Mapping[str, Sequence[float]] | None,
    require_grad: bool = False,
) -> tuple[str, ...]:
    """Computes the reward at many states; returns advice, or raises Refused.

    Args:
      features: those that the reward reads.
      rows: columns of real states, of these and perhaps other features.
    """
    if not features:
        raise Refused("constant_reward", 'reads no feature: use f["name"] of what should be paid')
    states = probe_rows(features, rows)
    columns = {name: jnp.asarray(states[:, i]) for i, name in enumerate(features)}
    reward = functools.partial(language.evaluate_tree, tree)
    total, terms = jax.device_get(jax.jit(jax.vmap(reward))(columns))

    for what, values in {
        **{f'term "{name}"': terms[name] for name in terms},
        "total": total,
    }.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            where = _show(features, states[bad[0]])
            hint = f"{what} is {values[bad[0]]} at {where}; guard divisions, logarithms and roots"
            raise Refused("non_finite", f"{hint} by jnp.maximum(x, 1e-3), and clip exponents")
    largest = np.argmax(np.abs(total))
    if abs(total[largest]) > MAX_TOTAL:
        where = _show(features, states[largest])
        hint = f"total is {total[largest]:.3g} at {where}; |total| is at most {MAX_TOTAL:g}"
        raise Refused("out_of_range", f"{hint}: scale the terms or use jnp.tanh or jnp.clip")
    if _is_constant(total):
        hint = f"total is {total[0]:.4g} in every state; let it depend on the features"
        raise Refused("constant_reward", hint)
    warnings = list(_advice(total, terms, len(next(iter(rows.values()))) if rows else 0))
    # Not compiled as a whole: that would take longer than all the rest.
    gradient = jax.device_get(jax.vmap(jax.grad(lambda row: reward(row)[0]))(columns))
    for name in features:
        bad = np.flatnonzero(~np.isfinite(gradient[name]))
        if bad.size:
            where = _show(features, states[bad[0]])
            hint = f"the gradient by {name} is {gradient[name][bad[0]]} at {where}"
            if require_grad:
                hint += "; guard the argument of roots, powers and jnp.where"
                raise Refused("non_finite_gradient", hint)
            warnings.append(hint)
    return tuple(warnings[:MAX_WARNINGS])


def _is_constant(values: np.ndarray) -> bool:
    return np.ptp(values) <= CONSTANT * np.max(np.abs(values))


def _advice(total: np.ndarray, terms: Mapping[str, np.ndarray], num_real: int) -> Iterator[str]:
    """What may be wrong with a reward that works. Values [N], the last `num_real` of them real."""
    sums = np.sum(list(terms.values()), axis=0, dtype=np.float64)
    missed = np.max(np.abs(sums - total) / (1.0 + np.abs(total)))
    if missed > MISSED:
        yield f"the terms do not add up to the total (they miss it by up to {missed:.2g})"
    real = slice(len(total) - num_real, None) if num_real else slice(None)
    states = "real" if num_real else "probed"
    for name, values in terms.items():
        if _is_constant(values[real]):
            yield f'the term "{name}" is constant in all {states} states: it cannot steer learning'
    if num_real and len(terms) > 1:
        sizes = {name: float(np.mean(np.abs(values[real]))) for name, values in terms.items()}
        name = max(sizes, key=sizes.__getitem__)
        share = sizes[name] / max(sum(sizes.values()), 1e-12)
        if share > DOMINATES:
            yield f'the term "{name}" is {share:.0%} of the magnitude in real states'


def _show(features: Iterable[str], state: np.ndarray) -> str:
    shown = [f"{name}={value:.4g}" for name, value in zip(features, state, strict=True)]
    return ", ".join(shown[:SHOWN_FEATURES]) + (", ..." if len(shown) > SHOWN_FEATURES else "")


# The command line.


@dataclasses.dataclass(frozen=True)
class Validate:
    features: str = ""  # JSON file of feature tables by task
    task: str = ""  # whose table the reply of --file is for
    file: str = ""  # one reply; - reads standard input
    responses: str = ""  # many replies, one JSON object per line
    json: bool = False  # print the verdict of --file as one JSON object
    num_workers: int = 2  # processes for --responses

    def __post_init__(self):
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {self.num_workers}")


def run(config: Validate) -> int:
    if not config.features:
        raise UsageError("--features needs the file of feature tables")
    if bool(config.file) == bool(config.responses):
        raise UsageError("give one of --file and --responses")
    if config.file and not config.task:
        raise UsageError("--task needs the name of the table that the reply of --file reads")
    if config.file:
        return _run_one(config)
    tables = read_feature_tables(config.features)
    records = [
        _record(line, tables) for line in _read(config.responses).split(b"\n") if line.strip()
    ]
    jobs = [record for _, record in records if isinstance(record, Job)]
    with Validator(min(config.num_workers, max(1, len(jobs)))) as validator:
        verdicts = validator.stream(jobs)
        for name, record in records:
            verdict = next(verdicts) if isinstance(record, Job) else record
            print(json.dumps({"id": name, **_summary(verdict)}), flush=True)
    return 0


def _run_one(config: Validate) -> int:
    table = feature_table(config.features, config.task)
    reply = _read(config.file).decode("utf-8", "replace")
    with Validator(1) as validator:
        (verdict,) = validator.judge([Job(reply, table)])
    if config.json:
        print(json.dumps(_summary(verdict)))
    elif verdict.program is not None and verdict.accept:
        terms = ", ".join(verdict.program.terms)
        print("\n".join([f"accepted {verdict.program.id}: {terms}", *verdict.warnings]))
    else:
        print(f"refused at {verdict.stage}: {verdict.reason}: {verdict.hint}")
    return 0 if verdict.accept else 1


def _read(path: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def _record(line: bytes, tables: Mapping[str, FeatureTable]) -> tuple[Any, Job | Verdict]:
    """The id of a line, and its job; or its verdict, if it holds none."""
    name = None
    try:
        content = json.loads(line.decode("utf-8", "replace"))
        if not isinstance(content, dict):
            raise ValueError("the line is not a JSON object")
        json.dumps(content.get("id"), allow_nan=False)  # ValueError for one that JSON lacks
        name = content.get("id")
        task, reply = content.get("features"), content.get("response_text")
        if "id" not in content:
            raise ValueError("the line has no id")
        if not isinstance(task, str) or task not in tables:
            raise ValueError(f"features must be one of {', '.join(tables)}")
        if not isinstance(reply, str):
            raise ValueError("response_text must be a text")
        return name, Job(reply, tables[task], str(content.get("finish_reason") or "stop"))
    except (ValueError, RecursionError) as error:  # of the line's JSON too
        reason = "bad_record"
        return name, Verdict(False, reason, REASONS[reason][0], one_line(f"bad line: {error}"))


def _summary(verdict: Verdict) -> dict[str, Any]:
    program = verdict.program
    return {
        "accept": verdict.accept,
        "reason": verdict.reason,
        "stage": verdict.stage,
        "hint": verdict.hint,
        "line": verdict.line,
        "warnings": list(verdict.warnings),
        "program": program.id if program else None,
        "terms": list(program.terms) if program else [],
    }


if __name__ == "__main__":
    flags.main(run, Validate())
