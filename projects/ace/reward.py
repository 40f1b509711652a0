"""Named reward terms of the return task.

`reward = sum(weight * term)`. Ace's own terms and weights are not published; these are ours. What
can be paid at the moment of contact is paid there: sparse rewards alone never start to learn.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from projects.ace.returning import Verdict

AIM = (0.75, 0.0)  # where a return without a target is meant to land [m]
NET_ROOM = 0.25  # clearance of the net beyond which more is not better [m]


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    approach: float = 1.0  # per metre by which the nearest possible miss shrinks
    contact: float = 1.0  # for touching the ball after its bounce
    landing: float = 1.0  # times exp(-distance of the landing from the aim [m])
    net: float = 0.5  # times the clearance of the net, up to 0.25 m, in those units
    legal: float = 2.0  # for a legal return
    volley: float = 0.5  # penalty for touching the ball before its bounce
    touch: float = 0.5  # penalty for touching the table or the net with arm or racket

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) >= 0:
                raise ValueError(
                    f"{field.name} must not be negative, got {getattr(self, field.name)}"
                )


def reward_terms(
    approach: Array, contact: Array, volley: Array, touch: Array, verdict: Verdict, aim: Array
) -> dict[str, Array]:
    """Unweighted terms [] of one step, penalties negative.

    Args:
      approach: [m] by which the nearest miss that is still possible shrank.
      contact, volley, touch: bool, what happened in the step.
      verdict: of the outgoing ball; counts only with a contact.
      aim: [2] where the return should land [m].
    """

    def paid(condition: Array, value: Array | float = 1.0) -> Array:
        return jnp.where(condition, value, 0.0)

    distance = jnp.sqrt(jnp.sum((verdict.landing - aim) ** 2))
    room = jnp.clip(verdict.net_clearance / NET_ROOM, 0.0, 1.0)
    return {
        "approach": approach,
        "contact": paid(contact),
        "landing": paid(contact & (verdict.landed_on > 0) & verdict.over_net, jnp.exp(-distance)),
        "net": paid(contact & verdict.over_net, room),
        "legal": paid(contact & verdict.legal),
        "volley": -paid(volley),
        "touch": -paid(touch),
    }


def weighted_sum(terms: dict[str, Array], config: RewardConfig) -> Array:
    """The reward []; every term must have a weight of its name."""
    return sum(getattr(config, name) * term for name, term in terms.items())  # pyright: ignore[reportReturnType]
