"""The training loop: axes, compilations, memory in place, and what it stores and reports."""

import dataclasses
import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.env import State, named_obs
from core_rl.errors import UserError
from core_rl.qr_sac import Hypers, QRSACConfig, make_qr_sac
from core_rl.train import TrainConfig, TrainState, make_trainer
from core_rl.types import Trainer
from tests.probes import QUICK_COMPILE, CountingEnv

LENGTH = 5
AGENT = QRSACConfig(hidden=(16,), num_quantiles=4, n_step=3, batch_size=16, discount=0.9)
TRAIN = TrainConfig(
    num_envs=4,
    steps_per_epoch=8,
    updates_per_step=2,
    warmup_steps=10,
    replay_capacity=100_000,
    tables=(("late", 0.25),),
)


def is_late(state: State) -> dict[str, jax.Array]:
    return {"late": named_obs(state)["state"][:, 1] >= 3.0}


def build(env: CountingEnv, agent_config: QRSACConfig, train_config: TrainConfig, **changes):
    arguments = {
        "episode_length": LENGTH,
        "batch_size": agent_config.batch_size,
        "n_step": agent_config.n_step,
        "membership": is_late,
    }
    agent = make_qr_sac(agent_config, env.action_size)
    return make_trainer(env, agent, train_config, **{**arguments, **changes})


class Setup(NamedTuple):
    env: CountingEnv
    trainer: Trainer
    start: Any  # (key) -> TrainState, compiled
    epoch: Any  # (TrainState) -> TrainState, metrics; compiled, donates
    calls: list[tuple[int, int]]  # (resets, steps) traced by init, and by epoch


KEYS = jax.random.split(jax.random.key(0), 3)


@pytest.fixture(scope="module")
def one() -> Setup:
    env = CountingEnv(max_steps=8)
    trainer = build(env, AGENT, TRAIN)
    calls = []

    def compiled(function, argument, **options):
        before = env.num_resets, env.num_steps
        lowered = jax.jit(function, **options).lower(argument)
        calls.append((env.num_resets - before[0], env.num_steps - before[1]))
        return lowered.compile(QUICK_COMPILE)

    start = compiled(trainer.init, KEYS[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Some donated buffers were not usable")
        shapes = jax.eval_shape(trainer.init, KEYS[0])
        epoch = compiled(trainer.epoch, shapes, donate_argnums=0)
    return Setup(env, trainer, start, epoch, calls)


class Finished(NamedTuple):
    """A run of two epochs under `KEYS[k]`."""

    first: TrainState  # before the first epoch
    state: TrainState
    metrics: list[dict[str, np.ndarray]]


def copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


@pytest.fixture(scope="module")
def finished(one) -> list[Finished]:
    runs = []
    for key in KEYS:
        state = one.start(key)
        first, metrics = copied(state), []
        for _ in range(2):
            state, values = one.epoch(state)
            metrics.append(jax.tree.map(np.asarray, values))
        runs.append(Finished(first, state, metrics))
    return runs


class Population(NamedTuple):
    start: Any  # (key[S], hypers[S]) -> TrainState[S], jitted
    epoch: Any  # jitted, donates


@pytest.fixture(scope="module")
def population(one) -> Population:
    return Population(
        start=jax.jit(jax.vmap(one.trainer.init), compiler_options=QUICK_COMPILE),
        epoch=jax.jit(
            jax.vmap(one.trainer.epoch), donate_argnums=0, compiler_options=QUICK_COMPILE
        ),
    )


def hypers(**changes) -> Hypers:
    """`[S]`; each change is a list of one number per member."""
    base = Hypers.from_config(AGENT)
    same = Hypers(*(jnp.full(len(KEYS), value) for value in base))
    return same._replace(**{name: jnp.asarray(values) for name, values in changes.items()})


def member(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def assert_close(a: Any, b: Any, atol: float) -> None:
    def compare(x, y):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol)

    jax.tree.map(compare, a, b)


def test_every_seed_of_a_vmapped_run_equals_that_seed_alone(finished, population):
    state = population.start(KEYS, hypers())
    for epoch in range(2):
        state, metrics = population.epoch(state)
        for index in range(len(KEYS)):
            alone = finished[index].metrics[epoch]
            assert_close(member(metrics, index), alone, atol=1e-4)
    # Equal but for the order of float32 sums, which Adam's first steps (g / |g|) amplify where a
    # gradient is nearly zero: the weights differ by well under one learning rate, 3e-4.
    for index in range(len(KEYS)):
        assert_close(member(state, index), finished[index].state, atol=1e-4)
    values = metrics["train/value"]
    assert len(np.unique(values)) == len(KEYS)


def test_learning_rates_and_discounts_of_a_population_share_one_compilation(population):
    same_key = jnp.stack([KEYS[0]] * 3)
    ends = []
    for change in (
        {"critic_lr": [0.0, 3e-4, 3e-2]},
        {"actor_lr": [1e-4, 1e-3, 1e-2]},
        {"discount": [0.1, 0.9, 0.99]},
    ):
        start = population.start(same_key, hypers(**change))
        before = copied(start.agent)
        after, _ = population.epoch(start)
        ends.append((before, after.agent))
    assert population.start._cache_size() == population.epoch._cache_size() == 1

    def moved(before, after, index):
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        return max(float(jnp.abs(a[index] - b[index]).max()) for a, b in pairs)

    critics = [(before.networks.critics, after.networks.critics) for before, after in ends]
    distance = [moved(*critics[0], index) for index in range(3)]
    assert distance[0] == 0.0 and 1e-4 < distance[1] < 0.1 * distance[2]
    actors = [(before.networks.actor, after.networks.actor) for before, after in ends]
    distance = [moved(*actors[1], index) for index in range(3)]
    assert distance[0] < 0.5 * distance[1] < 0.25 * distance[2]
    _, after = critics[2]
    kernel = jax.tree.leaves(after)[-1]
    assert len({float(jnp.sum(kernel[index])) for index in range(3)}) == 3


def test_environment_is_traced_once_per_program_and_never_while_running(one, finished):
    # init: the shapes of an observation, the first reset, and one step and restart of the warm-up.
    # epoch: one step and at most one restart (jax may remember it), however long an epoch is.
    (resets, steps), (epoch_resets, epoch_steps) = one.calls
    assert resets <= 3 and epoch_resets <= 1
    assert steps == epoch_steps == 1
    assert len(finished) == 3  # six epochs have been run by now ...
    before = one.env.num_resets, one.env.num_steps
    one.epoch(one.start(KEYS[1]))
    assert (one.env.num_resets, one.env.num_steps) == before  # ... and nothing traces again


def test_epoch_takes_its_own_output_and_consumes_it(one):
    # A compiled program refuses arguments of other shapes or types: that it takes what it returned
    # means that no later epoch compiles.
    state = one.start(KEYS[0])
    for _ in range(3):
        given, (state, _) = state, one.epoch(state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert int(state.epoch) == 3


def test_every_epoch_has_its_own_randomness(finished):
    keys = [run.first.key for run in finished] + [run.state.key for run in finished]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 2 * len(KEYS)


def test_state_from_an_unjitted_init_can_be_donated(one):
    # Two leaves that share one buffer could not be donated both.
    agent = make_qr_sac(AGENT, 1)
    jitted = one.start(KEYS[0])
    plain = agent.init(jax.random.key(0), {"state": jnp.zeros(2)})
    state, _ = one.epoch(dataclasses.replace(jitted, agent=plain))
    assert int(state.agent.num_updates) == TRAIN.updates_per_epoch


def test_replay_is_updated_in_place(one):
    shapes = jax.eval_shape(one.trainer.init, KEYS[0]).replay
    replay_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    assert replay_bytes > 3_000_000
    memory = one.epoch.memory_analysis()
    assert memory.temp_size_in_bytes < 0.1 * replay_bytes
    assert memory.alias_size_in_bytes > replay_bytes  # the output lives where the input lived


def stored(state: TrainState) -> Any:
    """The transitions in the order in which they came, `[rows, N, ...]`."""
    rows = int(state.replay.num_rows)
    count = rows * TRAIN.num_envs
    return jax.tree.map(
        lambda leaf: np.asarray(leaf[:count]).reshape(rows, TRAIN.num_envs, *leaf.shape[1:]),
        state.replay.storage,
    )


def test_warmup_fills_the_replay_with_uniform_actions_and_the_policy_takes_over(finished):
    first, state, _ = finished[0]
    assert int(first.replay.num_rows) == TRAIN.warmup_steps
    actions = np.concatenate([stored(run.first).action.ravel() for run in finished])
    assert np.abs(actions).max() <= 1.0
    # 120 uniform numbers: mean 0 +- 0.053 and deviation 0.577 +- 0.024, to four deviations.
    assert abs(actions.mean()) < 0.21 and abs(actions.std() - 1 / math.sqrt(3)) < 0.1
    assert int(state.replay.num_rows) == TRAIN.warmup_steps + 2 * TRAIN.steps_per_epoch
    assert int(state.agent.num_updates) == 2 * TRAIN.updates_per_epoch
    assert int(state.epoch) == 2


def test_stored_stream_is_the_environments_own(finished):
    run = stored(finished[0].state)
    obs, next_obs = run.obs["state"], run.next_obs["state"]
    ended = run.terminated | run.truncated
    np.testing.assert_array_equal(next_obs[..., 1], obs[..., 1] + 1)
    np.testing.assert_array_equal(obs[1:][~ended[:-1]], next_obs[:-1][~ended[:-1]])
    np.testing.assert_array_equal(obs[1:][ended[:-1]][:, 1], 0.0)
    np.testing.assert_allclose(run.reward, next_obs[..., 1] + run.action[..., 0], rtol=1e-5)
    assert run.terminated.any() and run.truncated.any()
    # Slots begin at different places of the clock.
    assert len({int(np.argmax(run.truncated[:, env])) for env in range(TRAIN.num_envs)}) > 1


def test_table_holds_what_its_membership_says(finished):
    state = finished[0].state
    run = stored(state)
    expected = np.argwhere(run.next_obs["state"][..., 1] >= 3.0)  # the state a step led to
    tables = state.replay.tables
    count = int(tables.present[0])
    assert count == len(expected) > 5
    entries = np.stack([tables.row[0, :count], tables.env[0, :count]], axis=1)
    np.testing.assert_array_equal(entries, expected)


def test_metrics_are_finite_and_those_of_the_epochs_own_steps(finished):
    _, state, metrics = finished[0]
    run = stored(state)
    obs_steps = run.next_obs["state"][..., 1]
    ended = run.terminated | run.truncated
    # Whole episodes are those that began at a reset of this run: all but each slot's first.
    for epoch, values in enumerate(metrics):
        assert {name.split("/")[0] for name in values} == {"train", "rollout"}
        for name, value in values.items():
            assert np.isfinite(value), name
        begin = TRAIN.warmup_steps + epoch * TRAIN.steps_per_epoch
        rows = slice(begin, begin + TRAIN.steps_per_epoch)
        np.testing.assert_allclose(values["rollout/reward"], run.reward[rows].mean(), rtol=1e-5)
        np.testing.assert_allclose(values["rollout/clock"], obs_steps[rows].mean(), rtol=1e-5)
        lengths = obs_steps[rows][ended[rows]]
        np.testing.assert_allclose(values["rollout/episode_steps"], lengths.mean(), rtol=1e-5)
        returns = [
            run.reward[row - int(obs_steps[row, env]) + 1 : row + 1, env].sum()
            for row, env in np.argwhere(ended)
            if rows.start <= row < rows.stop
        ]
        np.testing.assert_allclose(values["rollout/episode_return"], np.mean(returns), rtol=1e-5)
    assert metrics[0]["train/alpha"] != metrics[1]["train/alpha"]


def test_runs_are_functions_of_their_key(one, finished):
    state, _ = one.epoch(one.epoch(one.start(KEYS[2]))[0])
    assert_close(state, finished[2].state, atol=0.0)
    assert_close(state.agent, finished[2].state.agent, atol=0.0)


def test_agent_that_does_not_fit_is_refused_before_the_run():
    agent_config = dataclasses.replace(AGENT, actor_obs=("wall",))
    with pytest.raises(ValueError, match=r"^the environment has no observation entry 'wall'"):
        build(CountingEnv(8), agent_config, TRAIN)


def test_tables_without_membership_raise_one_clear_line():
    message = r"^--train.tables: there is no table 'late'; this task offers none$"
    with pytest.raises(UserError, match=message):
        build(CountingEnv(8), AGENT, TRAIN, membership=None)


def test_hindsight_without_a_goal_raises_one_clear_line():
    config = dataclasses.replace(TRAIN, hindsight=0.5)
    message = r"^--train.hindsight=0.5: this task has no goal that it could replace$"
    with pytest.raises(UserError, match=message):
        build(CountingEnv(8), AGENT, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"num_epochs": -1}, "num_epochs must be at least 1, got -1"),
        ({"warmup_steps": 0}, "warmup_steps must be at least 1, got 0"),
        ({"updates_per_step": -1}, "updates_per_step must not be negative, got -1"),
        ({"replay_capacity": 63}, "replay_capacity must be at least num_envs=64, got 63"),
    ],
)
def test_bad_sizes_raise_one_line_with_name_and_range(change, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        TrainConfig(**change)


def test_sizes_of_an_epoch():
    assert TRAIN.env_steps_per_epoch == 32
    assert TRAIN.updates_per_epoch == 16
