"""The reward terms of racing, on moments made by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy.circuits import load_circuit
from projects.sophy.race_env import RaceConfig, RaceEnv
from projects.sophy.race_reward import PRESETS, RaceRewardConfig, race_reward_terms
from projects.sophy.time_trial import TimeTrialConfig

LENGTH = float(load_circuit("copperbowl").length)


@pytest.fixture(scope="module")
def calm():
    """Three cars, 10 m and then 45 m behind one another, at the end of a step that changed
    nothing."""
    solo = TimeTrialConfig(circuit="copperbowl", steering="delta")
    env = RaceEnv(RaceConfig(solo=solo, num_cars=3))
    state = env.start(
        jnp.int32(0),
        jnp.ones(3, bool),
        jnp.zeros(()),
        jnp.array([100.0, 90.0, 45.0]),
        jnp.zeros(3),
        jnp.full(3, 0.5),
    )
    return env, state.pipeline_state


def terms(env, before, after):
    result = race_reward_terms(env.solo.track, before, after, 0.1)
    return {name: np.asarray(values) for name, values in result.items()}


def moved(race, way):
    s = (race.drives.s + jnp.asarray(way)) % LENGTH
    return dataclasses.replace(race, drives=dataclasses.replace(race.drives, s=s))


def met(race, first=0, second=1):
    """As if two cars had touched."""
    contact = race.meetings.contact.at[first, second].set(0.2)
    return dataclasses.replace(race, meetings=dataclasses.replace(race.meetings, contact=contact))


def driving(race, velocity, heading=0.0):
    """As if the cars had velocities [M, 2] in their own frames."""
    motion = dataclasses.replace(
        race.drives.motion,
        velocity=jnp.asarray(velocity),
        heading=jnp.broadcast_to(jnp.asarray(heading), 3),
    )
    return dataclasses.replace(race, drives=dataclasses.replace(race.drives, motion=motion))


def test_nothing_happened_is_worth_nothing(calm):
    env, race = calm
    for name, values in terms(env, race, race).items():
        assert not values.any(), name


def test_passing_counts_relative_progress_on_cars_nearby(calm):
    env, race = calm
    # Car 1 gains 3 m on car 0, 10 m ahead. Car 2, 45 m behind car 1, loses 1 m to car 1 and gains
    # 2 m on car 0; it is out of the window on both sides.
    found = terms(env, race, moved(race, [2.0, 5.0, 4.0]))["passing"]
    np.testing.assert_allclose(found, [-3.0, 3.0, 0.0], atol=1e-3)
    # Passing looks 40 m ahead and 20 m behind, at either end of a step: 41 m behind car 1, then
    # 39; and back.
    near, nearer = moved(race, [0.0, 0.0, 4.0]), moved(race, [0.0, 0.0, 6.0])
    found = terms(env, near, nearer)["passing"]
    np.testing.assert_allclose(found, [0.0, 0.0, 2.0], atol=1e-3)
    found = terms(env, nearer, near)["passing"]
    np.testing.assert_allclose(found, [0.0, 0.0, -2.0], atol=1e-3)


def test_passing_is_the_same_across_the_line(calm):
    env, race = calm
    there = moved(race, LENGTH - 95.0)  # car 0 beyond the line, car 1 before it
    found = terms(env, there, moved(there, [2.0, 5.0, 4.0]))["passing"]
    np.testing.assert_allclose(found, [-3.0, 3.0, 0.0], atol=1e-2)


def test_a_collision_costs_both_and_a_rear_end_the_one_behind(calm):
    env, race = calm
    fast = driving(race, [[40.0, 0.0], [43.0, 4.0], [60.0, 0.0]])
    # Their speeds have evened out in the step.
    found = terms(env, fast, met(driving(race, [[41.5, 2.0]] * 3)))
    np.testing.assert_array_equal(found["any_collision"], [-1.0, -1.0, 0.0])
    # 5 m/s are 18 km/h, squared 324; car 0 is ahead.
    np.testing.assert_allclose(found["rear_end"], [0.0, -324.0, 0.0], rtol=1e-5)
    np.testing.assert_allclose(found["collision_speed"], [-25.0, -25.0, 0.0], rtol=1e-5)
    assert not found["unsporting"].any()
    # The same speeds in opposite directions.
    headon = driving(race, [[10.0, 0.0]] * 3, [0.0, jnp.pi, 0.0])
    found = terms(env, headon, met(headon))
    np.testing.assert_allclose(found["collision_speed"], [-400.0, -400.0, 0.0], rtol=1e-5)


def test_an_absent_car_has_no_part_in_it(calm):
    env, race = calm
    fast = driving(race, [[40.0, 0.0], [43.0, 4.0], [60.0, 0.0]])
    alone = dataclasses.replace(fast, present=jnp.array([True, False, True]))
    found = terms(env, alone, met(moved(alone, [2.0, 5.0, 4.0])))
    for name in ("passing", "any_collision", "rear_end", "collision_speed"):
        assert not found[name].any(), name


def test_who_is_at_fault_was_unsporting(calm):
    env, race = calm

    def charged(*faults):
        """By severity, of the last car."""
        record = race.stewarding.record
        record = record._replace(faults=record.faults.at[2].set(jnp.array(faults)))
        stewarding = dataclasses.replace(race.stewarding, record=record)
        return dataclasses.replace(race, stewarding=stewarding)

    found = terms(env, race, charged(1, 0, 0))
    np.testing.assert_array_equal(found["unsporting"], [0.0, 0.0, -1.0])
    assert not found["hard_fault"].any()  # it was light
    found = terms(env, race, charged(0, 0, 1))
    np.testing.assert_array_equal(found["unsporting"], [0.0, 0.0, -1.0])
    np.testing.assert_array_equal(found["hard_fault"], [0.0, 0.0, -1.0])
    # A light fault that becomes a hard one is no second fault; from medium to heavy costs nothing.
    found = terms(env, charged(1, 0, 0), charged(0, 1, 0))
    assert not found["unsporting"].any()
    np.testing.assert_array_equal(found["hard_fault"], [0.0, 0.0, -1.0])
    assert not terms(env, charged(0, 1, 0), charged(0, 0, 1))["hard_fault"].any()


def test_quick_reversals_of_the_steering_cost(calm):
    env, race = calm
    before = dataclasses.replace(race, steering_change=jnp.array([0.03, 0.03, 0.01]))
    after = dataclasses.replace(race, steering_change=jnp.array([-0.05, 0.05, -0.05]))
    found = terms(env, before, after)
    # Only the first turns back, and from no trifle: 1 / (1 + exp(-182.88 * 0.016)) = 0.949.
    np.testing.assert_allclose(found["steering_reversal"], [-0.949, 0.0, 0.0], atol=1e-3)


def test_time_off_course_and_at_a_wall_costs_by_speed(calm):
    env, race = calm
    share = jnp.array([0.5, 0.0, 1.0])
    drives = dataclasses.replace(race.drives, off_course=share, wall_contact=share[::-1])
    found = terms(env, race, dataclasses.replace(race, drives=drives))
    speed = np.asarray(race.drives.motion.velocity[:, 0])
    np.testing.assert_allclose(found["shortcut"], -0.1 * np.array([0.5, 0, 1]) * speed, rtol=1e-5)
    np.testing.assert_allclose(found["barrier"], -0.1 * np.array([1, 0, 0.5]) * speed, rtol=1e-5)


def test_presets_are_the_published_weights():
    # Wurman et al. 2022, Extended Data Table 1; Lee et al. 2025, section III-C.
    assert PRESETS["maggiore"] == RaceRewardConfig()
    seaside, sarthe, lee = (PRESETS[name] for name in ("seaside", "sarthe", "lee_2025"))
    assert (seaside.any_collision, seaside.rear_end, seaside.passing) == (5.0, 0.1, 0.5)
    assert (sarthe.off_course_squared, sarthe.off_course_linear, sarthe.unsporting) == (0, 5, 5)
    assert (lee.shortcut, lee.barrier, lee.collision_speed, lee.any_collision) == (10, 20, 0.5, 6)
    assert (lee.passing, lee.steering_change, lee.steering_reversal) == (3.0, 0.5, 5.0)
