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

Wear multiplies the friction, w as the share of the way to the cliff:

    g(w) = 1 - 0.035 w - 0.5 max(0, w - 1)^2,   w' = k (|Fx slide_x| + |Fy slide_y|) / Fz_nominal

driven by the sliding power as in Tremlett and Limebeer, "Optimal tyre usage for a Formula One car",
Vehicle System Dynamics 54 (2016). Its numbers are estimates, see `cars`.

Sine, tangent and arctangent are short polynomials (errors below 1e-7): the library's take any
angle, and took more than half of the time of a whole step of the car. A compiler may work out a
chain of cheap operations anew for each of its users; a division at its end keeps it from that.

`xp` is the array library: jax.numpy here, CasADi where `limit` computes the fastest lap.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

SLIP_SPEED = 3.0  # v0 of the regularised slip [m/s]
MINIMUM_FACTOR = 0.3  # the linear load laws are cut here, far outside the fitted loads [-]
WEAR_LOSS = 0.035  # of the friction on the way to the cliff [-]
CLIFF_LOSS = 0.5  # and behind it, per square of the wear beyond [-]
MINIMUM_WORN = 0.5  # of the friction is always left [-]

# Minimax fit of sin(x) / x in powers of x^2 on [0, pi / 2], lowest power first.
SINE_FIT = (0.99999998, -0.16666648, 0.0083328998, -0.00019800898, 2.5904885e-6)
# Chebyshev fit of x / tan(x) in powers of x^2 on [0, pi / 4], lowest power first.
COTANGENT_FIT = (0.999999996, -0.333332975, -0.0222268168, -0.00209590506, -0.000248322044)
# Chebyshev fit of arctan(x) / x in powers of x^2 on [0, 1], lowest power first.
ARCTAN_FIT = (
    0.999999984,
    -0.333330668,
    0.199924836,
    -0.142025705,
    0.106367541,
    -0.0749544544,
    0.0425876075,
    -0.0160050305,
    0.0028340643,
)


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
    wet_gain: Array  # relative gain of grip in full water: what a profile is for [-]
    wear_rate: Array  # wear per metre slid under the nominal load; 0 never wears [1/m]


@struct.dataclass
class Ground:
    """What lies under wheels, factors on the tyres' own numbers; fields [4], or [] of a place."""

    grip: Array  # factor on the friction [-]
    peak_slip: Array  # factor on the slip at the peak [-]
    shape: Array  # factor on Q [-]
    rolling: Array  # rolling resistance coefficient [-]
    water: Array  # 0 dry to 1 wet [-]


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
    return Ground(grip=one, peak_slip=one, shape=one, rolling=0.013 * one, water=0.0 * one)


def worn(wear: Array) -> Array:
    """Part of the friction that is left at a wear, 1 at the cliff."""
    beyond = jnp.maximum(wear - 1.0, 0.0)
    return jnp.maximum(1.0 - WEAR_LOSS * wear - CLIFF_LOSS * beyond * beyond, MINIMUM_WORN)


def peak(tyre: Tyre, load: Array, ground: Ground, xp: Any = jnp) -> Peak:
    """Peak forces and where they lie, for loads [4] in N."""
    extra = load - tyre.nominal_load
    grip = ground.grip * (1.0 + tyre.wet_gain * ground.water)
    friction = xp.maximum(1.0 + tyre.friction_slope * extra, MINIMUM_FACTOR) * grip * load
    position = xp.maximum(1.0 + tyre.peak_slope * extra, MINIMUM_FACTOR) * ground.peak_slip
    shape = xp.clip(tyre.shape * ground.shape, 1.05, 2.0)
    return Peak(
        force_x=friction * tyre.friction_x,
        force_y=friction * tyre.friction_y,
        ratio=position * tyre.peak_ratio,
        angle=position * tyre.peak_angle,
        shape=shape,
        stretch=_stretch(shape) if xp is jnp else xp.tan(0.5 * np.pi / shape),
    )


def slip_scale(forward: Array, xp: Any = jnp) -> Array:
    """Speed [m/s] by which sliding speeds are divided, for forward contact speeds [4] in m/s."""
    return xp.sqrt(forward * forward + SLIP_SPEED * SLIP_SPEED)


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    value = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value  # pyright: ignore[reportReturnType]


def _sine(angle: Array, xp: Any) -> Array:
    """Sine of angles between 0 and pi."""
    folded = xp.minimum(angle, np.pi - angle)
    return folded * _polynomial(SINE_FIT, folded * folded)


def _stretch(shape: Array) -> Array:
    """tan(pi / (2 Q)) for Q between 1 and 2, as the cotangent of what is left to a right angle."""
    rest = 0.5 * np.pi * (shape - 1.0) / shape
    return _polynomial(COTANGENT_FIT, rest * rest) / rest


def arctan(tangent: Array) -> Array:
    """The angles of tangents of any size [rad]."""
    size = jnp.abs(tangent)
    steep = size > 1.0
    folded = jnp.where(steep, 1.0 / jnp.maximum(size, 1.0), size)
    angle = folded * _polynomial(ARCTAN_FIT, folded * folded)
    return jnp.sign(tangent) * jnp.where(steep, 0.5 * np.pi - angle, angle)


def contact(peak: Peak, ratio: Array, tangent: Array, xp: Any = jnp) -> Contact:
    """Forces at the slip ratios kappa [4] and slip angles tan alpha [4], positive pushes left."""
    x = ratio / peak.ratio
    y = tangent / peak.angle
    x_squared = x * x
    rho_squared = x_squared + y * y + 1e-8
    rho = xp.sqrt(rho_squared)
    stretched = peak.stretch * rho
    angle = arctan(stretched) if xp is jnp else xp.arctan(stretched)
    value = _sine(peak.shape * angle, xp)
    # The cosine's sign changes at the peak, rho = 1, and nowhere else.
    cosine = xp.sqrt(xp.maximum(1.0 - value * value, 0.0)) * xp.sign(1.0 - rho)
    steepness = cosine * peak.shape * peak.stretch / (1.0 + stretched * stretched)
    gain = value / rho
    part = x_squared / rho_squared
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
