"""How a return policy does on balls that it has never seen, beside the record of Ace and of people.

    ./run python -m experiments.ace_evaluate --policy=DIR --json
    ./run python -m experiments.ace_evaluate --policy=DIR --balls=FILE.csv --figure=rates.png
    ./run python -m experiments.ace_evaluate --policy=planner --max_balls=300

`planner` is no policy but a search on the true model (`projects/ace/planner.py`), seconds per ball:
a baseline without learning, and what it returns can be returned.

Every ball is played once. The record's columns are recomputed, with our definitions, from the match
events that Sony published with Durr et al. 2026 (Nature 652:886-891). Ace played people, on
hardware; this is a simulation, with balls that do not answer back.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from core_rl import flags
from core_rl.errors import UsageError
from core_rl.policy import Policy, load_policy
from core_rl.report import encode_png
from projects.ace.bank import BankConfig
from projects.ace.planner import PlannerConfig, make_planner
from projects.ace.recording import Played, play
from projects.ace.render import return_rates
from projects.ace.return_env import (
    LEGAL,
    NET,
    OUTCOMES,
    RUNNING,
    ReturnConfig,
    ReturnTask,
)

TEST_SEED = 9_000_000  # of the balls; training and selection never see them
PLANNER = "planner"

# Bins' upper edges, and the shares of legal returns of Ace and of people in the open match events.
SPIN_BINS = (100, 200, 300, 400, 450, 550, 700, np.inf)  # [rad/s]
ACE_SPIN = (0.933, 0.851, 0.860, 0.814, 0.806, 0.683, 0.410, 0.309)
HUMAN_SPIN = (0.824, 0.783, 0.790, 0.743, 0.655, 0.615, None, None)
SPEED_BINS = (6, 8, 10, 12, 14, 16, 20, np.inf)  # [m/s]
ACE_SPEED = (0.926, 0.910, 0.844, 0.814, 0.759, 0.553, 0.298, 0.000)


@dataclasses.dataclass(frozen=True)
class AceEvaluate:
    policy: str = ""  # directory of a policy bundle, such as WORKDIR/policy, or planner
    task: Literal["", "T0", "T1", "T2", "T3"] = ""  # empty: the policy's own; the planner's is T3
    balls: str = ""  # human, slow, or the path of a CSV file; empty: the task's
    num_balls: int = 5000  # balls that are drawn
    max_balls: int = 0  # play only so many of them, the first; 0 plays all
    skip_invalid: bool = False  # leave out rows of the file that no model covers
    perfect: bool = False  # perfect sensing instead of the policy's own
    seed: int = 0  # added to the seed of the balls and measurements
    json: bool = False  # print one JSON object
    figure: str = ""  # PNG file to draw the rates into
    planner: PlannerConfig = PlannerConfig()

    def __post_init__(self):
        if self.num_balls < 1:
            raise ValueError(f"num_balls must be at least 1, got {self.num_balls}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.max_balls < 0:
            raise ValueError(f"max_balls must not be negative, got {self.max_balls}")


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if trials == 0:
        return 0.0, 1.0
    z, p = 1.959964, successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def env_config_of(policy: Policy) -> ReturnConfig:
    """What the policy was trained on. Raises UsageError for one that does not return balls."""
    extra = policy.manifest["extra"]
    if extra.get("project") != "ace":
        raise UsageError("this policy was not trained by projects/ace: it cannot return balls")
    return flags.from_dict(ReturnConfig, extra["env"])


def episode_keys(env: ReturnTask, seed: int) -> jax.Array:
    """[N] what starts the episode of each ball of the environment's bank."""
    # The bank's measurements are drawn from `key(seed)` itself: these keys must not repeat those.
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), env.num_balls)


def play_policy(
    policy: Policy, env: ReturnTask, seed: int, num_balls: int, *, with_joints: bool = False
) -> Played:
    """Plays the first `num_balls` balls of the environment's bank once each."""
    act = lambda obs: policy.apply(policy.params, obs)  # noqa: E731
    rows, keys = np.arange(num_balls), episode_keys(env, seed)[:num_balls]
    return play(act, env, rows, keys, with_joints=with_joints)


def play_planner(config: PlannerConfig, env: ReturnTask, seed: int, num_balls: int) -> Played:
    """The same with the planner; says on stderr how far it is."""
    plan, began, ends = make_planner(env, config), time.monotonic(), []
    for row, key in enumerate(episode_keys(env, seed)[:num_balls]):
        ends.append(jax.device_get(plan(jnp.asarray(row), key)))
        legal = sum(int(end["outcome"]) == LEGAL for end in ends)
        left = (time.monotonic() - began) / len(ends) * (num_balls - len(ends))
        if len(ends) % 10 == 0 or len(ends) == num_balls:
            sys.stderr.write(
                f"ball {len(ends)}/{num_balls}  returned {legal / len(ends):.1%}  "
                f"ETA {int(left // 60)}:{int(left % 60):02d}\n"
            )
            sys.stderr.flush()
    whole = jax.tree.map(lambda *leaves: np.stack(leaves), *ends)
    return Played(row=np.arange(num_balls), joints=None, **whole)


def rate(success: np.ndarray) -> dict[str, Any]:
    low, high = wilson(int(success.sum()), len(success))
    share = float(success.mean()) if len(success) else None
    return {"rate": share, "low": low, "high": high, "n": len(success)}


def by_bins(
    values: np.ndarray, edges: tuple[float, ...], legal: np.ndarray, **records: tuple
) -> list[dict[str, Any]]:
    rows, low = [], 0.0
    for number, high in enumerate(edges):
        inside = (values >= low) & (values < high)
        name = f"{low:.0f}-{high:.0f}" if np.isfinite(high) else f"{low:.0f}+"
        record = {who: shares[number] for who, shares in records.items()}
        rows.append({"bin": name, **rate(legal[inside]), **record})
        low = high
    return rows


def summarise(played: Played, env: ReturnTask) -> dict:
    """What `--json` prints of played balls."""
    start = np.asarray(env.bank.incoming.start)[played.row]
    serve = np.asarray(env.bank.incoming.serve)[played.row]
    outcome = played.outcome
    legal, hit = outcome == LEGAL, outcome >= NET
    error = np.linalg.norm(played.landing - played.target, axis=1)[legal]
    speed = np.linalg.norm(played.returned[:, 3:6], axis=1)[legal]
    spin = np.linalg.norm(played.returned[:, 6:], axis=1)[legal]
    percentiles = lambda values: [  # noqa: E731
        round(float(value), 3) for value in np.percentile(values, [5, 50, 95])
    ]
    return {
        "balls": len(outcome),
        "returned": rate(legal),
        "hit": rate(hit),
        "on_serve": rate(legal[serve]),
        "in_rally": rate(legal[~serve]),
        "outcomes": {
            name: int(np.sum(outcome == number))
            for number, name in enumerate(OUTCOMES)
            if number != RUNNING
        },
        "landing_error": {
            "mean": float(error.mean()) if len(error) else None,
            "median": float(np.median(error)) if len(error) else None,
            "within_0.2": rate(error < 0.2),
        },
        "return_speed": percentiles(speed) if legal.any() else None,
        "return_spin": percentiles(spin) if legal.any() else None,
        "velocity_limit_use": [percentiles(joint) for joint in played.pressed.T],
        "by_spin": by_bins(
            np.linalg.norm(start[:, 6:], axis=1), SPIN_BINS, legal, ace=ACE_SPIN, human=HUMAN_SPIN
        ),
        "by_speed": by_bins(
            np.linalg.norm(start[:, 3:6], axis=1), SPEED_BINS, legal, ace=ACE_SPEED
        ),
    }


def table(rows: list[dict[str, Any]], what: str) -> str:
    lines = [
        f"{what:>10} {'balls':>6} {'returned':>9} {'95 % interval':>15} {'Ace':>6} {'human':>6}"
    ]
    for row in rows:
        shown = f"{row['rate']:.3f}" if row["n"] else "–"
        cells = [f"{row[who]:.3f}" if row.get(who) is not None else "–" for who in ("ace", "human")]
        interval = f"{row['low']:.3f} - {row['high']:.3f}" if row["n"] else ""
        lines.append(
            f"{row['bin']:>10} {row['n']:6d} {shown:>9} {interval:>15} {cells[0]:>6} {cells[1]:>6}"
        )
    return "\n".join(lines)


def main(config: AceEvaluate) -> int:
    if not config.policy:
        raise UsageError(
            f"--policy=DIR is missing: name the directory of a policy bundle, or {PLANNER}"
        )
    policy = None if config.policy == PLANNER else load_policy(Path(config.policy))
    env_config = ReturnConfig(task="T3") if policy is None else env_config_of(policy)
    task = config.task or env_config.task
    if task == "T2" and policy is not None and env_config.task != task:
        raise UsageError(
            f"--task=T2: this policy was trained on {env_config.task}, without targets"
        )
    sensing = dataclasses.replace(
        env_config.sensing, perfect=config.perfect or env_config.sensing.perfect
    )
    began, seed = time.monotonic(), TEST_SEED + config.seed
    balls = BankConfig(
        source=config.balls, num_balls=config.num_balls, seed=seed, skip_invalid=config.skip_invalid
    )
    env = ReturnTask(dataclasses.replace(env_config, task=task, balls=balls, sensing=sensing))
    num_balls = min(config.max_balls or env.num_balls, env.num_balls)
    made = time.monotonic()
    if policy is None:
        played = play_planner(config.planner, env, seed, num_balls)
    else:
        played = play_policy(policy, env, seed, num_balls)
    result = {
        "task": task,
        "source": env.config.balls_of_task().source,
        **summarise(played, env),
        "seconds": {"balls": round(made - began, 1), "play": round(time.monotonic() - made, 1)},
    }
    if config.json:
        print(json.dumps(result))
    else:
        show(result)
    if config.figure:
        title = f"Returned balls, {task}"
        figure = encode_png(return_rates(result["by_spin"], result["by_speed"], title))
        Path(config.figure).write_bytes(figure)
    return 0


def show(result: dict[str, Any]) -> None:
    """Prints `summarise`'s result as tables."""
    returned, error = result["returned"], result["landing_error"]
    print(
        f"{result['balls']} balls: returned {returned['rate']:.3f} "
        f"[{returned['low']:.3f}, {returned['high']:.3f}], hit {result['hit']['rate']:.3f}"
    )
    print(", ".join(f"{name} {count}" for name, count in result["outcomes"].items()))
    if error["median"] is not None:
        near = error["within_0.2"]["rate"]
        print(f"lands {error['median']:.2f} m (median) from its aim, {near:.1%} within 0.2 m")
    print("\nby the spin of the ball [rad/s]\n" + table(result["by_spin"], "spin"))
    print("\nby its speed [m/s]\n" + table(result["by_speed"], "speed"))


if __name__ == "__main__":
    flags.main(main, AceEvaluate())
