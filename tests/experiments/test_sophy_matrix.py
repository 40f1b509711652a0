"""The matrix of cars and circuits, with the committed policy."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.errors import UserError
from core_rl.policy import load_policy
from experiments import sophy_matrix
from experiments.sophy_evaluate import env_config_of
from experiments.sophy_matrix import Matrix, main, picture
from projects.sophy.limits import Estimates
from projects.sophy.time_trial import TimeTrial

POLICY = "projects/sophy/policies/time_trial"


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    out = tmp_path_factory.mktemp("matrix")
    config = Matrix(POLICY, "gt3_fr,gt3_fr:3", "larkspur,thimble", str(out), batch=3)
    assert main(config) == 0
    return config, out


def rows(out: Path) -> dict[tuple[str, str], dict]:
    lines = (out / "cells.jsonl").read_text().splitlines()
    cells = [json.loads(line) for line in lines]
    return {(cell["car"], cell["circuit"]): cell for cell in cells}


def test_every_cell_is_driven_and_measured(driven):
    _, out = driven
    cells = rows(out)
    assert len(cells) == 4
    own = cells["gt3_fr", "larkspur"]
    # The policy's flying laps take less than 1.06 of the limit of 69.338 s (docs/benchmarks.md).
    assert own["clean"] and not own["estimated"]
    assert 69.338 < own["lap_time"] < 1.06 * 69.338
    assert own["ratio_to_limit"] == pytest.approx(own["lap_time"] / 69.3382, abs=1e-3)
    # The reference is 82.913 s (tests/sophy/test_reference.py drives its kind).
    assert own["ratio_to_reference"] == pytest.approx(own["lap_time"] / 82.913, abs=1e-3)
    variation = cells["gt3_fr:3", "larkspur"]
    assert (
        variation["estimated"]
        and 0.9 < variation["lap_time"] / variation["ratio_to_limit"] / 69.338 < 1.1
    )
    assert (out / "matrix.png").stat().st_size > 2_000


def test_a_run_that_was_cut_off_drives_what_is_missing(driven, monkeypatch):
    config, out = driven
    before = rows(out)
    path = out / "cells.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    todo = []
    drive = sophy_matrix.drive_cells

    def watched(*args):
        todo.extend(args[3])
        return drive(*args)

    monkeypatch.setattr(sophy_matrix, "drive_cells", watched)
    assert main(config) == 0
    assert len(todo) == 1 and rows(out) == before


def test_another_policy_and_wrong_names_are_refused_in_one_line(driven, tmp_path):
    config, out = driven
    path = tmp_path / "cells.jsonl"
    path.write_text((out / "cells.jsonl").read_text().replace('"policy": "', '"policy": "x'))
    other = dataclasses.replace(config, out=str(tmp_path))
    with pytest.raises(UserError, match="another policy's cells"):
        main(other)
    with pytest.raises(UserError, match="unknown car 'gt4'"):
        main(dataclasses.replace(config, cars="gt4"))
    with pytest.raises(UserError, match="unknown circuit 'larkspurr'"):
        main(dataclasses.replace(config, circuits="larkspurr"))
    with pytest.raises(UserError, match="there is no such file"):
        main(dataclasses.replace(config, out=str(tmp_path / "new"), limits="none.jsonl"))
    with pytest.raises(UserError, match="--policy=DIR is missing"):
        main(Matrix())


def test_a_lap_below_the_limit_is_told_loudly(tmp_path, monkeypatch, capsys):
    def too_slow(names, compounds, stack, table):
        return Estimates(np.full((2, 1), 200.0), np.array([[200.0], [0.0]]))

    monkeypatch.setattr(sophy_matrix, "estimate_limits", too_slow)
    # Of the car itself, whose limit is known; that of the variation is an estimate.
    config = Matrix(POLICY, "gt3_fr,gt3_fr:3", "larkspur", str(tmp_path), batch=3)
    assert main(config) == 3
    told = capsys.readouterr().err
    assert told.count("FASTER THAN THE LIMIT") == 1 and "optimal control found 200.000 s" in told
    # And again where nothing is left to drive.
    assert main(config) == 3
    assert capsys.readouterr().err.count("FASTER THAN THE LIMIT") == 1


def test_finished_cells_are_measured_by_the_table_of_today(driven, tmp_path, capsys):
    config, out = driven
    (tmp_path / "cells.jsonl").write_text((out / "cells.jsonl").read_text())
    (tmp_path / "none.jsonl").write_text("")
    for limits, known in (("", True), (str(tmp_path / "none.jsonl"), False)):
        again = dataclasses.replace(config, out=str(tmp_path), limits=limits, json=True)
        assert main(again) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["median_ratio_to_limit"] is not None) == known


def test_what_others_of_a_batch_need_changes_nothing(monkeypatch):
    """A car that swerves for ever is late at the same step beside a longer lap."""
    monkeypatch.setattr(sophy_matrix, "RUN_UP", (0.01, 5.0))
    policy = load_policy(Path(POLICY))
    env = TimeTrial(env_config_of(policy, "thimble,larkspur", "gt3_fr"))
    swerving = SimpleNamespace(apply=lambda params, obs: jnp.array([1.0, 0.3]))
    drive = sophy_matrix.make_batch_driver(env, swerving)  # pyright: ignore[reportArgumentType]
    alone, beside = (
        drive(None, jnp.array(circuits), jnp.zeros(2, jnp.int32)) for circuits in ([0, 0], [0, 1])
    )
    assert alone.off_course_steps[0] > 0 and alone.lap_time[0] == 0.0
    assert alone.off_course_steps[0] == beside.off_course_steps[0]


def test_a_damaged_line_is_refused_and_nothing_deleted(driven, tmp_path):
    config, out = driven
    path = tmp_path / "cells.jsonl"
    lines = (out / "cells.jsonl").read_text().splitlines()
    text = "\n".join([lines[0], lines[1][:20], *lines[2:], ""])
    path.write_text(text)
    with pytest.raises(UserError, match="line 2 is not a JSON object"):
        main(dataclasses.replace(config, out=str(tmp_path)))
    assert path.read_text() == text


def test_the_picture_shows_medians_by_archetype():
    cells = [
        {
            "car": f"kart:{k}",
            "circuit": "thimble",
            "ratio_to_reference": ratio,
            "ratio_to_limit": None,
            "clean": clean,
        }
        for k, (ratio, clean) in enumerate([(1.0, True), (1.1, False), (1.5, True), (None, False)])
    ]
    figure = picture(cells)
    texts = [text.get_text() for axes in figure.axes[:2] for text in axes.texts]
    assert texts == ["1.10", "50"]
