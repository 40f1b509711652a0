"""What the parts of the return task's recipe are worth: each is left out, over several seeds, in
short runs.

    ./run python -m experiments.ace_ablations                      # hours; may be stopped, resumes
    ./run python -m experiments.ace_ablations --only=full,scalar   # two of them, by name

Every run has its own directory under `--out`, so that commands with different `--only` may share
the work. When all runs that were asked for are complete it prints a table and draws
`ablations.png`. A run's result is the mean of its last evaluations, on balls that no training sees;
the interval is Student's over the seeds. `symmetric` critics are not told the afterstate either,
which knows the true ball: compare them with `no_afterstate`. `scalar` (scalar critics with the
reconstruction loss) is, but for the afterstate, the kind of agent that Sony published for Ace
(Durr et al. 2026, Nature 652:886-891).
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from core_rl import flags
from core_rl.launch import RunConfig, run
from core_rl.report import encode_png
from core_rl.tracking import read_metrics
from experiments import ace_return
from experiments.ace_return import AceReturn
from projects.ace.render import learning_curves

LAST = 3  # evaluations at the end of a run that are averaged


def _agent(**changes: object) -> Callable[[AceReturn], AceReturn]:
    return lambda base: dataclasses.replace(
        base,
        agent=dataclasses.replace(base.agent, **changes),  # pyright: ignore[reportArgumentType]
    )


def _tables(*shares: tuple[str, float]) -> Callable[[AceReturn], AceReturn]:
    return lambda base: dataclasses.replace(
        base, train=dataclasses.replace(base.train, tables=shares)
    )


def _no_history(base: AceReturn) -> AceReturn:
    sensing = dataclasses.replace(base.env.sensing, history=1)
    env = dataclasses.replace(base.env, sensing=sensing)
    return dataclasses.replace(_agent(actor_obs=("state", "readings"))(base), env=env)


VARIANTS: dict[str, tuple[str, Callable[[AceReturn], AceReturn]]] = {
    "full": ("the full recipe", lambda base: base),
    "no_afterstate": ("no afterstate for the critics", _agent(afterstate=False)),
    "symmetric": (
        "symmetric critics: they see what the actor sees",
        _agent(critic_obs=("state", "readings", "estimate"), afterstate=False),
    ),
    "no_filter": (
        "no filter: the actor sees the last eight readings",
        _agent(actor_obs=("state", "readings")),
    ),
    "no_history": ("no history: the actor sees the newest reading", _no_history),
    "no_reconstruction": ("no reconstruction loss", _agent(reconstruct_obs=())),
    "scalar": ("scalar critics", _agent(num_quantiles=1)),
    "tables": (
        "event tables: a tenth of each batch",
        _tables(("miss", 0.025), ("net", 0.025), ("out", 0.025), ("legal", 0.025)),
    ),
}


@dataclasses.dataclass(frozen=True)
class AceAblations:
    only: tuple[str, ...] = ()  # variants by name; empty: all
    num_seeds: int = 3  # per variant
    first_seed: int = 100  # of them; no other experiment uses these
    epochs: int = 20  # of 512 updates, per run: the recipe, cut short
    out: str = "runs/ace_ablations"  # where the runs go
    json: bool = False  # print one JSON object

    def __post_init__(self):
        for name in ("num_seeds", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.first_seed < 0:
            raise ValueError(f"first_seed must not be negative, got {self.first_seed}")
        for name in self.only:
            if name not in VARIANTS:
                raise ValueError(f"only must be among {', '.join(VARIANTS)}, got {name!r}")


def run_config(config: AceAblations, variant: str, seed: int) -> AceReturn:
    """The configuration of one run."""
    base = ace_return.CONFIG
    base = dataclasses.replace(
        base,
        train=dataclasses.replace(base.train, num_epochs=config.epochs),
        run=RunConfig(evaluate_every=1, checkpoint_every=5, wandb=base.run.wandb),
        seed=seed,
        workdir=str(Path(config.out) / f"{variant}-s{seed}"),
    )
    return VARIANTS[variant][1](base)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of a few values by Student's t; all of [0, 1] for a single one."""
    if len(values) < 2:
        return 0.0, 1.0
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(max(values.mean() - half, 0.0)), float(min(values.mean() + half, 1.0))


def curve_of(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Updates and shares of legal returns after each epoch [E] of a run."""
    return (
        np.array([row["updates"] for row in rows], float),
        np.array([row["eval/legal"] for row in rows]),
    )


def summarise(curves: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """What `--json` prints of the curves [S, E] by variant."""
    result = {}
    for name, values in curves.items():
        final = values[:, -LAST:].mean(axis=1)
        low, high = interval(final)
        result[name] = {
            "what": VARIANTS[name][0],
            "returned": float(final.mean()),
            "low": low,
            "high": high,
            "seeds": [round(float(value), 4) for value in final],
        }
    return result


def main(config: AceAblations) -> int:
    names = config.only or tuple(VARIANTS)
    runs: dict[str, list[np.ndarray]] = {name: [] for name in names}
    updates = np.zeros(0)
    for seed in range(config.first_seed, config.first_seed + config.num_seeds):
        for name in names:
            made = run_config(config, name, seed)
            sys.stderr.write(f"{made.workdir}: {VARIANTS[name][0]}\n")
            experiment, _ = ace_return.make_experiment(made)
            outcome = run(experiment, made.workdir)
            if outcome.exit_code:
                return outcome.exit_code
            updates, curve = curve_of(read_metrics(outcome.workdir / "metrics.jsonl"))
            runs[name].append(curve)
    curves = {name: np.stack(values) for name, values in runs.items()}
    result = summarise(curves)
    if config.json:
        print(json.dumps(result))
    else:
        print(f"{'variant':<52} {'returned':>8} {'95 % interval':>15}   seeds")
        for row in result.values():
            each = " ".join(f"{value:.3f}" for value in row["seeds"])
            bounds = f"{row['low']:.3f} - {row['high']:.3f}"
            print(f"{row['what']:<52} {row['returned']:8.3f} {bounds:>15}   {each}")
    title = f"Returned balls over {int(updates[-1]):,} updates, {config.num_seeds} seeds"
    named = {VARIANTS[name][0]: values for name, values in curves.items()}
    picture = Path(config.out) / "ablations.png"
    picture.write_bytes(encode_png(learning_curves(updates, named, title)))
    sys.stderr.write(f"{picture}\n")
    return 0


if __name__ == "__main__":
    flags.main(main, AceAblations())
