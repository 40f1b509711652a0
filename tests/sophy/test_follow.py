"""Driving a given lap in the simulator: what is learnt, its derivatives, what counts as a lap."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy import follow
from projects.sophy.cars import load_car
from projects.sophy.circuits.outline import Corner, draw
from projects.sophy.first_guess import first_guess, smooth_line
from projects.sophy.track import NUM_NODES, wrap_difference


@pytest.fixture(scope="module")
def lap():
    """A car, a rounded triangle of about 500 m and the quasi-steady lap on a smooth line."""
    corners = [
        Corner(130.0, 0.0, 25.0, 10.0),
        Corner(130.0, 150.0, 25.0, 10.0),
        Corner(-60.0, 30.0, 25.0, 10.0),
    ]
    car, track = load_car("gt3_fr"), draw(corners, 5.0)
    plain = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), car)
    states, controls = first_guess(
        plain, track, smooth_line(track, float(np.max(np.abs(plain.wheel_y))))
    )
    s = np.arange(NUM_NODES) * float(track.length) / NUM_NODES
    return car, track, follow.Line(s, states, controls[:, 1])


def planned(lap, **changes):
    car, track, line = lap
    return follow._planned(car, track, follow._table(track, line._replace(**changes)))


def shifted(line, offset):
    states = line.states.copy()
    states[:, 3] += offset
    return states


def test_a_lap_is_driven_at_its_own_speed(lap, monkeypatch):
    car, track, line = lap
    monkeypatch.setattr(follow, "RUN_UP", 3.0)
    monkeypatch.setattr(follow, "SHARE_STEP", 0.025)
    monkeypatch.setattr(follow, "MOST_RUNS", 20)
    asked = follow._judge(car, track, line, planned(lap)).lap_time
    followed = follow.follow(car, track, line)
    # `LAST_SHARE` of its speed, but for what its corners do not allow.
    assert asked / follow.LAST_SHARE * 0.999 < followed.lap_time < asked * 1.005
    assert followed.wheels_out == 0
    assert followed.off_line < 0.5


def test_derivatives_hold_at_equal_arc_lengths(lap):
    car, track, line = lap
    run = planned(lap)
    table = follow._table(track, line)
    drift, bend, residual = jax.jit(follow._linearised)(car, track, table, run)
    assert np.all(np.isfinite(drift)) and np.all(np.isfinite(bend))
    assert residual.shape == bend.shape[:2]
    k = 300
    state, s = jax.tree.map(lambda leaf: leaf[k], (run.states, run.s))

    @jax.jit
    def ahead(change):
        moved = follow._moved(car, track, state, s, change)
        later, there = follow._advance(car, track, moved, s, run.controls[k])
        return follow._coordinates(car, track, later, there), there

    plain, here = ahead(np.zeros(16))
    x = jax.jit(jax.vmap(partial(follow._coordinates, car, track)))(run.states, run.s)
    slope = follow._slope(track, run.s, x)[1][k + 1]
    # A faster car is further on after the same time: its yaw rate is that of the line there.
    for index, size in ((0, 0.1), (2, 0.3), (4, 0.02)):
        change = np.zeros(16)
        change[index] = size
        later, there = ahead(change)
        seen = later - plain - slope * wrap_difference(track, there, here)
        assert seen[:5] == pytest.approx(
            np.asarray(drift[k, :5, index] * size), abs=0.03 * size + 1e-3
        )


def test_the_first_coordinates_are_those_of_the_line(lap):
    car, track, line = lap
    run = planned(lap)
    seen = jax.vmap(partial(follow._coordinates, car, track))(run.states, run.s)
    length = float(track.length)
    for index, state in enumerate((3, 4, 0, 1, 2)):
        asked = np.interp(np.asarray(run.s), line.s, line.states[:, state], period=length)
        np.testing.assert_allclose(seen[:, index], asked, atol=0.1)
    state, s = jax.tree.map(lambda leaf: leaf[100], (run.states, run.s))
    moved = follow._moved(car, track, state, s, jnp.asarray(follow.SMALL))
    change = follow._coordinates(car, track, moved, s) - seen[100]
    np.testing.assert_allclose(change, follow.SMALL, atol=2e-3)


def test_what_is_no_lap_by_the_rules_is_told(lap):
    car, track, line = lap
    inside = follow._judge(car, track, line, planned(lap))
    assert inside.wheels_out == 0 and inside.off_line < 0.05
    # Roads are 10 m wide, walls 5 m away from them.
    outside = follow._judge(car, track, line, planned(lap, states=shifted(line, 8.0)))
    assert outside.wheels_out >= 2 and outside.off_line == pytest.approx(8.0, abs=0.05)
    walled = follow._judge(car, track, line, planned(lap, states=shifted(line, 14.0)))
    assert np.isnan(walled.lap_time)
    short = planned(lap)
    stopped = dataclasses.replace(short.states, velocity=0.0 * short.states.velocity)
    half = short._replace(states=stopped, s=jnp.full_like(short.s, short.s[0]))
    assert np.isnan(follow._judge(car, track, line, half).lap_time)
