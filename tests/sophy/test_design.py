"""The time trial as designers of rewards see it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.reward_task import make_features
from projects.reward_llm import language
from projects.sophy.design import HUMAN, SPARSE, TERMS, careful_driver, time_trial
from projects.sophy.time_trial import TimeTrialConfig

NUM_STEPS = 60


@pytest.fixture(scope="module")
def task():
    return time_trial()


@pytest.fixture(scope="module")
def driven(task):
    """Features, rewards of the environment, and features before they are clipped, by driver."""
    features = make_features(task)
    drivers = {"good": task.good, **task.trivial}

    @jax.jit
    def drive(key):
        found = {}
        for name, driver in drivers.items():

            def step(state, key, driver=driver):
                action = driver.act(state, key)
                after = task.test_env.step(state, action)
                measured = task.measure(state, after, action)
                row = jnp.stack([measured[feature] for feature in task.features])
                return after, (features(state, after, action), after.reward, row)

            start = task.test_env.reset(jax.random.fold_in(key, 1))
            found[name] = jax.lax.scan(step, start, jax.random.split(key, NUM_STEPS))[1]
        return found

    return jax.device_get(jax.vmap(drive)(jax.random.split(jax.random.key(2), 6)))


def reward_of(source, task, features, weights=None):
    program = language.check(source, list(task.features))

    def one(row):
        total, terms = language.evaluate(program, dict(zip(task.features, row, strict=True)))
        if weights is None:
            return total
        return sum(weights[name] * terms[name] for name in program.terms)

    return np.asarray(jax.vmap(jax.vmap(one))(jnp.asarray(features)))


def test_the_human_reward_is_the_environments(task, driven):
    met = {}
    for features, reward, _ in driven.values():
        np.testing.assert_allclose(reward_of(HUMAN, task, features), reward, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            reward_of(TERMS, task, features, task.weights), reward, rtol=1e-4, atol=1e-4
        )
        for i, name in enumerate(task.features):
            met[name] = met.get(name, 0.0) + float(np.abs(features[..., i]).sum())
    # The drives meet all that is paid for.
    assert all(met[name] > 0 for name in ("progress", "off_course", "wall_contact", "tyre_slip"))


def test_features_stay_in_their_ranges(task, driven):
    lock = float(task.env.car.steering_limit)
    for features, _, raw in driven.values():
        # Full lock, 0.611 rad, reads as 0.6; nothing else is ever cut.
        assert lock - 0.6 < 0.011
        np.testing.assert_allclose(features, raw, atol=lock - 0.6 + 1e-6)
        cut = np.any(features != raw, axis=(0, 1))
        assert set(np.array(list(task.features))[cut]) <= {"steering"}
    flags = [i for i, f in enumerate(task.features.values()) if f.kind == "flag"]
    values = np.concatenate([f[..., flags].ravel() for f, _, _ in driven.values()])
    assert flags and set(np.unique(values)) <= {0.0, 1.0}


def test_the_careful_driver_stays_on_the_road_and_is_liked_best(task, driven):
    at = list(task.features).index
    gained = {name: f[..., at("progress")].sum(1) for name, (f, _, _) in driven.items()}
    off = {name: f[..., at("off_course")].sum(1) for name, (f, _, _) in driven.items()}
    assert off["good"].max() == 0.0 and gained["good"].min() > 40.0
    merits = {
        name: np.mean(
            [task.merit({n: row[:, i] for i, n in enumerate(task.features)}) for row in f]
        )
        for name, (f, _, _) in driven.items()
    }
    assert all(merits["good"] > merits[name] for name in task.trivial)


def test_metrics_by_hand(task):
    """Two cars of four with a lap of 1.1 and 1.3 reference times; one tenth of the steps off the
    road and a twentieth in walls, so the score is the pace times exp(-1.5)."""
    reference = float(task.env.reference.lap_time)
    steps = task.test_length
    distance = float(task.env.track.length) * steps * 0.1 / reference
    found = task.metrics(
        {
            "laps": jnp.array([1.0, 1.0, 0.0, 0.0]),
            "lap_seconds": jnp.array([1.1, 1.3, 0.0, 0.0]) * reference,
            "off_course_steps": jnp.array([0.4, 0.0, 0.0, 0.0]) * steps,
            "wall_contact_steps": jnp.full(4, 0.05) * steps,
            "distance": jnp.array([0.8, 0.8, 0.4, 0.4]) * distance,
            "steering_change": jnp.full(4, 0.003) * steps,
        }
    )
    expected = {
        "lap_ratio": 1.2,
        "cars_with_a_lap": 0.5,
        "pace": 0.6,
        "off_course": 0.1,
        "wall_contact": 0.05,
        "steering_activity": 0.003,
        "score": 0.6 * np.exp(-1.5),
    }
    assert set(found) == set(expected) == set(task.metric_docs)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-4)


def test_the_sparse_reward_pays_for_the_line_only(task):
    features = np.zeros((1, 2, len(task.features)), np.float32)
    features[0, 1, list(task.features).index("line_crossed")] = 1.0
    assert reward_of(SPARSE, task, features).tolist() == [[0.0, 1.0]]


def test_the_summary_tells_what_happened(task, driven):
    features = driven["straight"][0][0]
    text = task.summary({n: features[:, i] for i, n in enumerate(task.features)})
    at = list(task.features).index
    assert f"time off course: {features[:, at('off_course')].sum() * 0.1:.1f} s" in text
    assert text.splitlines()[0].startswith("time [s]")


def test_other_circuits_and_cars_make_other_tasks():
    task = time_trial(
        dataclasses.replace(TimeTrialConfig(), circuit="copperbowl", car="kart", steering="delta")
    )
    assert "kart" in task.facts and task.test_length < 2000
    assert careful_driver(task.env).doc
