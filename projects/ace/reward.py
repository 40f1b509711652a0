"""Named reward terms of the return task.

`reward = sum(weight * term)`. Ace's own terms and weights are not published; these are ours. What
can be paid at the moment of contact is paid there: sparse rewards alone never start to learn.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from projects.ace.returning import Verdict

AIM = (0.75, 0.0)  # where a return without a target is meant to land [m]
PRECISE = 0.2  # [m]
NET_DEPTH, NET_ROOM = 0.15, 0.25  # below and above the cord, where height at the net counts [m]


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    approach: float = 1.0  # per metre by which the nearest possible miss shrinks
    contact: float = 1.0  # for touching the ball after its bounce
    landing: float = 1.0  # times exp(-distance of the landing from the aim [m]), net or no net
    net: float = 0.5  # times the height at the net, 0 at the table and 1 from 0.25 m above the cord
    legal: float = 2.0  # for a legal return
    precision: float = 2.0  # in T2, for a legal return, times exp(-distance / 0.2 m)
    volley: float = 0.5  # penalty for touching the ball before its bounce
    effort: float = 0.05  # penalty per step, times the mean square of the action
    touch: float = 0.5  # penalty for touching the table or the net with arm or racket

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) >= 0:
                raise ValueError(
                    f"{field.name} must not be negative, got {getattr(self, field.name)}"
                )


def closeness(landing: Array, aim: Array, scale: float = 1.0) -> Array:
    """Of a landing [2] to the aim [2], 0 to 1; `scale` [m] away it is 1 / e."""
    return jnp.exp(-jnp.sqrt(jnp.sum((landing - aim) ** 2) + 1e-12) / scale)


def reward_terms(
    approach: Array,
    contact: Array,
    volley: Array,
    touch: Array,
    verdict: Verdict,
    aim: Array,
    action: Array,
    *,
    precise: bool,
) -> dict[str, Array]:
    """Unweighted terms [] of one step, penalties negative.

    Args:
      approach: [m] by which the nearest miss that is still possible shrank.
      contact, volley, touch: bool, what happened in the step.
      verdict: of the outgoing ball; counts only with a contact.
      aim: [2] where the return should land [m].
      action: [A] of the step.
      precise: whether the aim is what the task is about.
    """

    def paid(condition: Array, value: Array | float = 1.0) -> Array:
        return jnp.where(condition, value, 0.0)

    room = jnp.clip((verdict.net_clearance + NET_DEPTH) / (NET_DEPTH + NET_ROOM), 0.0, 1.0)
    good = contact & verdict.legal
    return {
        "approach": approach,
        "contact": paid(contact),
        "landing": paid(contact & verdict.down, closeness(verdict.landing, aim)),
        "net": paid(contact, room),
        "legal": paid(good),
        "precision": paid(good & precise, closeness(verdict.landing, aim, PRECISE)),
        "volley": -paid(volley),
        "effort": -jnp.mean(action**2),
        "touch": -paid(touch),
    }


def weighted_sum(terms: dict[str, Array], config: RewardConfig) -> Array:
    """The reward []; every term must have a weight of its name."""
    return sum(getattr(config, name) * term for name, term in terms.items())  # pyright: ignore[reportReturnType]
