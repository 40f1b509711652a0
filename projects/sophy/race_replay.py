"""A race recorded car by car, its chart, and the page that replays it with the stewards' words."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from matplotlib import colormaps
from matplotlib.figure import Figure

from core_rl.env import State
from core_rl.report import GRID, INK, MUTED, encode_png
from projects.sophy.drive import Drive
from projects.sophy.driving import CONTROL_STEP
from projects.sophy.laps import drive_of, outline_of, profile_of, record_of
from projects.sophy.race_env import RaceEnv, race_of
from projects.sophy.replay import Event, Way, replay_html
from projects.sophy.stewards import NONE, REASONS

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
            "judged": verdicts.reason != NONE,
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
    for at, a, b in np.argwhere(trace["judged"]).tolist():
        first, second = trace["first"][at, a, b], trace["second"][at, a, b]
        blamed = " and ".join(
            names[slot] for slot, is_blamed in ((a, first), (b, second)) if is_blamed
        )
        how = SEVERITIES[int(trace["severity"][at, a, b])]
        why = REASONS[int(trace["reason"][at, a, b])]
        said = f"{blamed} at fault ({why}, {how})" if blamed else f"no fault ({why}, {how})"
        text = f"{names[a]} and {names[b]} touch: {said}"
        events.append(
            Event(round(float(at * CONTROL_STEP), 1), number[a], number[b], text, bool(blamed))
        )
    return RaceRecord(drives, ways, events)


def race_page(env: RaceEnv, state: State, record: RaceRecord, title: str) -> str:
    """The page of a recorded race that began with `state`."""
    drives = race_of(state).drives
    circuit = drives.circuit[0]
    reference = profile_of(env.solo.reference_of(drives.car_index[0], circuit))
    outline = outline_of(env.solo.track_of(circuit))
    return replay_html(outline, record.drives, reference, title, record.ways, record.events)


def gap_chart(record: RaceRecord, length: float, title: str) -> Figure:
    """How far behind the leader every car was, in seconds, over the way from the line in laps of
    `length` [m]; contacts for which the stewards blame a car are marked on both."""
    figure = Figure(figsize=(10.0, 4.6), layout="constrained")
    axes = figure.subplots()
    ways = [np.maximum.accumulate(way.distance) for way in record.ways]
    # A car that finished is recorded to the end of that step.
    flag = [float(way[-1]) for way, of in zip(ways, record.ways, strict=True) if of.finish]
    far = min(flag, default=max((float(way[-1]) for way in ways), default=0.0))
    grid = np.linspace(0.0, max(far, 1.0), 1000)
    times = np.full((len(ways), len(grid)), np.nan)
    for row, way in zip(times, ways, strict=True):
        reached = (grid >= way[0]) & (grid <= way[-1])
        # When a car first was there; where it stood, the curve goes straight up.
        row[reached] = CONTROL_STEP * np.interp(grid[reached], way, np.arange(1, len(way) + 1))
    passed = ~np.all(np.isnan(times), axis=0)
    leader = np.full(len(grid), np.nan)
    leader[passed] = np.nanmin(times[:, passed], axis=0)
    gaps = times - leader
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, max(len(ways), 2)))
    ends = []
    drawn = zip(record.drives, ways, gaps, colours, strict=False)
    for number, (name, way, gap, colour) in enumerate(drawn):
        axes.plot(grid / length, gap, color=colour, linewidth=1.4)
        last = np.flatnonzero(~np.isnan(gap))
        if len(last):
            ends.append((float(gap[last[-1]]), grid[last[-1]] / length, name, colour))
        for event in record.events:
            if number not in (event.car, event.other) or not event.blamed:
                continue
            at = way[min(round(event.time / CONTROL_STEP), len(way) - 1)]
            if at >= 0.0:
                behind = np.interp(at, grid, gap)
                axes.plot(at / length, behind, "x", color=INK, markersize=5.0)
    # Names beside the ends of the curves, moved apart and not below the last.
    ends.sort(key=lambda end: end[0])
    highest = max((gap for gap, *_ in ends), default=1.0)
    places = [gap for gap, *_ in ends]
    apart = min(0.045, 1.0 / max(len(ends), 1)) * max(highest, 1.0)
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + apart)
    lowest = max(highest, 1.0)
    for k in reversed(range(len(places))):
        places[k] = min(places[k], lowest)
        lowest = places[k] - apart
    for (gap, at, name, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            name,
            (at, gap),
            (far / length * 1.015, place),
            color=colour,
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.4},
        )
    axes.set_xlim(0.0, far / length * 1.08)
    axes.invert_yaxis()
    axes.set_xlabel("laps from the line")
    axes.set_ylabel("seconds behind the leader")
    axes.grid(color=GRID)
    axes.set_title(f"{title} (crosses: contacts with blame)", fontsize=10, color=INK)
    return figure


def show_race(
    env: RaceEnv,
    act: Callable[[State], Array],
    state: State,
    names: Sequence[str],
    most_seconds: float,
    title: str,
    out: Path,
) -> tuple[str, bytes]:
    """Drives a race as `record_race` and writes its page and chart to `out`, as race.html and
    race.png; returns both."""
    record = record_race(env, act, state, names, most_seconds)
    page = race_page(env, state, record, title)
    (out / "race.html").write_text(page, encoding="utf-8")
    length = float(env.solo.track_of(race_of(state).drives.circuit[0]).length)
    chart = encode_png(gap_chart(record, length, title))
    (out / "race.png").write_bytes(chart)
    return page, chart
