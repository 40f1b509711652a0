"""What one ball does without a robot: its impacts and its way.

    ./run python -m projects.ace.simulate --state=1.7,0,0.25,-11,0.5,1.6,0,-300,0 --json
    ./run python -m projects.ace.simulate --states=FILE.csv --json

States are x,y,z,vx,vy,vz,wx,wy,wz in the frame of `projects/ace/ball.py` [m, m/s, rad/s].
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from core_rl import flags
from core_rl.errors import UsageError
from projects.ace.ball import AIR, FLIGHT_MODELS, FlightModel
from projects.ace.events import COURT, EVENT_NAMES, Flight, simulate
from projects.ace.incoming import to_ball
from projects.ace.shots import COLUMNS, check_states, read_states

TIME_STEP = 0.004  # [s]
CHUNK = 256  # balls that are flown together


@dataclasses.dataclass(frozen=True)
class Simulate:
    state: str = ""  # one ball: x,y,z,vx,vy,vz,wx,wy,wz
    states: str = ""  # a CSV file with those columns
    model: FlightModel = "conti"  # conti, nature or vacuum
    seconds: float = 1.5  # how long the balls fly
    skip_invalid: bool = False  # leave out rows that no model covers
    json: bool = False  # print one JSON object per ball

    def __post_init__(self):
        if self.model not in FLIGHT_MODELS:
            allowed = ", ".join(FLIGHT_MODELS)
            raise ValueError(f"model must be one of {allowed}, got {self.model!r}")
        if not 0 < self.seconds <= 10:
            raise ValueError(f"seconds must be in (0, 10], got {self.seconds}")


def parse_state(text: str) -> np.ndarray:
    """One state [9]; raises UsageError with one line."""
    cells = text.split(",")
    try:
        values = np.array([float(cell) for cell in cells])
    except ValueError:
        raise UsageError(f"--state={text}: not numbers; give {','.join(COLUMNS)}") from None
    if len(values) != len(COLUMNS):
        raise UsageError(f"--state has {len(values)} numbers, needs 9: {','.join(COLUMNS)}")
    for _, line in check_states(values[None], lambda _: "--state"):
        raise UsageError(line)
    return values


def events_of(flight: Flight, ball: int) -> list[dict[str, Any]]:
    """The impacts of one ball of a batch of flights, in order."""
    kinds = flight.events.kind[ball].ravel()
    rows = []
    for k in np.flatnonzero(kinds):
        at = np.unravel_index(k, flight.events.kind[ball].shape)
        before, after = flight.events.before, flight.events.after
        rows.append(
            {
                "type": EVENT_NAMES[kinds[k]],
                "time": round(float(flight.events.time[ball][at]), 6),
                "position": _rounded(before.position[ball][at]),
                "velocity_before": _rounded(before.velocity[ball][at]),
                "velocity_after": _rounded(after.velocity[ball][at]),
                "spin_before": _rounded(before.spin[ball][at]),
                "spin_after": _rounded(after.spin[ball][at]),
            }
        )
    return rows


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 5) for value in values]


def main(config: Simulate) -> int:
    if bool(config.state) == bool(config.states):
        raise UsageError("give either --state=x,y,z,vx,vy,vz,wx,wy,wz or --states=FILE.csv")
    if config.state:
        values = parse_state(config.state)[None]
    else:
        states = read_states(config.states, skip_invalid=config.skip_invalid)
        values = states.values
        for line in states.skipped:
            print(json.dumps({"skipped": line}) if config.json else f"skipped: {line}")
    num_steps = round(config.seconds / TIME_STEP)
    fly = jax.jit(
        jax.vmap(lambda ball: simulate(config.model, AIR, COURT, ball, num_steps, TIME_STEP))
    )
    size = min(len(values), CHUNK)
    for first in range(0, len(values), size):
        part = values[first : first + size].astype(np.float32)
        padded = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
        flight: Flight = jax.device_get(fly(to_ball(padded)))  # pyright: ignore[reportArgumentType]
        for index in range(len(part)):
            _print(config, first + index, values[first + index], flight, index)
    return 0


def _print(config: Simulate, number: int, state: np.ndarray, flight: Flight, index: int) -> None:
    events = events_of(flight, index)
    if not config.json:
        print(f"ball {number}: " + (", ".join(_words(event) for event in events) or "no impact"))
        return
    ball = flight.ball
    trajectory = [
        [round((k + 1) * TIME_STEP, 4), *_rounded(ball.position[index, k])]
        for k in range(len(ball.position[index]))
    ]
    line = {
        "ball": number,
        "model": config.model,
        "state": [float(value) for value in state],
        "events": events,
        "trajectory": [[0.0, *_rounded(state[:3])], *trajectory],
    }
    print(json.dumps(line))


def _words(event: dict[str, Any]) -> str:
    x, y, z = event["position"]
    return f"{event['type']} at {event['time']:.3f} s ({x:.3f}, {y:.3f}, {z:.3f})"


if __name__ == "__main__":
    flags.main(main, Simulate())
