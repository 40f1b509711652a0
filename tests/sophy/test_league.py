"""Situations of a race, who drives in them, and what came of races."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.errors import UserError
from projects.sophy.drivers import LEVELS, level_of, scripted_actions
from projects.sophy.league import (
    LEARNER,
    SCRIPTED,
    LeagueConfig,
    LeagueRace,
    directory_and_share,
    load_racer,
)
from projects.sophy.observation import ObservationConfig
from projects.sophy.path_following import LineConfig, slowed
from projects.sophy.race_env import OpponentsConfig, RaceConfig, RaceEnv, race_of
from projects.sophy.race_replay import gap_chart, race_page, record_race
from projects.sophy.results import drive_races, points_of
from projects.sophy.scenarios import SCENARIOS, draw_setting, origins, table
from projects.sophy.time_trial import TimeTrialConfig

NUM = 6
SOLO = TimeTrialConfig(
    circuit="copperbowl", steering="line", substeps=10, traction_control=True, antilock=True
)


@pytest.fixture(scope="module")
def env():
    return RaceEnv(RaceConfig(solo=SOLO, num_cars=NUM, laps=0))


@pytest.fixture(scope="module")
def settings(env):
    """64 settings of every scenario, leaves [K, 64, ...]."""
    places, keys = origins(env), jax.random.split(jax.random.key(5), 64)
    draw = jax.vmap(lambda row, key: draw_setting(env, row, places, key), (None, 0))
    rows = table(tuple(SCENARIOS))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw, (0, None)))(rows, keys))


def of(settings, name):
    return jax.tree.map(lambda leaf: leaf[list(SCENARIOS).index(name)], settings)


def test_situations_are_what_they_are_called(env, settings):
    length = float(env.solo.track.length)
    for name, scenario in SCENARIOS.items():
        drawn = of(settings, name)
        size = drawn.present.sum(1)
        assert size.min() == scenario.cars[0] and size.max() == min(scenario.cars[1], NUM)
        for distance, present in zip(drawn.distance, drawn.present, strict=True):
            gaps = -np.diff(-np.sort(-distance[present]))
            low, high = scenario.gap
            assert (gaps >= low - 1e-3).all() and (gaps <= high + 1e-3).all()
        ahead = (drawn.distance[:, :1] < drawn.distance) & drawn.present
        assert not (name in ("attacked", "rejoin") and ahead.any())
        assert name not in ("slow_ahead", "slipstream") or (ahead.sum(1) == size - 1).all()
    np.testing.assert_array_equal(of(settings, "grid").origin, 0.0)
    np.testing.assert_array_equal(of(settings, "grid").speed_share, 0.0)
    started = jax.jit(jax.vmap(env.start))(*of(settings, "rejoin"))
    after = jax.jit(jax.vmap(env.step))(started, jnp.zeros((64, NUM, 2)))
    assert (np.asarray(after.pipeline_state.drives.off_course)[:, 0] > 0.0).all()
    assert not np.asarray(after.pipeline_state.drives.wall_contact)[:, 0].any()
    side_by_side = of(settings, "corner").share[:, :2]
    assert (side_by_side[:, 0] * side_by_side[:, 1] < 0.0).all()
    # Slipstreams begin where the reference lap is fast, corners where it will soon be slow.
    lap = jax.tree.map(np.asarray, env.solo.reference)

    def speed_at(s):
        return np.interp(s % length, lap.s, lap.speed)

    straight = of(settings, "slipstream").origin
    assert speed_at(straight + 250.0).min() > np.quantile(lap.speed, 0.5)
    corner = of(settings, "corner").origin
    assert (speed_at(corner + 150.0) < speed_at(corner) - 3.0).all()


def test_skills_are_between_and_beyond_the_levels():
    levels = np.stack(level_of(jnp.array([0.0, 0.25, 0.125, 1.0, -0.5, 5.0])), axis=1)
    rows = np.array(list(LEVELS.values()))
    np.testing.assert_allclose(levels[0], rows[0], atol=1e-6)
    np.testing.assert_allclose(levels[1], rows[1], atol=1e-6)
    np.testing.assert_allclose(levels[2], (rows[0] + rows[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(levels[3], rows[-1], atol=1e-6)
    np.testing.assert_allclose(levels[4], 3 * rows[0] - 2 * rows[1], atol=1e-5)
    np.testing.assert_allclose(levels[5], level_of(jnp.float32(1.5)), atol=1e-6)


@pytest.fixture(scope="module")
def league(env):
    shares = tuple((name, 1.0) for name in SCENARIOS)
    return LeagueRace(env, LeagueConfig(scenarios=shares))


def test_the_learner_drives_his_slots_and_others_do_as_they_like(league):
    states = jax.jit(jax.vmap(league.reset))(jax.random.split(jax.random.key(2), 32))
    driver = np.asarray(states.info["driver"])
    assert (driver[:, 0] == LEARNER).all()
    # Half, but none in two of the ten situations.
    assert 0.3 < (driver[:, 1:] == LEARNER).mean() < 0.5
    slow = np.asarray(states.info["scenario"]) == list(SCENARIOS).index("slow_ahead")
    assert slow.any() and (driver[slow, 1:] == SCRIPTED).all()
    assert (np.asarray(states.info["skill"])[slow] < 0.0).all()

    asked = jnp.full((32, NUM, 2), 0.3)
    after = jax.jit(jax.vmap(league.step))(states, asked)
    assert jax.tree.structure(after) == jax.tree.structure(states)
    done = np.asarray(after.info["action"])
    np.testing.assert_array_equal(done[driver == LEARNER], np.float32(0.3))
    assert (np.abs(done[driver == SCRIPTED] - 0.3).max(1) > 1e-3).mean() > 0.95

    member = {name: np.asarray(value) for name, value in league.membership(after).items()}
    learns = np.asarray(after.pipeline_state.present) & (driver == LEARNER)
    np.testing.assert_array_equal(member.pop("all"), learns.reshape(-1))
    np.testing.assert_array_equal(sum(member.values()), learns.reshape(-1))
    np.testing.assert_array_equal(member["slow_ahead"], (learns & slow[:, None]).reshape(-1))


def test_races_are_driven_to_the_flag_and_counted(env):
    # Two scripted cars for one lap of copperbowl: the faster one starts last and wins.
    skill = level_of(jnp.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
    present = jnp.arange(NUM) < 2
    start = env.start(
        jnp.int32(0),
        present,
        jnp.zeros(()),
        jnp.array([-8.0, -40.0, -60.0, -70.0, -80.0, -90.0]),
        jnp.array([0.4, -0.4, 0.4, -0.4, 0.4, -0.4]),
        jnp.full(NUM, 0.5),
    )
    race = dataclasses.replace(start.pipeline_state, laps=jnp.int32(2))
    states = jax.tree.map(lambda leaf: leaf[None], start.replace(pipeline_state=race))

    def act(states):
        return jax.vmap(lambda race: scripted_actions(env, race, skill))(states.pipeline_state)

    drive = jax.jit(drive_races, static_argnums=(0, 1))
    results = jax.tree.map(lambda leaf: leaf[0], drive(env, act, states))
    np.testing.assert_array_equal(results.place[:2], [2, 1])
    np.testing.assert_array_equal(results.tally.laps[:2], [2, 2])
    np.testing.assert_array_equal(results.time[2:], 0.0)
    assert results.tally.overtakes[1] >= 1 and results.time[1] < results.time[0]
    # The second lap is the flying one; the rest of the race took longer.
    reference = float(env.solo.reference.lap_time)
    assert 0.9 * reference < results.tally.fastest_lap[1] < 0.5 * results.time[1]
    seconds = 5.0 * np.asarray(results.faults)[:, 1:].sum(1)
    np.testing.assert_array_equal(results.penalty, seconds)

    # The winner of the road is second once twelve medium contacts are his, at 5 s each.
    record = race.stewarding.record
    guilty = record._replace(faults=record.faults.at[1, 1].set(12))
    charged = dataclasses.replace(
        race, stewarding=dataclasses.replace(race.stewarding, record=guilty)
    )
    states = jax.tree.map(lambda leaf: leaf[None], start.replace(pipeline_state=charged))
    punished = jax.tree.map(lambda leaf: leaf[0], drive(env, act, states))
    np.testing.assert_array_equal(punished.place[:2], [1, 2])
    assert punished.time[1] == pytest.approx(results.time[1] + 60.0)


def test_most_of_a_scripted_field_of_twenty_finish_ten_laps():
    solo = dataclasses.replace(SOLO, circuit="larkspur")
    env = RaceEnv(RaceConfig(solo=solo, num_cars=20, laps=10))
    levels = level_of(jnp.linspace(0.0, 1.0, 20))

    def act(states):
        return jax.vmap(lambda race: scripted_actions(env, race, levels))(race_of(states))

    states = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(1), 1))
    results = jax.jit(drive_races, static_argnums=(0, 1))(env, act, states)
    # The marshals set back who is turned round against a wall. The race is chaotic and differs
    # between processors: of 152 such drivers one did not arrive.
    assert results.retired.sum() <= 2
    assert (results.time > 0.0).sum() == 20 - results.retired.sum()
    np.testing.assert_array_equal(results.tally.laps[results.time > 0.0], 10)
    assert results.tally.overtakes.sum() > 20
    # Medium and heavy contacts with blame, per car and lap.
    assert results.faults[..., 1:].sum() / 200.0 < 0.4


def test_a_race_is_replayed_with_its_order_and_what_the_stewards_say(env):
    # One runs into the back of another, who is on his way to the line and thus moves across; the
    # third is far ahead, the other slots are empty.
    start = env.start(
        jnp.int32(0),
        jnp.arange(NUM) < 3,
        jnp.zeros(()),
        jnp.array([20.0, 45.0, 300.0, 0.0, 0.0, 0.0]),
        jnp.zeros(NUM),
        jnp.array([0.9, 0.4, 0.5, 0.5, 0.5, 0.5]),
    )
    record = record_race(
        env, lambda state: jnp.zeros((NUM, 2)), start, ["ann", "bob", "cy", "x", "y", "z"], 10.0
    )
    assert list(record.drives) == ["ann", "bob", "cy"]
    assert record.events[0].text == "ann and bob touch: bob at fault (blocking, heavy)"
    ways = [way.distance[0] for way in record.ways]
    assert ways[2] > ways[1] > ways[0] and record.ways[0].finish is None
    page = race_page(env, start, record, "three cars")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["events"][0]["car"] == 0 and data["events"][0]["other"] == 1
    assert len(data["cars"][0]["distance"]) == len(data["cars"][0]["time"])

    axes = gap_chart(record, float(env.solo.track.length), "three cars").axes[0]
    curves = [line for line in axes.lines if line.get_marker() != "x"]
    gaps = np.stack([line.get_ydata() for line in curves])
    assert len(curves) == 3
    # Somebody leads wherever somebody was, and where all were, the others are behind him.
    driven = ~np.isnan(gaps).all(axis=0)
    np.testing.assert_array_equal(np.nanmin(gaps[:, driven], axis=0), 0.0)
    at = np.flatnonzero(~np.isnan(gaps[:2]).any(axis=0))[-1]
    far = float(curves[0].get_xdata()[at]) * float(env.solo.track.length)
    times = [
        np.interp(far, way.distance, 0.1 * np.arange(1, len(way.distance) + 1))
        for way in record.ways[:2]
    ]
    assert gaps[0, at] - gaps[1, at] == pytest.approx(times[0] - times[1], abs=0.01)
    # The one contact with blame, on both curves.
    blamed = [event for event in record.events if event.blamed]
    assert len(axes.lines) - len(curves) == 2 * len(blamed)


def test_a_policy_is_asked_for_less_of_its_speed_by_its_name(tmp_path):
    assert directory_and_share("runs/a") == ("runs/a", 1.0)
    assert directory_and_share("runs/a@0.95") == ("runs/a", 0.95)
    assert directory_and_share("runs/a@club") == ("runs/a", 0.9)
    strange = tmp_path / "b@0.9"
    strange.mkdir()
    assert directory_and_share(str(strange)) == (str(strange), 1.0)
    for wrong in ("runs/a@fast", "runs/a@1.2", "runs/a@nan", "runs/a@"):
        with pytest.raises(UserError, match=r"a share of the speed, 0\.5 to 1, follows @"):
            directory_and_share(wrong)
    config = LineConfig(usual=0.85, haste=0.35)
    actions = jnp.array([[0.2, 0.0], [-1.0, 1.0], [0.0, -1.0]])
    less = np.asarray(slowed(actions, 0.9, config))
    np.testing.assert_array_equal(less[:, 0], actions[:, 0])
    # 0.9 of 0.85 and of 1.20; 0.9 of 0.50 is less than can be asked for.
    np.testing.assert_allclose(0.85 + 0.35 * less[:, 1], [0.765, 1.08, 0.5], rtol=1e-6)


def test_points_are_those_of_race_together():
    points = np.asarray(points_of(jnp.arange(1, 12)))
    np.testing.assert_array_equal(points, [10, 8, 6, 5, 4, 3, 2, 1, 0, 0, 0])
    # Three races, the last counting double: 156 in all, as 104 and 52 are.
    assert 4 * points.sum() == 104 + 52


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenarios": (("overtake", 1.0),)}, "scenarios: there is none named 'overtake'"),
        ({"scenarios": (("duel", 0.0),)}, "the share of duel must be positive"),
        ({"scenarios": ()}, "name at least one"),
        ({"self_play": 1.5}, r"self_play must be in \[0, 1\]"),
    ],
)
def test_a_league_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LeagueConfig(**changes)


def test_policies_of_another_kind_are_refused_in_a_line():
    solo = dataclasses.replace(SOLO, circuit="copperbowl")
    delta = RaceEnv(RaceConfig(solo=dataclasses.replace(solo, steering="delta"), num_cars=2))
    with pytest.raises(UserError, match="a league races with steering=line"):
        LeagueRace(delta, LeagueConfig())
    line = RaceEnv(RaceConfig(solo=solo, num_cars=2, laps=0))
    with pytest.raises(UserError, match="time_trial: its actions are steering=delta"):
        LeagueRace(line, LeagueConfig(frozen=("projects/sophy/policies/time_trial",)))
    with pytest.raises(UserError, match="garage: it needs the observation 'surface'"):
        LeagueRace(line, LeagueConfig(frozen=("projects/sophy/policies/garage",)))
    rolling = RaceEnv(dataclasses.replace(line.config, start="rolling"))
    with pytest.raises(UserError, match="what episodes of a league begin with is drawn"):
        LeagueRace(rolling, LeagueConfig())
    # Another car than it learnt in: the same observations, other answers.
    solo = dataclasses.replace(solo, car="kart", observation=ObservationConfig(racing_line=True))
    kart = dataclasses.replace(line.config, solo=solo)
    with pytest.raises(UserError, match="'opponents' has 224 entries, in this race it has 126"):
        load_racer("projects/sophy/policies/race", RaceEnv(kart))
    kart = dataclasses.replace(kart, opponents=OpponentsConfig(road=True, blame=True))
    with pytest.raises(UserError, match="it was trained in gt3_fr, the race's cars are kart"):
        load_racer("projects/sophy/policies/race", RaceEnv(kart))


def test_a_car_does_not_rejoin_out_of_a_wall(env):
    row = jax.tree.map(lambda leaf: leaf[0], table(("rejoin",)))
    places, keys = origins(env), jax.random.split(jax.random.key(0), 16)

    def drawn(width):
        """How far aside it stands, in half widths of the road, if it is as wide as this."""
        other = copy.copy(env)
        other.solo = copy.copy(env.solo)
        other.solo.cars = dataclasses.replace(env.solo.cars, width=jnp.full(1, width))
        draw = jax.vmap(lambda key: draw_setting(other, row, places, key))
        return np.abs(np.asarray(draw(keys).share[:, 0]))

    assert (drawn(2.0) > 1.0).all()
    assert (drawn(60.0) < 1.0).all()  # no run-off has room for it
