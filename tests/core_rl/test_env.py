"""Honest episodes: every transition of a recorded run against the environment's own rules."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.env import HeldActions, StepInfo, example_obs, make_env_loop, named_obs
from core_rl.types import Transition
from tests.probes import CountingEnv, EpisodeEnv, ProbeEnv

NUM_ENVS, LENGTH, MAX_STEPS, NUM_STEPS = 6, 4, 6, 40


class Run(NamedTuple):
    transition: Transition  # [T, N]
    info: StepInfo  # [T, N]
    first_clock: np.ndarray  # [N]


def record(stagger: bool, seed: int = 0) -> Run:
    loop = make_env_loop(EpisodeEnv(MAX_STEPS), LENGTH, stagger=stagger)

    @jax.jit
    def run(key):
        reset_key, action_key = jax.random.split(key)
        slots = loop.reset(reset_key, NUM_ENVS)

        def step(slots, action):
            slots, transition, info = loop.step(slots, action)
            return slots, (transition, info)

        actions = jax.random.uniform(action_key, (NUM_STEPS, NUM_ENVS, 1), minval=-1.0)
        return slots.clock, jax.lax.scan(step, slots, actions)[1]

    first_clock, (transition, info) = run(jax.random.key(seed))
    return jax.tree.map(np.asarray, Run(transition, info, first_clock))


@pytest.fixture(scope="module")
def run():
    return record(stagger=False)


@pytest.fixture(scope="module")
def staggered():
    return record(stagger=True)


def ended(run: Run) -> np.ndarray:
    return np.asarray(run.transition.terminated | run.transition.truncated)


def test_next_obs_is_what_the_step_led_to_even_where_the_episode_ended(run):
    obs, next_obs = run.transition.obs["state"], run.transition.next_obs["state"]
    np.testing.assert_array_equal(next_obs[..., 0], obs[..., 0])  # the same episode
    np.testing.assert_array_equal(next_obs[..., 1], obs[..., 1] + 1)  # one step on
    assert run.transition.truncated.any() and run.transition.terminated.any()


def test_episodes_go_on_where_they_were_and_new_ones_are_real_resets(run):
    obs, next_obs = run.transition.obs["state"], run.transition.next_obs["state"]
    goes_on = ~ended(run)[:-1]
    np.testing.assert_array_equal(obs[1:][goes_on], next_obs[:-1][goes_on])
    fresh = obs[1:][~goes_on]
    np.testing.assert_array_equal(fresh[:, 1], 0.0)  # nothing of the old clock
    identities = np.concatenate([obs[0, :, 0], fresh[:, 0]])
    assert len(fresh) > 50
    assert len(np.unique(identities)) == len(identities)  # every start differs from all others


def test_terminated_and_truncated_say_why_an_episode_ended(run):
    identity, steps = np.moveaxis(run.transition.next_obs["state"], -1, 0)
    over = steps >= 1 + np.floor(identity * MAX_STEPS)
    np.testing.assert_array_equal(run.transition.terminated, over)
    np.testing.assert_array_equal(run.transition.truncated, ~over & (steps == LENGTH))
    np.testing.assert_array_equal(run.info.ended, ended(run))
    # The case that both happen at once occurs, and is a termination.
    assert (over & (steps == LENGTH)).any()
    assert not (run.transition.terminated & run.transition.truncated).any()


@pytest.mark.parametrize("stagger", [False, True])
def test_returns_and_lengths_are_those_of_the_played_episodes(stagger, request):
    run = request.getfixturevalue("staggered" if stagger else "run")
    for env in range(NUM_ENVS):
        start = 0
        for end in np.flatnonzero(ended(run)[:, env]):
            rewards = run.transition.reward[start : end + 1, env]
            np.testing.assert_allclose(run.info.episode_return[end, env], rewards.sum(), rtol=1e-5)
            assert run.info.num_steps[end, env] == len(rewards)
            start = end + 1
        assert start > 0


def test_reward_and_info_are_of_the_step_and_not_of_the_reset(run):
    steps = run.transition.next_obs["state"][..., 1]
    np.testing.assert_allclose(run.transition.reward, steps + run.transition.action[..., 0])
    np.testing.assert_array_equal(run.info.state.metrics["clock"], steps)
    np.testing.assert_array_equal(run.info.state.obs, run.transition.next_obs["state"])


def test_slots_differ_and_the_run_is_a_function_of_the_key(run):
    starts = run.transition.obs["state"][0, :, 0]
    assert len(np.unique(starts)) == NUM_ENVS
    jax.tree.map(np.testing.assert_array_equal, record(stagger=False), run)


def test_stagger_spreads_the_first_truncations_and_no_later_ones(run, staggered):
    np.testing.assert_array_equal(run.first_clock, 0)
    assert len(np.unique(staggered.first_clock)) > 1
    assert staggered.first_clock.min() >= 0 and staggered.first_clock.max() < LENGTH
    for env in range(NUM_ENVS):
        first, *later = np.flatnonzero(staggered.transition.truncated[:, env])
        steps = staggered.transition.next_obs["state"][:, env, 1]
        if not staggered.transition.terminated[:first, env].any():
            assert steps[first] == LENGTH - staggered.first_clock[env]
        assert (steps[later] == LENGTH).all() and len(later) > 0


def test_episode_of_one_step_is_always_reset():
    loop = make_env_loop(EpisodeEnv(MAX_STEPS), 1)
    slots = loop.reset(jax.random.key(0), 3)
    after, transition, _ = loop.step(slots, jnp.zeros((3, 1)))
    assert (transition.terminated | transition.truncated).all()
    np.testing.assert_array_equal(after.num_steps, 0)
    np.testing.assert_array_equal(after.clock, 0)
    starts, before = named_obs(after.state)["state"], named_obs(slots.state)["state"]
    assert (starts[:, 0] != before[:, 0]).all()


@pytest.mark.parametrize("length", [0, -3])
def test_episode_length_below_one_raises_one_clear_line(length):
    with pytest.raises(ValueError, match=f"episode_length must be at least 1, got {length}"):
        make_env_loop(EpisodeEnv(MAX_STEPS), length)


def test_action_without_the_environments_axis_is_refused():
    loop = make_env_loop(EpisodeEnv(MAX_STEPS), LENGTH)
    with pytest.raises(AssertionError):
        loop.step(loop.reset(jax.random.key(0), 1), jnp.zeros(1))


def test_plain_observations_are_the_entry_state_and_named_ones_pass():
    plain, named = EpisodeEnv(MAX_STEPS), ProbeEnv(0)
    key = jax.random.key(0)
    assert set(named_obs(plain.reset(key))) == {"state"}
    assert set(named_obs(named.reset(key))) == {"state", "privileged"}


def test_example_obs_has_the_shapes_and_runs_nothing():
    env = CountingEnv(MAX_STEPS)
    example = example_obs(env)
    real = named_obs(env.reset(jax.random.key(0)))
    assert example.keys() == real.keys()
    assert example["state"].shape == real["state"].shape
    assert example["state"].dtype == real["state"].dtype
    assert not example["state"].any()
    assert env.num_steps == 0


def test_a_held_action_is_repeated_and_what_it_earns_is_summed_up_to_the_end():
    env = EpisodeEnv(MAX_STEPS)
    held = HeldActions(env, 4)
    for seed in range(12):
        state = held.reset(jax.random.key(seed))
        num_steps = 1 + int(jnp.floor(named_obs(state)["state"][0] * MAX_STEPS))
        after = jax.jit(held.step)(state, jnp.array([0.25]))
        taken = np.arange(1, min(num_steps, 4) + 1)
        assert float(named_obs(after)["state"][1]) == taken[-1]
        np.testing.assert_allclose(after.reward, np.sum(taken + 0.25))
        np.testing.assert_allclose(after.metrics["clock"], np.sum(taken))
        assert bool(after.done) == (num_steps <= 4)
    assert (held.action_size, held.observation_size) == (env.action_size, env.observation_size)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        HeldActions(env, 0)


class Crew(EpisodeEnv):
    """Three agents, each an `EpisodeEnv`, who share their environment's clock."""

    num_agents = 3

    def reset(self, rng):
        return jax.vmap(super().reset)(jax.random.split(rng, self.num_agents))

    def step(self, state, action):
        return jax.vmap(super().step)(state, action)


class Leaving(Crew):
    """The same, but who is done has left, and learns no more."""

    def reset(self, rng):
        there = jnp.ones(3, bool)
        return super().reset(rng).replace(info={"learns": there, "there": there})

    def step(self, state, action):
        there = state.info["there"]
        after = super().step(state, action)
        there_now = there & (after.done < 0.5)
        return after.replace(info={"learns": there, "there": there_now})


def test_who_leaves_while_an_action_is_held_learns_that_it_left():
    held = HeldActions(Leaving(MAX_STEPS), 4)
    left = False
    for seed in range(12):
        state = held.reset(jax.random.key(seed))
        first = held.step(state, jnp.zeros((3, 1)))
        assert first.info["learns"].all()
        second = held.step(first, jnp.zeros((3, 1)))
        np.testing.assert_array_equal(second.info["learns"], first.info["there"])
        left |= bool((~first.info["there"]).any() and first.info["there"].any())
    assert left


class Stubborn(Crew):
    """The same, but the second agent does what it likes."""

    def reset(self, rng):
        return super().reset(rng).replace(info={"action": jnp.zeros((3, 1))})

    def step(self, state, action):
        action = action.at[1].set(0.25)
        return super().step(state, action).replace(info={"action": action})


def crew_of(env, num_steps=20):
    loop = make_env_loop(env, LENGTH)
    assert loop.rows(NUM_ENVS) == 3 * NUM_ENVS
    slots = loop.reset(jax.random.key(1), NUM_ENVS)
    actions = jax.random.uniform(jax.random.key(2), (num_steps, 3 * NUM_ENVS, 1), minval=-1.0)

    def step(slots, action):
        seen = loop.observe(slots)
        slots, transition, info = loop.step(slots, action)
        return slots, (seen, transition, info)

    return actions, *jax.tree.map(np.asarray, jax.lax.scan(step, slots, actions)[1])


def test_several_agents_are_rows_next_to_each_other_that_restart_together():
    actions, seen, transition, info = crew_of(Crew(MAX_STEPS))
    obs, next_obs = transition.obs["state"], transition.next_obs["state"]
    assert obs.shape == (20, 3 * NUM_ENVS, 2)
    np.testing.assert_array_equal(seen["state"], obs)
    np.testing.assert_array_equal(transition.action, actions)
    np.testing.assert_array_equal(next_obs[..., 0], obs[..., 0])
    np.testing.assert_array_equal(next_obs[..., 1], obs[..., 1] + 1)
    # An agent that is done waits for the others, or for the clock.
    identity, steps = np.moveaxis(next_obs, -1, 0)
    done = steps >= 1 + np.floor(identity * MAX_STEPS)
    np.testing.assert_array_equal(transition.terminated, done)
    by_crew = done.reshape(20, NUM_ENVS, 3)
    over = by_crew.all(-1) | (steps.reshape(by_crew.shape)[..., 0] == LENGTH)
    np.testing.assert_array_equal(info.ended, np.repeat(over, 3, axis=1))
    assert (by_crew.any(-1) & ~over).any() and (by_crew.all(-1)).any()
    restarts = ~np.repeat(over, 3, axis=1)[:-1]
    np.testing.assert_array_equal(obs[1:][restarts], next_obs[:-1][restarts])
    np.testing.assert_array_equal(obs[1:][~restarts][:, 1], 0.0)


def test_what_was_done_is_recorded_where_it_is_not_what_was_asked_for():
    actions, _, transition, _ = crew_of(Stubborn(MAX_STEPS))
    second = np.arange(3 * NUM_ENVS) % 3 == 1
    np.testing.assert_array_equal(transition.action[:, second], 0.25)
    np.testing.assert_array_equal(transition.action[:, ~second], np.asarray(actions)[:, ~second])
