"""The field of cars: nine archetypes, their variations, groups and features."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy import cars as catalogue
from projects.sophy.car import NO_AID, Car, CarState, Command, rolling_start, step
from projects.sophy.car_features import CAR_FEATURES, car_features
from projects.sophy.cars import (
    CAR_NAMES,
    CATALOGUE,
    GROUPS,
    SOURCES,
    CarError,
    describe,
    layout_of,
    load_car,
    load_cars,
)
from projects.sophy.circuits import load_circuit
from projects.sophy.reference import reference_lap
from projects.sophy.tyre import dry_asphalt

STEP = 0.005
FIELD = load_cars(CATALOGUE)
VARIATIONS = [name for name in CATALOGUE if ":" in name]


def _values(name: str) -> dict[str, float]:
    return {entry.parameter: entry.value for entry in describe(name)}


def test_there_are_nine_archetypes_with_sixty_variations() -> None:
    assert len(CATALOGUE) == len(set(CATALOGUE)) == 549
    assert len(CAR_NAMES) == 9
    assert set(CAR_NAMES) < set(CATALOGUE)
    assert {"gt3_fr:1", "gt3_fr:60", "f1_tum:60"} < set(CATALOGUE)


def test_a_variation_is_its_name_alone() -> None:
    # Pinned: these cars are the same on every machine and in every later version.
    assert _values("gt3_fr:7")["mass"] == pytest.approx(1164.621009988866, rel=1e-12)
    assert _values("f1_tum:60")["height"] == pytest.approx(0.310290446072293, rel=1e-12)
    before = describe("rally_awd:12")
    describe.cache_clear()
    assert describe("rally_awd:12") == before


def test_no_two_cars_are_alike() -> None:
    rows = np.stack([np.asarray(leaf).reshape(549, -1)[:, 0] for leaf in jax.tree.leaves(FIELD)])
    assert len(np.unique(rows, axis=1).T) == 549
    # Nor do two archetypes draw the same factors.
    factors = {_values(f"{n}:1")["mass"] / _values(n)["mass"] for n in CAR_NAMES}
    assert len({round(factor, 6) for factor in factors}) == 9


@pytest.mark.parametrize("archetype", CAR_NAMES)
def test_variations_stay_in_their_ranges_and_hang_together(archetype: str) -> None:
    base = _values(archetype)
    seen = []
    for number in range(1, 61):
        name = f"{archetype}:{number}"
        value = _values(name)

        def times(key: str, value: dict[str, float] = value) -> float:
            return value[key] / base[key]

        torque = next(key for key in base if key.startswith("torque"))
        mass, power, drag, grip = map(times, ("mass", torque, "drag_area", "mu_y_rear"))
        seen.append((mass, power, drag, grip))
        assert 0.85 <= mass <= 1.2
        assert 0.7 <= power <= 1.4
        assert 0.9 <= drag <= 1.15
        assert 0.9 <= grip <= 1.1
        assert 0.92 <= times("height") <= 1.08
        if base["down_rear"]:
            assert 0.5 <= times("down_rear") <= 1.5
            assert times("down_rear") == pytest.approx(times("down_front"))
        assert abs(value["front_arm"] - base["front_arm"]) <= 0.03 * base["wheelbase"]
        assert abs(value["roll_share"] - base["roll_share"]) <= 0.05
        assert abs(value["brake_bias"] - base["brake_bias"]) <= 0.03
        assert value["brake_bias"] > 0.0 or archetype == "kart"
        assert times("yaw_inertia") == pytest.approx(mass)
        assert times("tyre_load") == pytest.approx(mass)
        assert times("mu_slope") == pytest.approx(1.0 / mass)
        assert times("brake_torque") == pytest.approx(mass * grip)
        assert times("ratio 1") ** -3 == pytest.approx(power / drag)
        assert list(value) == list(base)
        changed = {entry.parameter for entry in describe(name) if "variation" in entry.source}
        assert all(value[key] == base[key] for key in set(base) - changed)
        assert {entry.source for entry in describe(name)} <= {
            *SOURCES.values(),
            f"variation {number} of {archetype}",
        }
    low, high = np.min(seen, axis=0), np.max(seen, axis=0)
    np.testing.assert_array_less(low, [0.9, 0.8, 0.93, 0.92])
    np.testing.assert_array_less([1.15, 1.3, 1.1, 1.08], high)


def test_one_in_four_that_can_has_other_driven_wheels() -> None:
    rear_only = ("kart", "formula_e", "f1_2014", "f1_tum")
    changed = 0
    for name in VARIATIONS:
        archetype = name.split(":")[0]
        if layout_of(name) == layout_of(archetype):
            continue
        assert archetype not in rear_only
        changed += 1
        value = _values(name)
        assert value["front_share"] in (0.0, 0.4, 1.0)
        # Couplings stand where there is torque, the centre one only between two driven axles.
        assert (value["lock_front"] > 0.0) == (value["front_share"] > 0.0)
        assert (value["lock_rear"] > 0.0) == (value["front_share"] < 1.0)
        assert (value["lock_centre"] > 0.0) == (value["front_share"] == 0.4)
    assert 0.18 < changed / 300 < 0.32


def test_groups_are_the_layouts() -> None:
    named = {key: [name for name in names if ":" not in name] for key, names in GROUPS.items()}
    assert named == {
        "FF": ["hatch_ff"],
        "FR": ["roadster_fr", "gt3_fr"],
        "MR": ["kart", "formula_e", "f1_2014", "f1_tum"],
        "RR": ["sports_rr"],
        "AWD": ["rally_awd"],
    }
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(CATALOGUE)
    assert all(layout_of(name) == key for key, names in GROUPS.items() for name in names)


def test_many_cars_load_as_one_each_as_it_is_alone_and_fast() -> None:
    names = ("gt3_fr", "kart:3", "f1_tum:60")
    options = {"wear": True, "fuel": 12.0, "antilock": True}
    stacked = load_cars(names, "wet", **options)
    for index, name in enumerate(names):
        alone = load_car(name, "wet", **options)
        jax.tree.map(
            lambda many, one, i=index: np.testing.assert_array_equal(many[i], one), stacked, alone
        )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(FIELD))
    began = time.monotonic()
    jax.block_until_ready(load_cars(CATALOGUE))
    assert time.monotonic() - began < 2.0


def test_archetypes_in_the_field_are_the_named_cars() -> None:
    index = [CATALOGUE.index(name) for name in CAR_NAMES]
    part = jax.tree.map(lambda leaf: leaf[np.array(index)], FIELD)
    jax.tree.map(np.testing.assert_array_equal, part, load_cars(CAR_NAMES))


def test_every_car_reaches_100_km_per_h_and_its_gears_fit() -> None:
    def pull(car: Car) -> tuple[jax.Array, jax.Array]:
        def advance(state: CarState, _: None) -> tuple[CarState, jax.Array]:
            command = Command(jnp.float32(0.0), throttle=jnp.float32(1.0), brake=jnp.float32(0.0))
            state = step(car, state, command, dry_asphalt(), STEP)
            return state, state.velocity[0]

        first = rolling_start(car, jnp.zeros(2), 0.0, 0.0)
        final, speed = jax.lax.scan(advance, first, None, length=9000)
        return speed[::10], final.gear / car.drivetrain.num_gears

    speed, gear = jax.jit(jax.vmap(pull))(load_cars(CATALOGUE, traction_control=True))
    speed = 3.6 * np.asarray(speed)
    assert bool((speed.max(axis=1) > 100.0).all())
    seconds = 10 * STEP * np.argmax(speed > 100.0, axis=1)
    assert 1.5 < seconds.min()
    assert seconds.max() < 13.0
    # 45 s are enough for the last gear but one, and for nearly all for the last.
    assert float(gear.min()) > 0.8
    assert float(jnp.mean(gear == 1.0)) > 0.98


def test_laps_of_the_field_are_sane() -> None:
    # Every tenth; of all 549 the laps lie between 0.867 and 1.160 of their archetype's.
    names = [name for name in CATALOGUE if ":" not in name or name.endswith("0")]
    track = load_circuit("larkspur")

    @jax.jit
    def laps(cars: Car) -> jax.Array:
        return jax.lax.map(lambda car: reference_lap(car, track).lap_time, cars)

    seconds = dict(zip(names, np.asarray(laps(load_cars(names))), strict=True))
    assert len(seconds) == 63
    for name, lap_time in seconds.items():
        assert 0.8 < lap_time / seconds[name.split(":")[0]] < 1.25, name
        assert 45.0 < lap_time < 125.0, name


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("gt3_fr:0", ("'gt3_fr:0'", "gt3_fr:1 to gt3_fr:60")),
        ("gt3_fr:61", ("'gt3_fr:61'", "gt3_fr:1 to gt3_fr:60")),
        ("gt3_fr:x", ("'gt3_fr:x'", "gt3_fr:1 to gt3_fr:60")),
        ("gt3_fr:07", ("'gt3_fr:07'", "gt3_fr:1 to gt3_fr:60")),
        ("gt3_fr:", ("'gt3_fr:'", "gt3_fr:1 to gt3_fr:60")),
        ("gt3_rf:3", ("'gt3_rf:3'", "did you mean 'gt3_fr'?", *CAR_NAMES)),
    ],
)
def test_an_unknown_name_is_one_clear_line(name: str, parts: tuple[str, ...]) -> None:
    for function in (describe, load_car, layout_of, lambda name: load_cars(["kart", name])):
        with pytest.raises(CarError) as failure:
            function(name)
        assert all(part in str(failure.value) for part in parts)
        assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("name", "fuel", "part"),
    [
        ("formula_e", 1.0, "formula_e is electric"),
        ("formula_e:4", 1.0, "formula_e:4 is electric"),
        ("gt3_fr", -1.0, "at least 0 kg"),
        ("gt3_fr", float("nan"), "at least 0 kg"),
        ("gt3_fr", float("inf"), "at least 0 kg"),
    ],
)
def test_impossible_fuel_is_one_clear_line(name: str, fuel: float, part: str) -> None:
    with pytest.raises(CarError, match=part):
        load_car(name, fuel=fuel)


def test_a_field_needs_a_car() -> None:
    with pytest.raises(CarError, match="no car"):
        load_cars(())


def test_switches_are_off_unless_asked_for() -> None:
    car = load_car("gt3_fr")
    assert (float(car.fuel_load), float(car.fuel_flow)) == (0.0, 0.0)
    assert float(car.traction_control) == float(car.antilock) == NO_AID
    # 1 / (0.33 43 MJ/kg) at the engine, of which 93 % arrive at the wheels.
    fuelled = load_car("gt3_fr", fuel=60.0, traction_control=True)
    assert float(fuelled.fuel_load) == 60.0
    assert float(fuelled.fuel_flow) == pytest.approx(1.0 / (0.33 * 43e6 * 0.93), rel=1e-6)
    assert float(fuelled.traction_control) == catalogue.AID_SLIP
    assert float(fuelled.antilock) == NO_AID


features_of = jax.jit(jax.vmap(car_features))


def test_features_are_finite_scaled_and_tell_every_car_apart() -> None:
    features = np.asarray(features_of(FIELD))
    assert features.shape == (549, len(CAR_FEATURES))
    assert np.isfinite(features).all()
    assert np.abs(features).max() < 5.0
    spread = features.std(axis=0)
    varied = spread > 1e-3
    switches = {"wet_gain", "wear_rate", "traction_control", "antilock"}
    assert {name for name, on in zip(CAR_FEATURES, varied, strict=True) if not on} == switches
    assert np.abs(features[:, varied]).max(axis=0).min() > 0.3
    scaled = features[:, varied] / spread[varied]
    apart = np.abs(scaled[:, None] - scaled).max(axis=-1) + 9.0 * np.eye(549)
    assert apart.min() > 0.05


def test_switches_are_features() -> None:
    plain = dict(zip(CAR_FEATURES, car_features(load_car("gt3_fr")), strict=True))
    car = load_car("gt3_fr", "wet", wear=True, traction_control=True, antilock=True)
    fitted = dict(zip(CAR_FEATURES, car_features(car), strict=True))
    for name in ("traction_control", "antilock", "wet_gain", "wear_rate"):
        assert float(plain[name]) == 0.0
        assert 0.8 < float(fitted[name]) < 1.5
    assert float(fitted["friction_x_rear"]) < float(plain["friction_x_rear"])
    assert float(fitted["power"]) == float(plain["power"])


def test_features_say_what_they_name() -> None:
    # 379 kW, 1285 kg, 50 % of the weight in front, 6 of 8 gears, 2.497 m.
    features = dict(zip(CAR_FEATURES, car_features(load_car("gt3_fr")).tolist(), strict=True))
    assert features["power"] * 400.0 == pytest.approx(379.0, rel=0.02)
    assert features["power_per_mass"] * 500.0 == pytest.approx(379e3 / 1285.0, rel=0.02)
    assert features["mass"] == pytest.approx(1.285)
    assert features["weight_front"] == pytest.approx(0.9988, abs=1e-3)
    assert features["gears"] == 0.75
    assert features["wheelbase"] * 3.0 == pytest.approx(2.497, rel=1e-5)
    assert features["brake_bias"] * 0.5 == pytest.approx(0.58)


def test_every_feature_has_one_group() -> None:
    groups = list(CAR_FEATURES.values())
    assert set(groups) == {"drivetrain", "mass", "power", "aero", "tyres", "balance"}
    # Each group is one run of the vector.
    starts = [a for a, b in zip(groups, ["", *groups], strict=False) if a != b]
    assert len(starts) == 6
