"""Rewards that are computed from stored features train as rewards of the environment do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.qr_sac import make_qr_sac
from core_rl.train import make_trainer
from projects.reward_llm import compile as compiled
from projects.reward_llm.compile import make_bank, make_reward, padded, rewards_of
from projects.reward_llm.language import check, evaluate
from projects.reward_llm.population import (
    ENTRY,
    REWARD_CLIP,
    Featured,
    clipped,
    drive,
    make_population,
    of_lanes,
)
from tests.reward_llm.toy import FEATURES, HUMAN, LAZY, SPARSE, toy_task

NAMES = list(FEATURES)
EPOCHS = 6
HUGE = """
def reward(f):
    x = 1e5 * f["gain"]
    return x, {"x": x}
"""


@pytest.fixture(scope="module")
def programs():
    return {
        name: check(source, NAMES)
        for name, source in {"human": HUMAN, "sparse": SPARSE, "lazy": LAZY, "huge": HUGE}.items()
    }


@pytest.fixture(scope="module")
def task():
    return toy_task()


@pytest.fixture(scope="module")
def population(task):
    return make_population(task, EPOCHS)


def trained(population, programs, weights=None, seed=0, epochs=EPOCHS):
    weights = weights or [[1.0] * len(one.terms) for one in programs]
    bank = make_bank(programs, NAMES)
    factors = padded(weights, bank.num_terms)
    state = population.init([jax.random.key(seed)] * len(programs))
    state = population.relabel(state, bank, factors)
    for _ in range(epochs):
        state, _ = population.epoch(state, bank, factors)
    return state


def actor(state, lane):
    return jax.tree.map(lambda leaf: np.asarray(leaf[lane]), state.agent.networks.actor)


def test_stored_rewards_are_those_of_each_program(population, programs):
    # 5 rows of warm-up and 6 epochs of 3 rows go around a ring of 10 rows more than twice.
    chosen = [programs[name] for name in ("human", "lazy", "human")]
    weights = [[1.0, 1.0], [1.0], [0.5, 3.0]]
    state = trained(population, chosen, weights)
    storage = jax.device_get(state.replay.storage)
    assert int(state.replay.num_rows[0]) == 5 + 3 * EPOCHS > 2 * 10
    for lane, (program, factors) in enumerate(zip(chosen, weights, strict=True)):
        features = storage.next_obs[ENTRY][lane]
        for step in range(len(features)):
            _, terms = evaluate(program, dict(zip(NAMES, features[step], strict=True)))
            expected = sum(w * terms[n] for w, n in zip(factors, program.terms, strict=True))
            assert storage.reward[lane, step] == pytest.approx(float(expected), abs=1e-6)
    assert np.std(storage.reward[0]) > 0.0


def test_a_reward_trains_as_it_does_inside_the_environment(task, population, programs):
    """The same learner on an environment that pays the reward itself, with the same keys."""
    program = programs["human"]
    reward = make_reward(program, NAMES)
    ones = jnp.ones(len(program.terms))
    env = Featured(task, task.env, lambda features: reward(features, ones)[0])
    config = dataclasses.replace(task.agent, lr_decay_updates=EPOCHS * task.train.updates_per_epoch)
    trainer = make_trainer(
        env,
        make_qr_sac(config, 1),
        task.train,
        episode_length=task.episode_length,
        batch_size=config.batch_size,
        n_step=config.n_step,
    )

    def epoch(state):
        next_key, act_key, learn_key = jax.random.split(state.key, 3)
        steps = task.train.steps_per_epoch
        state, _ = jax.lax.scan(trainer.collect, state, jax.random.split(act_key, steps))
        state, _ = jax.lax.scan(trainer.learn, state, jax.random.split(learn_key, steps))
        return dataclasses.replace(state, key=next_key, epoch=state.epoch + 1)

    alone = jax.jit(trainer.init)(jax.random.key(0))
    step = jax.jit(epoch)
    for _ in range(EPOCHS):
        alone = step(alone)
    state = trained(population, [program])
    for ours, theirs in zip(
        jax.tree.leaves(actor(state, 0)),
        jax.tree.leaves(jax.device_get(alone.agent.networks.actor)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_lane_is_the_training_of_its_reward_alone_wherever_it_stands(population, programs):
    human, lazy, sparse = (programs[name] for name in ("human", "lazy", "sparse"))
    batch = trained(population, [human, lazy, sparse])
    turned = trained(population, [sparse, human, lazy])
    for lane, other, program in ((0, 1, human), (1, 2, lazy), (2, 0, sparse)):
        alone = trained(population, [program])
        for in_batch, elsewhere, single in zip(
            *(
                jax.tree.leaves(tree)
                for tree in (actor(batch, lane), actor(turned, other), actor(alone, 0))
            ),
            strict=True,
        ):
            np.testing.assert_allclose(in_batch, single, atol=2e-5)
            np.testing.assert_allclose(in_batch, elsewhere, atol=2e-5)
    # The rewards do differ, so equality is not for want of an effect.
    kernels = [jax.tree.leaves(actor(batch, lane))[-1] for lane in range(3)]
    assert np.max(np.abs(kernels[0] - kernels[1])) > 1e-3


def test_other_weights_compile_nothing_and_other_programs_not_the_learner(
    task, population, programs, monkeypatch
):
    evaluations = []
    original = compiled.evaluate
    monkeypatch.setattr(compiled, "evaluate", lambda *a: (evaluations.append(1), original(*a))[1])
    bank = make_bank([programs["human"]] * 3, NAMES)
    state = population.init([jax.random.key(0)] * 3)
    state, _ = population.epoch(state, bank, padded([[1.0, 1.0]] * 3, 2))
    traced, evaluated = task.env.traces, len(evaluations)
    assert traced > 0 and evaluated > 0
    state, _ = population.epoch(state, bank, padded([[0.1, 7.0], [2.0, 0.0], [1.0, 1.0]], 2))
    assert (task.env.traces, len(evaluations)) == (traced, evaluated)
    other = make_bank([programs["lazy"], programs["sparse"], programs["lazy"]], NAMES)
    population.epoch(state, other, padded([[1.0]] * 3, 1))
    assert task.env.traces == traced
    assert len(evaluations) > evaluated


def test_weights_are_factors_of_terms_and_ones_leave_the_total_as_it_is():
    program = check(
        'def reward(f):\n    a = f["gain"]\n    b = f["speed"]\n'
        '    return a * b, {"a": a, "b": b}\n',
        NAMES,
    )
    features = np.array([[0.5, 0.25, 0.0]], np.float32)
    total, terms = rewards_of(program, [1.0, 1.0], features, NAMES)
    assert total[0] == pytest.approx(0.125) and terms[0] == pytest.approx([0.5, 0.25])
    total, terms = rewards_of(program, [3.0, 0.0], features, NAMES)
    assert total[0] == pytest.approx(0.125 + 2 * 0.5 - 0.25)
    assert terms[0] == pytest.approx([1.5, 0.0])


def test_what_a_learner_sees_is_finite_and_bounded(population, programs):
    seen = clipped(jnp.array([1.0, jnp.nan, jnp.inf, -jnp.inf, 1e9, -1e9]))
    assert seen.tolist() == [1.0, 0.0, 0.0, 0.0, REWARD_CLIP, -REWARD_CLIP]
    state = trained(population, [programs["huge"]] * 3)
    assert float(jnp.max(jnp.abs(state.replay.storage.reward))) == REWARD_CLIP
    for leaf in jax.tree.leaves(state.agent.networks):
        assert bool(jnp.all(jnp.isfinite(leaf)))


def test_lanes_can_be_chosen(population, programs):
    state = trained(population, [programs[name] for name in ("human", "lazy", "sparse")], epochs=1)
    chosen = of_lanes(state, [1])
    np.testing.assert_array_equal(
        jax.tree.leaves(actor(chosen, 0))[0], jax.tree.leaves(actor(state, 1))[0]
    )


def test_a_test_measures_without_any_reward(task, population, programs):
    """The distance of each policy, recomputed from the features that the test recorded."""
    state = trained(population, [programs[name] for name in ("human", "lazy", "sparse")])
    tested = population.test(state, jax.random.key(3))
    assert tested.features.shape == (3, task.test_length, task.test_episodes, len(NAMES))
    assert tested.alive.all()
    gains = tested.features[..., NAMES.index("gain")].sum(axis=1).mean(axis=1)
    np.testing.assert_allclose(tested.metrics["distance"], gains, atol=1e-5)


def test_drivers_are_driven(task):
    features, alive = drive(task, task.good, jax.random.split(jax.random.key(0), 2), 5)
    assert features.shape == (2, 5, len(NAMES)) and alive.all()
    np.testing.assert_allclose(features[..., NAMES.index("gain")], 0.15, atol=1e-6)
