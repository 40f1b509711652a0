"""Contact between cars: where boxes touch, and what an impulse keeps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy import contact
from projects.sophy.car import fuelled, rolling_start
from projects.sophy.cars import load_cars
from projects.sophy.contact import Pairs, collide_cars, nearest_pairs


def field(names, positions, headings, speeds):
    """Cars [M] with states that roll straight at speeds [M] [m/s]."""
    cars = load_cars(names)
    start = jax.vmap(rolling_start)
    states = start(cars, jnp.array(positions), jnp.array(headings), jnp.array(speeds))
    return cars, states


def all_near(num):
    first, second = (jnp.asarray(index, jnp.int32) for index in np.triu_indices(num, 1))
    return Pairs(first, second, jnp.ones(first.shape, bool))


def momenta(cars, states):
    """Momentum [2] [kg m/s], angular momentum about the origin [kg m^2/s] and energy [J]."""
    cars, states = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (cars, states))
    cosine, sine = np.cos(states.heading), np.sin(states.heading)
    forward, left = states.velocity.T
    velocity = np.stack([forward * cosine - left * sine, forward * sine + left * cosine], 1)
    linear = cars.mass[:, None] * velocity
    angular = states.position[:, 0] * linear[:, 1] - states.position[:, 1] * linear[:, 0]
    angular += cars.yaw_inertia * states.yaw_rate
    energy = 0.5 * (linear * velocity).sum() + 0.5 * (cars.yaw_inertia * states.yaw_rate**2).sum()
    return linear.sum(0), angular.sum(), energy


def crowd(seed):
    """Eight different cars at random places within a few metres, most of them touching, with fuel
    for different ways."""
    random = np.random.default_rng(seed)
    names = ["gt3_fr", "kart", "roadster_fr", "f1_tum", "hatch_ff", "rally_awd", "gt3_fr", "kart"]
    cars, states = field(
        names, random.uniform(-4, 4, (8, 2)), random.uniform(-3, 3, 8), random.uniform(0, 60, 8)
    )
    yaw_rate = jnp.asarray(random.uniform(-2, 2, 8), jnp.float32)
    fuel = jnp.asarray(random.uniform(0, 100, 8), jnp.float32)
    return fuelled(cars, fuel), dataclasses.replace(states, yaw_rate=yaw_rate)


@pytest.mark.parametrize("seed", range(5))
def test_momenta_are_conserved_and_energy_is_not_made(seed):
    cars, before = crowd(seed)
    after, contacts = collide_cars(cars, before, all_near(8))
    assert int(contacts.touching.sum()) > 3
    assert float(contacts.impulse.max()) > 100.0
    # Pushing the boxes apart moves cars and is no impulse: places as before.
    after = dataclasses.replace(after, position=before.position)
    (linear, angular, energy), (was_linear, was_angular, was_energy) = (
        momenta(cars, states) for states in (after, before)
    )
    np.testing.assert_allclose(linear, was_linear, atol=0.5)  # of 1e5
    np.testing.assert_allclose(angular, was_angular, atol=2.0)
    assert energy < was_energy


def test_the_centre_of_mass_stays_when_overlaps_are_pushed_apart():
    cars, before = crowd(7)
    after, _ = collide_cars(cars, before, all_near(8))
    moved = np.asarray(cars.mass)[:, None] * np.asarray(after.position - before.position)
    assert np.abs(moved).max() > 10.0
    np.testing.assert_allclose(moved.sum(0), 0.0, atol=1e-2)


def test_a_straight_bump_from_behind_is_that_of_two_masses():
    # Aligned boxes overlapping by 0.2 m: the normal is the course, nothing turns or slides.
    cars, states = field(["gt3_fr", "roadster_fr"], [[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0], [30, 20])
    middle = 0.5 * (cars.wheel_x[:, 0] + cars.wheel_x[:, 3])
    gap = 0.5 * (cars.length[0] + cars.length[1]) - 0.2 + middle[0] - middle[1]
    states = dataclasses.replace(states, position=jnp.array([[0.0, 0.0], [gap, 0.0]]))
    after, contacts = collide_cars(cars, states, all_near(2))
    assert bool(contacts.touching[0])
    np.testing.assert_allclose(contacts.normal[:, 0], [1.0, 0.0], atol=1e-6)
    assert float(contacts.depth[0]) == pytest.approx(0.2, abs=1e-5)
    assert float(contacts.closing[0]) == pytest.approx(10.0, abs=1e-5)
    # J = (1 + e) dv m1 m2 / (m1 + m2)
    m1, m2 = (float(mass) for mass in cars.mass)
    impulse = (1.0 + contact.RESTITUTION) * 10.0 * m1 * m2 / (m1 + m2)
    assert float(contacts.impulse[0]) == pytest.approx(impulse, rel=1e-5)
    assert float(after.velocity[0, 0]) == pytest.approx(30.0 - impulse / m1, rel=1e-5)
    assert float(after.velocity[1, 0]) == pytest.approx(20.0 + impulse / m2, rel=1e-5)
    np.testing.assert_allclose(after.yaw_rate, 0.0, atol=1e-5)
    # The lighter car gives way more, and together they give the whole overlap.
    way = np.asarray(after.position - states.position)[:, 0]
    assert way[1] - way[0] == pytest.approx(0.2, abs=1e-5)
    assert -way[0] / way[1] == pytest.approx(m2 / m1, rel=1e-4)


def test_boxes_touch_where_a_dense_grid_of_points_says_so():
    cars = load_cars(["gt3_fr", "kart"])
    random = np.random.default_rng(0)
    num = 400
    places = random.uniform(-3.5, 3.5, (num, 2))
    headings = random.uniform(-np.pi, np.pi, (num, 2))
    start = jax.vmap(rolling_start)

    def states_of(states):
        return contact._bodies(cars, states)

    def depths(place, heading):
        states = start(cars, jnp.stack([jnp.zeros(2), place]), heading, jnp.zeros(2))
        a, b = (jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], states_of(states)) for i in (0, 1))
        return contact._overlap(a, b)[0][0]

    depth = jax.jit(jax.vmap(depths))(jnp.asarray(places), jnp.asarray(headings))
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 61), np.linspace(-1, 1, 61)), -1).reshape(-1, 2)
    half = 0.5 * np.stack([cars.length, cars.width], 1)
    middle = 0.5 * np.asarray(cars.wheel_x[:, 0] + cars.wheel_x[:, 3])
    wrong = 0
    for place, (a, b), found in zip(places, headings, np.asarray(depth), strict=True):
        turn = [np.array([[np.cos(x), -np.sin(x)], [np.sin(x), np.cos(x)]]) for x in (a, b)]
        points = place + (grid * half[1] + [middle[1], 0.0]) @ turn[1].T
        there = points @ turn[0] - [middle[0], 0.0]
        touch = (np.abs(there) <= half[0]).all(1).any()
        # The grid is 6 cm apart.
        wrong += bool(touch) != bool(found > 0.0) and abs(found) > 0.06
    assert wrong == 0
    assert 50 < int((depth > 0).sum()) < 350


def test_the_first_and_the_second_car_are_treated_alike():
    cars, states = crowd(3)
    order = jnp.array([4, 1, 7, 0, 2, 6, 3, 5])
    after, _ = collide_cars(cars, states, all_near(8))
    swapped, _ = collide_cars(*jax.tree.map(lambda leaf: leaf[order], (cars, states)), all_near(8))
    for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(swapped), strict=True):
        np.testing.assert_allclose(ours[order], theirs, rtol=1e-4, atol=1e-3)


def test_a_mirrored_contact_is_the_mirror_image():
    cars, states = crowd(11)
    flip = jnp.array([1.0, -1.0])
    mirrored = dataclasses.replace(
        states,
        position=states.position * flip,
        heading=-states.heading,
        velocity=states.velocity * flip,
        yaw_rate=-states.yaw_rate,
    )
    after, _ = collide_cars(cars, states, all_near(8))
    image, _ = collide_cars(cars, mirrored, all_near(8))
    np.testing.assert_allclose(image.position, after.position * flip, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(image.velocity, after.velocity * flip, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(image.yaw_rate, -after.yaw_rate, rtol=1e-4, atol=1e-3)


def test_cars_that_are_not_near_along_the_course_do_not_meet():
    cars, states = crowd(0)
    pairs = nearest_pairs(states.position, jnp.zeros((8, 8), bool))
    after, contacts = collide_cars(cars, states, pairs)
    assert not bool(contacts.touching.any())
    for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(states), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_parted_cars_no_longer_push():
    # Already moving apart: an overlap is pushed out, but nothing is pulled back.
    cars, states = field(["gt3_fr", "gt3_fr"], [[0.0, 0.0], [4.3, 0.1]], [0.0, 0.0], [20.0, 30.0])
    after, contacts = collide_cars(cars, states, all_near(2))
    assert bool(contacts.touching[0])
    assert float(contacts.impulse[0]) == 0.0
    np.testing.assert_array_equal(after.velocity, states.velocity)


def test_the_pairs_that_are_kept_hold_all_that_touch():
    # Twenty cars nose to tail in three rows, every body 5 cm inside its neighbours.
    cars = load_cars(["gt3_fr"] * 20)
    length, width = float(cars.length[0]) - 0.05, float(cars.width[0]) - 0.05
    places = jnp.array([[length * (i // 3), width * (i % 3)] for i in range(20)])
    states = jax.vmap(rolling_start)(cars, places, jnp.zeros(20), jnp.full(20, 20.0))
    pairs = nearest_pairs(places, jnp.ones((20, 20), bool))
    assert pairs.first.shape == (60,)
    kept = collide_cars(cars, states, pairs)[1].touching
    everyone = collide_cars(cars, states, all_near(20))[1].touching
    assert int(kept.sum()) == int(everyone.sum()) > 40
