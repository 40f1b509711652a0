"""The replay against brute force: every fold, every sampled transition, every table entry.

The recorded streams write `(row, env)` into the observation and `(row, env)` plus a half into the
next observation, so that a sample says where it came from.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_rl.replay import fold_n_step, make_replay
from core_rl.types import Batch, Hindsight, Transition

DISCOUNT = 0.9


def fold_by_hand(reward, terminated, truncated, num_available) -> tuple[float, float, int]:
    total, last = 0.0, 0
    for step in range(num_available):
        total += DISCOUNT**step * reward[step]
        last = step
        if terminated[step]:
            return total, 0.0, last
        if truncated[step]:
            break
    return total, DISCOUNT ** (last + 1), last


@pytest.mark.parametrize("n", [1, 4, 5])
def test_fold_equals_brute_force_for_every_placement_of_ends(n):
    cases = list(itertools.product(itertools.product(range(3), repeat=n), range(1, n + 1)))
    ends = np.array([end for end, _ in cases])  # 0 nothing, 1 terminated, 2 truncated
    available = np.array([count for _, count in cases])
    reward = np.random.default_rng(n).normal(size=ends.shape).astype(np.float32)
    fold = jax.jit(jax.vmap(fold_n_step, in_axes=(0, 0, 0, 0, None)))
    folded = fold(reward, ends == 1, ends == 2, available, DISCOUNT)
    assert len(cases) == 3**n * n
    by_hand = [
        fold_by_hand(*case) for case in zip(reward, ends == 1, ends == 2, available, strict=True)
    ]
    for values, expected in zip(folded, zip(*by_hand, strict=True), strict=True):
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_fold_of_a_step_that_is_both_terminated_and_truncated_does_not_bootstrap():
    both = jnp.array([False, True, False])
    reward, bootstrap, last = fold_n_step(jnp.ones(3), both, both, jnp.array(3), jnp.array(0.5))
    assert (reward, bootstrap, last) == (1.5, 0.0, 1)


def test_batched_window_is_refused():
    window = jnp.zeros((2, 3), bool)
    with pytest.raises(AssertionError):
        fold_n_step(window, window, window, jnp.array(3), jnp.array(0.9))


# The whole replay. Capacity 23 with 3 environments: 7 rows of 3, not a whole number of windows.
NUM_ENVS, NUM_ROWS, N_STEP, NUM_ADDS = 3, 7, 4, 26


class Record(NamedTuple):
    """What was added, `[T, N]`, in numpy."""

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray

    @classmethod
    def random(cls, seed: int, num_rows: int, num_envs: int) -> "Record":
        rng = np.random.default_rng(seed)
        ends = rng.choice(3, size=(num_rows, num_envs), p=[0.7, 0.15, 0.15])
        reward = rng.normal(size=ends.shape).astype(np.float32)
        return cls(reward=reward, terminated=ends == 1, truncated=ends == 2)

    def transitions(self) -> Transition:
        """`[T, N]`"""
        row, env = jnp.indices(self.reward.shape, jnp.float32)
        obs = {
            "state": jnp.stack([row, env], axis=-1),
            "other": 100.0 * jnp.stack([env, row], axis=-1),
        }
        return Transition(
            obs=obs,
            action=10.0 * row[..., None] + env[..., None],
            reward=jnp.asarray(self.reward),
            terminated=jnp.asarray(self.terminated),
            truncated=jnp.asarray(self.truncated),
            next_obs=jax.tree.map(lambda entry: entry + 0.5, obs),
        )

    def check(self, batch: Batch, num_rows: int) -> None:
        """Every sample is the true n-step fold of the stream, of which `num_rows` exist so far."""
        origin = where(batch)
        for sample, (row, env) in enumerate(origin):
            window = slice(row, min(row + N_STEP, num_rows))
            reward, bootstrap, last = fold_by_hand(
                self.reward[window, env],
                self.terminated[window, env],
                self.truncated[window, env],
                min(num_rows - row, N_STEP),
            )
            final = row + last
            np.testing.assert_allclose(batch.n_step_reward[sample], reward, atol=1e-5)
            np.testing.assert_allclose(batch.bootstrap_discount[sample], bootstrap, atol=1e-5)
            assert batch.action[sample] == 10 * row + env
            assert tuple(batch.obs["other"][sample]) == (100 * env, 100 * row)
            assert tuple(batch.next_obs["state"][sample]) == (final + 0.5, env + 0.5)
            assert tuple(batch.next_obs["other"][sample]) == (100 * env + 0.5, 100 * final + 0.5)


def where(batch: Batch) -> np.ndarray:
    """`[B, 2]`: the row and the environment from which each sample came."""
    return np.asarray(batch.obs["state"], np.int64)


def example(record: Record) -> Transition:
    return jax.tree.map(lambda leaf: leaf[0, 0], record.transitions())


@pytest.fixture(scope="module")
def uniform():
    """A record, the state after all of it, and the batches sampled after each row, in numpy."""
    record = Record.random(0, NUM_ADDS, NUM_ENVS)
    replay = make_replay(capacity=23, num_envs=NUM_ENVS, batch_size=600, n_step=N_STEP)

    def step(state, inputs):
        transition, key = inputs
        state = replay.add(state, transition)
        return state, replay.sample(state, key, jnp.asarray(DISCOUNT))

    @jax.jit
    def run(transitions, key):
        keys = jax.random.split(key, NUM_ADDS)
        return jax.lax.scan(step, replay.init(example(record)), (transitions, keys))

    state, batches = run(record.transitions(), jax.random.key(0))
    batches = jax.tree.map(np.asarray, batches)
    rows = [jax.tree.map(lambda leaf, t=t: leaf[t], batches) for t in range(NUM_ADDS)]
    return record, state, rows


def test_every_sample_is_a_true_n_step_fold_of_the_recorded_stream(uniform):
    record, state, batches = uniform
    assert state.num_rows == NUM_ADDS
    assert state.storage.reward.shape == (NUM_ROWS * NUM_ENVS,)
    for t, batch in enumerate(batches):
        first = jax.tree.map(lambda leaf: leaf[:150], batch)
        record.check(first, num_rows=t + 1)


def test_samples_cover_all_that_is_stored_evenly_and_nothing_else(uniform):
    _, _, batches = uniform
    for t, batch in enumerate(batches):
        oldest = max(0, t + 1 - NUM_ROWS)
        origin = where(batch)
        assert origin[:, 0].min() == oldest and origin[:, 0].max() == t
        places = (origin[:, 0] - oldest) * NUM_ENVS + origin[:, 1]
        stored = (t + 1 - oldest) * NUM_ENVS
        count = np.bincount(places, minlength=stored)
        assert len(count) == stored
        expected = len(origin) / stored  # binomial: five standard deviations
        assert np.abs(count - expected).max() < 5.0 * np.sqrt(expected)


def test_windows_at_the_head_use_only_what_exists(uniform):
    record, _, batches = uniform
    head = where(batches[-1])[:, 0] == NUM_ADDS - 1
    newest = jax.tree.map(lambda leaf: leaf[head], batches[-1])
    assert head.sum() > 10
    envs = where(newest)[:, 1]
    np.testing.assert_allclose(newest.n_step_reward, record.reward[-1, envs], rtol=1e-6)
    expected = np.where(record.terminated[-1, envs], 0.0, DISCOUNT)
    np.testing.assert_allclose(newest.bootstrap_discount, expected, rtol=1e-6)


# Tables. Three of them over 4 environments: 0 and 1 overlap, 2 stays empty at first.
TABLE_ENVS, TABLE_ROWS, TABLE_ADDS = 4, 5, 14
SHARES, PARTS = (0.25, 0.5, 0.125), (2, 4, 8, 2)  # of 16: the uniform part, then each table's
STARTS = np.cumsum((0, *PARTS))


def make_tables(table_capacity: int | None = None):
    return make_replay(
        capacity=TABLE_ENVS * TABLE_ROWS,
        num_envs=TABLE_ENVS,
        batch_size=16,
        n_step=N_STEP,
        table_shares=SHARES,
        table_capacity=table_capacity,
    )


class Player(NamedTuple):
    """A compiled run over `[T, N, K]` masks: the samples' origins `[T, samples, part of B]`."""

    record: Record
    run: Any


def make_player(table_capacity: int | None = None) -> Player:
    replay = make_tables(table_capacity)
    record = Record.random(1, TABLE_ADDS, TABLE_ENVS)

    def step(state, inputs):
        transition, mask, keys = inputs
        state = replay.add(state, transition, mask)
        batches = jax.vmap(lambda key: replay.sample(state, key, jnp.asarray(DISCOUNT)))(keys)
        return state, batches

    @jax.jit
    def run(masks):
        keys = jax.random.split(jax.random.key(7), (TABLE_ADDS, 250))
        inputs = (record.transitions(), masks, keys)
        return jax.lax.scan(step, replay.init(example(record)), inputs)[1]

    return Player(record=record, run=run)


@pytest.fixture(scope="module")
def player():
    return make_player()


def members(masks: np.ndarray, table: int, num_rows: int, limit: int | None) -> set[int]:
    """A table's living entries by brute force, as `row * N + env`; `limit` is its ring's length."""
    belongs = masks[:num_rows, :, table] if table >= 0 else np.ones((num_rows, TABLE_ENVS), bool)
    newest = np.flatnonzero(belongs)[-(limit or 10**6) :]
    return set(newest[newest >= (num_rows - TABLE_ROWS) * TABLE_ENVS])


def check_tables(
    batches: Batch, masks: np.ndarray, *, limit: int | None = None, evenly: bool = False
) -> None:
    """Each part of each batch comes from its table; if `evenly`, from each entry equally often."""
    origin = where(batches) @ [TABLE_ENVS, 1]  # [T, samples, B]
    for t, drawn in enumerate(origin):
        stored = members(masks, -1, t + 1, None)
        for part in range(len(PARTS)):
            entries = drawn[:, STARTS[part] : STARTS[part + 1]].ravel()
            seen, count = np.unique(entries, return_counts=True)
            allowed = stored if part == 0 else members(masks, part - 1, t + 1, limit) or stored
            assert set(seen) <= allowed, (t, part, set(seen) - allowed)
            if evenly:
                assert set(seen) == allowed, (t, part, allowed - set(seen))
                share = 1.0 / len(allowed)  # binomial: five standard deviations
                deviation = np.sqrt(len(entries) * share * (1.0 - share))
                assert np.abs(count - len(entries) * share).max() <= 5.0 * deviation, (t, part)


def scattered_masks(seed: int) -> np.ndarray:
    masks = np.random.default_rng(seed).random((TABLE_ADDS, TABLE_ENVS, 3)) < (0.3, 0.6, 0.4)
    masks[:6, :, 2] = False  # empty at first
    masks[3:11, :, 0] = False  # empties again, once rows 0..2 are overwritten after row 7
    return masks


def test_shares_are_exact_and_every_living_entry_is_reachable(player):
    masks = scattered_masks(0)
    assert not members(masks, 0, 8, None)  # the case of a table that has become empty
    assert (masks[..., 0] & masks[..., 1]).any()  # and of an entry in two tables
    # The smallest part is 2 of 16 in 250 batches, 500 draws of at most 20 transitions: the chance
    # to miss one is 20 * 0.95^500 = 1.5e-10 per step and part.
    batches = player.run(masks)
    check_tables(batches, masks, evenly=True)
    first = jax.tree.map(lambda leaf: np.asarray(leaf[-1, 0]), batches)
    player.record.check(first, num_rows=TABLE_ADDS)


def test_full_table_ring_keeps_its_newest_entries():
    # Five entries per table, where up to four come with each row and twenty are stored.
    masks = np.random.default_rng(2).random((TABLE_ADDS, TABLE_ENVS, 3)) < (0.9, 0.6, 0.2)
    batches = make_player(table_capacity=5).run(masks)
    check_tables(batches, masks, limit=5, evenly=True)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_masks_give_true_members_and_nothing_stale(player, data):
    shape = (TABLE_ADDS, TABLE_ENVS, 3)
    # Runs of whole rows switched off make tables die out and fill again.
    bits = data.draw(st.binary(min_size=21, max_size=21))
    rows = data.draw(st.lists(st.booleans(), min_size=TABLE_ADDS, max_size=TABLE_ADDS))
    masks = np.unpackbits(np.frombuffer(bits, np.uint8)).astype(bool).reshape(shape)
    masks &= np.array(rows)[:, None, None]
    check_tables(player.run(masks), masks)


def test_shares_round_to_whole_transitions():
    # 0.33 of 10 is 3; both shares are 0.58 of 10, which is 6, so 3 are the second's; 4 are uniform.
    replay = make_replay(capacity=8, num_envs=4, batch_size=10, n_step=1, table_shares=(0.33, 0.25))
    record = Record.random(3, 1, 4)
    row = jax.tree.map(lambda leaf: leaf[0], record.transitions())
    masks = jnp.zeros((4, 2), bool).at[0, 0].set(True).at[3, 1].set(True)

    @jax.jit
    def sample(row, masks):
        state = replay.add(replay.init(example(record)), row, masks)
        return replay.sample(state, jax.random.key(0), jnp.asarray(DISCOUNT))

    np.testing.assert_array_equal(where(sample(row, masks))[4:, 1], [0, 0, 0, 3, 3, 3])


def test_shares_that_fill_a_batch_fill_any_batch():
    # Rounded one by one, 0.5 and 0.5 of 3 would be 4.
    replay = make_replay(capacity=8, num_envs=4, batch_size=3, n_step=1, table_shares=(0.5, 0.5))
    record = Record.random(3, 1, 4)
    row = jax.tree.map(lambda leaf: leaf[0], record.transitions())
    masks = jnp.zeros((4, 2), bool).at[0, 0].set(True).at[3, 1].set(True)
    state = replay.add(replay.init(example(record)), row, masks)
    batch = replay.sample(state, jax.random.key(0), jnp.asarray(DISCOUNT))
    np.testing.assert_array_equal(where(batch)[:, 1], [0, 0, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 11}, "capacity 11 holds 2 rows of 4 environments; at least n_step=3 rows"),
        ({"capacity": 3, "n_step": 1}, "capacity 3 holds 0 rows"),
        ({"table_shares": (0.6, 0.5)}, "sum to at most 1"),
        ({"table_shares": (-0.1,)}, "must be >= 0"),
        ({"table_shares": (0.5,), "table_capacity": 3}, "table_capacity 3 is less than num_envs 4"),
    ],
)
def test_sizes_that_do_not_fit_raise_one_clear_line(change, message):
    sizes = {"capacity": 100, "num_envs": 4, "batch_size": 16, "n_step": 3}
    with pytest.raises(ValueError, match=message) as raised:
        make_replay(**{**sizes, **change})
    assert "\n" not in str(raised.value)


def test_wrong_shapes_are_refused():
    replay = make_tables()
    record = Record.random(4, 2, TABLE_ENVS)
    state = replay.init(example(record))
    row = jax.tree.map(lambda leaf: leaf[0], record.transitions())
    with pytest.raises(AssertionError):
        replay.add(state, row, jnp.zeros((TABLE_ENVS, 2), bool))
    with pytest.raises(AssertionError):
        replay.add(state, record.transitions(), jnp.zeros((TABLE_ENVS, 3), bool))


HINDSIGHT = Hindsight(
    horizon=6,
    goal=lambda last: (last.next_obs["achieved"][0], last.next_obs["achieved"][1] > 0.0),
    reward=lambda last, goal: last.reward + 100.0 * goal,
    obs=lambda obs, goal: {**obs, "goal": goal[None]},
)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_hindsight_gives_the_goal_that_the_episode_achieved(share):
    rows, envs, n, batch_size = 40, 3, 3, 512
    rng = np.random.default_rng(7)
    ended = rng.random((rows, envs)) < 0.2
    achieved = np.where(ended & (rng.random((rows, envs)) < 0.7), 1.0 + np.arange(rows)[:, None], 0)
    reward = rng.normal(size=(rows, envs)).astype(np.float32)
    replay = make_replay(
        capacity=30 * envs,  # the oldest rows are overwritten
        num_envs=envs,
        batch_size=batch_size,
        n_step=n,
        hindsight=HINDSIGHT,
        hindsight_share=share,
    )

    def stored(row: int) -> Transition:
        where = np.stack([np.full(envs, row), np.arange(envs)], axis=1).astype(np.float32)
        goal, won = np.full((envs, 1), -1.0, np.float32), achieved[row].astype(np.float32)
        results = np.stack([won, won > 0], axis=1).astype(np.float32)
        obs = {"where": where, "goal": goal, "achieved": np.zeros((envs, 2), np.float32)}
        return Transition(
            obs=obs,
            action=np.zeros((envs, 1), np.float32),
            reward=reward[row],
            terminated=ended[row],
            truncated=np.zeros(envs, bool),
            next_obs={**obs, "achieved": results},
        )

    stream = [stored(row) for row in range(rows)]
    state = replay.init(jax.tree.map(lambda leaf: leaf[0], stream[0]))
    for transition in stream:
        state = replay.add(state, transition)
    batch = replay.sample(state, jax.random.key(1), jnp.asarray(DISCOUNT))

    could, did = 0, 0
    for k in range(batch_size):
        row, env = (int(x) for x in batch.obs["where"][k])
        window = range(row, min(row + HINDSIGHT.horizon, rows))
        end = next((step for step in window if ended[step, env]), None)
        goal = float(batch.obs["goal"][k, 0])
        assert float(batch.next_obs["goal"][k, 0]) == goal
        won = end is not None and achieved[end, env] > 0
        could += won
        did += goal >= 0
        rewards = reward[row : row + n, env].copy()
        if goal >= 0:
            assert won and goal == achieved[end, env]
            if end < row + n:
                rewards[end - row] += 100.0 * goal
        stops = ended[row : row + n, env]
        expected, _, _ = fold_by_hand(rewards, stops, 0 * stops, len(rewards))
        np.testing.assert_allclose(batch.n_step_reward[k], expected, rtol=1e-5, atol=1e-4)
    assert could > 200
    assert abs(did / could - share) <= (0.0 if share in (0.0, 1.0) else 0.1)
