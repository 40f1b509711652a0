"""Customises a trained driver by a wish of your own, at run time and without training it again.

    ./run python -m experiments.customise --addon=margin:0.5
    ./run python -m experiments.customise --policy=DIR --addon=speed_limit:400:900:120 --omega=0.01
    ./run python -m experiments.customise --addon=path/to/file.py --json

Residual-MPPI (Wang et al. 2025, arXiv 2407.00898) plans around the policy for `omega' log pi + r_R`
with the add-on reward r_R; `projects/sophy/addons.py` lists the add-ons by name and says what a
reward file must define. It drives with the policy alone and then with the planner, prints what
either did and writes `customised.png` with both on the map.

The planner needs a motion model of the car. The one beside the committed policy is used for that
policy's car and circuit; for any other, or with --relearn, one is learnt first, in some minutes,
and kept under --out.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from core_rl import flags
from core_rl.dynamics import Dynamics, DynamicsState, Progress, load_dynamics, save_dynamics
from core_rl.env import State
from core_rl.launch import trained_agent
from core_rl.policy import Policy, load_policy
from core_rl.report import encode_png
from core_rl.residual_mppi import VARIANTS, ResidualMPPIConfig, Variant
from core_rl.tracking import open_workdir
from core_rl.types import Agent, Key
from experiments.sophy_evaluate import env_config_of
from projects.sophy.addons import Addon, parse_addon
from projects.sophy.drive import show_time
from projects.sophy.driving import DriveState
from projects.sophy.laps import Control, Laps, driven_by, flying, make_driver, outline_of, record
from projects.sophy.laps import summarise as summarise_laps
from projects.sophy.model import clearance, learn_model
from projects.sophy.planning import OPEN_LOOP, RACING, make_planning_driver, with_prior_weight
from projects.sophy.render import Shown, comparison
from projects.sophy.time_trial import TimeTrial, with_calm_starts

# The driver that docs/residual_mppi.md customises: ten minutes of an earlier recipe.
BUNDLE = Path(__file__).parents[1] / "projects/sophy/policies/prior"
MODEL_FILE = BUNDLE.with_name("prior_motion.npz")
MODEL_STEPS = 200_000  # control steps that a model is learnt from, some 260 laps
MODEL_SEED = 5_000_000
DRIVE_SEED = 8_500_000  # starts of the drives; neither training nor tuning sees them


@dataclasses.dataclass(frozen=True)
class Customise:
    policy: str = str(BUNDLE.relative_to(BUNDLE.parents[3]))  # bundle; relative: to the repository
    addon: str = ""  # what is wished for: margin:0.5, speed_limit:FROM:TO:KMH, calm, FILE.py
    omega: float = RACING.prior_weight  # omega', weight of the prior's log-density; large stays
    variant: Variant = "residual"  # residual, greedy, guided, full or prior
    horizon: int = RACING.horizon  # steps of 0.1 s planned ahead
    samples: int = RACING.num_samples  # plans scored per round
    rounds: int = RACING.num_iterations  # of sampling per step
    temperature: float | None = None  # lambda, low follows few samples; none: 0.15, or 50 omega
    circuit: str = ""  # built-in name, generated:SEED or a path; empty: as trained
    car: str = ""  # a car of the catalogue; empty: as trained
    laps: int = 1  # flying laps of each car
    cars: int = 1  # cars with starts of their own
    seed: int = 0  # chooses the starts and the planner's noise
    relearn: bool = False  # learn the motion model anew
    out: str = "runs/customise"  # where picture and model go
    json: bool = False  # print one JSON object

    def __post_init__(self):
        for name in ("laps", "cars"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.variant == "valued":
            raise ValueError("variant must not be valued: a policy bundle has no critics")
        self.planner  # noqa: B018  raises what is wrong with it

    @property
    def planner(self) -> ResidualMPPIConfig:
        planner = with_prior_weight(RACING, self.omega)
        return dataclasses.replace(
            planner,
            variant=self.variant,
            horizon=self.horizon,
            num_samples=self.samples,
            num_iterations=self.rounds,
            temperature=planner.temperature if self.temperature is None else self.temperature,
            **({} if VARIANTS[self.variant].prior_nominal else OPEN_LOOP),
        )


class Driven(NamedTuple):
    """What some cars did on their flying laps."""

    laps: list[Laps]  # per car
    traces: list[dict[str, np.ndarray]]  # per car, of the steps of its flying laps
    num_laps: int  # that each was asked for

    def per_lap(self, name: str) -> float | None:
        """Sum over the flying laps by their number, of the cars that completed theirs; None where
        no car did: whoever stands still has no laps to divide by."""
        done = [
            (trace, len(laps.lap_times))
            for trace, laps in zip(self.traces, self.laps, strict=True)
            if len(laps.lap_times) == self.num_laps
        ]
        if not done:
            return None
        return float(sum(np.sum(trace[name]) for trace, _ in done) / sum(n for _, n in done))

    @property
    def lap_times(self) -> list[float]:
        return [value for laps in self.laps for value in laps.lap_times]


def make_measure(env: TimeTrial, addon: Addon, control: Control, num_laps: int):
    """Builds `(params, keys [N]) -> Driven`: `N` cars, calm starts, `num_laps` flying laps each."""

    def trace(before: State, after: State, action: jax.Array) -> dict[str, jax.Array]:
        previous: DriveState = before.pipeline_state  # pyright: ignore[reportAssignmentType]
        current: DriveState = after.pipeline_state  # pyright: ignore[reportAssignmentType]
        kept = {
            **record(after),
            "progress": current.progress,
            "basic": after.reward,
            "addon": addon.reward(previous, action, current),
            "clearance": clearance(env.track, current),
            "steering_step": current.steering_target - previous.steering_target,
        }
        if addon.violation is not None:
            kept["violation"] = addon.violation(previous, current)
        return kept

    driver = make_driver(with_calm_starts(env), control, num_laps, trace)

    def measure(params: Any, keys: Key) -> Driven:
        traces = jax.device_get(driver(params, keys))
        cars = [{name: v[:, i] for name, v in traces.items()} for i in range(keys.shape[0])]
        parts = [flying(car["lap"], num_laps) for car in cars]
        return Driven(
            laps=[summarise_laps(car, env, num_laps) for car in cars],
            traces=[
                {name: values[part] for name, values in car.items()}
                for car, part in zip(cars, parts, strict=True)
            ],
            num_laps=num_laps,
        )

    return measure


def numbers(driven: Driven) -> dict[str, Any]:
    """What `--json` prints of a drive; null where there is nothing to tell."""
    times = driven.lap_times
    result: dict[str, Any] = {
        "laps_completed": len(times),
        "laps_asked": driven.num_laps * len(driven.laps),
        "lap_time": float(np.mean(times)) if times else None,
        "basic_per_lap": driven.per_lap("basic"),
        "addon_per_lap": driven.per_lap("addon"),
        "off_course_steps_per_lap": driven.per_lap("off_course"),
        "wall_contact_steps_per_lap": driven.per_lap("wall_contact"),
    }
    if "violation" in driven.traces[0]:
        result["violation_steps_per_lap"] = driven.per_lap("violation")
    return result


def shown(driven: Driven) -> Shown:
    """The first car's drive, for a picture."""
    laps, trace = driven.laps[0], driven.traces[0]
    return Shown(laps.drive, trace["clearance"], trace.get("violation"), laps.lap_times)


def _show(name: str, value: float | None) -> str:
    if name == "lap_time":
        return show_time(value)
    return "–" if value is None else f"{value:.0f}" if name.startswith("laps") else f"{value:.2f}"


def say_progress(progress: Progress) -> None:
    error = float(np.mean(progress.validation_error))
    sys.stderr.write(f"motion model, pass {progress.epoch}: error {error:.3f} of typical changes\n")


def model_for(
    policy: Policy, env: TimeTrial, agent: Agent, agent_state: Any, out: Path, *, relearn: bool
) -> tuple[Dynamics, DynamicsState]:
    """The committed motion model where it fits, else one that is learnt and kept in `out`."""
    about = {
        "circuit": env.config.circuit,
        "car": env.config.car,
        "policy": policy.manifest["files"],
    }
    kept = out / "motion.npz"
    for path in () if relearn else (MODEL_FILE, kept):
        if path.exists():
            model, state, extra = load_dynamics(path)
            if extra == about:
                return model, state
    key = jax.random.key(MODEL_SEED)
    model, state = learn_model(env, agent, agent_state, MODEL_STEPS, key, report=say_progress)
    save_dynamics(kept, model.config, state, about)
    return model, state


def main(config: Customise) -> int:
    policy = load_policy(BUNDLE.parents[3] / config.policy)
    env = TimeTrial(env_config_of(policy, config.circuit, config.car))
    addon = parse_addon(env, config.addon)
    agent, agent_state = trained_agent(policy)
    with open_workdir(config.out) as out:
        model, model_state = model_for(policy, env, agent, agent_state, out, relearn=config.relearn)
        driver = make_planning_driver(config.planner, env, agent, model, addon)
        planned = driver.init(model_state, agent_state)  # refuses what does not fit
        keys = jax.random.split(jax.random.key(DRIVE_SEED + config.seed), config.cars)
        before = make_measure(env, addon, driven_by(policy), config.laps)(policy.params, keys)
        began = time.monotonic()
        after = make_measure(env, addon, driver.control, config.laps)(planned, keys)
        seconds = time.monotonic() - began
        title = f"{config.addon}, omega' {config.omega:g}, {config.variant}"
        picture = out / "customised.png"
        picture.write_bytes(
            encode_png(
                comparison(
                    outline_of(env.track),
                    {"policy": shown(before), config.variant: shown(after)},
                    title,
                )
            )
        )
    result = {
        "addon": config.addon,
        "omega": config.omega,
        "circuit": env.config.circuit,
        "car": env.config.car,
        "before": numbers(before),
        "after": numbers(after),
        "picture": str(picture),
    }
    if config.json:
        print(json.dumps(result))
        return 0
    print(f"{'per flying lap':<28} {'policy':>12} {config.variant:>12}")
    for name, old in result["before"].items():
        new = result["after"][name]
        show = show_time if name == "lap_time" else lambda value: f"{value:.2f}"
        print(
            f"{name.removesuffix('_per_lap').replace('_', ' '):<28} {show(old):>12} {show(new):>12}"
        )
    steps = sum(len(trace["lap"]) for trace in after.traces)
    sys.stderr.write(f"{steps} planned steps in {seconds:.0f} s, compilation included\n")
    print(picture)
    return 0


if __name__ == "__main__":
    flags.main(main, Customise())
