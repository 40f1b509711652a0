"""Learned dynamics: an ensemble of networks that predicts how an observation vector changes.

The model that Residual-MPPI plans with where none is known (Wang et al. 2025, arXiv 2407.00898): a
network of the change, trained on the error of predictions that are fed back over several steps,
from rollouts of the policy with some noise on its actions, and fine-tuned on a few dozen episodes
of the changed task. Members differ by their first weights and by the order of their minibatches,
which is enough for their disagreement to mean something (Lakshminarayanan et al. 2017,
arXiv 1612.01474); each keeps the parameters with which it did best on the episodes held out.

Deviations from the paper: inputs and targets are standardised, by statistics of the training
episodes that fine-tuning keeps; SiLU stands for Mish.

Legend: `N` episodes, `T` steps of the longest, `F` observation entries, `A` action entries, `H`
steps over which predictions are fed back, `M` members. Errors are in units of an entry's *typical
change*, the standard deviation of its one-step change over the training episodes: at 1 a one-step
prediction is as bad as always predicting the mean change.
"""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from core_rl import flags
from core_rl.episodes import Episodes, concat_entries
from core_rl.errors import UserError, storage_errors
from core_rl.networks import ACTIVATIONS, make_ensemble, make_mlp
from core_rl.tracking import write_atomically
from core_rl.types import Key, Obs, Params

# Spread that float32 numbers have by rounding alone, relative to their size.
ROUNDING = 4 * float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class DynamicsConfig:
    hidden: tuple[int, ...] = (256, 256, 256, 256)  # widths of the hidden layers
    activation: str = "silu"  # relu, silu, tanh or elu
    num_members: int = 1  # networks in the ensemble
    horizon: int = 5  # steps over which the loss feeds predictions back
    batch_size: int = 256  # windows of `horizon` steps per update and member
    learning_rate: float = 1e-3  # Adam's, at first
    lr_final: float = 0.1  # share of the learning rate left after the last epoch, linearly
    num_epochs: int = 200  # passes through the training episodes, at most
    fine_tune_lr: float = 1e-4  # Adam's learning rate of fine-tuning, at first
    fine_tune_epochs: int = 100  # passes of fine-tuning, at most
    patience: int = 20  # epochs without any member doing better on held-out episodes, then stop
    validation_share: float = 0.1  # of the episodes held out, at least one episode
    max_grad_norm: float = 10.0  # each member's gradient norm above which it is scaled down; 0: off
    input_limit: float = 10.0  # standard deviations from the mean at which inputs are clipped

    def __post_init__(self):
        for name in "num_members horizon batch_size num_epochs fine_tune_epochs patience".split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in "learning_rate fine_tune_lr input_limit".split():
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not self.max_grad_norm >= 0:
            raise ValueError(f"max_grad_norm must not be negative, got {self.max_grad_norm}")
        if not 0 < self.lr_final <= 1:
            raise ValueError(f"lr_final must be in (0, 1], got {self.lr_final}")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must be in (0, 1), got {self.validation_share}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must be positive widths, got {self.hidden}")
        if self.activation not in ACTIVATIONS:
            allowed = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation must be one of {allowed}, got {self.activation!r}")


@struct.dataclass
class Moments:
    mean: jax.Array  # [F]
    scale: jax.Array  # [F] standard deviation; 0 where an entry is constant up to rounding


@struct.dataclass
class DynamicsState:
    """A model; saving it is saving all that predictions need."""

    params: Params  # [M, ...]
    obs: Moments  # [F]
    action: Moments  # [A]
    change: Moments  # [F] of the one-step change of the observation


class Progress(NamedTuple):
    """How training stands; errors are root mean squares over entries and `H` steps."""

    epoch: int  # passes done; 0 before the first
    loss: float  # mean squared error of training, over members and the epoch; NaN at epoch 0
    validation_error: np.ndarray  # [M] on the episodes held out [typical changes]
    best_error: np.ndarray  # [M] the least of these so far, that of the parameters kept


Report = Callable[[Progress], None]


class Dynamics(NamedTuple):
    """A learned model as functions over its state. `predict` and `disagreement` are pure, and fit
    jit, vmap and grad; `fit`, `fine_tune` and `evaluate` are loops on the host around compiled
    functions. All raise UserError for what does not fit the model."""

    config: DynamicsConfig
    init: Callable[[Key], DynamicsState]  # untrained, without statistics
    fit: Callable[..., DynamicsState]  # (key, Episodes, report | None) -> trained from nothing
    fine_tune: Callable[..., DynamicsState]  # (state, key, Episodes, report | None) -> trained on
    predict: Callable[..., jax.Array]  # (state, obs[..., F], action[..., A]) -> next obs[..., F]
    disagreement: Callable[..., jax.Array]  # (state, obs, action) -> [...] [typical changes]
    evaluate: Callable[..., np.ndarray]  # (state, Episodes, num_steps) -> rms error[num_steps, F]


@struct.dataclass
class _Member:
    """One member in training."""

    params: Params
    optimiser: optax.OptState
    best_params: Params
    best_error: jax.Array  # []


class _Window(NamedTuple):
    obs: jax.Array  # [H + 1, F]
    action: jax.Array  # [H, A]
    inside: jax.Array  # [H] bool: every step up to this one is valid


def _window(data: Episodes, start: jax.Array, num_steps: int) -> _Window:
    """The steps from `start`, `(row, step)`, on. It closes at the first invalid step."""
    row, first = start
    length = data.action.shape[1]
    steps = first + jnp.arange(num_steps)
    valid = data.valid[row, jnp.minimum(steps, length - 1)] & (steps < length)
    return _Window(
        obs=data.obs[row, jnp.minimum(first + jnp.arange(num_steps + 1), length)],
        action=data.action[row, jnp.minimum(steps, length - 1)],
        inside=jnp.cumprod(valid.astype(jnp.int32)) > 0,
    )


def _starts(valid: np.ndarray, rows: np.ndarray, batch_size: int) -> jax.Array:
    """Where windows begin, at every valid step of `rows`: `[batches, B, 2]` of `(row, step)`.

    Filled up with beginnings behind the last step, whose windows hold nothing and count nothing:
    then a few steps more or less need no new compilation.
    """
    row, step = np.nonzero(valid[rows])
    starts = np.stack([rows[row], step], axis=1)
    num_batches = -(-len(starts) // batch_size)
    filled = np.tile(np.array([0, valid.shape[1]]), (num_batches * batch_size, 1))
    filled[: len(starts)] = starts
    return jnp.asarray(filled.reshape(num_batches, batch_size, 2), jnp.int32)


def _needed(valid: np.ndarray) -> np.ndarray:
    """Which observations `[N, T + 1]` a valid step begins or ends with."""
    needed = np.zeros((valid.shape[0], valid.shape[1] + 1), bool)
    needed[:, :-1] = valid
    needed[:, 1:] |= valid
    return needed


def _checked(data: Episodes, obs_size: int, action_size: int) -> Episodes:
    """The episodes with a valid step as numpy arrays, with zeros where nothing may be read.

    Raises UserError for shapes that do not fit, for no valid step, and for the first number of a
    valid step that is not finite.
    """
    obs, action, valid = np.asarray(data.obs), np.asarray(data.action), np.asarray(data.valid)
    if valid.ndim != 2 or obs.ndim != 3 or action.ndim != 3:
        raise UserError(
            "episodes: obs must be [N, T + 1, F], action [N, T, A] and valid [N, T]; "
            f"got {list(obs.shape)}, {list(action.shape)} and {list(valid.shape)}"
        )
    num_episodes, num_steps = valid.shape
    for name, shape, wanted in (
        ("obs", obs.shape, (num_episodes, num_steps + 1, obs_size)),
        ("action", action.shape, (num_episodes, num_steps, action_size)),
    ):
        if shape != wanted:
            raise UserError(
                f"episodes: {name} must be {list(wanted)} for this model and valid "
                f"{list(valid.shape)}, got {list(shape)}"
            )
    valid = valid.astype(bool)
    if not valid.any():
        raise UserError(f"episodes: no valid step in {num_episodes} episodes of {num_steps} steps")
    for name, values, read in (("obs", obs, _needed(valid)), ("action", action, valid)):
        bad = np.argwhere(read[..., None] & ~np.isfinite(values))
        if len(bad):
            episode, step, entry = bad[0]
            raise UserError(
                f"episodes: {name} of episode {episode}, step {step}, entry {entry} is "
                f"{values[episode, step, entry]}; every number of a valid step must be finite"
            )
    kept = valid.any(axis=1)
    obs, action, valid = obs[kept], action[kept], valid[kept]
    # A NaN that is masked in the loss would still reach the gradient.
    return Episodes(
        obs=np.where(_needed(valid)[..., None], obs, 0.0).astype(np.float32),
        action=np.where(valid[..., None], action, 0.0).astype(np.float32),
        valid=valid,
    )


def _moments(values: np.ndarray, magnitude: np.ndarray) -> Moments:
    """Of `values` `[steps, F]`, computed from numbers of up to `magnitude` `[F]`."""
    mean = np.mean(values, axis=0, dtype=np.float64)
    scale = np.std(values, axis=0, dtype=np.float64)
    scale = np.where(scale > ROUNDING * magnitude, scale, 0.0)
    return Moments(mean=jnp.asarray(mean, jnp.float32), scale=jnp.asarray(scale, jnp.float32))


def _changes(data: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """One-step changes `[steps, F]`, and the largest size of each observation entry `[F]`."""
    obs = np.asarray(data.obs)
    magnitude = np.max(np.abs(obs), axis=(0, 1))  # what may not be read is zero
    return (obs[:, 1:] - obs[:, :-1])[np.asarray(data.valid)], magnitude


def _standardise(moments: Moments, value: jax.Array, limit: float) -> jax.Array:
    """`value` `[..., F]` in standard deviations from the mean; zero for constant entries."""
    varies = moments.scale > 0
    scaled = (value - moments.mean) / jnp.where(varies, moments.scale, 1.0)
    return jnp.where(varies, jnp.clip(scaled, -limit, limit), 0.0)


def make_dynamics(
    config: DynamicsConfig,
    obs_size: int,
    action_size: int,
    compiler_options: Mapping[str, bool | int | str] | None = None,
    invariant: Sequence[int] = (),
) -> Dynamics:
    """Builds the model of observations `[F]` under actions `[A]`; see `Dynamics`.

    Inputs are clipped at `config.input_limit` deviations, so that far from the data the predicted
    change stays bounded, and predictions that are fed back stay finite.

    Args:
      compiler_options: XLA's, for the functions that training compiles.
      invariant: entries of the observation whose value changes nothing, such as positions and
        odometers: predicted, but not shown to the networks.
    """
    if any(not 0 <= entry < obs_size for entry in invariant):
        raise ValueError(f"invariant must be entries in [0, {obs_size}), got {tuple(invariant)}")
    network = make_mlp(
        (obs_size, action_size), obs_size, config.hidden, activation=config.activation
    )
    ensemble = make_ensemble(network, config.num_members)
    adam = optax.scale_by_adam()
    if config.max_grad_norm > 0:
        adam = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)
    options = dict(compiler_options or {})

    def inputs(state: DynamicsState, obs: jax.Array, action: jax.Array):
        return (
            _standardise(state.obs, obs, config.input_limit),
            _standardise(state.action, action, config.input_limit),
        )

    def check_sizes(obs: jax.Array, action: jax.Array) -> None:
        for name, value, size in (("obs", obs, obs_size), ("action", action, action_size)):
            if jnp.ndim(value) == 0 or jnp.shape(value)[-1] != size:
                raise UserError(
                    f"learned dynamics: {name} must be [..., {size}], got {list(jnp.shape(value))}"
                )

    def init(key: Key) -> DynamicsState:
        def unknown(size: int) -> Moments:
            return Moments(mean=jnp.zeros(size), scale=jnp.ones(size))

        return DynamicsState(
            params=ensemble.init(key),
            obs=unknown(obs_size),
            action=unknown(action_size),
            change=unknown(obs_size),
        )

    def predict(state: DynamicsState, obs: jax.Array, action: jax.Array) -> jax.Array:
        """The observation `[..., F]` one step later, by the mean of the members."""
        check_sizes(obs, action)
        outputs = ensemble.apply(state.params, inputs(state, obs, action))
        return obs + state.change.mean + state.change.scale * jnp.mean(outputs, axis=0)

    def disagreement(state: DynamicsState, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Standard deviation over the members of the predicted change `[...]`, the root mean square
        over the entries [typical changes]; zero for a single member."""
        check_sizes(obs, action)
        outputs = ensemble.apply(state.params, inputs(state, obs, action))
        if config.num_members == 1:
            return jnp.zeros(outputs.shape[1:-1])  # a root of zero would have no gradient
        return jnp.sqrt(mean_over_varying(state, jnp.var(outputs, axis=0)))

    def mean_over_varying(state: DynamicsState, values: jax.Array) -> jax.Array:
        """Mean of `values` `[..., F]` over the entries whose change varies."""
        varies = state.change.scale > 0
        total = jnp.sum(jnp.where(varies, values, 0.0), axis=-1)
        return total / jnp.maximum(jnp.sum(varies), 1)

    def member_errors(state: DynamicsState, params: Params, window: _Window) -> jax.Array:
        """Squared error `[H]` of one member's predictions, fed back [typical changes squared];
        zero for steps outside."""
        scale = jnp.where(state.change.scale > 0, state.change.scale, 1.0)

        def step(obs: jax.Array, now: tuple[jax.Array, jax.Array]):
            action, truth = now
            output = network.apply(params, inputs(state, obs, action))
            obs = obs + state.change.mean + state.change.scale * output
            return obs, mean_over_varying(state, ((obs - truth) / scale) ** 2)

        _, errors = jax.lax.scan(step, window.obs[0], (window.action, window.obs[1:]))
        return jnp.where(window.inside, errors, 0.0)

    def batch_error(state: DynamicsState, params: Params, data: Episodes, batch: jax.Array):
        """Summed squared errors over the windows that begin at `batch` `[B, 2]`, and their number
        of steps."""
        windows = jax.vmap(lambda start: _window(data, start, config.horizon))(batch)
        errors = jax.vmap(lambda window: member_errors(state, params, window))(windows)
        return jnp.sum(errors), jnp.sum(windows.inside)

    def validation_error(state: DynamicsState, params: Params, data: Episodes, starts: jax.Array):
        def add(totals: tuple[jax.Array, jax.Array], batch: jax.Array):
            errors, count = batch_error(state, params, data, batch)
            return (totals[0] + errors, totals[1] + count), None

        zero = (jnp.zeros(()), jnp.zeros((), jnp.int32))
        (errors, count), _ = jax.lax.scan(add, zero, starts)
        return jnp.sqrt(errors / count)

    def begin_member(state: DynamicsState, params: Params, data: Episodes, held_out: jax.Array):
        return _Member(
            params=params,
            optimiser=adam.init(params),
            best_params=jax.tree.map(jnp.copy, params),
            best_error=validation_error(state, params, data, held_out),
        )

    def member_epoch(
        member: _Member,
        key: Key,
        state: DynamicsState,
        data: Episodes,
        starts: jax.Array,
        held_out: jax.Array,
        learning_rate: jax.Array,
    ) -> tuple[_Member, tuple[jax.Array, jax.Array]]:
        def update(carry: tuple[Params, optax.OptState], batch: jax.Array):
            params, optimiser = carry

            def loss_of(params: Params) -> jax.Array:
                errors, count = batch_error(state, params, data, batch)
                return errors / jnp.maximum(count, 1)

            loss, gradient = jax.value_and_grad(loss_of)(params)
            updates, optimiser = adam.update(gradient, optimiser, params)
            params = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
            return (params, optimiser), loss

        shuffled = jax.random.permutation(key, starts.reshape(-1, 2)).reshape(starts.shape)
        (params, optimiser), losses = jax.lax.scan(
            update, (member.params, member.optimiser), shuffled
        )
        error = validation_error(state, params, data, held_out)
        better = error < member.best_error
        best_params = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), params, member.best_params
        )
        best_error = jnp.where(better, error, member.best_error)
        member = _Member(params, optimiser, best_params, best_error)
        return member, (jnp.mean(losses), error)

    # The model's parameters go in apart from its statistics, which are not per member.
    begin = jax.jit(jax.vmap(begin_member, in_axes=(None, 0, None, None)), compiler_options=options)
    epoch = jax.jit(
        jax.vmap(member_epoch, in_axes=(0, 0, None, None, None, None, None)),
        donate_argnums=0,
        compiler_options=options,
    )

    def split(key: Key, data: Episodes) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on, and rows held out."""
        num_episodes = data.valid.shape[0]
        if num_episodes < 2:
            raise UserError(
                "episodes: one episode with valid steps; at least 2 are needed, one to train on "
                "and one held out"
            )
        order = np.asarray(jax.random.permutation(key, num_episodes))
        num_held_out = round(config.validation_share * num_episodes)
        num_held_out = min(max(num_held_out, 1), num_episodes - 1)
        return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])

    def train(
        state: DynamicsState,
        key: Key,
        data: Episodes,
        rows: tuple[np.ndarray, np.ndarray],
        schedule: tuple[float, int],
        report: Report | None,
    ) -> DynamicsState:
        """Members' best parameters on the held-out rows, those it begins with among them."""
        valid = np.asarray(data.valid)
        starts, held_out = (_starts(valid, part, config.batch_size) for part in rows)
        data = jax.tree.map(jnp.asarray, data)
        statistics = dataclasses.replace(state, params=None)
        members = begin(statistics, state.params, data, held_out)
        best_error = np.asarray(members.best_error)
        if report is not None:
            report(Progress(0, float("nan"), best_error, best_error))
        first_rate, num_epochs = schedule
        since_better = 0
        for number, epoch_key in enumerate(jax.random.split(key, num_epochs)):
            share_done = number / max(num_epochs - 1, 1)
            rate = first_rate * (1.0 - (1.0 - config.lr_final) * share_done)
            members, (loss, error) = epoch(
                members,
                jax.random.split(epoch_key, config.num_members),
                statistics,
                data,
                starts,
                held_out,
                jnp.asarray(rate, jnp.float32),
            )
            before, best_error = best_error, np.asarray(members.best_error)
            if report is not None:
                loss = float(jnp.mean(loss))
                report(Progress(number + 1, loss, np.asarray(error), best_error))
            since_better = 0 if np.any(best_error < before) else since_better + 1
            if since_better >= config.patience:
                break
        return dataclasses.replace(state, params=members.best_params)

    def fit(key: Key, data: Episodes, report: Report | None = None) -> DynamicsState:
        split_key, train_key, init_key = jax.random.split(key, 3)
        data = _checked(data, obs_size, action_size)
        rows = split(split_key, data)
        # Held-out episodes are not to be known, not even by their mean.
        seen = jax.tree.map(lambda leaf: leaf[rows[0]], data)
        changes, magnitude = _changes(seen)
        obs, action = np.asarray(seen.obs)[:, :-1][seen.valid], np.asarray(seen.action)[seen.valid]
        shown = _moments(obs, magnitude)
        # What has no scale is not shown.
        scale = shown.scale.at[np.array(invariant, np.int32)].set(0.0)
        state = DynamicsState(
            params=ensemble.init(init_key),
            obs=Moments(mean=shown.mean, scale=scale),
            action=_moments(action, np.max(np.abs(action), axis=0)),
            change=_moments(changes, magnitude),
        )
        schedule = config.learning_rate, config.num_epochs
        return train(state, train_key, data, rows, schedule, report)

    def fine_tune(
        state: DynamicsState, key: Key, data: Episodes, report: Report | None = None
    ) -> DynamicsState:
        """Trained on from `state`, whose statistics are kept; never worse than it on the episodes
        held out of `data`. The same key and episodes as in `fit` hold out the same episodes."""
        split_key, train_key, _ = jax.random.split(key, 3)
        data = _checked(data, obs_size, action_size)
        changes, magnitude = _changes(data)
        constant = np.asarray(state.change.scale) == 0
        strayed = np.max(np.abs(changes - np.asarray(state.change.mean)), axis=0)
        for entry in np.flatnonzero(constant & (strayed > 2 * ROUNDING * magnitude)):
            raise UserError(
                f"episodes: the change of obs entry {entry} varies by {strayed[entry]:.3g} here, "
                "but did not in the episodes that the model was fitted to; fit it anew on both"
            )
        schedule = config.fine_tune_lr, config.fine_tune_epochs
        return train(state, train_key, data, split(split_key, data), schedule, report)

    def squared_errors(
        state: DynamicsState, data: Episodes, starts: jax.Array, num_steps: int
    ) -> tuple[jax.Array, jax.Array]:
        """Sums over windows of the squared errors of the mean prediction `[num_steps, F]`, and the
        number of windows `[num_steps]` that reach so far."""

        def window_errors(start: jax.Array):
            window = _window(data, start, num_steps)

            def step(obs: jax.Array, action: jax.Array):
                obs = predict(state, obs, action)
                return obs, obs

            _, predicted = jax.lax.scan(step, window.obs[0], window.action)
            errors = (predicted - window.obs[1:]) ** 2
            return jnp.where(window.inside[:, None], errors, 0.0), window.inside

        def add(totals, batch: jax.Array):
            errors, inside = jax.vmap(window_errors)(batch)
            return (totals[0] + jnp.sum(errors, axis=0), totals[1] + jnp.sum(inside, axis=0)), None

        zero = jnp.zeros((num_steps, obs_size)), jnp.zeros(num_steps, jnp.int32)
        return jax.lax.scan(add, zero, starts)[0]

    compiled_errors = jax.jit(squared_errors, static_argnums=3, compiler_options=options)

    def evaluate(state: DynamicsState, data: Episodes, num_steps: int) -> np.ndarray:
        """Root mean square error `[num_steps, F]` of the mean prediction, fed back over 1 to
        `num_steps` steps from every valid step [the observation's own units]."""
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        data = _checked(data, obs_size, action_size)
        valid = np.asarray(data.valid)
        starts = _starts(valid, np.arange(len(valid)), config.batch_size)
        data = jax.tree.map(jnp.asarray, data)
        errors, count = jax.tree.map(np.asarray, compiled_errors(state, data, starts, num_steps))
        if not count[-1]:
            raise UserError(
                f"episodes: none has {num_steps} valid steps in a row, at most {np.sum(count > 0)}"
            )
        return np.sqrt(errors / count[:, None])

    return Dynamics(config, init, fit, fine_tune, predict, disagreement, evaluate)


def as_dynamics(
    model: Dynamics, state: DynamicsState, sizes: Mapping[str, int] | None = None
) -> Callable[..., jax.Array | Obs]:
    """The model as a planner reads it: `(obs, action) -> next obs`, for any leading axes.

    Args:
      sizes: the entries that make up the model's vector, in order, and the size of each;
        observations are then dicts of these entries instead of vectors.
    """
    if sizes is None:
        return lambda obs, action: model.predict(state, obs, action)
    bounds = np.cumsum(list(sizes.values()))
    obs_size = state.obs.mean.shape[-1]
    if bounds[-1] != obs_size:
        raise UserError(
            f"learned dynamics: entries {dict(sizes)} have {bounds[-1]} numbers, "
            f"the model has {obs_size}"
        )

    def dynamics(obs: Obs, action: jax.Array) -> Obs:
        predicted = model.predict(state, concat_entries(obs, list(sizes)), action)
        return dict(zip(sizes, jnp.split(predicted, bounds[:-1], axis=-1), strict=True))

    return dynamics


def save_dynamics(
    path: str | Path, config: DynamicsConfig, state: DynamicsState, extra: Mapping[str, Any]
) -> None:
    """Writes a model to one file (npz, no pickle); `extra` is JSON-able.

    Raises StorageError.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    about = json.dumps({"config": flags.to_dict(config), "extra": dict(extra)})
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, about=np.array(about), **leaves)  # pyright: ignore[reportArgumentType]
    with storage_errors(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), buffer.getvalue())


def load_dynamics(path: str | Path) -> tuple[Dynamics, DynamicsState, dict[str, Any]]:
    """The model, its state and `extra` of a file that `save_dynamics` wrote; raises UserError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            leaves = dict(file)
        about = json.loads(str(leaves.pop("about")))
        config = flags.from_dict(DynamicsConfig, about["config"])
        sizes = leaves["obs/mean"].shape[0], leaves["action/mean"].shape[0]
        model = make_dynamics(config, *sizes)
        template = jax.eval_shape(model.init, jax.random.key(0))
        named = jax.tree_util.tree_leaves_with_path(template)
        values = [
            jnp.asarray(leaves[jax.tree_util.keystr(path, simple=True, separator="/")])
            for path, _ in named
        ]
    except FileNotFoundError:
        raise UserError(f"there is no model of dynamics in {path}") from None
    except (OSError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds no model of dynamics ({reason})") from error
    return model, jax.tree.unflatten(jax.tree.structure(template), values), about["extra"]
