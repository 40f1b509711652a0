"""What is counted in a race, on states made by hand: three cars on a straight of larkspur."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy import track as tracks
from projects.sophy.race_env import RaceConfig, RaceEnv, race_of
from projects.sophy.race_metrics import (
    NUM_BINS,
    Tally,
    count,
    no_tally,
    rear_end_speed,
)
from projects.sophy.stewards import REAR_END
from projects.sophy.time_trial import TimeTrialConfig


@pytest.fixture(scope="module")
def scene():
    """The environment, a race of three cars on its straightest stretch, and the counting."""
    env = RaceEnv(RaceConfig(solo=TimeTrialConfig(steering="delta"), num_cars=3, laps=0))
    track = env.solo.track
    stations = np.arange(0.0, float(track.length), 10.0)
    bends = np.abs(jax.vmap(lambda s: tracks.at(track, s).curvature)(jnp.asarray(stations)))
    reach = np.array([bends[k : k + 20].max() for k in range(len(bends) - 20)])
    start = stations[reach.argmin()] + 60.0
    where = jnp.array([0.0, -8.0, -30.0])
    flat = jnp.zeros(3)
    state = env.start(
        jnp.int32(0), jnp.ones(3, bool), jnp.float32(start), where, flat, jnp.full(3, 0.5)
    )
    race = race_of(state)
    # As if it had gone on for a while: what begins now is not the start's doing.
    drives = dataclasses.replace(race.drives, laps_begun=jnp.full(3, 2, jnp.int32))
    return env, dataclasses.replace(race, drives=drives), jax.jit(count, static_argnums=0)


def changed(race, **drives):
    return dataclasses.replace(race, drives=dataclasses.replace(race.drives, **drives))


def counted(scene, steps, race=None):
    """The tally after steps, each a (before, after)."""
    env, start, counting = scene
    tally, memory = no_tally(3)
    race = start if race is None else race
    for after in steps:
        tally, memory = counting(env, race, after, tally, memory)
        race = after
    return jax.tree.map(np.asarray, tally)


def offset_of(race, values):
    placement = race.drives.placement
    return dataclasses.replace(placement, offset=jnp.asarray(values, jnp.float32))


def test_nothing_happens_where_nothing_changes(scene):
    tally = counted(scene, [scene[1]])
    quiet = tally._replace(traffic_steps=0, free_steps=0)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(quiet))
    # The leader has nobody ahead.
    assert tally.traffic_steps.tolist() == [0, 1, 1] and tally.free_steps.tolist() == [1, 0, 0]
    assert set(Tally._fields) == set(tally._asdict())


def test_a_pass_counts_for_both(scene):
    race = scene[1]
    ahead = dataclasses.replace(race, distance=race.distance.at[1].add(20.0))
    tally = counted(scene, [ahead, ahead])
    assert tally.overtakes.tolist() == [0, 1, 0] and tally.overtaken.tolist() == [1, 0, 0]
    # Side by side, now one and now the other ahead, is none until one is half a length clear.
    level, clear = (
        [dataclasses.replace(race, distance=race.distance.at[1].add(8.0 + way)) for way in ways]
        for ways in ((0.3, -0.3, 0.3, 2.0), (2.5, 0.3, 2.5))
    )
    assert not counted(scene, level).overtakes.any()
    assert counted(scene, [*level, *clear]).overtakes.tolist() == [0, 1, 0]


def test_who_is_at_a_stop_is_not_passed(scene):
    race = scene[1]
    race = dataclasses.replace(
        race, pits=dataclasses.replace(race.pits, wait=jnp.array([5.0, 0, 0]))
    )
    ahead = dataclasses.replace(race, distance=race.distance.at[1].add(20.0))
    assert not counted(scene, [ahead], race).overtakes.any()


def test_contacts_by_severity_and_rear_ends_by_speed(scene):
    race = scene[1]
    zero = jnp.zeros((3, 3))
    met = dataclasses.replace(
        race.meetings, contact=zero.at[0, 1].set(1.0), closing=zero.at[0, 1].set(4.4)
    )
    verdicts = race.stewarding.verdicts._replace(
        second=race.stewarding.verdicts.second.at[0, 1].set(True),
        reason=race.stewarding.verdicts.reason.at[0, 1].set(REAR_END),
    )
    judged = dataclasses.replace(
        race.stewarding, verdicts=verdicts, severity=jnp.zeros((3, 3), jnp.int32).at[0, 1].set(2)
    )
    hit = dataclasses.replace(race, meetings=met, stewarding=judged)
    tally = counted(scene, [hit])
    assert tally.contacts.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
    assert tally.rear_ends[0].sum() == 0 and tally.rear_ends[1, 4] == 1
    # It goes on, at first no worse, then it was light before: one contact all the same.
    light = dataclasses.replace(
        hit,
        stewarding=dataclasses.replace(
            judged, severity=0 * judged.severity, apart=0 * judged.apart
        ),
    )
    assert counted(scene, [hit], light).contacts.tolist() == [[-1, 0, 1], [-1, 0, 1], [0, 0, 0]]
    # Faster than 4 m/s, not than 5.
    speed = rear_end_speed(jnp.asarray(tally.rear_ends))
    np.testing.assert_array_equal(speed, [np.nan, 5.0, np.nan])


def test_a_corner_is_cut_where_time_is_gained(scene):
    race = scene[1]
    env = scene[0]
    lap = env.solo.reference
    speed = np.interp(np.asarray(race.drives.s), lap.s, lap.speed)
    off = jnp.array([1.0, 1.0, 0.0])
    # The first gains a tenth of a step's time on its reference, the second loses it.
    progress = jnp.asarray(0.1 * speed * [1.1, 0.9, 1.0], jnp.float32)
    away = changed(race, off_course=off, progress=progress)
    back = changed(race, off_course=jnp.zeros(3), progress=progress)
    tally = counted(scene, [away, away, back, back])
    assert tally.corner_cuts.tolist() == [1, 0, 0]
    assert tally.off_course_steps.tolist() == [2, 2, 0]


def test_the_second_move_on_a_straight_is_counted_and_only_under_pressure(scene):
    race = scene[1]
    positions = [0.0, 0.2, 0.4, 0.2, 0.0, 0.0, 0.2]  # left, right, left again
    steps = [changed(race, placement=offset_of(race, [x, 0.0, x])) for x in positions]
    tally = counted(scene, steps)
    # The first has the second 8 m behind; the third is pressed by nobody.
    assert tally.defensive_moves.tolist() == [2, 0, 0]


def test_who_leaves_too_little_room_has_forced_off(scene):
    race = scene[1]
    env = scene[0]
    beside = jnp.asarray(race.drives.s).at[1].set(race.drives.s[0])
    edge = float(tracks.at(env.solo.track, race.drives.s[0]).width_left)
    # The first drives a metre from the left line, the second is between it and the line.
    squeeze = changed(race, s=beside, placement=offset_of(race, [edge - 2.0, edge - 0.5, 0.0]))
    leaves = changed(squeeze, off_course=jnp.array([0.0, 1.0, 0.0]))
    tally = counted(scene, [squeeze, leaves, leaves])
    assert tally.forced_off.tolist() == [1, 0, 0]
    # In the middle of the road there was room.
    room = changed(race, s=beside, placement=offset_of(race, [-2.0, 1.0, 0.0]))
    leaves = changed(room, off_course=jnp.array([0.0, 1.0, 0.0]))
    assert not counted(scene, [room, leaves]).forced_off.any()


def test_walls_are_counted_by_touches_and_by_steps(scene):
    race = scene[1]
    touch, clear = (changed(race, wall_contact=jnp.array([x, 0.0, 0.0])) for x in (0.5, 0.0))
    tally = counted(scene, [touch, touch, clear, touch])
    assert tally.wall_contact_steps.tolist() == [3, 0, 0]
    assert tally.wall_contacts.tolist() == [2, 0, 0]


def test_pace_is_told_apart_by_traffic(scene):
    race = scene[1]
    lap = scene[0].solo.reference
    speed = np.interp(np.asarray(race.drives.s), lap.s, lap.speed)
    half = changed(race, progress=jnp.asarray(0.05 * speed, jnp.float32))
    tally = counted(scene, [half])
    np.testing.assert_allclose(tally.free_pace, [0.5, 0.0, 0.0], atol=1e-3)
    np.testing.assert_allclose(tally.traffic_pace, [0.0, 0.5, 0.5], atol=1e-3)


def test_the_lap_from_the_grid_does_not_count_for_pace(scene):
    race = changed(scene[1], laps_begun=jnp.ones(3, jnp.int32))
    tally = counted(scene, [changed(race, progress=jnp.full(3, 2.0))], race)
    assert not any(tally.traffic_steps) and not any(tally.free_steps)
    assert not any(tally.traffic_pace) and not any(tally.free_pace)


def test_the_speed_of_rear_ends_is_a_quantile():
    counts = np.zeros((1, NUM_BINS), int)
    counts[0, 0], counts[0, 7] = 95, 5
    assert rear_end_speed(jnp.asarray(counts)).tolist() == [1.0]
    counts[0, 7] = 6
    assert rear_end_speed(jnp.asarray(counts)).tolist() == [8.0]
