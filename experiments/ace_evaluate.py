"""How a return policy does on balls that it has never seen, beside the record of Ace and of people.

    ./run python -m experiments.ace_evaluate --policy=DIR --json
    ./run python -m experiments.ace_evaluate --policy=DIR --balls=FILE.csv

Every ball is played once. The record's columns are recomputed, with our definitions, from the match
events that Sony published with Durr et al. 2026 (Nature 652:886-891). Ace played people, on
hardware; this is a simulation, with balls that do not answer back.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core_rl import flags
from core_rl.env import named_obs
from core_rl.errors import UsageError
from core_rl.policy import Policy, load_policy
from projects.ace.bank import BankConfig
from projects.ace.return_env import (
    LEGAL,
    LONGEST,
    NET,
    OUTCOMES,
    RUNNING,
    ReturnConfig,
    ReturnState,
    ReturnTask,
)

TEST_SEED = 9_000_000  # of the balls; training and selection never see them
CHUNK = 500  # balls that are played together

# Bins' upper edges, and the shares of legal returns of Ace and of people in the open match events.
SPIN_BINS = (100, 200, 300, 400, 450, 550, 700, np.inf)  # [rad/s]
ACE_SPIN = (0.933, 0.851, 0.860, 0.814, 0.806, 0.683, 0.410, 0.309)
HUMAN_SPIN = (0.824, 0.783, 0.790, 0.743, 0.655, 0.615, None, None)
SPEED_BINS = (6, 8, 10, 12, 14, 16, 20, np.inf)  # [m/s]
ACE_SPEED = (0.926, 0.910, 0.844, 0.814, 0.759, 0.553, 0.298, 0.000)


@dataclasses.dataclass(frozen=True)
class AceEvaluate:
    policy: str = ""  # directory of a policy bundle, such as WORKDIR/policy
    balls: str = "human"  # human, slow, or the path of a CSV file
    num_balls: int = 5000  # balls that are drawn
    skip_invalid: bool = False  # leave out rows of the file that no model covers
    perfect: bool = False  # perfect sensing instead of the policy's own
    seed: int = 0  # added to the seed of the balls and measurements
    json: bool = False  # print one JSON object

    def __post_init__(self):
        if self.num_balls < 1:
            raise ValueError(f"num_balls must be at least 1, got {self.num_balls}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


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
    return jax.random.split(jax.random.key(seed), env.num_balls)


def play(policy: Policy, env: ReturnTask, seed: int) -> dict[str, np.ndarray]:
    """Plays every ball of the environment's bank once; outcomes, landings and returns, [N, ...]."""

    @jax.jit
    def chunk(rows: jax.Array, keys: jax.Array) -> dict[str, jax.Array]:
        def one(row: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
            def step(carry, _):
                state, final = carry
                task = state.pipeline_state
                state = env.step(state, policy.apply(policy.params, named_obs(state)))
                over = task.outcome > RUNNING
                final = jax.tree.map(
                    lambda old, new: jnp.where(over, old, new), final, state.pipeline_state
                )
                state = state.replace(pipeline_state=final)  # pyright: ignore[reportAttributeAccessIssue]
                return (state, final), None

            first = env.start(row, key)
            carry = (first, first.pipeline_state)
            final: ReturnState = jax.lax.scan(step, carry, None, length=LONGEST)[0][1]  # pyright: ignore[reportAssignmentType]
            return {
                "outcome": final.outcome,
                "landing": final.landing,
                "target": final.target,
                "speed": jnp.linalg.norm(final.returned.velocity),
                "spin": jnp.linalg.norm(final.returned.spin),
            }

        return jax.vmap(one)(rows, keys)

    num_balls = env.num_balls
    keys = episode_keys(env, seed)
    parts = []
    for first in range(0, num_balls, CHUNK):
        rows = np.minimum(np.arange(first, first + CHUNK), num_balls - 1)
        played = jax.device_get(chunk(jnp.asarray(rows), keys[rows]))
        count = min(CHUNK, num_balls - first)
        parts.append({name: values[:count] for name, values in played.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


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


def summarise(played: dict[str, np.ndarray], start: np.ndarray, serve: np.ndarray) -> dict:
    """What `--json` prints of `play`'s result and the states [N, 9] after the opponent's stroke."""
    outcome = played["outcome"]
    legal, hit = outcome == LEGAL, outcome >= NET
    error = np.linalg.norm(played["landing"] - played["target"], axis=1)[legal]
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
        "return_speed": percentiles(played["speed"][legal]) if legal.any() else None,
        "return_spin": percentiles(played["spin"][legal]) if legal.any() else None,
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
        raise UsageError("--policy=DIR is missing: name the directory of a policy bundle")
    policy = load_policy(Path(config.policy))
    env_config = env_config_of(policy)
    sensing = env_config.sensing
    if config.perfect:
        sensing = dataclasses.replace(sensing, perfect=True)
    began = time.monotonic()
    seed = TEST_SEED + config.seed
    balls = BankConfig(
        source=config.balls, num_balls=config.num_balls, seed=seed, skip_invalid=config.skip_invalid
    )
    env = ReturnTask(dataclasses.replace(env_config, balls=balls, sensing=sensing))
    made, incoming = time.monotonic(), env.bank.incoming
    played = play(policy, env, seed)
    result = {
        "task": env_config.task,
        "source": config.balls,
        **summarise(played, np.asarray(incoming.start), np.asarray(incoming.serve)),
        "seconds": {"balls": round(made - began, 1), "play": round(time.monotonic() - made, 1)},
    }
    if config.json:
        print(json.dumps(result))
        return 0
    returned = result["returned"]
    print(
        f"{result['balls']} balls: returned {returned['rate']:.3f} "
        f"[{returned['low']:.3f}, {returned['high']:.3f}], hit {result['hit']['rate']:.3f}"
    )
    print(", ".join(f"{name} {count}" for name, count in result["outcomes"].items()))
    print("\nby the spin of the ball [rad/s]\n" + table(result["by_spin"], "spin"))
    print("\nby its speed [m/s]\n" + table(result["by_speed"], "speed"))
    return 0


if __name__ == "__main__":
    flags.main(main, AceEvaluate())
