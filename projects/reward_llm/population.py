"""Trains K rewards at once: the same learner on a leading axis of candidates.

The environment pays nothing. It stores the features of each step, and the rewards of what was just
collected are computed from them in a small function of their own before the updates that read them.
So the learner is compiled once for a whole search, whatever the rewards are. All candidates of a
population have the same random numbers: what differs between them is their reward.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from core_rl.env import Env, State, Wrapper, named_obs, observation_sizes
from core_rl.evaluate import make_evaluator
from core_rl.qr_sac import make_qr_sac
from core_rl.reward_task import Driver, RewardTask, make_features
from core_rl.train import TrainState, make_trainer, summed_up
from core_rl.types import Key, Metrics
from projects.reward_llm.compile import Bank

ENTRY = "features"  # the observation entry that holds them; no network reads it
REWARD_CLIP = 10.0  # largest |reward| of a step that a learner sees, of all candidates alike


class Featured(Wrapper):
    """An environment whose observation tells the features `[F]` of the step that led to it.

    Args:
      reward: `features [F] -> reward []`; without it nothing is paid.
    """

    def __init__(
        self,
        task: RewardTask,
        env: Env,
        reward: Callable[[Array], Array] | None = None,
    ):
        super().__init__(env)
        self._features = make_features(task)
        self._reward = reward or (lambda features: jnp.zeros(()))
        self._size = len(task.features)

    def reset(self, rng: Key) -> State:
        state = self.env.reset(rng)
        return state.replace(obs={**named_obs(state), ENTRY: jnp.zeros(self._size)})  # pyright: ignore[reportAttributeAccessIssue]

    def step(self, state: State, action: Array) -> State:
        after = self.env.step(state, action)
        features = self._features(state, after, action)
        return after.replace(  # pyright: ignore[reportAttributeAccessIssue]
            obs={**named_obs(after), ENTRY: features},
            reward=clipped(self._reward(features)),
        )

    @property
    def observation_size(self) -> dict[str, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return observation_sizes(self)


def clipped(reward: Array) -> Array:
    """What a learner sees of a reward: finite and bounded."""
    return jnp.clip(jnp.where(jnp.isfinite(reward), reward, 0.0), -REWARD_CLIP, REWARD_CLIP)


class Tested(NamedTuple):
    """K policies in the task's test episodes; `T` steps, `N` episodes."""

    metrics: dict[str, np.ndarray]  # [K]
    features: np.ndarray  # [K, T, N, F], 0 after the end of an episode
    alive: np.ndarray  # [K, T, N] bool: whether the step belongs to the episode


class Population(NamedTuple):
    init: Callable[[Sequence[Key]], TrainState]  # (K keys) -> state [K]
    # (state [K], bank, weights [K, C]) -> the rewards of all that is stored, computed anew
    relabel: Callable[[TrainState, Bank, Array], TrainState]
    # (state [K], bank, weights [K, C]) -> state after one epoch, metrics [K]; the state is donated
    epoch: Callable[[TrainState, Bank, Array], tuple[TrainState, Metrics]]
    test: Callable[[TrainState, Key], Tested]
    updates_per_epoch: int
    env_steps_per_epoch: int  # of each candidate


def make_population(task: RewardTask, num_epochs: int) -> Population:
    """The learner of a task for any number of candidates; compiled once for each number.

    The learning rates fall over `num_epochs`, the whole training of a candidate.
    """
    env = Featured(task, task.env)
    test_env = Featured(task, task.test_env)
    config = task.train
    learner = dataclasses.replace(
        task.agent, lr_decay_updates=num_epochs * config.updates_per_epoch
    )
    agent = make_qr_sac(learner, env.action_size, task.afterstate())
    trainer = make_trainer(
        env,
        agent,
        config,
        episode_length=task.episode_length,
        batch_size=task.agent.batch_size,
        n_step=task.agent.n_step,
    )
    evaluator = make_evaluator(
        test_env,
        agent,
        task.test_episodes,
        task.test_length,
        lambda state: named_obs(state)[ENTRY],
    )

    def collect(state: TrainState) -> tuple[TrainState, Key, Metrics]:
        next_key, act_key, learn_key = jax.random.split(state.key, 3)
        keys = jax.random.split(act_key, config.steps_per_epoch)
        state, experience = jax.lax.scan(trainer.collect, state, keys)
        metrics = summed_up(experience)
        return dataclasses.replace(state, key=next_key), learn_key, metrics

    def learn(state: TrainState, key: Key) -> tuple[TrainState, Metrics]:
        keys = jax.random.split(key, config.steps_per_epoch)
        state, losses = jax.lax.scan(trainer.learn, state, keys)
        metrics = {f"train/{name}": jnp.mean(value) for name, value in losses.items()}
        return dataclasses.replace(state, epoch=state.epoch + 1), metrics

    def test_one(agent_state: Any, key: Key) -> tuple[Metrics, Any, Array]:
        totals, features = evaluator(agent_state, key)
        alive = jnp.asarray(jnp.arange(task.test_length)[:, None] < totals["steps"])
        return task.metrics(totals), jnp.where(alive[..., None], features, 0.0), alive

    init_all = jax.jit(jax.vmap(trainer.init))
    collect_all = jax.jit(jax.vmap(collect), donate_argnums=0)
    learn_all = jax.jit(jax.vmap(learn), donate_argnums=0)
    test_all = jax.jit(jax.vmap(test_one, in_axes=(0, None)))
    relabellers: dict[Any, Callable[..., Array]] = {}

    def relabel(state: TrainState, bank: Bank, weights: Array, num_rows: int) -> TrainState:
        """The rewards of the newest rows of the replay, from what is stored of their steps."""
        storage = state.replay.storage
        capacity = storage.reward.shape[1] // config.num_envs

        def rewards(reward: Array, features: Array, total_rows: Array, weights: Array) -> Array:
            rows = (total_rows[0] - num_rows + jnp.arange(num_rows)) % capacity
            index = (rows[:, None] * config.num_envs + jnp.arange(config.num_envs)).ravel()
            total, _ = bank.reward(features[:, index], weights)
            return reward.at[:, index].set(clipped(total))

        key = (bank.reward, num_rows)
        if key not in relabellers:
            relabellers[key] = jax.jit(rewards, donate_argnums=0)
        reward = relabellers[key](
            storage.reward, storage.next_obs[ENTRY], state.replay.num_rows, weights
        )
        storage = dataclasses.replace(storage, reward=reward)
        return dataclasses.replace(state, replay=dataclasses.replace(state.replay, storage=storage))

    def relabel_all(state: TrainState, bank: Bank, weights: Array) -> TrainState:
        capacity = state.replay.storage.reward.shape[1] // config.num_envs
        return relabel(state, bank, weights, min(int(state.replay.num_rows[0]), capacity))

    def epoch(state: TrainState, bank: Bank, weights: Array) -> tuple[TrainState, Metrics]:
        state, key, experience = collect_all(state)
        state = relabel(state, bank, weights, config.steps_per_epoch)
        state, losses = learn_all(state, key)
        return state, {**experience, **losses}

    def test(state: TrainState, key: Key) -> Tested:
        metrics, features, alive = jax.device_get(test_all(state.agent, key))
        return Tested({name: np.asarray(v) for name, v in metrics.items()}, features, alive)

    return Population(
        init=lambda keys: init_all(jnp.stack(list(keys))),
        relabel=relabel_all,
        epoch=epoch,
        test=test,
        updates_per_epoch=config.updates_per_epoch,
        env_steps_per_epoch=config.env_steps_per_epoch,
    )


def of_lanes(state: TrainState, lanes: Sequence[int]) -> TrainState:
    """The candidates `lanes` of a population."""
    where = np.array(lanes)
    return jax.tree.map(lambda leaf: leaf[where], state)


def drive(task: RewardTask, driver: Driver, keys: Key, num_steps: int) -> tuple[np.ndarray, ...]:
    """Episodes of a fixed driver: features `[N, T, F]`, 0 after their ends, and alive `[N, T]`."""
    env = Featured(task, task.test_env)

    def episode(key: Key) -> tuple[Array, Array]:
        start_key, act_key = jax.random.split(key)

        def step(carry: tuple[State, Array], key: Key):
            state, alive = carry
            after = env.step(state, driver.act(state, key))
            features = jnp.where(alive, named_obs(after)[ENTRY], 0.0)
            return (after, alive & (after.done < 0.5)), (features, alive)

        start = (env.reset(start_key), jnp.asarray(True))
        return jax.lax.scan(step, start, jax.random.split(act_key, num_steps))[1]

    return jax.device_get(jax.jit(jax.vmap(episode))(keys))
