"""A planner that knows everything: the cross-entropy method on the true model, ball by ball.

It sees the ball's true way from the opponent's stroke on, and rehearses whole episodes in the
environment itself: a baseline without learning. What it returns could be returned; what it does
not may still be possible, since the search is finite, its actions are interpolated between a few
knots and mapped as the environment's are, and it maximises the shaped return. The method is
Rubinstein's (1999, Methodology and Computing in Applied Probability 1:127-190).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from core_rl.env import State
from projects.ace.actions import CONTROL_STEP
from projects.ace.recording import end_of_episode, keep_ended
from projects.ace.return_env import LONGEST, RUNNING, ReturnState, ReturnTask


@dataclasses.dataclass(frozen=True)
class PlannerConfig:
    knots: int = 6  # over the ball's life, actions in between are interpolated
    samples: int = 192  # plans that are rehearsed in each iteration
    elites: int = 16  # the best of them, to which the next ones are fitted
    iterations: int = 24
    deviation: float = 0.5  # of the first samples, per knot and joint
    smoothing: float = 0.3  # share of the old mean and deviation that is kept

    def __post_init__(self):
        for name in "samples elites iterations".split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.knots < 2:
            raise ValueError(f"knots must be at least 2, got {self.knots}")
        if self.elites > self.samples:
            raise ValueError(f"elites must be at most samples={self.samples}, got {self.elites}")
        if not self.deviation > 0:
            raise ValueError(f"deviation must be positive, got {self.deviation}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {self.smoothing}")


def make_planner(
    env: ReturnTask, config: PlannerConfig = PlannerConfig()
) -> Callable[[Array, Array], dict[str, Array]]:
    """Builds `plan(row, key)`: how the episode of a ball ends under the best plan.

    The episode begins as `env.start(row, key)` does. A plan's score is the sum of its rewards.
    """

    def rehearse(first: State, plans: Array) -> tuple[Array, ReturnState]:
        """The returns [P] and the ends of the episodes of plans [P, knots, A]."""
        task: ReturnState = first.pipeline_state  # pyright: ignore[reportAssignmentType]
        end = jnp.minimum(env.bank.incoming.end_time[task.row] / CONTROL_STEP, LONGEST)

        def act_on(task: ReturnState, action: Array) -> tuple[ReturnState, Array]:
            # The observation is not used, and so not computed.
            stepped = env.step(first.replace(pipeline_state=task), action)  # pyright: ignore[reportAttributeAccessIssue]
            after = keep_ended(task, stepped.pipeline_state)  # pyright: ignore[reportArgumentType]
            return after, jnp.where(task.outcome == RUNNING, stepped.reward, 0.0)

        def step(carry: tuple[Array, ReturnState, Array]):
            number, tasks, total = carry
            at = jnp.clip(number / end, 0.0, 1.0) * (config.knots - 1)
            low = jnp.minimum(at.astype(jnp.int32), config.knots - 2)
            actions = plans[:, low] + (at - low) * (plans[:, low + 1] - plans[:, low])
            tasks, rewards = jax.vmap(act_on)(tasks, actions)
            return number + 1, tasks, total + rewards

        tasks = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(plans), *leaf.shape)), task)
        _, tasks, total = jax.lax.while_loop(
            lambda carry: jnp.any(carry[1].outcome == RUNNING),
            step,
            (jnp.zeros(()), tasks, jnp.zeros(len(plans))),
        )
        return total, tasks

    def plan(row: Array, key: Array) -> dict[str, Array]:
        first = env.start(row, key)
        shape = (config.knots, env.action_size)

        def iterate(carry: tuple[Array, Array, Array, Array], key: Array):
            mean, deviation, best_plan, best = carry
            noise = jax.random.normal(key, (config.samples, *shape))
            plans = jnp.clip(mean + deviation * noise, -1.0, 1.0)
            scores, _ = rehearse(first, plans)
            order = jnp.argsort(-scores)[: config.elites]
            elites = plans[order]
            old = config.smoothing
            mean = old * mean + (1.0 - old) * jnp.mean(elites, axis=0)
            deviation = old * deviation + (1.0 - old) * jnp.std(elites, axis=0)
            better = scores[order[0]] > best
            best_plan = jnp.where(better, elites[0], best_plan)
            return (mean, deviation, best_plan, jnp.maximum(scores[order[0]], best)), None

        start = (
            jnp.zeros(shape),
            jnp.full(shape, config.deviation),
            jnp.zeros(shape),
            jnp.asarray(-jnp.inf),
        )
        # `start` splits the key too: a key of its own keeps its draws apart.
        keys = jax.random.split(jax.random.fold_in(key, 1), config.iterations)
        (_, _, best_plan, _), _ = jax.lax.scan(iterate, start, keys)
        _, end = rehearse(first, best_plan[None])
        return end_of_episode(jax.tree.map(lambda leaf: leaf[0], end), env.arm)

    return jax.jit(plan)
