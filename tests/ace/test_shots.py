"""Incoming balls: the fitted models, files of states, and what is refused."""

import numpy as np
import pytest

from core_rl.errors import UserError
from projects.ace.incoming import COARSE_STEP, legal_states, make_flights
from projects.ace.shots import COLUMNS, draw_shots, read_states, shot_states


# The models' component means (no normals, first component), as published with the fits.
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("rally", (1.724, -0.063, 0.245, -11.663, 0.773, 1.601, -21.5, -315.0, 51.3)),
        ("serve", (1.721, -0.575, 0.220, -7.393, 1.088, -1.233, -66.7, 41.7, -187.0)),
    ],
)
def test_component_means_are_those_of_the_fit(kind, expected):
    state = shot_states(kind, np.array([0]), np.zeros((1, 9)), 1.0)[0]
    np.testing.assert_allclose(state[:6], expected[:6], atol=6e-4)
    np.testing.assert_allclose(state[6:], expected[6:], atol=6e-2)


@pytest.fixture(scope="module")
def flights():
    return make_flights("conti", time_step=COARSE_STEP)


@pytest.mark.parametrize(
    ("kind", "speed", "spin"),
    # Quantiles 25, 50, 75 % of the fitted record (rally); of the states behind `slow`, the median.
    [("rally", (6.6, 10.4, 14.1), (210, 314, 495)), ("slow", (None, 5.4, None), (None, 55, None))],
)
def test_drawn_shots_are_legal_and_spread_like_the_record(flights, kind, speed, spin):
    shots = draw_shots(np.random.default_rng(3), 400, kind, legal_states(flights, kind))
    assert flights(shots, np.zeros(400, bool)).legal.all()
    for values, expected in (
        (np.linalg.norm(shots[:, 3:6], axis=1), speed),
        (np.linalg.norm(shots[:, 6:], axis=1), spin),
    ):
        for found, quantile in zip(np.percentile(values, [25, 50, 75]), expected, strict=True):
            # 400 draws: the quantiles of the record's spread are known to about 10 %.
            assert quantile is None or found == pytest.approx(quantile, rel=0.15)


def test_drawn_serves_touch_the_servers_half_first(flights):
    shots = draw_shots(np.random.default_rng(3), 64, "serve", legal_states(flights, "serve"))
    assert flights(shots, np.ones(64, bool)).legal.all()
    assert not flights(shots, np.zeros(64, bool)).legal.any()


def test_same_generator_same_shots(flights):
    draw = lambda seed: draw_shots(  # noqa: E731
        np.random.default_rng(seed), 32, "rally", legal_states(flights, "rally")
    )
    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).all(axis=1).all()


GOOD = "1.7,0,0.25,-11,0.5,1.6,0,-300,0"


HEADER = ",".join(COLUMNS)


def write(tmp_path, *rows, header=HEADER):
    path = tmp_path / "balls.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_states_are_read_whatever_else_is_in_the_file(tmp_path):
    header = "id," + ",".join(reversed(COLUMNS))
    row = "7," + ",".join(reversed(GOOD.split(",")))
    states = read_states(write(tmp_path, row, header=header))
    np.testing.assert_array_equal(states.values, [[float(cell) for cell in GOOD.split(",")]])
    assert states.skipped == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("1.7,0,0.25,-41,0.5,1.6,0,-300,0", "speed 41.0 m/s, at most 40"),
        ("1.7,0,0.25,-11,0.5,1.6,0,-1201,0", "spin 1201 rad/s, at most 1200"),
        ("1.7,0,nan,-11,0.5,1.6,0,-300,0", "z must be a finite number"),
        ("1.7,0,high,-11,0.5,1.6,0,-300,0", "z is 'high', not a number"),
        ("1.7,0,0.25", "vx is '', not a number"),
    ],
)
def test_a_bad_row_is_named_or_skipped(tmp_path, bad, words):
    path = write(tmp_path, GOOD, bad, GOOD)
    with pytest.raises(UserError) as error:
        read_states(path)
    assert f"row 3: {words}" in str(error.value) and "\n" not in str(error.value)
    states = read_states(path, skip_invalid=True)
    assert len(states.values) == 2 and len(states.skipped) == 1
    assert f"row 3: {words}" in states.skipped[0]


def test_files_without_a_usable_ball_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_states(tmp_path / "missing.csv")
    with pytest.raises(UserError, match="column 'wz' is missing"):
        read_states(write(tmp_path, GOOD, header=",".join(COLUMNS[:-1])))
    with pytest.raises(UserError, match="no ball below"):
        read_states(write(tmp_path))
    with pytest.raises(UserError, match="no ball of the file"):
        read_states(write(tmp_path, GOOD.replace("-11", "-99")), skip_invalid=True)
