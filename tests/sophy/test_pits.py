"""Stops for tyres and fuel: who is called in, what it costs, and where one comes back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.errors import UserError
from projects.sophy.drivers import level_of, scripted_actions
from projects.sophy.league import LeagueConfig, LeagueRace
from projects.sophy.pits import PitConfig, put_back
from projects.sophy.race_env import RaceConfig, RaceEnv, opponents, race_of
from projects.sophy.results import drive_races
from projects.sophy.time_trial import TimeTrialConfig

LAPS, TANK = 3, 30.0
AIDS = {"traction_control": True, "antilock": True}
PITS = PitConfig(stops=True, lane=20.0, tyres=12.0, fuel_rate=0.05)
SOLO = TimeTrialConfig(circuit="thimble", steering="line", wear=True, fuel=TANK, **AIDS)


@pytest.fixture(scope="module")
def env():
    return RaceEnv(RaceConfig(solo=SOLO, num_cars=2, laps=LAPS, contact=False, pits=PITS))


@pytest.fixture(scope="module")
def experts(env):
    level = level_of(jnp.ones(2))
    return lambda state: scripted_actions(env, race_of(state), level)


def loaded(env, fuel, wear, num_laps=LAPS):
    """Both on the grid, the first with so much fuel and so worn tyres."""
    state = env.line_up(jnp.int32(0), jnp.arange(2))
    race = race_of(state)
    motion = race.drives.motion
    motion = dataclasses.replace(
        motion, fuel=motion.fuel.at[0].set(fuel), wear=motion.wear.at[0].set(wear)
    )
    drives = dataclasses.replace(race.drives, motion=motion)
    pits = dataclasses.replace(
        race.pits, fuel=race.pits.fuel.at[0].set(fuel), wear=race.pits.wear.at[0].set(wear)
    )
    race = dataclasses.replace(race, drives=drives, pits=pits, laps=jnp.int32(num_laps))
    return state.replace(pipeline_state=race)


@pytest.fixture(scope="module")
def races(env, experts):
    """Three laps with all in order, hardly any fuel, bald tyres; one lap with those."""
    starts = [
        loaded(env, TANK, 0.0),
        loaded(env, 1.0, 0.0),
        loaded(env, TANK, 0.985),
        loaded(env, TANK, 0.985, 1),
    ]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    drive = jax.jit(lambda states: drive_races(env, jax.vmap(experts), states, 0.0))
    return jax.tree.map(np.asarray, drive(states))


def test_who_has_fuel_and_tyres_does_not_stop(races):
    assert races.stops[0].tolist() == [0, 0]
    assert (races.stops[:, 1] == 0).all()
    burnt = TANK - races.fuel[0]
    assert (burnt > 1.0).all() and (burnt < 5.0).all()


def test_a_stop_costs_the_lane_and_the_longer_of_both_works(races):
    fuel_race, tyre_race = races.time[1, 0] - races.time[0, 0], races.time[2, 0] - races.time[0, 0]
    assert races.stops[1:3, 0].tolist() == [1, 1]
    # Tyres 12 s; fuel for two laps and a bit at 0.05 kg/s. Standing still and setting off again
    # cost some seconds more than the time at the stop.
    a_lap = (TANK - races.fuel[0, 0]) / LAPS
    fuelled = PITS.lane + max(PITS.tyres, (2.0 * 1.1 * a_lap - (1.0 - a_lap)) / PITS.fuel_rate)
    assert PITS.lane + PITS.tyres < tyre_race < PITS.lane + PITS.tyres + 8.0
    assert fuelled - 8.0 < fuel_race < fuelled + 8.0


def test_fuel_is_for_what_is_left_and_tyres_are_fresh(races):
    assert 0.0 < races.fuel[1, 0] < 0.4
    assert races.wear[2, 0] < 0.2 < 0.9 < races.wear[3, 0]


def test_a_car_burns_nothing_after_its_flag(races):
    # The race of one lap ended long before those of three.
    burnt = TANK - races.fuel[:, 1]
    assert 0.25 * burnt[0] < burnt[3] < 0.5 * burnt[0]
    assert 0.25 * races.wear[0, 1] < races.wear[3, 1] < 0.5 * races.wear[0, 1]


def test_nobody_stops_for_tyres_with_a_lap_to_go(races):
    assert races.stops[3].tolist() == [0, 0]


def test_who_is_at_a_stop_is_met_and_seen_by_nobody(env):
    state = env.line_up(jnp.int32(0), jnp.arange(2))
    race = race_of(state)
    waits = dataclasses.replace(race.pits, wait=jnp.array([5.0, 0.0]))
    stopped = dataclasses.replace(race, pits=waits)
    assert stopped.on_road.tolist() == [False, True] and stopped.present.all()
    track = env.solo.track
    assert np.asarray(opponents(track, race, env.config.opponents)).any()
    assert not np.asarray(opponents(track, stopped, env.config.opponents)).any()


def test_a_stop_s_clock_runs_and_its_car_stands(env, experts):
    state = env.line_up(jnp.int32(0), jnp.arange(2))
    race = race_of(state)
    wait = dataclasses.replace(race.pits, wait=jnp.array([0.3, 0.0]))
    state = state.replace(pipeline_state=dataclasses.replace(race, pits=wait))
    step = jax.jit(lambda state: env.step(state, experts(state)))
    seen = [state := step(state) for _ in range(8)]
    waits = np.array([race_of(state).pits.wait[0] for state in seen])
    np.testing.assert_allclose(waits[:2], [0.2, 0.1], atol=1e-6)
    # The other one stands on the grid within the room of the exit: it waits on till that is gone.
    assert waits[2] == pytest.approx(0.1)
    assert float(race_of(seen[2]).drives.lap_clock[0]) == pytest.approx(0.3, abs=1e-5)
    assert float(race_of(seen[2]).distance[0]) == pytest.approx(float(race.distance[0]))
    assert float(seen[2].reward[0]) == 0.0


def test_two_who_would_come_back_into_one_place_do_so_one_after_the_other(env):
    # Both at the line, one at each edge of the road, and nobody on it.
    state = env.line_up(jnp.int32(0), jnp.arange(2))
    drives = race_of(state).drives

    def moved(offset):
        both, nobody = jnp.ones(2, bool), jnp.zeros(2, bool)
        return put_back(env.solo.track, drives, nobody, both, offset, 20.0, (80.0, 3.0))[1].tolist()

    assert moved(jnp.array([-2.0, -2.0])) == [True, False]
    assert moved(jnp.array([-2.0, 2.0])) == [True, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lane": -1.0}, "lane must not be negative"),
        ({"fuel_rate": 0.0}, "fuel_rate must be positive"),
    ],
)
def test_wrong_stops_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PitConfig(**changes)


def test_a_league_has_no_stops(env):
    endless = RaceEnv(dataclasses.replace(env.config, laps=0))
    with pytest.raises(UserError, match="a league races without stops"):
        LeagueRace(endless, LeagueConfig())
