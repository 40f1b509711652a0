"""QR-SAC on any brax environment, ours included: a first look at a task, or a check of the core.

    ./run train --env=brax:inverted_pendulum
    ./run python -m experiments.qr_sac --env=brax:ant:spring --train.num_epochs=200

An environment is `brax:NAME` or `brax:NAME:BACKEND` (generalized, spring, positional, mjx). Names
are brax's own and those that projects register (`brax:sophy_time_trial`). Scalar SAC, the ablation,
is `--agent.num_quantiles=1`. Episodes last `--episode_length` steps unless the task ends before.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from brax import envs

import projects.sophy.time_trial  # noqa: F401  registers its environment
from core_rl import flags
from core_rl.env import Env, get_environment
from core_rl.errors import UsageError
from core_rl.evaluate import make_evaluator
from core_rl.launch import Experiment, RunConfig, check_seeds, make_learner, report_end, run
from core_rl.qr_sac import QRSACConfig
from core_rl.train import TrainConfig
from core_rl.types import Metrics

EVALUATION_SEED = 7_000_000
EVALUATION_EPISODES = 16
BACKENDS = ("generalized", "spring", "positional", "mjx")


@dataclasses.dataclass(frozen=True)
class BraxExperiment:
    env: str = "brax:inverted_pendulum"  # brax:NAME or brax:NAME:BACKEND
    agent: QRSACConfig = QRSACConfig(n_step=1, discount=0.99, target_entropy_per_dim=-0.5)
    train: TrainConfig = TrainConfig(
        num_envs=64, steps_per_epoch=32, updates_per_step=16, num_epochs=40, warmup_steps=64
    )
    run: RunConfig = RunConfig()
    episode_length: int = 1000  # steps after which an episode is truncated
    seed: int = 0  # root of all random numbers
    num_seeds: int = 1  # seeds trained side by side in one program
    workdir: str = "runs/qr_sac"  # the run's identity: the same again resumes it

    def __post_init__(self):
        check_seeds(self)
        if self.episode_length < 1:
            raise ValueError(f"episode_length must be at least 1, got {self.episode_length}")


CONFIG = BraxExperiment()


def make_env(spec: str) -> Env:
    """The environment of `brax:NAME[:BACKEND]`; raises UsageError."""
    kind, _, rest = spec.partition(":")
    name, _, backend = rest.partition(":")
    known = sorted(envs._envs)
    if kind != "brax" or name not in known:
        raise UsageError(
            f"unknown environment {spec!r}: allowed are brax:NAME[:BACKEND], NAME one of "
            + ", ".join(known)
        )
    if backend and backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}: allowed are {', '.join(BACKENDS)}")
    return get_environment(name, **({"backend": backend} if backend else {}))


def make_experiment(config: BraxExperiment) -> Experiment:
    env = make_env(config.env)
    agent, trainer = make_learner(config, env, config.episode_length)
    evaluator = make_evaluator(env, agent, EVALUATION_EPISODES, config.episode_length)

    def evaluate(agent_state: Any) -> Metrics:
        totals, _ = evaluator(agent_state, jax.random.key(EVALUATION_SEED))
        return {name: jnp.mean(totals[name]) for name in ("return", "steps", "terminated")}

    return Experiment(
        name="qr_sac",
        command="./run python -m experiments.qr_sac",
        config=config,
        env=env,
        agent=agent,
        trainer=trainer,
        evaluate=evaluate,
        score="return",
        describe=lambda evaluation: f"return {evaluation['return']:.1f}",
        bundle_extra={"project": "brax", "env": config.env},
    )


def train(config: BraxExperiment) -> int:
    outcome = run(make_experiment(config), config.workdir)
    report_end(outcome)
    return outcome.exit_code


if __name__ == "__main__":
    flags.main(train, CONFIG)
