"""The swept test of ball and racket, against looking every 0.05 ms and against known cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.ace import arm as arms
from projects.ace import racket
from projects.ace.ball import Ball

STEP = 0.001
SWEEP = jax.jit(racket.sweep)


def ball_at(position, velocity) -> Ball:
    return Ball(jnp.asarray(position), jnp.asarray(velocity), jnp.zeros(3))


def still(centre=(0.0, 0.0, 0.0), velocity=(0.0, 0.0, 0.0), turn=(0.0, 0.0, 0.0)):
    pose = arms.RacketPose(
        jnp.asarray(centre), jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 0.0, -1.0])
    )
    return pose, jnp.asarray(velocity), jnp.asarray(turn)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_known_face_hit(side):
    speed, start = 20.0, racket.REACH + 0.005
    hit = SWEEP(
        ball_at([side * start, 0.03, 0.01], [-side * speed, 0.0, 0.0]),
        ball_at([side * (start - speed * STEP), 0.03, 0.01], [-side * speed, 0.0, 0.0]),
        still(),
        still(),
        STEP,
    )
    assert bool(hit.happened) and not bool(hit.rim)
    assert float(hit.side) == side
    assert float(hit.fraction) == pytest.approx(0.25, abs=1e-4)
    np.testing.assert_allclose(hit.normal, [side, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(hit.arm, [side * 0.0065, 0.03, 0.01], atol=1e-5)


@pytest.mark.parametrize("away", [0.115, 0.09, 0.02])
def test_past_the_edge_only_the_rim_is_touched(away):
    speed = 30.0
    hit = SWEEP(
        ball_at([0.03, away, 0.0], [-speed, 0.0, 0.0]),
        ball_at([0.03 - speed * STEP, away, 0.0], [-speed, 0.0, 0.0]),
        still(),
        still(),
        STEP,
    )
    assert bool(hit.happened) == (away < 0.1)
    assert bool(hit.rim) == (away == 0.09)
    if away == 0.09:
        height = 0.03 - float(hit.fraction) * speed * STEP
        assert np.hypot(height, away - arms.BLADE_RADIUS) == pytest.approx(racket.REACH, abs=2e-4)


def test_ball_from_the_side_meets_the_rim():
    hit = SWEEP(
        ball_at([0.0, 0.11, 0.0], [0.0, -20.0, 0.0]),
        ball_at([0.0, 0.09, 0.0], [0.0, -20.0, 0.0]),
        still(),
        still(),
        STEP,
    )
    assert bool(hit.rim)
    expected = (0.11 - arms.BLADE_RADIUS - racket.REACH) / 0.02
    assert float(hit.fraction) == pytest.approx(expected, abs=1e-3)
    np.testing.assert_allclose(hit.normal, [0.0, 1.0, 0.0], atol=1e-5)
    np.testing.assert_allclose(hit.arm, [0.0, 0.0825, 0.0], atol=1e-4)


def test_gap_that_closes_and_opens_again_is_a_hit():
    # The racket comes at the ball and turns back within the step.
    speed, start = 10.0, racket.REACH + 0.002
    hit = SWEEP(
        ball_at([start, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ball_at([start, 0.0, 0.0], [0.0, 0.0, 0.0]),
        still(velocity=(speed, 0.0, 0.0)),
        still(velocity=(-speed, 0.0, 0.0)),
        STEP,
    )
    # The gap is 2 mm - 10 mm t (1 - t).
    assert bool(hit.happened)
    assert float(hit.fraction) == pytest.approx(0.5 - np.sqrt(0.05), abs=1e-3)
    miss = SWEEP(
        ball_at([start + 0.001, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ball_at([start + 0.001, 0.0, 0.0], [0.0, 0.0, 0.0]),
        still(velocity=(speed, 0.0, 0.0)),
        still(velocity=(-speed, 0.0, 0.0)),
        STEP,
    )
    assert not bool(miss.happened)


def test_nothing_is_missed_at_35_metres_per_second():
    """Strokes of the arm at joint speeds up to their limits, with balls that fly at the blade."""
    rng = np.random.default_rng(0)
    count, steps, fine = 4000, 12, 20
    arm = arms.ace_arm()
    limit, speed = np.asarray(arm.position_limit), np.asarray(arm.velocity_limit)
    q = rng.uniform(-limit, limit, (count, 8)).astype(np.float32)
    qd = rng.uniform(-speed, speed, (count, 8)).astype(np.float32)
    # The ball is in the blade's plane, at `spot`, half-way; it comes within 60 degrees of the face.
    pose, velocity, _ = jax.jit(jax.vmap(arms.racket_motion))(q, qd)
    normal, handle = np.asarray(pose.normal), np.asarray(pose.handle)
    across = np.cross(normal, handle)
    side = rng.choice([-1.0, 1.0], (count, 1))
    angle = rng.uniform(0, np.pi / 3, (count, 1))
    turn = rng.uniform(0, 2 * np.pi, (count, 1))
    flat = np.cos(turn) * handle + np.sin(turn) * across
    closing = rng.uniform(15.0, 35.0, (count, 1))
    way = -closing * (np.cos(angle) * side * normal + np.sin(angle) * flat)
    spot = rng.uniform(-0.12, 0.12, (count, 2))
    ball_velocity = (np.asarray(velocity) + way).astype(np.float32)
    middle = np.asarray(pose.centre) + spot[:, :1] * handle + spot[:, 1:] * across

    def run(q, qd, middle, ball_velocity):
        def at(time):
            ball = Ball(middle + time * ball_velocity, ball_velocity, jnp.zeros(3))
            return ball, arms.racket_motion(q + time * qd, qd)

        def look(time):  # distance of the ball's centre from the disc
            ball, (pose, _, _) = at(time)
            away = ball.position - pose.centre
            height = jnp.dot(away, pose.normal)
            radius = jnp.sqrt(jnp.sum((away - height * pose.normal) ** 2))
            return jnp.hypot(height, jnp.maximum(radius - arms.BLADE_RADIUS, 0.0)) - racket.REACH

        starts = (np.arange(steps) - steps / 2) * STEP
        hits = jax.vmap(lambda t: racket.sweep(*pairs(at(t), at(t + STEP)), STEP))(
            jnp.asarray(starts, jnp.float32)
        )
        times = np.arange(steps * fine + 1) / (steps * fine) * steps * STEP + starts[0]
        return hits, jax.lax.map(look, jnp.asarray(times, jnp.float32), batch_size=16)

    def pairs(before, after):
        return before[0], after[0], before[1], after[1]

    hits, distance = jax.jit(jax.vmap(run))(q, qd, middle.astype(np.float32), ball_velocity)
    distance = np.asarray(distance)
    valid = distance[:, 0] > 0.0
    happened = np.asarray(hits.happened)
    first = (
        np.argmax(happened, 1)
        + np.take_along_axis(np.asarray(hits.fraction), np.argmax(happened, 1)[:, None], 1)[:, 0]
    ) * fine
    dense = np.argmax(distance <= 0.0, 1)
    touched = (distance.min(1) < -5e-5) & valid
    assert touched.sum() > 2000
    assert happened[touched].any(1).all()
    assert np.abs(first - dense)[touched].max() < 2.0  # of 0.05 ms
    clear = (distance.min(1) > 5e-4) & valid
    assert clear.sum() > 200
    assert not happened[clear].any()
    rim = np.asarray(hits.rim)[touched].any(1).mean()
    assert 0.05 < rim < 0.6
