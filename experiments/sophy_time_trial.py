"""GT Sophy's time trial: QR-SAC learns to drive a GT3 car around a circuit as fast as it goes.

    ./run train
    ./run train --env.circuit=path/to/Monza.csv --seed=3 --workdir=runs/monza

Wurman et al. 2022 (Nature 602:223-228), on the simulator of `projects/sophy`. It takes at most ten
minutes on two CPU cores; what it reaches stands in `docs/benchmarks.md`.

What differs from the paper was chosen for learning in minutes instead of days: training episodes of
30 s that start anywhere and at any speed (in long ones a car that stands in a wall stays there),
one critic with layer norm instead of the smaller of two (whose pessimism makes a timid driver),
fast learning rates that fall linearly, networks of 2 x 256, five steps, a horizon that grows from
half of the paper's (discount 0.98) to its length, a learned temperature whose target entropy falls,
since at the limit of grip noise costs time, and an averaged actor that does the driving.
`experiments/sophy_ablations.py` tells what these are worth.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from core_rl import flags
from core_rl.env import Env, HeldActions, State
from core_rl.evaluate import make_evaluator
from core_rl.launch import Experiment, RunConfig, check_seeds, make_learner, report_end, run
from core_rl.qr_sac import QRSACConfig
from core_rl.train import TrainConfig, Trainer
from core_rl.types import Agent, Metrics
from experiments.sophy_report import write_time_trial_report
from projects.sophy.drive import show_time
from projects.sophy.driving import CONTROL_STEP
from projects.sophy.time_trial import TimeTrial, TimeTrialConfig, with_calm_starts

EVALUATION_SEED = 7_000_000  # starts that choose the policy; the report's starts are others
EVALUATION_CARS = 8


@dataclasses.dataclass(frozen=True)
class SophyTimeTrial:
    env: TimeTrialConfig = TimeTrialConfig(
        steering="delta", episode_seconds=30.0, start_speed=(0.2, 1.0)
    )
    agent: QRSACConfig = QRSACConfig(
        critic_obs=("state", "privileged_state"),
        layer_norm=True,
        num_critics=1,
        n_step=5,
        discount=0.98,
        discount_final=0.99,
        target_entropy_per_dim=-1.5,
        target_entropy_final=-4.0,
        anneal_updates=120_000,
        batch_size=128,
        actor_lr=1e-3,
        critic_lr=1e-3,
        actor_average=0.998,
        lr_decay_updates=135_000,
    )
    train: TrainConfig = TrainConfig(
        num_envs=128, steps_per_epoch=64, num_epochs=360, replay_capacity=500_000
    )
    hold: int = 1  # control steps that an action is held for while learning; driving, each decides
    run: RunConfig = RunConfig(minutes=9.7, checkpoint_every=50)
    seed: int = 0  # root of all random numbers
    num_seeds: int = 1  # seeds trained side by side in one program
    workdir: str = "runs/sophy_time_trial"  # the run's identity: the same again resumes it

    def __post_init__(self):
        check_seeds(self)
        if self.hold < 1:
            raise ValueError(f"hold must be at least 1, got {self.hold}")


CONFIG = SophyTimeTrial()


def make_driving_learner(
    config: SophyTimeTrial,
    env: TimeTrial,
    membership: Callable[[State], Mapping[str, jax.Array]] | None = None,
) -> tuple[Agent, Trainer]:
    """The agent and its training loop, in which actions are held for `config.hold` steps."""
    held, decisions = hold_actions(env, config.hold, config.env.episode_length)
    return make_learner(config, held, decisions, membership)


def hold_actions(env: Env, hold: int, episode_length: int) -> tuple[Env, int]:
    """The environment whose actions are held for `hold` steps, and an episode's length in it."""
    return HeldActions(env, hold) if hold > 1 else env, -(-episode_length // hold)


def make_experiment(config: SophyTimeTrial) -> tuple[Experiment, TimeTrial]:
    """Raises UserError for a circuit or car that does not exist or cannot be driven."""
    env = TimeTrial(config.env)
    agent, trainer = make_driving_learner(config, env)
    reference_time = float(env.reference.lap_time)
    # Enough for the way to the line and one lap for a car as fast as the reference.
    num_steps = int(2.1 * reference_time / CONTROL_STEP)
    evaluator = make_evaluator(with_calm_starts(env), agent, EVALUATION_CARS, num_steps)
    reference_distance = env.track.length * num_steps * CONTROL_STEP / reference_time

    def evaluate(agent_state: Any) -> Metrics:
        totals, _ = evaluator(agent_state, jax.random.key(EVALUATION_SEED))
        laps = jnp.sum(totals["laps"])
        lap_time = jnp.sum(totals["lap_seconds"]) / laps  # NaN without a lap
        pace = jnp.mean(totals["distance"]) / reference_distance
        off_course, walls = (
            jnp.mean(totals[name]) for name in ("off_course_steps", "wall_contact_steps")
        )
        return {
            "lap_time": lap_time,
            "ratio": lap_time / reference_time,
            "laps": laps,
            "pace": pace,
            "off_course_steps": off_course,
            "wall_contact_steps": walls,
            "return": jnp.mean(totals["return"]),
            # A step that is not clean weighs as much as 1 % of pace: clean first, then fast.
            "score": pace - 0.01 * (off_course + walls),
        }

    experiment = Experiment(
        name="sophy_time_trial",
        command="./run train sophy",
        config=config,
        env=env,
        agent=agent,
        trainer=trainer,
        evaluate=evaluate,
        score="score",
        describe=_describe,
        bundle_extra={"project": "sophy", "env": flags.to_dict(config.env)},
    )
    return experiment, env


def _describe(evaluation: dict[str, float]) -> str:
    if evaluation["laps"] > 0:
        return (
            f"lap {show_time(evaluation['lap_time'])}, {evaluation['ratio']:.3f} of the reference, "
            f"{evaluation['off_course_steps']:.1f} steps off course"
        )
    return f"no lap yet, {evaluation['pace']:.0%} of the reference's pace"


def train(config: SophyTimeTrial) -> int:
    experiment, env = make_experiment(config)
    outcome = run(experiment, config.workdir)
    report_end(outcome, write_time_trial_report(outcome, env))
    return outcome.exit_code


def main() -> None:
    # `--env=NAME` asks for another environment altogether: the general experiment's business.
    if any(argument.startswith("--env=") for argument in sys.argv[1:]):
        from experiments import qr_sac

        flags.main(qr_sac.train, qr_sac.CONFIG)
    flags.main(train, CONFIG)


if __name__ == "__main__":
    main()
