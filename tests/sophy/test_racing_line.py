"""The racing line: within the road, each car's own speeds, and what a driver sees of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import resample

from projects.sophy import track as tracks
from projects.sophy.cars import load_car
from projects.sophy.field import load_entrants
from projects.sophy.first_guess import LINE_MARGIN, smooth_line
from projects.sophy.observation import GRAVITY, NEAR, ObservationConfig, observe_line
from projects.sophy.racing_line import HALF_TRACK, LINE_CAR, NUM_STATIONS, RacingLine, along
from projects.sophy.reference import line_at_nodes, reference_lap
from projects.sophy.time_trial import TimeTrial, TimeTrialConfig
from projects.sophy.track import NUM_NODES

CONFIG = TimeTrialConfig(
    circuit="larkspur,redgully",
    car="gt3_fr,kart",
    observation=ObservationConfig(racing_line=True),
)


@pytest.fixture(scope="module")
def env():
    return TimeTrial(CONFIG)


def of(stack, index):
    return jax.tree.map(lambda leaf: leaf[index], stack)


@pytest.mark.parametrize("circuit", [0, 1])
def test_the_line_keeps_every_wheel_inside_and_is_faster_than_the_gentlest(env, circuit):
    track, offset = of(env.tracks, circuit), np.asarray(env.lines.offset[circuit])
    stations = jnp.arange(NUM_STATIONS) * track.length / NUM_STATIONS
    point = jax.vmap(tracks.at, (None, 0))(track, stations)
    # Smoothing may take a part of the margin.
    assert np.all(offset < np.asarray(point.width_left) - HALF_TRACK - 0.3 * LINE_MARGIN)
    assert np.all(offset > HALF_TRACK + 0.3 * LINE_MARGIN - np.asarray(point.width_right))

    def lap_time(line):
        at_nodes = line_at_nodes(line, float(track.length)).astype(np.float32)
        return float(
            reference_lap(load_car(LINE_CAR), track, offset=jnp.asarray(at_nodes)).lap_time
        )

    gentlest, fastest = lap_time(smooth_line(track, HALF_TRACK)), lap_time(offset)
    assert fastest < 0.99 * gentlest < 0.95 * lap_time(np.zeros(4))


@pytest.mark.parametrize("car", [0, 1])
def test_its_speeds_are_the_cars_own_quasi_steady_lap(env, car):
    track = of(env.tracks, 1)
    line = resample(np.asarray(env.lines.offset[1], np.float64), NUM_NODES)  # as smooth as before
    lap = reference_lap(of(env.cars, car), track, offset=jnp.asarray(line, jnp.float32))
    speed = np.asarray(lap.speed)[:: NUM_NODES // NUM_STATIONS]
    np.testing.assert_allclose(env.lines.speed[car, 1], speed, rtol=0.03)
    assert np.max(np.abs(env.lines.speed[0, 1] / env.lines.speed[1, 1] - 1.0)) > 0.2


def test_values_along_a_lap_are_interpolated_and_go_round(env):
    track = of(env.tracks, 0)
    values = jnp.arange(8.0)
    s = jnp.array([0.0, 0.25, 7.5, 8.25, -0.75]) * track.length / 8
    np.testing.assert_allclose(along(values, track, s), [0.0, 0.25, 3.5, 0.25, 5.25], atol=1e-3)


def test_a_driver_sees_how_far_the_line_is_and_what_the_plan_asks_for(env):
    track, config = of(env.tracks, 0), CONFIG.observation
    zero = jnp.int32(0)
    state = env.start(zero, zero, jnp.float32(100.0), jnp.float32(0.0), jnp.float32(0.5))
    drive = state.pipeline_state
    speed = float(drive.motion.velocity[0])
    flat = jnp.full(NUM_STATIONS, 2.0)
    line = RacingLine(flat, jnp.full(NUM_STATIONS, 0.5 * speed))
    seen = np.asarray(observe_line(track, drive, line, config))
    assert seen.shape == (env.observation_size["racing_line"],)
    here, aside, needed = np.split(seen, [2, 2 + config.num_points])
    np.testing.assert_allclose(here, [2.0 / 5.0, 5.0 * (2.0 - 1.0)], atol=1e-3)
    distance = np.arange(1, config.num_points + 1) * 6.0 * speed / config.num_points
    asked = (0.25 - 1.0) * speed**2 / (2.0 * GRAVITY * (distance + NEAR))
    np.testing.assert_allclose(needed, np.maximum(asked, -3.0), rtol=1e-4)
    # Two metres to the left of the centre line, which the nearest point is not yet bent away from.
    np.testing.assert_allclose(aside[0], 5.0 * 2.0 / (distance[0] + NEAR), atol=0.1)
    # As the environment shows it, with the line and speeds of this car on this circuit.
    own = RacingLine(env.lines.offset[0], env.lines.speed[0, 0])
    np.testing.assert_allclose(
        state.obs["racing_line"], observe_line(track, drive, own, config), rtol=1e-5, atol=1e-5
    )


def test_the_entry_is_there_only_where_it_is_asked_for():
    plain = dataclasses.replace(CONFIG, circuit="larkspur", observation=ObservationConfig())
    assert "racing_line" not in TimeTrial(plain).observation_size


def test_no_car_of_the_catalogue_is_wider_than_the_line_is_made_for():
    _, cars = load_entrants("catalogue")
    assert float(jnp.max(jnp.abs(cars.wheel_y))) == pytest.approx(HALF_TRACK)
