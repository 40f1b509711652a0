"""One driver for the whole garage: 549 cars on nineteen circuits of asphalt, dirt and snow.

    ./run train garage
    ./run train garage --env.car=archetypes --env.circuit=larkspur,redgully --workdir=runs/few

The time trial's QR-SAC and preset, but each episode draws a car and a circuit. What describes the
car (`car`) stays the same all episode and enters the networks by an encoder of its own, behind
their trunk; what describes the road under it (`surface`) is part of the state. To hand all networks
everything at their input instead, as one vector:

    --agent.static_obs= --agent.actor_obs=state,surface,racing_line,car
    --agent.critic_obs=state,surface,privileged_state,racing_line,car

Three things let it learn where the time trial's recipe stood still (`docs/benchmarks.md`). Actions
are relative to the racing line, which a hand follows (`env.steering=line`): any circuit in any car
is then much the same task, and noise does not throw cars off the road. While it learns, an action
is held for three decisions (`hold`), since what one of a tenth of a second is worth drowns in the
critic's error; when it drives, it decides ten times a second. And unlike actions in like states
cost the actor something (`agent.smoothness`), or it swings from bound to bound.

Slow and fast cars earn and lose alike (`env.relative_progress`), and dirt and snow, 4 of the 19
circuits, fill fixed shares of each batch; a tenth is drawn from everything. The driving aids are on
(`--env.traction_control=false --env.antilock=false` takes them away), since without them full
throttle spins the wheels of the strongest cars. It trains for 55 minutes.

The score is of 128 cars that set off on drawn circuits for a minute, the same ones each time: the
way as a share of the reference's, which is that of the archetype that a car varies, less 0.01 per
step off course or in contact with a wall, as in the time trial, and less 0.2 times the share of
cars that were not clean.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core_rl import flags
from core_rl.evaluate import make_evaluator
from core_rl.launch import Experiment, Outcome, RunConfig, report_end, run
from core_rl.report import CurveSpec, write_report
from core_rl.tracking import read_record
from core_rl.train import TrainConfig
from core_rl.types import Metrics
from experiments import sophy_time_trial
from experiments.sophy_report import TRAINING_CURVES
from experiments.sophy_time_trial import EVALUATION_SEED, SophyTimeTrial, make_driving_learner
from projects.sophy.circuits import GROUPS
from projects.sophy.field import field_membership
from projects.sophy.observation import ObservationConfig
from projects.sophy.time_trial import TimeTrial, with_calm_starts

EVALUATION_CARS, EVALUATION_STEPS = 128, 600
NUM_EPOCHS = 600


def long_schedule(num_epochs: int) -> dict[str, Any]:
    """The learner's options for a run of so many epochs of 512 updates."""
    return {
        "anneal_updates": 512 * num_epochs * 9 // 10,
        "lr_decay_updates": 512 * num_epochs,
        "lr_final": 0.05,
        "actor_average": 0.999,
    }


CONFIG = SophyTimeTrial(
    env=dataclasses.replace(
        sophy_time_trial.CONFIG.env,
        circuit="asphalt,dirt,snow",
        car="catalogue",
        traction_control=True,
        antilock=True,
        describe=True,
        relative_progress=True,
        steering="line",
        observation=ObservationConfig(racing_line=True),
    ),
    agent=dataclasses.replace(
        sophy_time_trial.CONFIG.agent,
        static_obs=("car",),
        actor_obs=("state", "surface", "racing_line"),
        critic_obs=("state", "surface", "privileged_state", "racing_line"),
        discount=0.94,  # of three steps
        discount_final=0.97,
        smoothness=2.0,
        hidden=(256, 256, 256),  # two layers of trunk, and one that the car joins
        **long_schedule(NUM_EPOCHS),
    ),
    train=TrainConfig(
        num_envs=128,
        steps_per_epoch=64,
        num_epochs=NUM_EPOCHS,
        replay_capacity=500_000,
        tables=(("asphalt", 0.6), ("dirt", 0.15), ("snow", 0.15)),
    ),
    run=RunConfig(minutes=55.0, evaluate_every=40, checkpoint_every=100),
    hold=3,
    workdir="runs/sophy_garage",
)

CURVES = [
    CurveSpec("Score", ("eval/score",), y_label="pace, less what was not clean"),
    CurveSpec("Pace", ("eval/pace/*",), y_label="share of the reference's"),
    CurveSpec("Clean", ("eval/clean",), y_label="share of evaluated cars"),
    CurveSpec("Off course", ("eval/off_course_steps/*",), y_label="steps per evaluated car"),
    *TRAINING_CURVES,
]


def make_experiment(config: SophyTimeTrial, task: str = "garage") -> tuple[Experiment, TimeTrial]:
    """`task` is what `./run train` calls it.

    Raises UserError for circuits or cars that do not exist or cannot be driven.
    """
    env = TimeTrial(config.env)
    membership = field_membership(env)
    agent, trainer = make_driving_learner(config, env, membership)
    evaluator = make_evaluator(
        with_calm_starts(env), agent, EVALUATION_CARS, EVALUATION_STEPS, trace=membership
    )

    def evaluate(agent_state: Any) -> Metrics:
        totals, belonged = evaluator(agent_state, jax.random.key(EVALUATION_SEED))
        pace = totals["pace_share"] / EVALUATION_STEPS
        off_course, walls = totals["off_course_steps"], totals["wall_contact_steps"]
        clean = jnp.mean((off_course + walls) == 0.0)
        # Who is in a group stays in it, so any step tells.
        groups = {"all": jnp.ones(EVALUATION_CARS, bool)}
        groups |= {name: values[0] for name, values in belonged.items()}

        def by_group(values: jax.Array) -> dict[str, jax.Array]:
            return {  # NaN for a group that nobody is in
                name: jnp.sum(jnp.where(belongs, values, 0.0)) / jnp.sum(belongs)
                for name, belongs in groups.items()
            }

        return {
            **{f"pace/{name}": value for name, value in by_group(pace).items()},
            **{f"off_course_steps/{name}": value for name, value in by_group(off_course).items()},
            "wall_contact_steps": jnp.mean(walls),
            "clean": clean,
            "return": jnp.mean(totals["return"]),
            "score": jnp.mean(pace - 0.01 * (off_course + walls)) - 0.2 * (1.0 - clean),
        }

    experiment = Experiment(
        name=f"sophy_{task}",
        command=f"./run train {task}",
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


def _describe(row: dict[str, float]) -> str:
    kinds = ", ".join(
        f"{kind} {row[f'pace/{kind}']:.1%}"
        for kind in GROUPS
        if np.isfinite(row[f"pace/{kind}"])  # somebody is in it
    )
    return (
        f"{row['pace/all']:.1%} of the references' pace{f' ({kinds})' if kinds else ''}, "
        f"{row['off_course_steps/all']:.1f} steps off course, {row['clean']:.0%} clean"
    )


def write_garage_report(outcome: Outcome, env: TimeTrial) -> Path:
    """Writes the report, whose numbers are those of the policy that was kept; returns its path."""
    workdir, kept = outcome.workdir, outcome.kept
    pace, off_course = (
        {
            key.removeprefix(prefix): float(np.mean(np.asarray(value, float)))
            for key, value in kept.items()
            if key.startswith(prefix)
        }
        for prefix in ("eval/pace/", "eval/off_course_steps/")
    )
    numbers = [
        (
            f"Pace, {name}",
            f"{value:.1%}",
            f"{off_course[name]:.1f} of {EVALUATION_STEPS} steps off course per car",
        )
        for name, value in pace.items()
        if np.isfinite(value)
    ]
    numbers += [
        ("Cars and circuits", f"{len(env.entrants)} and {len(env.circuits)}", "drawn per episode"),
        *outcome.numbers(kept["epoch"], "of 0.1 s, all cars"),
    ]
    path = workdir / "report.html"
    write_report(
        path,
        title=f"{env.config.car} on {env.config.circuit}",
        subtitle=f"QR-SAC, {outcome.epochs} epochs, {outcome.reason}",
        command=outcome.continue_command,
        record=read_record(workdir) or {},
        numbers=numbers,
        figures=[],
        embedded_pages=[],
        metrics=outcome.rows,
        curves=CURVES,
    )
    return path


def train(config: SophyTimeTrial, task: str = "garage") -> int:
    experiment, env = make_experiment(config, task)
    outcome = run(experiment, config.workdir)
    report_end(outcome, write_garage_report(outcome, env))
    return outcome.exit_code


if __name__ == "__main__":
    flags.main(train, CONFIG)
