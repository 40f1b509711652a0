"""Scripted drivers: every level laps cleanly, the stronger the faster, and minds another one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy.drivers import LEVELS, Level, level_of, scripted_actions
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


def test_the_stronger_gets_past_the_weaker_and_equals_follow(env):
    duo = RaceEnv(RaceConfig(solo=env.config.solo, num_cars=2, laps=0))
    # The second driver starts 15 m behind: an expert behind a beginner, two experts.
    skills = jnp.array([[0.0, 1.0], [1.0, 1.0]])
    two = jnp.ones(2)
    start = duo.start(
        jnp.int32(0), two > 0.0, jnp.zeros(()), jnp.array([-30.0, -45.0]), 0.0 * two, 0.6 * two
    )

    @jax.jit
    @jax.vmap
    def drive(skill):
        def step(state, _):
            state = duo.step(state, scripted_actions(duo, state.pipeline_state, level_of(skill)))
            race = state.pipeline_state
            lead = race.distance[0] - race.distance[1]
            offset = race.drives.placement.offset
            return state, (lead, offset[0] - offset[1], state.metrics["contact_steps"].sum())

        return jax.lax.scan(step, start, None, length=500)[1]

    lead, beside, contact = (np.asarray(values) for values in drive(skills))
    assert not contact.any()
    assert lead[0, -1] < -30.0  # past, and away
    # Level with the other, there was a car's width and room between the two.
    level = np.abs(lead[0]) < 3.0
    width = float(duo.solo.cars.width[0])
    assert level.any() and (np.abs(beside[0, level]) > width).all()
    # Of two equals the second stays behind the first, and no nearer than a car's length.
    assert (lead[1] > float(duo.solo.cars.length[0])).all()
