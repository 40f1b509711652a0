"""Sophy races: QR-SAC learns to drive a GT3 car among others, fast and fairly.

    ./run train race  # half an hour of one core, 8 GB of memory; results in docs/racing.md
    ./run train race --train.begin_from=runs/sophy_race --league.frozen=runs/sophy_race/policy \
        --workdir=runs/second

As in Wurman et al. 2022: every episode is one of several situations (`projects/sophy/scenarios`),
each of which feeds a replay table with a fixed share of every batch, against opponents of a league:
the learner itself, scripted drivers of all levels, policies frozen before. All cars that the
learner drives learn. Actions are relative to the racing line (`env.solo.steering=line`), and held
for three decisions while learning, as in the garage.

A fault costs what the reward says (`env.reward`, or published weights by their name: `preset`);
`any_collision`, `rear_end`, `unsporting` and `hard_fault` at 0 are the driver without etiquette.
Most faults are made in a race's first lap, so episodes are short and often begin on a grid; and a
driver is told whose fault a contact would be (`env.opponents.blame`), which hangs on two seconds of
which it sees the last moment.

The score is of races that are the same each time, half of the cars driven by the policy and half
by scripted experts, from a standing grid: the pace of the policy's cars as a share of the
reference's, less 0.002 per step off course and 0.2 per medium or heavy contact that a steward
blames them for; light ones cost nothing at the flag. What a step off course costs in time is in the
pace; five times its weight picked slow policies from early in the training.

The list of opponents is read as it is (`agent.raw_obs`), not standardised: the fifth car ahead is
there in one sample of forty, and by its own standard deviation it would drown all else.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core_rl import flags
from core_rl.env import State, agents_as_rows, named_obs
from core_rl.errors import UserError
from core_rl.launch import (
    Experiment,
    Outcome,
    RunConfig,
    check_seeds,
    make_learner,
    report_end,
    run,
)
from core_rl.qr_sac import QRSACConfig
from core_rl.report import CurveSpec, write_report
from core_rl.tracking import read_record
from core_rl.train import TrainConfig
from core_rl.types import Agent, Metrics
from experiments import sophy_time_trial
from experiments.sophy_garage import long_schedule
from experiments.sophy_report import TRAINING_CURVES
from experiments.sophy_time_trial import EVALUATION_SEED, hold_actions
from projects.sophy.drivers import level_of, scripted_actions
from projects.sophy.driving import CONTROL_STEP
from projects.sophy.league import LeagueConfig, LeagueRace, load_racer
from projects.sophy.observation import ObservationConfig
from projects.sophy.race_env import OpponentsConfig, RaceConfig, RaceEnv, race_of
from projects.sophy.race_replay import show_race
from projects.sophy.race_reward import PRESETS, RaceRewardConfig

EVALUATION_RACES, EVALUATION_STEPS = 32, 600
OFF_COURSE, FAULT = 0.002, 0.2  # what the score takes for a step, for a hard contact with blame
SHOWN_SECONDS = 240.0  # of the race in the report
NUM_EPOCHS = 300


@dataclasses.dataclass(frozen=True)
class SophyRace:
    env: RaceConfig = RaceConfig(
        solo=dataclasses.replace(
            sophy_time_trial.CONFIG.env,
            circuit="larkspur,thimble",
            traction_control=True,
            antilock=True,
            steering="line",
            observation=ObservationConfig(racing_line=True),
            episode_seconds=25.0,  # a start's first corners are what faults are made in
        ),
        num_cars=8,
        laps=0,
        opponents=OpponentsConfig(road=True, blame=True),
        reward=RaceRewardConfig(passing=1.0, unsporting=10.0, hard_fault=120.0),
    )
    league: LeagueConfig = LeagueConfig()
    agent: QRSACConfig = dataclasses.replace(
        sophy_time_trial.CONFIG.agent,
        actor_obs=("state", "racing_line", "opponents"),
        critic_obs=("state", "privileged_state", "racing_line", "opponents"),
        raw_obs=("opponents",),
        discount=0.94,  # of three steps
        discount_final=0.98,
        smoothness=2.0,
        **long_schedule(NUM_EPOCHS),
    )
    train: TrainConfig = TrainConfig(
        num_envs=24,
        steps_per_epoch=64,
        num_epochs=NUM_EPOCHS,
        replay_capacity=1_500_000,  # two thirds of which are empty slots and other drivers
        tables=LeagueConfig().scenarios,
    )
    preset: str = ""  # published weights instead of env.reward: maggiore, seaside, sarthe, lee_2025
    hold: int = 3  # control steps that an action is held for while learning; driving, each decides
    run: RunConfig = RunConfig(minutes=55.0, evaluate_every=20, checkpoint_every=50)
    seed: int = 0  # root of all random numbers
    num_seeds: int = 1  # seeds trained side by side in one program
    workdir: str = "runs/sophy_race"  # the run's identity: the same again resumes it

    def __post_init__(self):
        check_seeds(self)
        if self.preset and self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        if self.hold < 1:
            raise ValueError(f"hold must be at least 1, got {self.hold}")


CONFIG = SophyRace()

CURVES = [
    CurveSpec("Score", ("eval/score",), y_label="pace less penalties"),
    CurveSpec("Pace", ("eval/pace", "eval/pace_scripted"), y_label="share of the reference's"),
    CurveSpec("Faults", ("eval/faults", "eval/faults_scripted"), y_label="per car and minute"),
    CurveSpec(
        "Hard faults",
        ("eval/hard_faults", "eval/hard_faults_scripted"),
        y_label="per car and minute",
    ),
    CurveSpec("Off course", ("eval/off_course_steps",), y_label="steps per car and minute"),
    *TRAINING_CURVES,
]


def ours_of(env: RaceEnv) -> jax.Array:
    """Which slots [M] the policy drives where it is measured, every other one."""
    return jnp.arange(env.config.num_cars) % 2 == 0


def make_evaluation(env: RaceEnv, agent: Agent) -> Callable[[Any], Metrics]:
    """Races in which the policy drives every other slot and scripted experts the rest."""
    ours = ours_of(env)
    experts = level_of(jnp.ones(env.config.num_cars))

    def evaluate(agent_state: Any) -> Metrics:
        def step(carry: tuple[State, Any], _: None):
            state, policy_carry = carry
            seen = agents_as_rows(named_obs(state))
            action, policy_carry = agent.greedy(agent_state, policy_carry, seen)
            scripted = jax.vmap(lambda race: scripted_actions(env, race, experts))(race_of(state))
            action = jnp.where(ours[:, None], action.reshape(scripted.shape), scripted)
            before = race_of(state)
            state = jax.vmap(env.step)(state, action)
            pace = state.metrics["distance"] / (before.drives.pace * CONTROL_STEP)
            took_part = before.present
            counts = ("off_course_steps", "wall_contact_steps", "contact_steps")
            counts += ("at_fault", "hard_at_fault")
            return (state, policy_carry), {
                "pace": jnp.where(took_part, pace, 0.0),
                **{name: jnp.where(took_part, state.metrics[name], 0.0) for name in counts},
            }

        keys = jax.random.split(jax.random.key(EVALUATION_SEED), EVALUATION_RACES)
        state = jax.vmap(env.reset)(keys)
        carry = state, agent.carry(EVALUATION_RACES * env.config.num_cars)
        (state, _), told = jax.lax.scan(step, carry, None, length=EVALUATION_STEPS)
        per_car = {name: jnp.sum(value, 0) for name, value in told.items()}  # [N, M]
        per_car["pace"] /= EVALUATION_STEPS

        def of(mine: jax.Array, name: str) -> jax.Array:
            return jnp.sum(per_car[name] * mine) / (jnp.sum(mine) * EVALUATION_RACES)

        pace, hard_faults = of(ours, "pace"), of(ours, "hard_at_fault")
        off_course = of(ours, "off_course_steps")
        return {
            "pace": pace,
            "pace_scripted": of(~ours, "pace"),
            "faults": of(ours, "at_fault"),
            "faults_scripted": of(~ours, "at_fault"),
            "hard_faults": hard_faults,
            "hard_faults_scripted": of(~ours, "hard_at_fault"),
            "off_course_steps": off_course,
            "wall_contact_steps": of(ours, "wall_contact_steps"),
            "contact_steps": of(ours, "contact_steps"),
            "score": pace - OFF_COURSE * off_course - FAULT * hard_faults,
        }

    return evaluate


def make_experiment(config: SophyRace) -> tuple[Experiment, RaceEnv]:
    """Raises UserError for circuits, cars or opponents that do not exist or do not fit."""
    if config.preset:
        if config.env.reward != CONFIG.env.reward:
            raise UserError(
                f"--preset={config.preset} and --env.reward are both weights: name one of them"
            )
        # What is recorded are the weights themselves, and its command can be given again.
        env_config = dataclasses.replace(config.env, reward=PRESETS[config.preset])
        config = dataclasses.replace(config, preset="", env=env_config)
    shares = sum(share for _, share in config.train.tables)
    if abs(shares - 1.0) > 1e-6:
        # The rest of a batch would be of empty slots and of what others drove, too.
        raise UserError(
            f"--train.tables: shares must sum to 1, got {shares:g}; all:1 is one table of "
            "everything that the learner drives"
        )
    tables = [name for name, _ in config.train.tables]
    for name, _ in config.league.scenarios:
        if name not in tables and "all" not in tables:
            raise UserError(
                f"--train.tables has no share of {name}, which --league.scenarios draws: nothing "
                "would be learnt from it"
            )
    env = RaceEnv(config.env)
    if config.env.num_cars < 2:
        raise UserError(f"--env.num_cars={config.env.num_cars}: a race needs two cars at least")
    league = LeagueRace(env, config.league)
    held, decisions = hold_actions(league, config.hold, config.env.solo.episode_length)
    agent, trainer = make_learner(config, held, decisions, league.membership)
    experiment = Experiment(
        name="sophy_race",
        command="./run train race",
        config=config,
        env=env,
        agent=agent,
        trainer=trainer,
        evaluate=make_evaluation(env, agent),
        score="score",
        describe=lambda row: (
            f"{row['pace']:.1%} of the reference's pace (experts {row['pace_scripted']:.1%}), "
            f"{row['hard_faults']:.2f} hard faults (experts {row['hard_faults_scripted']:.2f}) and "
            f"{row['off_course_steps']:.1f} steps off course per car and minute"
        ),
        bundle_extra={"project": "sophy", "race": flags.to_dict(config.env)},
    )
    return experiment, env


def show_policy(env: RaceEnv, workdir: Path) -> tuple[str, bytes]:
    """The page and the chart of a race from the grid, the run's policy in every other slot and
    scripted experts in the rest."""
    ours = ours_of(env)
    ours_act, experts = load_racer(str(workdir / "policy"), env), level_of(jnp.ones(ours.shape))

    def act(state: State) -> jax.Array:
        scripted = scripted_actions(env, race_of(state), experts)
        return jnp.where(ours[:, None], ours_act(named_obs(state)), scripted)

    begun = jax.jit(env.reset)(jax.random.key(EVALUATION_SEED))
    names = [f"{'policy' if own else 'expert'} {k + 1}" for k, own in enumerate(ours.tolist())]
    title = "The policy and scripted experts"
    return show_race(env, act, begun, names, SHOWN_SECONDS, title, workdir)


def write_race_report(outcome: Outcome, env: RaceEnv) -> Path:
    """Shows a race of the best policy and writes the report; returns its path."""
    path = outcome.workdir / "report.html"
    page, chart = show_policy(env, outcome.workdir)
    kept = outcome.kept
    numbers = [
        (name, f"{np.mean(np.asarray(kept[f'eval/{key}'], float)):.3f}", per)
        for name, key, per in (
            ("Pace", "pace", "share of the reference's"),
            ("Pace of scripted experts", "pace_scripted", "share of the reference's"),
            ("Faults", "faults", "contacts blamed on a car per minute"),
            ("Hard faults", "hard_faults", "medium or heavy ones of them"),
            ("Hard faults of scripted experts", "hard_faults_scripted", "per car and minute"),
            ("Off course", "off_course_steps", "steps of 600 per car"),
        )
    ]
    numbers += outcome.numbers(kept["epoch"], "of 0.1 s, all races")
    write_report(
        path,
        title="A race",
        subtitle=f"QR-SAC, {outcome.epochs} epochs, {outcome.reason}",
        command=outcome.continue_command,
        record=read_record(outcome.workdir) or {},
        numbers=numbers,
        figures=[("A race", chart, "How far behind the leader each car is, in seconds.")],
        embedded_pages=[("Replay", page, 640)],
        metrics=outcome.rows,
        curves=CURVES,
    )
    return path


def train(config: SophyRace) -> int:
    experiment, env = make_experiment(config)
    outcome = run(experiment, config.workdir)
    report_end(outcome, write_race_report(outcome, env))
    return outcome.exit_code


if __name__ == "__main__":
    flags.main(train, CONFIG)
