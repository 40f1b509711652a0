"""Residual-MPPI: a trained policy customised online by planning, without training it again.

Wang et al. 2025 (ICLR, arXiv 2407.00898), algorithm 1. The prior policy is taken to be optimal for
a maximum-entropy task with temperature alpha and a reward `r` that need not be known. What is asked
for now is `omega r + r_R` with an add-on reward `r_R`; since `alpha log pi(a|s)` equals `r` plus
potential shaping by the soft value, `omega' log pi + r_R` with `omega' = omega alpha` asks for the
same (residual Q-learning, Li et al. 2024). Model-predictive path-integral control maximises it over
a horizon, around the plan that the prior itself would follow.

Per step, from state x_0: the nominal plan is `u_t = mode pi(.|x_t)` rolled through the dynamics;
sample k is `v_t = clip(u_t + e_t)` with `e_t ~ N(0, Sigma)`, then cut to what the clip left of it;

    S_k = sum_t gamma^t (r_R(x_t, v_t, x_t+1) + omega' log pi(v_t|x_t)) - lambda u_t' Sigma^-1 e_t
    w_k = softmax(S_k / lambda),    plan_t = clip(u_t + sum_k w_k e_kt)

Deviations from the authors' code: the importance term has the signed noise of the equation, where
theirs has its absolute value (an option here); samples whose score is not finite get no weight.
Beyond the paper, all off by default: the sampling may be repeated around the plan that it led to
(`num_iterations`), with less noise each time; the noise may be correlated from step to step, which
reaches farther for the same log-density (`noise_memory`); and a plan may be what is added to the
prior's mode wherever a sample has come to, `v_t = clip(mode pi(.|x_t) + e_t)` (`feedback`): the
prior goes on correcting in every sample, where in open loop noise piles up over the horizon. What
was added may then be kept from step to step (`warm_start`), since it stays meaningful where the
nominal plan is made anew.

Legend of shapes: `K` samples, `T` steps of the horizon, `A` action entries. A state is whatever the
dynamics predict, a pytree; for a learned model it is the observation itself.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax.core import Tracer

from core_rl.errors import UserError
from core_rl.types import Agent, Key, Obs

ModelState = Any
Variant = Literal["residual", "greedy", "guided", "valued", "full", "prior"]
Importance = Literal["signed", "absolute", "none"]
Dynamics = Callable[[ModelState, jax.Array], ModelState]  # (state, action[A]) -> next state
Reward = Callable[[ModelState, jax.Array, ModelState], jax.Array]  # (state, action, next state)


class Distribution(Protocol):
    """Of one action `[A]` in [-1, 1]; `core_rl.distributions.TanhNormal` is one."""

    def mode(self) -> jax.Array: ...

    def log_prob(self, action: jax.Array, /) -> jax.Array: ...


Prior = Callable[[ModelState], Distribution]


class Terms(NamedTuple):
    """What sets the variants of the paper's comparison apart."""

    samples: bool = True  # whether anything but the nominal plan is tried
    prior_nominal: bool = True  # the nominal is the prior's plan, else zeros
    log_prior: bool = False  # score omega' log pi
    reward: bool = False  # score the reward of the prior's task, omega r
    value: bool = False  # score its value where the horizon ends, omega gamma^T V(x_T)


# All of them score the add-on reward.
VARIANTS: dict[Variant, Terms] = {
    # The method: needs neither the reward nor the value of the prior's task.
    "residual": Terms(log_prior=True),
    # Samples around the prior's plan, and nothing but the add-on reward.
    "greedy": Terms(),
    # Samples around the prior's plan, the true reward of the whole task, but nothing beyond the
    # horizon.
    "guided": Terms(reward=True),
    # Guided, with the prior's critic for what follows the horizon. The authors add Q(x_T, v_T-1)
    # discounted by gamma^(T-1); here it is gamma^T V(x_T), which telescopes.
    "valued": Terms(reward=True, value=True),
    # Plain MPPI without a prior: the true reward of the whole task, samples around zeros. Its noise
    # has the deviation 1 / noise_std, since the authors divide the noise by its covariance, "to
    # explore more"; nearly all of it is clipped.
    "full": Terms(prior_nominal=False, reward=True),
    # The prior alone: its own plan is the only sample.
    "prior": Terms(samples=False),
}


@dataclasses.dataclass(frozen=True)
class ResidualMPPIConfig:
    """The defaults are the paper's for Ant. Sizes and switches are static; the numbers are array
    leaves of `PlannerState`, so that a sweep of them is one compilation."""

    variant: Variant = "residual"  # which terms are scored around which nominal; see VARIANTS
    importance: Importance = "signed"  # the term of the noise: as published, the code's, or without
    horizon: int = 5  # T, steps that are planned ahead
    num_samples: int = 5000  # K, plans that are scored per iteration, the present one among them
    num_iterations: int = 1  # each begins with the plan of the one before; 1 as published
    noise_decay: float = 1.0  # factor on the noise from iteration to iteration
    discount: float = 0.9  # gamma, per step of the horizon
    temperature: float = 5e-3  # lambda: lower follows the best samples more closely
    prior_weight: float = 1e-2  # omega' = omega alpha, of log pi; large stays with the prior
    reward_weight: float = 1.0  # omega, of the reward of the prior's task where that is scored
    noise_std: tuple[float, ...] = (0.0707,)  # of the samples, actions are in [-1, 1]; one, or A
    noise_memory: float = 0.0  # correlation of a sample's noise from step to step; 0 as published
    feedback: bool = False  # plan what is added to the prior's mode wherever a sample has come to
    warm_start: bool = False  # begin with what the last step's plan added; needs feedback

    def __post_init__(self):
        for name, allowed in (("variant", Variant), ("importance", Importance)):
            names = allowed.__args__
            if getattr(self, name) not in names:
                raise ValueError(
                    f"{name} must be one of {', '.join(names)}, got {getattr(self, name)!r}"
                )
        for name in "horizon num_samples num_iterations".split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must be in (0, 1], got {self.discount}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        for name in "prior_weight reward_weight".split():
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.noise_decay <= 1:
            raise ValueError(f"noise_decay must be in (0, 1], got {self.noise_decay}")
        if not 0 <= self.noise_memory < 1:
            raise ValueError(f"noise_memory must be in [0, 1), got {self.noise_memory}")
        if self.noise_memory and self.importance != "none":
            raise ValueError(
                "noise_memory must be 0 unless importance is none: the term is for white noise"
            )
        if self.feedback and (
            self.importance != "none" or not VARIANTS[self.variant].prior_nominal
        ):
            raise ValueError(
                "feedback must be off unless importance is none and the nominal is the prior's plan"
            )
        if self.warm_start and not self.feedback:
            raise ValueError("warm_start must be off unless feedback is on")
        if not self.noise_std or not all(0 < std < math.inf for std in self.noise_std):
            raise ValueError(f"noise_std must be positive numbers, got {self.noise_std}")


@struct.dataclass
class PlannerState:
    """Numbers of the planner that may vary without a new compilation.

    Nothing else carries over from step to step, but for a warm start the commands of the last plan:
    the nominal plan is made from the prior each time.
    """

    discount: jax.Array  # []
    temperature: jax.Array  # []
    prior_weight: jax.Array  # []
    reward_weight: jax.Array  # []
    noise_std: jax.Array  # [A]


class Plan(NamedTuple):
    action: jax.Array  # [A] to be executed, the first of `actions`
    actions: jax.Array  # [T, A]
    commands: jax.Array  # [T, A] the same, or with feedback what is added to the prior's modes
    weights: jax.Array  # [K] of the last samples, the first is what they were drawn around; sum 1
    effective_samples: jax.Array  # [] 1 where a single sample decides, K where all count the same
    rejected: jax.Array  # [] share of the samples whose score was not finite


class Planner(NamedTuple):
    init: Callable[[ModelState], PlannerState]  # (example state) -> PlannerState
    # (numbers, state, key, commands of the last step's plan [T, A], only for a warm start) -> Plan;
    # one state, vmap for more
    plan: Callable[..., Plan]


def make_residual_mppi(
    config: ResidualMPPIConfig,
    dynamics: Dynamics,
    prior: Prior,
    addon: Reward,
    *,
    reward: Reward | None = None,
    value: Callable[[ModelState], jax.Array] | None = None,
) -> Planner:
    """Builds the planner; `plan` is pure, and all that it is given works on one state at a time.

    Args:
      dynamics: `(state, action[A]) -> next state`, true or learned.
      prior: `(state) -> distribution` of the action, with `mode()` and `log_prob(action)`.
      addon: `(state, action, predicted next state) -> []`, r_R.
      reward: of the same form, r; only the variants that score it need it.
      value: `(state) -> []`, soft value of the prior's task; only `valued` needs it.

    Raises UserError when the variant lacks what it scores; `init` does when the functions do not
    fit one another or the example state, or when a reward is not finite on it.
    """
    terms = VARIANTS[config.variant]
    num_samples = config.num_samples if terms.samples else 1
    if terms.reward and reward is None:
        raise UserError(f"variant {config.variant!r} needs the reward of the prior's task")
    if terms.value and value is None:
        raise UserError(f"variant {config.variant!r} needs the value of the prior's task")

    def init(example_state: ModelState) -> PlannerState:
        """Reads the shapes of one state, and tries every function on it."""
        scored: dict[str, Callable[..., Any]] = {"add-on reward": addon}
        if terms.reward:
            scored["reward of the prior's task"] = _given(reward)
        if terms.value:
            scored["value of the prior's task"] = lambda state, action, after: _given(value)(after)
        action_size = _check(example_state, dynamics, prior, scored)
        if len(config.noise_std) not in (1, action_size):
            raise UserError(
                f"noise_std must be one number or one for each of {action_size} action entries, "
                f"got {len(config.noise_std)}"
            )
        noise_std = jnp.broadcast_to(jnp.asarray(config.noise_std, jnp.float32), (action_size,))
        return PlannerState(
            discount=jnp.asarray(config.discount, jnp.float32),
            temperature=jnp.asarray(config.temperature, jnp.float32),
            prior_weight=jnp.asarray(config.prior_weight, jnp.float32),
            reward_weight=jnp.asarray(config.reward_weight, jnp.float32),
            noise_std=noise_std if terms.prior_nominal else 1.0 / noise_std,
        )

    def nominal_plan(state: ModelState, action_size: int) -> jax.Array:
        """Commands `[T, A]` that follow the prior, or without one are zero."""
        if config.feedback or not terms.prior_nominal:
            return jnp.zeros((config.horizon, action_size))

        def step(state: ModelState, _):
            action = jnp.clip(prior(state).mode(), -1.0, 1.0)
            return dynamics(state, action), action

        return jax.lax.scan(step, state, None, config.horizon)[1]

    def rollout(numbers: PlannerState, state: ModelState, commands: jax.Array):
        """What a plan `[T, A]` does: its actions `[T, A]`, the commands `[T, A]` that were left
        when these were clipped, and the discounted sum `[]` of what the terms make of them."""

        def step(state: ModelState, command: jax.Array):
            belief = prior(state)
            base = belief.mode() if config.feedback else jnp.zeros_like(command)
            action = jnp.clip(base + command, -1.0, 1.0)
            after = dynamics(state, action)
            gain = addon(state, action, after)
            if terms.log_prior:
                gain += numbers.prior_weight * belief.log_prob(action)
            if terms.reward:
                gain += numbers.reward_weight * _given(reward)(state, action, after)
            return after, (action, action - base, gain)

        end, (actions, taken, gains) = jax.lax.scan(step, state, commands)
        total = jnp.sum(numbers.discount ** jnp.arange(config.horizon) * gains)
        if terms.value:
            total += numbers.reward_weight * numbers.discount**config.horizon * _given(value)(end)
        return actions, taken, total

    def plan(
        numbers: PlannerState, state: ModelState, key: Key, last: jax.Array | None = None
    ) -> Plan:
        action_size = numbers.noise_std.shape[-1]
        nominal = nominal_plan(state, action_size)
        chex.assert_shape(nominal, (config.horizon, action_size))
        if config.warm_start and last is not None:
            chex.assert_shape(last, nominal.shape)
            nominal = nominal.at[:-1].set(last[1:])

        def improve(planned: jax.Array, now: tuple[Key, jax.Array]):
            key, scale = now
            noise_std = scale * numbers.noise_std
            noise = jax.random.normal(key, (num_samples, *planned.shape))
            noise = noise_std * _remembering(noise, config.noise_memory)
            noise = noise.at[0].set(0.0)  # the present plan is a candidate
            if config.warm_start and num_samples > 1:
                noise = noise.at[1].set(-planned)  # and the prior's own
            rollouts = jax.vmap(rollout, in_axes=(None, None, 0))
            _, taken, scores = rollouts(numbers, state, planned + noise)
            # Where the model diverges, what the prior would do there is no number either.
            kept = jnp.isfinite(scores)[:, None, None]
            noise = jnp.where(kept, taken - planned, 0.0)
            scores += jax.vmap(importance_term, in_axes=(None, 0, None, None, None))(
                planned, noise, noise_std, numbers.temperature, config.importance
            )
            weights = sample_weights(scores, numbers.temperature)
            change = jnp.tensordot(weights, noise, axes=1, precision="highest")
            return planned + change, (weights, scores)

        count = config.num_iterations
        keys = key[None] if count == 1 else jax.random.split(key, count)
        scales = config.noise_decay ** jnp.arange(count, dtype=nominal.dtype)
        planned, (weights, scores) = jax.lax.scan(improve, nominal, (keys, scales))
        weights, scores = weights[-1], scores[-1]
        if config.feedback:
            actions, _, _ = rollout(numbers, state, planned)
        else:
            actions = jnp.clip(planned, -1.0, 1.0)
        return Plan(
            action=actions[0],
            actions=actions,
            commands=planned,
            weights=weights,
            effective_samples=effective_sample_size(weights),
            rejected=jnp.mean(~jnp.isfinite(scores)),
        )

    return Planner(init, plan)


def _remembering(noise: jax.Array, memory: float) -> jax.Array:
    """White noise `[K, T, A]` made into one that forgets a share of itself at each step, with the
    same deviation at every step."""
    if memory == 0.0:
        return noise
    fresh = jnp.sqrt(1.0 - memory**2)

    def step(before: jax.Array, now: jax.Array):
        after = memory * before + fresh * now
        return after, after

    first, rest = noise[:, 0], jnp.moveaxis(noise[:, 1:], 1, 0)
    _, rest = jax.lax.scan(step, first, rest)
    return jnp.concatenate([first[:, None], jnp.moveaxis(rest, 0, 1)], axis=1)


def importance_term(
    nominal: jax.Array,
    noise: jax.Array,
    noise_std: jax.Array,
    temperature: jax.Array,
    importance: Importance = "signed",
) -> jax.Array:
    """`- lambda sum_t u_t' Sigma^-1 e_t` of a nominal plan and noise `[T, A]`, std `[A]`.

    "signed" makes up for drawing around `u` and not around zero: where all plans gain the same, it
    takes the plan to zero. In the exponent of the weights it is `u e / sigma^2` whatever lambda is,
    so where `u` is many sigma it outweighs gains that are not many lambda. "absolute" has `|e|` for
    `e`, as the authors' code: it keeps entries near the nominal where that is positive, and drives
    them off where it is negative. "none" stays at the nominal where all plans gain the same.
    """
    chex.assert_equal_shape([nominal, noise])
    if importance == "none":
        return jnp.zeros((), noise.dtype)
    if importance == "absolute":
        noise = jnp.abs(noise)
    return -temperature * jnp.sum(nominal * noise / noise_std**2)


def sample_weights(scores: jax.Array, temperature: jax.Array) -> jax.Array:
    """`softmax(S / lambda)` of scores `[K]`; where no score is finite, all to the first sample."""
    chex.assert_rank(scores, 1)
    # A plan on which the model diverges must not decide; one alone would make every weight NaN.
    finite = jnp.isfinite(scores)
    finite_scores = jnp.where(finite, scores, -jnp.inf)
    first = jnp.zeros_like(scores).at[0].set(1.0)
    # The largest is taken off before dividing, for float32's sake.
    largest = jnp.where(jnp.any(finite), jnp.max(finite_scores), 0.0)
    unnormalised = jnp.exp((finite_scores - largest) / temperature)
    total = jnp.sum(unnormalised)
    return jnp.where(total > 0.0, unnormalised / jnp.maximum(total, 1.0), first)


def effective_sample_size(weights: jax.Array) -> jax.Array:
    """`1 / sum_k w_k^2` of normalised weights `[K]` (Kish 1965)."""
    return 1.0 / jnp.sum(weights**2)


def agent_prior(
    agent: Agent, agent_state: Any, observe: Callable[[ModelState], Obs] = lambda state: state
) -> Prior:
    """The policy of an agent, such as QR-SAC's, as a prior; `deploy`ed states will do.

    A squashed normal that is wide before tanh (a deviation above about 0.7) is densest at the
    limits of its actions and not at its mode: a large omega' then drives the plan there.

    To plan for several agent states with one compilation, make the planner inside the function that
    is jitted, from an agent state that is its argument.

    Args:
      observe: what the agent sees of a state of the dynamics.

    Raises UserError when the agent does not tell the distribution of its actions.
    """
    policy = agent.policy
    if policy is None:
        raise UserError("this agent does not tell the distribution of its actions: no prior")
    return lambda state: policy(agent_state, observe(state))


def _given(function: Any) -> Callable[..., Any]:
    """What was checked to be there."""
    assert function is not None
    return function


def _check(
    state: ModelState, dynamics: Dynamics, prior: Prior, scored: dict[str, Callable[..., Any]]
) -> int:
    """Tries every function on one state and returns the number of action entries.

    Raises UserError at the first that does not fit. Values are looked at outside jit only.
    """

    def attempt(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return jax.eval_shape(function, *arguments)
        except UserError:
            raise
        except Exception as error:  # flax, numpy and jax all have their own for shapes
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"the {what} does not take this state ({reason})") from error

    action = attempt("prior", lambda state: prior(state).mode(), state)
    if len(action.shape) != 1:
        raise UserError(f"the prior's mode must have the shape [A], got {list(action.shape)}")
    log_prob = attempt(
        "prior's log_prob", lambda state, action: prior(state).log_prob(action), state, action
    )
    if log_prob.shape != ():
        raise UserError(f"the prior's log_prob must be a scalar, got {list(log_prob.shape)}")

    after = attempt(f"dynamics with {action.shape[0]} action entries", dynamics, state, action)
    before = jax.eval_shape(lambda state: state, state)
    if jax.tree.structure(after) != jax.tree.structure(before):
        raise UserError(
            f"the dynamics must return a state like the one they take, "
            f"{jax.tree.structure(before)}, got {jax.tree.structure(after)}"
        )
    leaves = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in leaves:
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"the dynamics must return a state like the one they take, {old.dtype}"
                f"{list(old.shape)}{f' in {name!r}' if name else ''}, got {new.dtype}"
                f"{list(new.shape)}"
            )

    for what, function in scored.items():
        result = attempt(what, function, state, action, after)
        if getattr(result, "shape", None) != () or not jnp.issubdtype(result.dtype, jnp.floating):
            raise UserError(f"the {what} must be a scalar float, got {_kind(result)}")

    @jax.jit  # a simulator that is called operation by operation takes minutes
    def try_all(state: ModelState):
        mode = jnp.clip(prior(state).mode(), -1.0, 1.0)
        after = dynamics(state, mode)
        return [function(state, mode, after) for function in scored.values()]

    for what, result in zip(scored, try_all(state), strict=True):
        if not isinstance(result, Tracer) and not bool(jnp.isfinite(result)):
            raise UserError(f"the {what} is {float(result)} on the example state, must be finite")
    return action.shape[0]


def _kind(result: Any) -> str:
    """`float32[3]`, or the name of what is no array."""
    if hasattr(result, "dtype"):
        return f"{result.dtype}{list(result.shape)}"
    return type(result).__name__
