"""The page that replays exchanges in 3-D: one file, drawn on a canvas, no network needed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from projects.ace.arm import BLADE_RADIUS, HAND, RADII, WRIST
from projects.ace.ball import RADIUS
from projects.ace.events import (
    HALF_LENGTH,
    HALF_WIDTH,
    NET_HALF_WIDTH,
    NET_HEIGHT,
    TABLE_HEIGHT,
    TABLE_THICKNESS,
)
from projects.ace.render import MEANINGS, Exchange, PictureError, racket_speed, topspin

# The page interpolates linearly: 40 m/s^2 over this time leave the chord by 0.3 mm.
BALL_INTERVAL = 0.008  # [s] between the ball's places
ARM_INTERVAL = 0.01  # [s] between the arm's poses

# Decimals that leave about four digits; a ball of 10 m/s needs the finer time.
LENGTH_DIGITS, TIME_DIGITS, SPEED_DIGITS, SPIN_DIGITS = 3, 4, 2, 1


def _numbers(values: np.ndarray, digits: int) -> list[float]:
    """Rounded, flat, and whole numbers without a point: about half the text."""
    rounded = np.round(np.asarray(values, float).ravel(), digits) + 0.0
    return [int(value) if value == int(value) else float(value) for value in rounded]


def _thin(time: np.ndarray, interval: float) -> np.ndarray:
    """Whether to keep each time [T]: one per interval, counted from the last, and both ends."""
    tick = np.floor((time[-1] - time) / interval + 1e-6)
    keep = np.diff(tick, append=-1) != 0
    keep[0] = True
    return keep


def _way(place: np.ndarray, time: np.ndarray, keep: np.ndarray) -> dict[str, list[float]]:
    """Times [K] and the places [K, ...] at them, flat."""
    return {
        "time": _numbers(time[keep], TIME_DIGITS),
        "place": _numbers(place[keep], LENGTH_DIGITS),
    }


def _record(exchange: Exchange) -> dict[str, Any]:
    # The ball turns sharply at the bounce, which may lie between the places that are kept.
    bounce = int(np.argmin(np.linalg.norm(exchange.incoming - exchange.bounce, axis=1)))
    in_keep = _thin(exchange.incoming_time, BALL_INTERVAL)
    in_keep[bounce] = True
    out_keep = _thin(exchange.outgoing_time, BALL_INTERVAL)
    arm_keep = _thin(exchange.arm_time, ARM_INTERVAL)
    return {
        "incoming": _way(exchange.incoming, exchange.incoming_time, in_keep),
        "outgoing": _way(exchange.outgoing, exchange.outgoing_time, out_keep),
        "arm": _way(exchange.arm, exchange.arm_time, arm_keep),
        "normal": _numbers(exchange.normal[arm_keep], LENGTH_DIGITS),
        "bounce": _numbers(exchange.bounce, LENGTH_DIGITS),
        "bounce_time": round(float(exchange.incoming_time[bounce]), TIME_DIGITS),
        "speed": _numbers(np.linalg.norm(exchange.velocity, axis=1), SPEED_DIGITS),
        "spin": _numbers(np.linalg.norm(exchange.spin, axis=1), SPIN_DIGITS),
        "topspin": _numbers(topspin(exchange.velocity, exchange.spin), SPIN_DIGITS),
        "racket_speed": round(racket_speed(exchange), SPEED_DIGITS),
        "outcome": exchange.outcome,
        "meaning": MEANINGS.get(exchange.outcome, exchange.outcome),
    }


def replay_html(exchanges: Sequence[Exchange], title: str) -> str:
    """A page that replays exchanges one at a time, chosen from a list, seen from any side.

    The fragment of its address sets it up: `#exchange=2&t=0.4&play&view=side&rate=0.1`.

    Args:
      exchanges: at least one, listed in this order.
      title: plain text.

    Raises:
      PictureError: there is no exchange.
    """
    if not exchanges:
        raise PictureError("no exchange to replay, at least one is needed")
    data = {
        "table": {
            "half_length": HALF_LENGTH,
            "half_width": HALF_WIDTH,
            "thickness": TABLE_THICKNESS,
            "height": TABLE_HEIGHT,
            "net_height": NET_HEIGHT,
            "net_half_width": NET_HALF_WIDTH,
        },
        "ball_radius": RADIUS,
        "blade_radius": BLADE_RADIUS,
        "link_radii": _numbers(RADII, LENGTH_DIGITS),
        "wrist_share": WRIST / HAND,  # of the way from the wrist to the blade's centre
        "exchanges": [_record(exchange) for exchange in exchanges],
    }
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        Path(__file__).with_name("replay.html").read_text(encoding="utf-8")
    )
    packed = json.dumps(data, separators=(",", ":"), allow_nan=False)
    # Inside a script element only '<' could end the data early.
    return template.render(title=title, data=packed.replace("<", "\\u003c"))
