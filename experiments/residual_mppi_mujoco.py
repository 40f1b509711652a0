"""Residual-MPPI on locomotion tasks, the MuJoCo comparison of Wang et al. 2025 (ICLR,
arXiv 2407.00898) on brax: Ant, Hopper, HalfCheetah and Swimmer, each with an add-on reward that the
prior policy never saw.

    ./run python -m experiments.residual_mppi_mujoco                 # hours; may be killed, resumes
    ./run python -m experiments.residual_mppi_mujoco --only=ant --num_seeds=1 --episodes=4

Per task and seed: a prior is trained by QR-SAC (`--out`/TASK-sSEED/prior), dynamics of the
observation vector are learnt from its episodes (dynamics.npz), and every variant plays episodes
(evaluations/) whose starts are the same for all variants, other ones in each episode and for each
seed, and unknown to training. What is there is not done again: commands with different `--only`,
`--variants` or seeds may share the work. Then it prints a table and draws `totals.png`. Intervals
are Student's over episodes; episodes of one seed share a prior and a model, so that they are not
independent and the intervals are too narrow for a claim about other priors: the mean of each seed
stands beside them.

Total reward is basic (the environment's) plus add-on, on true transitions, until an episode ends.
The add-ons are the paper's. brax's observation vectors have gym's order without contact forces, and
the entries below hold the same as there:

    ant          -obs[14]           minus the torso's velocity along y [m/s]
    halfcheetah  -10 |obs[7]|       angle of the front foot's joint [rad]
    hopper       10 (obs[0] - 1)    height of the torso [m]
    swimmer      -|obs[1]|          angle of the first joint [rad]

The variants that need the reward of the prior's task rebuild it from the predicted observation, as
the authors do: forward velocity, a constant while alive, and the cost of the action. brax pays the
mean velocity over a step, of which the observation holds the one at its end: over an episode they
agree, in a step they do not. `valued` takes for the value the mean of the more cautious critic at
the prior's mode, without the entropy of what it would have sampled.

The simulator, its rewards' scale and the priors are others than the paper's, and a plan is chosen
in four rounds of 64 samples instead of one of thousands: compare orders, not numbers.
"""

import dataclasses
import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from core_rl import flags
from core_rl.checkpoint import Checkpointer
from core_rl.dynamics import (
    Dynamics,
    DynamicsConfig,
    DynamicsState,
    Progress,
    as_dynamics,
    make_dynamics,
)
from core_rl.env import Env, named_obs
from core_rl.episodes import collect
from core_rl.errors import UserError, storage_errors
from core_rl.launch import RunConfig, run
from core_rl.networks import average_outputs, make_ensemble, make_mlp
from core_rl.qr_sac import QRSACConfig, QRSACState
from core_rl.report import encode_png
from core_rl.residual_mppi import (
    Importance,
    Planner,
    PlannerState,
    ResidualMPPIConfig,
    agent_prior,
    make_residual_mppi,
)
from core_rl.running_stats import normalise
from core_rl.tracking import decode_json, write_atomically, write_json
from core_rl.train import TrainConfig
from core_rl.types import Agent, Key, Obs
from experiments import qr_sac
from experiments.qr_sac import BraxExperiment

# Roots of the keys that are no training's; the seed is folded in.
EVALUATION_SEED, DYNAMICS_SEED = 8_000_000, 9_000_000

Reward = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (obs, action, next obs) -> []


@dataclasses.dataclass(frozen=True)
class Task:
    """What one task differs in from the others."""

    env: str  # brax:NAME:BACKEND
    addon: Reward  # r_R, per step
    forward: int  # entry of the observation with the velocity that the environment pays for
    alive: float  # what it pays per step
    control: float  # and takes per squared unit of the action
    planner: ResidualMPPIConfig  # of `residual`; the variants replace what sets them apart
    published: Mapping[str, tuple[float, float]]  # variant -> total reward in the paper, +-
    extra: tuple[str, ...] = ()  # variants beside the common ones
    dt: float = 0.05  # [s] that a step of the environment lasts

    def reward(self, obs: jax.Array, action: jax.Array, after: jax.Array) -> jax.Array:
        """The reward of the prior's task `[]`, as far as observations tell."""
        del obs
        return after[self.forward] + self.alive - self.control * jnp.sum(action**2)


class Variant(NamedTuple):
    what: str
    changes: Mapping[str, Any]  # of the planner's configuration


VARIANTS: dict[str, Variant] = {
    "prior": Variant("the prior alone", {"variant": "prior"}),
    "greedy": Variant("greedy: add-on only", {"variant": "greedy"}),
    "full": Variant("full: reward, no prior", {"variant": "full"}),
    "guided": Variant("guided: reward, around the prior", {"variant": "guided"}),
    "valued": Variant("valued: guided and the critic", {"variant": "valued"}),
    "residual": Variant("residual: log-prior", {"variant": "residual"}),
    "none": Variant("residual without importance", {"importance": "none"}),
    "signed": Variant("residual, importance as published", {"importance": "signed"}),
    "absolute": Variant("residual, importance as coded", {"importance": "absolute"}),
}
COMMON = ("prior", "greedy", "full", "guided", "valued", "residual")


def _planner(noise_std: float, **changes: Any) -> ResidualMPPIConfig:
    """Four rounds of 64 samples found better plans than one of 512 (docs/residual_mppi.md)."""
    base = ResidualMPPIConfig(
        num_samples=64, num_iterations=4, noise_std=(noise_std,), importance="none"
    )
    return dataclasses.replace(base, **changes)


# Published totals: final version of the paper; `guided`: its first version, which alone has them.
TASKS: dict[str, Task] = {
    "ant": Task(
        env="brax:ant:spring",
        addon=lambda obs, action, after: -after[14],
        forward=13,
        alive=1.0,
        control=0.5,
        # Tuned (docs/residual_mppi.md); published: deviation 0.07, lambda 5e-3, omega' 1e-2.
        planner=_planner(0.2, horizon=5, temperature=0.2, prior_weight=0.03),
        published={
            "greedy": (6104.2, 1532.0),
            "guided": (5485.0, 1773.0),
            "residual": (6846.7, 647.8),
        },
        extra=("signed", "absolute"),
    ),
    "hopper": Task(
        env="brax:hopper:spring",
        addon=lambda obs, action, after: 10.0 * (after[0] - 1.0),
        forward=5,
        alive=1.0,
        control=1e-3,
        planner=_planner(0.07, horizon=8, temperature=1e-5, prior_weight=2e-7),
        published={
            "greedy": (7367.0, 199.4),
            "guided": (6146.0, 1605.0),
            "residual": (7363.0, 254.9),
        },
        dt=0.008,
    ),
    "halfcheetah": Task(
        env="brax:halfcheetah:spring",
        addon=lambda obs, action, after: -10.0 * jnp.abs(after[7]),
        forward=8,
        alive=0.0,
        control=0.1,
        planner=_planner(0.13, horizon=2, temperature=5e-5, prior_weight=1e-7),
        published={
            "greedy": (1939.9, 134.7),
            "guided": (1821.0, 285.0),
            "residual": (1936.2, 109.3),
        },
    ),
    "swimmer": Task(
        env="brax:swimmer:generalized",  # the only backend that brax has for it
        addon=lambda obs, action, after: -jnp.abs(after[1]),
        forward=3,
        alive=0.0,
        control=1e-4,
        planner=_planner(0.14, horizon=5, temperature=1e-4, prior_weight=1e-4),
        published={"greedy": (-58.9, 5.4), "residual": (-60.0, 5.2)},
        dt=0.04,
    ),
}


@dataclasses.dataclass(frozen=True)
class PlannerOverrides:
    """What stands for the tasks' own settings of the planner, in all variants."""

    horizon: int | None = None  # steps that are planned ahead; none: the task's own
    num_samples: int | None = None  # plans that are scored per iteration; none: the task's own
    num_iterations: int | None = None  # rounds of sampling; none: the task's own
    discount: float | None = None  # per step of the horizon; none: the task's own
    temperature: float | None = None  # lambda; none: the task's own
    prior_weight: float | None = None  # omega', of log pi; none: the task's own
    noise_std: float | None = None  # of the samples; none: the task's own
    importance: Importance | None = None  # of all variants but the extra ones; none: the task's own

    def __post_init__(self):
        self.apply(ResidualMPPIConfig())

    def apply(self, planner: ResidualMPPIConfig) -> ResidualMPPIConfig:
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is not None
        }
        if "noise_std" in given:
            given["noise_std"] = (given["noise_std"],)
        return dataclasses.replace(planner, **given)


@dataclasses.dataclass(frozen=True)
class RecordingConfig:
    """Episodes of the prior, from which its dynamics are learnt."""

    num_envs: int = 128  # environments in parallel
    num_steps: int = 1000  # steps of each
    # Standard deviations of what is added to the prior's samples, by environments in turn: the
    # model must know what plans off the prior's own lead to.
    noise: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)

    def __post_init__(self):
        for name in ("num_envs", "num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.noise or not all(noise >= 0 for noise in self.noise):
            raise ValueError(f"noise must be numbers that are not negative, got {self.noise}")


@dataclasses.dataclass(frozen=True)
class ResidualMPPIMujoco:
    only: tuple[str, ...] = ()  # tasks by name; empty: all
    variants: tuple[str, ...] = ()  # of the planner, by name; empty: all that belong to the task
    num_seeds: int = 3  # per task
    first_seed: int = 0  # of them
    episodes: int = 8  # per variant and seed
    steps: int = 1000  # after which an episode ends
    out: str = "runs/residual_mppi_mujoco"  # where the runs go
    json: bool = False  # print one JSON object
    planner: PlannerOverrides = PlannerOverrides()
    recording: RecordingConfig = RecordingConfig()
    # Small networks: on one core a planner asks the model 1,280 times per step, and the prior too.
    dynamics: DynamicsConfig = DynamicsConfig(hidden=(256, 256), batch_size=512, num_epochs=8)
    # The entropy is far above the usual -1 per entry: the prior's log-density must say something
    # about actions around its own, and it must not fall where a plan pushes it aside. The discount
    # is per 0.05 s here.
    agent: QRSACConfig = QRSACConfig(
        hidden=(128, 128),
        num_quantiles=8,
        n_step=1,
        discount=0.98,
        actor_lr=6e-4,
        critic_lr=6e-4,
        lr_decay_updates=100_000,
        target_entropy_per_dim=0.0,
        alpha=0.1,
        batch_size=128,
    )
    train: TrainConfig = TrainConfig(
        num_envs=32, warmup_steps=128, replay_capacity=500_000, num_epochs=100
    )
    run: RunConfig = RunConfig(evaluate_every=20, checkpoint_every=20)

    def __post_init__(self):
        for name in ("num_seeds", "episodes", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.first_seed < 0:
            raise ValueError(f"first_seed must not be negative, got {self.first_seed}")
        for field, allowed in (("only", TASKS), ("variants", VARIANTS)):
            for name in getattr(self, field):
                if name not in allowed:
                    names = ", ".join(allowed)
                    raise ValueError(f"{field} must be among {names}, got {name!r}")

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.num_seeds)


CONFIG = ResidualMPPIMujoco()


def as_obs(vector: jax.Array) -> Obs:
    """brax's observations are plain vectors, and the planner's states too."""
    return {"state": vector}


def critic_value(config: QRSACConfig, agent: Agent, state: QRSACState) -> Callable[..., jax.Array]:
    """`(obs[F]) -> []`: the smaller of the critics' mean returns of the prior's mode there."""
    policy = agent.policy
    assert policy is not None

    def value(obs: jax.Array) -> jax.Array:
        action = policy(state, as_obs(obs)).mode()
        body = make_mlp(
            (obs.shape[-1], action.shape[-1]),
            1,
            config.hidden,
            activation=config.activation,
            layer_norm=config.layer_norm,
        )
        seen = normalise(state.obs_stats["state"], obs) if config.normalise_obs else obs
        critics = make_ensemble(body, config.num_critics)
        return jnp.min(critics.apply(average_outputs(state.networks.critics), (seen, action)))

    return value


def play(
    env: Env,
    act: Callable[[jax.Array, Key], tuple[jax.Array, Mapping[str, jax.Array]]],
    addon: Reward,
    num_steps: int,
    key: Key,
) -> dict[str, jax.Array]:
    """Sums `[]` over one episode: `basic`, `addon`, `steps`, and whether it `terminated`.

    Steps after a termination count for nothing.

    Args:
      act: `(obs[F], key) -> action[A], more to be summed`.
    """

    def step(carry: Any, key: Key):
        state, alive, totals = carry
        obs = named_obs(state)["state"]
        action, more = act(obs, key)
        state = env.step(state, action)
        after = named_obs(state)["state"]
        gains = {"basic": state.reward, "addon": addon(obs, action, after), "steps": 1.0, **more}
        # Selected, not multiplied: what follows a termination may not even be finite.
        totals = {
            name: total + jnp.where(alive > 0.0, gains[name], 0.0) for name, total in totals.items()
        }
        return (state, alive * (1.0 - state.done), totals), None

    reset_key, steps_key = jax.random.split(key)
    state = env.reset(reset_key)
    _, more = jax.eval_shape(act, named_obs(state)["state"], key)
    totals = dict.fromkeys(("basic", "addon", "steps", *more), jnp.zeros(()))
    carry = (state, jnp.ones(()), totals)
    (_, alive, totals), _ = jax.lax.scan(step, carry, jax.random.split(steps_key, num_steps))
    return {**totals, "terminated": 1.0 - alive}


class Player(NamedTuple):
    """A variant of one task, compiled once for all seeds and for all numbers of its planner."""

    init: Callable[..., PlannerState]  # (QRSACState, DynamicsState, example obs) -> PlannerState
    play: Callable[..., dict[str, jax.Array]]  # (the two, PlannerState, keys[N]) -> sums [N]


def make_player(
    config: ResidualMPPIMujoco,
    task: Task,
    planner_config: ResidualMPPIConfig,
    env: Env,
    agent: Agent,
    model: Dynamics,
) -> Player:
    """Sums of `play`, and of each decision: `effective_samples`, and `distance`, the root mean
    square over the action's entries of what the planner made of the prior's mode."""
    policy = agent.policy
    assert policy is not None

    def make(prior: QRSACState, dynamics: DynamicsState) -> Planner:
        return make_residual_mppi(
            planner_config,
            as_dynamics(model, dynamics),
            agent_prior(agent, prior, as_obs),
            task.addon,
            reward=task.reward,
            value=critic_value(config.agent, agent, prior),
        )

    def episodes(
        prior: QRSACState, dynamics: DynamicsState, numbers: PlannerState, keys: Key
    ) -> dict[str, jax.Array]:
        planner = make(prior, dynamics)

        def act(obs: jax.Array, key: Key):
            plan = planner.plan(numbers, obs, key)
            change = plan.action - policy(prior, as_obs(obs)).mode()
            distance = jnp.sqrt(jnp.mean(change**2))
            more = {"effective_samples": plan.effective_samples, "distance": distance}
            return plan.action, more

        return jax.vmap(lambda key: play(env, act, task.addon, config.steps, key))(keys)

    return Player(
        init=lambda prior, dynamics, obs: make(prior, dynamics).init(obs), play=jax.jit(episodes)
    )


def directory_of(config: ResidualMPPIMujoco, task: str, seed: int) -> Path:
    return Path(config.out) / f"{task}-s{seed}"


def prior_config(config: ResidualMPPIMujoco, task: str, seed: int) -> BraxExperiment:
    """The training of one prior; episodes there last as long as brax's own."""
    # The same horizon in seconds for all tasks: their steps differ sixfold.
    discount = config.agent.discount ** (TASKS[task].dt / 0.05)
    return BraxExperiment(
        env=TASKS[task].env,
        agent=dataclasses.replace(config.agent, discount=discount),
        train=config.train,
        run=config.run,
        seed=seed,
        workdir=str(directory_of(config, task, seed) / "prior"),
    )


class Prior(NamedTuple):
    state: QRSACState
    epochs: int  # that it was trained for


def train_prior(config: ResidualMPPIMujoco, task: str, seed: int) -> Prior | int:
    """The prior at the end of its training; an exit code where that was stopped before."""
    made = prior_config(config, task, seed)
    experiment = qr_sac.make_experiment(made)
    outcome = run(experiment, made.workdir)
    if outcome.reason != "finished":
        sys.stderr.write(f"{made.workdir}: {outcome.reason}; the same command goes on\n")
        return outcome.exit_code
    checkpointer = Checkpointer(outcome.workdir / "checkpoints", read_only=True)
    shapes = jax.eval_shape(experiment.trainer.init, jax.random.key(0))
    state = checkpointer.restore(outcome.epochs, {"agent": shapes.agent}, partial=True)["agent"]
    checkpointer.close()
    return Prior(state, outcome.epochs)


def model_of(config: ResidualMPPIMujoco, env: Env) -> Dynamics:
    assert isinstance(env.observation_size, int)
    return make_dynamics(config.dynamics, env.observation_size, env.action_size)


def learn_dynamics(
    config: ResidualMPPIMujoco, task: str, seed: int, env: Env, agent: Agent, prior: Prior
) -> DynamicsState:
    """Fitted to episodes of the prior, or read where that was done before.

    Raises UserError where it was done with other settings.
    """
    directory = directory_of(config, task, seed)
    settings = {
        "recording": flags.to_dict(config.recording),
        "dynamics": flags.to_dict(config.dynamics),
        "prior_epochs": prior.epochs,
    }
    model = model_of(config, env)
    record, weights = directory / "dynamics.json", directory / "dynamics.npz"
    done = _read_json(record)
    if done is not None:
        if done["settings"] != settings:
            raise UserError(
                f"{record}: these dynamics were learnt with other settings; "
                "repeat those, or choose another --out"
            )
        return _read_state(weights, jax.eval_shape(model.init, jax.random.key(0)))

    collect_key, fit_key = jax.random.split(jax.random.fold_in(_root(DYNAMICS_SEED), seed))
    data = collect(
        env,
        lambda obs, key: agent.act(prior.state, (), obs, key)[0],
        collect_key,
        num_envs=config.recording.num_envs,
        num_steps=config.recording.num_steps,
        episode_length=config.steps,
        noise=config.recording.noise,
    )
    progress: list[Progress] = []
    state = model.fit(fit_key, data, progress.append)
    error = float(progress[-1].best_error.min())
    sys.stderr.write(
        f"{directory}: dynamics from {int(data.valid.sum()):,} steps, error over "
        f"{config.dynamics.horizon} steps {error:.3f} typical changes\n"
    )
    _write_state(weights, state)
    write_json(record, {"settings": settings, "validation_error": error})  # last: now it is done
    return state


def planner_config(config: ResidualMPPIMujoco, task: str, variant: str) -> ResidualMPPIConfig:
    own = config.planner.apply(TASKS[task].planner)
    return dataclasses.replace(own, **VARIANTS[variant].changes)


def evaluate(
    config: ResidualMPPIMujoco,
    task: str,
    variant: str,
    learnt: Mapping[int, tuple[Prior, DynamicsState]],
    env: Env,
    agent: Agent,
) -> dict[str, np.ndarray]:
    """Sums `[S, N]` over the episodes of each seed, played where they have not been before."""
    chosen = planner_config(config, task, variant)
    player = make_player(config, TASKS[task], chosen, env, agent, model_of(config, env))
    sums = []
    for seed, (prior, dynamics) in learnt.items():
        settings = {
            "planner": flags.to_dict(chosen),
            "episodes": config.episodes,
            "steps": config.steps,
            "prior_epochs": prior.epochs,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        folder = directory_of(config, task, seed) / "evaluations"
        path = folder / f"{variant}-{digest}.json"
        done = _read_json(path)
        if done is None:
            root = jax.random.fold_in(_root(EVALUATION_SEED), seed)
            numbers = player.init(prior.state, dynamics, jnp.zeros(env.observation_size))
            keys = jax.random.split(root, config.episodes)
            played = jax.device_get(player.play(prior.state, dynamics, numbers, keys))
            done = {"settings": settings, "sums": {k: v.tolist() for k, v in played.items()}}
            with storage_errors(folder):
                folder.mkdir(exist_ok=True)
            write_json(path, done)
        sums.append(done["sums"])
        total = np.mean(np.add(done["sums"]["basic"], done["sums"]["addon"]))
        sys.stderr.write(f"{path}: total {total:.1f}\n")
    return {name: np.array([each[name] for each in sums]) for name in sums[0]}


def interval(values: np.ndarray) -> float | None:
    """Half of the 95 % interval of the mean, by Student's t; None for a single value."""
    if values.size < 2:
        return None
    deviation = values.std(ddof=1) / np.sqrt(values.size)
    return float(stats.t.ppf(0.975, values.size - 1) * deviation)


def summarise(
    sums: Mapping[str, np.ndarray], residual: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """What `--json` prints of the sums `[S, N]` of one variant.

    Args:
      residual: those of the variant of that name, whose episodes have the same starts; `gain` is
        what its total is above.
    """
    total = sums["basic"] + sums["addon"]
    parts = {"basic": sums["basic"], "addon": sums["addon"], "total": total}
    if residual is not None:
        parts["gain"] = residual["basic"] + residual["addon"] - total
    row: dict[str, Any] = {}
    for name, values in parts.items():
        means = values.mean(axis=1)
        row[name] = {
            "mean": float(values.mean()),
            "half_interval": interval(values),
            "seeds": [round(float(mean), 1) for mean in means],
            "seeds_half_interval": interval(means),
        }
    row["steps"] = float(sums["steps"].mean())
    for name in ("effective_samples", "distance"):
        row[name] = float((sums[name] / sums["steps"]).mean())
    return row


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    def part(entry: Mapping[str, Any] | None) -> str:
        if entry is None:
            return f"{'-':>9}{'':9}"
        half = entry["half_interval"]
        return f"{entry['mean']:9.1f} ± {'-' if half is None else f'{half:.1f}':<6}"

    lines = [
        f"{'task':<12} {'variant':<34} {'basic':>12} {'add-on':>17} {'total':>17} "
        f"{'residual less it':>20} {'steps':>10}  {'the paper':>16}  total of each seed"
    ]
    for task, rows in results.items():
        for name, row in rows.items():
            paper = TASKS[task].published.get(name)
            published = f"{paper[0]:.1f} ± {paper[1]:.1f}" if paper else "-"
            seeds = " ".join(f"{mean:.0f}" for mean in row["total"]["seeds"])
            over_seeds = row["total"]["seeds_half_interval"]
            lines.append(
                f"{task:<12} {VARIANTS[name].what:<34} "
                f"{part(row['basic'])} {part(row['addon'])} {part(row['total'])} "
                f"{part(row.get('gain'))} {row['steps']:8.0f}  {published:>16}  {seeds}"
                + (f" ± {over_seeds:.0f}" if over_seeds is not None else "")
            )
    return "\n".join(
        [
            *lines,
            "±: 95 % interval over episodes, which share one prior per seed and so are not "
            "independent; in the last column over seeds",
            "residual less it: paired by start",
            "the paper: another simulator and other priors; ± there is a standard deviation",
        ]
    )


def draw(results: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> Figure:
    """Total reward by variant, a panel per task: the mean with its interval, a dot per seed."""
    figure = Figure(figsize=(1.2 + 3.4 * max(len(results), 2), 4.4), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (task, rows) in zip(panels, results.items(), strict=True):
        places = np.arange(len(rows))
        for place, row in zip(places, rows.values(), strict=True):
            seeds = row["total"]["seeds"]
            axes.plot([place + 0.2] * len(seeds), seeds, ".", color="#8b96a3", markersize=5)
        axes.errorbar(
            places,
            [row["total"]["mean"] for row in rows.values()],
            yerr=[row["total"]["half_interval"] or 0.0 for row in rows.values()],
            fmt="o",
            color="#0072B2",
            markersize=6,
            capsize=3,
        )
        axes.set_xticks(places, list(rows), rotation=40, ha="right")
        axes.set_xlim(-0.6, len(rows) - 0.4)
        axes.set_title(task, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e7ec", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    panels[0].set_ylabel("basic + add-on reward of an episode", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def main(config: ResidualMPPIMujoco) -> int:
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for task in config.only or tuple(TASKS):
        env = qr_sac.make_env(TASKS[task].env)
        agent = qr_sac.make_experiment(prior_config(config, task, config.first_seed)).agent
        learnt: dict[int, tuple[Prior, DynamicsState]] = {}
        for seed in config.seeds:
            sys.stderr.write(f"{directory_of(config, task, seed)}\n")
            prior = train_prior(config, task, seed)
            if isinstance(prior, int):
                return prior
            learnt[seed] = prior, learn_dynamics(config, task, seed, env, agent, prior)
        names: Sequence[str] = config.variants or (*COMMON, *TASKS[task].extra)
        sums = {name: evaluate(config, task, name, learnt, env, agent) for name in names}
        results[task] = {
            name: summarise(own, None if name == "residual" else sums.get("residual"))
            for name, own in sums.items()
        }
    print(json.dumps(results) if config.json else table(results))
    picture = Path(config.out) / "totals.png"
    title = (
        f"{config.episodes * config.num_seeds} episodes each: mean, 95 % interval; "
        f"grey: each of {config.num_seeds} seeds"
    )
    write_atomically(picture, encode_png(draw(results, title)))
    sys.stderr.write(f"{picture}\n")
    return 0


def _root(seed: int) -> Key:
    return jax.random.key(seed)


def _read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file."""
    try:
        return decode_json(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _write_state(path: Path, state: DynamicsState) -> None:
    leaves = jax.tree.leaves(jax.device_get(state))
    content = io.BytesIO()
    np.savez(content, *leaves)
    write_atomically(path, content.getvalue())


def _read_state(path: Path, template: DynamicsState) -> DynamicsState:
    wanted, structure = jax.tree.flatten(template)
    try:
        with np.load(path, allow_pickle=False) as archive:
            leaves = [jnp.asarray(archive[f"arr_{k}"]) for k in range(len(archive.files))]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in wanted]:
        raise UserError(f"{path} holds other dynamics than these settings make")
    return jax.tree.unflatten(structure, leaves)


if __name__ == "__main__":
    flags.main(main, CONFIG)
