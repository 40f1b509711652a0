"""What a user may wish for on top of what a policy was trained for: add-on rewards by name.

An add-on has the form of every reward here, a function `(previous, current, action, time_step)` of
two `DriveState`s and the action that led from one to the other to named terms; their weighted sum
is the `r_R` of Residual-MPPI (Wang et al. 2025, arXiv 2407.00898). It reads predicted states as it
reads true ones.

    margin:0.5                      all wheels 0.5 m inside the white lines
    speed_limit:400:900:120         at most 120 km/h from 400 m to 900 m after the line
    calm                            no quick steering
    path/to/file.py                 whose `reward_terms` has this form; `WEIGHTS` may be beside it

Each may end in `@WEIGHT` and they may be combined: `margin:0.5@2,calm`.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from core_rl.errors import UsageError
from projects.sophy import track as tracks
from projects.sophy.driving import CONTROL_STEP, DriveState
from projects.sophy.model import clearance
from projects.sophy.reward import KMH
from projects.sophy.time_trial import TimeTrial

Terms = Mapping[str, Array]
CAUTION = 0.5  # [m]
TermsFunction = Callable[[DriveState, DriveState, Array, float], Terms]
Violation = Callable[[DriveState, DriveState], Array]  # (previous, current) -> bool []


class Addon(NamedTuple):
    """Named terms, weighted already; `violation` tells where the wish is not kept, for reports."""

    spec: str
    terms: TermsFunction
    violation: Violation | None = None

    def reward(self, previous: DriveState, action: Array, current: DriveState) -> Array:
        """r_R [] in the order of arguments that planners use."""
        return sum(self.terms(previous, current, action, CONTROL_STEP).values(), jnp.zeros(()))


def margin(env: TimeTrial, distance: float) -> tuple[TermsFunction, Violation]:
    """All wheels at least `distance` [m] inside the white lines. Term: begins `CAUTION` farther
    inside, since predictions err, is 1 where the margin ends, and grows on as steeply."""

    def terms(previous, current, action, time_step):
        del previous, action, time_step
        return {
            "margin": -jnp.maximum(distance - clearance(env.track, current) + CAUTION, 0.0)
            / CAUTION
        }

    return terms, lambda previous, current: clearance(env.track, current) < distance


def speed_limit(
    env: TimeTrial, start: float, end: float, limit: float
) -> tuple[TermsFunction, Violation]:
    """At most `limit` [km/h] between `start` and `end` [m] after the line, which the zone may
    cross. Term: the excess in tens of km/h."""
    length = float(env.track.length)
    if not (0 <= start < length and 0 <= end < length and start != end):
        raise UsageError(
            f"speed_limit: the zone must lie within the lap's {length:.0f} m, got {start} to {end}"
        )
    if not limit > 0:
        raise UsageError(f"speed_limit: the limit must be positive, got {limit}")

    def excess(drive: DriveState) -> Array:
        behind = tracks.wrap(env.track, drive.s - start)
        speed = jnp.sqrt(jnp.sum(drive.motion.velocity**2)) * KMH
        inside = behind < (end - start) % length
        return jnp.where(inside, jnp.maximum(speed - limit, 0.0), 0.0)

    def terms(previous, current, action, time_step):
        del previous, action, time_step
        return {"speed_limit": -excess(current) / 10.0}

    return terms, lambda previous, current: excess(current) > 0.0


def calm(env: TimeTrial) -> tuple[TermsFunction, Violation]:
    """No quick steering. Term: the square of the change of the road-wheel angle's target in units
    of what one decision may change (steering by increments) or 3 degrees."""
    step = env.config.steering_step

    def change(previous: DriveState, current: DriveState) -> Array:
        return (current.steering_target - previous.steering_target) / step

    def terms(previous, current, action, time_step):
        del action, time_step
        return {"calm": -(change(previous, current) ** 2)}

    return terms, lambda previous, current: jnp.abs(change(previous, current)) > 0.5


ADDONS: dict[str, tuple[Callable[..., tuple[TermsFunction, Violation]], tuple[str, ...]]] = {
    "margin": (margin, ("METRES",)),
    "speed_limit": (speed_limit, ("FROM", "TO", "KMH")),
    "calm": (calm, ()),
}


USAGE = ", ".join(
    [*(":".join((name, *arguments)) for name, (_, arguments) in ADDONS.items()), "FILE.py"]
)


def _number(text: str, spec: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"add-on {spec!r}: {text!r} is no finite number")
    return value


def _weighted(terms: TermsFunction, weights: Mapping[str, float], factor: float) -> TermsFunction:
    def weighted(*arguments) -> Terms:
        return {
            name: factor * weights.get(name, 1.0) * term for name, term in terms(*arguments).items()
        }

    return weighted


def _from_file(spec: str, path: Path) -> tuple[TermsFunction, Mapping[str, float]]:
    """Raises UsageError for a file that cannot be run or has no `reward_terms`."""
    names: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    except FileNotFoundError:
        raise UsageError(f"add-on {spec!r}: there is no file {path}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"add-on {spec!r}: {type(error).__name__}: {reason}") from error
    terms, weights = names.get("reward_terms"), names.get("WEIGHTS", {})
    if not callable(terms):
        raise UsageError(
            f"add-on {spec!r}: {path} must define "
            "reward_terms(previous, current, action, time_step)"
        )
    if not isinstance(weights, Mapping) or not all(
        isinstance(value, int | float) and math.isfinite(value) for value in weights.values()
    ):
        raise UsageError(f"add-on {spec!r}: WEIGHTS must be a dict of finite numbers")
    return terms, weights  # pyright: ignore[reportReturnType]


def _one(env: TimeTrial, spec: str) -> Addon:
    body, at, weight = spec.partition("@")
    factor = _number(weight, spec) if at else 1.0
    if body.endswith(".py"):
        terms, weights = _from_file(spec, Path(body).expanduser())
        return Addon(spec, _weighted(terms, weights, factor))
    name, *arguments = body.split(":")
    if name not in ADDONS:
        raise UsageError(f"there is no add-on {name!r}: allowed are {USAGE}")
    make, expected = ADDONS[name]
    if len(arguments) != len(expected):
        raise UsageError(f"add-on {spec!r} must be {':'.join((name, *expected))}")
    terms, violation = make(env, *(_number(text, spec) for text in arguments))
    return Addon(spec, _weighted(terms, {}, factor), violation)


def parse_addon(env: TimeTrial, spec: str) -> Addon:
    """The add-on that `spec` describes, see the module's text; raises UsageError."""
    parts = [_one(env, part.strip()) for part in spec.split(",") if part.strip()]
    if not parts:
        raise UsageError(f"an add-on is missing: allowed are {USAGE}, several with commas between")

    def terms(*arguments) -> Terms:
        result: dict[str, Array] = {}
        for part in parts:
            for name, term in part.terms(*arguments).items():
                result[name] = result.get(name, 0.0) + term
        return result

    violations = [part.violation for part in parts if part.violation is not None]

    def violation(previous: DriveState, current: DriveState) -> Array:
        return jnp.any(jnp.stack([each(previous, current) for each in violations]))

    return Addon(spec, terms, violation if violations else None)
