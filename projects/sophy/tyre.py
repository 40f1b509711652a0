"""The tyre: combined slip by one normalised slip, with load sensitivity.

Normalised-slip form of Kelly (2008, chapter 3) as used by Perantoni and Limebeer, "Optimal control
for a Formula One car with variable parameters", Vehicle System Dynamics 52 (2014), equations 20-29:

    rho = sqrt((kappa / kp)^2 + (tan alpha / ap)^2)
    Fx  = mu_x Fz sin(Q atan(S rho)) (kappa / kp) / rho
    Fy  = mu_y Fz sin(Q atan(S rho)) (tan alpha / ap) / rho

mu_x, mu_y, kp and ap are linear in the load Fz. Two deviations. S = tan(pi / (2 Q)), which puts the
peak at rho = 1 exactly; the paper's S = pi / (2 atan Q) puts it elsewhere (rho = 0.75 for Q = 1.9).
And tan alpha stands where the paper has alpha (0.6 % apart at 8 degrees), so that a tyre which
slides freely pushes against its sliding velocity and can never create energy.

Slips are divided by sqrt(u^2 + v0^2) instead of |u|: below v0 the tyre turns into a viscous damper,
so a car comes to rest, and stays, without a branch or a division by zero.

The sine is a short polynomial (error below 1e-7): the library's must accept any angle, and took a
third of the time of a whole step of the car.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

SLIP_SPEED = 3.0  # v0 of the regularised slip [m/s]
MINIMUM_FACTOR = 0.3  # the linear load laws are cut here, far outside the fitted loads [-]

# Minimax fit of sin(x) / x in powers of x^2 on [0, pi / 2], lowest power first.
SINE_FIT = (0.99999998, -0.16666648, 0.0083328998, -0.00019800898, 2.5904885e-6)


@struct.dataclass
class Tyre:
    """Four tyres, wheels in the order FL FR RL RR; every field [4]."""

    nominal_load: Array  # load at which the values below hold [N]
    friction_x: Array  # peak longitudinal friction at the nominal load [-]
    friction_y: Array  # peak lateral friction at the nominal load [-]
    friction_slope: Array  # relative change of both frictions with load [1/N]
    peak_ratio: Array  # slip ratio at the longitudinal peak [-]
    peak_angle: Array  # tangent of the slip angle at the lateral peak [-]
    peak_slope: Array  # relative change of both peak positions with load [1/N]
    shape: Array  # Q between 1.05 and 2, larger falls off faster behind the peak [-]


@struct.dataclass
class Ground:
    """What each wheel stands on; every field [4]."""

    grip: Array  # factor on the friction [-]
    peak_slip: Array  # factor on the slip at the peak [-]
    shape: Array  # factor on Q [-]
    rolling: Array  # rolling resistance coefficient [-]


@struct.dataclass
class Peak:
    """A tyre on its ground under its load; every field [4]."""

    force_x: Array  # largest longitudinal force [N]
    force_y: Array  # largest lateral force [N]
    ratio: Array  # slip ratio at the peak [-]
    angle: Array  # tangent of the slip angle at the peak [-]
    shape: Array  # Q [-]
    stretch: Array  # S = tan(pi / (2 Q)) [-]


class Contact(NamedTuple):
    """Tyre forces and what an implicit integrator needs; every field [4]."""

    force_x: Array  # [N]
    force_y: Array  # [N]
    slope_x: Array  # dFx / dkappa, negative behind the peak [N]
    secant_x: Array  # Fx / kappa, never negative [N]
    secant_y: Array  # Fy / tan alpha, never negative [N]


def dry_asphalt() -> Ground:
    """The reference ground: every factor one, rolling resistance of a car tyre on asphalt."""
    one = jnp.ones(4, jnp.float32)
    return Ground(grip=one, peak_slip=one, shape=one, rolling=0.013 * one)


def peak(tyre: Tyre, load: Array, ground: Ground) -> Peak:
    """Peak forces and where they lie, for loads [4] in N."""
    extra = load - tyre.nominal_load
    friction = jnp.maximum(1.0 + tyre.friction_slope * extra, MINIMUM_FACTOR) * ground.grip * load
    position = jnp.maximum(1.0 + tyre.peak_slope * extra, MINIMUM_FACTOR) * ground.peak_slip
    shape = jnp.clip(tyre.shape * ground.shape, 1.05, 2.0)
    return Peak(
        force_x=friction * tyre.friction_x,
        force_y=friction * tyre.friction_y,
        ratio=position * tyre.peak_ratio,
        angle=position * tyre.peak_angle,
        shape=shape,
        stretch=jnp.tan(0.5 * jnp.pi / shape),
    )


def slip_scale(forward: Array) -> Array:
    """Speed [m/s] by which sliding speeds are divided, for forward contact speeds [4] in m/s."""
    return jnp.sqrt(forward * forward + SLIP_SPEED * SLIP_SPEED)


def _sine(angle: Array) -> Array:
    """Sine of angles between 0 and pi."""
    folded = jnp.minimum(angle, np.pi - angle)
    square = folded * folded
    value = jnp.full_like(angle, SINE_FIT[-1])
    for coefficient in SINE_FIT[-2::-1]:
        value = value * square + coefficient
    return value * folded


def contact(peak: Peak, ratio: Array, tangent: Array) -> Contact:
    """Forces at the slip ratios kappa [4] and slip angles tan alpha [4], positive pushes left."""
    x = ratio / peak.ratio
    y = tangent / peak.angle
    x_squared = x * x
    rho_squared = x_squared + y * y + 1e-8
    rho_inverse = jax.lax.rsqrt(rho_squared)
    rho = rho_squared * rho_inverse
    stretched = peak.stretch * rho
    value = _sine(peak.shape * jnp.arctan(stretched))
    # The cosine's sign changes at the peak, rho = 1, and nowhere else.
    cosine = jnp.sqrt(jnp.maximum(1.0 - value * value, 0.0)) * jnp.sign(1.0 - rho)
    steepness = cosine * peak.shape * peak.stretch / (1.0 + stretched * stretched)
    gain = value * rho_inverse
    part = x_squared * rho_inverse * rho_inverse
    stiffness = peak.force_x / peak.ratio
    secant_x = stiffness * gain
    secant_y = peak.force_y / peak.angle * gain
    return Contact(
        force_x=secant_x * ratio,
        force_y=secant_y * tangent,
        slope_x=stiffness * (gain + (steepness - gain) * part),
        secant_x=secant_x,
        secant_y=secant_y,
    )
