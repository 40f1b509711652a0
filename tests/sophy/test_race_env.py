"""Races: slots and masks, wakes, legs of a figure of eight, starts, laps and classification."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.env import State
from core_rl.errors import UserError
from projects.sophy import race
from projects.sophy import track as tracks
from projects.sophy.circuits import load_circuit
from projects.sophy.race_env import (
    OpponentsConfig,
    RaceConfig,
    RaceEnv,
    braking_need,
    classification,
    opponents,
)
from projects.sophy.stewards import REASONS
from projects.sophy.time_trial import TimeTrialConfig

SOLO = TimeTrialConfig(circuit="copperbowl,ribbon", steering="delta")
COPPERBOWL, RIBBON = jnp.int32(0), jnp.int32(1)


class Raced(NamedTuple):
    """An environment, compiled once."""

    env: RaceEnv
    start: Callable[..., State]
    step: Callable[[State, jax.Array], State]

    def drive(self, state, actions):
        """States [T, ...] under actions [T, M, 2]."""
        states = []
        for action in actions:
            state = self.step(state, action)
            states.append(state)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def place(self, distance, *, present=None, share=0.0, speed=0.5, circuit=COPPERBOWL):
        """Cars at ways [M] [m] from the line."""
        num = self.env.num_agents
        present = jnp.ones(num, bool) if present is None else jnp.asarray(present)
        values = (jnp.broadcast_to(jnp.float32(value), num) for value in (distance, share, speed))
        return self.start(circuit, present, jnp.zeros(()), *values)


def compiled(**changes):
    env = RaceEnv(RaceConfig(solo=SOLO, **changes))
    return Raced(env, jax.jit(env.start), jax.jit(env.step))


@pytest.fixture(scope="module")
def four():
    return compiled(num_cars=4, laps=1)


@pytest.fixture(scope="module")
def twenty():
    return compiled(num_cars=20, laps=1)


def wild_actions(num_steps, num_cars, seed=0):
    random = np.random.default_rng(seed)
    actions = random.uniform(-1.0, 1.0, (num_steps, num_cars, 2))
    actions[..., 0] *= 0.3
    actions[..., 1] = 0.3 + 0.7 * actions[..., 1]
    return jnp.asarray(actions, jnp.float32)


def close_start(raced, present=None):
    """Nose to tail in two columns, 20 cm apart."""
    place = jnp.arange(raced.env.num_agents)
    share = 0.4 * jnp.where(place % 2 == 0, 1.0, -1.0)
    return raced.place(-4.8 * (1.0 + place), present=present, share=share)


@pytest.fixture(scope="module")
def bumps(four):
    """Four cars that bump into each other for three seconds."""
    return four.drive(close_start(four), wild_actions(30, 4))


def test_twenty_slots_with_four_cars_are_the_race_of_four(bumps, twenty):
    actions = jnp.concatenate([wild_actions(30, 4), wild_actions(30, 16, 1)], axis=1)
    crowd = twenty.drive(close_start(twenty, jnp.arange(20) < 4), actions)
    assert float(bumps.metrics["contact_steps"].sum()) > 3.0
    for name in ("position", "velocity", "yaw_rate", "heading"):
        ours = getattr(bumps.pipeline_state.drives.motion, name)
        theirs = getattr(crowd.pipeline_state.drives.motion, name)[:, :4]
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(bumps.reward, crowd.reward[:, :4], atol=1e-2)
    seen = bumps.obs["opponents"]
    np.testing.assert_allclose(seen, crowd.obs["opponents"][:, :4], atol=1e-2)
    assert not np.asarray(crowd.reward[:, 4:]).any()
    assert not np.asarray(crowd.obs["opponents"][:, 4:]).any()


def test_a_step_keeps_the_state_s_types(four):
    state = close_start(four)
    after = jax.eval_shape(four.env.step, state, jnp.zeros((4, 2)))
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, after)


def test_the_same_race_twice_is_the_same_to_the_bit(bumps, four):
    again = four.drive(close_start(four), wild_actions(30, 4))
    for ours, theirs in zip(jax.tree.leaves(bumps), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_without_contact_and_walls_nobody_touches_anything():
    ghosts = compiled(num_cars=2, contact=False, slipstream=False, walls=False)
    states = ghosts.drive(ghosts.place([10.0, 8.0], share=3.0), jnp.zeros((2, 2, 2)))
    assert float(states.metrics["contact_steps"].sum()) == 0.0
    assert float(states.metrics["wall_contact_steps"].sum()) == 0.0
    assert float(states.metrics["off_course_steps"].sum()) == 4.0


def test_cars_on_two_legs_of_a_figure_of_eight_do_not_meet(four):
    # Where ribbon crosses itself, two places of the lap are one place on the map.
    track = load_circuit("ribbon")
    length = float(track.length)
    s = np.arange(2048) * length / 2048
    places = np.asarray(jax.vmap(lambda at: tracks.at(track, at).position)(jnp.asarray(s)))
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    way = np.abs(s[:, None] - s[None])
    apart[np.minimum(way, length - way) < 100.0] = np.inf
    one, other = np.unravel_index(np.argmin(apart), apart.shape)
    assert apart[one, other] < 2.0

    def contacts(distance):
        state = four.place(distance, present=[True, True, False, False], circuit=RIBBON)
        return float(four.step(state, jnp.zeros((4, 2))).metrics["contact_steps"].sum())

    assert contacts([s[one], s[other], 0.0, 10.0]) == 0.0
    # On one leg, as near, they do.
    assert contacts([s[one], s[one] + 2.0, 0.0, 10.0]) == 2.0


def test_a_fast_car_meets_one_that_stands_within_a_step(four):
    state = four.place([20.0, 32.4, 0.0, 0.0], present=[True, True, False, False], speed=0.0)
    begun = state.pipeline_state
    motion = begun.drives.motion
    fast = dataclasses.replace(motion, velocity=motion.velocity.at[0, 0].set(90.0))
    drives = dataclasses.replace(begun.drives, motion=fast)
    state = state.replace(pipeline_state=dataclasses.replace(begun, drives=drives))
    assert float(four.step(state, jnp.zeros((4, 2))).metrics["contact_steps"].sum()) == 2.0


def test_a_wake_takes_from_who_drives_in_it(four):
    # On copperbowl's straight: two in line, the third beside the first, the fourth far off.
    env, straight = four.env, 30.0
    car, track = env.solo.car, env.solo.track_of(COPPERBOWL)
    ahead = straight + float(car.length) + 10.0
    state = four.place([ahead, straight, ahead, 600.0], share=[0.0, 0.0, 0.9, 0.0])
    drives = state.pipeline_state.drives
    left = race.in_wake(track, drives, jnp.ones(4, bool))
    # 10 m from tail to nose, straight behind: 1 - 0.30 exp(-10 / 20) = 0.818.
    share = np.asarray(left.drag_area) / float(car.drag_area)
    np.testing.assert_allclose(share, [1.0, 0.818, 1.0, 1.0], atol=0.005)
    # 1 - 0.25 exp(-10 / 12) = 0.891
    front = np.asarray(left.downforce_area)[:, 0] / float(car.downforce_area[0])
    np.testing.assert_allclose(front, [1.0, 0.891, 1.0, 1.0], atol=0.005)
    np.testing.assert_array_equal(left.downforce_area[:, 1], np.full(4, car.downforce_area[1]))
    # An absent car makes no wake.
    alone = race.in_wake(track, drives, jnp.array([False, True, True, True]))
    np.testing.assert_array_equal(alone.drag_area, np.full(4, car.drag_area))


def test_opponents_are_listed_nearest_first_ahead_and_behind(four):
    present = [True, True, True, False]
    state = four.place([30.0, 45.0, 10.0, 31.0], present=present, speed=[0.5, 0.6, 0.4, 0.5])
    config = OpponentsConfig(ahead=2, behind=2)
    track = four.env.solo.track_of(COPPERBOWL)
    seen = np.asarray(opponents(track, state.pipeline_state, config)).reshape(4, 4, 9)
    # One 15 m ahead and one 20 m behind, and no second; the absent car is not there.
    np.testing.assert_array_equal(seen[0, :, -1], [1.0, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(seen[0, [0, 2], 0] * 20.0, [15.0, -20.0], atol=1.0)
    assert seen[0, 0, 2] > 0.0 > seen[0, 2, 2]  # the one ahead is faster, the one behind slower
    np.testing.assert_array_equal(seen[0, [1, 3]], 0.0)
    # The last one has two ahead, the nearer first.
    np.testing.assert_allclose(seen[2, :2, 0] * 20.0, [20.0, 35.0], atol=1.0)
    np.testing.assert_array_equal(seen[3], 0.0)


def test_opponents_are_told_where_they_are_on_the_road(four):
    # The second car is 40 m and a bend ahead, left of the first, and faster.
    state = four.place(
        [100.0, 140.0, -30.0, -40.0],
        present=[True, True, False, False],
        share=[-0.5, 0.25, 0.0, 0.0],
        speed=[0.4, 0.6, 0.5, 0.5],
    )
    race, track = state.pipeline_state, four.env.solo.track_of(COPPERBOWL)
    config = OpponentsConfig(ahead=1, behind=1, road=True)
    assert config.size == 28
    seen = np.asarray(opponents(track, race, config)).reshape(-1, 2, 14)
    plain = dataclasses.replace(config, road=False)
    others = [*range(8), 13]
    np.testing.assert_array_equal(
        seen[..., others], np.asarray(opponents(track, race, plain)).reshape(-1, 2, 9)
    )
    drives = race.drives
    speed = np.asarray(drives.motion.velocity[:2, 0])
    offset = np.asarray(drives.placement.offset[:2])
    there = tracks.at(track, drives.s[1])
    half = 0.5 * float(drives.car.width[1])
    left, right = float(there.width_left), float(there.width_right)
    # Set down along the course, a car's speed is its speed along it.
    np.testing.assert_allclose(
        seen[0, 0, 8:13] * [20.0, 4.0, 10.0, 4.0, 4.0],
        [
            40.0,
            offset[1] - offset[0],
            speed[1] - speed[0],
            left - offset[1] - half,
            right + offset[1] - half,
        ],
        rtol=1e-3,
    )
    np.testing.assert_allclose(seen[1, 1, 8:11], -seen[0, 0, 8:11], rtol=1e-4)
    assert offset[1] > 0.0 > offset[0]


@pytest.mark.parametrize("start", ["grid", "rolling", "pack"])
def test_starts_stand_apart_and_on_the_road(start, twenty):
    env = RaceEnv(RaceConfig(solo=SOLO, num_cars=20, start=start, field=(2, 20), laps=0))
    states = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(3), 8))
    assert set(np.asarray(states.pipeline_state.present.sum(1))) == {2, 20}
    for index in range(8):
        state = jax.tree.map(lambda leaf, at=index: leaf[at], states)
        after = twenty.step(state, jnp.zeros((20, 2)))
        assert float(after.metrics["contact_steps"].sum()) == 0.0
        assert float(after.metrics["off_course_steps"].sum()) == 0.0
    speed = np.asarray(states.pipeline_state.drives.motion.velocity[..., 0])
    assert (speed == 0.0).all() if start == "grid" else (speed > 5.0).all()


def test_a_race_ends_after_its_laps_and_is_classified(four):
    present = [True, True, False, False]
    state = four.place([-20.0, -5.0, -30.0, -40.0], present=present, speed=[0.9, 0.5, 0.5, 0.5])
    begun = state.pipeline_state
    np.testing.assert_array_equal(classification(begun), [2, 1, 3, 3])
    # As if both were at the end of their only lap.
    laps = jnp.array([1, 1, 0, 0])
    drives = dataclasses.replace(begun.drives, laps_begun=laps, crossings=laps)
    state = state.replace(pipeline_state=dataclasses.replace(begun, drives=drives))
    states = four.drive(state, jnp.zeros((20, 4, 2)).at[..., 1].set(0.3))
    end = jax.tree.map(lambda leaf: leaf[-1], states.pipeline_state)
    finish = np.asarray(end.finish_time)
    assert 0.0 < finish[1] < finish[0]
    np.testing.assert_array_equal(finish[2:], 0.0)
    np.testing.assert_array_equal(classification(end), [2, 1, 3, 3])
    np.testing.assert_array_equal(end.present, [False] * 4)
    # Who has finished stays where he was, and so do empty slots.
    for car in range(4):
        left = int(np.argmin(np.asarray(states.pipeline_state.present[:, car])))
        places = np.asarray(states.pipeline_state.drives.motion.position[left:, car])
        assert left < 19 and (places == places[0]).all()
    # The times are those at which their ways reached the line.
    for car, way in ((0, 20.0), (1, 5.0)):
        gone = np.cumsum(np.asarray(states.metrics["distance"][:, car]))
        clock = np.interp(way, np.append(0.0, gone), 0.1 * np.arange(21))
        assert finish[car] == pytest.approx(clock, abs=0.02)


def test_who_drives_into_another_is_judged_once(four):
    # One car, faster by far, runs into the back of another on the straight.
    present = [True, True, False, False]
    state = four.place([20.0, 45.0, 0.0, 0.0], present=present, speed=[0.9, 0.4, 0.5, 0.5])
    states = four.drive(state, jnp.zeros((20, 4, 2)).at[:, 0, 1].set(0.2))
    race = states.pipeline_state.stewarding
    assert float(states.metrics["contact_steps"].sum()) >= 2.0
    np.testing.assert_array_equal(states.metrics["at_fault"].sum(0), [1.0, 0.0, 0.0, 0.0])
    verdict = np.argwhere(np.asarray(race.verdicts.first))
    assert verdict[:, 1:].tolist() == [[0, 1]]
    step = verdict[0, 0]
    assert REASONS[int(race.verdicts.reason[step, 0, 1])] == "rear end"
    assert int(race.severity[step, 0, 1]) > 0
    np.testing.assert_array_equal(race.record.faults[-1].sum(1), [1, 0, 0, 0])
    # Both were told whose fault it would be: one's own, the other's, then whether there is a car.
    config = OpponentsConfig(ahead=1, behind=1, blame=True)
    told = copy.copy(four.env)
    told.config = dataclasses.replace(four.env.config, opponents=config)
    before = jax.tree.map(lambda leaf: leaf[step - 1], states.pipeline_state)
    seen = np.asarray(told._observe(before)["opponents"]).reshape(4, 2, 11)
    ahead, behind = 0, 1
    np.testing.assert_array_equal(seen[0, [ahead, behind], 8:], [[1.0, 0.0, 1.0], [0.0] * 3])
    np.testing.assert_array_equal(seen[1, [ahead, behind], 8:], [[0.0] * 3, [0.0, 1.0, 1.0]])


def test_a_rub_is_judged_again_when_it_becomes_a_shove(four):
    state = four.place([20.0, 300.0, 24.0, 0.0], present=[True, False, True, False], speed=0.5)
    race, begun = four.env, state.pipeline_state
    pair = jnp.zeros((4, 4)).at[0, 2].set(1.0)

    def after(before, speed):
        """The stewards after a step in which the first car changed the other's speed so much."""
        push = pair[..., None] * jnp.array([speed, 0.0]) * begun.drives.car.mass[0]
        met = dataclasses.replace(begun.meetings, contact=pair, push=push)
        track = race.solo.track_of(COPPERBOWL)
        return race._steward(track, before, begun.drives, met, begun.distance)

    rub = after(begun.stewarding, 0.2)
    assert int(rub.severity[0, 2]) == 0 and int(rub.verdicts.reason[0, 2]) > 0
    same = after(rub, 0.2)
    assert int(same.verdicts.reason[0, 2]) == 0
    shove = after(same, 4.0)
    assert int(shove.severity[0, 2]) == 2 and int(shove.verdicts.reason[0, 2]) > 0
    # One contact, one fault, as severe as it became.
    assert shove.record.faults[:, 2].sum() == shove.record.faults.sum() == rub.record.faults.sum()


def test_braking_is_needed_a_second_before_the_lap_brakes():
    # 50 m/s to 300 m, then down to 30 m/s within 60 m: (50^2 - 30^2) / 120 = 13.3 m/s^2.
    s = jnp.arange(0.0, 1000.0, 5.0)
    speed = jnp.sqrt(jnp.clip(2500.0 - (s - 300.0) * 1600.0 / 60.0, 900.0, 2500.0))

    def need(at):
        reference = functools.partial(jnp.interp, xp=s, fp=speed, period=1000.0)
        return float(braking_need(reference, jnp.float32(at), jnp.float32(50.0)))

    assert need(200.0) == 0.0
    assert need(270.0) == pytest.approx(13.3, abs=0.3) == need(310.0)
    assert need(400.0) == 0.0


def test_a_car_that_stands_still_is_out(four):
    state = four.place([-20.0, -40.0, -60.0, -80.0], present=[True, True, False, False], speed=0.0)
    states = four.drive(state, jnp.zeros((155, 4, 2)).at[:, 0, 1].set(0.3))
    retired = np.asarray(states.pipeline_state.retired)
    assert not retired[:145].any() and not retired[:, 0].any() and retired[-1, 1]
    assert not states.pipeline_state.present[-1, 1]
    np.testing.assert_array_equal(states.reward[-3:, 1], 0.0)


def test_a_car_that_stands_across_the_road_is_set_back_when_that_is_clear(four):
    def turned(distance):
        """The first car stands across the road."""
        state = four.place(distance, present=[True, True, False, False], speed=0.0)
        begun = state.pipeline_state
        heading = begun.drives.motion.heading.at[0].add(0.5 * jnp.pi)
        motion = dataclasses.replace(begun.drives.motion, heading=heading)
        drives = dataclasses.replace(begun.drives, motion=motion)
        return state.replace(pipeline_state=dataclasses.replace(begun, drives=drives))

    still = jnp.zeros((52, 4, 2))
    alone = four.drive(turned([20.0, 400.0, 0.0, 0.0]), still).pipeline_state.drives
    facing = np.asarray(alone.placement.cosine[:, 0])
    assert (np.abs(facing[:48]) < 0.2).all() and facing[-1] > 0.99
    assert float(alone.motion.fuel[-1, 0]) <= float(alone.car.fuel_load[0, 0])
    states = four.drive(turned([20.0, 30.0, 0.0, 0.0]), still)
    crowded = states.pipeline_state.drives
    assert (np.abs(np.asarray(crowded.placement.cosine[:, 0])) < 0.2).all()
    # The marshals look again each second, and do it once the other one has gone.
    last = jax.tree.map(lambda leaf: leaf[-1], states)
    gone = dataclasses.replace(
        last.pipeline_state, present=last.pipeline_state.present.at[1].set(False)
    )
    cleared = four.drive(last.replace(pipeline_state=gone), still[:11]).pipeline_state.drives
    assert cleared.placement.cosine[-1, 0] > 0.99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_cars": 21}, "num_cars must be 1 to 20, got 21"),
        ({"field": (5,)}, "field must hold sizes of 1 to 4"),
        ({"start": "flying"}, "start must be grid, rolling or pack"),
        ({"laps": -1}, "laps must not be negative"),
        ({"start": "pack", "laps": 3}, "laps must be 0 with start=pack"),
        ({"marshals": -1.0}, "marshals must not be negative"),
    ],
)
def test_an_inconsistent_grid_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RaceConfig(**changes)


def test_more_cars_than_a_circuit_has_room_for_are_refused(tmp_path):
    angle = np.linspace(0.0, 2.0 * np.pi, 60, endpoint=False)
    rows = np.column_stack([80 * np.cos(angle), 80 * np.sin(angle), np.full((60, 2), 5.0)])
    path = tmp_path / "round.csv"
    np.savetxt(path, rows, delimiter=",")
    solo = dataclasses.replace(SOLO, circuit=str(path))
    with pytest.raises(UserError, match="20 cars need 800 m of a circuit, the shortest has 50"):
        RaceEnv(RaceConfig(solo=solo, num_cars=20))
