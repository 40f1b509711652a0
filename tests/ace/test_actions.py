"""Actions: no sequence breaks a limit, nothing reachable is given away, joints follow with lag."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.ace import actions
from projects.ace.actions import CONTROL_STEP, PIECE, SAMPLE
from projects.ace.arm import JointState, ace_arm

ARM = ace_arm()
P, V, A, J = (
    np.asarray(limit, np.float64)
    for limit in (ARM.position_limit, ARM.velocity_limit, ARM.acceleration_limit, ARM.jerk_limit)
)
FINE = jnp.asarray(np.linspace(0.0, CONTROL_STEP, 13), jnp.float32)  # three times in each piece


def advance(
    state: JointState, action: jax.Array, action_map: actions.ActionMap = "reach"
) -> tuple[JointState, actions.Segment]:
    segment = actions.plan(ARM, state, action, action_map)
    return actions.end_of(state, segment), segment


COUNT = 500  # arms in one call, the same everywhere to compile `STEP` once
STEP = jax.jit(jax.vmap(advance))
STEP_VELOCITY = jax.jit(jax.vmap(lambda s, a: advance(s, a, "velocity")))
STEP_2D = jax.jit(jax.vmap(lambda s, a: advance(s, a, "reach_2d")))
CAN_STOP = jax.jit(jax.vmap(lambda state: actions.can_stop(ARM, state)))


def set_margin(state: JointState) -> jax.Array:
    """Of the set that actions never leave, in units of each position limit; [8]."""
    limits = actions._limits(ARM)
    scale = 1.0 / limits.last_jerk
    margin = actions._margin(
        limits, scale * state.position, scale * state.velocity, scale * state.acceleration
    )
    return margin * limits.last_jerk / limits.position


def random_states(count: int, seed: int) -> JointState:
    """Half of them at speed and inside the set, the others at rest."""
    rng = np.random.default_rng(seed)
    draw = JointState(
        *(jnp.asarray(rng.uniform(-x, x, (count, 8)), jnp.float32) for x in (P, V, 0.9 * A))
    )
    fine = CAN_STOP(draw)
    return JointState(
        jnp.where(fine, draw.position, 0.99 * draw.position),
        jnp.where(fine, draw.velocity, 0.0),
        jnp.where(fine, draw.acceleration, 0.0),
    )


@pytest.mark.parametrize(
    "action_map, batch", [("velocity", 1024), ("reach", 256), ("reach_2d", 256)]
)
def test_a_million_actions_break_no_limit(action_map, batch):
    steps = 1000

    def one(state: JointState, key: jax.Array, kind: jax.Array, held: jax.Array):
        def body(carry, key):
            state, held, worst = carry
            draw = jax.random.uniform(key, (2, 8), minval=-1.0, maxval=1.0)
            held = jnp.where(draw[1] > 0.9, -held, held)
            outward = jnp.sign(state.velocity) + (state.velocity == 0)
            to_wall = jnp.sign(state.position) + (state.position == 0)
            at_speed = jnp.where(jnp.abs(state.velocity) > 0.8 * V, outward, held)
            choices = jnp.stack([draw[0], jnp.sign(draw[0]), held, outward, to_wall, at_speed])
            # The last kind of arm does each of these at random, joint by joint.
            pick = jnp.where(kind < 6, kind, jnp.floor(3.0 * (draw[1] + 1.0)).astype(jnp.int32))
            action = jnp.sum(jnp.where(pick == jnp.arange(6)[:, None], choices, 0.0), 0)
            if action_map == "reach_2d":
                action = jnp.concatenate([action, jnp.roll(draw[0], 1) * (draw[1] > 0)])
            end, segment = advance(state, action, action_map)
            path = actions.follow(state, segment, FINE)
            excess = jnp.stack(
                [
                    jnp.max(jnp.abs(path.position), 0) - ARM.position_limit,
                    jnp.max(jnp.abs(path.velocity), 0) - ARM.velocity_limit,
                    jnp.max(jnp.abs(path.acceleration), 0) - ARM.acceleration_limit,
                    jnp.max(jnp.abs(segment.jerk), 0) - ARM.jerk_limit,
                    -set_margin(end),
                ]
            )
            return (end, held, jnp.maximum(worst, excess)), None

        keys = jax.random.split(key, steps)
        start = (state, held, jnp.full((5, 8), -jnp.inf))
        return jax.lax.scan(body, start, keys)[0][2]

    keys = jax.random.split(jax.random.key(0, impl="rbg"), batch)
    held = jnp.asarray(np.random.default_rng(1).choice([-1.0, 1.0], (batch, 8)), jnp.float32)
    kinds = jnp.arange(batch) % 7
    worst = jax.jit(jax.vmap(one))(random_states(batch, 2), keys, kinds, held)
    worst = np.asarray(worst).max(0)
    assert np.all(worst[:4] <= 1e-6), worst
    # Rounding alone carries states out of the set, by far less than the margin of the limits.
    assert worst[4].max() < actions.MARGIN / 10
    # The walls were reached, or the test says nothing.
    assert np.all(worst[0] > -2e-3 * P)
    full = actions.FULL_VELOCITY if action_map == "velocity" else 1.0
    assert np.all(worst[1] > (full - 1.006) * V)


def test_almost_all_of_an_optimal_ramp_is_reached_from_rest():
    rest = JointState(*(jnp.zeros((COUNT, 8)) for _ in range(3)))
    ramp = np.minimum(A / J, CONTROL_STEP)
    optimal = J * ramp * (CONTROL_STEP - ramp / 2)
    up, down = (np.asarray(STEP(rest, jnp.full((COUNT, 8), x))[0].velocity[0]) for x in (1.0, -1.0))
    assert np.all(up >= 0.95 * optimal) and np.all(up <= optimal * (1 + 1e-6))
    np.testing.assert_allclose(down, -up, rtol=1e-6)


def test_holding_full_reaches_the_limits_and_settles_there():
    zero = jnp.zeros((COUNT, 8))
    state = JointState(
        jnp.broadcast_to(jnp.asarray(-0.99 * P, jnp.float32), (COUNT, 8)), zero, zero
    )
    fastest = np.zeros(8)
    for _ in range(100):
        state, _ = STEP(state, jnp.ones((COUNT, 8)))
        fastest = np.maximum(fastest, np.asarray(state.velocity[0]))
    assert np.all(fastest > 0.99 * V)
    assert np.all(np.asarray(state.position[0]) > 0.998 * P)
    np.testing.assert_allclose(state.velocity[0], 0.0, atol=1e-5)


def test_terminal_velocity_is_linear_in_the_action_and_can_be_held():
    states = random_states(COUNT, 3)
    ends = [
        np.asarray(STEP(states, jnp.full((COUNT, 8), x))[0].velocity) for x in (-1, -0.5, 0.4, 1)
    ]
    assert np.all(ends[3] >= ends[0])
    for x, end in ((-0.5, ends[1]), (0.4, ends[2])):
        expected = ends[0] + 0.5 * (x + 1) * (ends[3] - ends[0])
        np.testing.assert_allclose(end, expected, atol=1e-5 * V.max())

    def drive(state: JointState, target: Any) -> JointState:
        low, high = (STEP(state, jnp.full((COUNT, 8), x))[0].velocity for x in (-1.0, 1.0))
        # Half of the way: a joint that takes all of it at once arrives at full acceleration.
        target = state.velocity + 0.5 * (target - state.velocity)
        return STEP(state, jnp.clip(2 * (target - low) / (high - low) - 1, -1, 1))[0]

    zero = jnp.zeros((COUNT, 8))
    state = JointState(jnp.broadcast_to(jnp.asarray(-0.9 * P, jnp.float32), (COUNT, 8)), zero, zero)
    for _ in range(16):
        state = drive(state, 0.1 * V)
    np.testing.assert_allclose(state.velocity[0], 0.1 * V, rtol=2e-3)
    assert np.all(np.abs(state.acceleration[0]) < 0.01 * A)
    for _ in range(16):
        state = drive(state, 0.0 * V)
    assert np.all(np.abs(state.velocity[0]) < 1e-3 * V)
    assert np.all(np.abs(state.acceleration[0]) < 0.01 * A)


def test_velocity_map_goes_to_the_velocity_that_is_asked_for_and_holds_it():
    """It neither passes it nor rings about it: what is asked for is what the joint does."""
    zero = jnp.zeros((COUNT, 8))
    state = JointState(jnp.broadcast_to(jnp.asarray(-0.5 * P, jnp.float32), (COUNT, 8)), zero, zero)
    share = jnp.asarray(np.random.default_rng(11).uniform(0.0, 0.3, (COUNT, 8)), jnp.float32)
    before = np.zeros((COUNT, 8))
    for ask in (share, -0.5 * share, zero):  # up, back through rest, and to rest
        asked = np.asarray(ask) * actions.FULL_VELOCITY * V
        low, high = np.minimum(before, asked), np.maximum(before, asked)
        for _ in range(8):
            after, segment = STEP_VELOCITY(state, ask)
            path = jax.vmap(lambda s, way: actions.follow(s, way, FINE))(state, segment)
            speed = np.asarray(path.velocity)
            # Pieces are not split, so a joint may pass by up to their jerk times PIECE^2 / 8.
            assert np.all(speed.max(1) <= high + 0.005 * V)
            assert np.all(speed.min(1) >= low - 0.005 * V)
            state = after
        assert np.all(np.abs(np.asarray(state.velocity) - asked) <= 0.005 * V)
        assert np.all(np.abs(np.asarray(state.acceleration)) < 0.01 * A)
        before = asked


def test_velocity_map_comes_as_close_as_the_other_map_can():
    """A full wish is the fastest segment there is, while there is far to go."""
    states = random_states(COUNT, 3)
    for wish in (1.0, -1.0):
        action = jnp.full((COUNT, 8), wish)
        ours = wish * np.asarray(STEP_VELOCITY(states, action)[0].velocity)
        best = wish * np.asarray(STEP(states, action)[0].velocity)
        far = best < 0.25 * actions.FULL_VELOCITY * V
        assert far.mean() > 0.3
        assert np.mean((ours > best - 0.01 * V)[far]) > 0.99


def test_two_dimensional_map_reaches_the_same_velocity_from_ahead_and_from_behind():
    rest = JointState(*(jnp.zeros((COUNT, 8)) for _ in range(3)))
    none, full = jnp.zeros((COUNT, 8)), jnp.ones((COUNT, 8))
    ends = {
        name: STEP_2D(rest, jnp.concatenate(parts, axis=1))[0]
        for name, parts in {
            "ahead": (none, full),
            "back": (none, -full),
            "fast": (full, none),
            "both": (full, full),
        }.items()
    }
    # Jerks J, -J, -J, J move a joint at rest by 2 J PIECE^3 and leave it at rest, where the limit
    # of acceleration allows them.
    by = np.minimum(J, A / PIECE) * PIECE**3 * 2.0
    np.testing.assert_allclose(ends["ahead"].position[0], by, rtol=2e-3)
    np.testing.assert_allclose(ends["back"].position, -ends["ahead"].position, rtol=1e-5)
    assert np.all(np.abs(ends["ahead"].velocity) < 1e-5 * V)
    # The square's corner lies half-way between the two segments.
    middle = 0.5 * (ends["ahead"].position + ends["fast"].position)
    np.testing.assert_allclose(ends["both"].position, middle, rtol=1e-5)
    np.testing.assert_allclose(ends["fast"].velocity, STEP(rest, full)[0].velocity, rtol=1e-6)


def test_stopping_brings_every_state_to_rest_inside_the_limits():
    state = random_states(2000, 4)
    assert float(jnp.mean(state.velocity != 0)) > 0.3
    stop = jax.jit(jax.vmap(lambda s: actions.end_of(s, actions.plan_stop(ARM, s))))
    for _ in range(20):
        state = stop(state)
        assert np.all(np.abs(state.position) <= P)
    assert np.all(np.abs(state.velocity) < 1e-5 * V)
    assert np.all(np.abs(state.acceleration) < 1e-3 * A)


def test_grid_stops_stay_as_close_to_true_stops_as_the_limits_assume():
    rng = np.random.default_rng(5)
    count = 40_000
    x = jnp.asarray(rng.uniform(-0.06, 0.06, count), jnp.float32)  # ramps of up to 60 ms
    turning = rng.uniform(0, 1, count) ** 3 * 0.004
    v = jnp.asarray(turning, jnp.float32) - 0.5 * x * jnp.abs(x)
    top = jnp.maximum(jnp.asarray(rng.uniform(0.002, 0.1, count), jnp.float32), jnp.abs(x))
    jerks = np.stack(actions._unit_stop(top, v, x), 1).astype(np.float64)
    assert 1.2 < np.abs(jerks).max() < actions.SPREAD
    x, v, top = (np.asarray(value, np.float64) for value in (x, v, top))

    def true_path(t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        w = np.maximum(v + x * x / 2, 0)
        peak = np.minimum(np.sqrt(w), top)
        t1 = x + peak
        t2 = t1 + np.maximum(w - top**2, 0) / top
        a, u, p = x.copy(), v.copy(), np.zeros_like(v)
        for start, jerk in ((0 * t1, -1.0), (t1, 1.0), (t2, 1.0), (t2 + peak, -1.0)):
            s = np.maximum(t - start, 0)
            a, u, p = a + jerk * s, u + jerk * s**2 / 2, p + jerk * s**3 / 6
        return a, u + x * t, p + v * t + x * t**2 / 2

    lowest = np.minimum(x, -np.minimum(np.sqrt(np.maximum(v + x * x / 2, 0)), top))
    a, u, p = x.copy(), v.copy(), np.zeros_like(v)
    for k in range(4):
        j = jerks[:, k]
        p = p + PIECE * u + PIECE**2 * a / 2 + PIECE**3 * j / 6
        u = u + PIECE * a + PIECE**2 * j / 2
        a = a + PIECE * j
        path = true_path(np.full(count, (k + 1) * PIECE))
        assert np.all(a > lowest - actions.SPREAD_ACCELERATION * PIECE)
        assert np.all(a < np.maximum(x, 0) + actions.SPREAD_ACCELERATION * PIECE)
        assert np.abs(u - path[1]).max() < actions.SPREAD_VELOCITY * PIECE**2
        assert np.abs(p - path[2]).max() < actions.SPREAD_POSITION * PIECE**3
    for got, expected, unit in zip((a, u, p), path, (PIECE, PIECE**2, PIECE**3), strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-3 * unit)


def test_the_set_is_convex():
    margin = jax.jit(jax.vmap(set_margin))
    rng = np.random.default_rng(6)

    def draw() -> JointState:
        return JointState(
            *(jnp.asarray(rng.uniform(-x, x, (40_000, 8)), jnp.float32) for x in (P, V, A))
        )

    one, other = draw(), draw()
    share = jnp.asarray(rng.uniform(0, 1, (40_000, 1)), jnp.float32)
    between = jax.tree.map(lambda a, b: a + share * (b - a), one, other)
    chord = margin(one) + share * (margin(other) - margin(one))
    assert float(jnp.min(margin(between) - chord)) > -2e-6


def test_mirrored_states_get_mirrored_segments():
    states = random_states(COUNT, 7)
    action = jnp.asarray(np.random.default_rng(8).uniform(-1, 1, (COUNT, 8)), jnp.float32)
    jerk = STEP(states, action)[1].jerk
    mirrored = STEP(jax.tree.map(jnp.negative, states), -action)[1].jerk
    np.testing.assert_allclose(mirrored, -jerk, atol=2e-3 * J.max())


def test_following_is_exact():
    states = random_states(COUNT, 9)
    action = jnp.asarray(np.random.default_rng(10).uniform(-1, 1, (COUNT, 8)), jnp.float32)
    ends, segments = STEP(states, action)
    times = np.array([0.0, 0.003, 0.008, 0.0101, 0.0299, 0.032])
    paths = jax.vmap(lambda s, g: actions.follow(s, g, jnp.asarray(times, jnp.float32)))(
        states, segments
    )
    for field in ("position", "velocity", "acceleration"):
        scale = dict(position=P, velocity=V, acceleration=A)[field]
        path = np.asarray(getattr(paths, field)) / scale
        np.testing.assert_allclose(path[:, 0], getattr(states, field) / scale, atol=1e-7)
        np.testing.assert_allclose(path[:, -1], getattr(ends, field) / scale, atol=2e-6)
    # A dumb integration in double precision.
    jerk = np.asarray(segments.jerk, np.float64)
    a, v, p = (
        np.asarray(value, np.float64)
        for value in (states.acceleration, states.velocity, states.position)
    )
    fine = 1e-5
    for i in range(round(times[4] / fine)):
        j = jerk[:, int((i + 0.5) * fine / PIECE)]
        p, v, a = p + fine * v + fine**2 * a / 2, v + fine * a + fine**2 * j / 2, a + fine * j
    np.testing.assert_allclose(paths.position[:, 4] / P, p / P, atol=2e-6)
    np.testing.assert_allclose(paths.velocity[:, 4] / V, v / V, atol=2e-6)
    np.testing.assert_allclose(paths.acceleration[:, 4] / A, a / A, atol=2e-6)


@pytest.mark.parametrize("delay, lag", [(0.002, 0.004), (0.0035, 0.01), (0.0, 0.0)])
def test_joints_follow_with_delay_and_lag(delay, lag):
    arm = dataclasses.replace(ARM, delay=jnp.full(8, delay), lag=jnp.full(8, lag))
    count = 96
    times = SAMPLE * np.arange(count + 1)
    knots = np.sin(2 * np.pi * 4 * times)[:, None] * np.linspace(0.1, 1, 8)
    memory = actions.at_rest(jnp.asarray(knots[0], jnp.float32))
    positions, velocities = [], []
    follow = jax.jit(lambda memory, reference: actions.track(arm, memory, reference))
    for start in range(0, count, 32):
        reference = jnp.asarray(knots[1 + start : 33 + start], jnp.float32)
        memory, position, velocity = follow(memory, reference)
        positions.append(position)
        velocities.append(velocity)
    # The same by small steps on the reference drawn straight between its samples.
    fine = SAMPLE / 200
    y, expected = knots[0].copy(), []
    for i in range(count * 200):
        at = (i + 0.5) * fine - delay
        u = np.array([np.interp(at, times, knots[:, j]) for j in (0, 7)])
        y = y if len(y) == 2 else y[[0, 7]]
        y = y + (1 - np.exp(-fine / lag)) * (u - y) if lag else u
        if i % 200 == 199:
            expected.append(y)
    expected = np.array(expected)
    got = np.concatenate(positions)[:, [0, 7]]
    # A delay between samples is itself interpolated, which rounds the reference's corners.
    np.testing.assert_allclose(got, expected, atol=4e-4)
    speed = np.gradient(expected, SAMPLE, axis=0)
    np.testing.assert_allclose(np.concatenate(velocities)[5:-1, [0, 7]], speed[5:-1], atol=0.35)
