"""Residual-MPPI on the racing task: the committed driver, asked to keep away from the white lines.

    ./run python -m experiments.residual_mppi_sophy                 # hours; may be stopped, resumes
    ./run python -m experiments.residual_mppi_sophy --stages=zero_shot --first_seed=1 --num_seeds=1

The racing customisation of Wang et al. 2025 (arXiv 2407.00898) on our simulator. Their driver left
the course and was asked to stay on it; ours stays on it but uses it to the edge, so it is asked for
a margin. Per seed (of the motion model, the starts and the planner's noise):

    model       learns the motion model from drives of the prior
    zero_shot   drives with Residual-MPPI, for several weights omega' of the prior
    others      drives with greedy MPPI (no score of the prior), guided (the task's reward), in open
                loop, and as published (one round of as many samples, white noise, signed term)
    few_shot    drives 100 laps at the chosen omega', fine-tunes the model on them, drives again
    wishes      drives with other add-ons: a speed limit in a zone, calm steering
    sac         trains the prior on for omega' log pi + r_R (Residual-SAC), and drives

Every result is a file under `--out`; what is there is not done again. When all that was asked for
is there, it prints the table and draws `trade_off.png` and `lines.png`.
"""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from core_rl import flags
from core_rl.dynamics import DynamicsState, load_dynamics, save_dynamics
from core_rl.env import State
from core_rl.errors import UserError
from core_rl.evaluate import make_evaluator
from core_rl.launch import Experiment, RunConfig, make_learner, run, trained_agent
from core_rl.policy import load_policy
from core_rl.report import encode_png
from core_rl.residual_mppi import ResidualMPPIConfig
from core_rl.residual_sac import ResidualEnv
from core_rl.tracking import open_workdir, write_json
from core_rl.types import Metrics
from experiments import sophy_time_trial
from experiments.customise import (
    BUNDLE,
    MODEL_STEPS,
    Driven,
    make_measure,
    numbers,
    say_progress,
)
from experiments.sophy_evaluate import env_config_of
from experiments.sophy_time_trial import SophyTimeTrial
from projects.sophy.addons import parse_addon
from projects.sophy.drive import Drive
from projects.sophy.laps import driven_by, make_driver, outline_of
from projects.sophy.model import episodes_of, learn_model, motion_model, observed_step
from projects.sophy.planning import OPEN_LOOP, RACING, make_planning_driver, with_prior_weight
from projects.sophy.render import Shown, comparison, trade_off
from projects.sophy.time_trial import TimeTrial, with_calm_starts

STAGES = ("model", "zero_shot", "others", "few_shot", "wishes", "sac")
MARGIN = "margin:0.5"
WISHES = ("speed_limit:600:900:120", "calm")
OTHERS: dict[str, dict[str, Any]] = {
    "greedy": {"variant": "greedy"},
    "guided": {"variant": "guided"},
    "open_loop": OPEN_LOOP,
    "as_published": {
        **OPEN_LOOP,
        "importance": "signed",
        "num_samples": RACING.num_iterations * RACING.num_samples,
        "num_iterations": 1,
        "noise_memory": 0.0,
    },
}
MODEL_SEED = 5_000_000  # the seed 0 is the committed model's
DRIVE_SEED = 9_100_000  # starts and noise of the drives that are reported; tuning never saw them
FEW_SHOT_SEED = 9_500_000
STEPS_PER_LAP = 772  # of the prior


@dataclasses.dataclass(frozen=True)
class ResidualSophy:
    stages: tuple[str, ...] = STAGES  # which to do
    num_seeds: int = 3
    first_seed: int = 0
    omegas: tuple[float, ...] = (0.03, 0.01, 0.005, 0.003, 0.002, 0.001)  # omega' of zero_shot
    planner: ResidualMPPIConfig = RACING  # its prior_weight is the omega' of all other drives
    cars: int = 4  # per drive, each from a start of its own
    laps: int = 1  # flying laps of each car
    few_shot_cars: int = 15  # that drive for the fine-tuning, with run-in and rest some 7 laps each
    few_shot_laps: int = 5  # of each
    sac_laps: tuple[int, ...] = (100, 400)  # laps' worth of steps that Residual-SAC may train on
    out: str = "runs/residual_mppi_sophy"  # where results go
    json: bool = False  # print one JSON object

    def __post_init__(self):
        for name in self.stages:
            if name not in STAGES:
                raise ValueError(f"stages must be among {', '.join(STAGES)}, got {name!r}")
        for name in ("num_seeds", "cars", "laps", "few_shot_cars", "few_shot_laps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.first_seed < 0:
            raise ValueError(f"first_seed must not be negative, got {self.first_seed}")


class Laboratory:
    """The prior and its circuit, and what is driven there; results are kept in `out`."""

    def __init__(self, config: ResidualSophy, out: Path):
        self.config, self.out = config, out
        self.policy = load_policy(BUNDLE)
        self.env = TimeTrial(env_config_of(self.policy))
        self.agent, self.agent_state = trained_agent(self.policy)

    def drive(
        self,
        name: str,
        seed: int,
        params: Any,
        measure: Callable[..., Driven],
        planner: ResidualMPPIConfig | None = None,
    ) -> None:
        """Drives unless it was done before; keeps the numbers and the first car's trace.

        Raises UserError where it was done under other settings.
        """
        path = self.out / f"{name}-s{seed}.json"
        settings = {
            "planner": None if planner is None else flags.to_dict(planner),
            "cars": self.config.cars,
            "laps": self.config.laps,
        }
        if path.exists():
            if json.loads(path.read_bytes())["settings"] != settings:
                raise UserError(f"{path} was driven under other settings: choose another --out")
            return
        began = time.monotonic()
        keys = jax.random.split(jax.random.key(DRIVE_SEED + seed), self.config.cars)
        driven = measure(params, keys)
        kept = {**driven.traces[0], "lap_times": np.array(driven.laps[0].lap_times)}
        kept |= vars(driven.laps[0].drive)
        np.savez_compressed(path.with_suffix(".npz"), allow_pickle=False, **kept)  # pyright: ignore[reportArgumentType]
        result = {**numbers(driven), "seconds": round(time.monotonic() - began, 1)}
        result["settings"] = settings
        write_json(path, result)
        told = {key: value for key, value in result.items() if key != "settings"}
        sys.stderr.write(f"{path.stem}: {json.dumps(told)}\n")

    @functools.cache  # noqa: B019  one compilation for all seeds and weights; lives as long as this
    def planned(self, planner: ResidualMPPIConfig, wish: str):
        """`(driver, measure)` of a planner under a wish."""
        addon = parse_addon(self.env, wish)
        driver = make_planning_driver(planner, self.env, self.agent, motion_model(), addon)
        return driver, make_measure(self.env, addon, driver.control, self.config.laps)

    def plan_and_drive(
        self,
        name: str,
        seed: int,
        model: DynamicsState,
        planner: ResidualMPPIConfig,
        wish: str = MARGIN,
    ) -> None:
        # What is an array in the planner's state is not to compile anew.
        static = dataclasses.replace(planner, prior_weight=0.0, temperature=1.0)
        driver, measure = self.planned(static, wish)
        planned = driver.init(model, self.agent_state)
        numbers = dataclasses.replace(
            planned.numbers,
            prior_weight=jnp.asarray(planner.prior_weight, jnp.float32),
            temperature=jnp.asarray(planner.temperature, jnp.float32),
        )
        self.drive(name, seed, planned._replace(numbers=numbers), measure, planner)

    def prior(self, name: str, seed: int, wish: str = MARGIN, policy: Any = None) -> None:
        policy = policy or self.policy
        addon = parse_addon(self.env, wish)
        measure = make_measure(self.env, addon, driven_by(policy), self.config.laps)
        self.drive(name, seed, policy.params, measure)

    def model(self, seed: int) -> DynamicsState:
        """The motion model of a seed, learnt where it was not before."""
        path = self.out / f"model-s{seed}.npz"
        if not path.exists():
            key = jax.random.key(MODEL_SEED + seed)
            model, state = learn_model(
                self.env, self.agent, self.agent_state, MODEL_STEPS, key, report=say_progress
            )
            about = {"circuit": self.env.config.circuit, "car": self.env.config.car}
            about |= {"policy": self.policy.manifest["files"]}
            save_dynamics(path, model.config, state, about)
        return load_dynamics(path)[1]

    def fine_tuned(self, seed: int) -> DynamicsState:
        """The model after some 100 laps of planning with it."""
        path = self.out / f"model-few-s{seed}.npz"
        if not path.exists():
            config = self.config
            driver, _ = self.planned(config.planner, MARGIN)

            def trace(before: State, after: State, action: jax.Array) -> dict[str, jax.Array]:
                states = (before.pipeline_state, action, after.pipeline_state)
                return dict(observed_step(self.env, *states))  # pyright: ignore[reportArgumentType]

            drive = make_driver(
                with_calm_starts(self.env), driver.control, config.few_shot_laps, trace
            )
            planned = driver.init(self.model(seed), self.agent_state)
            keys = jax.random.split(jax.random.key(FEW_SHOT_SEED + seed), config.few_shot_cars)
            steps = jax.device_get(drive(planned, keys))
            model = motion_model()
            key = jax.random.key(FEW_SHOT_SEED + seed)
            state = model.fine_tune(self.model(seed), key, episodes_of(steps), say_progress)
            save_dynamics(path, model.config, state, {})
        return load_dynamics(path)[1]

    def residual_sac(self, seed: int, num_laps: int) -> None:
        """Trains the prior on for the add-on reward, and drives with what came of it."""
        planner = self.config.planner
        addon = parse_addon(self.env, MARGIN)

        def wish(before: State, action: jax.Array, after: State) -> jax.Array:
            return addon.reward(before.pipeline_state, action, after.pipeline_state)  # pyright: ignore

        def paid(env: TimeTrial) -> ResidualEnv:
            prior = functools.partial(_given(self.agent.policy), self.agent_state)
            return ResidualEnv(env, prior, wish, planner.prior_weight)

        config = sac_config(num_laps, seed, str(self.out / f"sac{num_laps}-s{seed}"))
        agent, trainer = make_learner(config, paid(self.env), config.env.episode_length)
        evaluator = make_evaluator(
            paid(with_calm_starts(self.env)), agent, 8, int(1.2 * STEPS_PER_LAP)
        )

        def evaluate(agent_state: Any) -> Metrics:
            totals, _ = evaluator(agent_state, jax.random.key(sophy_time_trial.EVALUATION_SEED))
            return {name: jnp.mean(totals[name]) for name in ("return", "addon_reward", "distance")}

        experiment = Experiment(
            name="residual_sac",
            command="./run python -m experiments.residual_mppi_sophy --stages=sac",
            config=config,
            env=self.env,
            agent=agent,
            trainer=trainer,
            evaluate=evaluate,
            score="return",
            describe=lambda e: f"return {e['return']:.1f}, add-on {e['addon_reward']:.1f}",
            bundle_extra={"project": "sophy", "env": flags.to_dict(self.env.config)},
        )
        outcome = run(experiment, config.workdir)
        if outcome.reason != "finished":
            sys.exit(outcome.exit_code)
        self.prior(f"sac{num_laps}", seed, policy=load_policy(outcome.workdir / "policy"))


def _given(function: Any) -> Callable[..., Any]:
    assert function is not None
    return function


def sac_config(num_laps: int, seed: int, workdir: str) -> SophyTimeTrial:
    """The recipe that made the prior, begun with its actor, on so many laps' worth of steps."""
    base = sophy_time_trial.CONFIG
    num_envs, steps_per_epoch, warmup_steps = 32, 32, 32
    steps = num_laps * STEPS_PER_LAP // num_envs - warmup_steps
    num_epochs = max(steps // steps_per_epoch, 1)
    updates = num_epochs * steps_per_epoch * base.train.updates_per_step
    return dataclasses.replace(
        base,
        agent=dataclasses.replace(
            base.agent,
            layer_norm=False,
            num_critics=2,
            actor_lr=5e-4,
            critic_lr=5e-4,
            lr_decay_updates=updates,
            discount_final=0.0,
            target_entropy_final=None,
            anneal_updates=0,
        ),
        train=dataclasses.replace(
            base.train,
            num_envs=num_envs,
            steps_per_epoch=steps_per_epoch,
            warmup_steps=warmup_steps,
            num_epochs=num_epochs,
            begin_from=str(BUNDLE),
        ),
        run=RunConfig(evaluate_every=max(num_epochs // 15, 1), checkpoint_every=25),
        seed=seed,
        workdir=workdir,
    )


def work(laboratory: Laboratory, seed: int) -> None:
    """Everything that was asked for, of one seed."""
    config, stages = laboratory.config, laboratory.config.stages
    planner = config.planner
    laboratory.prior("prior", seed)
    if set(stages) & {"model", "zero_shot", "others", "few_shot", "wishes"}:
        model = laboratory.model(seed)
        if "zero_shot" in stages:
            for omega in sorted({*config.omegas, planner.prior_weight}):
                weighted = with_prior_weight(planner, omega)
                laboratory.plan_and_drive(f"residual-{omega:g}", seed, model, weighted)
        if "others" in stages:
            for name, changes in OTHERS.items():
                changed = dataclasses.replace(planner, **changes)
                laboratory.plan_and_drive(name, seed, model, changed)
        if "few_shot" in stages:
            laboratory.plan_and_drive("few_shot", seed, laboratory.fine_tuned(seed), planner)
        if "wishes" in stages:
            for wish in WISHES:
                name = wish.split(":")[0]
                laboratory.prior(f"{name}-prior", seed, wish)
                laboratory.plan_and_drive(f"{name}-residual", seed, model, planner, wish)
    if "sac" in stages:
        for num_laps in config.sac_laps:
            laboratory.residual_sac(seed, num_laps)


def read(out: Path, seeds: range) -> dict[str, list[dict[str, Any]]]:
    """Results by name, of all seeds that have them."""
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for path in sorted(out.glob(f"*-s{seed}.json")):
            name = path.stem.rpartition("-")[0]
            results.setdefault(name, []).append(json.loads(path.read_bytes()))
    return results


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of Student's 95 % interval over seeds; NaN where there are fewer than two."""
    if len(values) < 2:
        return float(np.mean(values)) if values else np.nan, np.nan
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)


COLUMNS = {
    "lap_time": "lap time [s]",
    "violation_steps_per_lap": "violations",
    "addon_per_lap": "add-on",
    "basic_per_lap": "basic",
    "off_course_steps_per_lap": "off course",
}


def table(results: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What `--json` prints: mean, half interval and number of seeds by drive and column."""
    rows: dict[str, dict[str, Any]] = {}
    for name, runs in results.items():
        done, asked = (sum(run[f"laps_{what}"] for run in runs) for what in ("completed", "asked"))
        rows[name] = {"seeds": len(runs), "laps": done, "laps_asked": asked}
        for column in COLUMNS:
            values = [run[column] for run in runs if run.get(column) is not None]
            mean, half = mean_and_interval(values)
            rows[name][column] = None if np.isnan(mean) else mean
            rows[name][f"{column}_half"] = None if np.isnan(half) else half
    return rows


def draw(out: Path, results: dict[str, list[dict[str, Any]]], env: TimeTrial, seed: int) -> None:
    """`trade_off.png` over all seeds, `lines.png` of the first car of the first seed."""

    def pairs(name: str) -> np.ndarray:
        found = [(run["lap_time"], run["violation_steps_per_lap"]) for run in results.get(name, ())]
        return np.array([pair for pair in found if None not in pair], float).reshape(-1, 2)

    along = sorted(
        (name for name in results if name.startswith("residual-")),
        key=lambda name: -float(name.removeprefix("residual-")),
    )
    num_seeds = min((len(pairs(name)) for name in along), default=0)
    curve = {"Residual-MPPI, zero-shot, along omega'": [pairs(name)[:num_seeds] for name in along]}
    named = {"prior": "prior", "few_shot": "Residual-MPPI, few-shot", "greedy": "greedy"}
    named |= {"guided": "guided", "open_loop": "in open loop", "as_published": "as published"}
    named |= {n: f"Residual-SAC, {n[3:]} laps" for n in results if n.startswith("sac")}
    points = {label: pairs(name) for name, label in named.items() if len(pairs(name))}
    figure = trade_off(
        {name: np.array(values) for name, values in curve.items() if num_seeds},
        points,
        "mean lap time [s]",
        "steps per lap nearer than 0.5 m to a white line",
        "A margin that the prior does not keep",
    )
    (out / "trade_off.png").write_bytes(encode_png(figure))
    drives = {}
    chosen = f"residual-{RACING.prior_weight:g}"
    for name in ("prior", chosen):
        path = out / f"{name}-s{seed}.npz"
        if path.exists():
            with np.load(path) as kept:
                names = [field.name for field in dataclasses.fields(Drive)]
                drive = Drive(**{n: kept[n] for n in names if n != "car_size"})
                drives[name] = Shown(
                    drive, kept["clearance"], kept["violation"], kept["lap_times"].tolist()
                )
    if drives:
        figure = comparison(outline_of(env.track), drives, f"{MARGIN}, seed {seed}")
        (out / "lines.png").write_bytes(encode_png(figure))


def main(config: ResidualSophy) -> int:
    seeds = range(config.first_seed, config.first_seed + config.num_seeds)
    with open_workdir(config.out) as out:
        laboratory = Laboratory(config, out)
        for seed in seeds:
            work(laboratory, seed)
        results = read(out, seeds)
        draw(out, results, laboratory.env, config.first_seed)
    rows = table(results)
    if config.json:
        print(json.dumps(rows))
        return 0
    print(f"{'drive':<22} {'laps':>7}" + "".join(f" {title:>18}" for title in COLUMNS.values()))
    for name, row in rows.items():
        cells = []
        for column in COLUMNS:
            mean, half = row[column], row[f"{column}_half"]
            told = "-" if mean is None else f"{mean:.2f}"
            cells.append(told + ("" if half is None else f" ± {half:.2f}"))
        laps = f"{row['laps']}/{row['laps_asked']}"
        print(f"{name:<22} {laps:>7}" + "".join(f" {cell:>18}" for cell in cells))
    print(config.out)
    return 0


if __name__ == "__main__":
    flags.main(main, ResidualSophy())
