"""What the parts of a recipe are worth: each is left out, over several seeds, in short runs.

Every run has its own directory under `out`, so that commands with different `only` may share the
work, and a command that was stopped goes on where it was. The interval is Student's over the seeds.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from core_rl.launch import Experiment, Outcome, RunConfig, run
from core_rl.report import encode_png
from core_rl.tracking import encode_json, read_metrics

LAST = 3  # evaluations at the end of a run that are averaged


class Variant(NamedTuple):
    what: str  # is left out, or put in another's place
    change: Callable[[Any], Any]  # of the experiment's configuration


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    variants: ClassVar[Mapping[str, Variant]]  # by name; a subclass says them
    only: tuple[str, ...] = ()  # variants by name; empty: all
    num_seeds: int = 3  # per variant
    first_seed: int = 100  # of them; no other experiment uses these
    epochs: int = 20  # per run: the recipe, cut short
    out: str = "runs/ablations"  # where the runs go
    json: bool = False  # print one JSON object

    def __post_init__(self):
        for name in ("num_seeds", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.first_seed < 0:
            raise ValueError(f"first_seed must not be negative, got {self.first_seed}")
        for name in self.only:
            if name not in self.variants:
                raise ValueError(f"only must be among {', '.join(self.variants)}, got {name!r}")

    def shortened(self, base: Any, variant: str, seed: int, **run: int) -> Any:
        """One run's configuration: the experiment's `base` with the options `run`, changed."""
        base = dataclasses.replace(
            base,
            train=dataclasses.replace(base.train, num_epochs=self.epochs),
            run=RunConfig(**run, wandb=base.run.wandb),
            seed=seed,
            workdir=str(Path(self.out) / f"{variant}-s{seed}"),
        )
        return self.variants[variant].change(base)


class Ablated(NamedTuple):
    """What to run and what to read from it."""

    make_config: Callable[[str, int], Any]  # (variant, seed) -> the experiment's configuration
    make_experiment: Callable[[Any], tuple[Experiment, Any]]  # as the experiment's own
    column: str  # of the metrics, for the learning curves
    result: Callable[[Outcome, Any], float]  # (of a complete run, its environment) -> its number
    measure: str  # what that number is, for the table's head
    y_label: str  # of the learning curves


def agent(**changes: object) -> Callable[[Any], Any]:
    """A change of the learner's configuration."""
    return lambda base: dataclasses.replace(base, agent=dataclasses.replace(base.agent, **changes))


def mean_of_last(column: str) -> Callable[[Outcome, Any], float]:
    """A run's result as the mean of a column's last evaluations."""

    def result(outcome: Outcome, _: Any) -> float:
        return float(np.mean([row[column] for row in outcome.rows if column in row][-LAST:]))

    return result


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of a few values by Student's t; all numbers for a single one."""
    if len(values) < 2:
        return -np.inf, np.inf
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def summarise(
    results: Mapping[str, np.ndarray], variants: Mapping[str, Variant]
) -> dict[str, dict[str, Any]]:
    """What `--json` prints of the results [S] by variant; no interval where a run has no number."""
    rows = {}
    for name, values in results.items():
        low, high = interval(values)
        rows[name] = {
            "what": variants[name].what,
            "mean": float(values.mean()),
            "low": low,
            "high": high,
            "seeds": [round(float(value), 4) for value in values],
        }
    return rows


def learning_curves(updates: np.ndarray, curves: Mapping[str, np.ndarray], y_label: str) -> Figure:
    """Evaluations at updates [E]; curves [S, E] by name, the mean over seeds and each thinly."""
    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    axes = figure.subplots()
    ends = sorted(curves, key=lambda name: -float(curves[name][:, -1].mean()))
    for number, name in enumerate(ends):
        colour = f"C{number}"
        axes.plot(updates, curves[name].T, color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(updates, curves[name].mean(axis=0), color=colour, linewidth=2.2, label=name)
    seeds = len(next(iter(curves.values())))
    axes.set_title(f"thick: mean of {seeds} seeds; thin: each; in the order they end", fontsize=9)
    axes.set_xlim(0.0, float(updates[-1]))
    axes.set_xlabel("updates")
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def ablate(config: AblationConfig, ablated: Ablated) -> int:
    """Runs what is missing, prints the table and draws `ablations.png`; returns an exit code."""
    variants = config.variants
    names = config.only or tuple(variants)
    curves: dict[str, list[np.ndarray]] = {name: [] for name in names}
    results: dict[str, list[float]] = {name: [] for name in names}
    updates = np.zeros(0)
    for seed in range(config.first_seed, config.first_seed + config.num_seeds):
        for name in names:
            made = ablated.make_config(name, seed)
            sys.stderr.write(f"{made.workdir}: {variants[name].what}\n")
            experiment, env = ablated.make_experiment(made)
            outcome = run(experiment, made.workdir)
            if outcome.exit_code:
                return outcome.exit_code
            rows = read_metrics(outcome.workdir / "metrics.jsonl")
            rows = [row for row in rows if ablated.column in row]
            updates = np.array([row["updates"] for row in rows], float)
            curves[name].append(np.array([row[ablated.column] for row in rows]))
            results[name].append(ablated.result(outcome, env))
    table = summarise({name: np.array(values) for name, values in results.items()}, variants)
    if config.json:
        print(json.dumps(encode_json(table), allow_nan=False))
    else:
        print(f"{'variant':<56} {ablated.measure:>10} {'95 % interval':>15}   seeds")
        for row in table.values():
            each = " ".join(f"{value:.3f}" for value in row["seeds"])
            bounds = f"{row['low']:.3f} - {row['high']:.3f}"
            print(f"{row['what']:<56} {row['mean']:10.3f} {bounds:>15}   {each}")
    named = {variants[name].what: np.stack(values) for name, values in curves.items()}
    picture = Path(config.out) / "ablations.png"
    picture.write_bytes(encode_png(learning_curves(updates, named, ablated.y_label)))
    sys.stderr.write(f"{picture}\n")
    return 0
