"""The commands around the return task, as a user gives them, with the committed policy."""

import json

import numpy as np
import pytest

from core_rl import flags
from core_rl.errors import UserError
from experiments import ace_ablations, ace_demo, ace_evaluate, bench
from experiments.ace_evaluate import AceEvaluate, by_bins, wilson

PNG = b"\x89PNG\r\n\x1a\n"
COLUMNS = "x,y,z,vx,vy,vz,wx,wy,wz"
RALLY = "1.7,0.1,0.25,-9,0.3,1.5,0,-200,0"
TOO_FAST = "1.7,0.1,0.25,-45,0.3,1.5,0,-200,0"


def test_wilson_interval_is_the_published_one():
    # Newcombe 1998 (Statistics in Medicine 17:857-872), table I, method 3: 81 of 263, 15 of 148,
    # 0 of 20 and 1 of 29.
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        np.testing.assert_allclose(wilson(successes, trials), (low, high), atol=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_bins_hold_every_ball_once():
    values = np.array([0.0, 99.9, 100.0, 449.0, 450.0, 9999.0])
    legal = np.array([True, False, True, True, False, True])
    rows = by_bins(values, (100, 450, np.inf), legal, ace=(0.9, 0.8, None))
    assert [(row["bin"], row["n"], row["rate"]) for row in rows] == [
        ("0-100", 2, 0.5),
        ("100-450", 2, 1.0),
        ("450+", 2, 0.5),
    ]
    assert [row["ace"] for row in rows] == [0.9, 0.8, None]


def test_evaluation_of_a_file_names_the_bad_row_or_leaves_it_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where banks are kept
    file = tmp_path / "balls.csv"
    file.write_text("\n".join([COLUMNS, RALLY, TOO_FAST, RALLY]))
    config = AceEvaluate(policy=str(ace_demo.BUNDLE), balls=str(file), json=True)
    with pytest.raises(UserError, match=r"balls\.csv row 3: speed 45\.0 m/s, at most 40"):
        ace_evaluate.main(config)
    capsys.readouterr()
    figure = tmp_path / "rates.png"
    config = AceEvaluate(
        policy=str(ace_demo.BUNDLE),
        balls=str(file),
        json=True,
        skip_invalid=True,
        figure=str(figure),
    )
    assert ace_evaluate.main(config) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["balls"] == 2 == sum(result["outcomes"].values())
    assert len(result["velocity_limit_use"]) == 8
    assert result["by_speed"][2]["n"] == 2 and result["by_spin"][2]["n"] == 2
    assert figure.read_bytes().startswith(PNG)


def test_demo_plays_the_committed_policy_and_leaves_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ace_demo.main(ace_demo.AceDemo(num_balls=16, out=str(tmp_path / "demo"))) == 0
    printed = capsys.readouterr().out
    assert "returned: 0." in printed or "returned: 1." in printed
    names = ("exchange", "landing_map", "return_rates")
    for name in names:
        assert (tmp_path / "demo" / f"{name}.png").read_bytes().startswith(PNG)
    assert "<canvas" in (tmp_path / "demo" / "replay.html").read_text(encoding="utf-8")


def test_every_ablation_changes_what_it_says_and_nothing_else():
    base = ace_ablations.run_config(ace_ablations.AceAblations(), "full", 100)
    changed = {}
    for name in ace_ablations.VARIANTS:
        made = ace_ablations.run_config(ace_ablations.AceAblations(), name, 100)
        flat, other = (flags.flatten(config) for config in (base, made))
        changed[name] = {key for key in flat if flat[key] != other[key]} - {"workdir"}
    assert changed == {
        "full": set(),
        "symmetric": {"agent.critic_obs", "agent.afterstate"},
        "no_filter": {"agent.actor_obs"},
        "no_afterstate": {"agent.afterstate"},
        "no_history": {"agent.actor_obs", "env.sensing.history"},
        "no_reconstruction": {"agent.reconstruct_obs"},
        "scalar": {"agent.num_quantiles"},
        "tables": {"train.tables"},
    }


def test_the_benchmark_asks_a_bundle_for_decisions(monkeypatch):
    monkeypatch.setattr(bench, "NUM_DECISIONS", 10)
    times = bench.decision_times(ace_demo.BUNDLE)
    assert 0 < times["median"] <= times["p99"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AceEvaluate(max_balls=-1), "max_balls must not be negative, got -1"),
        (
            lambda: ace_ablations.AceAblations(only=("half",)),
            "only must be among full, no_after",
        ),
        (lambda: ace_ablations.AceAblations(epochs=0), "epochs must be at least 1, got 0"),
        (lambda: bench.Bench(only=("speed",)), "only must be among start, learning, steps"),
    ],
)
def test_bad_settings_raise_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()
