"""What came of races: they are driven to the flag, classified and counted.

Contacts, blame and overtakes are per car; a penalty is seconds added at the flag for every contact
of medium or heavy severity that the stewards blame a car for.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from core_rl.env import State
from projects.sophy.driving import CONTROL_STEP
from projects.sophy.race_env import RaceEnv, RaceState, classification, contacts_begun, race_of

SLOWEST, WAIT = 2.0, 60.0  # a race is broken off after so many reference laps' times and [s]
POINTS = (10, 8, 6, 5, 4, 3, 2, 1)  # by place (Gran Turismo Sophy's Race Together events, 2021)


class Results(NamedTuple):
    """Of one race; leaves [M] unless said otherwise."""

    place: Array  # int32, 1 the first, penalties counted; empty slots come last
    time: Array  # to the flag with penalties, 0 where it was not reached [s]
    distance: Array  # from the line [m]
    laps: Array  # int32, completed
    fastest_lap: Array  # flying, 0 where there was none [s]
    overtakes: Array  # int32, times that an opponent was ahead and then behind, on the road
    contacts: Array  # int32, begun
    faults: Array  # [M, 3] int32, contacts that it was blamed for: light, medium, heavy
    penalty: Array  # [s]
    off_course_steps: Array
    wall_contact_steps: Array
    retired: Array  # bool
    stops: Array  # int32, for tyres and fuel
    fuel: Array  # on board in the end [kg]
    wear: Array  # of the most worn tyre in the end, 1 at the cliff [-]


class _Counts(NamedTuple):
    laps: Array
    fastest_lap: Array
    overtakes: Array
    contacts: Array
    off_course_steps: Array
    wall_contact_steps: Array


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
    none = jnp.zeros(first.present.shape, jnp.int32)
    begin = _Counts(none, jnp.zeros(none.shape), none, none, none, none)

    def goes_on(carry: tuple[State, _Counts, Array]) -> Array:
        return jnp.any(jnp.any(race_of(carry[0]).present, axis=1) & (carry[2] < most))

    def advance(carry: tuple[State, _Counts, Array]):
        states, counts, steps = carry
        after = jax.vmap(env.step)(states, act(states))
        counted = jax.vmap(_count)(race_of(states), race_of(after), counts)
        on_time = steps < most

        def go_on(new: Array, old: Array) -> Array:
            """A race that was broken off stays as it is, however long others last."""
            return jnp.where(on_time.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        after, counts = jax.tree.map(go_on, (after, counted), (states, counts))
        return after, counts, steps + 1

    states, counts, _ = jax.lax.while_loop(goes_on, advance, (states, begin, jnp.int32(0)))
    return jax.vmap(_conclude, (0, 0, None))(race_of(states), counts, penalty)


def _count(before: RaceState, after: RaceState, counts: _Counts) -> _Counts:
    """Leaves [M]."""
    takes_part = before.present
    both = before.on_road & before.on_road[:, None]
    behind = before.distance[None] > before.distance[:, None]
    passed = both & behind & (after.distance[None] < after.distance[:, None])
    begins = contacts_begun(before.stewarding, after.meetings)
    lap_time = jnp.where(takes_part, after.drives.lap_time, 0.0)
    # The first lap began at the line, but from the grid.
    flying = before.drives.laps_begun >= 2
    quicker = (
        flying & (lap_time > 0.0) & ((counts.fastest_lap == 0.0) | (lap_time < counts.fastest_lap))
    )
    return _Counts(
        laps=counts.laps + (lap_time > 0.0),
        fastest_lap=jnp.where(quicker, lap_time, counts.fastest_lap),
        overtakes=counts.overtakes + jnp.sum(passed, axis=1),
        contacts=counts.contacts + jnp.sum(begins & both, 0) + jnp.sum(begins & both, 1),
        off_course_steps=counts.off_course_steps + (takes_part & (after.drives.off_course > 0.0)),
        wall_contact_steps=counts.wall_contact_steps
        + (takes_part & (after.drives.wall_contact > 0.0)),
    )


def _conclude(race: RaceState, counts: _Counts, penalty: float) -> Results:
    faults = race.stewarding.faults
    seconds = penalty * jnp.sum(faults[:, 1:], axis=1)
    finished = race.finish_time > 0.0
    time = jnp.where(finished, race.finish_time + seconds, 0.0)
    return Results(
        place=classification(race.replace(finish_time=time)),  # pyright: ignore[reportAttributeAccessIssue]
        time=time,
        distance=race.distance,
        laps=counts.laps,
        fastest_lap=counts.fastest_lap,
        overtakes=counts.overtakes,
        contacts=counts.contacts,
        faults=faults,
        penalty=seconds,
        off_course_steps=counts.off_course_steps,
        wall_contact_steps=counts.wall_contact_steps,
        retired=race.retired,
        stops=race.pits.stops,
        fuel=race.drives.motion.fuel,
        wear=jnp.max(race.drives.motion.wear, -1),
    )


def row_of(results: Results, at: tuple[int, ...]) -> dict[str, list]:
    """One race of many, leaves [..., M], as JSON can hold it."""
    return {name: value[at].tolist() for name, value in results._asdict().items()}


def points_of(place: Array) -> Array:
    """Points [...] of places [...], 1 the first; beyond the list there are none."""
    table = jnp.asarray((*POINTS, 0), jnp.int32)
    return table[jnp.minimum(place - 1, len(POINTS))]
