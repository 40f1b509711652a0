"""QR-SAC, the algorithm of GT Sophy (Wurman et al. 2022, Nature 602:223-228), and scalar SAC.

Soft actor-critic with twin quantile critics, n-step targets (folded by the replay) and a fixed or
learned temperature. Which observation entries the actor and the critics read is configuration, so
an asymmetric actor-critic is the same code. `num_quantiles=1` is plain SAC with a squared loss.
The actor may be asked to decode observation entries that only the critics read from its last hidden
layer, as Sony's pseudo-code for Ace does (Durr et al. 2026, Nature 652:886-891): an auxiliary loss.
Where a task has a model of what its actions lead to, the critics may read that too (`Afterstate`).
What stays the same within an episode, such as the description of a car, may enter all networks
behind their trunk, which then has the dynamic state to itself.

Deviations from the paper, all switchable: layer norm and a learned temperature are offered;
observations are standardised by running statistics of the sampled batches, frozen after a while;
there is no dropout. Actor and critics step at once, both from the critics as they were. An actor
may be asked for like actions in like states (`smoothness`), the spatial term of Mysore et al. 2021
(arXiv 2012.06644): without it, errors of the critics make some actors swing from bound to bound.
Re-initialisation follows Nikishin et al. 2022 (arXiv 2205.07802).
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from core_rl.distributions import TanhNormal
from core_rl.errors import UserError
from core_rl.losses import (
    actor_loss,
    quantile_huber_loss,
    smaller_mean,
    soft_target,
    squared_loss,
    temperature_loss,
)
from core_rl.networks import ACTIVATIONS, Inputs, average_outputs, make_ensemble, make_mlp
from core_rl.running_stats import RunningStats, forget, init_stats, normalise, update_stats
from core_rl.types import Afterstate, Agent, Batch, Key, Metrics, Obs, Params


@dataclasses.dataclass(frozen=True)
class QRSACConfig:
    """Sizes and switches are static; the numbers in `Hypers` are array leaves of the state."""

    actor_obs: tuple[str, ...] = ("state",)  # observation entries that the actor reads
    critic_obs: tuple[str, ...] = ("state",)  # observation entries that the critics read
    static_obs: tuple[str, ...] = ()  # fixed within an episode: encoded apart, join after the trunk
    static_hidden: tuple[int, ...] = (64,)  # widths of the encoder of static_obs
    afterstate: bool = False  # whether critics read what the task's model says an action leads to
    reconstruct_obs: tuple[str, ...] = ()  # entries that the actor's last hidden layer must decode
    reconstruct_weight: float = 1.0  # in the actor's loss, of their mean squared error
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers of actor and critics
    activation: str = "relu"  # relu, silu, tanh or elu
    layer_norm: bool = False  # layer norm before each hidden activation
    num_critics: int = 2  # critics in the ensemble; the smallest mean is used
    num_quantiles: int = 32  # quantiles per critic; 1 is scalar SAC with a squared loss
    n_step: int = 7  # steps folded into one target
    discount: float = 0.9896  # per step
    discount_final: float = 0.0  # after the annealing, to which the horizon grows; 0 keeps it
    actor_lr: float = 3e-4  # Adam's learning rate of the actor
    critic_lr: float = 3e-4  # Adam's learning rate of the critics
    alpha_lr: float = 3e-4  # Adam's learning rate of the temperature
    lr_decay_updates: int = 0  # updates over which learning rates fall; 0 keeps them
    lr_decay_power: float = 1.0  # of the share of the decay that is left: 1 is linear, 2 is sooner
    lr_final: float = 0.1  # share of the learning rates left after the decay
    learn_alpha: bool = True  # whether the temperature follows the target entropy
    alpha: float = 0.01  # temperature: fixed, or where learning it begins
    target_entropy_per_dim: float = -1.0  # [nats] per action entry
    target_entropy_final: float | None = None  # after the annealing; none keeps it [nats]
    anneal_updates: int = 0  # updates over which discount and target entropy become their final
    target_mix: float = 0.005  # share of the online critic mixed into the target per update
    actor_average: float = 0.0  # decay of the averaged actor that acts greedily; 0 is off
    max_grad_norm: float = 0.0  # global gradient norm above which it is scaled down; 0 is off
    smoothness: float = 0.0  # in the actor's loss, of how much its mode differs for like inputs
    smoothness_noise: float = 0.1  # spread of like inputs, in standard deviations of each entry
    normalise_obs: bool = True  # standardise observations by running statistics
    raw_obs: tuple[str, ...] = ()  # but not these entries, which smoothness leaves alone, too
    normalise_updates: int = 20_000  # updates after which those statistics freeze
    reset_interval: int = 0  # updates between re-initialisations of all networks; 0 is never
    batch_size: int = 256  # transitions per update
    population: tuple[tuple[str, float], ...] = ()  # actor_lr:1e-4,actor_lr:3e-4 are two members

    def __post_init__(self):
        self._check_population()
        positive = "num_critics num_quantiles n_step batch_size normalise_updates".split()
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in "actor_lr critic_lr alpha lr_decay_power smoothness_noise".split():
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        not_negative = "alpha_lr max_grad_norm reset_interval lr_decay_updates anneal_updates"
        for name in [*not_negative.split(), "reconstruct_weight", "smoothness"]:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in "discount target_mix lr_final".split():
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        for name in "actor_average discount_final".split():
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.discount_final and self.discount == 1:
            raise ValueError("discount must be below 1 with discount_final, got 1.0")
        anneals = self.discount_final > 0 or self.target_entropy_final is not None
        if anneals != (self.anneal_updates > 0):
            raise ValueError(
                "anneal_updates must be positive with discount_final or target_entropy_final, and "
                f"0 without them, got {self.anneal_updates}"
            )
        for name in "hidden static_hidden".split():
            if min(getattr(self, name), default=0) < 1:
                raise ValueError(f"{name} must be positive widths, got {getattr(self, name)}")
        if self.static_obs and len(self.hidden) < 2:
            raise ValueError(
                f"hidden must be two widths or more with static_obs, got {self.hidden}"
            )
        if self.activation not in ACTIVATIONS:
            allowed = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation must be one of {allowed}, got {self.activation!r}")
        for name in "actor_obs critic_obs".split():
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one observation entry")
            for entry in self.static_obs:
                if entry in getattr(self, name):
                    raise ValueError(f"static_obs names {entry!r}, which {name} names too")
        used = self.actor_obs + self.critic_obs + self.static_obs + self.reconstruct_obs
        for entry in self.raw_obs:
            if entry not in used:
                raise ValueError(
                    f"raw_obs names {entry!r}, which nothing reads; read are "
                    f"{', '.join(dict.fromkeys(used))}"
                )

    def _check_population(self):
        for entry in self.population:
            name, value = entry
            if name not in Hypers._fields:
                raise ValueError(
                    f"population may vary {', '.join(Hypers._fields)}, which are numbers of a "
                    f"compiled program, got {name!r}"
                )
            if self.population.count(entry) > 1:
                raise ValueError(f"population names {name}:{value:g} twice")
        if self.population:
            members_of(self)  # each of which must be allowed alone


def members_of(config: QRSACConfig) -> list[QRSACConfig]:
    """What trains side by side: a configuration per combination of the population's numbers, the
    last name's varying fastest; the configuration itself where there is no population."""
    return [
        dataclasses.replace(config, population=(), **changes)  # pyright: ignore[reportArgumentType]
        for changes in combinations(config.population)
    ]


def combinations(population: Iterable[tuple[str, float]]) -> list[dict[str, float]]:
    """The numbers of each member of a population, by their names."""
    values: dict[str, list[float]] = {}
    for name, value in population:
        values.setdefault(name, []).append(value)
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]


class Hypers(NamedTuple):
    """Numbers that may differ between members of a population without a new compilation."""

    actor_lr: jax.Array  # []
    critic_lr: jax.Array  # []
    alpha_lr: jax.Array  # []
    discount: jax.Array  # []
    target_entropy_per_dim: jax.Array  # []

    @classmethod
    def from_config(cls, config: QRSACConfig) -> "Hypers":
        return cls(*(jnp.asarray(getattr(config, name), jnp.float32) for name in cls._fields))


@struct.dataclass
class Networks:
    """Everything that a re-initialisation replaces; what `deploy` strips is None."""

    actor: Params
    critics: Params  # [C, ...]
    target_critics: Params  # [C, ...]
    actor_average: Params  # decayed average of the actor; None where that is off
    actor_opt: optax.OptState | None
    critics_opt: optax.OptState | None


@struct.dataclass
class QRSACState:
    networks: Networks
    log_alpha: jax.Array  # []
    alpha_opt: optax.OptState | None
    obs_stats: dict[str, RunningStats]  # one per observation entry in use
    hypers: Hypers
    num_updates: jax.Array  # [] int32


def make_qr_sac(
    config: QRSACConfig, action_size: int, afterstate: Afterstate | None = None
) -> Agent:
    """Builds the agent for actions `[A]` in [-1, 1]; see `core_rl.types.Agent`.

    Args:
      afterstate: what `config.afterstate` needs to know of the task.

    Raises UserError when the task has no afterstate that is asked for; `init` does when the
    environment lacks an observation entry that is named.
    """
    if not config.afterstate:
        afterstate = None
    elif afterstate is None:
        raise UserError(
            "--agent.afterstate=true: there is no model of what these actions lead to; "
            "only false is allowed here"
        )
    distributional = config.num_quantiles > 1
    critic_loss_fn = quantile_huber_loss if distributional else squared_loss
    # What each network reads: static entries first, as `make_mlp` asks.
    actor_entries = config.static_obs + config.actor_obs
    critic_entries = config.static_obs + config.critic_obs
    used_entries = tuple(dict.fromkeys(actor_entries + critic_entries + config.reconstruct_obs))

    adam = optax.scale_by_adam()
    if config.max_grad_norm > 0:
        adam = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)
    alpha_adam = optax.scale_by_adam()

    def networks_for(obs_stats: dict[str, RunningStats]):
        def sizes(entries):
            return tuple(obs_stats[name].mean.shape[-1] for name in entries)

        make_body = functools.partial(
            make_mlp,
            hidden=config.hidden,
            activation=config.activation,
            layer_norm=config.layer_norm,
            num_static=len(config.static_obs),
            static_hidden=config.static_hidden,
        )
        # What the actor decodes is more outputs of its last layer.
        decoded = sum(sizes(config.reconstruct_obs))
        actor = make_body(sizes(actor_entries), 2 * action_size + decoded)
        critic_inputs = (*sizes(critic_entries), action_size)
        if afterstate is not None:
            critic_inputs = (*critic_inputs, afterstate.size)
        quantiles, mean = (
            make_ensemble(make_body(critic_inputs, outputs), config.num_critics)
            for outputs in (config.num_quantiles, 1)
        )
        return actor, quantiles, mean

    def read(entries: tuple[str, ...], stats: dict[str, RunningStats], obs: Obs) -> Inputs:
        """The named entries, standardised where they are to be, each `[..., F]`."""
        return tuple(
            normalise(stats[name], obs[name])
            if config.normalise_obs and name not in config.raw_obs
            else obs[name]
            for name in entries
        )

    def init_networks(key: Key, obs_stats: dict[str, RunningStats]) -> Networks:
        actor_key, critic_key = jax.random.split(key)
        actor_network, critics_network, _ = networks_for(obs_stats)
        actor = actor_network.init(actor_key)
        critics = critics_network.init(critic_key)
        return Networks(
            actor=actor,
            critics=critics,
            target_critics=jax.tree.map(jnp.copy, critics),
            actor_average=jax.tree.map(jnp.copy, actor) if config.actor_average else None,
            actor_opt=adam.init(actor),
            critics_opt=adam.init(critics),
        )

    def init(key: Key, example_obs: Obs, hypers: Hypers | None = None) -> QRSACState:
        """`example_obs` is one unbatched observation; only its shapes are read."""
        for name in used_entries:
            if name not in example_obs:
                raise UserError(
                    f"the environment has no observation entry {name!r}; "
                    f"it offers {', '.join(sorted(example_obs))}"
                )
        obs_stats = {name: init_stats(example_obs[name].shape[-1]) for name in used_entries}
        log_alpha = jnp.log(jnp.asarray(config.alpha, jnp.float32))
        return QRSACState(
            networks=init_networks(key, obs_stats),
            log_alpha=log_alpha,
            alpha_opt=alpha_adam.init(log_alpha),
            obs_stats=obs_stats,
            hypers=Hypers.from_config(config) if hypers is None else hypers,
            num_updates=jnp.zeros((), jnp.int32),
        )

    def distribution(params: Params, stats: dict[str, RunningStats], obs: Obs) -> TanhNormal:
        actor_network, _, _ = networks_for(stats)
        output = actor_network.apply(params, read(actor_entries, stats, obs))
        return TanhNormal.from_output(output[..., : 2 * action_size])

    def carry(num_envs: int) -> tuple[()]:
        del num_envs
        return ()

    def act(state: QRSACState, carry, obs: Obs, key: Key):
        params, stats = state.networks.actor, state.obs_stats
        action, _ = distribution(params, stats, obs).sample_and_log_prob(key)
        return action, carry

    def policy(state: QRSACState, obs: Obs) -> TanhNormal:
        networks = state.networks
        params = networks.actor_average if config.actor_average else networks.actor
        return distribution(params, state.obs_stats, obs)

    def greedy(state: QRSACState, carry, obs: Obs):
        return policy(state, obs).mode(), carry

    def discount(state: QRSACState) -> jax.Array:
        if not config.discount_final:
            return state.hypers.discount
        # Evenly in orders of magnitude of the horizon 1 / (1 - discount).
        first, last = jnp.log(1.0 - state.hypers.discount), jnp.log(1.0 - config.discount_final)
        return 1.0 - jnp.exp(first + (last - first) * _share(state, config.anneal_updates))

    def deploy(state: QRSACState) -> QRSACState:
        networks = Networks(
            actor=None if config.actor_average else state.networks.actor,
            critics=None,
            target_critics=None,
            actor_average=state.networks.actor_average,
            actor_opt=None,
            critics_opt=None,
        )
        return QRSACState(
            networks=networks,
            log_alpha=None,  # pyright: ignore[reportArgumentType]
            alpha_opt=None,
            obs_stats=state.obs_stats,
            hypers=None,  # pyright: ignore[reportArgumentType]
            num_updates=None,  # pyright: ignore[reportArgumentType]
        )

    def adopt(state: QRSACState, trained: QRSACState) -> QRSACState:
        """Another run's networks, and its statistics and temperature where this run learns them,
        under this run's hyper-parameters and with its schedules from the start."""
        adopted = dataclasses.replace(
            trained,
            hypers=state.hypers,
            num_updates=state.num_updates,
            # What was constant in the other run need not be so in this one.
            obs_stats={name: forget(stats) for name, stats in trained.obs_stats.items()},
        )
        if config.learn_alpha:
            return adopted
        return dataclasses.replace(adopted, log_alpha=state.log_alpha, alpha_opt=state.alpha_opt)

    def update(state: QRSACState, batch: Batch, key: Key) -> tuple[QRSACState, Metrics]:
        chex.assert_rank([batch.n_step_reward, batch.bootstrap_discount], 1)
        chex.assert_rank(batch.action, 2)
        target_key, actor_key, reset_key = jax.random.split(key, 3)
        like_key = jax.random.fold_in(actor_key, 1)  # the other keys stay what they were
        networks, hypers = state.networks, state.hypers
        stats = state.obs_stats
        if config.normalise_obs:
            learning = state.num_updates < config.normalise_updates
            stats = {name: update_stats(stats[name], batch.obs[name], learning) for name in stats}
        actor_network, critics_network, mean_network = networks_for(stats)
        actor_input = read(actor_entries, stats, batch.obs)
        critic_input = read(critic_entries, stats, batch.obs)
        alpha = jnp.exp(state.log_alpha)
        lr_scale = 1.0
        if config.lr_decay_updates:
            left = (1.0 - _share(state, config.lr_decay_updates)) ** config.lr_decay_power
            lr_scale = config.lr_final + (1.0 - config.lr_final) * left

        def with_action(inputs: Inputs, obs: Obs, action: jax.Array) -> Inputs:
            """All that the critics read: `inputs` of the observation, the action `[B, A]`, and what
            it leads to."""
            if afterstate is None:
                return (*inputs, action)
            return (*inputs, action, jax.vmap(afterstate.features)(obs, action))

        def critic_values(params: Params, inputs: Inputs) -> jax.Array:
            """`[B, C, Q]`"""
            return jnp.swapaxes(critics_network.apply(params, inputs), 0, 1)

        def apply_gradient(optimiser, params, grads, opt_state, learning_rate):
            updates, opt_state = optimiser.update(grads, opt_state, params)
            step = -learning_rate * lr_scale
            return jax.tree.map(lambda p, u: p + step * u, params, updates), opt_state

        next_action, next_log_prob = distribution(
            networks.actor, stats, batch.next_obs
        ).sample_and_log_prob(target_key)
        next_critic_input = read(critic_entries, stats, batch.next_obs)
        next_values = critic_values(
            networks.target_critics, with_action(next_critic_input, batch.next_obs, next_action)
        )
        targets = jax.vmap(soft_target, in_axes=(0, 0, 0, 0, None))(
            batch.n_step_reward,
            batch.bootstrap_discount,
            jax.vmap(smaller_mean)(next_values),
            next_log_prob,
            alpha,
        )

        taken_input = with_action(critic_input, batch.obs, batch.action)

        def critics_loss(params: Params):
            values = critic_values(params, taken_input)
            losses = jax.vmap(jax.vmap(critic_loss_fn, in_axes=(0, None)))(values, targets)
            return jnp.mean(jnp.sum(losses, axis=1)), jnp.mean(values)

        (critic_loss, value_mean), critic_grads = jax.value_and_grad(critics_loss, has_aux=True)(
            networks.critics
        )
        critics, critics_opt = apply_gradient(
            adam, networks.critics, critic_grads, networks.critics_opt, hypers.critic_lr
        )

        # The critics as they were, so that what they make of the observations is computed once.
        mean_critics = average_outputs(networks.critics)

        def policy_loss(params: Params):
            output = actor_network.apply(params, actor_input)
            taken = TanhNormal.from_output(output[:, : 2 * action_size])
            action, log_prob = taken.sample_and_log_prob(actor_key)
            means = mean_network.apply(mean_critics, with_action(critic_input, batch.obs, action))
            values = jnp.swapaxes(means, 0, 1)  # [B, C, 1]
            losses = jax.vmap(actor_loss, in_axes=(0, 0, None))(values, log_prob, alpha)
            decoding_loss = jnp.zeros(())
            if config.reconstruct_obs:
                hidden = jnp.concatenate(read(config.reconstruct_obs, stats, batch.obs), axis=-1)
                decoding_loss = jnp.mean((output[:, 2 * action_size :] - hidden) ** 2)
            roughness = jnp.zeros(())
            if config.smoothness:
                keys = jax.random.split(like_key, len(actor_input))
                like = tuple(
                    entry
                    if name in config.raw_obs
                    else entry + config.smoothness_noise * jax.random.normal(key, entry.shape)
                    for name, entry, key in zip(actor_entries, actor_input, keys, strict=True)
                )
                other = TanhNormal.from_output(
                    actor_network.apply(params, like)[:, : 2 * action_size]
                )
                roughness = jnp.mean(jnp.sum((other.mode() - taken.mode()) ** 2, axis=-1))
            loss = jnp.mean(losses)
            total = loss + config.reconstruct_weight * decoding_loss + config.smoothness * roughness
            return total, (loss, decoding_loss, roughness, log_prob)

        (_, told), actor_grads = jax.value_and_grad(policy_loss, has_aux=True)(networks.actor)
        loss, decoding_loss, roughness, log_prob = told
        actor, actor_opt = apply_gradient(
            adam, networks.actor, actor_grads, networks.actor_opt, hypers.actor_lr
        )

        log_alpha, alpha_opt = state.log_alpha, state.alpha_opt
        if config.learn_alpha:
            target_entropy = hypers.target_entropy_per_dim
            if config.target_entropy_final is not None:
                change = config.target_entropy_final - target_entropy
                target_entropy += change * _share(state, config.anneal_updates)
            target_entropy *= action_size
            alpha_grad = jax.grad(
                lambda x: jnp.mean(
                    jax.vmap(temperature_loss, in_axes=(None, 0, None))(x, log_prob, target_entropy)
                )
            )(log_alpha)
            log_alpha, alpha_opt = apply_gradient(
                alpha_adam, log_alpha, alpha_grad, alpha_opt, hypers.alpha_lr
            )

        new_networks = Networks(
            actor=actor,
            critics=critics,
            target_critics=_mix(networks.target_critics, critics, config.target_mix),
            actor_average=_mix(networks.actor_average, actor, 1.0 - config.actor_average)
            if config.actor_average
            else None,
            actor_opt=actor_opt,
            critics_opt=critics_opt,
        )
        num_updates = state.num_updates + 1
        if config.reset_interval:
            new_networks = jax.lax.cond(
                num_updates % config.reset_interval == 0,
                lambda: init_networks(reset_key, stats),
                lambda: new_networks,
            )
        metrics = {
            "critic_loss": critic_loss,
            "actor_loss": loss,
            "value": value_mean,
            "target": jnp.mean(targets),
            "entropy": -jnp.mean(log_prob),
            "alpha": alpha,
            "critic_grad_norm": optax.tree.norm(critic_grads),
            "actor_grad_norm": optax.tree.norm(actor_grads),
        }
        if config.reconstruct_obs:
            metrics["reconstruction_loss"] = decoding_loss
        if config.smoothness:
            metrics["roughness"] = roughness
        state = QRSACState(
            networks=new_networks,
            log_alpha=log_alpha,
            alpha_opt=alpha_opt,
            obs_stats=stats,
            hypers=hypers,
            num_updates=num_updates,
        )
        return state, metrics

    return Agent(init, carry, act, greedy, update, deploy, adopt, discount, policy)


def _mix(old: Params, new: Params, share: float) -> Params:
    return jax.tree.map(lambda a, b: a + share * (b - a), old, new)


def _share(state: QRSACState, num_updates: int) -> jax.Array:
    """How much [] of a change that takes `num_updates` is behind it."""
    return jnp.minimum(state.num_updates / num_updates, 1.0)
