"""Accepted reward programs as batched functions of stored features.

K programs run on K slices of a leading axis, one after the other in one compiled function; a
`lax.switch` under `vmap` would run all K for each slice (docs.jax.dev, `jax.lax.switch`). A
candidate is a program and the weights of its terms; weights are data, so other weights need no
compilation.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from projects.reward_llm.language import Program, evaluate


class Bank(NamedTuple):
    """`K` rewards; `M` steps, `F` features in the task's order, `C` the largest number of terms."""

    num_terms: int  # C
    # (features [K, M, F], weights [K, C]) -> totals [K, M], terms [K, M, C], weighted and padded
    reward: Callable[[Array, Array], tuple[Array, Array]]


def make_reward(
    program: Program, names: Sequence[str]
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Builds `(features [F], weights [C]) -> total [], terms [C]` of one program of C terms.

    The weights are factors of the program's own terms: with ones, the total is the program's, also
    where it is not the sum of its terms.
    """

    def reward(features: Array, weights: Array) -> tuple[Array, Array]:
        total, named = evaluate(program, dict(zip(names, features, strict=True)))
        terms = jnp.stack([jnp.float32(named[name]) for name in program.terms])
        # Of a term that is not finite, nothing must reach a total with weight one.
        added = jnp.where(weights == 1.0, 0.0, (weights - 1.0) * terms)
        return jnp.float32(total) + jnp.sum(added), weights * terms

    return reward


def make_bank(programs: Sequence[Program], names: Sequence[str]) -> Bank:
    """The rewards of K candidates, of which several may be the same program."""
    num_terms = max(len(program.terms) for program in programs)
    lanes: dict[Program, list[int]] = {}
    for lane, program in enumerate(programs):
        lanes.setdefault(program, []).append(lane)
    order = np.argsort(np.concatenate(list(lanes.values())))

    def reward(features: Array, weights: Array) -> tuple[Array, Array]:
        totals, terms = [], []
        for program, slices in lanes.items():
            of_steps = jax.vmap(make_reward(program, names), in_axes=(0, None))
            where = np.array(slices)
            count = len(program.terms)
            total, named = jax.vmap(of_steps)(features[where], weights[where, :count])
            totals.append(total)
            terms.append(jnp.pad(named, ((0, 0), (0, 0), (0, num_terms - count))))
        return jnp.concatenate(totals)[order], jnp.concatenate(terms)[order]

    return Bank(num_terms, reward)


def rewards_of(
    program: Program, weights: Sequence[float], features: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Totals `[...]` and terms `[..., C]` of steps `[..., F]`, outside of training.

    Not compiled as a whole: its operations are those that other programs had before.
    """
    reward = make_reward(program, names)
    flat = jnp.asarray(features.reshape(-1, features.shape[-1]))
    totals, terms = jax.vmap(reward, in_axes=(0, None))(flat, jnp.asarray(weights, jnp.float32))
    shape = features.shape[:-1]
    return np.asarray(totals).reshape(shape), np.asarray(terms).reshape(*shape, -1)


def padded(weights: Sequence[Sequence[float]], num_terms: int) -> Array:
    """Weights of K candidates as an array `[K, num_terms]`, ones where there is no term."""
    rows = [[*row, *[1.0] * (num_terms - len(row))] for row in weights]
    return jnp.asarray(rows, jnp.float32)
