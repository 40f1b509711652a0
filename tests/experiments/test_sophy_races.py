"""Championships and exams as a user starts them, with scripted drivers and with wrong input."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest

from core_rl import flags
from core_rl.errors import UserError
from experiments import (
    sophy_championship,
    sophy_exams,
    sophy_grid,
    sophy_race,
    sophy_teams,
    sophy_tradeoff,
)
from experiments.sophy_championship import LAPS, Championship, of_three_races
from experiments.sophy_exams import EXAMS, Exam, Exams, Sat, judge_exam
from experiments.sophy_grid import Grid
from experiments.sophy_teams import limits_of, mean_of, news_for, race_config_of, share_cars
from experiments.sophy_tradeoff import Tradeoff
from experiments.sophy_weekend import WeekendConfig, run_weekends, tell_weekends, weekend_env
from projects.sophy.race_env import RaceConfig, RaceEnv, race_of
from projects.sophy.race_reward import PRESETS, RaceRewardConfig
from projects.sophy.scenarios import SCENARIOS
from projects.sophy.time_trial import TimeTrialConfig


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    out = tmp_path_factory.mktemp("championship")
    config = Championship(
        "scripted:expert", "scripted:beginner", "copperbowl", races=2, out=str(out)
    )
    assert sophy_championship.main(config) == 0
    return out, [json.loads(line) for line in (out / "races.jsonl").read_text().splitlines()]


def test_experts_beat_beginners_and_all_points_are_given(played):
    out, races = played
    assert [race["laps"] for race in races] == [*LAPS, *LAPS]
    # As they were told: 39 points a race, the last one twice.
    points = np.array([10, 8, 6, 5, 4, 3, 2, 1])
    worth = np.array([1, 1, 2])
    totals = np.zeros(2)
    for number, race in enumerate(races):
        result = race["result"]
        assert sorted(result["place"]) == list(range(1, 9))
        finished = np.array(result["time"]) > 0.0
        assert (np.array(result["laps"])[finished] == race["laps"]).all()
        each = points[np.array(result["place"]) - 1] * worth[number % 3]
        totals += [each[:4].sum(), each[4:].sum()]
    assert totals.sum() == 2 * 156
    assert totals[0] > 1.5 * totals[1]
    assert (out / "championship.png").stat().st_size > 5_000
    page = (out / "report.html").read_text()
    assert "scripted:expert against scripted:beginner" in page
    assert f"{totals[0] / 2:.3g} : {totals[1] / 2:.3g}" in page


def test_teams_of_championships_are_drawn_as_pace_over_faults(played, tmp_path, capsys):
    out, _ = played
    summary = json.loads((out / "summary.json").read_text())
    assert summary["circuits"] == ["copperbowl"] and summary["championships"] == 2
    config = Tradeoff((str(out), str(out)), ("one", "same"), out=str(tmp_path / "t.png"), json=True)
    assert sophy_tradeoff.main(config) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["one"] == told["same"]
    a, b = told["one"]["team_a"], told["one"]["team_b"]
    assert a["who"] == "scripted:expert" and a["pace"]["mean"] > b["pace"]["mean"]
    assert (tmp_path / "t.png").stat().st_size > 5_000


def test_results_that_cannot_be_compared_are_refused(played, tmp_path):
    out, _ = played
    summary = json.loads((out / "summary.json").read_text())
    for name, text, message in [
        ("other", json.dumps({**summary, "circuits": ["thimble"]}), r"other: circuits are \['thim"),
        ("older", json.dumps({**summary, "rules": "steward_v1"}), "older: rules are steward_v1"),
        ("torn", json.dumps(summary)[:-40], "torn/summary.json: not the summary of champ"),
        ("alien", json.dumps({"team_a": {}}), "alien/summary.json: not the summary of champ"),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(text)
        with pytest.raises(UserError, match=message):
            sophy_tradeoff.main(Tradeoff((str(out), str(tmp_path / name))))
    with pytest.raises(UserError, match=r"summary.json: there is none; python -m"):
        sophy_tradeoff.main(Tradeoff((str(tmp_path),)))
    with pytest.raises(UserError, match="name results"):
        sophy_tradeoff.main(Tradeoff())
    with pytest.raises(ValueError, match="names must be as many as results, 1, got 2"):
        Tradeoff(("a",), ("b", "c"))


def test_grids_differ_from_championship_to_championship_and_pairs_change_places(monkeypatch):
    places = []

    class Lined:
        def line_up(self, race, place):
            places.append(np.asarray(place))
            return SimpleNamespace(replace=lambda pipeline_state: None)

    monkeypatch.setattr(sophy_championship, "race_of", lambda state: RaceLaps(jnp.int32(0)))
    number = 8
    for key, race, swapped in zip(*sophy_championship.grids_of(number, 0), strict=True):
        sophy_championship.start(cast(RaceEnv, Lined()), key, race, swapped)
    grids = np.array(places).reshape(number, len(LAPS), 8)
    assert np.all(np.sort(grids, -1) == np.arange(8))
    np.testing.assert_array_equal(grids[1::2], np.roll(grids[::2], 4, axis=-1))
    # To drivers who are all alike in a team, only which team stands where tells races apart.
    teams = {tuple(sorted(grid[:4])) for grid in grids[::2].reshape(-1, 8).tolist()}
    assert len(teams) > 8


@dataclasses.dataclass(frozen=True)
class RaceLaps:
    laps: Any


def test_a_championship_takes_the_first_three_circuits_of_a_policy():
    solo = TimeTrialConfig(circuit="thimble,ribbon,larkspur,bracken")
    race = of_three_races(RaceConfig(solo=solo), named="")
    assert race.solo.circuit == "thimble,ribbon,larkspur"
    # A word may stand for many.
    many = of_three_races(RaceConfig(solo=TimeTrialConfig(circuit="built_in")), named="")
    assert len(many.solo.circuit.split(",")) == 3


def test_an_expert_starts_last_and_passes_beginners(tmp_path, capsys):
    config = Grid("scripted:expert", "copperbowl", 3, 2, races=2, out=str(tmp_path), json=True)
    assert sophy_grid.main(config) == 0
    told = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in (tmp_path / "races.jsonl").read_text().splitlines()]
    assert [row["result"]["place"][0] for row in rows] == told["places"]
    assert told["place"]["mean"] == pytest.approx(np.mean(told["places"]))
    # Of three cars two are scripted, a beginner and an expert.
    assert all(sorted(row["result"]["place"]) == [1, 2, 3] for row in rows)
    assert min(told["places"]) < 3 and told["overtakes"]["mean"] > 0.0
    assert "driver" in (tmp_path / "race.html").read_text()


def test_every_situation_is_an_exam():
    assert list(EXAMS) == list(SCENARIOS)


def test_a_setting_is_passed_only_with_everything_in_order():
    exam = Exam(gain=1, pace=0.9, off_course_steps=2, pass_mark=0.5)
    sat = Sat(
        gain=jnp.array([1, 0, 1, 1, 1, 2]),
        pace=jnp.array([0.9, 1.0, 0.8, 1.0, 1.0, 1.0]),
        off_course_steps=jnp.array([2, 0, 0, 3, 0, 0]),
        faults=jnp.array([0, 0, 0, 0, 1, 0]),
        contacts=jnp.zeros(6),
    )
    judged = judge_exam(exam, sat)
    assert judged["share"] == pytest.approx(2 / 6) and not judged["passed"]
    assert judge_exam(exam._replace(pass_mark=0.33), sat)["passed"]


def test_a_beginner_does_not_pass_the_exam_of_passing(capsys):
    config = Exams("scripted:beginner", "copperbowl", only=("slow_ahead",), settings=4, json=True)
    assert sophy_exams.main(config) == 0
    row = json.loads(capsys.readouterr().out)["slow_ahead"]
    assert set(row) >= {"passed", "share", "gain", "pace", "faults"} and not row["passed"]
    assert 0.4 < row["pace"] < 1.0


@pytest.mark.parametrize(
    ("main", "config", "message"),
    [
        (sophy_championship.main, Championship(), "--team_a is missing"),
        (
            sophy_championship.main,
            Championship("scripted:champion", circuits="copperbowl"),
            "there is no level 'champion'; allowed are beginner, amateur",
        ),
        (
            sophy_championship.main,
            Championship("projects/sophy/policies/time_trial", circuits="copperbowl"),
            "time_trial: its actions are steering=delta, the race's are steering=line",
        ),
        (
            sophy_championship.main,
            Championship("scripted:club", circuits="thimble,ribbon,larkspur,bracken"),
            "a championship has 3 races, name so many circuits at most, got 4",
        ),
        (sophy_exams.main, Exams(), "--policy is missing"),
        (sophy_grid.main, Grid(), "--policy is missing"),
        (
            sophy_grid.main,
            Grid("projects/sophy/policies/race@2"),
            "a share of the speed, 0.5 to 1, follows @, got '2'",
        ),
    ],
)
def test_wrong_input_is_one_line(main, config, message):
    with pytest.raises(UserError, match=message):
        main(config)


@pytest.mark.parametrize("tables", [(), (("duel", 0.9),)])
def test_a_race_learns_from_nothing_that_others_drove(tables):
    train = dataclasses.replace(sophy_race.CONFIG.train, tables=tables)
    with pytest.raises(UserError, match=r"shares must sum to 1, got 0(\.9)?; all:1 is one table"):
        sophy_race.make_experiment(dataclasses.replace(sophy_race.CONFIG, train=train))


def test_a_situation_without_a_table_is_refused():
    train = dataclasses.replace(sophy_race.CONFIG.train, tables=(("duel", 1.0),))
    with pytest.raises(UserError, match=r"--train.tables has no share of alone, which"):
        sophy_race.make_experiment(dataclasses.replace(sophy_race.CONFIG, train=train))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cars": 21}, "cars must be 2 to 20, got 21"),
        ({"laps": 0}, "laps must be at least 1, got 0"),
        ({"penalty": -1.0}, "penalty must not be negative"),
    ],
)
def test_an_inconsistent_grid_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Grid(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only": ("overtake",)}, "no exam 'overtake'; allowed are alone, duel"),
        ({"only": ("duel", "duel")}, "each exam at most once, got duel,duel"),
        ({"num_cars": 21}, "num_cars must be 2 to 20, got 21"),
    ],
)
def test_exams_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Exams(**changes)


def test_published_weights_are_a_flag():
    env = dataclasses.replace(sophy_race.CONFIG.env, reward=RaceRewardConfig(wall=2.0))
    both = dataclasses.replace(sophy_race.CONFIG, env=env, preset="sarthe")
    with pytest.raises(UserError, match="are both weights: name one of them"):
        sophy_race.make_experiment(both)
    with pytest.raises(ValueError, match="preset must be one of maggiore, seaside"):
        dataclasses.replace(sophy_race.CONFIG, preset="monza")
    named = dataclasses.replace(sophy_race.CONFIG, preset="sarthe")
    experiment, env = sophy_race.make_experiment(named)
    assert env.config.reward == PRESETS["sarthe"]
    # The recorded options are a command that may be given again.
    again, _ = sophy_race.make_experiment(experiment.config)  # pyright: ignore[reportArgumentType]
    assert again.config == experiment.config


def test_measured_races_have_contact_and_wakes_whatever_a_policy_was_trained_with(monkeypatch):
    race = dataclasses.replace(
        sophy_race.CONFIG.env, num_cars=4, contact=False, slipstream=False, marshals=0.0
    )
    manifest = {"extra": {"project": "sophy", "race": flags.to_dict(race)}}
    policy = SimpleNamespace(manifest=manifest)
    monkeypatch.setattr(sophy_teams, "load_policy", lambda path: policy)
    config = race_config_of(("some/policy",), "thimble")
    assert config.contact and config.slipstream and config.walls and config.marshals == 5.0
    env = SimpleNamespace(solo=SimpleNamespace(circuits=("thimble", "ribbon")), num_agents=8)
    assert news_for(("some/policy", "scripted:club"), env) == [
        "policy some/policy: it has never seen ribbon",
        "policy some/policy: it knows fields of 4, not of 8 cars",
    ]


def test_events_without_the_number_are_not_zeros_in_its_mean():
    assert mean_of([np.nan, 2.0, 4.0])["mean"] == 3.0
    assert np.isnan(mean_of([np.nan])["mean"])
    # Pairs are one draw each: Student of 0 and 4, whose standard error is 2, t(1) = 12.706.
    pairs = mean_of([-1.0, 1.0, 3.0, 5.0], alike=2)
    assert pairs["mean"] == 2.0 and pairs["high"] == pytest.approx(2.0 + 12.7062 * 2.0, rel=1e-4)
    assert mean_of([0.0, 1.0, 0.0])["low"] == 0.0  # of what cannot be negative
    assert mean_of([1.0, 3.0], alike=2) == {"mean": 2.0, "low": None, "high": None}
    assert mean_of([1.0, 2.0, np.nan], alike=2) == {"mean": 1.5, "low": None, "high": None}


def test_limits_are_those_of_every_slot_s_own_car():
    solo = TimeTrialConfig(circuit="thimble", car="gt3_fr,kart")
    env = RaceEnv(RaceConfig(solo=solo, num_cars=4))
    limits = limits_of(env)
    assert limits.shape == (1, 4)
    np.testing.assert_array_equal(limits[:, 0], limits[:, 2])
    np.testing.assert_array_equal(limits[:, 1], limits[:, 3])
    assert limits[0, 0] != limits[0, 1]


@pytest.fixture(scope="module")
def weekend():
    config = WeekendConfig(
        practice=2, qualifying=2, sprint=1, endurance=3, wear=60.0, tank=20.0, fuel_use=1.0
    )
    teams = "scripted:expert", "scripted:beginner"
    env = weekend_env(config, teams, "thimble")
    share_cars(env)
    return config, env, teams, run_weekends(config, env, teams, 1, 0, 5.0)


def test_a_weekend_goes_from_practice_to_the_endurance_race(weekend):
    config, _, _, weekends = weekend
    # Practice tells what a lap takes, and the cars set off with fuel for the race and a reserve.
    fuel, wear = np.asarray(weekends.fuel[0]), np.asarray(weekends.wear[0])
    assert (fuel > 0.1).all() and (wear > 0.2).all()
    begun = np.asarray(race_of(weekends.endured).drives.motion.fuel[0])
    np.testing.assert_allclose(begun, np.minimum(1.1 * config.endurance * fuel, config.tank), 1e-5)
    # Experts are faster alone, so they start in front; the sprint's result is the next grid.
    assert sorted(np.asarray(weekends.qualifying.place[0])[:4]) == [1, 2, 3, 4]
    assert sorted(np.asarray(weekends.sprint.place[0])) == list(range(1, 9))
    # Lines of the grid are farther back the later one was in the sprint.
    way = np.asarray(race_of(weekends.endured).distance[0])
    assert (np.argsort(-way) == np.argsort(np.asarray(weekends.sprint.place[0]))).all()
    # Worn like that, the tyres of whoever finished needed a stop.
    finished = np.asarray(weekends.endurance.time[0]) > 0.0
    assert finished.sum() >= 6
    stops = np.asarray(weekends.endurance.stops[0])
    assert (stops[finished & (wear > 0.4)] >= 1).all() and stops.sum() >= 1
    assert not np.asarray(weekends.practice.stops).any()


def test_a_weekend_is_told_by_team(weekend):
    _, _, teams, weekends = weekend
    told = tell_weekends(weekends, teams)
    points = [told[name]["points"]["mean"] for name in ("team_a", "team_b")]
    assert sum(points) == 39 + 2 * 39
    a, b = told["team_a"], told["team_b"]
    assert a["qualifying_best_lap"]["mean"] < b["qualifying_best_lap"]["mean"]
    assert a["qualifying_place"]["mean"] == 2.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"practice": 1}, "must be at least 2 laps"),
        ({"endurance": 0}, "endurance must be at least 1"),
        ({"wear": -1.0}, "wear must not be negative"),
    ],
)
def test_a_weekend_that_cannot_be_held_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        WeekendConfig(**changes)


def test_an_electric_car_has_no_fuel():
    race = flags.to_dict(RaceConfig(solo=TimeTrialConfig(car="formula_e", steering="line")))
    config = flags.from_dict(RaceConfig, race)
    with pytest.raises(UserError, match="formula_e is electric"):
        RaceEnv(dataclasses.replace(config, solo=dataclasses.replace(config.solo, fuel=10.0)))
