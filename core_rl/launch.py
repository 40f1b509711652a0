"""Runs an experiment: the only impure loop.

Between compiled epochs the host writes metrics, evaluates, saves, and looks for signals. The work
directory is the identity of a run: the same command starts it, or resumes it where it was left.

    workdir/record.json      command, configuration, versions, device, resumes
    workdir/metrics.jsonl    one row per epoch; the source of truth
    workdir/checkpoints/     the whole state, for an exact resume
    workdir/policy/          the best policy so far, as a bundle
"""

import contextlib
import dataclasses
import functools
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from core_rl import flags
from core_rl.checkpoint import Checkpointer
from core_rl.env import Env, State, example_obs
from core_rl.errors import UserError
from core_rl.policy import MANIFEST, Policy, load_policy, restore_params, save_policy
from core_rl.qr_sac import Hypers, QRSACConfig, make_qr_sac, members_of
from core_rl.tracking import (
    PRUNED,
    JsonlSink,
    WandbConfig,
    WandbSink,
    cell_of_agent,
    open_workdir,
    read_metrics,
    write_record,
)
from core_rl.train import TrainConfig, TrainState, make_trainer
from core_rl.types import Afterstate, Agent, Hindsight, Metrics, Obs, Trainer

# Flags that a resume may change: they alter how long or how closely watched a run is.
MAY_DIFFER = ("run", "train.num_epochs", "workdir")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a run is kept, watched and ended; nothing here changes what is learnt in an epoch."""

    minutes: float = 0.0  # training stops in order so long after it began or resumed; 0: no limit
    evaluate_every: int = 10  # epochs between evaluations
    checkpoint_every: int = 20  # epochs between checkpoints
    wandb: WandbConfig = WandbConfig()

    def __post_init__(self):
        if not self.minutes >= 0:
            raise ValueError(f"minutes must not be negative, got {self.minutes}")
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class ExperimentConfig(Protocol):
    """What every experiment's configuration has, beside what is its own."""

    @property
    def agent(self) -> QRSACConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def run(self) -> RunConfig: ...
    @property
    def seed(self) -> int: ...  # of the first of the seeds
    @property
    def num_seeds(self) -> int: ...


def check_seeds(config: ExperimentConfig) -> None:
    """Raises ValueError for seeds that no run can have."""
    if config.num_seeds < 1:
        raise ValueError(f"num_seeds must be at least 1, got {config.num_seeds}")
    if config.seed < 0:
        raise ValueError(f"seed must not be negative, got {config.seed}")


class Experiment(NamedTuple):
    """What `run` needs to know of an experiment."""

    name: str
    command: str  # what one types before the flags
    config: ExperimentConfig
    env: Env
    agent: Agent
    trainer: Trainer
    evaluate: Callable[[Any], Metrics]  # (AgentState) -> scalars, traced and vmapped over members
    score: str  # the metric of `evaluate` whose largest value chooses the policy that is kept
    describe: Callable[[dict[str, float]], str]  # an evaluation in a few words, for the terminal
    bundle_extra: dict[str, Any]  # what a policy must know of its environment


def make_learner(
    config: ExperimentConfig,
    env: Env,
    episode_length: int,
    membership: Callable[[State], Mapping[str, jax.Array]] | None = None,
    hindsight: Hindsight | None = None,
    afterstate: Afterstate | None = None,
) -> tuple[Agent, Trainer]:
    """The agent and its training loop, as an experiment's configuration asks for them.

    `membership` and `hindsight` are those of `make_trainer`, `afterstate` that of `make_qr_sac`.

    Raises UserError for an observation entry or an afterstate that the environment does not offer.
    """
    agent = make_qr_sac(config.agent, env.action_size, afterstate)
    trainer = make_trainer(
        env,
        agent,
        config.train,
        episode_length=episode_length,
        batch_size=config.agent.batch_size,
        n_step=config.agent.n_step,
        membership=membership,
        hindsight=hindsight,
    )
    return agent, trainer


def trained_agent(policy: Policy) -> tuple[Agent, Any]:
    """The agent of a bundle that `run` wrote, and the part of its state that acts.

    It tells the distribution of its actions, which the exported program does not; what only
    training needs is None in its state.

    Raises UserError for a bundle that was not made by QR-SAC.
    """
    network = policy.manifest.get("network", {})
    config = flags.from_dict(QRSACConfig, network, base=QRSACConfig())
    # What critics would be told of an action is not in the bundle, and they are not either.
    config = dataclasses.replace(config, afterstate=False)
    agent = make_qr_sac(config, policy.manifest["action"]["shape"][0])
    entries = {
        name.split("/")[1]: leaf
        for name, leaf in policy.params.items()
        if name.startswith("obs_stats/") and name.endswith("/mean")
    }
    if not entries:
        raise UserError("this policy bundle has no agent that could be restored, only its program")
    template = jax.eval_shape(lambda key: agent.deploy(agent.init(key, entries)), jax.random.key(0))
    return agent, restore_params(policy, template)


class Outcome(NamedTuple):
    workdir: Path
    reason: str  # "finished", "time is up" or the signal's name
    exit_code: int
    epochs: int
    train_seconds: float  # over all resumes, compilation and evaluation included
    rows: list[dict[str, Any]]  # of metrics.jsonl
    continue_command: str
    mirror: WandbSink  # closed; `report_end` adds to it

    @property
    def kept(self) -> dict[str, Any]:
        """The row of the evaluation whose policy was kept.

        A killed run may have kept it after its last checkpoint, and no later one may be better.
        """
        epoch = load_policy(self.workdir / "policy").manifest["record"]["epoch"]
        path = self.workdir / "metrics.superseded.jsonl"
        superseded = reversed(read_metrics(path)) if path.exists() else ()
        return next(row for row in (*self.rows, *superseded) if row["epoch"] == epoch)

    def numbers(self, epoch: int, steps: str) -> list[tuple[str, str, str]]:
        """Label, value and note of what the training took, for reports.

        Args:
          epoch: the one whose policy was kept.
          steps: what an environment step is.
        """
        last = self.rows[-1]
        return [
            ("Environment steps", f"{last['env_steps']:,}", steps),
            ("Updates", f"{last['updates']:,}", ""),
            ("Training", f"{self.train_seconds:.0f} s", "compilation and evaluations included"),
            ("Policy from epoch", str(epoch), "the best evaluation's"),
        ]


class _Signals:
    """The first SIGINT or SIGTERM asks to stop after the epoch, the second exits at once."""

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self):
        self._before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _):
        if self.received is not None:
            sys.stderr.write("\nexits at once; the last checkpoint is kept\n")
            sys.stderr.flush()
            raise SystemExit(128 + number)
        self.received = signal.Signals(number)
        sys.stderr.write(f"\n{self.received.name}: finishing this epoch, then saving\n")
        sys.stderr.flush()


class _Progress:
    """One live line on a terminal, or a plain line at each evaluation elsewhere."""

    def __init__(self, num_epochs: int):
        self._console = Console(stderr=True, highlight=False)
        self._num_epochs = num_epochs
        self._status = self._console.status("compiling", spinner="dots")

    def __enter__(self):
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_):
        self._status.stop()

    def say(self, text: str):
        self._console.print(text, soft_wrap=True)

    def update(self, text: str):
        self._status.update(text)

    def epoch(self, row: dict[str, Any], evaluation: str, seconds_left: float, *, evaluated: bool):
        text = (
            f"epoch {row['epoch']}/{self._num_epochs}  {row['env_steps']:,} env steps  "
            f"{row['time/updates_per_second']:.0f} updates/s  {evaluation}  "
            f"ETA {int(seconds_left // 60)}:{int(seconds_left % 60):02d}"
        )
        if self._console.is_terminal:
            self._status.update(text)
        elif evaluated:
            self.say(text)


def run(experiment: Experiment, workdir: str | Path) -> Outcome:
    """Starts or resumes `experiment` in `workdir`, or in a cell of its own below it where W&B's
    agent asks, and returns when it ended in order.

    Raises UserError (unwritable or locked directory, another configuration, a full disk, a loss
    that is not finite); what was recorded before stays.
    """
    if cell := cell_of_agent():
        workdir = Path(workdir) / cell
    with open_workdir(workdir) as directory, _Signals() as signals:
        with _Progress(experiment.config.train.num_epochs) as progress:
            return _train(experiment, Path(directory), signals, progress)


def _train(
    experiment: Experiment, workdir: Path, signals: _Signals, progress: _Progress
) -> Outcome:
    if (workdir / PRUNED).exists():  # from its beginning, it would replace its own policy
        raise UserError(f"{workdir}: this run's checkpoints were pruned: choose another --workdir")
    with contextlib.ExitStack() as stack:
        checkpointer = Checkpointer(workdir / "checkpoints")
        stack.callback(checkpointer.close)
        resumed = checkpointer.latest()
        if resumed is None and experiment.config.train.begin_from:
            _source_of(experiment)  # a mistyped path leaves no trace
        record = write_record(
            workdir,
            experiment.config,
            seeds=list(_seeds(experiment)),
            resumed_epoch=resumed,
            may_differ=MAY_DIFFER,
        )
        sink = JsonlSink(workdir / "metrics.jsonl")
        stack.callback(sink.close)
        sink.supersede_after(resumed or 0)
        rows = read_metrics(workdir / "metrics.jsonl")
        mirror = WandbSink(
            experiment.config.run.wandb,
            workdir,
            f"{experiment.name}-s{experiment.config.seed}",
            experiment.config,
            attempt=len(record["resumes"]),
            rows=rows,
        )
        stack.callback(mirror.close, exit_code=1)  # does nothing after the ordinary close
        outcome = _loop(
            experiment, workdir, signals, progress, checkpointer, resumed, rows, sink, mirror
        )
        mirror.close(exit_code=min(outcome.exit_code, 1))
        return outcome


def _loop(
    experiment: Experiment,
    workdir: Path,
    signals: _Signals,
    progress: _Progress,
    checkpointer: Checkpointer,
    resumed: int | None,
    rows: list[dict[str, Any]],
    sink: JsonlSink,
    mirror: WandbSink,
) -> Outcome:
    options, members = experiment.config.run, _members(experiment)
    over_members = jax.vmap if len(members) > 1 else lambda function: function
    epoch_fn = jax.jit(over_members(experiment.trainer.epoch), donate_argnums=0)
    evaluate_fn = jax.jit(over_members(experiment.evaluate))

    begins = [(jax.random.key(one.seed), Hypers.from_config(one.agent)) for one in members]
    begin = jax.tree.map(lambda *each: jnp.stack(each), *begins) if len(members) > 1 else begins[0]
    init_fn = jax.jit(over_members(experiment.trainer.init))
    if resumed is None:
        progress.update("compiling, then filling the replay with random actions")
        state = init_fn(*begin)
        if experiment.config.train.begin_from:
            state = _with_trained_agent(experiment, state)
    else:
        progress.say(f"resuming {workdir} after epoch {resumed}")
        state = checkpointer.restore(resumed, jax.eval_shape(init_fn, *begin))

    epoch = resumed or 0
    seconds_before = rows[-1]["time/train_seconds"] if rows else 0.0
    began_at = time.monotonic()
    best = max((_best_member(row, experiment.score)[1] for row in rows), default=-math.inf)
    evaluations = [row for row in rows if f"eval/{experiment.score}" in row]
    said = _describe(experiment, evaluations[-1]) if evaluations else "no evaluation yet"
    reason, limit = "finished", options.minutes * 60.0 or math.inf
    first_epoch = epoch + 1
    progress.update("compiling")
    while epoch < experiment.config.train.num_epochs and reason == "finished":
        began = time.monotonic()
        state, metrics = epoch_fn(state)
        metrics = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}
        seconds = time.monotonic() - began
        epoch += 1
        row: dict[str, Any] = {
            "epoch": epoch,
            "env_steps": epoch * experiment.config.train.env_steps_per_epoch,
            "updates": epoch * experiment.config.train.updates_per_epoch,
            "time/unix": time.time(),
            "time/updates_per_second": experiment.config.train.updates_per_epoch / seconds,
            "time/env_steps_per_second": experiment.config.train.env_steps_per_epoch / seconds,
            **_plain(metrics),
        }
        broken = _not_finite(metrics)
        elapsed = time.monotonic() - began_at
        if broken:
            reason = "not finite"
        elif signals.received is not None:
            reason = signals.received.name
        elif elapsed >= limit and epoch < experiment.config.train.num_epochs:
            reason = "time is up"
        last = epoch == experiment.config.train.num_epochs or reason != "finished"
        due = last or epoch == 1 or epoch % options.evaluate_every == 0
        if due and not broken:
            results = jax.device_get(evaluate_fn(state.agent))
            row.update(_plain({f"eval/{name}": np.asarray(v) for name, v in results.items()}))
            said = _describe(experiment, row)
            index, score = _best_member(row, experiment.score)
            if score > best:
                best = score
                _save_bundle(experiment, workdir, state.agent, index, row)
                mirror.keep(workdir / "policy")
        elapsed = time.monotonic() - began_at
        row["time/train_seconds"] = seconds_before + elapsed
        sink.write(row)
        mirror.write(row)
        rows.append(row)
        if broken:
            kept = checkpointer.latest()
            kept = (
                "no checkpoint yet" if kept is None else f"the checkpoint of epoch {kept} is kept"
            )
            raise UserError(f"not finite in epoch {epoch}: {', '.join(broken)}; {kept}")
        if last or epoch % options.checkpoint_every == 0:
            sink.sync()
            checkpointer.save(epoch, state)
        left = elapsed / (epoch - first_epoch + 1) * (experiment.config.train.num_epochs - epoch)
        progress.epoch(row, said, min(left, max(limit - elapsed, 0.0)), evaluated=due)

    progress.update("saving")
    checkpointer.wait()
    return Outcome(
        workdir=workdir,
        reason=reason,
        exit_code=128 + signals.received if signals.received is not None else 0,
        epochs=epoch,
        train_seconds=rows[-1]["time/train_seconds"] if rows else 0.0,
        rows=rows,
        continue_command=_continue_command(experiment, reason),
        mirror=mirror,
    )


def _source_of(experiment: Experiment) -> Path:
    """What this run begins with: a policy bundle, or the checkpoints of another run."""
    source = experiment.config.train.begin_from
    path = Path(source).expanduser()
    if (path / MANIFEST).is_file():
        return path
    folder = path / "checkpoints"
    if not folder.is_dir() or not any(folder.iterdir()):
        raise UserError(
            f"--train.begin_from={source}: there is neither a run with a checkpoint nor a policy"
        )
    return folder


def _bundled(policy: Policy, agent_state: Any) -> Any:
    """`agent_state` with the actor and the statistics of a policy bundle; critics stay fresh.

    Raises UserError when the bundle's networks are of other shapes.
    """
    _, trained = trained_agent(policy)
    actor = trained.networks.actor
    if actor is None:
        actor = trained.networks.actor_average
    # A copy: an epoch is given its state's buffers, each of them once.
    average = jax.tree.map(jnp.copy, actor)
    networks = dataclasses.replace(
        agent_state.networks,
        actor=actor,
        actor_average=None if agent_state.networks.actor_average is None else average,
    )
    result = dataclasses.replace(agent_state, networks=networks, obs_stats=trained.obs_stats)
    if jax.tree.map(jnp.shape, result) != jax.tree.map(jnp.shape, agent_state):
        raise UserError(
            "--train.begin_from: the policy's networks or observations differ from this run's"
        )
    return result


def _with_trained_agent(experiment: Experiment, state: TrainState) -> TrainState:
    """`state` with the agent of another run's last checkpoint, or with the actor of a bundle."""
    folder = _source_of(experiment)
    adopt = experiment.agent.adopt
    several = len(_members(experiment)) > 1
    adopt = jax.vmap(adopt) if several else adopt
    if folder.name != "checkpoints":
        policy = load_policy(folder)
        bundled = functools.partial(_bundled, policy)
        if several:
            bundled = jax.vmap(bundled)
        state = dataclasses.replace(state, agent=adopt(state.agent, bundled(state.agent)))
        return jax.device_put(state, jax.local_devices()[0])
    with contextlib.closing(Checkpointer(folder, read_only=True)) as checkpointer:
        epoch = checkpointer.latest()
        if epoch is None:
            raise UserError(f"{folder}: that run has no complete checkpoint yet")
        template = {"agent": jax.eval_shape(lambda: state.agent)}
        trained = checkpointer.restore(epoch, template, partial=True)["agent"]
    state = dataclasses.replace(state, agent=adopt(state.agent, trained))
    # What is read is bound to its device. All of it is, else the second epoch, whose input is the
    # output of the first one, is compiled anew.
    return jax.device_put(state, jax.local_devices()[0])


def report_end(outcome: Outcome, report: Path | None = None) -> None:
    """Says on stdout how the run ended, where its results are and how it goes on; what lies in its
    directory by now, the report and the policy, is shown in the mirror."""
    outcome.mirror.show(exit_code=min(outcome.exit_code, 1))
    print(f"{outcome.reason} after {outcome.epochs} epochs, {outcome.train_seconds:.0f} s")
    print(f"report: {report}" if report else f"metrics: {outcome.workdir / 'metrics.jsonl'}")
    print(f"to continue: {outcome.continue_command}")


def _continue_command(experiment: Experiment, reason: str) -> str:
    """The same command; a run that is complete goes on only with more epochs."""
    arguments = sys.argv[1:]
    if reason == "finished":
        name = "--train.num_epochs"
        arguments = [text for text in arguments if not text.startswith(f"{name}=")]
        arguments.append(f"{name}={2 * experiment.config.train.num_epochs}")
    return " ".join([experiment.command, shlex.join(arguments)]).strip()


def _seeds(experiment: Experiment) -> range:
    return range(experiment.config.seed, experiment.config.seed + experiment.config.num_seeds)


class _Member(NamedTuple):
    """One of those that train side by side."""

    agent: QRSACConfig
    seed: int


def _members(experiment: Experiment) -> list[_Member]:
    """The seeds of the first member of a population, then those of the second, and so on."""
    population = members_of(experiment.config.agent)
    return [_Member(agent, seed) for agent in population for seed in _seeds(experiment)]


def _plain(metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    """Numbers, or one list per metric when there are several members."""
    return {name: value.tolist() for name, value in metrics.items()}


def _best_member(row: dict[str, Any], score: str) -> tuple[int, float]:
    """The index and value of the best score in a row; -inf where none was evaluated."""
    values = np.atleast_1d(np.asarray(row.get(f"eval/{score}", -math.inf), np.float64))
    values = np.where(np.isnan(values), -math.inf, values)
    return int(np.argmax(values)), float(np.max(values))


def _describe(experiment: Experiment, row: dict[str, Any]) -> str:
    index, _ = _best_member(row, experiment.score)
    evaluation = {
        name.removeprefix("eval/"): float(np.atleast_1d(value)[index])
        for name, value in row.items()
        if name.startswith("eval/")
    }
    return experiment.describe(evaluation)


def _not_finite(metrics: dict[str, np.ndarray]) -> list[str]:
    """The losses that are not finite, as `name=value`."""
    return [
        f"{name}={value.tolist()}"
        for name, value in metrics.items()
        if name.startswith("train/") and not np.all(np.isfinite(value))
    ]


def _save_bundle(
    experiment: Experiment, workdir: Path, agent_state: Any, index: int, row: dict[str, Any]
):
    members = _members(experiment)
    if len(members) > 1:
        agent_state = jax.tree.map(lambda leaf: leaf[index], agent_state)
    agent, config = experiment.agent, members[index].agent

    def apply(params: Any, obs: Obs) -> jax.Array:
        return agent.greedy(params, agent.carry(1), obs)[0]

    # Only what the policy reads: an actor's bundle does not ask for the critics' observations.
    obs = example_obs(experiment.env)
    read = {name: obs[name] for name in config.actor_obs + config.static_obs}
    save_policy(
        workdir / "policy",
        apply=apply,
        params=agent.deploy(agent_state),
        example_obs=read,
        record={name: row[name] for name in ("epoch", "env_steps", "updates")},
        network_config=flags.to_dict(config),
        extra=experiment.bundle_extra,
    )
