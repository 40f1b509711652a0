"""What a task offers to whoever designs its reward, a person, an optimiser or a language model.

A project that offers such tasks has a module `design` with `TASKS`, factories by name; whoever
designs is handed the name `project:task` and imports nothing else of the project. The reward of the
environment is replaced: the designer sees features of each step (`core_rl.features`), and what
comes of a reward is measured by metrics that know no reward.
"""

import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from core_rl.env import Env, State
from core_rl.errors import UsageError
from core_rl.features import FeatureTable
from core_rl.qr_sac import QRSACConfig
from core_rl.train import TrainConfig
from core_rl.types import Afterstate, Key, Metrics


class Driver(NamedTuple):
    """A fixed way to act, to see what a reward pays for it before anything is trained."""

    act: Callable[[State, Key], jax.Array]  # one environment's state -> action [A]
    doc: str


@dataclasses.dataclass(frozen=True)
class RewardTask:
    """See the module's text. `N` are episodes, `T` their steps."""

    name: str  # project:task
    goal: str  # what is wanted, in a sentence, where the user gives none
    facts: str  # control rate, episodes and how they end, in prose for whoever writes the reward
    features: FeatureTable  # in the order in which they are stored
    # (state before, state after, action [A]) -> features [], each within its range in the table
    measure: Callable[[State, State, jax.Array], Mapping[str, jax.Array]]
    env: Env  # of training
    episode_length: int  # steps of an episode in training
    agent: QRSACConfig
    train: TrainConfig  # sizes of an epoch; how many there are is the designer's budget
    test_env: Env  # in which policies are compared
    test_episodes: int  # N
    test_length: int  # steps
    # (sums over each episode of the environment's metrics, [N]) -> metrics [], without any reward
    metrics: Callable[[Metrics], Metrics]
    metric_docs: Mapping[str, str]  # of each of these metrics: what it is, which way is good
    score: str  # the metric that chooses; larger is better
    human: str  # the reward of the people who made the task, in the reward language
    sparse: str  # pays only for what the task is about
    terms: str  # the terms of `human` without weights, in the reward language
    weights: Mapping[str, float]  # of each of these terms in `human`
    good: Driver  # what it does should be paid better than what the trivial ones do
    trivial: Mapping[str, Driver]  # drivers that do not solve the task and must not be paid better
    # (features [T] of one episode) -> what a person who watches it would like, larger is better
    merit: Callable[[Mapping[str, np.ndarray]], float]
    # (features [T] of one episode) -> what happened, in words and numbers for a judge
    summary: Callable[[Mapping[str, np.ndarray]], str]
    afterstate: Callable[[], Afterstate | None] = lambda: None


def load_task(name: str) -> RewardTask:
    """The task `project:task`. Raises UsageError that lists what there is."""
    project, _, task = name.partition(":")
    known = task_names()
    if name not in known:
        raise UsageError(f"--task={name}: there is no such task; there is: {', '.join(known)}")
    return importlib.import_module(f"projects.{project}.design").TASKS[task]()


def task_names() -> list[str]:
    """All tasks that projects offer, as `project:task`."""
    projects = importlib.import_module("projects")
    names = []
    for module in pkgutil.iter_modules(projects.__path__):
        name = f"projects.{module.name}.design"
        if importlib.util.find_spec(name) is not None:
            names += [f"{module.name}:{task}" for task in importlib.import_module(name).TASKS]
    return names


def make_features(task: RewardTask) -> Callable[[State, State, jax.Array], jax.Array]:
    """Builds `(before, after, action) -> features [F]`, clipped to their ranges, in the table's
    order."""
    names = list(task.features)
    low = np.array([task.features[name].low for name in names], np.float32)
    high = np.array([task.features[name].high for name in names], np.float32)

    def features(before: State, after: State, action: Any) -> jax.Array:
        values = task.measure(before, after, action)
        if set(values) != set(names):
            wrong = sorted(set(values) ^ set(names))
            raise ValueError(f"{task.name}: measured and published features differ in {wrong}")
        stacked = jax.numpy.stack([jax.numpy.float32(values[name]) for name in names])
        return jax.numpy.clip(stacked, low, high)

    return features
