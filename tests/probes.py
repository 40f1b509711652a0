"""Environments whose optimal values are known, and one that counts how often it is traced.

The probes isolate one ability of an agent each, in the manner of Jones, "Debugging RL, without the
agonizing pain" (2021); `clock` is new: it fails wherever a truncated episode bootstraps from
anything but its true last observation.
"""

from typing import Any

import jax
import jax.numpy as jnp

from core_rl.env import Env, State, named_obs

PROBES = ("constant", "terminal", "observation", "privileged", "action", "clock")
# Steps after which the episodes of the probes are truncated; the discount of the values below.
PROBE_LENGTH, PROBE_DISCOUNT = 5, 0.9

# For jit: compiling costs more than running in these tests, and less optimisation halves it.
QUICK_COMPILE: dict[str, Any] = {"xla_backend_optimization_level": 1}


class Plain(Env):
    """What brax's interface asks of every environment and nothing here reads."""

    @property
    def observation_size(self) -> int:
        return 0

    @property
    def action_size(self) -> int:
        return 1

    @property
    def backend(self) -> str:
        return "none"


class ProbeEnv(Plain):
    """The probe number `probe` of `PROBES`, which may be a tracer: one program trains them all.

    Observation: `state` `[1]` and `privileged` `[1]`. With a discount of 0.9 the values are

    - constant: reward 1 for ever: 1 / (1 - 0.9) = 10;
    - terminal: reward 1 and the end: 1;
    - observation: reward `state`, +1 or -1, and the end;
    - privileged: reward `privileged`, +1 or -1, and the end, while `state` is 0;
    - action: reward 1 - (action - state / 2)^2 and the end: 1, at an action of +0.5 or -0.5;
    - clock: reward x = `state`, which begins in [0, 1] and grows by 0.2 a step for ever:
      sum_k 0.9^k (x + 0.2 k) = 10 x + 0.2 * 0.9 / (1 - 0.9)^2 = 10 x + 18.
    """

    def __init__(self, probe: Any):
        self.probe = probe

    def is_probe(self, *names: str) -> jax.Array:
        numbers = jnp.array([PROBES.index(name) for name in names])
        return jnp.any(self.probe == numbers)

    def reset(self, rng: jax.Array) -> State:
        sign_key, start_key = jax.random.split(rng)
        sign = jax.random.rademacher(sign_key, (1,), jnp.float32)
        start = jax.random.uniform(start_key, (1,))
        state = jnp.where(self.is_probe("observation", "action"), sign, 0.0)
        state = jnp.where(self.is_probe("clock"), start, state)
        privileged = jnp.where(self.is_probe("privileged"), sign, 0.0)
        obs = {"state": state, "privileged": privileged}
        return State(None, obs, reward=jnp.zeros(()), done=jnp.zeros(()))

    def step(self, state: State, action: jax.Array) -> State:
        value, privileged = named_obs(state)["state"], named_obs(state)["privileged"]
        rewards = {
            "constant": 1.0,
            "terminal": 1.0,
            "observation": value[0],
            "privileged": privileged[0],
            "action": 1.0 - (action[0] - 0.5 * value[0]) ** 2,
            "clock": value[0],
        }
        reward = jnp.stack([jnp.asarray(rewards[name]) for name in PROBES])[self.probe]
        value = value + jnp.where(self.is_probe("clock"), 0.2, 0.0)
        done = jnp.where(self.is_probe("constant", "clock"), 0.0, 1.0)
        obs = {"state": value, "privileged": privileged}
        return State(None, obs, reward=reward, done=done)


class EpisodeEnv(Plain):
    """Episodes that tell where they are: `state` is `[identity, steps so far]`.

    The identity, drawn at each reset, is in [0, 1); an episode terminates by itself after
    `1 + floor(identity * max_steps)` steps. The reward is the steps so far plus the action.
    """

    def __init__(self, max_steps: int):
        self.max_steps = max_steps

    def reset(self, rng: jax.Array) -> State:
        obs = jnp.array([jax.random.uniform(rng), 0.0])
        return State(None, obs, jnp.zeros(()), jnp.zeros(()), metrics={"clock": jnp.zeros(())})

    def step(self, state: State, action: jax.Array) -> State:
        identity, steps = named_obs(state)["state"] + jnp.array([0.0, 1.0])
        done = (steps >= 1.0 + jnp.floor(identity * self.max_steps)).astype(jnp.float32)
        obs = jnp.stack([identity, steps])
        return State(None, obs, reward=steps + action[0], done=done, metrics={"clock": steps})


class CountingEnv(EpisodeEnv):
    """Counts the Python calls of `reset` and `step`, one per tracing under jit."""

    def __init__(self, max_steps: int):
        super().__init__(max_steps)
        self.num_resets = 0
        self.num_steps = 0

    def reset(self, rng: jax.Array) -> State:
        self.num_resets += 1
        return super().reset(rng)

    def step(self, state: State, action: jax.Array) -> State:
        self.num_steps += 1
        return super().step(state, action)
