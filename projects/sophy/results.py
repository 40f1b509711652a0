"""What came of races: they are driven to the flag, classified and counted (`race_metrics`).

A penalty is seconds added at the flag for every contact of medium or heavy severity that the
stewards blame a car for.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from core_rl.env import State
from projects.sophy.driving import CONTROL_STEP
from projects.sophy.race_env import RaceEnv, RaceState, classification, race_of
from projects.sophy.race_metrics import Memory, Tally, count, no_tally
from projects.sophy.stewards import RULES

SLOWEST, WAIT = 2.0, 60.0  # a race is broken off after so many reference laps' times and [s]
POINTS = (10, 8, 6, 5, 4, 3, 2, 1)  # by place (Gran Turismo Sophy's Race Together events, 2021)


class Results(NamedTuple):
    """Of one race; leaves [M] unless said otherwise."""

    place: Array  # int32, 1 the first, penalties counted; empty slots come last
    time: Array  # to the flag with penalties, 0 where it was not reached [s]
    distance: Array  # from the line [m]
    faults: Array  # [M, 3] int32, contacts that it was blamed for: light, medium, heavy
    penalty: Array  # [s]
    retired: Array  # bool
    stops: Array  # int32, for tyres and fuel
    fuel: Array  # on board in the end [kg]
    wear: Array  # of the most worn tyre in the end, 1 at the cliff [-]
    tally: Tally


def drive_races(
    env: RaceEnv, act: Callable[[State], Array], states: State, penalty: float = 5.0
) -> Results:
    """Races [N] from their starts to the flag, all at once; leaves [N, M].

    Args:
      act: what all slots do in races [N]: [N, M, 2].
      penalty: seconds per medium or heavy contact that a car is blamed for.
    """
    first = race_of(states)
    length = jax.vmap(lambda circuit: env.solo.track_of(circuit).length)(first.drives.circuit[:, 0])
    slowest = jnp.max(length[:, None] / first.drives.pace, axis=1)
    most = (SLOWEST * slowest * (first.laps + 1) + WAIT) / CONTROL_STEP
    num_races, num_cars = first.present.shape
    begin = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (num_races, *leaf.shape)), no_tally(num_cars)
    )

    def goes_on(carry: tuple[State, tuple[Tally, Memory], Array]) -> Array:
        return jnp.any(jnp.any(race_of(carry[0]).present, axis=1) & (carry[2] < most))

    def advance(carry: tuple[State, tuple[Tally, Memory], Array]):
        states, counts, steps = carry
        after = jax.vmap(env.step)(states, act(states))
        counted = jax.vmap(partial(count, env))(race_of(states), race_of(after), *counts)
        on_time = steps < most

        def go_on(new: Array, old: Array) -> Array:
            """A race that was broken off stays as it is, however long others last."""
            return jnp.where(on_time.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        after, counts = jax.tree.map(go_on, (after, counted), (states, counts))
        return after, counts, steps + 1

    states, counts, _ = jax.lax.while_loop(goes_on, advance, (states, begin, jnp.int32(0)))
    return jax.vmap(_conclude, (0, 0, None))(race_of(states), counts[0], penalty)


def _conclude(race: RaceState, tally: Tally, penalty: float) -> Results:
    faults = race.stewarding.record.faults
    seconds = penalty * jnp.sum(faults[:, 1:], axis=1)
    finished = race.finish_time > 0.0
    time = jnp.where(finished, race.finish_time + seconds, 0.0)
    return Results(
        place=classification(race.replace(finish_time=time)),  # pyright: ignore[reportAttributeAccessIssue]
        time=time,
        distance=race.distance,
        faults=faults,
        penalty=seconds,
        retired=race.retired,
        stops=race.pits.stops,
        fuel=race.drives.motion.fuel,
        wear=jnp.max(race.drives.motion.wear, -1),
        tally=tally,
    )


def row_of(results: Results, at: tuple[int, ...]) -> dict[str, Any]:
    """One race of many, leaves [..., M], as JSON can hold it."""
    told = {**results._asdict(), **results.tally._asdict()}
    del told["tally"]
    return {"rules": RULES, **{name: value[at].tolist() for name, value in told.items()}}


def points_of(place: Array) -> Array:
    """Points [...] of places [...], 1 the first; beyond the list there are none."""
    table = jnp.asarray((*POINTS, 0), jnp.int32)
    return table[jnp.minimum(place - 1, len(POINTS))]
