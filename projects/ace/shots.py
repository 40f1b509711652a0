"""Incoming balls: states just after the opponent's racket.

A file of states, recorded or made elsewhere (`read_states`), or a draw from the fitted models in
`shot_model.json` (`draw_shots`): mixtures of Gaussians over place, speed, spin and direction that
hold means and covariances, no recorded row. `rally` and `serve` are fitted to the match events that
Sony published with Durr et al. 2026 (Nature 652:886-891), `slow` to the rally states that Google
DeepMind published with D'Ambrosio et al. 2024 (arXiv 2408.03906, data CC BY 4.0). Shots are drawn
in the shooter's frame (the shooter stands at x < 0, hits towards +x) and turned by 180 degrees.

A shot must be legal in the simulator. What is not is drawn again in direction and vertical speed
only, which keeps the marginals of place, speed and spin; plain rejection would thin out the fast
and heavily spun shots.
"""

import csv
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from core_rl.errors import UserError
from projects.ace.ball import RADIUS

ShotKind = Literal["rally", "serve", "slow"]
_MODELS = {"rally": "human_rally", "serve": "human_serve", "slow": "slow_rally"}
COLUMNS = ("x", "y", "z", "vx", "vy", "vz", "wx", "wy", "wz")
LARGEST_SPEED = 40.0  # [m/s] the models of flight and contact say nothing beyond
LARGEST_SPIN = 1200.0  # [rad/s]
_AIM = 0.685  # the middle of the far half [m]
_TURN = np.array([-1, -1, 1, -1, -1, 1, -1, -1, 1.0])  # by 180 degrees about z
_MODEL = Path(__file__).with_name("shot_model.json")
REDRAWS = 16


class States(NamedTuple):
    """Balls after a stroke: rows of position, velocity, spin, in the table's frame."""

    values: np.ndarray  # [N, 9] float64
    skipped: list[str]  # a line for each row that was left out


def check_states(values: np.ndarray, where: Callable[[int], str]) -> list[tuple[int, str]]:
    """The rows of [N, 9] that no model covers, with one line each."""
    bad = []
    for row in range(len(values)):
        state = values[row]
        speed, spin = np.linalg.norm(state[3:6]), np.linalg.norm(state[6:])
        if not np.all(np.isfinite(state)):
            name = COLUMNS[int(np.argmin(np.isfinite(state)))]
            bad.append((row, f"{where(row)}: {name} must be a finite number"))
        elif speed > LARGEST_SPEED:
            bad.append((row, f"{where(row)}: speed {speed:.1f} m/s, at most {LARGEST_SPEED:.0f}"))
        elif spin > LARGEST_SPIN:
            bad.append((row, f"{where(row)}: spin {spin:.0f} rad/s, at most {LARGEST_SPIN:.0f}"))
    return bad


def read_states(path: str | Path, *, skip_invalid: bool = False) -> States:
    """Reads a CSV file with the columns of `COLUMNS` (others are ignored).

    Raises UserError with one line (file, row, reason, what is allowed); with `skip_invalid` rows
    that are wrong are left out and named in `skipped`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    rows = list(csv.reader(line for line in text.splitlines() if line.strip()))
    header = [name.strip() for name in rows[0]] if rows else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UserError(
            f"{path}: column {missing[0]!r} is missing; "
            f"the first line must name {','.join(COLUMNS)}"
        )
    if len(rows) < 2:
        raise UserError(f"{path}: there is no ball below the column names")
    where = lambda row: f"{path} row {row + 2}"  # noqa: E731
    values, bad = np.full((len(rows) - 1, 9), np.nan), {}
    for index, row in enumerate(rows[1:]):
        for k, name in enumerate(COLUMNS):
            place = header.index(name)
            cell = row[place].strip() if place < len(row) else ""
            try:
                values[index, k] = float(cell)
            except ValueError:
                bad.setdefault(index, f"{where(index)}: {name} is {cell!r}, not a number")
    for index, line in check_states(values, where):
        bad.setdefault(index, line)
    lines = [bad[index] for index in sorted(bad)]
    if lines and not skip_invalid:
        more = f" (and {len(lines) - 1} more; --skip_invalid leaves them out)"
        raise UserError(lines[0] + (more if len(lines) > 1 else " (--skip_invalid leaves it out)"))
    if len(lines) == len(values):
        raise UserError(f"{lines[0]}; no ball of the file can be used")
    return States(np.delete(values, sorted(bad), axis=0), lines)


@functools.cache
def _model() -> dict[str, Any]:
    return json.loads(_MODEL.read_text())


def shot_states(
    kind: ShotKind, component: np.ndarray, normals: np.ndarray, spread: float
) -> np.ndarray:
    """Post-stroke states [N, 9] in the table's frame from mixture components [N] and standard
    normals [N, 9]; `spread` scales every deviation (1 matches the record)."""
    model = _model()["models"][_MODELS[kind]]
    mean = np.array([c["mean"] for c in model["components"]])[component]
    chol = np.array([c["chol"] for c in model["components"]])[component]
    u = mean + spread * np.einsum("nij,nj->ni", chol, normals)
    x, y, z, log_speed, top, side, gyro, azimuth, vz_rest = u.T
    speed = np.exp(log_speed)  # horizontal [m/s]
    t = (_AIM - x) / speed
    # The vertical speed that would send the ball to the middle of the far half, by regression.
    terms = [1.0 + 0 * t, t, (z - RADIUS) / t, speed, top * speed * t / 1000.0, t**2, speed * t**2]
    vz = vz_rest + np.array(model["vz_poly"]) @ np.stack(terms)
    c, s = np.cos(azimuth), np.sin(azimuth)
    spin = -s * top + c * gyro, c * top + s * gyro, side
    return np.stack([x, y, z, speed * c, speed * s, vz, *spin], axis=1) * _TURN


def _inside(kind: ShotKind, states: np.ndarray) -> np.ndarray:
    """Whether states [N, 9] lie where the model may be used."""
    bounds = _model()["truncation"][kind]["bounds_in_shooter_frame"]
    x, y, z = (states * _TURN)[:, :3].T
    speed, spin = np.linalg.norm(states[:, 3:6], axis=1), np.linalg.norm(states[:, 6:], axis=1)
    inside = spin <= bounds["spin_max"]
    for name, value in (("x", x), ("y", y), ("z", z), ("speed", speed)):
        low, high = bounds[name]
        inside &= (value >= low) & (value <= high)
    return inside


def draw_shots(
    rng: np.random.Generator,
    num_balls: int,
    kind: ShotKind,
    legal: Callable[[np.ndarray], np.ndarray],
    *,
    spread: float = 1.0,
    group: str = "all",
) -> np.ndarray:
    """Legal shots [num_balls, 9] in the table's frame.

    Args:
      legal: says of states [M, 9] which are legal in the simulator, bool [M].
      spread: factor on all deviations; 1.15 (rally) and 1.5 (serve) suit players not seen best.
      group: whose shots: `all`, `elite` or `pro`.
    """
    model = _model()["models"][_MODELS[kind]]
    weights = np.array(model["weights"][group]) / np.sum(model["weights"][group])
    shots = np.empty((num_balls, 9))
    component, normals = np.empty(num_balls, int), np.empty((num_balls, 9))
    tries = np.full(num_balls, REDRAWS)  # all begin as used up
    missing = np.arange(num_balls)
    while len(missing):
        fresh = missing[tries[missing] == REDRAWS]
        component[fresh] = rng.choice(len(weights), size=len(fresh), p=weights)
        normals[fresh] = rng.normal(size=(len(fresh), 9))
        tries[fresh] = 0
        shots[missing] = shot_states(kind, component[missing], normals[missing], spread)
        good = _inside(kind, shots[missing])
        if good.any():
            good[good] = legal(shots[missing[good]])
        missing = missing[~good]
        normals[missing, 7:] = rng.normal(size=(len(missing), 2))
        tries[missing] += 1
    return shots
