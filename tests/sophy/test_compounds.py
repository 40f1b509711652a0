import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy import tyre as tyres
from projects.sophy.cars import CAR_NAMES, STANDARD_COMPOUND, CarError, load_car
from projects.sophy.compounds import COMPOUNDS, WEAR_RATE
from projects.sophy.surfaces import SURFACES

LOAD = jnp.full(4, 3000.0)


def _side(compound: str, surface: str) -> float:
    """Lateral grip of the GT3's left front tyre [N]."""
    tyre = load_car("gt3_fr", compound).tyre
    return float(tyres.peak(tyre, LOAD, SURFACES[surface]).force_y[0])


@pytest.mark.parametrize("name", CAR_NAMES)
def test_the_standard_compound_changes_nothing(name: str) -> None:
    plain, named = load_car(name), load_car(name, STANDARD_COMPOUND[name])
    jax.tree.map(np.testing.assert_array_equal, plain, named)
    np.testing.assert_array_equal(plain.tyre.wear_rate, 0.0)
    np.testing.assert_array_equal(plain.tyre.wet_gain, 0.0)


@pytest.mark.parametrize("compound", COMPOUNDS)
def test_a_compound_changes_the_tyres_and_nothing_else(compound: str) -> None:
    # The GT3 stands on racing_medium: grip 1.26, peak at 6 degrees.
    plain, fitted = load_car("gt3_fr"), load_car("gt3_fr", compound)
    grip, slip = COMPOUNDS[compound].grip / 1.26, COMPOUNDS[compound].peak_slip / 6.0
    for name, factor in {
        "friction_x": grip,
        "friction_y": grip,
        "peak_ratio": slip,
        "peak_angle": slip,
        "friction_slope": 1.0,
        "nominal_load": 1.0,
        "shape": 1.0,
    }.items():
        expected = np.float32(factor) * np.asarray(getattr(plain.tyre, name))
        np.testing.assert_allclose(getattr(fitted.tyre, name), expected, rtol=1e-6)
    rest = dataclasses.replace(fitted, tyre=plain.tyre)
    jax.tree.map(np.testing.assert_array_equal, rest, plain)


def test_softer_grips_more_and_wears_faster() -> None:
    classes = [
        [f"{name}_{step}" for step in ("hard", "medium", "soft")]
        for name in ("comfort", "sports", "racing")
    ]
    grip = [COMPOUNDS[name].grip for names in classes for name in names]
    assert grip == sorted(grip)
    for names in classes:
        wear = [COMPOUNDS[name].wear for name in names]
        assert wear == sorted(wear)
        assert len({COMPOUNDS[name].peak_slip for name in names}) == 1


def test_rain_tyres_reach_their_share_of_the_dry_slick() -> None:
    dry = _side("racing_medium", "asphalt")
    assert _side("wet", "wet") == pytest.approx(0.90 * dry, rel=1e-5)
    assert _side("intermediate", "wet") == pytest.approx(0.85 * dry, rel=1e-5)


@pytest.mark.parametrize(
    ("surface", "best"), [("asphalt", "racing_soft"), ("damp", "intermediate"), ("wet", "wet")]
)
def test_every_weather_has_its_tyre(surface: str, best: str) -> None:
    assert max(COMPOUNDS, key=lambda compound: _side(compound, surface)) == best
    assert _side("wet", "wet") > 1.3 * _side("racing_soft", "wet")
    assert _side("wet", "asphalt") < 0.8 * _side("racing_soft", "asphalt")


def test_tyres_wear_only_when_asked_to() -> None:
    np.testing.assert_array_equal(load_car("gt3_fr", "racing_soft").tyre.wear_rate, 0.0)
    for compound, relative in (("racing_soft", 1.0), ("racing_hard", 0.45), ("", 0.65)):
        rate = load_car("gt3_fr", compound, wear=True).tyre.wear_rate
        np.testing.assert_allclose(rate, relative * WEAR_RATE, rtol=1e-6)


def test_unknown_compound_is_one_line_with_a_suggestion_and_the_list() -> None:
    with pytest.raises(CarError) as failure:
        load_car("gt3_fr", "racing_sof")
    message = str(failure.value)
    assert "'racing_sof'" in message
    assert "did you mean 'racing_soft'?" in message
    assert all(name in message for name in COMPOUNDS)
    assert "\n" not in message
