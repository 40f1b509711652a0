"""A race recorded car by car, and the page that replays it with what the stewards said."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from core_rl.env import State
from projects.sophy.drive import Drive
from projects.sophy.driving import CONTROL_STEP
from projects.sophy.laps import drive_of, outline_of, profile_of, record_of
from projects.sophy.race_env import RaceEnv, contacts_begun, race_of
from projects.sophy.replay import Event, Way, replay_html
from projects.sophy.stewards import REASONS

CHUNK = 600  # control steps that are simulated at once
SEVERITIES = ("light", "medium", "heavy")


class RaceRecord(NamedTuple):
    drives: dict[str, Drive]  # of every car until it left the race
    ways: list[Way]
    events: list[Event]


def record_race(
    env: RaceEnv,
    act: Callable[[State], Array],
    state: State,
    names: Sequence[str],
    most_seconds: float,
) -> RaceRecord:
    """Drives one race from its start until all have left it, or for `most_seconds`.

    Args:
      act: what all slots do: [M, 2].
      names: of the slots [M]; those of empty slots are not used.
    """

    def step(state: State, _: None) -> tuple[State, dict[str, Any]]:
        before = race_of(state)
        state = env.step(state, act(state))
        race = race_of(state)
        verdicts = race.stewarding.verdicts
        return state, {
            "drive": jax.vmap(record_of)(race.drives),
            "distance": race.distance,
            "present": before.present,
            "begins": contacts_begun(before.stewarding, race.meetings),
            "first": verdicts.first,
            "second": verdicts.second,
            "reason": verdicts.reason,
            "severity": race.stewarding.severity,
        }

    drive_on = jax.jit(lambda state: jax.lax.scan(step, state, None, length=CHUNK))
    entered = np.asarray(race_of(state).present)
    chunks, goes_on = [], True
    while goes_on and len(chunks) * CHUNK * CONTROL_STEP < most_seconds:
        state, chunk = drive_on(state)
        chunks.append(jax.device_get(chunk))
        goes_on = bool(race_of(state).present.any())
    trace = jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
    cars, finish = race_of(state).drives.car, np.asarray(race_of(state).finish_time)
    drives, ways = {}, []
    slots = np.flatnonzero(entered).tolist()
    for slot in slots:
        part = trace["present"][:, slot]
        own = {name: values[:, slot] for name, values in trace["drive"].items()}
        car = jax.tree.map(lambda leaf, slot=slot: leaf[slot], cars)
        drives[names[slot]] = drive_of(own, part, car)
        came_in = round(float(finish[slot]), 2) if finish[slot] > 0.0 else None
        ways.append(Way(trace["distance"][part, slot], came_in))
    number = {slot: k for k, slot in enumerate(slots)}
    events = []
    for at, a, b in np.argwhere(trace["begins"]).tolist():
        first, second = trace["first"][at, a, b], trace["second"][at, a, b]
        blamed = " and ".join(
            names[slot] for slot, is_blamed in ((a, first), (b, second)) if is_blamed
        )
        how = SEVERITIES[int(trace["severity"][at, a, b])]
        why = REASONS[int(trace["reason"][at, a, b])]
        said = f"{blamed} at fault ({why}, {how})" if blamed else f"no fault ({why}, {how})"
        text = f"{names[a]} and {names[b]} touch: {said}"
        events.append(Event(round(float(at * CONTROL_STEP), 1), number[a], number[b], text))
    return RaceRecord(drives, ways, events)


def race_page(env: RaceEnv, state: State, record: RaceRecord, title: str) -> str:
    """The page of a recorded race that began with `state`."""
    drives = race_of(state).drives
    circuit = drives.circuit[0]
    reference = profile_of(env.solo.reference_of(drives.car_index[0], circuit))
    outline = outline_of(env.solo.track_of(circuit))
    return replay_html(outline, record.drives, reference, title, record.ways, record.events)
