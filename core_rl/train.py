"""The training loop as two pure functions, to be jitted, vmapped over seeds and donated.

One epoch is one `lax.scan`: act, step the environments, insert, then a few updates on fresh
samples. Nothing leaves the device inside an epoch; its metrics are means over the epoch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from core_rl.env import Env, EnvSlots, State, example_obs, make_env_loop
from core_rl.errors import UserError
from core_rl.replay import ReplayState, make_replay
from core_rl.types import Agent, Hindsight, Key, Metrics, Trainer, Transition


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    num_envs: int = 64  # parallel environments
    steps_per_epoch: int = 128  # steps of all environments per epoch
    updates_per_step: int = 8  # updates after each step of all environments
    num_epochs: int = 200  # epochs of the run
    warmup_steps: int = 200  # steps of all environments with uniformly random actions, at first
    replay_capacity: int = 1_000_000  # transitions kept
    tables: tuple[tuple[str, float], ...] = ()  # replay tables and their shares of each batch
    hindsight: float = 0.0  # share of samples whose goal becomes what their episode achieved
    begin_from: str = ""  # a run whose agent, or a policy bundle whose actor, this one begins with

    def __post_init__(self):
        for name in "num_envs steps_per_epoch num_epochs warmup_steps replay_capacity".split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.updates_per_step < 0:
            raise ValueError(f"updates_per_step must not be negative, got {self.updates_per_step}")
        if not 0 <= self.hindsight <= 1:
            raise ValueError(f"hindsight must be in [0, 1], got {self.hindsight}")
        if self.replay_capacity < self.num_envs:
            raise ValueError(
                f"replay_capacity must be at least num_envs={self.num_envs}, "
                f"got {self.replay_capacity}"
            )

    @property
    def env_steps_per_epoch(self) -> int:
        return self.num_envs * self.steps_per_epoch

    @property
    def updates_per_epoch(self) -> int:
        return self.updates_per_step * self.steps_per_epoch


@struct.dataclass
class TrainState:
    """Everything that a run is; saving it is saving the run."""

    agent: Any
    carry: Any  # the policy's recurrent state, [R]
    replay: ReplayState
    slots: EnvSlots  # [N]
    key: Key
    epoch: jax.Array  # [] int32, epochs completed


def _table_names(
    env: Env, membership: Callable[[State], Mapping[str, jax.Array]] | None
) -> list[str]:
    """The replay tables that a task offers."""
    if membership is None:
        return []
    states = jax.eval_shape(jax.vmap(env.reset), jax.random.split(jax.random.key(0), 1))
    return list(jax.eval_shape(membership, states))


def make_trainer(
    env: Env,
    agent: Agent,
    config: TrainConfig,
    *,
    episode_length: int,
    batch_size: int,
    n_step: int,
    membership: Callable[[State], Mapping[str, jax.Array]] | None = None,
    hindsight: Hindsight | None = None,
) -> Trainer:
    """Builds `init` and `epoch`.

    Args:
      env: unbatched environment.
      agent: see `core_rl.types.Agent`.
      config: sizes of the loop.
      episode_length: steps after which an episode is truncated.
      batch_size: `B`, transitions per update.
      n_step: steps folded into one target.
      membership: given the state `[N]` that a step led to, says for each table of `config.tables`
        which of the `R` transitions belong to it, bool `[R]` (`core_rl.env`: one per agent).
      hindsight: what `config.hindsight` needs to know of the task.

    Raises UserError for tables that the task does not offer, or hindsight without a goal.
    """
    # An agent that does not fit the environment is refused before anything is made.
    jax.eval_shape(agent.init, jax.random.key(0), example_obs(env))
    names = [name for name, _ in config.tables]
    if names:
        offered = _table_names(env, membership)
        for name in names:
            if name not in offered:
                raise UserError(
                    f"--train.tables: there is no table {name!r}; this task offers "
                    f"{', '.join(offered) or 'none'}"
                )
        if sum(share for _, share in config.tables) > 1.0 + 1e-6:
            raise UserError(f"--train.tables: shares must sum to at most 1, got {config.tables}")
    if config.hindsight and hindsight is None:
        raise UserError(
            f"--train.hindsight={config.hindsight}: this task has no goal that it could replace"
        )
    env_loop = make_env_loop(env, episode_length, stagger=True)
    num_rows = env_loop.rows(config.num_envs)
    if config.replay_capacity < num_rows:
        raise UserError(
            f"--train.replay_capacity={config.replay_capacity}: must be at least the number of "
            f"agents in all environments, {num_rows}"
        )
    replay = make_replay(
        capacity=config.replay_capacity,
        num_envs=num_rows,
        batch_size=batch_size,
        n_step=n_step,
        table_shares=tuple(share for _, share in config.tables),
        hindsight=hindsight,
        hindsight_share=config.hindsight,
    )

    def table_mask(state: State) -> jax.Array | None:
        if membership is None or not names:
            return None
        belongs = membership(state)
        return jnp.stack([belongs[name] for name in names], axis=1)

    def random_step(carry: tuple[EnvSlots, ReplayState], key: Key):
        slots, memory = carry
        action = jax.random.uniform(key, (num_rows, env.action_size), minval=-1.0)
        slots, transition, info = env_loop.step(slots, action)
        return (slots, replay.add(memory, transition, table_mask(info.state))), None

    def init(key: Key, hypers: Any = None) -> TrainState:
        agent_key, env_key, warmup_key, run_key = jax.random.split(key, 4)
        obs = example_obs(env)
        no = jnp.zeros((), bool)
        memory = replay.init(
            Transition(
                obs=obs,
                action=jnp.zeros(env.action_size),
                reward=jnp.zeros(()),
                terminated=no,
                truncated=no,
                next_obs=obs,
            )
        )
        slots = env_loop.reset(env_key, config.num_envs)
        (slots, memory), _ = jax.lax.scan(
            random_step, (slots, memory), jax.random.split(warmup_key, config.warmup_steps)
        )
        return TrainState(
            agent=agent.init(agent_key, obs, hypers),
            carry=agent.carry(num_rows),
            replay=memory,
            slots=slots,
            key=run_key,
            epoch=jnp.zeros((), jnp.int32),
        )

    def collect(state: TrainState, key: Key) -> tuple[TrainState, Metrics]:
        action, carry = agent.act(state.agent, state.carry, env_loop.observe(state.slots), key)
        slots, transition, info = env_loop.step(state.slots, action)
        memory = replay.add(state.replay, transition, table_mask(info.state))
        ended = info.ended & info.counts

        def mean(values: jax.Array) -> jax.Array:
            return jnp.mean(values.reshape(num_rows), where=info.counts)

        experience = {
            **{name: mean(value) for name, value in info.state.metrics.items()},
            "reward": mean(transition.reward),
            "num_ended": jnp.sum(ended.astype(jnp.float32)),
            "ended_return": jnp.sum(jnp.where(ended, info.episode_return, 0.0)),
            "ended_steps": jnp.sum(jnp.where(ended, info.num_steps, 0).astype(jnp.float32)),
        }
        return dataclasses.replace(state, carry=carry, replay=memory, slots=slots), experience

    def learn(state: TrainState, key: Key) -> tuple[TrainState, Metrics]:
        gamma = agent.discount(state.agent)

        def one_update(learner: Any, key: Key) -> tuple[Any, Metrics]:
            sample_key, loss_key = jax.random.split(key)
            return agent.update(learner, replay.sample(state.replay, sample_key, gamma), loss_key)

        learner, losses = jax.lax.scan(
            one_update, state.agent, jax.random.split(key, config.updates_per_step)
        )
        return dataclasses.replace(state, agent=learner), jax.tree.map(jnp.mean, losses)

    def iteration(state: TrainState, key: Key) -> tuple[TrainState, tuple[Metrics, Metrics]]:
        act_key, update_key = jax.random.split(key)
        state, experience = collect(state, act_key)
        state, losses = learn(state, update_key)
        return state, (experience, losses)

    def epoch(state: TrainState) -> tuple[TrainState, Metrics]:
        """Metrics are means over the epoch: `train/*` of the updates, `rollout/*` of the steps.

        `rollout/episode_return` and `rollout/episode_steps` are NaN when no episode ended.
        """
        next_key, loop_key = jax.random.split(state.key)
        state, (experience, losses) = jax.lax.scan(
            iteration, state, jax.random.split(loop_key, config.steps_per_epoch)
        )
        metrics = {
            **summed_up(experience),
            **{f"train/{k}": jnp.mean(v) for k, v in losses.items()},
        }
        return dataclasses.replace(state, key=next_key, epoch=state.epoch + 1), metrics

    return Trainer(init=init, epoch=epoch, collect=collect, learn=learn)


def summed_up(experience: Metrics) -> Metrics:
    """What `Trainer.collect` told of some steps, leaves [T], as metrics `rollout/*` of them all.

    Returns and lengths of episodes are NaN when none ended.
    """
    num_ended = jnp.sum(experience["num_ended"])
    sums = "num_ended", "ended_return", "ended_steps"
    return {
        **{f"rollout/{k}": jnp.mean(v) for k, v in experience.items() if k not in sums},
        "rollout/episode_return": jnp.sum(experience["ended_return"]) / num_ended,
        "rollout/episode_steps": jnp.sum(experience["ended_steps"]) / num_ended,
    }
