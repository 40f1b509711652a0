"""The ball's physics against analysis, published numbers and recorded balls, as a table.

    ./run python -m experiments.ace_physics_check --data=DIR
    ./run python -m experiments.ace_physics_check --data=DIR --match_data=match_data.csv

DIR holds `deepmind_ball_states/{rallies,serves}.csv` and `mpi_aimy_trajectories/*.csv`; without it
only what needs no data is checked. `match_data.csv` is Sony's file of open match events.
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core_rl import flags
from core_rl.errors import UsageError
from projects.ace.ball import AIR, Ball, FlightModel, fly
from projects.ace.contact import RUBBERS, strike
from projects.ace.events import COURT, simulate
from projects.ace.incoming import COARSE_STEP, make_flights
from projects.ace.recorded import (
    fit_bounce,
    read_deepmind_states,
    read_match_events,
    read_trajectories,
)


@dataclasses.dataclass(frozen=True)
class PhysicsCheck:
    data: str = ""  # folder of recorded balls
    match_data: str = ""  # Sony's file of match events
    json: bool = False  # print one JSON object


class Check(NamedTuple):
    name: str
    measured: float
    expected: float
    tolerance: float  # the measured value may differ by so much; infinite: reported only
    unit: str

    @property
    def good(self) -> bool:
        return bool(abs(self.measured - self.expected) <= self.tolerance)


def _ball(position, velocity, spin=(0.0, 0.0, 0.0)) -> Ball:
    return Ball(*(jnp.array(part, jnp.float32) for part in (position, velocity, spin)))


def analytic_checks() -> list[Check]:
    """What needs no recorded balls."""
    flown = jax.jit(lambda ball: simulate("conti", AIR, COURT, ball, 200).ball.position)
    checks = []
    for height, rise in ((0.300, 0.240), (0.305, 0.244)):
        heights = np.asarray(flown(_ball((-0.7, 0.0, height + 0.02), (0.0, 0.0, 0.0))))[:, 2]
        bounce = int(np.argmax(np.diff(heights) > 0))
        name = f"drop from {100 * height:.1f} cm: rise"
        checks.append(Check(name, float(heights[bounce:].max()) - 0.02, rise, 0.005, "m"))
    grip = dataclasses.replace(RUBBERS["inverted"], friction=jnp.inf)
    brushed = strike(
        grip, _ball((0, 0, 0), (-1e-6, 0, 0)), jnp.array([1.0, 0, 0]), jnp.array([0, 0, 10.0])
    )
    spin = float(jnp.linalg.norm(brushed.spin))
    checks.append(Check("brush at 10 m/s: spin", spin, 516.0, 5.2, "rad/s"))
    return checks


def legal_share(states: np.ndarray, serve: bool, model: FlightModel) -> float:
    flights = make_flights(model, time_step=COARSE_STEP)
    return float(flights(states, np.full(len(states), serve)).legal.mean())


def deepmind_checks(folder: Path) -> list[Check]:
    """The recorded strokes must land. At least .97 of rally and .85 of serve states are asked."""
    checks = []
    shares = {
        "rallies": {"conti": 0.976, "nature": 0.988},
        "serves": {"conti": 0.88, "nature": 0.86},
    }
    for name, by_model in shares.items():
        states = read_deepmind_states(folder / f"{name}.csv")
        for model, expected in by_model.items():
            share = legal_share(states, name == "serves", model)  # pyright: ignore[reportArgumentType]
            checks.append(Check(f"DeepMind {name} that land, {model}", share, expected, 0.03, ""))
    return checks


def aimy_checks(folder: Path) -> list[Check]:
    """The launcher's bounces. Restitution is checked with flights without lift after the bounce;
    with the lift of the model the fits are closer and the restitution is higher, which is reported
    beside the table's law."""
    checks = []
    sets = {"mn5008_no_spin": (0.920, 2.45), "no_spin_robot_simple": (0.911, None)}
    for name, (restitution, forward) in sets.items():
        balls = read_trajectories(folder / f"{name}.csv")
        for lift in (False, True):
            pairs = [fit_bounce(ball, lift=lift) for ball in balls]
            fits = [pair for pair in pairs if pair is not None]
            speeds = np.array([(-before.velocity[2], after.velocity[2]) for before, after in fits])
            ratio = float(np.median(speeds[:, 1] / speeds[:, 0]))
            law = 0.98 - 0.02 * float(np.median(speeds[:, 0]))
            label = f"AIMY {name}: restitution{', with lift' if lift else ''}"
            checks.append(
                Check(label, ratio, *((law, np.inf) if lift else (restitution, 0.02)), "")
            )
        if forward is not None:
            speed = float(np.median([after.velocity[0] for _, after in fits]))
            checks.append(Check(f"AIMY {name}: v_x after", speed, forward, 0.1, "m/s"))
            rms = float(np.median([before.rms for before, _ in fits]))
            checks.append(Check(f"AIMY {name}: rms before", rms, 0.0014, 0.0016, "m"))
    return checks


def match_checks(path: Path) -> list[Check]:
    """Where the next event of a rally happens, predicted from the one before. Reported only: the
    expected values, of a prototype, hold with velocities that are valid 10 ms after the event."""
    events = read_match_events(path)
    time = np.diff(events.time)
    usable = (
        (events.rally[1:] == events.rally[:-1])
        & (time > 0.02)
        & (time < 1.4)
        & np.isfinite(events.velocity[:-1]).all(axis=1)
        & np.isfinite(events.spin[:-1]).all(axis=1)
        & np.isfinite(events.position[1:]).all(axis=1)
        & np.isfinite(events.position[:-1]).all(axis=1)
    )
    first = np.flatnonzero(usable)
    states = np.concatenate(
        [events.position[first], events.velocity[first], events.spin[first]], axis=1
    )

    @jax.jit
    @jax.vmap
    def land(state: jax.Array, seconds: jax.Array) -> jax.Array:
        ball, steps = Ball(state[:3], state[3:6], state[6:]), 64
        return jax.lax.fori_loop(
            0, steps, lambda _, b: fly("conti", AIR, b, seconds / steps), ball
        ).position

    checks = []
    for delay, expected in ((0.0, 0.052), (0.010, 0.027)):
        moved = states.copy()
        if delay:
            # The published velocity is taken as valid `delay` after the event.
            moved[:, :3] += delay * states[:, 3:6]
        predicted = land(
            jnp.asarray(moved, jnp.float32), jnp.asarray(time[first] - delay, jnp.float32)
        )
        error = np.linalg.norm(np.asarray(predicted) - events.position[first + 1], axis=1)
        name = f"match events, {1000 * delay:.0f} ms: median error"
        checks.append(Check(name, float(np.median(error)), expected, np.inf, "m"))
    return checks


def main(config: PhysicsCheck) -> int:
    checks = analytic_checks()
    if config.data:
        folder = Path(config.data)
        if not folder.is_dir():
            raise UsageError(f"--data={config.data} is not a folder")
        checks += deepmind_checks(folder / "deepmind_ball_states")
        checks += aimy_checks(folder / "mpi_aimy_trajectories")
    if config.match_data:
        checks += match_checks(Path(config.match_data))
    failed = [check for check in checks if not check.good]
    if config.json:
        rows = [{**check._asdict(), "good": check.good} for check in checks]
        print(json.dumps({"checks": rows, "failed": len(failed)}))
    else:
        print(f"{'check':45} {'measured':>9} {'expected':>9} {'tolerance':>9}")
        for check in checks:
            print(
                f"{check.name:45} {check.measured:9.4g} {check.expected:9.4g} "
                f"{check.tolerance:9.3g} {check.unit:6} {'' if check.good else 'OUTSIDE'}"
            )
    return 1 if failed else 0


if __name__ == "__main__":
    flags.main(main, PhysicsCheck())
