"""The field of a time trial: which cars on which tyres drive which circuits in one batch.

A specification is a comma list of names and of words that stand for many names (`CIRCUIT_WORDS`,
`CAR_WORDS`, `COMPOUND_WORDS`). Circuits lie in one stack, cars in another, each car once per
compound: a batch selects from both by index, so whatever it mixes is one compilation.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from core_rl.env import State
from projects.sophy import cars as catalogue
from projects.sophy import circuits
from projects.sophy import track as tracks
from projects.sophy.car import Car
from projects.sophy.cars import CAR_NAMES, CATALOGUE, NUM_VARIATIONS, CarError, load_cars
from projects.sophy.circuits import BUILT_IN, CircuitError, load_circuit
from projects.sophy.compounds import COMPOUNDS
from projects.sophy.reference import ReferenceLap, reference_lap
from projects.sophy.track import NUM_NODES, Track

if TYPE_CHECKING:
    from projects.sophy.driving import DriveState
    from projects.sophy.time_trial import TimeTrial

CIRCUIT_WORDS = {**circuits.GROUPS, "built_in": BUILT_IN}
CAR_WORDS = {
    "archetypes": CAR_NAMES,
    "catalogue": CATALOGUE,
    **catalogue.GROUPS,
    **{
        f"{name}:*": tuple(f"{name}:{k}" for k in range(1, NUM_VARIATIONS + 1))
        for name in CAR_NAMES
    },
}
COMPOUND_WORDS = {"dry": tuple(name for name, it in COMPOUNDS.items() if it.wet_gain == 0.0)}
NUM_STATIONS = 128  # of a reference lap, where there are many; 52 m apart on the longest circuit


class Entrant(NamedTuple):
    car: str
    compound: str  # empty: the car's own


class References(NamedTuple):
    """What the speeds of starts and of progress are measured by."""

    laps: ReferenceLap  # leaves [A, T, ...], of few cars on all circuits
    row: Array  # [K] int32, each entrant's car among them


def listed(spec: str, words: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The names that a specification stands for, each once."""
    parts = [part.strip() for part in spec.split(",")]
    return tuple(dict.fromkeys(name for part in parts for name in words.get(part, (part,))))


def load_circuits(spec: str, surface: str = "") -> tuple[tuple[str, ...], Track]:
    """The circuits that `spec` lists, on another `surface` where one is named: names [T] and a
    stack, leaves [T, ...].

    Raises CircuitError in one line.
    """
    names = listed(spec, CIRCUIT_WORDS)

    def load(name: str) -> Track:
        try:
            return load_circuit(name)
        except CircuitError as error:
            if not name.isidentifier():  # a file's or the generator's own trouble
                raise
            words = ", ".join(CIRCUIT_WORDS)
            raise CircuitError(f"{error}; words for several are {words}") from None

    stack = tracks.stack_tracks([load(name) for name in names])
    return names, tracks.resurface(stack, surface) if surface else stack


def load_entrants(
    car: str,
    compound: str = "",
    *,
    wear: bool = False,
    fuel: float = 0.0,
    traction_control: bool = False,
    antilock: bool = False,
) -> tuple[tuple[Entrant, ...], Car]:
    """Every car that `car` lists on every compound that `compound` does, compound by compound:
    names [K] and a stack, leaves [K, ...]. The rest is `load_cars`'s.

    Raises CarError in one line.
    """
    names, compounds = listed(car, CAR_WORDS), listed(compound, COMPOUND_WORDS)
    try:
        for name in names:
            catalogue.describe(name)
    except CarError as error:
        words = f"archetypes, catalogue, {', '.join(catalogue.GROUPS)}, NAME:*"
        raise CarError(f"{error}; words for several: {words}") from None
    for name in compounds:
        if name and name not in COMPOUNDS:
            raise CarError(
                f"unknown compound {name!r}; compounds: {', '.join(COMPOUNDS)}; words for several: "
                + ", ".join(COMPOUND_WORDS)
            )
    stacks = [
        load_cars(
            names,
            name,
            wear=wear,
            fuel=fuel,
            traction_control=traction_control,
            antilock=antilock,
        )
        for name in compounds
    ]
    cars = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stacks)
    return tuple(Entrant(name, tyre) for tyre in compounds for name in names), cars


def reference_laps(entrants: tuple[Entrant, ...], cars: Car, stack: Track) -> References:
    """The quasi-steady laps of entrants [K] with `cars` [K] on circuits [T].

    Of one entrant it is the car's own; of several, those of the archetypes that they are or vary,
    nine for 549 cars, on the compound that all are on or else on each archetype's own. One lap
    alone holds every node, many hold `NUM_STATIONS`.
    """
    archetypes = [entrant.car.partition(":")[0] for entrant in entrants]
    distinct = list(dict.fromkeys(archetypes))
    row = jnp.asarray([distinct.index(name) for name in archetypes], jnp.int32)
    compounds = {entrant.compound for entrant in entrants}
    if len(entrants) > 1:
        cars = load_cars(distinct, compounds.pop() if len(compounds) == 1 else "")
    elif stack.length.shape == (1,):
        car, track = (jax.tree.map(lambda leaf: leaf[0], each) for each in (cars, stack))
        # Not mapped over one: `reference_lap` to the bit.
        lap = jax.jit(reference_lap)(car, track)
        return References(jax.tree.map(lambda leaf: leaf[None, None], lap), row)
    return References(_laps_of_all(cars, stack), row)


@jax.jit
def _laps_of_all(cars: Car, stack: Track) -> ReferenceLap:
    """Laps of cars [A] on circuits [T], leaves [A, T, ...]."""

    def lap(car: Car, track: Track) -> ReferenceLap:
        whole = reference_lap(car, track)
        kept = {
            name: getattr(whole, name)[:: NUM_NODES // NUM_STATIONS]
            for name in ("s", "speed", "time")
        }
        return dataclasses.replace(whole, **kept)

    return jax.vmap(jax.vmap(lap, (None, 0)), (0, None))(cars, stack)


def field_membership(env: "TimeTrial") -> Callable[[State], dict[str, Array]]:
    """Replay tables by what the road is made of (asphalt, dirt, snow) and by the car's layout (FF,
    FR, MR, RR, AWD): states [N] to the tables' names and bool [N].

    What is neither dirt nor snow counts as asphalt: wet roads, circuits from files.
    """

    def surface_of(name: str) -> str:
        if env.config.surface:
            return env.config.surface if env.config.surface in circuits.GROUPS else "asphalt"
        kinds = (kind for kind, names in circuits.GROUPS.items() if name in names)
        return next(kinds, "asphalt")

    surfaces = np.array([surface_of(name) for name in env.circuits])
    layouts = np.array([catalogue.layout_of(entrant.car) for entrant in env.entrants])
    by_circuit = {name: jnp.asarray(surfaces == name) for name in circuits.GROUPS}
    by_car = {name: jnp.asarray(layouts == name) for name in catalogue.GROUPS}

    def membership(state: State) -> dict[str, Array]:
        drive: DriveState = state.pipeline_state  # pyright: ignore[reportAssignmentType]
        return {
            **{name: belongs[drive.circuit] for name, belongs in by_circuit.items()},
            **{name: belongs[drive.car_index] for name, belongs in by_car.items()},
        }

    return membership
