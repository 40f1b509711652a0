"""The arm: against MuJoCo, its mirror image, brute force, and Ace's published racket speed."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.ace import arm as arms

mujoco: Any = importlib.import_module("mujoco")  # its stubs lack what C defines

LIMIT = np.asarray(arms.ace_arm().position_limit)


@pytest.fixture(scope="module")
def model() -> Any:
    return mujoco.MjModel.from_xml_string(arms.mjcf())


def poses(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).uniform(-LIMIT, LIMIT, (count, 8)).astype(np.float32)


def test_limits_of_the_model_are_the_published_ones(model):
    np.testing.assert_allclose(model.jnt_range, np.stack([-LIMIT, LIMIT], 1), atol=1e-6)
    assert [model.joint(i).name for i in range(8)] == [f"J{i + 1}" for i in range(8)]
    kinds = [mujoco.mjtJoint.mjJNT_SLIDE] * 2 + [mujoco.mjtJoint.mjJNT_HINGE] * 6
    assert list(model.jnt_type) == kinds


def test_pose_and_velocities_equal_mujocos(model):
    q = poses(1000, 0)
    speed = np.asarray(arms.ace_arm().velocity_limit)
    qd = np.random.default_rng(1).uniform(-speed, speed, q.shape).astype(np.float32)
    pose, velocity, turn = jax.jit(jax.vmap(arms.racket_motion))(q, qd)
    alone = jax.jit(jax.vmap(arms.racket_pose))(q)
    data = mujoco.MjData(model)
    site = model.site("racket").id
    result = np.zeros(6)
    for i in range(len(q)):
        data.qpos[:], data.qvel[:] = q[i], qd[i]
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_comVel(model, data)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_SITE, site, result, 0)
        frame = data.site_xmat[site].reshape(3, 3)
        for p in (pose, alone):
            np.testing.assert_allclose(p.centre[i], data.site_xpos[site], atol=2e-6)
            np.testing.assert_allclose(p.normal[i], frame[:, 1], atol=2e-6)
            np.testing.assert_allclose(p.handle[i], frame[:, 2], atol=2e-6)
        np.testing.assert_allclose(velocity[i], result[3:], atol=5e-5)
        np.testing.assert_allclose(turn[i], result[:3], atol=5e-5)


def test_home_faces_the_opponent_in_front_of_the_base():
    pose = arms.racket_pose(jnp.asarray(arms.HOME))
    np.testing.assert_allclose(pose.normal, [1.0, 0.0, 0.0], atol=0.01)
    np.testing.assert_allclose(pose.handle, [0.0, 0.0, -1.0], atol=0.01)
    np.testing.assert_allclose(pose.centre, [-1.54, 0.0, 0.255], atol=0.005)
    assert float(jnp.min(arms.clearances(jnp.asarray(arms.HOME)))) > 0.05


def test_mirrored_joints_mirror_the_racket():
    q = poses(200, 2)
    flip = np.array([1.0, -1.0, 1.0])
    pose = jax.vmap(arms.racket_pose)(q)
    mirrored = jax.vmap(arms.racket_pose)(q * arms.MIRROR)
    np.testing.assert_allclose(mirrored.centre, pose.centre * flip, atol=1e-6)
    np.testing.assert_allclose(mirrored.handle, pose.handle * flip, atol=1e-6)
    # The blade is its own mirror image, with the faces exchanged.
    np.testing.assert_allclose(mirrored.normal, -pose.normal * flip, atol=1e-6)


def test_racket_speed_brackets_the_published_22_metres_per_second():
    q = poses(20_000, 3)
    speed = np.asarray(arms.ace_arm().velocity_limit)

    def forward(q):
        jacobian = jax.vmap(lambda e: arms.racket_motion(q, e)[1])(jnp.eye(8))[:, 0]
        return jnp.sum(jnp.abs(jacobian) * speed)

    speeds = np.asarray(jax.jit(jax.vmap(forward))(q))
    behind = np.asarray(jax.jit(jax.vmap(arms.racket_pose))(q).centre[:, 0]) < -1.37
    median, high, top = np.quantile(speeds[behind], [0.5, 0.95, 1.0])
    assert 12.0 < median < 16.0
    assert 19.0 < high < 22.0
    assert 22.0 < top < 26.0


def near_table(count: int) -> Any:
    """Poses whose nearest part is close to the table or touches it."""
    q = poses(40_000, 4)
    least = np.asarray(jax.jit(jax.vmap(arms.clearances))(q))[:, :6].min(1)
    return q[np.abs(least) < 0.15][:count]


def test_free_capsules_are_as_far_as_mujoco_says(model):
    q = near_table(200)
    got = np.asarray(jax.jit(jax.vmap(arms.clearances))(q))
    data = mujoco.MjData(model)
    table = model.geom("table").id
    for i in range(len(q)):
        data.qpos[:] = q[i]
        mujoco.mj_kinematics(model, data)
        for k, name in enumerate(("trunk", "upper arm", "forearm", "wrist", "handle")):
            geom = model.geom(name).id
            expected = mujoco.mj_geomDistance(model, data, geom, table, 5.0, None)
            # Where a capsule's axis pierces the table MuJoCo is wrong; the points below are not.
            if got[i, k] > 0:
                assert got[i, k] == pytest.approx(expected, abs=2e-5), (name, q[i])


def box_distance(points: np.ndarray, centre: np.ndarray, half: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.maximum(np.abs(points - centre) - half, 0), axis=-1)


def test_capsule_distances_equal_those_of_many_points():
    q = near_table(2000)
    got = np.asarray(jax.jit(jax.vmap(arms.clearances))(q))[:, :5]
    chain = jax.vmap(arms._chain)(q)
    neck = chain.wrist + arms.WRIST * chain.hand
    foot = chain.shoulder + np.array([0, 0, arms.RAIL_Z - arms.SHOULDER_Z])
    ends = [foot, chain.shoulder, chain.elbow, chain.wrist, neck]
    ends.append(chain.blade - arms.BLADE_RADIUS * chain.hand)
    share = np.linspace(0, 1, 201)[:, None]
    for k in range(5):
        start, end = np.asarray(ends[k])[:, None], np.asarray(ends[k + 1])[:, None]
        points = start + share * (end - start)
        expected = box_distance(points, np.array([0, 0, -0.015]), np.array([1.37, 0.7625, 0.015]))
        expected = expected.min(1) - arms.RADII[k]
        np.testing.assert_allclose(got[:, k], expected, atol=2e-3)  # the points' spacing
        far = expected > 0.03 - arms.RADII[k]
        np.testing.assert_allclose(got[far, k], expected[far], atol=1e-4)
    assert (got.min(1) < 0).mean() > 0.05


def test_blade_distance_equals_that_of_many_points():
    q = near_table(400)
    got = np.asarray(jax.jit(jax.vmap(arms.clearances))(q))
    pose = jax.vmap(arms.racket_pose)(q)
    centre, normal, handle = (np.asarray(p) for p in (pose.centre, pose.normal, pose.handle))
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    radius = arms.BLADE_RADIUS * np.linspace(0, 1, 40)
    u = (radius[:, None] * np.cos(angle)).ravel()
    v = (radius[:, None] * np.sin(angle)).ravel()
    across = np.cross(normal, handle)
    points = (
        centre[:, None] + u[None, :, None] * handle[:, None] + v[None, :, None] * across[:, None]
    )
    boxes = (
        ([0, 0, -0.015], [1.37, 0.7625, 0.015]),
        ([0, 0, 0.07625], [0, 0.915, 0.07625]),
    )
    for k, (box_centre, half) in zip((5, 6), boxes, strict=True):
        expected = box_distance(points, np.array(box_centre), np.array(half)).min(1) - 0.0065
        error = got[:, k] - expected
        assert error.min() > -2e-3  # the points are 2 mm apart
        assert error.max() < 0.01
        assert np.abs(error[expected < 0.03]).max(initial=0.0) < 1e-3
    assert (got[:, 5] < 0).sum() > 10


def test_neither_trunk_nor_anything_can_reach_table_or_net_by_the_slides():
    q = poses(20_000, 5)
    got = np.asarray(jax.jit(jax.vmap(arms.clearances))(q))
    assert got[:, 0].min() > 0.01
    assert got[:, 6].min() > 0.3
    reach = arms.BASE_X + LIMIT[0] + arms.UPPER_ARM + arms.FOREARM + arms.HAND
    assert reach + arms.BLADE_RADIUS < -0.3
