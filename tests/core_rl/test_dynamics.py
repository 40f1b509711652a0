"""Learned dynamics: what is learnt, what may not be looked at, which parameters are kept."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.dynamics import (
    DynamicsConfig,
    Progress,
    as_dynamics,
    load_dynamics,
    make_dynamics,
    save_dynamics,
)
from core_rl.env import make_env_loop, named_obs
from core_rl.episodes import Episodes, collect, from_replay
from core_rl.errors import UserError
from core_rl.replay import make_replay
from core_rl.types import Transition
from tests.probes import QUICK_COMPILE, EpisodeEnv

CONFIG = DynamicsConfig(
    hidden=(32, 32),
    num_members=3,
    horizon=4,
    batch_size=32,
    learning_rate=5e-3,
    num_epochs=60,
    fine_tune_lr=2e-3,
    fine_tune_epochs=60,
    patience=15,
)
OBS_SIZE, ACTION_SIZE, NUM_STEPS = 2, 1, 12
# One model for most tests: it compiles once for each size of the data.
MODEL = make_dynamics(CONFIG, OBS_SIZE, ACTION_SIZE, QUICK_COMPILE)
predict = jax.jit(MODEL.predict, compiler_options=QUICK_COMPILE)
disagreement = jax.jit(MODEL.disagreement, compiler_options=QUICK_COMPILE)


def linear(obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """A lightly damped oscillator, pushed."""
    position, speed = obs[..., 0], obs[..., 1]
    return np.stack(
        [position + 0.2 * speed, speed - 0.2 * position - 0.05 * speed + 0.3 * action[..., 0]], -1
    )


def push(obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The same everywhere."""
    return obs + np.array([0.3, -0.1]) * action


def pendulum(obs: np.ndarray, action: np.ndarray, strength: float = 1.0) -> np.ndarray:
    angle, speed = obs[..., 0], obs[..., 1]
    faster = 0.9 * speed - 0.3 * np.sin(2.0 * angle) + 0.3 * strength * action[..., 0]
    return np.stack([angle + 0.2 * speed, faster], -1)


def record(
    seed: int, num_episodes: int, num_steps: int = NUM_STEPS, step=linear, **changes
) -> Episodes:
    """Episodes under random actions, from random beginnings."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (num_episodes, num_steps, ACTION_SIZE))
    obs = [rng.uniform(-1, 1, (num_episodes, OBS_SIZE))]
    for now in range(num_steps):
        obs.append(step(obs[-1], action[:, now], **changes))
    return Episodes(
        obs=np.stack(obs, 1).astype(np.float32),
        action=action.astype(np.float32),
        valid=np.ones((num_episodes, num_steps), bool),
    )


KEY = jax.random.key(0)
SEEN = record(0, 30)


@pytest.fixture(scope="module")
def fitted():
    history: list[Progress] = []
    return MODEL.fit(KEY, SEEN, history.append), history


def same(left, right) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(left), jax.tree.leaves(right)))


def test_learns_a_linear_system(fitted):
    state, history = fitted
    error = MODEL.evaluate(state, record(1, 30), 4)
    typical = np.std(np.diff(SEEN.obs, axis=1), axis=(0, 1))
    # A tenth of the typical one-step change after four steps fed back; the model that predicts the
    # mean change is off by 1 after the first.
    assert np.all(error < 0.1 * typical)
    # What is reported is true of episodes that it was not fitted to.
    assert np.all(history[-1].best_error < 0.1)
    assert np.all(history[0].best_error > 0.8)
    assert [progress.epoch for progress in history] == list(range(len(history)))
    assert history[-1].loss < 0.01


def test_what_follows_the_end_of_an_episode_is_never_read(fitted):
    # All episodes end a step early. What stands behind differs as much as it can.
    valid = np.tile(np.arange(NUM_STEPS) < NUM_STEPS - 1, (30, 1))
    behind = np.arange(NUM_STEPS + 1) == NUM_STEPS
    states = []
    for fill in (np.nan, 1e9):
        obs = np.where(behind[:, None], fill, SEEN.obs)
        action = np.where(valid[..., None], SEEN.action, fill)
        states.append(MODEL.fit(KEY, Episodes(obs, action, valid)))
    assert same(*states)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(states[0]))
    # It would matter: the same steps, read to the end of the row, make another model.
    assert not same(states[0].obs, fitted[0].obs)


def test_predictions_are_not_fed_back_across_an_end():
    # Rows hold two episodes, and the second begins where the first could never lead to. A window
    # that went on behind the end would be off by 3, against a typical change of 0.2.
    first, second = record(0, 30, 6, push), record(1, 30, 5, push)
    joined = Episodes(
        obs=np.concatenate(
            [first.obs, second.obs + 3.0 * (-1.0) ** np.arange(30)[:, None, None]], 1
        ),
        action=np.concatenate([first.action, np.zeros((30, 1, 1)), second.action], 1),
        valid=np.tile(np.arange(NUM_STEPS) != 6, (30, 1)),
    )
    errors: list[Progress] = []
    state = MODEL.fit(KEY, joined, errors.append)
    assert np.all(errors[-1].best_error < 0.2)
    with pytest.raises(UserError, match="none has 7 valid steps in a row, at most 6"):
        MODEL.evaluate(state, joined, 7)
    # It would matter: were the end not marked, nothing could predict the step to 3 or -3.
    MODEL.fit(KEY, dataclasses.replace(joined, valid=np.ones((30, NUM_STEPS), bool)), errors.append)
    assert np.all(errors[-1].best_error > 0.5)


@pytest.mark.parametrize("factor", [4096.0, 1e-5])
def test_the_unit_of_an_observation_entry_does_not_matter(fitted, factor):
    state, history = fitted
    scale = np.array([1.0, factor], np.float32)
    scaled_history: list[Progress] = []
    scaled = MODEL.fit(KEY, dataclasses.replace(SEEN, obs=SEEN.obs * scale), scaled_history.append)
    # A power of two scales exactly; other factors round, and training amplifies that a little.
    tolerance = 1e-5 if factor == 4096.0 else 0.02
    obs, action = SEEN.obs[:, 3], SEEN.action[:, 3]
    plain = predict(state, obs, action) - obs
    rescaled = predict(scaled, obs * scale, action) / scale - obs
    np.testing.assert_allclose(rescaled, plain, atol=tolerance)
    np.testing.assert_allclose(
        scaled_history[-1].best_error, history[-1].best_error, atol=tolerance
    )


def test_entries_that_do_not_vary_are_exact():
    # A constant, and a clock, whose changes differ by rounding only.
    still = np.full_like(SEEN.obs[..., :1], 0.1)
    clock = (np.arange(30)[:, None] + 0.1 * np.arange(NUM_STEPS + 1)).astype(np.float32)
    action = SEEN.action[:, 0]
    for name, entry in (("still", still), ("clock", clock[..., None])):
        data = dataclasses.replace(SEEN, obs=np.concatenate([SEEN.obs[..., :1], entry], axis=-1))
        state = MODEL.fit(KEY, data)
        obs = data.obs[:, 0]
        predicted = predict(state, obs, action)
        np.testing.assert_allclose(predicted[:, 1], data.obs[:, 1, 1], atol=1e-5)
        # A change of it could never be learnt.
        with pytest.raises(UserError, match=r"change of obs entry 1 varies .* fit it anew on both"):
            MODEL.fine_tune(state, KEY, SEEN)
        if name == "still":  # another constant is as good
            elsewhere = predict(state, obs + np.array([0.0, 5.0], np.float32), action)
            np.testing.assert_array_equal(elsewhere[:, 0], predicted[:, 0])


def test_early_stop_keeps_the_best_on_held_out_episodes():
    # Changes are noise: of the sixty steps of five episodes much can be learnt by heart, which is
    # wrong of the sixth.
    rng = np.random.default_rng(0)
    few = record(0, 6)
    noise = dataclasses.replace(few, obs=rng.normal(size=few.obs.shape).astype(np.float32))
    history: list[Progress] = []
    state = MODEL.fit(KEY, noise, history.append)
    errors = np.array([progress.validation_error for progress in history])
    best = errors.argmin(axis=0)
    # It stopped when no member had done better for so long.
    assert len(history) - 1 == best.max() + CONFIG.patience < CONFIG.num_epochs
    assert np.all(errors[-1] > errors.min(axis=0) + 1e-3)
    np.testing.assert_array_equal(history[-1].best_error, errors.min(axis=0))
    # The parameters returned are those of the best epoch of each member: measured again.
    again: list[Progress] = []
    tuned = MODEL.fine_tune(state, KEY, noise, again.append)
    np.testing.assert_allclose(again[0].validation_error, errors.min(axis=0), rtol=1e-5)
    # Fine-tuning counts what it begins with among the candidates, and keeps the statistics.
    assert np.all(again[-1].best_error <= again[0].best_error)
    assert same(dataclasses.replace(tuned, params=None), dataclasses.replace(state, params=None))


@pytest.fixture(scope="module")
def swung():
    return MODEL.fit(KEY, record(0, 30, step=pendulum))


def test_fine_tuning_on_few_episodes_beats_the_old_model_and_a_new_one(swung):
    # The push is half as strong, and in the other direction. Six episodes of it, one held out.
    few = record(5, 6, step=pendulum, strength=-0.5)
    fresh = record(9, 30, step=pendulum, strength=-0.5)
    errors = {
        name: MODEL.evaluate(state, fresh, 4)[-1]
        for name, state in (
            ("old", swung),
            ("new", MODEL.fit(KEY, few)),
            ("tuned", MODEL.fine_tune(swung, KEY, few)),
        )
    }
    assert np.all(errors["tuned"] < 0.3 * errors["old"])
    assert np.all(errors["tuned"] < 0.7 * errors["new"])


def test_members_differ_and_disagree_more_off_the_data(swung):
    data = record(0, 30, step=pendulum)
    obs, action = data.obs[:, 0], data.action[:, 0]
    members = [
        dataclasses.replace(
            swung, params=jax.tree.map(lambda leaf, i=i: leaf[np.full(3, i)], swung.params)
        )
        for i in range(3)
    ]
    predictions = np.stack([predict(member, obs, action) for member in members])
    # The prediction is their mean, the disagreement their deviation in typical changes.
    np.testing.assert_allclose(predict(swung, obs, action), predictions.mean(axis=0), atol=1e-5)
    spread = predictions.std(axis=0) / np.asarray(swung.change.scale)
    expected = np.sqrt(np.mean(spread**2, axis=-1))
    on_data = np.asarray(disagreement(swung, obs, action))
    np.testing.assert_allclose(on_data, expected, atol=1e-4)
    assert on_data.shape == (30,) and on_data.min() > 1e-4
    assert all(np.allclose(disagreement(m, obs, action), 0.0, atol=1e-5) for m in members)
    near, far = (np.mean(disagreement(swung, obs + away, action)) for away in (3.0, 20.0))
    assert near > 4.0 * on_data.mean() and far > near
    # However far: the change stays bounded.
    assert np.all(np.abs(predict(swung, obs + 1e6, action) - (obs + 1e6)) < 100.0)


def test_predictions_fit_jit_vmap_and_grad(fitted):
    dynamics = as_dynamics(MODEL, fitted[0])
    obs, action = jnp.asarray(SEEN.obs[:, 0]), jnp.asarray(SEEN.action[:, 0])
    together = jax.jit(dynamics)(obs, action)
    assert together.shape == obs.shape
    np.testing.assert_allclose(jax.vmap(dynamics)(obs, action), together, atol=1e-6)
    np.testing.assert_allclose(dynamics(obs[0], action[0]), together[0], atol=1e-6)
    # The known system's derivatives: the push moves the speed, the speed the position.
    at = jnp.array([0.2, -0.1]), jnp.array([0.3])
    by_obs, by_action = jax.jit(jax.jacobian(dynamics, argnums=(0, 1)))(*at)
    np.testing.assert_allclose(by_action, [[0.0], [0.3]], atol=0.03)
    np.testing.assert_allclose(by_obs, [[1.0, 0.2], [-0.2, 0.95]], atol=0.03)
    slope = jax.grad(MODEL.disagreement, argnums=2)(fitted[0], *at)
    assert np.all(np.isfinite(slope))


def test_entries_go_in_and_come_out_by_name(fitted):
    named = as_dynamics(MODEL, fitted[0], {"speed": 1, "place": 1})
    obs, action = SEEN.obs[:, 0], SEEN.action[:, 0]
    entries = {"place": obs[:, 1:], "speed": obs[:, :1], "unread": obs}
    predicted = named(entries, action)
    assert list(predicted) == ["speed", "place"]
    together = jnp.concatenate([predicted["speed"], predicted["place"]], axis=-1)
    np.testing.assert_array_equal(together, MODEL.predict(fitted[0], obs, action))
    with pytest.raises(UserError, match="no observation entry 'place'; it offers speed"):
        named({"speed": obs[:, :1]}, action)
    with pytest.raises(UserError, match="have 3 numbers, the model has 2"):
        as_dynamics(MODEL, fitted[0], {"place": 1, "speed": 2})


def test_a_second_fit_of_the_same_size_compiles_nothing(fitted, caplog):
    del fitted
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        MODEL.fit(jax.random.key(7), record(3, 30))
        compiled = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
        assert compiled == []
        jax.jit(lambda x: x + 1.0)(jnp.zeros(3))
    assert any("Compiling" in r.getMessage() for r in caplog.records)  # it would have been seen


def with_value(array: np.ndarray, index, value) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"valid": np.ones(30, bool)}, r"must be \[N, T \+ 1, F\].* \[30, 13, 2\].* and \[30\]"),
        ({"obs": SEEN.obs[:, 1:]}, r"obs must be \[30, 13, 2\] .*, got \[30, 12, 2\]"),
        ({"obs": SEEN.obs[..., :1]}, r"obs must be \[30, 13, 2\] .*, got \[30, 13, 1\]"),
        ({"action": SEEN.obs[:, 1:]}, r"action must be \[30, 12, 1\] .*, got \[30, 12, 2\]"),
        ({"valid": np.zeros((30, 12), bool)}, "no valid step in 30 episodes of 12 steps"),
        (
            {"valid": np.arange(30)[:, None] * np.ones((1, 12)) == 4},
            "one episode with valid steps; at least 2 are needed",
        ),
        (
            {"obs": with_value(SEEN.obs, (7, 12, 1), np.inf)},
            "obs of episode 7, step 12, entry 1 is inf; every number",
        ),
        (
            {"action": with_value(SEEN.action, (3, 5, 0), np.nan)},
            "action of episode 3, step 5, entry 0 is nan; every number",
        ),
    ],
)
def test_bad_episodes_are_refused_in_one_line(fitted, arrays, message):
    bad = dataclasses.replace(SEEN, **arrays)
    for train in (MODEL.fit, lambda key, data: MODEL.fine_tune(fitted[0], key, data)):
        with pytest.raises(UserError, match=message) as error:
            train(KEY, bad)
        assert "\n" not in str(error.value)


def test_inputs_of_another_size_are_refused(fitted):
    with pytest.raises(UserError, match=r"obs must be \[..., 2\], got \[5, 3\]"):
        MODEL.predict(fitted[0], jnp.zeros((5, 3)), jnp.zeros((5, 1)))
    with pytest.raises(UserError, match=r"action must be \[..., 1\], got \[2\]"):
        jax.jit(MODEL.disagreement)(fitted[0], jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(UserError, match=r"action must be \[..., 1\], got \[\]"):
        as_dynamics(MODEL, fitted[0])(jnp.zeros(2), 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"num_members": 0}, "num_members must be at least 1"),
        ({"fine_tune_lr": 0.0}, "fine_tune_lr must be positive, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"validation_share": 1.0}, r"validation_share must be in \(0, 1\), got 1.0"),
        ({"lr_final": 0.0}, r"lr_final must be in \(0, 1\]"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must not be negative"),
        ({"hidden": ()}, "hidden must be positive widths"),
        ({"activation": "mish"}, "activation must be one of relu, silu, tanh, elu, got 'mish'"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DynamicsConfig(**changes)


MAX_STEPS, LENGTH = 6, 4


def check_episodes(data: Episodes, num_envs: int) -> np.ndarray:
    """Each row is one episode of `EpisodeEnv`, with its true last observation; returns lengths."""
    obs, valid = np.asarray(data.obs), np.asarray(data.valid)
    lengths = valid.sum(axis=1)
    assert valid.shape[1] == lengths.max() <= LENGTH
    broken = 0
    for row, length in enumerate(lengths):
        assert valid[row, :length].all()
        identity, steps = obs[row, : length + 1].T
        np.testing.assert_array_equal(identity, identity[0])
        np.testing.assert_array_equal(np.diff(steps), 1.0)
        whole = min(1 + int(identity[0] * MAX_STEPS), LENGTH)
        broken += not (steps[0] == 0 and length == whole)
        assert steps[-1] <= whole
    assert broken <= 2 * num_envs  # only where the recording begins and ends
    assert len(np.unique(obs[:, 0, 0])) == len(lengths)
    return lengths


def test_collects_honest_episodes():
    def policy(obs, key):
        del key
        return 0.9 - 0.1 * obs["state"][:, 1:]

    def rollout(noise):
        env = EpisodeEnv(MAX_STEPS)
        return collect(
            env, policy, KEY, num_envs=3, num_steps=11, episode_length=LENGTH, noise=noise
        )

    exact, noisy = rollout(0.0), rollout(0.5)
    for data in (exact, noisy):
        lengths = check_episodes(data, 3)
        assert lengths.sum() == 33 and len(lengths) > 6
    asked = 0.9 - 0.1 * exact.obs[:, :-1, 1:]
    valid = exact.valid[..., None]
    np.testing.assert_allclose(exact.action, np.where(valid, asked, 0.0), atol=1e-6)
    added = (noisy.action - asked)[valid]
    assert 0.2 < added.std() < 0.5 and np.abs(noisy.action).max() == 1.0
    with pytest.raises(UserError, match="no observation entry 'place'; it offers state"):
        collect(
            EpisodeEnv(2),
            policy,
            KEY,
            num_envs=1,
            num_steps=1,
            episode_length=1,
            entries=("place",),
        )


def test_reads_a_replay_from_its_oldest_step_on():
    num_envs, num_rows = 3, 9
    env_loop = make_env_loop(EpisodeEnv(MAX_STEPS), LENGTH)
    replay = make_replay(capacity=num_envs * num_rows, num_envs=num_envs, batch_size=1, n_step=1)
    no = jnp.zeros((), bool)

    def step(carry, row):
        slots, memory = carry
        slots, transition, _ = env_loop.step(slots, jnp.full((num_envs, 1), row / 100.0))
        return (slots, replay.add(memory, transition)), None

    def fill(key):
        slots = env_loop.reset(key, num_envs)
        obs = jax.tree.map(lambda leaf: leaf[0], named_obs(slots.state))
        memory = replay.init(Transition(obs, jnp.zeros(1), jnp.zeros(()), no, no, obs))
        (_, memory), _ = jax.lax.scan(step, (slots, memory), jnp.arange(num_added))
        return memory

    num_added = num_rows + 5  # the ring's seam lies inside
    memory = jax.jit(fill, compiler_options=QUICK_COMPILE)(KEY)
    data = from_replay(memory, num_envs, ("state",))
    lengths = check_episodes(data, num_envs)
    assert lengths.sum() == num_envs * num_rows
    rows = np.round(100 * np.asarray(data.action)[np.asarray(data.valid)][:, 0]).astype(int)
    np.testing.assert_array_equal(np.unique(rows), np.arange(5, num_added))


def test_a_saved_model_predicts_the_same(fitted, tmp_path):
    state, _ = fitted
    path = tmp_path / "folder" / "model.npz"
    save_dynamics(path, CONFIG, state, {"of": "an oscillator"})
    model, loaded, extra = load_dynamics(path)
    assert extra == {"of": "an oscillator"} and model.config == CONFIG
    assert same(loaded, state)
    obs, action = SEEN.obs[0, :5], SEEN.action[0, :5]
    np.testing.assert_array_equal(
        model.predict(loaded, obs, action), MODEL.predict(state, obs, action)
    )


@pytest.mark.parametrize("content", [None, b"", b"no model", "foreign"])
def test_a_file_without_a_model_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "model.npz"
    if content == "foreign":
        np.savez(path, x=np.zeros(3))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.npz") as caught:
        load_dynamics(path)
    assert "\n" not in str(caught.value)


def test_invariant_entries_are_predicted_and_not_read():
    # The position of the oscillator is not shown: what would be predicted from it is not learnt,
    # and moving it changes no prediction.
    model = make_dynamics(CONFIG, OBS_SIZE, ACTION_SIZE, QUICK_COMPILE, invariant=(0,))
    state = model.fit(KEY, record(2, 20, step=push))
    obs, action = np.array([[0.2, -0.1], [7.0, -0.1]], np.float32), np.full((2, 1), 0.5, np.float32)
    change = model.predict(state, obs, action) - obs
    np.testing.assert_allclose(change[0], change[1], atol=1e-5)
    np.testing.assert_allclose(change[0], [0.15, -0.05], atol=0.02)
    with pytest.raises(ValueError, match="invariant must be entries"):
        make_dynamics(CONFIG, OBS_SIZE, ACTION_SIZE, invariant=(OBS_SIZE,))
