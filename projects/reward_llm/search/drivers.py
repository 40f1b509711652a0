"""What a reward pays for the drives of fixed drivers, before anything is trained.

A reward under which a trivial driver earns as much as a good one can be exploited (CARD does the
same with trajectories: Sun et al. 2024, arXiv 2410.14660).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core_rl.reward_task import RewardTask
from projects.reward_llm.compile import rewards_of
from projects.reward_llm.language import Program
from projects.reward_llm.population import clipped, drive

GOOD = "good"
NUM_EPISODES = 8
SEED = 5_000_000
NUM_ROWS = 96  # of real steps that the validator probes with


class Drives(NamedTuple):
    """Equally long episodes from the same starts by each driver; `good` is one of them."""

    features: dict[str, np.ndarray]  # [N, T, F] by driver, 0 after an end
    alive: dict[str, np.ndarray]  # [N, T] bool


def drive_all(task: RewardTask, num_steps: int) -> Drives:
    keys = jax.random.split(jax.random.key(SEED), NUM_EPISODES)
    drives = {
        name: drive(task, driver, keys, num_steps)
        for name, driver in {GOOD: task.good, **task.trivial}.items()
    }
    return Drives(
        features={name: features for name, (features, _) in drives.items()},
        alive={name: alive for name, (_, alive) in drives.items()},
    )


def steps_of(drives: Drives, names: Sequence[str], count: int) -> np.ndarray:
    """`count` steps [count, F] evenly from the episodes of some drivers."""
    steps = np.concatenate([drives.features[name][drives.alive[name]] for name in names])
    return steps[np.linspace(0, len(steps) - 1, count).astype(int)]


def real_rows(task: RewardTask, drives: Drives) -> dict[str, list[float]]:
    """Steps that occurred, for the validator's probes: by feature, each [NUM_ROWS]."""
    steps = steps_of(drives, list(drives.features), NUM_ROWS)
    return {name: steps[:, i].astype(float).tolist() for i, name in enumerate(task.features)}


def pay(
    program: Program, weights: Sequence[float], features: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """Rewards [...] of steps [..., F], as a learner sees them."""
    totals, _ = rewards_of(program, weights, features, names)
    return np.asarray(clipped(jnp.asarray(totals)))


def earnings(
    program: Program, weights: Sequence[float], drives: Drives, names: Sequence[str]
) -> dict[str, float]:
    """Mean sum of rewards per episode of each driver; nothing is paid after an end."""
    drivers = list(drives.features)
    features = np.stack([drives.features[driver] for driver in drivers])
    alive = np.stack([drives.alive[driver] for driver in drivers])
    rewards = np.where(alive, pay(program, weights, features, names), 0.0)
    paid = np.mean(np.sum(rewards, axis=2, dtype=np.float64), axis=1)
    return dict(zip(drivers, paid.tolist(), strict=True))


def exploiters(paid: Mapping[str, float]) -> list[str]:
    """The trivial drivers that earn at least as much as the good one."""
    return [name for name, value in paid.items() if name != GOOD and value >= paid[GOOD]]


def term_scales(program: Program, drives: Drives, names: Sequence[str]) -> np.ndarray:
    """Mean magnitude [C] of each term where it is not 0, over the steps of all drivers; 1 where it
    never is. It brings terms of any unit to one scale."""
    steps = steps_of(drives, list(drives.features), 2000)
    _, terms = rewards_of(program, [1.0] * len(program.terms), steps, names)
    counts = np.sum(terms != 0, axis=0)
    sums = np.sum(np.abs(terms), axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)
