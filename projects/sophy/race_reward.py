"""What racing adds to the time trial's reward: terms between cars, and weights as published.

Passing, collision, rear end and unsporting collision are those of Wurman et al. 2022 (Methods,
"Rewards"); steering reversal, shortcut, barrier and the speed of a collision those of the later
agents (Vasco et al. 2024, arXiv 2406.12563, and Lee et al. 2025, arXiv 2504.09021).
Whether a collision is unsporting, the paper's own rule being unpublished, the stewards say
(`stewards`): it is where the car was at fault. The price of a hard fault is ours. The published
mask of quick reversals is unknown; here it is two changes of opposite signs, both no trifle.
"""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from projects.sophy.race import gaps, in_world, of_either, opponents_of
from projects.sophy.reward import KMH, RewardConfig
from projects.sophy.track import Track

if TYPE_CHECKING:
    from projects.sophy.race_env import RaceState

BEHIND, AHEAD = 20.0, 40.0  # the window in which relative progress counts as passing [m]
REVERSAL_STEEPNESS, REVERSAL_ONSET = 182.883569, 0.034  # of the sigmoid [1/rad], [rad]
SMALLEST_TURN = 0.014  # of the steering, below which a change is no turn [rad]


@dataclasses.dataclass(frozen=True)
class RaceRewardConfig(RewardConfig):
    """Weights as published for the course Maggiore (Wurman et al. 2022, Extended Data Table 1)."""

    passing: float = 0.5  # per metre of relative progress on cars nearby
    any_collision: float = 4.0  # per step in contact with a car, whoever's fault
    rear_end: float = 0.1  # per step in contact with a car ahead and (km/h)^2 of relative speed
    unsporting: float = 0.0  # per contact with the car at fault
    hard_fault: float = 0.0  # the same once it is medium or heavy, which costs seconds at the flag
    collision_speed: float = 0.0  # per step in contact and (m/s)^2 of relative speed
    shortcut: float = 0.0  # per second off course and m/s
    barrier: float = 0.0  # per second of wall contact and m/s
    steering_reversal: float = 0.0  # per quick change of the steering's direction


PRESETS: dict[str, RaceRewardConfig] = {
    "maggiore": RaceRewardConfig(),
    "seaside": RaceRewardConfig(any_collision=5.0),
    "sarthe": RaceRewardConfig(
        off_course_squared=0.0,
        off_course_linear=5.0,
        tyre_slip=0.0,
        any_collision=5.0,
        unsporting=5.0,
    ),
    "lee_2025": RaceRewardConfig(
        off_course_squared=0.0,
        wall=0.0,
        tyre_slip=0.0,
        passing=3.0,
        any_collision=6.0,
        rear_end=0.0,
        collision_speed=0.5,
        shortcut=10.0,
        barrier=20.0,
        steering_change=0.5,
        steering_reversal=5.0,
    ),
}


def race_reward_terms(
    track: Track, previous: "RaceState", current: "RaceState", time_step: float
) -> dict[str, Array]:
    """Unweighted terms [M] of one control step of `time_step` [s], penalties negative."""
    drives, before = current.drives, previous.drives
    others = opponents_of(previous.on_road)
    gap, gap_before = gaps(track, drives.s), gaps(track, before.s)

    def in_window(gap: Array) -> Array:
        return (gap > -BEHIND) & (gap < AHEAD)

    counts = others & (in_window(gap) | in_window(gap_before))
    met = current.meetings.contact > 0.0
    # After a contact the speeds have evened out, so what counts are those before the step.
    velocity = in_world(before.motion.heading, before.motion.velocity)
    relative = jnp.sum((velocity[None] - velocity[:, None]) ** 2, -1)  # [M, M] [(m/s)^2]
    relative = jnp.where(others & (met | met.T), relative, 0.0)
    faults = current.stewarding.record.faults - previous.stewarding.record.faults  # [M, 3]
    speed = jnp.sqrt(jnp.sum(drives.motion.velocity**2, -1))
    turn, turn_before = current.steering_change, previous.steering_change
    reverses = (turn * turn_before < 0.0) & (jnp.abs(turn_before) > SMALLEST_TURN)
    reverses &= jnp.abs(turn) > SMALLEST_TURN
    return {
        "passing": jnp.sum(jnp.where(counts, gap_before - gap, 0.0), 1),
        "any_collision": -of_either(met & others).astype(jnp.float32),
        "rear_end": -jnp.sum(jnp.where(gap > 0.0, relative, 0.0), 1) * KMH**2,
        "unsporting": -(jnp.sum(faults, 1) > 0).astype(jnp.float32),
        "hard_fault": -(jnp.sum(faults[:, 1:], 1) > 0).astype(jnp.float32),
        "collision_speed": -jnp.max(relative, 1),
        "shortcut": -drives.off_course * time_step * speed,
        "barrier": -drives.wall_contact * time_step * speed,
        "steering_reversal": -jnp.where(
            reverses,
            jax.nn.sigmoid(REVERSAL_STEEPNESS * (jnp.abs(turn) - REVERSAL_ONSET)),
            0.0,
        ),
    }
