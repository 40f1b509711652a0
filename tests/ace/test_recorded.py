"""Readers and fits of recorded balls, on balls whose truth is known."""

import numpy as np
import pytest

from core_rl.errors import UserError
from projects.ace.recorded import (
    _fly,
    fit_bounce,
    fit_flight,
    read_deepmind_states,
    read_match_events,
    read_trajectories,
)

BOUNCE = np.array([1.6, 0.02, 0.76])  # where the launcher's balls bounce, from its own origin [m]
ARRIVING, LEAVING = np.array([3.8, 0.1, -2.9]), np.array([2.5, 0.08, 2.668])  # e = 0.92


def trajectory(noise: float = 0.001, lift: float = 0.1) -> np.ndarray:
    """A tracked ball [T, 4] at 180 Hz with a bounce at 0.35 s."""
    time = np.arange(0.0, 0.7, 1 / 180) - 0.35
    before, after = time < 0, time >= 0
    places = np.empty((len(time), 3))
    backwards = time[before][::-1]
    places[before] = _fly(backwards, np.concatenate([BOUNCE, ARRIVING]), 0.45, lift)[::-1]
    places[after] = _fly(time[after], np.concatenate([BOUNCE, LEAVING]), 0.47, 0.0)
    places += np.random.default_rng(0).normal(scale=noise, size=places.shape)
    return np.column_stack([time + 3.0, places])


def test_a_bounce_is_found_with_its_velocities():
    pair = fit_bounce(trajectory(), lift=False)
    assert pair is not None
    before, after = pair
    np.testing.assert_allclose(before.velocity, ARRIVING, atol=0.04)
    np.testing.assert_allclose(after.velocity, LEAVING, atol=0.04)
    assert -after.velocity[2] / before.velocity[2] == pytest.approx(0.92, abs=0.01)
    assert before.rms == pytest.approx(0.001 * 3**0.5, rel=0.2)


def test_fitted_drag_and_lift_are_those_flown():
    time = np.linspace(0.0, 0.5, 80)
    places = _fly(time, np.array([0.0, 0.0, 1.0, 6.0, 0.5, 2.0]), 0.5, 0.2)
    fit = fit_flight(np.column_stack([time, places]))
    assert fit.drag == pytest.approx(0.5, abs=0.01) and fit.lift == pytest.approx(0.2, abs=0.01)
    flat = _fly(time, np.array([0.0, 0.0, 1.0, 6.0, 0.5, 2.0]), 0.5, 0.0)
    assert places[-1, 2] > flat[-1, 2]  # positive lift is upwards


def test_a_ball_without_a_bounce_is_none():
    assert fit_bounce(trajectory()[:50], lift=False) is None


def test_recorded_states_are_turned_towards_the_robot(tmp_path):
    path = tmp_path / "states.csv"
    path.write_text(
        "id,a,b,c,d,e,f,g,h,i\n1,.1,1.2,.4,.5,-5,2,30,-10,5\n2,.1,-1.2,.4,.5,5,2,30,-10,5\n"
    )
    states = read_deepmind_states(path)
    np.testing.assert_allclose(states[0], [1.2, -0.1, 0.4, -5, -0.5, 2, -10, -30, 5])
    np.testing.assert_allclose(states[1], [1.2, 0.1, 0.4, -5, 0.5, 2, 10, 30, 5])


def test_match_events_are_read_in_any_brackets(tmp_path):
    path = tmp_path / "match.csv"
    path.write_text(
        "player_id,rally_id,type,timestamp,ball_pos,ball_vel_out,ball_spin_out\n"
        'a,7,shot,1.5,"[1.0, -2e-1, 0.3]","(1 2 3)","[10.5, 0, -3]"\n'
        'a,7,bounce,1.9,"[0.5, 0, 0.02]",,\n'
    )
    events = read_match_events(path)
    np.testing.assert_allclose(events.position[0], [1.0, -0.2, 0.3])
    np.testing.assert_allclose(events.velocity[0], [1, 2, 3])
    assert np.isnan(events.velocity[1]).all() and list(events.kind) == ["shot", "bounce"]


@pytest.mark.parametrize("read", [read_deepmind_states, read_trajectories, read_match_events])
def test_unreadable_files_give_one_line(read, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("a,b\n1,x\n")
    for path in (tmp_path / "missing.csv", bad):
        with pytest.raises(UserError) as error:
            read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
