"""Readers and fits for recorded balls: states, launcher trajectories, match events.

Nothing recorded is shipped. Google DeepMind's states (D'Ambrosio et al. 2024, arXiv 2408.03906,
data CC BY 4.0), the AIMY launcher's trajectories (Dittrich et al. 2023, arXiv 2210.06048) and
Sony's match events (Durr et al. 2026, Nature 652:886-891; no licence stated) are read from where
the user has them.
"""

import csv
import re
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares

from core_rl.errors import UserError
from projects.ace.ball import DRAG_FACTOR, GRAVITY, RADIUS, coefficients

CLEAR_OF_IMPACT = 0.006  # samples nearer to an impact than this are not fitted [s]


def _rows(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(rows) < 2:
        raise UserError(f"{path}: has no rows below its column names")
    return rows[0], rows[1:]


def read_deepmind_states(path: Path) -> np.ndarray:
    """States [N, 9] in the frame of `ball`, all flying towards the robot.

    Their x runs across the table and y along it; those that fly towards +y are turned by 180
    degrees. Raises UserError.
    """
    _, rows = _rows(path)
    try:
        values = np.array([[float(cell) for cell in row[1:10]] for row in rows])
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    states = values[:, [1, 0, 2, 4, 3, 5, 7, 6, 8]] * np.array([1, -1, 1] * 3)
    states[states[:, 3] > 0] *= np.array([-1, -1, 1] * 3)
    return states


def read_trajectories(path: Path) -> list[np.ndarray]:
    """Tracked balls, each [T, 4] of time [s] and position [m]. Raises UserError."""
    header, rows = _rows(path)
    try:
        columns = [header.index(name) for name in ("traj", "t", "x", "y", "z")]
        values = np.array([[float(row[column]) for column in columns] for row in rows])
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: needs the columns traj,t,x,y,z with numbers: {error}") from error
    return [values[values[:, 0] == number][:, 1:] for number in np.unique(values[:, 0])]


class FlightFit(NamedTuple):
    """A flight with constant coefficients that fits a piece of trajectory."""

    position: np.ndarray  # [3] at time 0 [m]
    velocity: np.ndarray  # [3] at time 0 [m/s]
    drag: float  # C_D
    lift: float  # C_L, positive upwards
    rms: float  # [m] root of the mean squared distance


def _fly(times: np.ndarray, start: np.ndarray, drag: float, lift: float) -> np.ndarray:
    """Positions [T, 3] at `times` [T], which run away from 0 in either direction."""

    def slope(state: np.ndarray) -> np.ndarray:
        velocity = state[3:]
        speed = np.linalg.norm(velocity)
        across = np.array([velocity[1], -velocity[0], 0.0])
        up = np.cross(across / max(np.linalg.norm(across), 1e-9), velocity)
        force = DRAG_FACTOR * speed * (lift * up - drag * velocity)
        return np.concatenate([velocity, force - [0.0, 0.0, GRAVITY]])

    state, now, places = start, 0.0, np.empty((len(times), 3))
    for number, time in enumerate(times):
        steps = max(1, int(np.ceil(abs(time - now) / 0.01)))
        h = (time - now) / steps
        for _ in range(steps):
            k1 = slope(state)
            k2 = slope(state + h / 2 * k1)
            k3 = slope(state + h / 2 * k2)
            k4 = slope(state + h * k3)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        now, places[number] = time, state[:3]
    return places


def fit_flight(trajectory: np.ndarray, known: tuple[float, float] | None = None) -> FlightFit:
    """Fits a piece [T, 4] whose times all have one sign; robust against stray samples.

    `known` are C_D and C_L; without them they are found with the rest.
    """
    order = np.argsort(np.abs(trajectory[:, 0]))
    times, places = trajectory[order, 0], trajectory[order, 1:]
    parabola = np.polyfit(times, places, 2)
    first = np.concatenate([parabola[2], parabola[1], [0.45, 0.0]])
    free = 8 if known is None else 6

    def complete(x: np.ndarray) -> np.ndarray:
        return x if known is None else np.concatenate([x, known])

    def residual(x: np.ndarray) -> np.ndarray:
        x = complete(x)
        return _fly(times, x[:6], x[6], x[7]) - places

    fit = least_squares(lambda x: residual(x).ravel(), first[:free], loss="soft_l1", f_scale=0.003)
    x = complete(fit.x)
    rms = float(np.sqrt((residual(fit.x) ** 2).sum(axis=1).mean()))
    return FlightFit(x[:3], x[3:6], float(x[6]), float(x[7]), rms)


def fit_bounce(
    trajectory: np.ndarray, *, lift: bool, window: float = 0.3
) -> tuple[FlightFit, FlightFit] | None:
    """Flights before and after the bounce on the table of a launcher's trajectory [T, 4], with
    time 0 at the bounce; the second from at most `window` [s]. None where no bounce is seen.

    Before the bounce drag and lift are fitted, since the launcher's spin is not known; after it the
    piece is too short for that. With `lift` they are those of the flight model for the spin that
    the change of the velocity along the table has left, 3/2r times it; without, 0.47 and none.
    """
    time, height = trajectory[:, 0], trajectory[:, 3]
    near = (trajectory[:, 1] > 0.3) & (height < 0.9)
    if not near.any():
        return None
    bounce = time[np.argmin(np.where(near, height, np.inf))]
    for _ in range(3):  # the bounce is where two parabolas of the height meet
        before = (time < bounce - 0.004) & (time > bounce - 0.15)
        after = (time > bounce + 0.004) & (time < bounce + 0.15)
        if before.sum() < 6 or after.sum() < 6:
            return None
        sides = [np.polyfit(time[part] - bounce, height[part], 2) for part in (before, after)]
        roots = np.roots(sides[0] - sides[1])
        roots = roots[np.isreal(roots)].real
        if not len(roots):
            return None
        bounce += roots[np.argmin(np.abs(roots))]
    shifted = trajectory - np.array([bounce, 0.0, 0.0, 0.0])
    before = shifted[shifted[:, 0] < -CLEAR_OF_IMPACT]
    after = shifted[(shifted[:, 0] > CLEAR_OF_IMPACT) & (shifted[:, 0] < window)]
    arriving, leaving = fit_flight(before), fit_flight(after, (0.47, 0.0))
    for _ in range(2 if lift else 0):
        speed = np.linalg.norm(leaving.velocity)
        spin = 1.5 / RADIUS * np.linalg.norm((arriving.velocity - leaving.velocity)[:2])
        drag, magnus = (
            float(c) for c in coefficients("conti", jnp.asarray(speed), jnp.asarray(spin))
        )
        # Friction leaves topspin, which pulls down.
        down = 8.0 / 3.0 * magnus * RADIUS * spin / speed
        leaving = fit_flight(after, (drag, -float(down)))
    return arriving, leaving


class MatchEvents(NamedTuple):
    """Sony's open match events, in the order of the file."""

    rally: np.ndarray  # [N] str
    kind: np.ndarray  # [N] str
    time: np.ndarray  # [N] [s]
    position: np.ndarray  # [N, 3] [m]
    velocity: np.ndarray  # [N, 3] after the event [m/s]
    spin: np.ndarray  # [N, 3] after the event [rad/s]


_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan", re.IGNORECASE)


def read_match_events(path: Path) -> MatchEvents:
    """Reads `player_id, rally_id, type, timestamp, ball_pos, ball_vel_out, ball_spin_out`; vectors
    are three numbers in any brackets. Raises UserError with the row that cannot be read."""
    header, rows = _rows(path)
    names = ("rally_id", "type", "timestamp", "ball_pos", "ball_vel_out", "ball_spin_out")
    missing = [name for name in names if name not in header]
    if missing:
        raise UserError(f"{path}: column {missing[0]!r} is missing; needs {', '.join(names)}")
    columns = [header.index(name) for name in names]
    vectors = np.full((len(rows), 3, 3), np.nan)
    times = np.empty(len(rows))
    for number, row in enumerate(rows):
        try:
            times[number] = float(row[columns[2]])
            for k, column in enumerate(columns[3:]):
                numbers = [float(text) for text in _NUMBER.findall(row[column])]
                if numbers:  # an event may lack a velocity or a spin
                    vectors[number, k] = numbers
        except (ValueError, IndexError) as error:
            raise UserError(f"{path} row {number + 2}: {error}") from error
    return MatchEvents(
        rally=np.array([row[columns[0]] for row in rows]),
        kind=np.array([row[columns[1]] for row in rows]),
        time=times,
        position=vectors[:, 0],
        velocity=vectors[:, 1],
        spin=vectors[:, 2],
    )
