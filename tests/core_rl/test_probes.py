"""Agents trained on environments whose optimal values are known (see `tests.probes`).

One program trains every probe under several seeds: the probe's number is data.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from core_rl.networks import make_ensemble, make_mlp
from core_rl.qr_sac import QRSACConfig, QRSACState, make_qr_sac
from core_rl.running_stats import normalise
from core_rl.train import TrainConfig, make_trainer
from tests.probes import PROBE_DISCOUNT, PROBE_LENGTH, PROBES, QUICK_COMPILE, ProbeEnv

NUM_SEEDS = 3
TRAIN = TrainConfig(
    num_envs=8, steps_per_epoch=375, updates_per_step=4, warmup_steps=40, replay_capacity=2000
)


def make_config(num_quantiles: int) -> QRSACConfig:
    return QRSACConfig(
        critic_obs=("state", "privileged"),
        hidden=(32,),
        num_quantiles=num_quantiles,
        n_step=3,
        discount=PROBE_DISCOUNT,
        actor_lr=3e-3,
        critic_lr=3e-3,
        learn_alpha=False,
        alpha=1e-5,  # the entropy bonus is far below the tolerances
        target_mix=0.05,
        batch_size=32,
        normalise_obs=False,
    )


class Trained(NamedTuple):
    """Agents of every probe and seed, `[P, S, ...]`."""

    config: QRSACConfig
    state: QRSACState

    def of(self, probe: str, seed: int) -> QRSACState:
        return jax.tree.map(lambda leaf: leaf[PROBES.index(probe), seed], self.state)

    def action(self, probe: str, seed: int, state: float, privileged: float = 0.0) -> float:
        obs = {"state": jnp.array([[state]]), "privileged": jnp.array([[privileged]])}
        action, _ = make_qr_sac(self.config, 1).greedy(self.of(probe, seed), (), obs)
        return float(action[0, 0])

    def value(self, probe: str, seed: int, state: float, privileged: float = 0.0) -> float:
        """The critics' mean at the greedy action."""
        agent = self.of(probe, seed)
        critic = make_mlp((1, 1, 1), self.config.num_quantiles, self.config.hidden)
        inputs = (
            normalise(agent.obs_stats["state"], jnp.array([state])),
            normalise(agent.obs_stats["privileged"], jnp.array([privileged])),
            jnp.array([self.action(probe, seed, state, privileged)]),
        )
        values = make_ensemble(critic, self.config.num_critics).apply(
            agent.networks.critics, inputs
        )
        return float(jnp.mean(values))


@pytest.fixture(scope="module", params=[16, 1], ids=["quantiles", "scalar"])
def trained(request):
    config = make_config(request.param)

    def run(probe, key):
        trainer = make_trainer(
            ProbeEnv(probe),
            make_qr_sac(config, action_size=1),
            TRAIN,
            episode_length=PROBE_LENGTH,
            batch_size=config.batch_size,
            n_step=config.n_step,
        )
        state, _ = trainer.epoch(trainer.init(key))
        return state.agent

    over_seeds = jax.vmap(run, in_axes=(None, 0))
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    over_probes = jax.jit(jax.vmap(over_seeds, in_axes=(0, None)), compiler_options=QUICK_COMPILE)
    return Trained(config, over_probes(jnp.arange(len(PROBES)), keys))


SEEDS = range(NUM_SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_constant_reward_is_worth_its_geometric_sum(trained, seed):
    assert trained.value("constant", seed, 0.0) == pytest.approx(10.0, abs=0.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_follows_a_termination(trained, seed):
    assert trained.value("terminal", seed, 0.0) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("seed", SEEDS)
def test_value_follows_the_observation(trained, seed):
    assert trained.value("observation", seed, 1.0) == pytest.approx(1.0, abs=0.03)
    assert trained.value("observation", seed, -1.0) == pytest.approx(-1.0, abs=0.03)


@pytest.mark.parametrize("seed", SEEDS)
def test_critic_alone_sees_the_privileged_entry(trained, seed):
    assert trained.value("privileged", seed, 0.0, 1.0) == pytest.approx(1.0, abs=0.03)
    assert trained.value("privileged", seed, 0.0, -1.0) == pytest.approx(-1.0, abs=0.03)
    blind = [trained.action("privileged", seed, 0.0, privileged) for privileged in (-1.0, 1.0)]
    assert blind[0] == blind[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_actor_finds_the_action_that_the_observation_asks_for(trained, seed):
    for sign in (1.0, -1.0):
        assert trained.action("action", seed, sign) == pytest.approx(0.5 * sign, abs=0.15)
        assert trained.value("action", seed, sign) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("seed", SEEDS)
def test_truncated_episodes_bootstrap_from_their_true_last_observation(trained, seed):
    # Bootstrapping from the observation of a reset instead gives 7 to 10 at every x.
    for x in (0.0, 0.4, 0.8, 1.2):
        assert trained.value("clock", seed, x) == pytest.approx(10.0 * x + 18.0, abs=1.0)
