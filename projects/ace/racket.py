"""Where and when the ball meets the racket in a step of a few milliseconds.

The blade is a flat disc with a round rim: all points within half its thickness of a disc of
BLADE_RADIUS. At 35 m/s a ball crosses it within one step, so overlap at the step's ends is not
enough: the gap is followed in between, as the cubic that has its value and slope at both ends.

Nothing is bounced here. After a hit the caller ignores the racket for a while (20 ms say).
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from projects.ace.arm import BLADE_RADIUS, BLADE_THICKNESS, RacketPose
from projects.ace.ball import RADIUS, Ball

REACH = RADIUS + BLADE_THICKNESS / 2  # of the ball's centre from the disc at a touch [m]
NEWTON_STEPS = 4
RIM_SAMPLES = 8  # a step of 1 ms at 35 m/s is looked at every 4 mm

RacketMotion = tuple[RacketPose, Array, Array]  # what `arm.racket_motion` returns


@struct.dataclass
class Hit:
    """The first touch in a step; the other entries mean nothing where it did not happen."""

    happened: Array  # [] bool
    rim: Array  # [] bool: with the rim, not with a face
    fraction: Array  # [] share of the step until then
    side: Array  # [] 1: the ball comes from where the racket's normal points, -1: from behind
    normal: Array  # [3] unit vector from the touched point to the ball's centre
    arm: Array  # [3] from the blade's centre to the touched point [m]


def _hermite(start: Array, start_slope: Array, end: Array, end_slope: Array, t: Array) -> Array:
    """The cubic with these values and slopes (per step) at 0 and 1, at `t` []."""
    s = 1.0 - t
    return s * s * ((1.0 + 2.0 * t) * start + t * start_slope) + t * t * (
        (1.0 + 2.0 * s) * end - s * end_slope
    )


def _face(start: Array, start_slope: Array, end: Array, end_slope: Array) -> tuple[Array, Array]:
    """Whether the cubic of a gap falls through zero within the step, and when first; [] each."""
    # In powers of t, for its lowest point: a gap may close and open again.
    c1, c2 = start_slope, 3.0 * (end - start) - 2.0 * start_slope - end_slope
    c3 = 2.0 * (start - end) + start_slope + end_slope
    root = jnp.sqrt(jnp.maximum(c2 * c2 - 3.0 * c3 * c1, 0.0))
    # (-c2 + root) / 3 c3 without its cancellation; the other root is a highest point.
    lowest = jnp.where(
        c2 > 0.0,
        -c1 / jnp.maximum(c2 + root, 1e-20),
        (root - c2) / jnp.where(c3 == 0.0, 1e-20, 3.0 * c3),
    )
    lowest = jnp.clip(jnp.where(jnp.isfinite(lowest), lowest, 1.0), 0.0, 1.0)

    def value(t: Array) -> Array:
        return start + t * (c1 + t * (c2 + t * c3))

    dips = value(lowest) < 0.0
    high = jnp.where(dips, lowest, 1.0)
    at_high = value(high)
    crossed = (start >= 0.0) & (at_high <= 0.0)
    t = high * jnp.clip(start / jnp.maximum(start - at_high, 1e-12), 0.0, 1.0)

    def refine(_, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, t = carry
        f = value(t)
        low, high = jnp.where(f >= 0.0, t, low), jnp.where(f >= 0.0, high, t)
        slope = c1 + t * (2.0 * c2 + 3.0 * t * c3)
        newton = t - f / jnp.where(jnp.abs(slope) > 1e-12, slope, -1e-12)
        inside = (newton >= low) & (newton <= high)
        return low, high, jnp.where(inside, newton, 0.5 * (low + high))

    _, _, t = jax.lax.fori_loop(0, NEWTON_STEPS, refine, (jnp.zeros_like(t), high, t))
    return crossed, t


def sweep(
    ball0: Ball, ball1: Ball, racket0: RacketMotion, racket1: RacketMotion, time_step: Array | float
) -> Hit:
    """The first touch of ball and racket in a step of `time_step` [s], for vmap and jit.

    Args:
      ball0, ball1: the ball at the step's start and end, flown as if no racket were there.
      racket0, racket1: the racket's pose, velocity and angular velocity at the same times.
    """
    pose0, velocity0, turn0 = racket0
    pose1, velocity1, turn1 = racket1
    away0, away1 = ball0.position - pose0.centre, ball1.position - pose1.centre
    drift0 = time_step * (ball0.velocity - velocity0)
    drift1 = time_step * (ball1.velocity - velocity1)
    tilt0 = time_step * jnp.cross(turn0, pose0.normal)
    tilt1 = time_step * jnp.cross(turn1, pose1.normal)

    gap0 = jnp.dot(away0, pose0.normal)
    gap1 = jnp.dot(away1, pose1.normal)
    side = jnp.where(gap0 >= 0.0, 1.0, -1.0)
    crossed, face_at = _face(
        side * gap0 - REACH,
        side * (jnp.dot(drift0, pose0.normal) + jnp.dot(away0, tilt0)),
        side * gap1 - REACH,
        side * (jnp.dot(drift1, pose1.normal) + jnp.dot(away1, tilt1)),
    )

    def seen(t: Array) -> tuple[Array, Array, Array, Array]:
        """The ball from the blade's centre: height over the disc [], way in its plane [3], length
        of that [], and the normal [3]."""
        away = _hermite(away0, drift0, away1, drift1, t)
        normal = _hermite(pose0.normal, tilt0, pose1.normal, tilt1, t)
        normal = normal / jnp.sqrt(jnp.sum(normal**2))
        height = jnp.dot(away, normal)
        flat = away - height * normal
        return height, flat, jnp.sqrt(jnp.sum(flat**2) + 1e-18), normal

    _, flat, radius, normal = seen(face_at)
    face = crossed & (radius <= BLADE_RADIUS)

    def rim_gap(t: Array) -> Array:
        height, _, radius, _ = seen(t)
        return jnp.sqrt(height**2 + (radius - BLADE_RADIUS) ** 2) - REACH

    times = jnp.arange(RIM_SAMPLES + 1) / RIM_SAMPLES
    gaps = jax.vmap(rim_gap)(times)
    closing = (gaps[:-1] > 0.0) & (gaps[1:] <= 0.0)
    k = jnp.argmax(closing)
    chord = gaps[k] / jnp.maximum(gaps[k] - gaps[k + 1], 1e-12)
    low, high = times[k], times[k + 1]
    rim_at = low + (high - low) * chord

    # One secant step more: the gap bends most where the ball grazes.
    at_chord = rim_gap(rim_at)
    other = jnp.where(at_chord > 0.0, high, low)
    at_other = jnp.where(at_chord > 0.0, gaps[k + 1], gaps[k])
    change = at_chord - at_other
    rim_at += (other - rim_at) * at_chord / jnp.where(jnp.abs(change) > 1e-12, change, 1.0)

    rim_height, rim_flat, rim_radius, rim_normal = seen(rim_at)
    on_rim = jnp.any(closing) & ~(face & (face_at <= rim_at))
    edge = rim_flat * (BLADE_RADIUS / rim_radius)
    out = rim_height * rim_normal + rim_flat - edge
    out = out / jnp.maximum(jnp.sqrt(jnp.sum(out**2)), 1e-9)
    half = BLADE_THICKNESS / 2
    return Hit(
        happened=face | on_rim,
        rim=on_rim,
        fraction=jnp.where(on_rim, rim_at, face_at),
        side=side,
        normal=jnp.where(on_rim, out, side * normal),
        arm=jnp.where(on_rim, edge + half * out, flat + half * side * normal),
    )
