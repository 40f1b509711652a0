"""A bank of incoming balls with their measurements, made once before an experiment.

Making one costs some ten milliseconds per ball, so `load_bank` keeps what it has made.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import struct

from core_rl.errors import UserError
from projects.ace.ball import FlightModel
from projects.ace.incoming import COARSE_STEP, Incoming, legal_states, make_flights, select
from projects.ace.sensing import Sensed, SensingConfig, sense
from projects.ace.shots import draw_shots, read_states

BANKS = "runs/banks"  # where banks are kept

# What a bank follows from, beside its configuration.
_SOURCES = ("ball", "bank", "contact", "events", "incoming", "sensing", "shots", "shot_model")


@struct.dataclass
class Bank:
    """Balls, their measurements, and what the filter made of them, leaves [N, ...]."""

    incoming: Incoming
    sensed: Sensed


@dataclasses.dataclass(frozen=True)
class BankConfig:
    source: str = ""  # human (elite and professional play), slow, a CSV file; empty: by the task
    num_balls: int = 4096  # balls that are drawn
    serves: float = 0.3  # share of serves among human shots
    spread: float = 1.0  # factor on the deviations of the shots; 1 matches the record
    seed: int = 0  # of the shots and of the measurements
    skip_invalid: bool = False  # leave out rows of a file that no model covers

    def __post_init__(self):
        if self.num_balls < 1:
            raise ValueError(f"num_balls must be at least 1, got {self.num_balls}")
        if not 0 <= self.serves <= 1:
            raise ValueError(f"serves must be in [0, 1], got {self.serves}")
        if not self.spread > 0:
            raise ValueError(f"spread must be positive, got {self.spread}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


def draw_states(config: BankConfig, model: FlightModel) -> tuple[np.ndarray, np.ndarray]:
    """States [N, 9] after the opponent's stroke, in mixed order, and which are serves [N].

    Raises UserError for a file that cannot be used.
    """
    if config.source not in ("human", "slow"):
        states = read_states(config.source, skip_invalid=config.skip_invalid).values
        return states, np.zeros(len(states), bool)
    rng = np.random.default_rng(config.seed)
    coarse = make_flights(model, time_step=COARSE_STEP)
    num_serves = round(config.serves * config.num_balls) if config.source == "human" else 0
    kinds = {"serve": num_serves, "rally": config.num_balls - num_serves}
    if config.source == "slow":
        kinds = {"slow": config.num_balls}
    parts = [
        draw_shots(rng, count, kind, legal_states(coarse, kind), spread=config.spread)  # pyright: ignore[reportArgumentType]
        for kind, count in kinds.items()
        if count
    ]
    serve = np.concatenate([np.full(count, kind == "serve") for kind, count in kinds.items()])
    order = rng.permutation(config.num_balls)
    return np.concatenate(parts)[order], serve[order]


def make_bank(config: BankConfig, model: FlightModel, sensing: SensingConfig) -> Bank:
    """Draws or reads the balls, flies them and measures them; balls that are not legal are left
    out, since nobody has to return them.

    Raises UserError for a file that cannot be used.
    """
    states, serve = draw_states(config, model)
    incoming = make_flights(model)(states, serve)
    if not incoming.legal.any():
        raise UserError(f"none of the {len(states)} balls of {config.source} lands on this side")
    incoming = select(incoming, incoming.legal)
    return Bank(incoming, sense(sensing, model, incoming, jax.random.key(config.seed)))


def load_bank(
    config: BankConfig, model: FlightModel, sensing: SensingConfig, folder: str | Path = BANKS
) -> Bank:
    """`make_bank`, or the same bank from `folder` where it was made before by the same code."""
    settings = [dataclasses.asdict(config), model, dataclasses.asdict(sensing)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    here = Path(__file__).parent
    for name in _SOURCES:
        digest.update((here / f"{name}.{'json' if name == 'shot_model' else 'py'}").read_bytes())
    if config.source not in ("human", "slow"):
        with contextlib.suppress(OSError):  # `make_bank` says what is wrong with the file
            digest.update(Path(config.source).read_bytes())
    path = Path(folder) / f"{digest.hexdigest()[:16]}.npz"
    if path.exists():
        with np.load(path) as kept:

            def part(name: str, kind: type) -> dict[str, np.ndarray]:
                return {f.name: kept[f"{name}.{f.name}"] for f in dataclasses.fields(kind)}

            return Bank(
                incoming=Incoming(**part("incoming", Incoming)),  # pyright: ignore[reportArgumentType]
                sensed=Sensed(**part("sensed", Sensed)),  # pyright: ignore[reportArgumentType]
            )
    bank = make_bank(config, model, sensing)
    leaves = {
        f"{part}.{name}": np.asarray(leaf)
        for part in ("incoming", "sensed")
        for name, leaf in vars(getattr(bank, part)).items()
    }
    # A full or read-only disk costs the next run its minute, not this one its bank.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.savez(file, allow_pickle=False, **leaves)  # pyright: ignore[reportArgumentType]
        os.replace(file.name, path)
    return bank
