"""What a driver's knowledge of its car is worth, for drivers of whom that is known."""

import dataclasses
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from core_rl import flags
from core_rl.env import State
from core_rl.errors import UserError
from core_rl.policy import load_policy, save_policy
from experiments import sophy_importance
from experiments.sophy_importance import (
    OUTPUTS,
    Importance,
    field_of,
    main,
    make_explainer,
    picture,
    players_of,
    summarise,
    table,
)
from projects.sophy.car_features import CAR_FEATURES
from projects.sophy.time_trial import TimeTrial, TimeTrialConfig

ENV = TimeTrialConfig(
    car="kart,hatch_ff,gt3_fr,f1_tum", circuit="larkspur", substeps=2, describe=True
)
NAMES, GROUPS = players_of("groups")
FEATURES = list(CAR_FEATURES)
F = len(FEATURES)
PACE, OFF_COURSE = OUTPUTS.index("pace"), OUTPUTS.index("off_course")
CAR, TOLD = 1, np.array([3, 0])
RANDOM = np.random.default_rng(0)
WEIGHTS = (0.1 * RANDOM.normal(size=(F, 2))).astype(np.float32)
WEIGHTS[GROUPS == NAMES.index("aero")] = 0.0
CARS = RANDOM.normal(size=(4, F)).astype(np.float32)  # features of no car in particular


class Toy:
    """Car 1 drives circuit `c` at `c + 1` times the pedal, and off course as the steering says."""

    config = ENV
    circuits = ("first", "second")

    def track_of(self, circuit):
        return SimpleNamespace(length=100.0)

    def start(self, circuit, car_index, s, share, speed_share):
        none = jnp.zeros(())
        obs = {"state": jnp.full(ENV.observation.sizes["state"], s), "car": jnp.zeros(F)}
        metrics = {"pace_share": none, "off_course_steps": none}
        return State(circuit + car_index, obs, none, none, metrics)

    def step(self, state, action):
        pace = state.pipeline_state * action[1]
        return state.replace(metrics={"pace_share": pace, "off_course_steps": action[0]})


def save(directory, weights):
    """A driver whose action is linear in what it is told of the car."""

    def apply(params, obs):
        return params["bias"] + 0.01 * obs["state"][:, :1] + obs["car"] @ params["car"]

    save_policy(
        directory,
        apply=apply,
        params={
            "bias": np.array([0.0, 0.5], np.float32),
            "car": np.asarray(weights, np.float32),
        },
        example_obs={
            "state": np.zeros(ENV.observation.sizes["state"], np.float32),
            "car": np.zeros(F, np.float32),
        },
        record={},
        extra={"project": "sophy", "env": flags.to_dict(ENV)},
    )
    return directory


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Does not read aero."""
    return save(tmp_path_factory.mktemp("driver") / "policy", WEIGHTS)


def config_of(directory, **changes):
    defaults = {"circuits": "larkspur", "seconds": 2.0, "starts": 1, "sample": 2}
    return Importance(policy=str(directory), **{**defaults, **changes})


@pytest.fixture(scope="module")
def explain(driver):
    """On the road: compiled once for all tests."""
    return make_explainer(TimeTrial(ENV), load_policy(driver), config_of(driver), GROUPS)


@pytest.fixture(scope="module")
def toy(driver):
    """`(weights, cars) -> Explained` of the driver with other weights."""
    policy = load_policy(driver)
    config = config_of(driver, starts=2)
    explain = make_explainer(Toy(), policy, config, GROUPS)  # pyright: ignore[reportArgumentType]

    def of(weights=WEIGHTS, cars=CARS):
        params = {**policy.params, "car": jnp.asarray(weights, jnp.float32)}
        return explain(params, CAR, cars[CAR], cars[TOLD])

    return of


def changes_of(weights, players):
    """What each player changes in the action, for each car that is told: [M, G, 2]."""
    change = (CARS[CAR] - CARS[TOLD])[..., None] * weights
    return np.stack([change[:, players == g].sum(1) for g in range(players.max() + 1)], 1)


def assert_closed_form(explained, players):
    """With `d_g` what a player changes in the action, those that are absent cost `(sum of their
    d)^2`: each gets its square, and half of each product of two."""
    change = changes_of(WEIGHTS, players)
    squares = np.mean(change * change.sum(1, keepdims=True), axis=0)
    assert np.max(np.abs(squares)) > 0.05
    assert explained.value.shape == (players.max() + 1, 2, len(OUTPUTS))
    for circuit in range(2):
        value = explained.value[:, circuit]
        np.testing.assert_allclose(value[:, :2], squares, atol=1e-5)
        pace = (circuit + 1) * change[:, :, 1].mean(axis=0)
        np.testing.assert_allclose(value[:, PACE], pace, atol=1e-5)
        np.testing.assert_allclose(value[:, OFF_COURSE], -change[:, :, 0].mean(0), atol=1e-5)


def test_linear_driver_has_the_closed_form(toy):
    assert_closed_form(toy(), GROUPS)


def test_random_orders_of_the_features_have_it_too(driver):
    """They go forwards and backwards, no three features interact, and 4 orders use both rows."""
    policy, (names, players) = load_policy(driver), players_of("features")
    assert names == FEATURES
    config = config_of(driver, starts=2)
    explain = make_explainer(Toy(), policy, config, players)  # pyright: ignore[reportArgumentType]
    assert_closed_form(explain(policy.params, CAR, CARS[CAR], CARS[TOLD]), players)


def test_efficiency_and_a_group_that_is_not_read(toy):
    explained = toy()
    added = explained.full - explained.base
    np.testing.assert_allclose(explained.value.sum(axis=0), added, atol=1e-5)
    # Told the truth, it does what it does.
    np.testing.assert_allclose(explained.full[:, :2], 0.0, atol=1e-10)
    read = np.array(NAMES) != "aero"
    assert np.all(explained.value[~read] == 0.0) and np.all(explained.value[read] != 0.0)


def test_groups_that_play_the_same_part_share_alike(toy):
    first, second, third = (FEATURES.index(name) for name in ("power", "shape", "mass"))
    cars, weights = CARS.copy(), np.zeros((F, 2))
    cars[:, second] = cars[:, first]
    weights[[first, second]], weights[third] = 0.2, -0.3
    value = toy(weights, cars).value
    power, tyres, mass = (value[NAMES.index(name)] for name in ("power", "tyres", "mass"))
    np.testing.assert_allclose(power, tyres, atol=1e-6)
    assert np.all(np.abs(power - mass) > 1e-3)


def row_of(values, base):
    """A car for which what players are worth [G] is the same for all outputs, on one circuit."""
    value = np.repeat(np.array(values, float)[:, None, None], len(OUTPUTS), axis=-1)
    told = np.full((1, len(OUTPUTS)), float(base))
    return {"value": value.tolist(), "base": told.tolist(), "full": (told + sum(values)).tolist()}


def test_summary_of_known_values():
    rows = [row_of([3.0, 1.0], 5.0), row_of([6.0, 2.0], 5.0), row_of([9.0, 3.0], 5.0)]
    summary = summarise(rows, ["tyres", "mass"])
    pace = summary["pace"]
    assert pace["told_another"] == pytest.approx(5.0)
    assert pace["told_the_truth"] == pytest.approx(13.0)
    assert pace["total"] == pytest.approx([8.0, 4.0, 12.0])  # of 27 resamples one is all thrice
    tyres = pace["players"]["tyres"]
    assert tyres["value"] == pytest.approx([6.0, 3.0, 9.0])
    assert tyres["share"] == pytest.approx([0.75, 0.75, 0.75])
    assert (tyres["first"], pace["players"]["mass"]["first"]) == (1.0, 0.0)
    assert summary["action"]["total"][0] == pytest.approx(16.0)  # of steering and pedal
    assert table(summary).splitlines()[2].startswith("tyres")


def test_where_nothing_is_lost_nothing_is_shared():
    summary = summarise([row_of([1.0, -1.5], 5.0), row_of([-1.0, 2.0], 5.0)], ["tyres", "mass"])
    player = summary["pace"]["players"]["tyres"]
    assert player["share"] is None and player["first"] is None
    assert "-" in table(summary)
    labels = [text.get_text() for text in picture(summary, "").axes[1].get_yticklabels()]
    assert labels == ["mass", "tyres"]


def test_the_command_goes_on_where_it_was_cut_off(driver, explain, tmp_path, capsys, monkeypatch):
    driven = []

    def watched(params, car_index, x, others):
        driven.append(car_index)
        return explain(params, car_index, x, others)

    monkeypatch.setattr(sophy_importance, "make_explainer", lambda *args: watched)
    config = config_of(driver, out=str(tmp_path), json=True)
    assert main(config) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["cars"], first["field"], first["settings"]["cars"]) == (2, 4, ENV.car)
    pace = first["outputs"]["pace"]
    assert 0.2 < pace["told_the_truth"] < 1.5 and pace["total"][0] != 0.0
    # On the road, too, what is not read gets exactly nothing.
    assert pace["players"]["aero"]["value"] == [0.0, 0.0, 0.0]
    values = [player["value"][0] for player in pace["players"].values()]
    assert sum(values) == pytest.approx(pace["total"][0], abs=1e-6)
    png = (tmp_path / "importance.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) <= 200_000
    path = tmp_path / "cars.jsonl"
    path.write_text(path.read_text()[:-20])
    assert main(config) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert main(dataclasses.replace(config, sample=3, json=False)) == 0
    # The second one again, and then one more.
    assert len(driven) == 4 and driven[1] == driven[2] and len(set(driven)) == 3
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)
    with pytest.raises(UserError, match="was made with other seconds; name another directory"):
        main(dataclasses.replace(config, seconds=1.0))


def test_what_cannot_be_asked_is_refused_in_one_line(driver, tmp_path):
    config = config_of(driver, out=str(tmp_path))
    for changes, message in (
        ({"policy": ""}, "--policy=DIR is missing"),
        (
            {"policy": "projects/sophy/policies/time_trial"},
            "is not told of its car: it reads state",
        ),
        ({"cars": "kart"}, "--cars=kart is a single car"),
        ({"cars": "gt4,kart"}, "unknown car 'gt4'"),
        ({"circuits": "larkspurr"}, "unknown circuit 'larkspurr'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            main(dataclasses.replace(config, **changes))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--orders must be even and at least 4, got 3"):
        flags.parse(Importance(), ["--orders=3"])


def test_the_field_is_what_the_policy_was_trained_on(driver):
    field = field_of(load_policy(driver), Importance(policy=str(driver), circuits="thimble"))
    assert (field.config.car, field.circuits) == (ENV.car, ("thimble",))
