"""The planner against closed forms: linear-quadratic problems, Gaussian tilts, tabular soft values.

Everything is derived beside the test, in numpy or by hand. Unless said otherwise `u` is the nominal
plan, `e` noise of deviation `sigma`, `lambda` the temperature, `omega'` the weight of log pi.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.errors import UserError
from core_rl.qr_sac import QRSACConfig, make_qr_sac
from core_rl.residual_mppi import (
    VARIANTS,
    PlannerState,
    ResidualMPPIConfig,
    _remembering,
    agent_prior,
    effective_sample_size,
    importance_term,
    make_residual_mppi,
    sample_weights,
)
from tests.probes import QUICK_COMPILE

KEY = jax.random.key(7)


class Normal(NamedTuple):
    """A prior whose mode is where its density is largest, which a squashed normal's is not."""

    mean: jax.Array  # [A]
    std: float

    def mode(self):
        return self.mean

    def log_prob(self, action):
        return jnp.sum(-0.5 * ((action - self.mean) / self.std) ** 2 - jnp.log(self.std))


def compiled(function):
    return jax.jit(function, compiler_options=QUICK_COMPILE)


# A scalar linear system, a prior that is a linear policy with noise, a quadratic add-on reward.
A, B, GAIN, PRIOR_STD, START = 0.9, 0.5, -0.3, 0.3, 0.5


def linear_dynamics(state, action):
    return A * state + B * action


def linear_prior(state):
    return Normal(GAIN * state, PRIOR_STD)


def quadratic_addon(state, action, after):
    del state, action
    return -(after[0] ** 2)


def no_addon(state, action, after):
    del state, action, after
    return jnp.zeros(())


def linear_planner(addon=quadratic_addon, **changes):
    base: dict[str, Any] = {
        "horizon": 3,
        "num_samples": 20_000,
        "discount": 0.95,
        "temperature": 0.02,
        "prior_weight": 0.05,
        "noise_std": (0.3,),
    }
    config = ResidualMPPIConfig(**{**base, **changes})
    planner = make_residual_mppi(config, linear_dynamics, linear_prior, addon)
    state = jnp.array([START])
    return config, planner, planner.init(state), state


def quadratic_problem(config: ResidualMPPIConfig):
    """H, h of the score `-v'Hv/2 + h'v + constant` of a plan `v` [T], without importance.

    The next states are X = F x0 + G v with F_t = A^(t+1), G_tj = A^(t-j) B for j <= t, the states
    before them are these shifted by one step. With D = diag(gamma^t) and c = omega'/std^2 the score
    is -X'DX - c/2 (v - GAIN Y)'D(v - GAIN Y), Y the states before.
    """
    steps = np.arange(config.horizon)
    lag = steps[:, None] - steps[None, :]
    after = np.where(lag >= 0, A ** np.maximum(lag, 0) * B, 0.0)
    after_start = A ** (steps + 1.0) * START
    before = np.vstack([np.zeros((1, config.horizon)), after[:-1]])
    before_start = np.concatenate([[START], after_start[:-1]])
    D = np.diag(config.discount**steps)
    c = config.prior_weight / PRIOR_STD**2
    off = np.eye(config.horizon) - GAIN * before  # v - GAIN Y = off v - GAIN before_start
    hessian = 2.0 * after.T @ D @ after + c * off.T @ D @ off
    slope = -2.0 * after.T @ D @ after_start + c * off.T @ D @ (GAIN * before_start)
    return hessian, slope


def nominal_by_hand(config: ResidualMPPIConfig) -> np.ndarray:
    """The prior's closed loop: u_t = GAIN (A + B GAIN)^t x0."""
    return GAIN * START * (A + B * GAIN) ** np.arange(config.horizon)


def test_converges_to_the_linear_quadratic_optimum():
    # The optimum is H^-1 h. Samples are weighted by exp(S / lambda) around N(u, sigma^2), and with
    # the signed term that is a normal of precision P = H / lambda + I / sigma^2 and mean
    # P^-1 h / lambda: at lambda = 0.002 within 0.02 of the optimum. What is left falls with K.
    keys = jax.random.split(KEY, 8)
    errors = []
    for num_samples in (30, 1000, 30_000):
        config, planner, numbers, state = linear_planner(num_samples=num_samples, temperature=2e-3)
        plan = compiled(jax.vmap(planner.plan, in_axes=(None, None, 0)))(numbers, state, keys)
        hessian, slope = quadratic_problem(config)
        optimum = np.linalg.solve(hessian, slope)
        limit = np.linalg.solve(
            hessian / config.temperature + np.eye(3) / config.noise_std[0] ** 2,
            slope / config.temperature,
        )
        assert np.abs(limit - optimum).max() < 0.02
        errors.append(np.sqrt(np.mean((plan.actions[:, :, 0] - optimum) ** 2)))
    assert np.abs(optimum - nominal_by_hand(config)).max() > 0.2  # there is something to find
    assert errors[0] > 2.0 * errors[1] > 4.0 * errors[2]
    assert errors[2] < 0.02


def test_limit_of_many_samples_is_the_tilted_normal():
    # As above for the signed term. Without it the samples keep their own centre:
    # P^-1 (h / lambda + u / sigma^2). At this temperature they are apart.
    limits, means = {}, {}
    for importance in ("signed", "none"):
        config, planner, numbers, state = linear_planner(importance=importance, temperature=0.06)
        keys = jax.random.split(KEY, 8)
        plan = compiled(jax.vmap(planner.plan, in_axes=(None, None, 0)))(numbers, state, keys)
        hessian, slope = quadratic_problem(config)
        precision = np.eye(3) / config.noise_std[0] ** 2
        pull = slope / config.temperature
        if importance == "none":
            pull = pull + precision @ nominal_by_hand(config)
        limits[importance] = np.linalg.solve(hessian / config.temperature + precision, pull)
        means[importance] = np.mean(plan.actions[:, :, 0], axis=0)
        np.testing.assert_allclose(means[importance], limits[importance], atol=6e-3)
    assert np.abs(limits["signed"] - limits["none"]).max() > 0.02


def test_heavy_prior_weight_returns_the_priors_action():
    # The log-density of a normal of fixed deviation is largest at its mean at every step, which is
    # sample 0; with omega' = 1e6 its score leads by so much that it gets all the weight.
    _, planner, numbers, state = linear_planner(num_samples=500)
    plan = compiled(planner.plan)
    heavy = plan(numbers.replace(prior_weight=jnp.asarray(1e6)), state, KEY)
    np.testing.assert_array_equal(heavy.action, linear_prior(state).mode())
    assert heavy.weights[0] == 1.0 and heavy.effective_samples == 1.0
    light = plan(numbers.replace(prior_weight=jnp.asarray(0.0)), state, KEY)
    assert light.action[0] < heavy.action[0] - 0.1  # the add-on reward wants the state at zero


def test_prior_variant_is_the_priors_own_plan():
    config, planner, numbers, state = linear_planner(variant="prior")
    plan = compiled(planner.plan)(numbers, state, KEY)
    np.testing.assert_allclose(plan.actions[:, 0], nominal_by_hand(config), rtol=1e-5)
    np.testing.assert_array_equal(plan.weights, [1.0])


def test_identical_scores_return_the_nominal():
    # All weights are 1 / K, so the plan is u plus the mean of the noise, of deviation
    # sigma / sqrt(K - 1) = 0.0021: five of them are allowed.
    config, planner, numbers, state = linear_planner(
        no_addon, variant="greedy", importance="none", num_samples=20_000
    )
    plan = compiled(planner.plan)(numbers, state, KEY)
    np.testing.assert_allclose(plan.weights, 1.0 / config.num_samples, rtol=1e-5)
    np.testing.assert_allclose(plan.effective_samples, config.num_samples, rtol=1e-4)
    np.testing.assert_allclose(plan.actions[:, 0], nominal_by_hand(config), atol=0.0105)
    assert np.abs(nominal_by_hand(config)).min() > 0.05


def test_signed_importance_without_reward_takes_the_plan_to_zero():
    # exp(-u e / sigma^2) tilts e ~ N(0, sigma^2) to the mean -u, so u + E[e] = 0. The weights'
    # second moment is exp(sum u^2 / sigma^2) = 1.6, so the deviation is about 0.0027.
    _, planner, numbers, state = linear_planner(no_addon, variant="greedy")
    plan = compiled(planner.plan)(numbers, state, KEY)
    np.testing.assert_allclose(plan.actions, 0.0, atol=0.0135)


def test_iterations_come_nearer_to_the_optimum_than_as_many_samples_at_once():
    # With next to no temperature the plan follows the best sample. Noise of 0.2 in five entries
    # seldom comes near the optimum; repeated around the best so far, with less of it, it does. The
    # gain of a plan is minus its cost, found by many samples around the last plan.
    settings = {"importance": "none", "temperature": 1e-4, "variant": "greedy"}

    def cost(**changes):
        config, planner, numbers, state = linear_planner(**settings, **changes)
        actions = compiled(planner.plan)(numbers, state, KEY).actions[:, 0]
        total = 0.0
        for t in range(config.horizon):
            after = linear_dynamics(state, actions[t])
            total -= config.discount**t * quadratic_addon(state, actions[t], after)
            state = after
        return float(total)

    once = cost(num_samples=256)
    repeated = cost(num_samples=64, num_iterations=4, noise_decay=0.6)
    nearly_best = cost(num_samples=4096, num_iterations=8, noise_decay=0.6)
    assert nearly_best < repeated < once
    assert repeated - nearly_best < 0.5 * (once - nearly_best)


def test_feedback_has_the_same_optimum():
    # v_t = GAIN x_t + e_t maps deviations to plans one to one, so the best plan is the same; the
    # limit of the samples is a normal around it at this temperature (as above within 0.02).
    config, planner, numbers, state = linear_planner(
        importance="none", feedback=True, temperature=2e-3, num_samples=30_000
    )
    keys = jax.random.split(KEY, 8)
    plan = compiled(jax.vmap(planner.plan, in_axes=(None, None, 0)))(numbers, state, keys)
    optimum = np.linalg.solve(*quadratic_problem(config))
    np.testing.assert_allclose(np.mean(plan.actions[:, :, 0], axis=0), optimum, atol=0.02)


def test_feedback_plans_better_where_errors_grow():
    # x' = 1.5 x + u under the prior u = -1.5 x; x is wanted at 0.2. With feedback x_t is the
    # deviation just before it. In open loop noise of the first step comes back 1.5^19 = 2217 times
    # as large at the last, so that no sample is better than the prior's own plan, which stays at
    # zero and costs 20 * 0.2^2 = 0.8. Four keys cost 0.38 to 0.55 with feedback.
    def cost(feedback):
        config = ResidualMPPIConfig(
            variant="greedy",
            importance="none",
            feedback=feedback,
            horizon=20,
            num_samples=512,
            discount=1.0,
            temperature=1e-3,
            noise_std=(0.1,),
        )
        planner = make_residual_mppi(
            config,
            lambda state, action: 1.5 * state + action,
            lambda state: Normal(-1.5 * state, 0.1),
            lambda state, action, after: -((after[0] - 0.2) ** 2),
        )
        state, total = jnp.zeros(1), 0.0
        for action in compiled(planner.plan)(planner.init(state), state, KEY).actions:
            state = 1.5 * state + action
            total += float((state[0] - 0.2) ** 2)
        return total

    assert cost(False) == pytest.approx(0.8, abs=1e-3)
    assert cost(True) < 0.65


def test_warm_start_keeps_the_last_plan_unless_the_priors_is_better():
    # With next to no noise and temperature only the two candidates count: what the last plan
    # added, moved on by a step, and nothing. The reward is for the action alone, whose best is 0.4
    # above the prior's: the last plan wins when it added 0.4 and loses when it added -0.4.
    config, planner, numbers, state = linear_planner(
        lambda state, action, after: -((action[0] - GAIN * state[0] - 0.4) ** 2),
        variant="greedy",
        importance="none",
        feedback=True,
        warm_start=True,
        num_samples=16,
        temperature=1e-6,
        noise_std=(1e-6,),
    )
    plan = compiled(planner.plan)
    for added, kept in ((0.4, [0.4, 0.4, 0.0]), (-0.4, [0.0, 0.0, 0.0])):
        last = jnp.array([[7.0], [added], [added]])
        commands = plan(numbers, state, KEY, last).commands[:, 0]
        np.testing.assert_allclose(commands, kept, atol=1e-5)
    cold = plan(numbers, state, KEY)
    np.testing.assert_allclose(cold.actions[:, 0], nominal_by_hand(config), atol=1e-5)


def test_noise_with_memory_is_as_large_and_correlated():
    # AR(1) with variance 1: the correlation after two steps is memory^2. 40,000 draws: a deviation
    # of 0.005 each, five of them are allowed.
    noise = np.asarray(_remembering(jax.random.normal(KEY, (40_000, 4, 1)), 0.8))[..., 0]
    np.testing.assert_allclose(noise.std(axis=0), 1.0, atol=0.025)
    correlation = np.corrcoef(noise.T)
    np.testing.assert_allclose(correlation[0], [1.0, 0.8, 0.64, 0.512], atol=0.025)


def test_importance_term_by_hand():
    # lambda 0.1, sigma (0.5, 0.1), two steps of two entries:
    # signed:   u e / sigma^2 = 0.5 (-0.1) / 0.25 + 0.1 (0.02) / 0.01
    #                           + (-0.2) 0.3 / 0.25 + 0 = -0.2 + 0.2 - 0.24 = -0.24
    # absolute: u |e| / sigma^2 = 0.2 + 0.2 - 0.24 = 0.16
    nominal = jnp.array([[0.5, 0.1], [-0.2, 0.0]])
    noise = jnp.array([[-0.1, 0.02], [0.3, 0.7]])
    arguments = (nominal, noise, jnp.array([0.5, 0.1]), jnp.asarray(0.1))
    np.testing.assert_allclose(importance_term(*arguments), 0.024, rtol=1e-5)
    np.testing.assert_allclose(importance_term(*arguments, "absolute"), -0.016, rtol=1e-5)
    assert importance_term(*arguments, "none") == 0.0


def test_weights_and_effective_samples_by_hand():
    # S / lambda = log(1, 2, 5) + constant: weights 1/8, 2/8, 5/8; ESS = 64 / (1 + 4 + 25).
    scores = 1000.0 + 0.5 * jnp.log(jnp.array([1.0, 2.0, 5.0]))
    weights = sample_weights(scores, jnp.asarray(0.5))
    np.testing.assert_allclose(weights, [1 / 8, 2 / 8, 5 / 8], atol=1e-4)
    np.testing.assert_allclose(effective_sample_size(weights), 64 / 30, rtol=1e-3)
    # Far apart: no overflow, and only the best counts.
    np.testing.assert_array_equal(
        sample_weights(jnp.array([-1e30, 3.0, 1e30]), jnp.asarray(1e-5)), [0.0, 0.0, 1.0]
    )


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([jnp.nan, 1.0, 1.0], [0.0, 0.5, 0.5]),
        ([-jnp.inf, 1.0, jnp.inf], [0.0, 1.0, 0.0]),
        ([jnp.nan, jnp.nan, -jnp.inf], [1.0, 0.0, 0.0]),
    ],
)
def test_scores_that_are_not_finite_get_no_weight(scores, expected):
    np.testing.assert_array_equal(sample_weights(jnp.array(scores), jnp.asarray(1.0)), expected)


def test_diverging_samples_are_told():
    # Of the first step's actions u + e, those below u - 0.1 are forbidden: with one step and
    # sigma 0.3 that is Phi(-1/3) = 0.369 of them; K = 2000 gives a deviation of 0.011.
    def fragile(state, action, after):
        del after
        return jnp.where(action[0] < GAIN * state[0] - 0.1, jnp.nan, 0.0)

    _, planner, numbers, state = linear_planner(fragile, horizon=1, num_samples=2000)
    plan = compiled(planner.plan)(numbers, state, KEY)
    assert plan.rejected == pytest.approx(0.369, abs=0.05)
    assert np.isfinite(plan.actions).all() and plan.actions[0, 0] > GAIN * START - 0.1


def rich_problem(config: ResidualMPPIConfig):
    """Two actions, a state of two parts, and every term: what the loop in numpy is compared on."""

    def dynamics(state, action):
        return {
            "place": state["place"] + 0.3 * jnp.tanh(action),
            "clock": state["clock"] + 1,
        }

    def prior(state):
        return Normal(0.3 * jnp.sin(state["place"]), 0.5)

    def addon(state, action, after):
        return after["place"][0] - 0.5 * action[1] ** 2 * (1.0 + state["place"][1])

    def reward(state, action, after):
        return state["place"][0] * action[0] + after["clock"]

    def value(state):
        return jnp.sum(state["place"] ** 2)

    return make_residual_mppi(config, dynamics, prior, addon, reward=reward, value=value)


RICH_START = {"place": jnp.array([0.4, -0.7]), "clock": jnp.asarray(2.0)}


def rich_loop(config: ResidualMPPIConfig, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Plan [T, A] and weights [K] of standard normal draws [K, T, A], in float64."""
    terms = VARIANTS[config.variant]
    start, clock = np.array([0.4, -0.7]), 2.0

    def mode(place):
        return 0.3 * np.sin(place)

    nominal, place = np.zeros(draws.shape[1:]), start
    for t in range(config.horizon if terms.prior_nominal else 0):
        nominal[t] = mode(place)
        place = place + 0.3 * np.tanh(nominal[t])
    std = np.array(config.noise_std) if terms.prior_nominal else 1.0 / np.array(config.noise_std)
    scores, noises = [], []
    for k, draw in enumerate(draws):
        noise, place, score = np.zeros_like(draw), start, 0.0
        for t in range(config.horizon):
            centre = mode(place) if config.feedback else nominal[t]
            v = np.clip(centre + (std * draw[t] if k > 0 else 0.0), -1.0, 1.0)
            noise[t] = v - centre
            after = place + 0.3 * np.tanh(v)
            gain = after[0] - 0.5 * v[1] ** 2 * (1.0 + place[1])
            if config.variant == "residual":
                log_prob = np.sum(-0.5 * ((v - mode(place)) / 0.5) ** 2 - np.log(0.5))
                gain += config.prior_weight * log_prob
            if config.variant in ("guided", "valued", "full"):
                gain += config.reward_weight * (place[0] * v[0] + clock + t + 1)
            score += config.discount**t * gain
            if config.importance != "none":
                e = np.abs(noise[t]) if config.importance == "absolute" else noise[t]
                score -= config.temperature * np.sum(nominal[t] * e / std**2)
            place = after
        if config.variant == "valued":
            score += config.reward_weight * config.discount**config.horizon * np.sum(place**2)
        scores.append(score)
        noises.append(noise)
    weights = np.exp((np.array(scores) - max(scores)) / config.temperature)
    weights /= weights.sum()
    change, place = np.tensordot(weights, noises, 1), start
    for t in range(config.horizon if config.feedback else 0):
        nominal[t] = mode(place)
        place = place + 0.3 * np.tanh(np.clip(nominal[t] + change[t], -1.0, 1.0))
    return np.clip(nominal + change, -1.0, 1.0), weights


@pytest.mark.parametrize(
    ("variant", "importance", "feedback"),
    [
        ("residual", "signed", False),
        ("residual", "absolute", False),
        ("residual", "none", False),
        ("residual", "none", True),
        ("greedy", "signed", False),
        ("guided", "signed", False),
        ("valued", "signed", False),
        ("valued", "none", True),
        ("full", "signed", False),
    ],
)
def test_plan_is_the_equations_loop(variant, importance, feedback):
    config = ResidualMPPIConfig(
        variant=variant,
        importance=importance,
        feedback=feedback,
        horizon=3,
        num_samples=12,
        temperature=0.5,
        prior_weight=0.2,
        reward_weight=0.7,
        noise_std=(0.6, 0.4),
    )
    planner = rich_problem(config)
    plan = compiled(planner.plan)(planner.init(RICH_START), RICH_START, KEY)
    draws = np.asarray(jax.random.normal(KEY, (12, 3, 2)), np.float64)
    actions, weights = rich_loop(config, draws)
    assert np.abs(np.array(config.noise_std) * draws).max() > 1.1  # some noise is clipped
    assert 1.5 < 1.0 / np.sum(weights**2) < 11.0  # neither one sample nor all alike
    np.testing.assert_allclose(plan.weights, weights, atol=1e-5)
    np.testing.assert_allclose(plan.actions, actions, atol=1e-5)
    np.testing.assert_array_equal(plan.action, plan.actions[0])


class SoftMDP(NamedTuple):
    reward: np.ndarray  # [S, 2]
    after: np.ndarray  # [S, 2] next states
    log_policy: np.ndarray  # [S, 2]
    value: np.ndarray  # [S]


ALPHA, DISCOUNT, NUM_STATES = 0.6, 0.9, 5


def soft_mdp() -> SoftMDP:
    """A deterministic MDP of two actions and its optimum for the temperature ALPHA.

    Q = r + gamma V(s'), V = alpha log sum_a exp(Q / alpha), log pi = (Q - V) / alpha.
    """
    rng = np.random.default_rng(3)
    reward = rng.normal(size=(NUM_STATES, 2))
    after = rng.integers(NUM_STATES, size=(NUM_STATES, 2))
    value = np.zeros(NUM_STATES)
    for _ in range(400):  # 0.9^400 is nothing
        q = reward + DISCOUNT * value[after]
        value = ALPHA * np.log(np.sum(np.exp(q / ALPHA), axis=1))
    return SoftMDP(reward, after, (q - value[:, None]) / ALPHA, value)


def test_log_prior_is_the_reward_with_potential_shaping():
    # alpha log pi(a|s) = r(s, a) + gamma V(s') - V(s); along any plan the potentials telescope:
    # sum_t gamma^t alpha log pi = sum_t gamma^t r + gamma^T V(x_T) - V(x_0).
    mdp = soft_mdp()
    rng = np.random.default_rng(4)
    state, left, right = 0, 0.0, -mdp.value[0]
    for t, action in enumerate(rng.integers(2, size=6)):
        left += DISCOUNT**t * ALPHA * mdp.log_policy[state, action]
        right += DISCOUNT**t * mdp.reward[state, action]
        state = mdp.after[state, action]
    assert left == pytest.approx(right + DISCOUNT**6 * mdp.value[state], abs=1e-9)


def test_log_prior_weighs_samples_as_reward_and_value_do():
    # Hence with omega' = alpha the residual variant, which knows neither r nor V, must weigh every
    # sample as the valued variant does (-V(x_0) is the same for all of them); the guided one, which
    # has no value at the end, must not. Actions below zero are action 0, the others action 1; each
    # has half of [-1, 1], a length of 1, so that the densities are the probabilities.
    mdp = SoftMDP(*(jnp.asarray(table, jnp.float32) for table in soft_mdp()))
    after_table = mdp.after.astype(jnp.int32)

    def number(action):
        return (action[0] >= 0.0).astype(jnp.int32)

    class Tabular(NamedTuple):
        log_policy: jax.Array  # [2]

        def mode(self):
            return jnp.where(self.log_policy[1:] > self.log_policy[:1], 0.5, -0.5)

        def log_prob(self, action):
            return self.log_policy[number(action)]

    weights = {}
    for variant in ("residual", "valued", "guided"):
        config = ResidualMPPIConfig(
            variant=variant,
            horizon=4,
            num_samples=64,
            discount=DISCOUNT,
            temperature=1.0,
            prior_weight=ALPHA,
            noise_std=(0.7,),
        )
        planner = make_residual_mppi(
            config,
            lambda state, action: after_table[state, number(action)],
            lambda state: Tabular(mdp.log_policy[state]),
            no_addon,
            reward=lambda state, action, after: mdp.reward[state, number(action)],
            value=lambda state: mdp.value[state],
        )
        state = jnp.asarray(1, jnp.int32)
        weights[variant] = compiled(planner.plan)(planner.init(state), state, KEY).weights
    np.testing.assert_allclose(weights["residual"], weights["valued"], rtol=1e-4)
    assert np.abs(weights["guided"] / weights["valued"] - 1.0).max() > 0.2
    assert np.ptp(weights["residual"]) > 0.01


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"discount": 1.1}, "discount must be in"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"prior_weight": -1.0}, "prior_weight must not be negative"),
        ({"reward_weight": float("inf")}, "reward_weight must not be negative"),
        ({"noise_std": ()}, "noise_std must be positive"),
        ({"noise_std": (0.1, 0.0)}, "noise_std must be positive"),
        ({"variant": "best"}, "variant must be one of residual, greedy"),
        ({"feedback": True}, "feedback must be off unless importance is none"),
        ({"feedback": True, "importance": "none", "variant": "full"}, "feedback must be off"),
        ({"warm_start": True}, "warm_start must be off unless feedback is on"),
        ({"importance": "squared"}, "importance must be one of signed, absolute, none"),
    ],
)
def test_config_refuses(changes, says):
    with pytest.raises(ValueError, match=says):
        ResidualMPPIConfig(**changes)


def test_every_variant_is_known():
    for variant in VARIANTS:
        assert ResidualMPPIConfig(variant=variant).variant == variant


class TwoNormals(Normal):
    """Forgets to sum over the action's entries."""

    def log_prob(self, action):
        return -0.5 * ((action - self.mean) / self.std) ** 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prior": lambda s: Normal(jnp.ones((2, 4)) @ s, 1.0)}, "prior does not take this state"),
        ({"prior": lambda s: s}, "prior does not take this state"),
        ({"prior": lambda s: Normal(s[None], 1.0)}, r"mode must have the shape \[A\], got \[1, 3"),
        ({"prior": lambda s: TwoNormals(s[:2], 1.0)}, "log_prob must be a scalar"),
        (
            {"dynamics": lambda s, a: s + jnp.ones((3, 5)) @ a},
            "dynamics with 2 action entries does not take",
        ),
        ({"dynamics": lambda s, a: s[:2] + a}, r"take, float32\[3\], got float32\[2\]"),
        ({"dynamics": lambda s, a: (s, a)}, "dynamics must return a state like"),
        ({"dynamics": lambda s, a: s.astype(jnp.int32)}, "got int32"),
        (
            {"addon": lambda s, a, after: after},
            r"add-on reward must be a scalar float, got float32",
        ),
        ({"addon": lambda s, a, after: {"speed": s[0]}}, "add-on reward must be a scalar float"),
        ({"addon": lambda s, a, after: after["speed"]}, "add-on reward does not take this state"),
        ({"addon": lambda s, a, after: jnp.log(-jnp.ones(()))}, "add-on reward is nan on the exam"),
        ({"addon": lambda s, a, after: 1.0 / (s[0] - s[0])}, "add-on reward is inf on the example"),
        ({"reward": lambda s, a, after: a}, "reward of the prior's task must be a scalar"),
        ({"reward": None}, "variant 'valued' needs the reward"),
        ({"value": None}, "variant 'valued' needs the value"),
        ({"value": lambda s: jnp.nan}, "value of the prior's task is nan"),
        ({"noise_std": (0.1, 0.1, 0.1)}, "one for each of 2 action entries, got 3"),
    ],
)
def test_refused_before_the_first_step(changes, says):
    good: dict[str, Any] = {
        "dynamics": lambda s, a: s.at[:2].add(a),
        "prior": lambda s: Normal(s[:2], 1.0),
        "addon": lambda s, a, after: after[0],
        "reward": lambda s, a, after: after[1],
        "value": lambda s: s[2],
        "noise_std": (0.1, 0.2),
    }

    def make(noise_std, **functions) -> PlannerState:
        config = ResidualMPPIConfig(variant="valued", noise_std=noise_std)
        return make_residual_mppi(config, **functions).init(jnp.ones(3))

    np.testing.assert_allclose(make(**good).noise_std, [0.1, 0.2])
    with pytest.raises(UserError, match=says) as caught:
        make(**{**good, **changes})
    assert "\n" not in str(caught.value)


def test_numbers_change_without_a_new_compilation():
    calls = []

    def counted(state, action):
        calls.append(None)
        return linear_dynamics(state, action)

    config = ResidualMPPIConfig(horizon=2, num_samples=8)
    planner = make_residual_mppi(config, counted, linear_prior, quadratic_addon)
    numbers = planner.init(jnp.ones(1))
    plan = compiled(planner.plan)
    first = plan(numbers, jnp.ones(1), KEY)
    traced = len(calls)
    changed = jax.tree.map(lambda leaf: 0.5 * leaf, numbers)
    second = plan(changed, jnp.array([0.3]), jax.random.key(1))
    assert len(calls) == traced > 0
    assert first.action != second.action


def test_vmap_is_the_loop():
    config = ResidualMPPIConfig(horizon=2, num_samples=16, noise_std=(0.5,), temperature=0.1)
    planner = rich_problem(config)
    numbers = planner.init(RICH_START)
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.9 * leaf, 0.5 * leaf]), numbers)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf, -leaf]), RICH_START)
    keys = jax.random.split(KEY, 3)
    together = compiled(jax.vmap(planner.plan))(members, states, keys)
    one = compiled(planner.plan)
    for index in range(3):
        alone = one(*jax.tree.map(lambda leaf: leaf[index], (members, states, keys)))  # noqa: B023
        for got, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(got[index], expected, rtol=1e-4, atol=1e-6)


def test_same_key_same_plan_and_other_key_another():
    _, planner, numbers, state = linear_planner(num_samples=50)
    plan = compiled(planner.plan)
    first, again = plan(numbers, state, KEY), plan(numbers, state, KEY)
    np.testing.assert_array_equal(first.actions, again.actions)
    assert np.abs(first.actions - plan(numbers, state, jax.random.key(8)).actions).max() > 1e-4


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_agents_policy_is_a_prior(average):
    # The state of the dynamics holds more than the agent sees. The fresh policy's deviation is
    # about exp(-1.5) before tanh, so that its density peaks near its mode: with omega' large none
    # of the wide samples beats the mode itself, without it the add-on reward takes the plan away.
    config = QRSACConfig(hidden=(8,), actor_average=average, num_quantiles=2)
    agent = make_qr_sac(config, action_size=2)
    example = {"state": jnp.array([0.3, -0.2, 0.9])}
    trained = compiled(agent.init)(jax.random.key(0), example)
    moved = jax.tree.map(lambda leaf: leaf + 0.05, trained.networks.actor)
    trained = trained.replace(networks=trained.networks.replace(actor=moved))
    greedy, _ = agent.greedy(trained, (), {"state": example["state"][None]})

    prior = agent_prior(agent, agent.deploy(trained), lambda state: {"state": state["seen"]})
    start = {"seen": example["state"], "hidden": jnp.zeros(())}
    np.testing.assert_allclose(prior(start).mode(), greedy[0], rtol=1e-5)

    planner = make_residual_mppi(
        ResidualMPPIConfig(horizon=2, num_samples=64, prior_weight=1e4, noise_std=(0.9,)),
        lambda state, action: {**state, "hidden": jnp.sum(action)},
        prior,
        lambda state, action, after: after["hidden"],
    )
    numbers, plan = planner.init(start), compiled(planner.plan)
    heavy = plan(numbers, start, KEY)
    assert heavy.weights[0] == 1.0
    np.testing.assert_allclose(heavy.action, greedy[0], rtol=1e-5)
    free = plan(numbers.replace(prior_weight=jnp.asarray(0.0)), start, KEY)
    assert np.sum(free.action) > np.sum(heavy.action) + 0.3


def test_agent_without_a_policy_is_refused():
    agent = make_qr_sac(QRSACConfig(), action_size=1)._replace(policy=None)
    with pytest.raises(UserError, match="does not tell the distribution"):
        agent_prior(agent, None)


def test_prior_at_the_limits_of_its_actions_gives_a_finite_plan():
    # A saturated policy, and noise that is clipped half of the time: actions are exactly +-1.
    config = QRSACConfig(hidden=(4,), num_quantiles=2, normalise_obs=False)
    agent = make_qr_sac(config, action_size=2)
    obs = {"state": jnp.full(3, 200.0)}
    state = compiled(agent.init)(jax.random.key(1), obs)
    prior = agent_prior(agent, state)
    assert np.abs(prior(obs).mode()).max() == 1.0
    planner = make_residual_mppi(
        ResidualMPPIConfig(horizon=2, num_samples=64),
        lambda state, action: state,
        prior,
        lambda state, action, after: action[0],
    )
    plan = compiled(planner.plan)(planner.init(obs), obs, KEY)
    assert plan.rejected == 0.0
    assert all(np.isfinite(leaf).all() for leaf in plan)
