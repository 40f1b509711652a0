"""Proposals without a language model: random weights, CMA-ES on weights, random programs."""

import math
from collections.abc import Sequence

import numpy as np
from cmaes import CMA

from core_rl.features import FeatureTable

WIDEST = 30.0  # factor above and below 1 within which random weights are drawn
SIGMA = 1.0  # of the first generation of CMA-ES, in the logarithm of the weights
FEWEST, MOST = 2, 6  # terms of a random program
WORST = 1e3  # cost of a candidate whose score is not a number


def random_weights(random: np.random.Generator, num_terms: int) -> list[float]:
    """Log-uniform factors of terms that have one scale."""
    logs = random.uniform(-math.log(WIDEST), math.log(WIDEST), num_terms)
    return np.exp(logs).tolist()


def cma_weights(
    num_terms: int,
    population: int,
    past: Sequence[Sequence[float | None]],
    seed: int,
) -> list[list[float]]:
    """The next generation of factors by CMA-ES (Hansen 2016, arXiv 1604.00772).

    Args:
      num_terms: numbers per candidate.
      population: candidates per generation.
      past: scores of the generations before, in the order in which their candidates were proposed;
        None for one that was not trained, which counts as the median: nothing is known against it.
      seed: of its random numbers.

    The optimiser begins anew each time and is told everything again: it has no state to keep.
    """
    optimiser = CMA(mean=np.zeros(num_terms), sigma=SIGMA, seed=seed, population_size=population)
    for scores in past:
        asked = [optimiser.ask() for _ in range(population)]
        known = [-s if math.isfinite(s) else WORST for s in scores if s is not None]
        middle = float(np.median(known)) if known else 0.0
        costs = [middle if s is None else -s if math.isfinite(s) else WORST for s in scores]
        optimiser.tell(list(zip(asked, costs, strict=True)))
    return [np.exp(optimiser.ask()).tolist() for _ in range(population)]


def random_program(random: np.random.Generator, features: FeatureTable) -> str:
    """A program of a small grammar: a few features, each transformed, signed and weighted."""
    names = list(features)
    size = random.integers(FEWEST, min(MOST, len(names)) + 1)
    chosen = random.choice(len(names), size=size, replace=False)
    lines, terms = [], []
    for number, index in enumerate(chosen):
        name, feature = names[index], features[names[index]]
        scale = max(abs(feature.low), abs(feature.high)) * random.uniform(0.05, 0.5)
        x = f'f["{name}"]'
        transforms = [f"{x} / {scale:.4g}", f"jnp.tanh({x} / {scale:.4g})"]
        if feature.kind != "flag":
            transforms += [
                f"jnp.exp(-jnp.abs({x}) / {scale:.4g})",
                f"jnp.square({x} / {scale:.4g})",
                f"jnp.minimum(jnp.abs({x}) / {scale:.4g}, 1.0)",
            ]
        weight = random.choice([-1.0, 1.0]) * math.exp(random.uniform(math.log(0.05), 0.0))
        term = f"t{number}_{name}"[:32]
        lines.append(f"    {term} = {weight:.3g} * {random.choice(transforms)}")
        terms.append(term)
    pairs = ", ".join(f'"{term}": {term}' for term in terms)
    body = "\n".join(lines)
    return f"def reward(f):\n{body}\n    return {' + '.join(terms)}, {{{pairs}}}\n"
