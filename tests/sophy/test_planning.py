"""Planning for cars: the model on the map, add-ons, and what a planning driver does and refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.dynamics import Dynamics, DynamicsConfig
from core_rl.env import named_obs
from core_rl.errors import UsageError, UserError
from core_rl.qr_sac import QRSACConfig, make_qr_sac
from core_rl.residual_mppi import ResidualMPPIConfig, agent_prior, make_residual_mppi
from core_rl.residual_sac import ResidualEnv
from projects.sophy import track as tracks
from projects.sophy.addons import CAUTION, parse_addon
from projects.sophy.driving import CONTROL_STEP
from projects.sophy.model import (
    INVARIANT,
    MOTION,
    MOTION_SIZE,
    MotionObserved,
    clearance,
    drive_dynamics,
    episodes_of,
    motion_model,
    motion_vector,
    observed_step,
    travel_between,
)
from projects.sophy.planning import make_planning_driver
from projects.sophy.time_trial import TimeTrial, TimeTrialConfig, with_calm_starts
from projects.sophy.walls import place

TINY_MODEL = DynamicsConfig(hidden=(8,), horizon=2, batch_size=32, num_epochs=2)


@pytest.fixture(scope="module")
def env():
    return TimeTrial(TimeTrialConfig(steering="delta"))


@pytest.fixture(scope="module")
def drive(env):
    """`[40]` states of a calm start under random actions, and the actions that led on."""

    def step(state, action):
        return env.step(state, action), state.pipeline_state

    @jax.jit
    def roll(key):
        actions = jax.random.uniform(key, (40, 2), minval=-0.3, maxval=0.3)
        _, states = jax.lax.scan(step, with_calm_starts(env).reset(key), actions)
        return states, actions

    return roll(jax.random.key(3))


def placed(env, before, offset, speed=None):
    """The car of `before` moved sideways to an offset, along the road."""
    point = tracks.at(env.track, before.s)
    left = jnp.stack([-point.tangent[1], point.tangent[0]])
    motion = dataclasses.replace(
        before.motion,
        position=point.position + offset * left,
        heading=jnp.arctan2(point.tangent[1], point.tangent[0]),
    )
    if speed is not None:
        motion = dataclasses.replace(motion, velocity=jnp.array([speed, 0.0]))
    return dataclasses.replace(before, motion=motion, placement=place(point, motion))


def at_index(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def oracle(env, after_of):
    """A model that predicts the true next motion vector."""

    def predict(state, vector, action):
        del vector, action
        before, after = state
        return motion_vector(env.track, after, travel_between(before, after))

    return Dynamics(TINY_MODEL, None, None, None, predict, None, None)


def test_a_perfect_motion_vector_makes_the_true_drive_state(env, drive):
    states, actions = drive
    model = oracle(env, None)

    @jax.jit
    def both(index):
        before, after = at_index(states, index), at_index(states, index + 1)
        return drive_dynamics(env, model, (before, after))(before, actions[index]), after

    for index in range(0, 39, 6):
        predicted, after = both(index)
        for name in ("position", "heading", "velocity", "load", "gear", "slip_angle"):
            np.testing.assert_allclose(
                getattr(predicted.motion, name), getattr(after.motion, name), rtol=1e-4, atol=2e-3
            )
        np.testing.assert_allclose(predicted.s, after.s, atol=5e-3)
        np.testing.assert_allclose(predicted.progress, after.progress, atol=5e-3)
        np.testing.assert_allclose(predicted.placement.offset, after.placement.offset, atol=5e-3)
        np.testing.assert_allclose(predicted.steering_target, after.steering_target, atol=1e-6)
        np.testing.assert_allclose(predicted.lap_clock, after.lap_clock, atol=1e-4)


def test_the_odometer_is_predicted_and_not_read(env, drive):
    """Far or near, the same motion: the model is not shown how far the car came."""
    states, actions = drive
    steps = jax.vmap(lambda b, a, n: observed_step(env, b, a, n))(
        at_index(states, slice(0, 39)), actions[:39], at_index(states, slice(1, 40))
    )
    steps = {name: np.repeat(np.asarray(v)[:, None], 2, axis=1) for name, v in steps.items()}
    episodes = episodes_of(steps, length=13)
    assert episodes.obs.shape == (6, 14, MOTION_SIZE)
    # Each step's travel is the odometer's change, and each piece begins at zero.
    travel = np.diff(episodes.obs[..., -3:], axis=1)
    np.testing.assert_allclose(travel[0], steps["travel"][:13, 0], atol=1e-4)
    assert np.all(episodes.obs[:, 0, -3:] == 0.0)

    model = motion_model(TINY_MODEL)
    state = model.fit(jax.random.key(0), episodes)
    vector, action = jnp.asarray(episodes.obs[0, 3]), jnp.asarray(episodes.action[0, 3])
    moved = vector.at[jnp.array(INVARIANT)].add(1000.0)
    near, far = (model.predict(state, v, action) - v for v in (vector, moved))
    np.testing.assert_allclose(near, far, atol=1e-3)
    assert np.any(np.abs(near[-3:]) > 0.01)


def test_the_environment_offers_the_vector_with_a_running_odometer(env):
    observed = MotionObserved(env)
    state = jax.jit(observed.reset)(jax.random.key(0))
    after = jax.jit(observed.step)(state, jnp.array([0.0, 1.0]))
    again = jax.jit(observed.step)(after, jnp.array([0.0, 1.0]))
    assert again.obs[MOTION].shape == (observed.observation_size[MOTION],) == (MOTION_SIZE,)
    forward = np.array([float(s.obs[MOTION][-3]) for s in (state, after, again)])
    gaps = [
        np.linalg.norm(b.pipeline_state.motion.position - a.pipeline_state.motion.position)
        for a, b in ((state, after), (after, again))
    ]
    np.testing.assert_allclose(np.diff(forward), gaps, rtol=1e-2)


def test_margin_by_hand(env, drive):
    before = at_index(drive[0], 0)
    point = tracks.at(env.track, before.s)
    addon = parse_addon(env, "margin:0.5@2")
    for inside, expected, kept in (
        (0.5 + CAUTION + 0.1, 0.0, True),
        (0.5 + 0.5 * CAUTION, -2 * 0.5, True),
        (0.4, -2 * (0.1 + CAUTION) / CAUTION, False),
        (-0.3, -2 * (0.8 + CAUTION) / CAUTION, False),
    ):
        # The left wheels of a car along the road stand half a track to the left of its middle.
        after = placed(env, before, point.width_left - jnp.max(env.car.wheel_y) - inside)
        np.testing.assert_allclose(clearance(env.track, after), inside, atol=1e-3)
        reward = addon.reward(before, jnp.zeros(2), after)
        np.testing.assert_allclose(reward, expected, atol=1e-2)
        assert bool(addon.violation(before, after)) is not kept


def test_speed_limit_by_hand(env, drive):
    before = at_index(drive[0], 0)
    s = float(before.s)
    after = placed(env, before, 0.0, speed=40.0)  # 144 km/h
    length = float(env.track.length)
    start, end = (s - 50.0) % length, (s + 50.0) % length  # may cross the line
    inside = parse_addon(env, f"speed_limit:{start}:{end}:120")
    np.testing.assert_allclose(inside.reward(before, jnp.zeros(2), after), -2.4, rtol=1e-4)
    outside = parse_addon(env, f"speed_limit:{end}:{start}:120")
    assert float(outside.reward(before, jnp.zeros(2), after)) == 0.0
    assert not bool(outside.violation(before, after))


def test_add_ons_add_up_and_files_have_weights(env, drive, tmp_path):
    before, after = at_index(drive[0], 0), at_index(drive[0], 1)
    path = tmp_path / "mine.py"
    path.write_text(
        "WEIGHTS = {'slow': 3.0}\n"
        "def reward_terms(previous, current, action, time_step):\n"
        "    return {'slow': -current.motion.velocity[0], 'time': -time_step}\n"
    )
    speed = float(after.motion.velocity[0])
    mine = parse_addon(env, f"{path}@0.5").reward(before, jnp.zeros(2), after)
    np.testing.assert_allclose(mine, 0.5 * (-3.0 * speed - CONTROL_STEP), rtol=1e-5)
    change = float(after.steering_target - before.steering_target) / env.config.steering_step
    both = parse_addon(env, f"{path},calm@2").reward(before, jnp.zeros(2), after)
    np.testing.assert_allclose(both, -3.0 * speed - CONTROL_STEP - 2.0 * change**2, rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "an add-on is missing: allowed are margin:METRES"),
        ("margn:0.5", "there is no add-on 'margn': allowed are margin:METRES"),
        ("margin", "add-on 'margin' must be margin:METRES"),
        ("margin:wide", "'wide' is no finite number"),
        ("margin:0.5@nan", "'nan' is no finite number"),
        ("speed_limit:0:99999:100", "the zone must lie within the lap"),
        ("speed_limit:10:100:-3", "the limit must be positive"),
        ("nowhere.py", "there is no file nowhere.py"),
    ],
)
def test_bad_add_ons_are_refused_in_one_line(env, spec, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_addon(env, spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "must define reward_terms"),
        ("def reward_terms(:", "SyntaxError"),
        ("def reward_terms(*a): return {}\nWEIGHTS = {'a': 'b'}", "WEIGHTS must be a dict"),
    ],
)
def test_bad_reward_files_are_refused_in_one_line(env, tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        parse_addon(env, str(path))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def agent():
    agent = make_qr_sac(QRSACConfig(hidden=(8,)), 2)
    obs = {"state": jnp.zeros(TimeTrialConfig().observation.sizes["state"])}
    return agent, agent.init(jax.random.key(0), obs)


PLANNER = ResidualMPPIConfig(
    importance="none",
    horizon=8,
    num_samples=64,
    num_iterations=2,
    noise_decay=0.7,
    noise_memory=0.8,
    discount=1.0,
    temperature=0.01,
    prior_weight=0.0,
    noise_std=(0.5, 0.1),
)


def seen(env, drive):
    return env.observe(env.track, drive)


def close_to_the_line(env, drive):
    before = at_index(drive[0], 0)
    point = tracks.at(env.track, before.s)
    return placed(env, before, point.width_left - jnp.max(env.car.wheel_y) - 0.3, speed=20.0)


def test_the_plan_of_the_true_simulator_makes_room(env, drive, agent):
    """What is planned for a margin is tried on the simulator itself, beside the prior's plan."""
    start = jax.jit(env.reset)(jax.random.key(0))
    addon = parse_addon(env, "margin:0.5")

    def dynamics(state, action):
        return env.step(start.replace(pipeline_state=state), action).pipeline_state

    def follow(state, actions):
        def step(state, action):
            after = dynamics(state, action)
            return after, addon.reward(state, action, after)

        return jax.lax.scan(step, state, actions)[1]

    prior = agent_prior(agent[0], agent[1], lambda state: seen(env, state))
    planner = make_residual_mppi(PLANNER, dynamics, prior, addon.reward)
    alone = make_residual_mppi(
        dataclasses.replace(PLANNER, variant="prior"), dynamics, prior, addon.reward
    )

    @jax.jit
    def rewards(state):
        return [
            follow(state, each.plan(each.init(state), state, jax.random.key(1)).actions)
            for each in (planner, alone)
        ]

    planned, unplanned = rewards(close_to_the_line(env, drive))
    assert float(planned[0]) < 0.0  # it begins too close
    assert float(jnp.sum(planned)) > 0.7 * float(jnp.sum(unplanned))
    assert float(planned[-1]) > float(unplanned[-1]) + 0.2


def test_a_driver_with_a_heavy_prior_stays_with_it(env, drive, agent):
    steps = jax.vmap(lambda b, a, n: observed_step(env, b, a, n))(
        at_index(drive[0], slice(0, 39)), drive[1][:39], at_index(drive[0], slice(1, 40))
    )
    steps = {name: np.repeat(np.asarray(v)[:, None], 2, axis=1) for name, v in steps.items()}
    model = motion_model(TINY_MODEL)
    state = model.fit(jax.random.key(0), episodes_of(steps, length=13))
    driver = make_planning_driver(PLANNER, env, agent[0], model, parse_addon(env, "margin:0.5"))
    planned = driver.init(state, agent[1])
    close = close_to_the_line(env, drive)
    plan = jax.jit(driver.plan)
    free = plan(planned, close, jax.random.key(1))
    numbers = dataclasses.replace(planned.numbers, prior_weight=jnp.float32(1e4))
    kept = plan(planned._replace(numbers=numbers), close, jax.random.key(1))
    mode = agent[0].policy(agent[1], seen(env, close)).mode()
    assert np.all(np.isfinite(free.actions)) and free.actions.shape == (8, 2)
    assert np.max(np.abs(kept.action - mode)) < 0.5 * np.max(np.abs(free.action - mode))


def test_what_a_reward_file_misnames_is_refused_before_the_first_step(env, agent, tmp_path):
    path = tmp_path / "misnamed.py"
    path.write_text(
        "def reward_terms(previous, current, action, time_step):\n"
        "    return {'a': current.motion.sped}\n"
    )
    model = motion_model(TINY_MODEL)
    driver = make_planning_driver(
        ResidualMPPIConfig(), env, agent[0], model, parse_addon(env, str(path))
    )
    with pytest.raises(UserError, match=r"add-on reward does not take this state.*sped") as caught:
        driver.init(model.init(jax.random.key(0)), agent[1])
    assert "\n" not in str(caught.value)


def test_residual_sac_pays_log_prior_and_add_on(env, agent):
    def prior(obs):
        return agent[0].policy(agent[1], obs)

    def wish(before, action, after):
        del before, action
        return -after.pipeline_state.motion.velocity[0]

    paid = ResidualEnv(env, prior, wish, prior_weight=0.5)
    state = jax.jit(paid.reset)(jax.random.key(0))
    action = jnp.array([0.2, 0.4])
    after = jax.jit(paid.step)(state, action)
    true = jax.jit(env.step)(jax.jit(env.reset)(jax.random.key(0)), action)
    log_prior = prior(named_obs(state)).log_prob(action)
    expected = 0.5 * log_prior - true.pipeline_state.motion.velocity[0]
    np.testing.assert_allclose(after.reward, expected, rtol=1e-5)
    np.testing.assert_allclose(after.metrics["basic_reward"], true.reward, rtol=1e-5)
    np.testing.assert_allclose(after.metrics["log_prior"], log_prior, rtol=1e-5)
    assert jax.tree.structure(after) == jax.tree.structure(state)
