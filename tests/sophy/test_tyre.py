import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy import tyre as tyres
from projects.sophy.cars import CAR_NAMES, load_car

ASPHALT = tyres.dry_asphalt()
contact_of = jax.jit(tyres.contact)


def _peak(name: str, load: float = 3000.0) -> tyres.Peak:
    return tyres.peak(load_car(name).tyre, jnp.full(4, load), ASPHALT)


def _expand(peak: tyres.Peak) -> tyres.Peak:
    """The same four tyres for a whole list of slips: contact is elementwise."""
    return jax.tree.map(lambda leaf: leaf[None], peak)


def _random_slips(num: int) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 2)
    size = 10 ** jnp.linspace(-5, 0.5, num)[:, None]
    return size * jax.random.normal(keys[0], (num, 4)), size * jax.random.normal(keys[1], (num, 4))


@pytest.mark.parametrize("name", CAR_NAMES)
def test_pure_slip_peaks_at_the_given_slip(name: str) -> None:
    peak = _peak(name)
    factor = jnp.linspace(0.5, 2.0, 1501)[:, None]  # rho, 1 is entry 500
    zero = jnp.zeros_like(factor)
    along = contact_of(_expand(peak), factor * peak.ratio, zero)
    aside = contact_of(_expand(peak), zero, factor * peak.angle)
    for force, best in ((along.force_x, peak.force_x), (aside.force_y, peak.force_y)):
        np.testing.assert_allclose(force.max(axis=0), best, rtol=1e-5)
        # Around the maximum the curve is flat to the last digit of a float, hence 3 %.
        np.testing.assert_allclose(factor[jnp.argmax(force, axis=0), 0], 1.0, atol=0.03)


def test_contact_is_the_published_formula() -> None:
    # Perantoni and Limebeer 2014, equations 20-29, in float64, with S and tan alpha as documented.
    peak = _peak("gt3_fr")
    ratio, tangent = _random_slips(200)
    kappa, alpha = np.asarray(ratio, float), np.asarray(tangent, float)
    rho = np.hypot(kappa / np.asarray(peak.ratio), alpha / np.asarray(peak.angle))
    q = np.asarray(peak.shape, float)
    curve = np.sin(q * np.arctan(np.tan(np.pi / (2 * q)) * rho)) / rho
    contact = contact_of(_expand(peak), ratio, tangent)
    expected_x = np.asarray(peak.force_x) * curve * kappa / np.asarray(peak.ratio)
    expected_y = np.asarray(peak.force_y) * curve * alpha / np.asarray(peak.angle)
    scale = float(peak.force_x.max())
    np.testing.assert_allclose(contact.force_x, expected_x, rtol=2e-3, atol=2e-6 * scale)
    np.testing.assert_allclose(contact.force_y, expected_y, rtol=2e-3, atol=2e-6 * scale)


def test_polynomials_are_the_functions_they_stand_for() -> None:
    tangent = np.concatenate([np.geomspace(1e-6, 1e4, 2001), [0.0]])
    tangent = np.float32(np.concatenate([tangent, -tangent]))
    np.testing.assert_allclose(
        tyres.arctan(jnp.asarray(tangent)), np.arctan(np.float64(tangent)), atol=2e-7
    )
    angle = np.float32(np.linspace(0.0, np.pi, 2001))
    np.testing.assert_allclose(
        tyres._sine(jnp.asarray(angle), jnp), np.sin(np.float64(angle)), atol=2e-7
    )
    shape = np.float32(np.linspace(1.05, 2.0, 2001))
    np.testing.assert_allclose(
        tyres._stretch(jnp.asarray(shape)), np.tan(0.5 * np.pi / np.float64(shape)), rtol=2e-6
    )


def test_slope_is_the_derivative() -> None:
    peak = _peak("hatch_ff")
    ratio, tangent = _random_slips(200)

    def total(ratio: jax.Array) -> jax.Array:
        return tyres.contact(_expand(peak), ratio, tangent).force_x.sum()

    slope = contact_of(_expand(peak), ratio, tangent).slope_x
    stiffness = float((peak.force_x / peak.ratio)[0])
    derivative = jax.jit(jax.grad(total))(ratio)
    np.testing.assert_allclose(slope, derivative, rtol=0, atol=1e-4 * stiffness)


@pytest.mark.parametrize("name", CAR_NAMES)
def test_combined_force_stays_inside_the_friction_ellipse(name: str) -> None:
    peak = _peak(name)
    contact = contact_of(_expand(peak), *_random_slips(2000))
    used = (contact.force_x / peak.force_x) ** 2 + (contact.force_y / peak.force_y) ** 2
    assert float(used.max()) <= 1.0 + 1e-5
    assert float(used.max()) > 0.99


def test_force_always_opposes_sliding() -> None:
    # kappa Fx + tan(alpha) Fy is the power lost in the contact over the slip-scaled speed.
    ratio, tangent = _random_slips(2000)
    contact = contact_of(_expand(_peak("f1_2014")), ratio, tangent)
    assert float((ratio * contact.force_x + tangent * contact.force_y).min()) >= 0.0


def test_force_is_linear_through_zero_slip() -> None:
    # The slope at zero is F Q S / kp: sin(Q atan(S rho)) ~ Q S rho.
    peak = _peak("gt3_fr")
    expected = peak.force_x * peak.shape * peak.stretch / peak.ratio
    zero = jnp.zeros(4)
    for size in (-1e-4, -1e-7, 0.0, 1e-7, 1e-4):
        contact = contact_of(peak, jnp.full(4, size), zero)
        np.testing.assert_allclose(contact.force_x, expected * size, rtol=1e-3)
        np.testing.assert_allclose(contact.slope_x, expected, rtol=1e-3)


def test_unequal_loads_cost_lateral_force() -> None:
    # mu falls with load, so a pair of tyres that shares 6 kN unevenly pulls less: with slope k and
    # loads F +- d the pair loses exactly 2 mu k d^2 against 2 mu(F) F.
    tyre = load_car("gt3_fr").tyre
    even = tyres.peak(tyre, jnp.array([3000.0, 3000.0, 3000.0, 3000.0]), ASPHALT).force_y
    uneven = tyres.peak(tyre, jnp.array([4500.0, 1500.0, 4500.0, 1500.0]), ASPHALT).force_y
    lost = even[:2].sum() - uneven[:2].sum()
    expected = -2.0 * tyre.friction_y[0] * tyre.friction_slope[0] * 1500.0**2
    np.testing.assert_allclose(lost, expected, rtol=1e-3)
    assert float(lost) > 100.0


def test_ground_scales_grip_and_moves_the_peak() -> None:
    tyre, load = load_car("gt3_fr").tyre, jnp.full(4, 3000.0)
    dirt = ASPHALT.replace(grip=0.6 * jnp.ones(4), peak_slip=2.0 * jnp.ones(4))
    dry, loose = tyres.peak(tyre, load, ASPHALT), tyres.peak(tyre, load, dirt)
    np.testing.assert_allclose(loose.force_x, 0.6 * dry.force_x, rtol=1e-6)
    np.testing.assert_allclose(loose.angle, 2.0 * dry.angle, rtol=1e-6)


def test_wear_costs_grip_slowly_and_much_behind_the_cliff() -> None:
    # 0.035 on the way to 1, then another 0.5 times the square of the wear beyond; half stays.
    wear = jnp.array([0.0, 0.5, 1.0, 1.2, 1.5, 9.0])
    expected = [1.0, 0.9825, 0.965, 1.0 - 0.042 - 0.02, 1.0 - 0.0525 - 0.125, 0.5]
    np.testing.assert_allclose(tyres.worn(wear), expected, rtol=1e-6)
    along = tyres.worn(jnp.linspace(0.0, 3.0, 200))
    assert float(jnp.diff(along).max()) <= 0.0


def test_water_gives_grip_back_by_the_tread() -> None:
    tyre, load = load_car("gt3_fr").tyre, jnp.full(4, 3000.0)
    wet = ASPHALT.replace(grip=0.6 * jnp.ones(4), water=0.5 * jnp.ones(4))
    slick = tyres.peak(tyre, load, wet)
    treaded = tyres.peak(tyre.replace(wet_gain=0.8 * jnp.ones(4)), load, wet)
    np.testing.assert_allclose(treaded.force_y, 1.4 * slick.force_y, rtol=1e-6)
