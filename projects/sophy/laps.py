"""Drives flying laps with a policy, records them, and sums them up."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core_rl.env import State
from core_rl.types import Key
from projects.sophy import track as tracks
from projects.sophy.drive import CircuitOutline, Drive, ReferenceProfile
from projects.sophy.time_trial import CONTROL_STEP, DriveState, TimeTrial
from projects.sophy.track import Track

SLACK = 1.15  # time given to a lap, in lap times of the reference


class Laps(NamedTuple):
    """Complete flying laps in a row, and what went wrong during them."""

    lap_times: list[float]  # [s]
    reference_time: float  # quasi-steady-state lap of the centre line [s]
    off_course_steps: int  # control steps of 0.1 s with any time off course
    wall_contact_steps: int
    drive: Drive  # the flying laps, from the line on

    @property
    def ratio(self) -> float:
        """Mean lap time over the reference's; NaN without a lap."""
        return float(np.mean(self.lap_times)) / self.reference_time if self.lap_times else np.nan


def record(state: State) -> dict[str, jax.Array]:
    """What a recording keeps of one step."""
    drive: DriveState = state.pipeline_state  # pyright: ignore[reportAssignmentType]
    motion = drive.motion
    return {
        "s": drive.s,
        "position": motion.position,
        "heading": motion.heading,
        "speed": jnp.sqrt(jnp.sum(motion.velocity**2)),
        "lateral_offset": drive.placement.offset,
        "throttle": motion.throttle,
        "brake": motion.brake,
        "steering": motion.steering,
        "acceleration": motion.acceleration,
        "gear": motion.gear,
        "slip_ratio": motion.slip_ratio,
        "slip_angle": motion.slip_angle,
        "load": motion.load,
        "off_course": drive.off_course > 0,
        "wall_contact": drive.wall_contact > 0,
        "lap": drive.laps_begun,
        "lap_time": drive.lap_time,
    }


def drive_laps(
    env: TimeTrial, apply: Callable[[Any, Any], jax.Array], params: Any, num_laps: int, key: Key
) -> Laps:
    """One car from one start drives to the line and then `num_laps` laps without a pause.

    `apply(params, obs) -> action` takes unbatched observations. A car that needs more than 1.15
    times the reference's time completes fewer laps.
    """
    reference_time = float(env.reference.lap_time)
    num_steps = int(np.ceil((num_laps + 1) * SLACK * reference_time / CONTROL_STEP))

    @jax.jit
    def rollout(params: Any, key: Key) -> dict[str, jax.Array]:
        def step(state: State, _):
            state = env.step(state, apply(params, state.obs))
            return state, record(state)

        return jax.lax.scan(step, env.reset(key), None, length=num_steps)[1]

    return summarise(jax.device_get(rollout(params, key)), env, num_laps)


def summarise(trace: dict[str, np.ndarray], env: TimeTrial, num_laps: int) -> Laps:
    """The first `num_laps` flying laps of a recorded trace, leaves [T, ...]."""
    # The step that crosses the line still belongs to the lap before it.
    lap_of_step = np.concatenate([[0], trace["lap"][:-1]])
    flying = (lap_of_step >= 1) & (lap_of_step <= num_laps)
    if not flying.any():
        flying = np.ones(len(lap_of_step), bool)
    lap_times = trace["lap_time"][flying & (trace["lap_time"] > 0)]
    kept = {name: values[flying] for name, values in trace.items() if name != "lap_time"}
    size = (float(env.car.length), float(env.car.width))
    time = (1 + np.flatnonzero(flying)) * CONTROL_STEP
    drive = Drive(time=time - time[0], car_size=size, **kept)
    return Laps(
        lap_times=[float(value) for value in lap_times],
        reference_time=float(env.reference.lap_time),
        off_course_steps=int(np.sum(kept["off_course"])),
        wall_contact_steps=int(np.sum(kept["wall_contact"])),
        drive=drive,
    )


def shorten(drive: Drive, num_laps: int) -> Drive:
    """The first `num_laps` laps of a record."""
    part = drive.lap < drive.lap[0] + num_laps
    fields = {name: getattr(drive, name)[part] for name in vars(drive) if name != "car_size"}
    return Drive(car_size=drive.car_size, **fields)


def outline_of(track: Track) -> CircuitOutline:
    """The circuit as polylines through its nodes."""
    s = tracks.node_stations(track)
    point = jax.device_get(jax.vmap(tracks.at, in_axes=(None, 0))(track, s))
    left = np.stack([-point.tangent[:, 1], point.tangent[:, 0]], axis=-1)
    return CircuitOutline(
        s=np.asarray(s),
        centre=point.position,
        left=point.position + point.width_left[:, None] * left,
        right=point.position - point.width_right[:, None] * left,
        wall_left=point.position + point.wall_left[:, None] * left,
        wall_right=point.position - point.wall_right[:, None] * left,
        length=float(track.length),
    )


def profile_of(env: TimeTrial) -> ReferenceProfile:
    reference = jax.device_get(env.reference)
    return ReferenceProfile(
        s=reference.s, speed=reference.speed, lap_time=float(reference.lap_time)
    )
