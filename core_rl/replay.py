"""Replay: one ring of transitions, tables as rings of indices into it, n-step folded when sampled.

Time-major: a *row* is what `N` parallel environments produced in one step; transition `(row, e)`
lives at `(row mod R) * N + e`, so that the next step of the same environment is `N` further on. A
table holds `(row, e)` of the transitions that belong to it; one transition may be in many tables
(multi-table replay of Wurman et al. 2022: every batch takes a fixed share from each). Rows are
counted from the beginning of the run: that count is the generation by which stale entries are
known. Entries grow stale in the order in which they came, so the living ones are always the newest
of a table, and sampling needs no rejection.
"""

from collections.abc import Callable
from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
from flax import struct

from core_rl.types import Batch, Hindsight, Key, Obs, Replay, Transition


@struct.dataclass
class Tables:
    """`K` index rings of `L` entries, of which the newest `min(present, L)` are alive."""

    row: jax.Array  # [K, L] int32
    env: jax.Array  # [K, L] int32
    cursor: jax.Array  # [K] int32, where the next entry goes
    present: jax.Array  # [K] int32, stored transitions that belong to the table
    per_row: jax.Array  # [R, K] int32, how many entries each stored row has in each table


@struct.dataclass
class ReplayState:
    storage: Transition  # [R * N, ...]
    num_rows: jax.Array  # [] int32, rows ever added
    tables: Tables | None  # None without tables


def fold_n_step(
    reward: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    num_available: jax.Array,
    discount: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Folds a window of `n` consecutive steps into one.

    The window closes at the first termination or truncation, or after the `num_available` (1..n)
    steps that exist. Returns the n-step reward, the bootstrap discount (0 after a termination;
    after a truncation the target bootstraps from the true last observation), and the index of the
    window's last step, whose `next_obs` the target bootstraps from.
    """
    chex.assert_rank([reward, terminated, truncated], 1)
    num_steps = reward.shape[0]
    steps = jnp.arange(num_steps)
    ended = (terminated | truncated).astype(jnp.int32)
    ended_before = jnp.cumsum(ended) - ended
    inside = (ended_before == 0) & (steps < num_available)
    last = jnp.sum(inside) - 1
    n_step_reward = jnp.sum(jnp.where(inside, discount**steps * reward, 0.0))
    ends_for_good = jnp.any(inside & terminated)
    bootstrap_discount = jnp.where(ends_for_good, 0.0, discount ** (last + 1))
    return n_step_reward, bootstrap_discount, last


def _unchanged(obs: Obs) -> Obs:
    return obs


def make_replay(
    *,
    capacity: int,
    num_envs: int,
    batch_size: int,
    n_step: int,
    table_shares: tuple[float, ...] = (),
    table_capacity: int | None = None,
    hindsight: Hindsight | None = None,
    hindsight_share: float = 0.0,
) -> Replay:
    """Builds `init`, `add` and `sample`.

    Args:
      capacity: transitions kept, rounded down to whole rows; at least `n_step` rows.
      num_envs: `N`, transitions per `add`.
      batch_size: `B`.
      n_step: largest number of steps folded into one sample.
      table_shares: share of each batch that comes from each table, in order; what is left of 1 is
        drawn uniformly from everything. An empty table's share is drawn uniformly too.
      table_capacity: entries per table, by default `capacity`; at least `num_envs`.
      hindsight: how the goal of a sample is replaced by what its episode achieved.
      hindsight_share: how often that is done, among samples whose episode achieved something.

    Raises:
      ValueError: sizes that do not fit together.
    """
    num_stored_rows = capacity // num_envs
    if num_stored_rows < max(n_step, 1):
        raise ValueError(
            f"replay capacity {capacity} holds {num_stored_rows} rows of {num_envs} environments; "
            f"at least n_step={n_step} rows are needed"
        )
    if any(share < 0 for share in table_shares) or sum(table_shares) > 1.0 + 1e-6:
        raise ValueError(f"table shares must be >= 0 and sum to at most 1, got {table_shares}")
    num_tables = len(table_shares)
    table_length = table_capacity or capacity
    if num_tables and table_length < num_envs:
        raise ValueError(f"table_capacity {table_length} is less than num_envs {num_envs}")
    # Rounded so that they fit: the sum is what the shares' sum asks for.
    bounds = [round(sum(table_shares[:k]) * batch_size) for k in range(num_tables + 1)]
    table_counts = [after - before for before, after in pairwise(bounds)]

    def init(example: Transition) -> ReplayState:
        """`example` is one unbatched transition; only shapes and types are read."""
        size = num_stored_rows * num_envs
        storage = jax.tree.map(
            lambda leaf: jnp.zeros((size, *jnp.shape(leaf)), jnp.result_type(leaf)), example
        )
        tables = Tables(
            row=jnp.zeros((num_tables, table_length), jnp.int32),
            env=jnp.zeros((num_tables, table_length), jnp.int32),
            cursor=jnp.zeros(num_tables, jnp.int32),
            present=jnp.zeros(num_tables, jnp.int32),
            per_row=jnp.zeros((num_stored_rows, num_tables), jnp.int32),
        )
        return ReplayState(
            storage=storage,
            num_rows=jnp.zeros((), jnp.int32),
            tables=tables if num_tables else None,
        )

    def add_to_tables(tables: Tables, row: jax.Array, mask: jax.Array) -> Tables:
        counts = jnp.sum(mask, axis=0, dtype=jnp.int32)
        position = (tables.cursor + jnp.cumsum(mask, axis=0, dtype=jnp.int32) - 1) % table_length
        position = jnp.where(mask, position, table_length)  # out of bounds: dropped
        table = jnp.broadcast_to(jnp.arange(num_tables), mask.shape)
        envs = jnp.broadcast_to(jnp.arange(num_envs, dtype=jnp.int32)[:, None], mask.shape)
        slot = row % num_stored_rows
        return Tables(
            row=tables.row.at[table, position].set(row, mode="drop"),
            env=tables.env.at[table, position].set(envs, mode="drop"),
            cursor=(tables.cursor + counts) % table_length,
            # The row that lived in this slot is overwritten; its entries are each table's oldest.
            present=tables.present - tables.per_row[slot] + counts,
            per_row=tables.per_row.at[slot].set(counts),
        )

    def add(
        state: ReplayState, transition: Transition, table_mask: jax.Array | None = None
    ) -> ReplayState:
        """Appends one row `[N]`; `table_mask` `[N, K]` says which tables each belongs to."""
        chex.assert_shape(transition.reward, (num_envs,))
        start = (state.num_rows % num_stored_rows) * num_envs
        storage = jax.tree.map(
            lambda ring, rows: jax.lax.dynamic_update_slice_in_dim(ring, rows, start, axis=0),
            state.storage,
            transition,
        )
        tables = state.tables
        if tables is not None:
            assert table_mask is not None, "tables need a table_mask"
            chex.assert_shape(table_mask, (num_envs, num_tables))
            tables = add_to_tables(tables, state.num_rows, table_mask)
        return ReplayState(storage=storage, num_rows=state.num_rows + 1, tables=tables)

    def draw_uniform(state: ReplayState, key: Key, count: int) -> tuple[jax.Array, jax.Array]:
        row_key, env_key = jax.random.split(key)
        stored = jnp.minimum(state.num_rows, num_stored_rows)
        age = jax.random.randint(row_key, (count,), 0, stored)
        env = jax.random.randint(env_key, (count,), 0, num_envs, jnp.int32)
        return state.num_rows - 1 - age, env

    def draw_table(
        state: ReplayState, key: Key, table: int, count: int
    ) -> tuple[jax.Array, jax.Array]:
        tables = state.tables
        assert tables is not None
        table_key, uniform_key = jax.random.split(key)
        alive = jnp.minimum(tables.present[table], table_length)
        age = jax.random.randint(table_key, (count,), 0, jnp.maximum(alive, 1))
        entry = (tables.cursor[table] - 1 - age) % table_length
        uniform_row, uniform_env = draw_uniform(state, uniform_key, count)
        return (
            jnp.where(alive > 0, tables.row[table, entry], uniform_row),
            jnp.where(alive > 0, tables.env[table, entry], uniform_env),
        )

    def ahead(row: jax.Array, env: jax.Array, num_steps: int) -> jax.Array:
        """Where the `num_steps` steps from a sample on are stored, `[B, num_steps]`."""
        return ((row[:, None] + jnp.arange(num_steps)) % num_stored_rows) * num_envs + env[:, None]

    def gather(
        state: ReplayState, row: jax.Array, env: jax.Array, discount: jax.Array, key: Key
    ) -> Batch:
        window = ahead(row, env, n_step)
        storage = state.storage
        reward = storage.reward[window]
        relabel: Callable[[Obs], Obs] = _unchanged
        if hindsight is not None and hindsight_share > 0:
            # The end of the episode, where it is stored already.
            future = ahead(row, env, hindsight.horizon)
            stored = jnp.arange(hindsight.horizon) < (state.num_rows - row)[:, None]
            ends = (storage.terminated[future] | storage.truncated[future]) & stored
            end = jnp.argmax(ends, axis=1)
            final_step = jnp.take_along_axis(future, end[:, None], axis=1)[:, 0]
            last_step = jax.tree.map(lambda leaf: leaf[final_step], storage)
            goal, achieved = jax.vmap(hindsight.goal)(last_step)
            chosen = jax.random.bernoulli(key, hindsight_share, (batch_size,))
            chosen &= achieved & jnp.any(ends, axis=1)
            is_end = chosen[:, None] & (jnp.arange(n_step) == end[:, None])
            reward = jnp.where(is_end, jax.vmap(hindsight.reward)(last_step, goal)[:, None], reward)

            in_hindsight, pick = jax.vmap(hindsight.obs), chosen[:, None]
            relabel = lambda obs: jax.tree.map(  # noqa: E731
                lambda new, old: jnp.where(pick, new, old), in_hindsight(obs, goal), obs
            )

        n_step_reward, bootstrap_discount, last = jax.vmap(fold_n_step, in_axes=(0, 0, 0, 0, None))(
            reward,
            storage.terminated[window],
            storage.truncated[window],
            jnp.minimum(state.num_rows - row, n_step),
            discount,
        )
        first = window[:, 0]
        final = jnp.take_along_axis(window, last[:, None], axis=1)[:, 0]
        return Batch(
            obs=relabel(jax.tree.map(lambda leaf: leaf[first], storage.obs)),
            action=storage.action[first],
            n_step_reward=n_step_reward,
            bootstrap_discount=bootstrap_discount,
            next_obs=relabel(jax.tree.map(lambda leaf: leaf[final], storage.next_obs)),
        )

    def sample(state: ReplayState, key: Key, discount: jax.Array) -> Batch:
        """Draws `[B]`: first the uniform part, then each table's, in order."""
        keys = jax.random.split(key, num_tables + 2)
        drawn = [draw_uniform(state, keys[0], batch_size - sum(table_counts))]
        drawn += [
            draw_table(state, keys[table + 1], table, count)
            for table, count in enumerate(table_counts)
        ]
        row = jnp.concatenate([rows for rows, _ in drawn])
        env = jnp.concatenate([envs for _, envs in drawn])
        return gather(state, row, env, discount, keys[-1])

    return Replay(init=init, add=add, sample=sample)
