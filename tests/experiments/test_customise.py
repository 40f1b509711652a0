"""A wish of the user's own, from the command line."""

import json

import jax
import numpy as np
import pytest

from core_rl import flags
from core_rl.dynamics import load_dynamics
from core_rl.errors import UserError
from experiments import customise, residual_mppi_sophy
from experiments.customise import MODEL_FILE, Driven, main


def config(*arguments):
    return flags.parse(customise.Customise(), list(arguments))


def test_drives_before_and_after_and_draws_both(tmp_path, capsys):
    # Few samples: whether they do any good is shown elsewhere.
    tiny = ("--samples=4", "--rounds=1", "--horizon=2", f"--out={tmp_path}", "--json")
    assert main(config("--addon=margin:0.5", *tiny)) == 0
    result = json.loads(capsys.readouterr().out)
    before, after = result["before"], result["after"]
    # The committed driver laps cleanly and uses the road to its edge.
    assert before["laps_completed"] == after["laps_completed"] == 1
    assert 70 < before["lap_time"] < 80
    assert before["violation_steps_per_lap"] > 100
    assert before["off_course_steps_per_lap"] == 0
    assert before["addon_per_lap"] != after["addon_per_lap"]
    assert (tmp_path / "customised.png").read_bytes().startswith(b"\x89PNG")


def test_the_committed_motion_model_is_small_and_finite():
    assert MODEL_FILE.stat().st_size < 1_000_000
    _, state, extra = load_dynamics(MODEL_FILE)
    assert extra["circuit"] == "larkspur"
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "an add-on is missing: allowed are margin:METRES"),
        (("--addon=margn:1",), "there is no add-on 'margn'"),
        (("--addon=calm", "--policy=nowhere"), "no policy bundle in"),
        (("--addon=calm", "--policy=projects/ace/policies/return"), "cannot drive a car"),
        (("--addon=calm", "--circuit=atlantis"), "atlantis"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        main(config(*arguments, f"--out={tmp_path}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--variant=valued", "variant must not be valued"),
        ("--samples=0", "num_samples must be at least 1"),
        ("--omega=-1", "prior_weight must not be negative"),
        ("--laps=0", "laps must be at least 1"),
    ],
)
def test_bad_settings_are_refused(argument, message):
    with pytest.raises(UserError, match=message):
        config("--addon=calm", argument)


def test_laps_of_cars_that_did_not_finish_do_not_count():
    class Laps:
        def __init__(self, times):
            self.lap_times = times

    trace = {"violation": np.array([True, False, True])}
    stuck = {"violation": np.ones(500, bool)}
    driven = Driven([Laps([80.0]), Laps([])], [trace, stuck], 1)
    assert driven.per_lap("violation") == 2.0 and driven.lap_times == [80.0]
    assert Driven([Laps([])], [stuck], 1).per_lap("violation") is None


def test_results_of_seeds_are_summed_up(tmp_path):
    for seed, time in ((0, 78.0), (1, 80.0)):
        row = {"lap_time": time, "laps_completed": 1, "laps_asked": 2}
        row |= dict.fromkeys(residual_mppi_sophy.COLUMNS, time)
        (tmp_path / f"prior-s{seed}.json").write_text(json.dumps(row))
    results = residual_mppi_sophy.read(tmp_path, range(2))
    row = residual_mppi_sophy.table(results)["prior"]
    # Two values 78 and 80: deviation sqrt(2), t(0.975, 1) = 12.706, half = 12.706 * sqrt(2 / 2).
    assert row["lap_time"] == 79.0 and row["laps"] == 2 and row["laps_asked"] == 4
    np.testing.assert_allclose(row["lap_time_half"], 12.706, rtol=1e-3)
    with pytest.raises(UserError, match="stages must be among"):
        flags.parse(residual_mppi_sophy.ResidualSophy(), ["--stages=nonsense"])
