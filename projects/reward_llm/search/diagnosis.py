"""What the terms of a reward did for the policy that it trained."""

from collections.abc import Mapping, Sequence

import numpy as np

from projects.reward_llm.compile import rewards_of
from projects.reward_llm.language import Program

CONSTANT = 1e-3  # spread over magnitude below which a term cannot steer
DOMINANT = 0.9  # share of all magnitudes from which on a term drowns the others


def term_statistics(
    program: Program,
    weights: Sequence[float],
    features: np.ndarray,
    alive: np.ndarray,
    names: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Of each term over test episodes `[T, N, F]` with `alive` `[T, N]`: mean per step, standard
    deviation, share of the sum of all terms' magnitudes, share of steps in which it is not 0."""
    # Of all steps, and chosen afterwards: arrays of one shape need no new compilation.
    terms = rewards_of(program, weights, features, names)[1][alive].astype(np.float64)
    magnitude = np.mean(np.abs(terms), axis=0)
    whole = float(np.sum(magnitude)) or 1.0
    return {
        name: {
            "mean": float(np.mean(terms[:, i])),
            "sd": float(np.std(terms[:, i])),
            "share": float(magnitude[i]) / whole,
            "active": float(np.mean(terms[:, i] != 0)),
        }
        for i, name in enumerate(program.terms)
    }


def remarks(statistics: dict[str, dict[str, float]]) -> dict[str, str]:
    """In words, of each term that has something wrong with it."""
    said = {}
    for name, values in statistics.items():
        if values["active"] == 0:
            said[name] = "always 0: never in effect"
        elif values["sd"] <= CONSTANT * abs(values["mean"]):
            said[name] = "constant: cannot steer learning"
        elif values["share"] > DOMINANT and len(statistics) > 1:
            said[name] = f"{values['share']:.0%} of all: drowns the others"
    return said


def digits(value: float) -> str:
    """Three significant digits."""
    return "none" if not np.isfinite(value) else f"{value:.3g}"


def table(history: Sequence[dict[str, dict[str, float]]], when: Sequence[int]) -> str:
    """Statistics at several moments of training (updates) as lines of text."""
    lines = [" | ".join(["term", *[f"after {n}" for n in when], "remark"])]
    said = remarks(history[-1])
    for name in history[-1]:
        cells = [f"{digits(s[name]['mean'])} ({s[name]['share']:.0%})" for s in history]
        lines.append(" | ".join([name, *cells, said.get(name, "")]))
    return "\n".join(lines)


def metrics_table(curve: Mapping[str, Sequence[float]], when: Sequence[int]) -> str:
    """Metrics at several moments of training as lines of text."""
    lines = [" | ".join(["metric", *[f"after {n}" for n in when]])]
    lines += [" | ".join([name, *map(digits, values)]) for name, values in curve.items()]
    return "\n".join(lines)
