"""The return as a task for reward designers: its features tell what happened, and its published
rewards are what they say."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.env import named_obs
from core_rl.reward_task import RewardTask, make_features, task_names
from projects.ace.ball import AIR
from projects.ace.bank import BankConfig
from projects.ace.design import BALLS, TASKS, TEST_BALLS, metrics, return_balls
from projects.ace.return_env import LONGEST, OUTCOMES, RUNNING, ReturnTask
from projects.ace.returning import judge_return
from projects.ace.reward import RewardConfig
from projects.reward_llm import language

NUM_BALLS = 24
SMALL = BankConfig(num_balls=NUM_BALLS, spread=1.15)
FLAGS = ("contact", "volley", "touch", "miss", "legal")


class Played(NamedTuple):
    """Every driver `[D]` on the same balls `[N]`, `T` steps."""

    names: list[str]  # of the drivers, the good one first
    features: dict[str, np.ndarray]  # [D, N, T], not clipped
    stored: np.ndarray  # [D, N, T, F], clipped
    states: Any  # [D, N, T, ...]
    alive: np.ndarray  # [D, N, T] bool


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Nearly all of the time of these tests goes into compiling what runs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("banks"))  # where banks are kept
        return return_balls(SMALL, SMALL, test_episodes=4)


@pytest.fixture(scope="module")
def played(task: RewardTask):
    env = task.test_env
    assert isinstance(env, ReturnTask)
    drivers = {"good": task.good, **task.trivial}
    features = make_features(task)

    def episode(number, row, key):
        def step(carry, key):
            state, alive = carry
            # What records features adds an entry that no driver may stumble over.
            obs = {**named_obs(state), "features": jnp.zeros(3)}
            seen = state.replace(obs=obs)  # pyright: ignore[reportAttributeAccessIssue]
            actions = jnp.stack([driver.act(seen, key) for driver in drivers.values()])
            action = actions[number]
            after = env.step(state, action)
            kept = after.replace(obs={})  # pyright: ignore[reportAttributeAccessIssue]
            row = task.measure(state, after, action), features(state, after, action), kept, alive
            return (after, alive & (after.done < 0.5)), row

        start = env.start(row, key), jnp.asarray(True)
        return jax.lax.scan(step, start, jax.random.split(key, LONGEST))[1]

    rows = jnp.arange(env.num_balls)
    keys = jax.random.split(jax.random.key(0), env.num_balls)
    every = jax.vmap(jax.vmap(episode, in_axes=(None, 0, 0)), in_axes=(0, None, None))
    return Played(
        list(drivers), *jax.device_get(jax.jit(every)(jnp.arange(len(drivers)), rows, keys))
    )


def paid(task: RewardTask, source: str, features: np.ndarray) -> tuple[np.ndarray, dict]:
    """Total and terms of a reward [...] for stored features [..., F]."""
    names = list(task.features)
    program = language.check(source, names)

    def reward(row):
        return language.evaluate(program, dict(zip(names, row, strict=True)))

    total, terms = jax.jit(jax.vmap(reward))(features.reshape(-1, len(names)))
    shape = features.shape[:-1]
    return np.reshape(total, shape), {k: np.reshape(v, shape) for k, v in terms.items()}


def test_features_are_within_their_ranges(task, played):
    assert set(played.features) == set(task.features)
    for number, (name, feature) in enumerate(task.features.items()):
        values = played.features[name][played.alive]
        assert np.isfinite(values).all(), name
        assert values.min() >= feature.low - 1e-6 and values.max() <= feature.high + 1e-6, name
        np.testing.assert_allclose(played.stored[..., number][played.alive], values, atol=1e-6)
        if feature.kind == "flag":
            assert set(np.unique(values)) <= {0.0, 1.0}
    assert {n for n, feature in task.features.items() if feature.kind == "flag"} == set(FLAGS)
    assert played.features["time"][played.alive].min() > 0.0  # so 0 is after the end


def test_features_tell_what_happened(task, played):
    features, alive = played.features, played.alive
    state = played.states.pipeline_state
    last = np.sum(alive, axis=-1, keepdims=True) - 1
    ended = {n: np.take_along_axis(values, last, -1)[..., 0] for n, values in features.items()}
    outcome = np.take_along_axis(state.outcome, last, -1)[..., 0]
    assert (outcome != RUNNING).all()
    for name in ("volley", "touch", "miss", "legal"):
        np.testing.assert_array_equal(ended[name] > 0, outcome == OUTCOMES.index(name))
    np.testing.assert_array_equal(sum(ended[n] for n in FLAGS if n != "legal"), 1.0)
    earlier = alive & (np.arange(LONGEST) < last)
    for name in (*FLAGS, "net_clearance", "landing_x", "return_speed", "return_topspin"):
        assert (features[name][earlier] == 0.0).all(), name
    assert (features["landing_distance"][earlier] == 15.0).all()

    incoming = task.test_env.bank.incoming
    bounce_time = np.asarray(incoming.bounce_time)[None, :, None]
    np.testing.assert_allclose(
        features["since_bounce"][alive], (features["time"] - bounce_time)[alive], atol=1e-4
    )
    sample = np.minimum(state.step * 8, incoming.position.shape[1] - 1)
    height = np.asarray(incoming.position)[state.row, sample, 2]
    np.testing.assert_allclose(features["ball_height"][alive], height[alive], atol=1e-5)

    # The verdict of the ball that left the racket, flown once more.
    hit = ended["contact"] > 0
    returned = jax.tree.map(
        lambda leaf: np.take_along_axis(leaf, last[..., None], 2)[:, :, 0][hit], state.returned
    )
    verdict = jax.jit(jax.vmap(lambda ball: judge_return("conti", AIR, ball)))(returned)
    np.testing.assert_allclose(ended["net_clearance"][hit], verdict.net_clearance, atol=1e-3)
    np.testing.assert_array_equal(ended["landing_distance"][hit] < 15.0, verdict.down)
    np.testing.assert_allclose(ended["landing_x"][hit], verdict.landing[:, 0], atol=1e-2)
    error = np.sum(np.where(alive, played.states.metrics["landing_error"], 0.0), axis=-1)
    legal = ended["legal"] > 0
    np.testing.assert_allclose(ended["landing_distance"][legal], error[legal], atol=1e-5)
    assert legal.sum() > NUM_BALLS / 2 and (~legal & hit).any()


def test_human_is_the_rewards_of_the_environment(task, played):
    total, terms = paid(task, task.human, played.stored)
    reward = played.states.reward
    np.testing.assert_allclose(total[played.alive], reward[played.alive], atol=1e-5)
    defaults = dataclasses.asdict(RewardConfig())
    assert {**task.weights, "precision": defaults["precision"]} == defaults  # paid in T2 alone
    unweighted, raw = paid(task, task.terms, played.stored)
    assert set(raw) == set(terms) == set(task.weights)
    np.testing.assert_allclose(unweighted, sum(raw.values()), atol=1e-5)
    for name, weight in task.weights.items():
        np.testing.assert_allclose(terms[name], weight * raw[name], atol=1e-6, err_msg=name)
        env_term = played.states.metrics[f"reward/{name}"]
        np.testing.assert_allclose(raw[name][played.alive], env_term[played.alive], atol=1e-5)


def test_trivial_drivers_are_paid_less(task, played):
    for source, most in ((task.human, 0.6), (task.sparse, 0.1)):
        total, _ = paid(task, source, played.stored)
        returns = np.sum(np.where(played.alive, total, 0.0), axis=-1).mean(axis=-1)
        good, trivial = returns[0], dict(zip(played.names[1:], returns[1:], strict=True))
        # Measured on 256 balls: 4.5 and 1.0 for the good one.
        assert all(value < most * good for value in trivial.values()), (good, trivial)
    legal = np.where(played.alive, played.states.metrics["legal"], 0.0)
    np.testing.assert_array_equal(np.where(played.alive, total, 0.0), legal)
    merits = [
        np.mean([task.merit({n: v[d, k] for n, v in blanked(played).items()}) for k in range(12)])
        for d in range(len(played.names))
    ]
    assert merits[0] > max(merits[1:]) + 1.0


def blanked(played: Played) -> dict[str, np.ndarray]:
    """Features as a judge gets them, 0 after the end of an episode."""
    return {n: np.where(played.alive, values, 0.0) for n, values in played.features.items()}


def test_summary_says_how_it_ended(task, played):
    features = blanked(played)

    def told(driver: int, ball: int) -> str:
        return task.summary({name: values[driver, ball] for name, values in features.items()})

    ends = {"a legal return": "legal", "was missed by": "miss", "touched the table": "touch"}
    happened = {name: np.sum(features[name], axis=-1) > 0 for name in FLAGS}
    for words, name in ends.items():
        driver, ball = np.argwhere(happened[name])[0]
        assert words in told(driver, ball)
    driver, ball = np.argwhere(happened["contact"] & ~happened["legal"])[0]
    assert "no return; the ball left the racket" in told(driver, ball)
    # A clip that was cut at its end says the same.
    steps = int(played.alive[0, 0].sum())
    cut = {name: values[0, 0, :steps] for name, values in features.items()}
    assert task.summary(cut) == told(0, 0)
    assert task.summary({name: np.zeros(5) for name in features}) == "nothing happened"
    assert "running" in task.summary({name: values[:2] for name, values in cut.items()})


def test_metrics_of_episodes(task):
    totals = {
        "hit": [1, 1, 1, 0],
        "legal": [1, 1, 0, 0],
        "landing_error": [0.1, 0.3, 0.0, 0.0],
        "ended/net": [0, 0, 1, 0],
        "ended/out": [0, 0, 0, 0],
        "ended/volley": [0, 0, 0, 0],
        "ended/touch": [0, 0, 0, 1],
        "reward/effort": [-2.0, -3.0, -4.0, -1.0],
        "steps": [20, 10, 10, 10],
    }
    found = metrics({name: jnp.array(values, jnp.float32) for name, values in totals.items()})
    expected = {
        "return_rate": 0.5,
        "hit_rate": 0.75,
        "net_rate": 0.25,
        "out_rate": 0.0,
        "fault_rate": 0.25,
        "landing_error": 0.2,
        "effort": 0.2,
        "score": 0.575,
    }
    assert set(found) == set(expected) == set(task.metric_docs) and task.score in found
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value), name
    nothing = {name: jnp.zeros(4) for name in totals} | {"steps": jnp.ones(4)}
    assert np.isnan(metrics(nothing)["landing_error"])


def test_task_is_offered_and_its_learner_fits(task):
    assert "ace:return" in task_names() and TASKS["return"] is return_balls
    assert BALLS.seed != TEST_BALLS.seed  # policies are compared on balls that none trained with
    entries = set(task.env.observation_size)
    assert {*task.agent.actor_obs, *task.agent.critic_obs} <= entries
    assert task.agent.afterstate and task.afterstate() is not None
