"""Impacts of the ball: table, racket, net cord, net and floor.

All are instantaneous impulses on a thin shell (contacts last 1 to 2 ms). With `n` the normal
towards the ball, `v` the ball's velocity relative to the touched point and
`u = v - (v.n) n - r w x n` the slip of the ball's surface:

    v' = v - (1 + e) (v.n) n - alpha u        w' = w + (3 alpha / 2r) (n x u)

`alpha = 2/5` is the shell that rolls after the impact; less is a ball that still slides, more is a
rubber that springs back.
"""

import jax.numpy as jnp
from flax import struct
from jax import Array

from projects.ace.ball import RADIUS, Ball

ROLLING = 0.4  # alpha at which the slip is gone, 1 / (1 + 1 / (2/3)) for a thin shell


@struct.dataclass
class Surface:
    """A hard surface: sliding under Coulomb friction, or rolling after the impact."""

    restitution: Array | float  # [] at no speed
    restitution_slope: Array | float  # [] lost per m/s of normal speed [s/m]
    restitution_min: Array | float  # []
    friction: Array | float  # [] Coulomb


# Durr et al. 2026 (Nature 652:886-891, Methods): e = 0.98 - 0.02 |v_n|, mu = 0.25; the lower bound
# is ours, the fit ends near 10 m/s.
TABLE = Surface(0.98, 0.02, 0.5, 0.25)
FLOOR = Surface(0.5, 0.0, 0.5, 0.4)  # a value for the eye; play is over there
# No model of the net is published. These two are ours, chosen for plausible cords: most balls that
# touch the cord and pass lose half of their pace and rise.
CORD = Surface(0.3, 0.0, 0.3, 0.3)
NET = Surface(0.1, 0.0, 0.1, 0.3)


@struct.dataclass
class Rubber:
    """A racket's covering; it returns less of the normal and of the sliding speed as they grow."""

    restitution: Array | float  # [] e at no speed
    restitution_slope: Array | float  # [s/m]
    restitution_min: Array | float  # []
    restitution_max: Array | float  # []
    spring: Array | float  # [] tangential restitution at no speed
    spring_slope: Array | float  # [s/m]
    friction: Array | float  # [] Coulomb limit
    drill_kept: Array | float  # [] share of the spin about the normal that is kept


RUBBERS = {
    # Conti et al. 2026 (arXiv 2606.28805), Table IV. The friction limit is ours: none is published.
    "inverted": Rubber(0.878, 0.020, 0.45, 0.90, 0.819, 0.010, 1.2, 0.805),
    # Hard and slippery, restitution and friction from one secondary source.
    "anti_spin": Rubber(0.53, 0.0, 0.45, 0.90, 0.0, 0.0, 0.2, 0.9),
}


RIM = Rubber(0.4, 0.0, 0.3, 0.9, 0.0, 0.0, 0.3, 1.0)  # the blade's bare edge; ours


def _slip(velocity: Array, spin: Array, normal: Array) -> tuple[Array, Array, Array]:
    """Normal speed [] (negative into the surface), slip [3] and its magnitude []."""
    into = jnp.dot(velocity, normal)
    slip = velocity - into * normal - RADIUS * jnp.cross(spin, normal)
    return into, slip, jnp.sqrt(jnp.maximum(jnp.sum(slip**2), 1e-12))


def bounce(surface: Surface, ball: Ball, normal: Array) -> Ball:
    """The ball after an impact on a surface at rest with the unit `normal` [3] towards the ball."""
    into, slip, size = _slip(ball.velocity, ball.spin, normal)
    e = surface.restitution - surface.restitution_slope * jnp.abs(into)
    e = jnp.maximum(e, surface.restitution_min)
    alpha = jnp.minimum(ROLLING, surface.friction * (1.0 + e) * jnp.abs(into) / size)
    return Ball(
        position=ball.position,
        velocity=ball.velocity - alpha * slip - (1.0 + e) * into * normal,
        spin=ball.spin + 1.5 * alpha / RADIUS * jnp.cross(normal, slip),
    )


def strike(rubber: Rubber, ball: Ball, normal: Array, racket_velocity: Array) -> Ball:
    """The ball after the racket's impact.

    Args:
      normal: [3] unit normal of the face towards the ball.
      racket_velocity: [3] of the racket's touched point [m/s]; the racket is driven and does not
        give way (the ball weighs about 1.5 % of it).
    """
    velocity = ball.velocity - racket_velocity
    into, slip, size = _slip(velocity, ball.spin, normal)
    e = rubber.restitution - rubber.restitution_slope * jnp.abs(into)
    e = jnp.clip(e, rubber.restitution_min, rubber.restitution_max)
    spring = jnp.clip(rubber.spring - rubber.spring_slope * size, 0.0, 1.0)
    alpha = jnp.minimum(
        ROLLING * (1.0 + spring), rubber.friction * (1.0 + e) * jnp.abs(into) / size
    )
    spin = ball.spin + 1.5 * alpha / RADIUS * jnp.cross(normal, slip)
    return Ball(
        position=ball.position,
        velocity=ball.velocity - alpha * slip - (1.0 + e) * into * normal,
        spin=spin - (1.0 - rubber.drill_kept) * jnp.dot(spin, normal) * normal,
    )
