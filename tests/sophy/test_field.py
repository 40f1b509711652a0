"""Batches that mix cars, compounds and circuits: what is drawn, that nothing leaks from one to
another, and the specifications."""

import dataclasses

import jax
import numpy as np
import pytest

from core_rl.env import example_obs, observation_sizes
from core_rl.errors import UserError
from projects.sophy import circuits
from projects.sophy import track as tracks
from projects.sophy.car_features import CAR_FEATURES
from projects.sophy.cars import CAR_NAMES, CATALOGUE, load_car
from projects.sophy.circuits import load_circuit
from projects.sophy.driving import CONTROL_STEP
from projects.sophy.field import field_membership, load_circuits, load_entrants
from projects.sophy.observation import ObservationConfig
from projects.sophy.reference import reference_lap
from projects.sophy.surfaces import SURFACES
from projects.sophy.time_trial import TimeTrial, TimeTrialConfig

NUM_CARS = 256
MIXED = TimeTrialConfig(
    circuit="larkspur,dirt,whitefell",
    car="kart,hatch_ff,gt3_fr:7",
    compound=",wet",
    describe=True,
    antilock=True,
)
CIRCUITS = ("larkspur", "redgully", "dustwillow", "whitefell")


@pytest.fixture(scope="module")
def mixed():
    return TimeTrial(MIXED)


@pytest.fixture(scope="module")
def drive():
    """`(state, actions [T, N, 2])` to the states after each step, leaves [T, N, ...]."""

    def make(env):
        def step(state, action):
            state = jax.vmap(env.step)(state, action)
            return state, state

        return jax.jit(lambda state, actions: jax.lax.scan(step, state, actions)[1])

    return make


@pytest.fixture(scope="module")
def mixed_drive(mixed, drive):
    return drive(mixed)


@pytest.fixture(scope="module")
def mixed_reset(mixed):
    return jax.jit(jax.vmap(mixed.reset))


@pytest.fixture(scope="module")
def driven(mixed_reset, mixed_drive):
    """A start of 256 cars and the twenty steps after it."""
    start = mixed_reset(jax.random.split(jax.random.key(0), NUM_CARS))
    actions = jax.random.uniform(jax.random.key(1), (20, NUM_CARS, 2), minval=-0.4, maxval=0.8)
    return start, actions, mixed_drive(start, actions)


def test_words_stand_for_many_names_and_each_name_counts_once():
    assert load_circuits("snow, larkspur,whitefell")[0] == (*circuits.GROUPS["snow"], "larkspur")
    assert load_circuits("built_in")[0] == circuits.BUILT_IN
    assert load_circuits("generated:3,larkspur")[0] == ("generated:3", "larkspur")
    named = lambda car, tyre="": [entrant.car for entrant in load_entrants(car, tyre)[0]]  # noqa: E731
    assert named("archetypes") == list(CAR_NAMES)
    assert named("catalogue") == list(CATALOGUE)
    assert named("kart:*,kart") == [*(f"kart:{k}" for k in range(1, 61)), "kart"]
    assert sorted(named("FF,FR,MR,RR,AWD")) == sorted(CATALOGUE)
    entrants, cars = load_entrants("kart,gt3_fr", "dry")
    assert len(entrants) == 18
    assert cars.mass.shape == (18,)
    # Each in its own place: the compound belongs to the car beside it.
    for k in (0, 7, 17):
        expected = load_car(*entrants[k])
        jax.tree.map(
            lambda one, other, k=k: np.testing.assert_array_equal(one[k], other), cars, expected
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"circuit": "larkspur,snowy"}, ("'snowy'", "whitefell", "built_in")),
        ({"circuit": "larkspur,/nowhere/a.csv"}, ("/nowhere/a.csv",)),
        ({"car": "gt3_fr,gt4"}, ("'gt4'", "gt3_fr", "catalogue", "AWD", "NAME:*")),
        ({"car": "kart:61"}, ("kart:60",)),
        ({"compound": "wet,soft"}, ("'soft'", "racing_soft", "dry")),
        ({"car": "archetypes", "fuel": 10.0}, ("formula_e", "electric")),
        ({"fuel": -1.0}, ("fuel",)),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(change, words):
    with pytest.raises(UserError) as error:
        TimeTrial(dataclasses.replace(TimeTrialConfig(), **change))
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_what_asks_for_one_car_or_circuit_is_told_that_there_are_several(mixed):
    for name in ("track", "car", "reference"):
        with pytest.raises(
            UserError, match=f"no single {name}: circuits 4, cars times compounds 6"
        ) as error:
            getattr(mixed, name)
        assert "\n" not in str(error.value)


def test_every_pair_of_car_and_circuit_is_drawn_alike(mixed, mixed_reset):
    assert mixed.circuits == CIRCUITS
    assert len(mixed.entrants) == 6
    drawn = [
        mixed_reset(jax.random.split(jax.random.key(seed), NUM_CARS)).pipeline_state
        for seed in range(2, 6)
    ]
    cell = np.concatenate([np.asarray(d.circuit * 6 + d.car_index) for d in drawn])
    counts = np.bincount(cell, minlength=24)
    # 1024 draws over 24 cells: 43 +- 6.4 each.
    assert counts.shape == (24,)
    assert counts.min() > 15
    assert counts.max() < 80


def test_a_car_keeps_its_parameters_and_its_circuit(mixed, driven):
    start, _, steps = driven
    before, after = start.pipeline_state, steps.pipeline_state
    for name in ("circuit", "car_index", "pace", "car"):
        jax.tree.map(
            lambda one, other: np.testing.assert_array_equal(
                np.broadcast_to(one, other.shape), other
            ),
            getattr(before, name),
            getattr(after, name),
        )
    jax.tree.map(
        lambda mine, all_cars: np.testing.assert_array_equal(mine, all_cars[before.car_index]),
        before.car,
        mixed.cars,
    )
    np.testing.assert_array_equal(steps.obs["car"][0], steps.obs["car"][-1])


def test_a_mix_is_one_compilation(driven, mixed_reset, mixed_drive):
    _, actions, _ = driven
    again = mixed_reset(jax.random.split(jax.random.key(9), NUM_CARS))
    mixed_drive(again, actions)
    assert mixed_reset._cache_size() == 1
    assert mixed_drive._cache_size() == 1


@pytest.mark.parametrize(("circuit", "car_index"), [(1, 0), (3, 5)])
def test_in_a_mix_each_drives_as_in_its_own_environment(mixed, driven, drive, circuit, car_index):
    start, actions, steps = driven
    car, compound = mixed.entrants[car_index]
    own = TimeTrial(
        dataclasses.replace(MIXED, circuit=CIRCUITS[circuit], car=car, compound=compound)
    )
    before = start.pipeline_state
    mine = np.flatnonzero((before.circuit == circuit) & (before.car_index == car_index))
    assert len(mine) > 2
    state = jax.tree.map(lambda leaf: leaf[mine], start)
    jax.tree.map(
        lambda one, other: np.testing.assert_array_equal(
            one, np.broadcast_to(other, one.shape), strict=False
        ),
        state.pipeline_state.car,
        own.car,
    )
    alone = drive(own)(state, actions[:, mine])
    together = jax.tree.map(lambda leaf: leaf[:, mine], steps)
    # Rounding may bring a wheel over the white line or a body to a wall a sub-step later.
    counts = [
        np.stack([drive.off_course, drive.wall_contact])
        for drive in (alone.pipeline_state, together.pipeline_state)
    ]
    np.testing.assert_allclose(*counts, atol=1.01 / own.config.substeps)
    alike = np.all(np.isclose(*counts), axis=(0, 1))
    assert np.sum(alike) >= 0.75 * len(mine)
    alone, together = jax.tree.map(lambda leaf: leaf[:, alike], (alone, together))
    for name, size in own.observation_size.items():
        assert alone.obs[name].shape[-1] == size
        np.testing.assert_allclose(alone.obs[name], together.obs[name], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(alone.reward, together.reward, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        alone.pipeline_state.s, together.pipeline_state.s, rtol=1e-5, atol=1e-2
    )


def test_starts_and_pace_are_measured_by_the_archetype_on_the_circuit(mixed, driven):
    before = driven[0].pipeline_state
    # Both compounds of gt3_fr:7 on the first circuit.
    for car_index in (2, 5):
        k = np.flatnonzero((before.circuit == 0) & (before.car_index == car_index))[0]
        track = load_circuit("larkspur")
        lap = jax.jit(reference_lap)(load_car("gt3_fr"), track)
        assert float(before.pace[k]) == pytest.approx(float(track.length / lap.lap_time), rel=1e-4)
        speed = float(before.motion.velocity[k, 0])
        reference = float(np.interp(before.s[k], lap.s, lap.speed))
        low, high = MIXED.start_speed
        assert 0.97 * low < speed / reference < 1.03 * high


def test_reference_speeds_are_those_of_the_laps_on_every_circuit(mixed):
    s = np.array([0.0, 3.0, 500.0, 1234.5, -3.0, 10_000.0], np.float32)
    for car_index, circuit in ((0, 0), (1, 1)):
        lap = mixed.reference_of(car_index, circuit)
        length = mixed.track_of(circuit).length
        told = mixed.reference_speed(car_index, circuit, s)
        expected = np.interp(s, lap.s, lap.speed, period=float(length))
        np.testing.assert_allclose(told, expected, rtol=1e-4)
        assert len(lap.s) < tracks.NUM_NODES  # a mix keeps fewer stations than one circuit


def test_the_road_and_the_car_are_described(mixed, driven):
    start, _, _ = driven
    sizes = {name: values.shape[-1] for name, values in start.obs.items()}
    assert sizes == mixed.observation_size == mixed.config.observation.sizes
    assert sizes == {**ObservationConfig().sizes, "car": len(CAR_FEATURES), "surface": 5}
    for circuit, name in ((0, "asphalt"), (1, "dirt"), (3, "snow")):
        road = SURFACES[name]
        rows = start.obs["surface"][start.pipeline_state.circuit == circuit]
        expected = [road.grip, road.peak_slip - 1, road.shape - 1, road.rolling * 10, road.water]
        np.testing.assert_allclose(rows, np.tile(expected, (len(rows), 1)), atol=1e-6)
    assert np.abs(start.obs["car"]).max() < 10.0
    # Replays keep what is offered, so it is offered only where it is asked for.
    without = TimeTrial(TimeTrialConfig())
    assert set(example_obs(without)) == {"state", "privileged_state"}
    assert without.observation_size == observation_sizes(without)


def test_relative_progress_pays_by_pace(mixed, driven, drive):
    start, actions, steps = driven
    relative = TimeTrial(dataclasses.replace(MIXED, relative_progress=True))
    drive_state = jax.jit(jax.vmap(relative.reset))(jax.random.split(jax.random.key(0), NUM_CARS))
    worth = drive_state.pipeline_state.progress_worth
    pace = start.pipeline_state.pace
    np.testing.assert_allclose(worth, 40.0 / pace, rtol=1e-6)
    np.testing.assert_array_equal(start.pipeline_state.progress_worth, np.ones(NUM_CARS))
    other = drive(relative)(drive_state, actions)
    # Progress goes with the pace, penalties on the squared speed with its square.
    for name, factor in (
        ("reward/progress", worth),
        ("reward/wall", worth**2),
        ("reward/off_course_squared", worth**2),
        ("distance", 1.0),  # what is measured stays what it was
        ("pace_share", 1.0),
    ):
        np.testing.assert_allclose(
            other.metrics[name], steps.metrics[name] * factor, rtol=1e-4, atol=1e-4
        )
    assert np.abs(steps.metrics["reward/off_course_squared"]).max() > 1.0
    expected = steps.metrics["distance"] / (pace * CONTROL_STEP)
    np.testing.assert_allclose(steps.metrics["pace_share"], expected, rtol=1e-5, atol=1e-6)


def test_replay_tables_sort_by_road_and_by_layout(mixed, driven):
    start, _, _ = driven
    belongs = field_membership(mixed)(start)
    assert list(belongs) == ["asphalt", "dirt", "snow", "FF", "FR", "MR", "RR", "AWD"]
    circuit = np.asarray(start.pipeline_state.circuit)
    np.testing.assert_array_equal(belongs["asphalt"], circuit == 0)
    np.testing.assert_array_equal(belongs["dirt"], (circuit == 1) | (circuit == 2))
    np.testing.assert_array_equal(belongs["snow"], circuit == 3)
    car = np.asarray(start.pipeline_state.car_index) % 3
    np.testing.assert_array_equal(belongs["MR"], car == 0)
    np.testing.assert_array_equal(belongs["FF"], car == 1)
    np.testing.assert_array_equal(belongs["FR"], car == 2)
    assert not np.any(belongs["RR"] | belongs["AWD"])
    wet = TimeTrial(TimeTrialConfig(circuit="redgully", surface="wet"))
    assert bool(field_membership(wet)(jax.jit(wet.reset)(jax.random.key(0)))["asphalt"])
