"""One update of QR-SAC against loops in numpy, and every switch of its configuration."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.distributions import TanhNormal
from core_rl.env import State
from core_rl.errors import UserError
from core_rl.launch import Experiment, _save_bundle, trained_agent
from core_rl.networks import make_mlp, standardise
from core_rl.policy import load_policy
from core_rl.qr_sac import Hypers, QRSACConfig, QRSACState, make_qr_sac, members_of
from core_rl.types import Afterstate, Agent, Batch
from tests.probes import QUICK_COMPILE, EpisodeEnv

BATCH_SIZE, ACTION_SIZE, NUM_QUANTILES = 8, 2, 4
SIZES = {"state": 3, "extra": 2}
KEY = jax.random.key(42)


def make_config(**changes) -> QRSACConfig:
    base = {
        "critic_obs": ("state", "extra"),
        "hidden": (16, 16),
        "num_quantiles": NUM_QUANTILES,
        "alpha": 0.2,
        "batch_size": BATCH_SIZE,
        "normalise_updates": 2,
    }
    return QRSACConfig(**{**base, **changes})


def scrambled(tree: Any, seed: int) -> Any:
    """Every leaf moved at random, so that online, target and averaged parameters all differ."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0.0, 0.1, leaf.shape), tree)


class Setup(NamedTuple):
    config: QRSACConfig
    agent: Agent
    state: QRSACState
    update: Any  # jitted


EXAMPLE = {name: jnp.zeros(size) for name, size in SIZES.items()}


@functools.cache
def fresh(**changes) -> tuple[QRSACConfig, Agent, QRSACState]:
    config = make_config(**changes)
    agent = make_qr_sac(config, ACTION_SIZE)
    init = jax.jit(agent.init, compiler_options=QUICK_COMPILE)
    return config, agent, init(jax.random.key(0), EXAMPLE)


@functools.cache
def setup(**changes) -> Setup:
    config, agent, state = fresh(**changes)
    networks = state.networks
    networks = dataclasses.replace(
        networks,
        actor=scrambled(networks.actor, 1),
        critics=scrambled(networks.critics, 2),
        target_critics=scrambled(networks.target_critics, 3),
        actor_average=scrambled(networks.actor_average, 4),
    )
    state = jax.tree.map(jnp.asarray, dataclasses.replace(state, networks=networks))
    return Setup(config, agent, state, jax.jit(agent.update, compiler_options=QUICK_COMPILE))


def make_obs(seed: int, count: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(5.0, 3.0, (count, size)), jnp.float32)
        for name, size in SIZES.items()
    }


@functools.cache
def make_batch() -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        obs=make_obs(1, BATCH_SIZE),
        action=jnp.asarray(rng.uniform(-1.0, 1.0, (BATCH_SIZE, ACTION_SIZE)), jnp.float32),
        n_step_reward=jnp.asarray(rng.normal(size=BATCH_SIZE), jnp.float32),
        bootstrap_discount=jnp.asarray([0.9, 0.0, 0.81, 0.729, 0.9, 0.0, 0.9, 0.5]),
        next_obs=make_obs(2, BATCH_SIZE),
    )


def difference(a: Any, b: Any) -> float:
    """The largest difference between two trees."""
    parts = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - np.asarray(y)).max(), a, b)
    return max(jax.tree.leaves(parts))


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def forward(params: Any, *inputs: jax.Array, static: tuple[jax.Array, ...] = ()) -> np.ndarray:
    """A multi-layer perceptron with relu, in float64: `[B, F_i]` parts to `[B, outputs]`.

    With `static` parts its second hidden layer reads what their encoder makes of them, too.
    """

    def dense(layer, *parts):
        x = np.concatenate([np.asarray(part, np.float64) for part in parts], axis=1)
        return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])

    hidden = np.maximum(dense(params["PartedDense_0"], *inputs), 0.0)
    if static:
        encoded = np.maximum(dense(params["encoder"]["PartedDense_0"], *static), 0.0)
        hidden = dense(params["PartedDense_1"], hidden, encoded)
    else:
        hidden = dense(params["Dense_0"], hidden)
    return dense(params["output"], np.maximum(hidden, 0.0))


STATIC = {"static_obs": ("extra",), "static_hidden": (6,), "critic_obs": ("state",)}


@pytest.mark.parametrize("static", [False, True])
def test_update_equals_loops_over_samples_critics_and_quantiles(static):
    _, _, state, update = setup(**STATIC if static else {})
    batch = make_batch()
    _, metrics = update(state, batch, KEY)
    target_key, actor_key, _ = jax.random.split(KEY, 3)

    def standardised(obs, name):  # by the statistics of this very first batch
        sampled = np.asarray(batch.obs[name], np.float64)
        value = (np.asarray(obs[name]) - sampled.mean(axis=0)) / sampled.std(axis=0)
        return np.clip(value, -10.0, 10.0)

    def described(obs):
        return (standardised(obs, "extra"),) if static else ()

    def act(obs, key):
        output = forward(state.networks.actor, standardised(obs, "state"), static=described(obs))
        policy = TanhNormal.from_output(jnp.asarray(output, jnp.float32))
        action, log_prob = policy.sample_and_log_prob(key)
        return np.asarray(action), np.asarray(log_prob, np.float64)

    def values(params, obs, action):  # [C, B, Q]
        seen = ("state",) if static else ("state", "extra")
        inputs = (*(standardised(obs, name) for name in seen), action)
        members = [jax.tree.map(lambda leaf, c=c: leaf[c], params) for c in range(2)]
        return np.stack([forward(member, *inputs, static=described(obs)) for member in members])

    next_action, next_log_prob = act(batch.next_obs, target_key)
    next_values = values(state.networks.target_critics, batch.next_obs, next_action)
    online = values(state.networks.critics, batch.obs, batch.action)
    critic_loss, targets, chosen = 0.0, [], []
    for b in range(BATCH_SIZE):
        chosen.append(int(np.argmin(next_values[:, b].mean(axis=1))))
        bootstrap = next_values[chosen[b], b] - 0.2 * next_log_prob[b]
        target = float(batch.n_step_reward[b]) + float(batch.bootstrap_discount[b]) * bootstrap
        targets.append(target)
        for c, i, j in itertools.product(range(2), range(NUM_QUANTILES), range(NUM_QUANTILES)):
            delta = target[j] - online[c, b, i]
            huber = 0.5 * delta**2 if abs(delta) <= 1.0 else abs(delta) - 0.5
            tau = (i + 0.5) / NUM_QUANTILES
            critic_loss += abs(tau - (delta < 0.0)) * huber / NUM_QUANTILES / BATCH_SIZE
    assert set(chosen) == {0, 1}
    action, log_prob = act(batch.obs, actor_key)
    # The actor is judged by the critics as this update found them.
    judged = values(state.networks.critics, batch.obs, action).mean(axis=2).min(axis=0)
    expected = {
        "critic_loss": critic_loss,
        "actor_loss": np.mean(0.2 * log_prob - judged),
        "value": online.mean(),
        "target": np.mean(targets),
        "entropy": -np.mean(log_prob),
        "alpha": 0.2,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)


def test_first_adam_step_has_the_size_of_each_learning_rate():
    config, agent, state, update = setup()
    assert agent.carry(3) == ()
    rates = {"actor_lr": 1e-3, "critic_lr": 2e-3, "alpha_lr": 3e-3}
    hypers = state.hypers._replace(**{name: jnp.float32(rate) for name, rate in rates.items()})
    after, _ = update(dataclasses.replace(state, hypers=hypers), make_batch(), KEY)
    # Adam's first step is lr * g / (|g| + eps): the learning rate wherever g is not tiny.
    old, new = state.networks, after.networks
    assert difference(new.actor, old.actor) == pytest.approx(1e-3, rel=1e-3)
    assert difference(new.critics, old.critics) == pytest.approx(2e-3, rel=1e-3)
    assert difference(after.log_alpha, state.log_alpha) == pytest.approx(3e-3, rel=1e-3)
    assert config.critic_lr != 2e-3


def test_target_critics_take_their_share_of_the_new_critics():
    config, _, state, update = setup()
    after, _ = update(state, make_batch(), KEY)
    expected = jax.tree.map(
        lambda old, new: (1.0 - config.target_mix) * old + config.target_mix * new,
        state.networks.target_critics,
        after.networks.critics,
    )
    assert difference(after.networks.target_critics, expected) < 1e-6
    assert difference(after.networks.target_critics, state.networks.target_critics) > 1e-4


@pytest.mark.parametrize(("target_entropy", "sign"), [(10.0, 1.0), (-50.0, -1.0)])
def test_learned_temperature_moves_towards_its_target_entropy(target_entropy, sign):
    # No policy of two bounded actions reaches 20 nats, and none of this one's widths falls to -100.
    _, _, state, update = setup()
    hypers = state.hypers._replace(target_entropy_per_dim=jnp.float32(target_entropy))
    after, _ = update(dataclasses.replace(state, hypers=hypers), make_batch(), KEY)
    assert sign * (after.log_alpha - state.log_alpha) > 1e-4


def test_observation_statistics_follow_the_batches_and_freeze():
    _, _, state, update = setup()
    batch = make_batch()
    other = dataclasses.replace(batch, obs=make_obs(5, BATCH_SIZE))
    once, _ = update(state, batch, KEY)
    twice, _ = update(once, other, KEY)
    thrice, _ = update(twice, batch, KEY)
    for name in SIZES:
        sampled = np.concatenate([batch.obs[name], other.obs[name]])
        stats = twice.obs_stats[name]
        np.testing.assert_allclose(stats.mean, sampled.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(
            np.sqrt(stats.deviation / stats.count), sampled.std(axis=0), rtol=1e-5
        )
    assert_same(thrice.obs_stats, twice.obs_stats)  # normalise_updates is 2
    assert thrice.num_updates == 3


def test_gradient_is_scaled_down_as_a_whole():
    # Adam's first moment after one update is 0.1 * gradient. Clipping element by element would
    # keep the small entries.
    _, _, state, update = setup()
    plain, metrics = update(state, make_batch(), KEY)
    limit = 0.01
    assert metrics["critic_grad_norm"] > 10 * limit and metrics["actor_grad_norm"] > 10 * limit
    _, _, state, update = setup(max_grad_norm=limit, learn_alpha=False)
    clipped, clipped_metrics = update(state, make_batch(), KEY)
    scale = limit / metrics["critic_grad_norm"]
    expected = jax.tree.map(lambda mu: scale * mu, first_moment(plain.networks.critics_opt))
    moment = first_moment(clipped.networks.critics_opt)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9), moment, expected
    )
    for opt_state in (clipped.networks.critics_opt, clipped.networks.actor_opt):
        leaves = jax.tree.leaves(first_moment(opt_state))
        norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in leaves))
        assert norm == pytest.approx(0.1 * limit, rel=1e-4)
    # The metric tells the norm before the clipping.
    np.testing.assert_allclose(
        clipped_metrics["critic_grad_norm"], metrics["critic_grad_norm"], rtol=1e-5
    )


def adam_state(opt_state: Any) -> Any:
    """The one member of a chain of optimisers' states that has moments."""
    found = jax.tree.leaves(opt_state, is_leaf=lambda node: hasattr(node, "mu"))
    return next(node for node in found if hasattr(node, "mu"))


def first_moment(opt_state: Any) -> Any:
    return adam_state(opt_state).mu


def test_fixed_temperature_stays_exactly():
    _, _, state, update = setup(max_grad_norm=0.01, learn_alpha=False)
    after, _ = update(state, make_batch(), KEY)
    assert_same((after.log_alpha, after.alpha_opt), (state.log_alpha, state.alpha_opt))
    np.testing.assert_allclose(jnp.exp(after.log_alpha), 0.2, rtol=1e-6)


@pytest.fixture(scope="module")
def resetting():
    """The states after 0, 1, ... 6 updates of an agent that re-initialises every third."""
    _, agent, state, update = setup(reset_interval=3, actor_average=0.9)
    states = [state]
    for number in range(6):
        state, _ = update(state, make_batch(), jax.random.fold_in(KEY, number))
        states.append(state)
    return agent, states


def test_reinitialisation_happens_exactly_at_the_interval(resetting):
    _, states = resetting
    rates = 3e-4
    for number, (before, after) in enumerate(itertools.pairwise(states), start=1):
        moved = difference(after.networks.actor, before.networks.actor)
        count = int(adam_state(after.networks.critics_opt).count)
        assert count == number % 3
        assert count == int(adam_state(after.networks.actor_opt).count)
        # An update moves no weight by more than a few learning rates; new networks move them all.
        assert moved > 0.1 if number % 3 == 0 else moved < 5 * rates


def test_reinitialisation_renews_networks_and_optimisers_and_nothing_else(resetting):
    _, states = resetting
    for number in (3, 6):
        renewed = states[number].networks
        for opt_state in (renewed.actor_opt, renewed.critics_opt):
            adam = adam_state(opt_state)
            assert not any(leaf.any() for leaf in jax.tree.leaves((adam.mu, adam.nu)))
        assert_same(renewed.target_critics, renewed.critics)
        assert_same(renewed.actor_average, renewed.actor)
        # The last layer is small again, as it is at the beginning; before it was scrambled by 0.1.
        assert float(jnp.std(renewed.actor["output"]["kernel"])) < 0.05
        assert states[number].num_updates == number
        assert states[number].log_alpha != states[number - 1].log_alpha
    assert difference(states[6].networks.actor, states[3].networks.actor) > 0.1  # a fresh key
    assert_same(states[3].obs_stats, states[2].obs_stats)
    assert int(states[6].alpha_opt.count) == 6


def test_averaged_actor_decays_towards_the_actor_and_is_the_greedy_one(resetting):
    agent, states = resetting
    before, after = states[1].networks, states[2].networks
    expected = jax.tree.map(
        lambda old, new: 0.9 * old + 0.1 * new, before.actor_average, after.actor
    )
    assert difference(after.actor_average, expected) < 1e-6
    assert difference(after.actor_average, after.actor) > 0.1
    obs = make_obs(6, 5)
    state = states[2]
    greedy, _ = agent.greedy(state, (), obs)
    swapped = dataclasses.replace(after, actor=after.actor_average, actor_average=after.actor)
    other, _ = agent.greedy(dataclasses.replace(state, networks=swapped), (), obs)
    actor_gone = dataclasses.replace(after, actor=jax.tree.map(jnp.zeros_like, after.actor))
    same, _ = agent.greedy(dataclasses.replace(state, networks=actor_gone), (), obs)
    assert difference(greedy, other) > 1e-3
    assert_same(greedy, same)
    # Exploration is the current actor's.
    acted, _ = agent.act(state, (), obs, KEY)
    exploring, _ = agent.act(dataclasses.replace(state, networks=actor_gone), (), obs, KEY)
    assert difference(acted, exploring) > 1e-3


@pytest.mark.parametrize(
    ("power", "shares"),
    [(1.0, {0: 1.0, 5: 0.55, 10: 0.1, 1000: 0.1}), (2.0, {0: 1.0, 5: 0.325, 10: 0.1})],
)
def test_learning_rates_fall_by_a_power_to_their_last_share(power, shares):
    _, _, state, update = setup(lr_decay_updates=10, lr_decay_power=power, lr_final=0.1)
    for num_updates, share in shares.items():
        aged = dataclasses.replace(state, num_updates=jnp.int32(num_updates))
        after, _ = update(aged, make_batch(), KEY)
        old, new = state.networks, after.networks
        for moved in (
            difference(new.actor, old.actor),
            difference(new.critics, old.critics),
            difference(after.log_alpha, state.log_alpha),
        ):
            assert moved == pytest.approx(3e-4 * share, rel=0.01)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_layer_norm_makes_the_hidden_layer_blind_to_its_inputs_scale(layer_norm):
    network = make_mlp((3, 2), 4, (16,), layer_norm=layer_norm)
    params = network.init(jax.random.key(0))
    inputs = (jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 3.0]))
    large = tuple(100.0 * part for part in inputs)  # biases begin at zero
    plain, scaled = network.apply(params, inputs), network.apply(params, large)
    blind = np.allclose(plain, scaled, rtol=1e-3, atol=1e-5)
    assert blind == layer_norm


def test_standardise_is_the_plain_formula_with_its_gradient():
    x, cotangent = (
        3.0 + 2.0 * jax.random.normal(key, (4, 5, 16))
        for key in jax.random.split(jax.random.key(3))
    )

    def plain(x: jax.Array) -> jax.Array:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        return centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)

    for scale in (1.0, 1e-3):  # the small one is where the epsilon counts
        value, pull = jax.vjp(standardise, scale * x)
        expected, pull_expected = jax.vjp(plain, scale * x)
        np.testing.assert_allclose(value, expected, atol=1e-4 * scale**0.5)
        gradient, expected = pull(cotangent)[0], pull_expected(cotangent)[0]
        np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())


def test_layer_norm_reaches_actor_and_critics():
    _, _, state = fresh(layer_norm=True)
    for params in (state.networks.actor, state.networks.critics):
        assert sum("LayerNorm" in name for name in params) == 2  # one per hidden layer


def test_parts_of_an_input_are_as_good_as_the_whole():
    whole, parts = make_mlp((5,), 4, (16, 8)), make_mlp((3, 2), 4, (16, 8))
    params = whole.init(jax.random.key(0))
    value = jnp.linspace(-1.0, 2.0, 10).reshape(2, 5)
    by_parts = parts.apply(params, (value[:, :3], value[:, 3:]))
    np.testing.assert_allclose(by_parts, whole.apply(params, (value,)), rtol=1e-5, atol=1e-7)


def test_an_afterstate_of_action_and_observation_is_as_good_as_both():
    """Critics that read them by way of the model learn and teach as others do."""
    _, _, state, update = setup(normalise_obs=False)
    extra, rows = SIZES["extra"], sum(SIZES.values())
    same = Afterstate(
        size=extra + ACTION_SIZE,
        features=lambda obs, action: jnp.append(obs["extra"], action),
    )
    config = make_config(normalise_obs=False, afterstate=True)
    told = make_qr_sac(config, ACTION_SIZE, same)

    def moved(critics: Any) -> Any:
        """The weights of `extra` and action now weigh the afterstate, which comes behind both."""
        first = critics["PartedDense_0"]
        keep = rows - extra
        silent = jnp.zeros_like(first["kernel"][:, keep:])
        kernel = jnp.concatenate(
            [first["kernel"][:, :keep], silent, first["kernel"][:, keep:]], axis=1
        )
        return {**critics, "PartedDense_0": {**first, "kernel": kernel}}

    networks = state.networks
    other = told.init(jax.random.key(0), EXAMPLE)
    other = dataclasses.replace(
        state,
        networks=dataclasses.replace(
            networks,
            critics=moved(networks.critics),
            target_critics=moved(networks.target_critics),
            critics_opt=other.networks.critics_opt,
        ),
    )
    plain, plain_metrics = update(state, make_batch(), KEY)
    after, metrics = jax.jit(told.update, compiler_options=QUICK_COMPILE)(other, make_batch(), KEY)
    for name in plain_metrics:
        if name != "critic_grad_norm":  # it counts the rows that are new
            np.testing.assert_allclose(metrics[name], plain_metrics[name], rtol=1e-4, err_msg=name)
    assert difference(after.networks.actor, plain.networks.actor) < 1e-5
    assert difference(plain.networks.actor, networks.actor) > 1e-4
    learnt, expected = (new.networks.critics["PartedDense_0"]["kernel"] for new in (after, plain))
    np.testing.assert_allclose(
        learnt[:, rows + ACTION_SIZE :], expected[:, rows - extra :], atol=1e-5
    )


def test_an_afterstate_that_the_task_lacks_is_refused():
    with pytest.raises(UserError, match=r"afterstate=true: there is no model .* only false is"):
        make_qr_sac(make_config(afterstate=True), ACTION_SIZE)


def test_critics_begin_different_and_their_targets_equal():
    _, _, state = fresh()
    kernels = [leaf for leaf in jax.tree.leaves(state.networks.critics) if leaf.ndim == 3]
    assert len(kernels) == 3
    assert all((kernel[0] != kernel[1]).all() for kernel in kernels)
    assert_same(state.networks.target_critics, state.networks.critics)


def test_actions_are_bounded_noisy_and_blind_to_what_the_actor_may_not_read():
    _, agent, state, _ = setup()
    obs = make_obs(7, 50)
    action, carry = agent.act(state, agent.carry(50), obs, KEY)
    assert action.shape == (50, ACTION_SIZE) and carry == ()
    assert np.abs(action).max() <= 1.0
    again, _ = agent.act(state, (), obs, jax.random.key(8))
    assert (np.abs(again - action) > 1e-3).mean() > 0.8
    hidden = {**obs, "extra": obs["extra"] + 100.0}
    assert_same(agent.act(state, (), hidden, KEY)[0], action)
    assert_same(agent.greedy(state, (), hidden)[0], agent.greedy(state, (), obs)[0])


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("average", [0.0, 0.5])
def test_deployed_state_acts_the_same_and_is_little(average, static):
    _, agent, state = fresh(actor_average=average, **STATIC if static else {})
    little = agent.deploy(state)
    obs = make_obs(9, 5)
    assert_same(agent.greedy(little, (), obs)[0], agent.greedy(state, (), obs)[0])
    weights = sum(leaf.size for leaf in jax.tree.leaves(little))
    actor = sum(leaf.size for leaf in jax.tree.leaves(state.networks.actor))
    assert actor < weights <= actor + 2 * sum(SIZES.values()) + len(SIZES)


def test_batch_without_its_axis_is_refused():
    _, agent, state, _ = setup()
    with pytest.raises(AssertionError):
        agent.update(state, jax.tree.map(lambda leaf: leaf[0], make_batch()), KEY)


def test_the_horizon_is_annealed_in_orders_of_magnitude():
    _, agent, state, _ = setup(discount=0.9, discount_final=0.999, anneal_updates=10)

    def horizon(num_updates: int) -> float:
        state_then = dataclasses.replace(state, num_updates=jnp.asarray(num_updates))
        return float(1.0 / (1.0 - agent.discount(state_then)))

    # From 10 steps to 1,000: half way in orders of magnitude are 100.
    np.testing.assert_allclose(
        [horizon(n) for n in (0, 5, 10, 99)], [10.0, 100.0, 1000.0, 1000.0], rtol=1e-3
    )


def test_without_annealing_the_discount_is_the_members_own():
    _, agent, state, _ = setup(discount=0.9)
    assert agent.discount(state) == state.hypers.discount


def test_the_target_entropy_is_annealed_linearly():
    # The temperature rises while the policy's entropy is below its target, and falls above.
    _, _, state, update = setup(
        target_entropy_per_dim=50.0, target_entropy_final=-50.0, anneal_updates=10
    )

    def change(num_updates: int) -> float:
        state_then = dataclasses.replace(state, num_updates=jnp.asarray(num_updates))
        return float(update(state_then, make_batch(), KEY)[0].log_alpha - state.log_alpha)

    assert change(0) > 0 and change(4) > 0
    assert change(6) < 0 and change(10) < 0 and change(99) < 0


def test_members_of_a_population_are_all_combinations():
    numbers = (("critic_lr", 0.1), ("discount", 0.5), ("critic_lr", 0.2), ("discount", 0.25))
    members = members_of(make_config(population=numbers))
    assert [(member.critic_lr, member.discount) for member in members] == [
        (0.1, 0.5),
        (0.1, 0.25),
        (0.2, 0.5),
        (0.2, 0.25),
    ]
    assert all(not member.population for member in members)
    assert members_of(make_config()) == [make_config()]
    for numbers, said in (
        ((("n_step", 3.0),), "population may vary actor_lr, .*, got 'n_step'"),
        ((("discount", 0.5), ("discount", 0.5)), "population names discount:0.5 twice"),
        ((("actor_lr", -1.0),), "actor_lr must be positive, got -1.0"),
    ):
        with pytest.raises(ValueError, match=said):
            make_config(population=numbers)


def test_hypers_are_read_from_the_configuration():
    hypers = Hypers.from_config(make_config(actor_lr=0.5, discount=0.25))
    assert (hypers.actor_lr, hypers.discount, hypers.target_entropy_per_dim) == (0.5, 0.25, -1.0)
    assert all(value.dtype == jnp.float32 and value.shape == () for value in hypers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_critics": 0}, "num_critics must be at least 1, got 0"),
        ({"num_quantiles": 0}, "num_quantiles must be at least 1, got 0"),
        ({"n_step": 0}, "n_step must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"normalise_updates": 0}, "normalise_updates must be at least 1, got 0"),
        ({"actor_lr": 0.0}, "actor_lr must be positive, got 0.0"),
        ({"critic_lr": float("nan")}, "critic_lr must be positive, got nan"),
        ({"alpha": -1.0}, "alpha must be positive, got -1.0"),
        ({"alpha_lr": -1.0}, "alpha_lr must not be negative, got -1.0"),
        ({"max_grad_norm": -0.5}, "max_grad_norm must not be negative, got -0.5"),
        ({"reconstruct_weight": -1.0}, "reconstruct_weight must not be negative, got -1.0"),
        ({"reset_interval": -1}, "reset_interval must not be negative, got -1"),
        ({"lr_decay_updates": -1}, "lr_decay_updates must not be negative, got -1"),
        (
            {"anneal_updates": 5},
            "anneal_updates must be positive with discount_final or target_entropy_final, and "
            "0 without them, got 5",
        ),
        (
            {"discount_final": 0.99},
            "anneal_updates must be positive with discount_final or target_entropy_final, and "
            "0 without them, got 0",
        ),
        ({"discount_final": 1.0}, r"discount_final must be in \[0, 1\), got 1.0"),
        (
            {"discount": 1.0, "discount_final": 0.9, "anneal_updates": 1},
            "discount must be below 1 with discount_final, got 1.0",
        ),
        ({"discount": 1.1}, r"discount must be in \(0, 1\], got 1.1"),
        ({"target_mix": 0.0}, r"target_mix must be in \(0, 1\], got 0.0"),
        ({"lr_final": 0.0}, r"lr_final must be in \(0, 1\], got 0.0"),
        ({"actor_average": 1.0}, r"actor_average must be in \[0, 1\), got 1.0"),
        ({"hidden": ()}, r"hidden must be positive widths, got \(\)"),
        ({"hidden": (32, 0)}, r"hidden must be positive widths, got \(32, 0\)"),
        ({"activation": "gelu"}, "activation must be one of relu, silu, tanh, elu, got 'gelu'"),
        ({"actor_obs": ()}, "actor_obs must name at least one observation entry"),
        ({"critic_obs": ()}, "critic_obs must name at least one observation entry"),
        ({"static_obs": ("state",)}, "static_obs names 'state', which actor_obs names too"),
        ({"raw_obs": ("car",)}, "raw_obs names 'car', which nothing reads; read are state"),
        (
            {"critic_obs": ("state", "car"), "static_obs": ("car",)},
            "static_obs names 'car', which critic_obs names too",
        ),
        ({"static_hidden": ()}, r"static_hidden must be positive widths, got \(\)"),
        ({"static_hidden": (8, 0)}, r"static_hidden must be positive widths, got \(8, 0\)"),
        (
            {"static_obs": ("car",), "hidden": (32,)},
            r"hidden must be two widths or more with static_obs, got \(32,\)",
        ),
    ],
)
def test_bad_values_raise_one_line_with_name_and_range(change, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        QRSACConfig(**change)


@pytest.mark.parametrize("field", ["actor_obs", "critic_obs", "static_obs", "reconstruct_obs"])
def test_missing_observation_entry_is_named_with_what_there_is(field):
    named = ("wall",) if field == "static_obs" else ("state", "wall")
    agent = make_qr_sac(make_config(**{field: named}), ACTION_SIZE)
    message = "^the environment has no observation entry 'wall'; it offers extra, state$"
    with pytest.raises(ValueError, match=message):
        agent.init(jax.random.key(0), EXAMPLE)


def test_reconstruction_loss_is_the_squared_error_of_what_the_last_layer_decodes():
    made = setup(reconstruct_obs=("extra",), normalise_obs=False)
    batch = make_batch()
    _, metrics = made.update(made.state, batch, KEY)
    output = forward(made.state.networks.actor, batch.obs["state"])
    assert output.shape == (BATCH_SIZE, 2 * ACTION_SIZE + SIZES["extra"])
    error = output[:, 2 * ACTION_SIZE :] - np.asarray(batch.obs["extra"])
    np.testing.assert_allclose(metrics["reconstruction_loss"], np.mean(error**2), rtol=1e-5)
    assert made.agent.greedy(made.state, (), batch.obs)[0].shape == (BATCH_SIZE, ACTION_SIZE)


def test_reconstruction_is_learnt_and_moves_nothing_but_the_actor():
    with_it, weightless = (
        setup(reconstruct_obs=("extra",), reconstruct_weight=weight, normalise_obs=False)
        for weight in (1.0, 0.0)
    )
    batch = make_batch()
    first, _ = with_it.update(with_it.state, batch, KEY)
    other, _ = weightless.update(weightless.state, batch, KEY)
    assert_same(first.networks.critics, other.networks.critics)
    assert difference(first.networks.actor, other.networks.actor) > 0
    state, losses = with_it.state, []
    for _ in range(300):
        state, metrics = with_it.update(state, batch, KEY)
        losses.append(float(metrics["reconstruction_loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_smoothness_is_off_by_default_and_moves_nothing_but_the_actor():
    plain, smooth = setup(), setup(smoothness=5.0)
    before, metrics = plain.update(plain.state, make_batch(), KEY)
    after, more = smooth.update(smooth.state, make_batch(), KEY)
    assert "roughness" not in metrics and float(more["roughness"]) > 0.0
    np.testing.assert_allclose(more["actor_loss"], metrics["actor_loss"], rtol=1e-6)
    assert difference(after.networks.actor, before.networks.actor) > 0.0
    assert_same(after.networks.critics, before.networks.critics)


def test_a_smooth_actor_does_nearly_the_same_in_like_states():
    def roughness(smoothness: float) -> float:
        made = setup(smoothness=smoothness, actor_lr=1e-2, smoothness_noise=0.3)
        state = made.state
        for step in range(60):
            state, _ = made.update(state, make_batch(), jax.random.key(step))
        obs = make_obs(5, 64)
        like = {name: value + 0.3 for name, value in obs.items()}
        moved = made.agent.greedy(state, (), like)[0] - made.agent.greedy(state, (), obs)[0]
        return float(jnp.mean(moved**2))

    assert roughness(20.0) < 0.3 * roughness(1e-6)


def test_raw_entries_are_neither_standardised_nor_blurred():
    made = setup(raw_obs=("state", "extra"), smoothness=5.0)
    plain = setup(normalise_obs=False)
    batch = make_batch()
    after, metrics = made.update(made.state, batch, KEY)
    expected, _ = plain.update(plain.state, batch, KEY)
    assert_same(after.networks, expected.networks)
    assert float(metrics["roughness"]) == 0.0
    # One of two entries alone is standardised.
    mixed = setup(raw_obs=("extra",))
    other, _ = mixed.update(mixed.state, batch, KEY)
    assert difference(other.networks.critics, expected.networks.critics) > 0.0
    standard = setup()
    third, _ = standard.update(standard.state, batch, KEY)
    assert difference(other.networks.critics, third.networks.critics) > 0.0


def test_adopted_agent_keeps_what_was_learnt_and_its_own_hyper_parameters():
    made = setup()
    trained, _ = made.update(made.state, make_batch(), KEY)
    config, agent, start = fresh(critic_lr=0.5)
    adopted = agent.adopt(start, trained)
    assert_same(adopted.networks, trained.networks)
    for name, stats in adopted.obs_stats.items():
        np.testing.assert_allclose(stats.mean, trained.obs_stats[name].mean)
    assert float(adopted.log_alpha) == float(trained.log_alpha)
    assert int(adopted.num_updates) == 0 and int(trained.num_updates) == 1
    assert float(adopted.hypers.critic_lr) == config.critic_lr == 0.5
    _, agent, start = fresh(learn_alpha=False, alpha=0.7)
    np.testing.assert_allclose(jnp.exp(agent.adopt(start, trained).log_alpha), 0.7, rtol=1e-6)


def shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def test_static_entries_are_off_by_default_and_leave_no_parameters():
    assert QRSACConfig().static_obs == ()
    _, _, state = fresh()
    inputs = {"actor": SIZES["state"], "critics": sum(SIZES.values()) + ACTION_SIZE}
    outputs = {"actor": 2 * ACTION_SIZE, "critics": NUM_QUANTILES}
    for network, lead in (("actor", ()), ("critics", (2,))):
        assert shapes(getattr(state.networks, network)) == {
            "PartedDense_0/kernel": (*lead, inputs[network], 16),
            "PartedDense_0/bias": (*lead, 16),
            "Dense_0/kernel": (*lead, 16, 16),
            "Dense_0/bias": (*lead, 16),
            "output/kernel": (*lead, 16, outputs[network]),
            "output/bias": (*lead, outputs[network]),
        }
    # The random numbers do not depend on what an encoder that is not there would look like.
    _, _, other = fresh(static_hidden=(7, 7))
    assert_same(other.networks, state.networks)


def test_static_entries_reach_actor_and_critics_behind_their_trunks():
    _, agent, state, _ = setup(**STATIC)
    actor, critics = state.networks.actor, state.networks.critics
    assert actor["PartedDense_0"]["kernel"].shape == (SIZES["state"], 16)
    assert critics["PartedDense_0"]["kernel"].shape == (2, SIZES["state"] + ACTION_SIZE, 16)
    assert critics["encoder"]["PartedDense_0"]["kernel"].shape == (2, SIZES["extra"], 6)
    for params, lead in ((actor, ()), (critics, (2,))):
        assert params["PartedDense_1"]["kernel"].shape == (*lead, 16 + 6, 16)
    assert set(state.obs_stats) == set(SIZES)
    obs = make_obs(7, 50)
    other = {**obs, "extra": obs["extra"] + 1.0}
    moved = agent.greedy(state, (), other)[0] - agent.greedy(state, (), obs)[0]
    assert (np.abs(moved).max(axis=1) > 1e-4).all()


def test_static_entries_work_with_everything_that_touches_the_networks():
    """Afterstate, reconstruction, layer norm, the averaged actor and re-initialisation at once."""
    config = make_config(
        **STATIC,
        afterstate=True,
        reconstruct_obs=("extra",),
        layer_norm=True,
        actor_average=0.9,
        reset_interval=2,
    )
    model = Afterstate(size=2, features=lambda obs, action: obs["extra"] * action)
    agent = make_qr_sac(config, ACTION_SIZE, model)
    state = agent.init(jax.random.key(0), EXAMPLE)
    first = state.networks.critics["PartedDense_0"]["kernel"]
    assert first.shape == (2, SIZES["state"] + ACTION_SIZE + model.size, 16)
    update = jax.jit(agent.update, compiler_options=QUICK_COMPILE)
    states = [state]
    for number in range(2):
        state, metrics = update(state, make_batch(), jax.random.fold_in(KEY, number))
        assert all(np.isfinite(value) for value in metrics.values())
        states.append(state)
    encoders = [state.networks.actor["encoder"] for state in states]
    assert 0 < difference(encoders[1], encoders[0]) < 1e-3 < 0.1 < difference(*encoders[1:])
    assert_same(states[2].networks.actor_average, states[2].networks.actor)


def test_a_bundle_of_a_run_asks_for_the_static_entries_and_is_restored(tmp_path):
    class TwoEntries(EpisodeEnv):
        def reset(self, rng: jax.Array) -> State:
            return State(None, EXAMPLE, reward=jnp.zeros(()), done=jnp.zeros(()))

    config, agent, state, _ = setup(**STATIC, actor_average=0.5)
    learner = SimpleNamespace(agent=config, seed=0, num_seeds=1)
    experiment = SimpleNamespace(config=learner, env=TwoEntries(1), agent=agent, bundle_extra={})
    row = {"epoch": 1, "env_steps": 1, "updates": 1}
    _save_bundle(cast(Experiment, experiment), tmp_path, state, 0, row)
    policy = load_policy(tmp_path / "policy")
    assert set(policy.manifest["observation"]) == {"state", "extra"}
    obs = make_obs(3, 4)
    expected = agent.greedy(state, (), obs)[0]
    np.testing.assert_allclose(policy.act(obs), expected, atol=1e-5)
    restored, trained = trained_agent(policy)
    np.testing.assert_allclose(restored.greedy(trained, (), obs)[0], expected, atol=1e-5)


def test_agent_learns_what_only_a_static_entry_tells():
    """One step, reward 1 - (action - context / 2)^2, and the context is static."""
    config = make_config(
        **STATIC,
        num_quantiles=1,
        actor_lr=3e-3,
        critic_lr=3e-3,
        learn_alpha=False,
        alpha=1e-4,
        normalise_obs=False,
    )
    agent = make_qr_sac(config, 1)

    def draw(key):
        state_key, sign_key, action_key = jax.random.split(key, 3)
        sign = jax.random.rademacher(sign_key, (64, 1), jnp.float32)
        obs = {
            "state": jax.random.normal(state_key, (64, SIZES["state"])),
            "extra": jnp.concatenate([sign, -sign], axis=1),
        }
        action = jax.random.uniform(action_key, (64, 1), minval=-1.0)
        reward = 1.0 - (action - 0.5 * sign)[:, 0] ** 2
        return Batch(obs, action, reward, jnp.zeros(64), obs)

    def step(state, key):
        batch_key, update_key = jax.random.split(key)
        return agent.update(state, draw(batch_key), update_key)

    def train(state):
        return jax.lax.scan(step, state, jax.random.split(KEY, 600))[0]

    start = agent.init(jax.random.key(0), EXAMPLE)
    state = jax.jit(train, compiler_options=QUICK_COMPILE)(start)
    obs = draw(jax.random.key(1)).obs
    action, _ = agent.greedy(state, (), obs)
    # Whoever is blind to the context is off by 0.5 in the mean.
    assert np.abs(action - 0.5 * obs["extra"][:, :1]).mean() < 0.15
