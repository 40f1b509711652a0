"""Ace's return task: QR-SAC with a privileged critic learns to return spinning balls.

    ./run train ace                                   # T3: shots and serves of elite players
    ./run python -m experiments.ace_return --env.task=T1 --run.minutes=10

The robot, its sensing and the balls are those of `projects/ace`, after Durr et al. 2026 (Nature
652:886-891). Sony published scalar SAC with a reconstruction loss for Ace, not QR-SAC; scalar SAC
is `--agent.num_quantiles=1`. It takes about 25 minutes on one core of a busy machine, 45 at most;
what it reaches stands in `docs/ace.md`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from core_rl import flags
from core_rl.env import State
from core_rl.evaluate import make_evaluator
from core_rl.launch import Experiment, RunConfig, check_seeds, make_learner, report_end, run
from core_rl.qr_sac import QRSACConfig
from core_rl.train import TrainConfig
from core_rl.types import Metrics
from experiments.ace_report import write_return_report
from projects.ace.bank import BankConfig
from projects.ace.return_env import (
    LONGEST,
    OUTCOMES,
    RUNNING,
    ReturnConfig,
    ReturnState,
    ReturnTask,
)

EVALUATION_SEED = 7_000_000  # of the balls that choose the policy; the evaluator's are others
EVALUATION_BALLS = 512
NEAR = 0.2  # [m] from its target a return of T2 should land


@dataclasses.dataclass(frozen=True)
class AceReturn:
    env: ReturnConfig = ReturnConfig(task="T3", balls=BankConfig(num_balls=8192, spread=1.15))
    agent: QRSACConfig = QRSACConfig(
        actor_obs=("state", "readings", "estimate"),
        critic_obs=("state", "estimate", "privileged_state"),
        afterstate=True,
        reconstruct_obs=("privileged_state",),
        reconstruct_weight=0.1,
        layer_norm=True,
        n_step=3,
        discount=0.98,
        actor_lr=2e-3,
        critic_lr=2e-3,
        alpha_lr=1e-3,
        lr_decay_updates=100_000,  # longer than the run: they end at 0.45 of their start
        alpha=0.1,
        target_entropy_per_dim=-1.5,
        actor_average=0.998,
    )
    train: TrainConfig = TrainConfig(
        num_envs=512,
        steps_per_epoch=64,
        num_epochs=120,
        warmup_steps=20,
        replay_capacity=600_000,
    )
    run: RunConfig = RunConfig(minutes=45.0, checkpoint_every=50)
    seed: int = 0  # root of all random numbers
    num_seeds: int = 1  # seeds trained side by side in one program
    workdir: str = "runs/ace_return"  # the run's identity: the same again resumes it

    def __post_init__(self):
        check_seeds(self)


CONFIG = AceReturn()


def ended_as(state: State) -> dict[str, jax.Array]:
    """A replay table for each way in which an episode ends, bool [N] of its last transition."""
    task: ReturnState = state.pipeline_state  # pyright: ignore[reportAssignmentType]
    outcome = task.outcome
    return {name: outcome == number for number, name in enumerate(OUTCOMES) if number != RUNNING}


def make_experiment(config: AceReturn) -> tuple[Experiment, ReturnTask]:
    """The experiment, and the task with the balls that choose the policy.

    Raises UserError for balls that cannot be read.
    """
    env = ReturnTask(config.env)
    unseen = dataclasses.replace(
        config.env.balls, num_balls=EVALUATION_BALLS, seed=EVALUATION_SEED, spread=1.0
    )
    held_out = ReturnTask(dataclasses.replace(config.env, balls=unseen))
    agent, trainer = make_learner(config, env, LONGEST, ended_as, env.hindsight(), env.afterstate())
    evaluator = make_evaluator(held_out, agent, EVALUATION_BALLS, LONGEST)

    def evaluate(agent_state: Any) -> Metrics:
        totals, _ = evaluator(agent_state, jax.random.key(EVALUATION_SEED))
        names = [f"ended/{name}" for number, name in enumerate(OUTCOMES) if number != RUNNING]
        legal = totals["legal"]
        near = legal * (totals["landing_error"] < NEAR)
        return {
            **{name: jnp.mean(totals[name]) for name in ("hit", "legal", "return", *names)},
            "landing_error": jnp.sum(totals["landing_error"]) / jnp.sum(totals["legal"]),
            "near": jnp.mean(near),
            "score": jnp.mean({"T0": totals["hit"], "T2": near}.get(config.env.task, legal)),
        }

    experiment = Experiment(
        name="ace_return",
        command="./run train ace",
        config=config,
        env=env,
        agent=agent,
        trainer=trainer,
        evaluate=evaluate,
        score="score",
        describe=lambda row: (
            f"hits {row['hit']:.1%}, returns {row['legal']:.1%}, {row['near']:.1%} near the aim"
        ),
        bundle_extra={
            "project": "ace",
            "env": flags.to_dict(config.env),
        },
    )
    return experiment, held_out


def train(config: AceReturn) -> int:
    experiment, held_out = make_experiment(config)
    outcome = run(experiment, config.workdir)
    report_end(outcome, write_return_report(outcome, held_out, EVALUATION_SEED))
    return outcome.exit_code


if __name__ == "__main__":
    flags.main(train, CONFIG)
