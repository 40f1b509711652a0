"""Named reward terms of GT Sophy's time trial (Wurman et al. 2022, Methods, "Rewards").

`reward = scale * sum(weight * term)`. The published weights multiply speeds in km/h, so these terms
convert; everything else is SI. Passing and contact terms belong to races with opponents.
"""

import dataclasses
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:
    from projects.sophy.driving import DriveState

KMH = 3.6  # km/h per m/s
USUAL_PACE = 40.0  # a car whose reference is this fast earns as much where pay is relative [m/s]


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Weights as published for the courses Seaside and Maggiore (Extended Data Table 1); the
    steering's change costs 3 in Vasco et al. 2024 (arXiv 2406.12563)."""

    scale: float = 0.1  # common factor, so that returns suit the learning rates
    progress: float = 1.0  # per metre of the centre line, none while off course
    off_course_squared: float = 0.01  # per second off course and (km/h)^2
    off_course_linear: float = 0.0  # per second off course and km/h (5 at Sarthe)
    wall: float = 0.01  # per second of wall contact and (km/h)^2
    tyre_slip: float = 0.25  # per step and rad, for slip ratio times slip angle over four tyres
    steering_change: float = 0.0  # per rad that the steering's target changes

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) >= 0:
                raise ValueError(
                    f"{field.name} must not be negative, got {getattr(self, field.name)}"
                )


def reward_terms(
    previous: "DriveState", current: "DriveState", action: Array, time_step: float
) -> dict[str, Array]:
    """Unweighted terms [] of one control step of `time_step` [s], penalties negative.

    This signature is the seam for designed rewards: it sees the state before and after and the
    action [2], and nothing else of the environment can be touched from it.
    """
    del action
    # Of a car with the usual pace, where progress is relative: the same faults cost all alike.
    speed = jnp.sqrt(jnp.sum(current.motion.velocity**2)) * current.progress_worth * KMH
    off_course = current.off_course * time_step
    slip = jnp.minimum(jnp.abs(current.motion.slip_ratio), 1.0) * jnp.abs(current.motion.slip_angle)
    return {
        "progress": current.progress * current.progress_worth * (1.0 - current.off_course),
        "off_course_squared": -off_course * speed**2,
        "off_course_linear": -off_course * speed,
        "wall": -current.wall_contact * time_step * speed**2,
        "tyre_slip": -jnp.sum(slip),
        "steering_change": -jnp.abs(current.steering_target - previous.steering_target),
    }


def weighted_sum(terms: dict[str, Array], config: RewardConfig) -> Array:
    """The reward []; every term must have a weight of its name."""
    return config.scale * sum(getattr(config, name) * term for name, term in terms.items())  # pyright: ignore[reportReturnType]
