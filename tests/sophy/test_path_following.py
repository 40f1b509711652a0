"""The hand that follows the racing line: it laps without a driver, and obeys one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy.path_following import LineConfig
from projects.sophy.time_trial import TimeTrial, TimeTrialConfig

CONFIG = TimeTrialConfig(
    circuit="larkspur",
    car="gt3_fr,roadster_fr,f1_tum",
    steering="line",
    traction_control=True,
    antilock=True,
)


@pytest.fixture(scope="module")
def env():
    return TimeTrial(CONFIG)


def drive(env, action, car, circuit, *, share=0.0, speed=0.7, steps=1, s=0.0):
    """Metrics [steps, N] and end of cars [N] that do one and the same `action` [2]."""

    def one(car, circuit):
        state = env.start(circuit, car, jnp.float32(s), jnp.float32(share), jnp.float32(speed))

        def step(state, _):
            state = env.step(state, action)
            return state, state.metrics

        return jax.lax.scan(step, state, None, length=steps)

    end, metrics = jax.jit(jax.vmap(one))(jnp.asarray(list(car)), jnp.asarray(circuit))
    return end.pipeline_state, jax.tree.map(lambda leaf: np.asarray(leaf).T, metrics)


def test_without_a_driver_it_laps_cleanly(env):
    _, metrics = drive(env, jnp.zeros(2), range(3), [0] * 3, steps=2700)
    assert not metrics["off_course_steps"].any()
    assert not metrics["wall_contact_steps"].any()
    laps = metrics["lap_seconds"].max(axis=0)
    line = np.mean(1.0 / np.asarray(env.lines.speed[:, 0]), axis=1) * float(env.tracks.length[0])
    # Asked for 0.85 of the line's speed, which it cannot have everywhere.
    assert np.all((laps / line > 1.1) & (laps / line < 1.3)), laps / line


def test_hurry_is_faster_and_a_swerve_goes_to_its_side(env):
    one = [0]
    ends = {
        name: drive(env, jnp.array(action), one, one, s=600.0, speed=1.0, steps=8)[0]
        for name, action in {
            "still": (0.0, 0.0),
            "hurry": (0.0, 1.0),
            "dawdle": (0.0, -1.0),
            "left": (0.15, 0.0),
            "right": (-0.15, 0.0),
        }.items()
    }
    speed = {name: float(end.motion.velocity[0, 0]) for name, end in ends.items()}
    assert speed["dawdle"] < speed["still"] - 1.0 < speed["hurry"] - 1.0
    offset = {name: float(end.placement.offset[0]) for name, end in ends.items()}
    assert offset["right"] < offset["still"] - 0.1 < offset["left"] - 0.2


def test_a_full_swerve_towards_the_line_uses_all_the_grip(env):
    # Where the way back to the line is a gentle one, which is not so before every corner.
    for share in (-0.8, 0.8):
        end, _ = drive(env, jnp.array([-np.sign(share), 0.0]), [0], [0], share=share, s=900.0)
        axle = np.abs(np.asarray(end.motion.slip_angle[0, :2])).mean()
        calm, _ = drive(env, jnp.array([0.0, 0.0]), [0], [0], share=share, s=900.0)
        assert axle > 2.0 * np.abs(np.asarray(calm.motion.slip_angle[0, :2])).mean()


def test_the_hand_corrects_several_times_per_decision_where_sub_steps_allow():
    assert CONFIG.corrections == 5
    assert dataclasses.replace(CONFIG, substeps=4).corrections == 1
    assert dataclasses.replace(CONFIG, steering="delta").corrections == 1


def test_what_actions_mean_must_be_positive():
    with pytest.raises(ValueError, match="swerve must be positive, got 0"):
        LineConfig(swerve=0.0)
