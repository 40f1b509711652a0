"""Flight of a table-tennis ball: gravity, drag and the Magnus force, integrated by RK4.

    dv/dt = -g z - (rho A / 2m) C_D |v| v + (rho V / m) C_M (w x v)

Frame, here and everywhere in this package: origin at the centre of the table top, x along the table
towards the opponent, y to the robot's left, z up. SI units; spins in rad/s.

Two published models of C_D and C_M. `nature` (Durr et al. 2026, Nature 652:886-891): a constant
drag and a lift that hardly depends on how fast the ball spins. `conti` (Conti et al. 2026, arXiv
2606.28805): tables over speed and spin that follow the lift crisis; how the paper interpolates
between its rows is not known to us, linear is our choice.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

RADIUS = 0.020  # [m] ITTF Laws 2.3
MASS = 2.7e-3  # [kg] ITTF Laws 2.3
AIR_DENSITY = 1.204  # [kg/m^3] at 20 C
GRAVITY = 9.81  # [m/s^2]
SHELL = 2.0 / 3.0  # moment of inertia of a thin shell over m r^2

DRAG_FACTOR = AIR_DENSITY * np.pi * RADIUS**2 / (2.0 * MASS)  # [1/m]
LIFT_FACTOR = AIR_DENSITY * 4.0 / 3.0 * np.pi * RADIUS**3 / MASS  # [-]

FlightModel = Literal["conti", "nature", "vacuum"]
FLIGHT_MODELS = ("conti", "nature", "vacuum")

# Conti et al. 2026, Table I: C_D over speed [m/s] and spin ratio S = r |w| / |v|.
_DRAG_SPEED = (2.5, 7.5, 12.5, 17.5)
_DRAG_RATIO = (0.0, 0.3, 0.7, 0.95, 1.5, 2.0)
_DRAG = (
    (0.55, 0.55, 0.55, 0.55, 0.55, 0.55),
    (0.49, 0.49, 0.55, 0.48, 0.53, 0.53),
    (0.47, 0.47, 0.53, 0.41, 0.48, 0.48),
    (0.47, 0.47, 0.51, 0.37, 0.45, 0.45),
)
# Conti et al. 2026, Tables II and III: C_M over speed and spin. Below the spin w_b a line
# a1 w + c1, above it a parabola a2 w^2 + b2 w + c2; columns: speed, a1, c1, w_b, a2, b2, c2.
_LIFT = np.array(
    [
        (2.0, 0.0, 0.080, 150.0, -1.852e-7, -1.296e-4, 0.0983),
        (3.5, -1.10e-3, 0.310, 200.0, -1.667e-7, -3.333e-5, 0.1000),
        (7.5, -8.00e-4, 0.370, 350.0, -2.000e-7, 1.700e-4, 0.0587),
        (10.5, -6.58e-4, 0.375, 440.0, -2.604e-7, 3.646e-4, -0.0225),
        (13.5, -5.60e-4, 0.383, 550.0, -3.571e-7, 5.357e-4, -0.0893),
        (17.0, -4.48e-4, 0.371, 650.0, -1.000e-7, 2.300e-4, -0.0375),
    ]
)
_BLEND = 0.05  # the branches miss each other by up to 0.022; they are blended within 5 % of w_b
LARGEST_LIFT = 0.375  # cap of the `nature` model, which is singular without spin


@struct.dataclass
class Ball:
    position: Array  # [3] of the centre [m]
    velocity: Array  # [3] [m/s]
    spin: Array  # [3] [rad/s]


@struct.dataclass
class Air:
    """What may be randomised about the air; the defaults are the published models."""

    drag: Array | float = 1.0  # [] factor on C_D
    lift: Array | float = 1.0  # [] factor on C_M
    spin_decay: Array | float = 0.0  # [] share of the spin lost per metre [1/m]; unknown, so none


AIR = Air()


def _ramps(x: Array, knots: tuple[float, ...]) -> Array:
    """`[1, r_1 .. r_K-1]`: a table times these, after differences, interpolates linearly."""
    low, high = np.array(knots[:-1]), np.array(knots[1:])
    rises = jnp.clip((x - low) / (high - low), 0.0, 1.0)
    return jnp.concatenate([jnp.ones(1, rises.dtype), rises])


def _differences(table: np.ndarray, axis: int) -> np.ndarray:
    first = np.take(table, [0], axis=axis)
    return np.concatenate([first, np.diff(table, axis=axis)], axis=axis)


_DRAG_DIFFERENCES = _differences(_differences(np.array(_DRAG), 0), 1)


def coefficients(model: FlightModel, speed: Array, spin: Array) -> tuple[Array, Array]:
    """C_D and C_M, both [], at a speed [m/s] and a spin's magnitude [rad/s]."""
    ratio = RADIUS * spin / jnp.maximum(speed, 1e-6)
    if model == "vacuum":
        return jnp.zeros_like(speed), jnp.zeros_like(speed)
    if model == "nature":
        lift = jnp.minimum(0.1 / jnp.maximum(ratio, 1e-6) - 0.001, LARGEST_LIFT)
        return jnp.full_like(speed, 0.55), jnp.maximum(lift, 0.0)
    by_speed = _ramps(speed, _DRAG_SPEED)
    # A typed array: outside of `jit` JAX may mistake a NumPy operand's precision.
    differences = jnp.asarray(_DRAG_DIFFERENCES, by_speed.dtype)
    drag = by_speed @ differences @ _ramps(ratio, _DRAG_RATIO)
    rows, a1, c1, knee, a2, b2, c2 = _LIFT.T
    line = a1 * spin + c1
    parabola = (a2 * spin + b2) * spin + c2
    t = jnp.clip((spin / knee - (1.0 - _BLEND)) / (2.0 * _BLEND), 0.0, 1.0)
    by_row = line + t * t * (3.0 - 2.0 * t) * (parabola - line)
    first = by_row[:1]
    lift = _ramps(speed, tuple(rows)) @ jnp.concatenate([first, jnp.diff(by_row)])
    return drag, jnp.maximum(lift, 0.0)


def acceleration(model: FlightModel, air: Air, velocity: Array, spin: Array) -> Array:
    """[3] [m/s^2]."""
    speed = jnp.sqrt(jnp.sum(velocity**2))
    drag, lift = coefficients(model, speed, jnp.sqrt(jnp.sum(spin**2)))
    return (
        jnp.array([0.0, 0.0, -GRAVITY])
        - DRAG_FACTOR * air.drag * drag * speed * velocity
        + LIFT_FACTOR * air.lift * lift * jnp.cross(spin, velocity)
    )


def fly(model: FlightModel, air: Air, ball: Ball, time: Array | float) -> Ball:
    """The ball after one RK4 step of `time` [s], without contacts. Good to 1e-8 m for 4 ms and to
    1e-6 m for 20 ms; the spin keeps its axis."""

    def slope(velocity: Array, spin: Array) -> tuple[Array, Array]:
        speed = jnp.sqrt(jnp.sum(velocity**2))
        return acceleration(model, air, velocity, spin), -air.spin_decay * speed * spin

    v1, w1 = ball.velocity, ball.spin
    a1, d1 = slope(v1, w1)
    v2, w2 = v1 + 0.5 * time * a1, w1 + 0.5 * time * d1
    a2, d2 = slope(v2, w2)
    v3, w3 = v1 + 0.5 * time * a2, w1 + 0.5 * time * d2
    a3, d3 = slope(v3, w3)
    v4, w4 = v1 + time * a3, w1 + time * d3
    a4, d4 = slope(v4, w4)
    return Ball(
        position=ball.position + time / 6.0 * (v1 + 2.0 * v2 + 2.0 * v3 + v4),
        velocity=ball.velocity + time / 6.0 * (a1 + 2.0 * a2 + 2.0 * a3 + a4),
        spin=ball.spin + time / 6.0 * (d1 + 2.0 * d2 + 2.0 * d3 + d4),
    )


def between(start: Ball, end: Ball, time: Array | float, t: Array) -> Array:
    """Position [3] at the share `t` [] of a step of `time` [s]: the cubic Hermite polynomial."""
    a, b = start.position, end.position
    va, vb = start.velocity * time, end.velocity * time
    return (
        (2 * t**3 - 3 * t**2 + 1) * a
        + (t**3 - 2 * t**2 + t) * va
        + (3 * t**2 - 2 * t**3) * b
        + (t**3 - t**2) * vb
    )


def energy(ball: Ball) -> Array:
    """Kinetic energy of motion and spin, [] [J]."""
    return 0.5 * MASS * (jnp.sum(ball.velocity**2) + SHELL * RADIUS**2 * jnp.sum(ball.spin**2))
