"""Scripted drivers, alone on the road: every level laps cleanly, the stronger the faster."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy.drivers import LEVELS, Level, scripted_actions
from projects.sophy.race_env import RaceConfig, RaceEnv
from projects.sophy.time_trial import TimeTrialConfig


@pytest.fixture(scope="module")
def env():
    solo = TimeTrialConfig(
        circuit="larkspur", steering="line", substeps=10, traction_control=True, antilock=True
    )
    return RaceEnv(RaceConfig(solo=solo, num_cars=1, laps=0))


def test_every_level_laps_cleanly_and_the_stronger_the_faster(env):
    levels = Level(
        *(jnp.asarray(values, jnp.float32) for values in zip(*LEVELS.values(), strict=True))
    )
    place, one = jnp.array([-30.0]), jnp.ones(1)
    start = env.start(
        jnp.int32(0), jnp.ones(1, bool), jnp.zeros(()), place, jnp.zeros(1), 0.6 * one
    )

    @jax.jit
    @jax.vmap
    def drive(level):
        level = jax.tree.map(lambda leaf: leaf[None], level)

        def step(state, _):
            action = scripted_actions(env, state.pipeline_state, level)
            state = env.step(state, action)
            lap_time = state.pipeline_state.drives.lap_time[0]
            return state, (lap_time, state.metrics["off_course_steps"][0])

        return jax.lax.scan(step, start, None, length=1250)[1]

    lap_times, off_course = (np.asarray(values) for values in drive(levels))
    assert not off_course.any()
    laps = np.array([times[times > 0.0][0] for times in lap_times])
    assert (np.diff(laps) < 0.0).all()
    reference = float(env.solo.reference.lap_time)
    assert laps[0] / reference > 1.1
    assert laps[-1] / reference < 1.05
