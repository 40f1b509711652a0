"""Drives flying laps with a policy, records them, and sums them up."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core_rl.env import State, named_obs
from core_rl.policy import Policy
from core_rl.types import Key
from projects.sophy import track as tracks
from projects.sophy.car import Car
from projects.sophy.drive import UNKNOWN, CircuitOutline, Drive, ReferenceProfile
from projects.sophy.driving import CONTROL_STEP, DriveState
from projects.sophy.reference import ReferenceLap
from projects.sophy.surfaces import SURFACES
from projects.sophy.time_trial import TimeTrial
from projects.sophy.track import Track

SLACK = 1.15  # time given to a lap, in lap times of the reference


class Control(NamedTuple):
    """Who drives: a policy, a planner."""

    # (params, memory, State, key) -> (action [2], memory)
    act: Callable[..., tuple[jax.Array, Any]]
    memory: Any = ()  # at a start


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
    return record_of(state.pipeline_state)  # pyright: ignore[reportArgumentType]


def record_of(drive: DriveState) -> dict[str, jax.Array]:
    """The same of one car that is somewhere."""
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


def driven_by(policy: Policy) -> Control:
    """A policy bundle at the wheel; the parameters are the policy's."""
    return Control(lambda params, memory, state, key: (policy.apply(params, named_obs(state)), ()))


def make_driver(
    env: TimeTrial,
    control: Control,
    num_laps: int,
    trace: Callable[
        [State, State, jax.Array], dict[str, jax.Array]
    ] = lambda before, after, action: record(after),
) -> Callable[[Any, Key], dict[str, jax.Array]]:
    """Builds `(params, keys [N]) -> traces [T, N, ...]`, compiled: `N` cars, each alone, drive long
    enough for `num_laps` flying laps at 1.15 times the reference's time.

    Args:
      trace: `(state before, state after, action)` -> what is kept of a step.
    """
    reference_time = float(env.reference.lap_time)
    num_steps = int(np.ceil((num_laps + 1) * SLACK * reference_time / CONTROL_STEP))

    def step(params: Any, carry: tuple[State, Any], key: Key):
        state, memory = carry
        action, memory = control.act(params, memory, state, key)
        after = env.step(state, action)
        return (after, memory), trace(state, after, action)

    @jax.jit
    def rollout(params: Any, keys: Key) -> dict[str, jax.Array]:
        def steps(carry: tuple[State, Any], number: jax.Array):
            folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
            return jax.vmap(step, in_axes=(None, 0, 0))(params, carry, folded)

        def start(key: Key) -> tuple[State, Any]:
            return env.reset(key), control.memory

        return jax.lax.scan(steps, jax.vmap(start)(keys), jnp.arange(num_steps))[1]

    return rollout


def drive_laps(env: TimeTrial, control: Control, params: Any, num_laps: int, key: Key) -> Laps:
    """One car from one start drives to the line and then `num_laps` laps without a pause.

    A car that needs more than 1.15 times the reference's time completes fewer laps.
    """
    traces = jax.device_get(make_driver(env, control, num_laps)(params, key[None]))
    return summarise({name: values[:, 0] for name, values in traces.items()}, env, num_laps)


def flying(lap: np.ndarray, num_laps: int) -> np.ndarray:
    """Which steps [T] belong to the first `num_laps` flying laps; all, where none was begun."""
    # The step that crosses the line still belongs to the lap before it.
    lap_of_step = np.concatenate([[0], lap[:-1]])
    part = (lap_of_step >= 1) & (lap_of_step <= num_laps)
    return part if part.any() else np.ones(len(lap_of_step), bool)


def summarise(trace: dict[str, np.ndarray], env: TimeTrial, num_laps: int) -> Laps:
    """The first `num_laps` flying laps of a recorded trace, leaves [T, ...]."""
    part = flying(trace["lap"], num_laps)
    lap_times = trace["lap_time"][part & (trace["lap_time"] > 0)]
    drive = drive_of(trace, part, env.car)
    return Laps(
        lap_times=[float(value) for value in lap_times],
        reference_time=float(env.reference.lap_time),
        off_course_steps=int(np.sum(drive.off_course)),
        wall_contact_steps=int(np.sum(drive.wall_contact)),
        drive=drive,
    )


def drive_of(trace: dict[str, np.ndarray], part: np.ndarray, car: Car) -> Drive:
    """The steps `part` [T] bool of one car's recorded trace, leaves [T, ...]."""
    names = {field.name for field in dataclasses.fields(Drive)}
    kept = {name: values[part] for name, values in trace.items() if name in names}
    time = (1 + np.flatnonzero(part)) * CONTROL_STEP
    size = float(car.length), float(car.width)
    return Drive(time=time - time[0], car_size=size, **kept)


def shorten(drive: Drive, num_laps: int) -> Drive:
    """The first `num_laps` laps of a record."""
    part = drive.lap < drive.lap[0] + num_laps
    fields = {name: getattr(drive, name)[part] for name in vars(drive) if name != "car_size"}
    return Drive(car_size=drive.car_size, **fields)


def outline_of(track: Track) -> CircuitOutline:
    """The circuit as polylines through its nodes."""
    ground = jax.device_get(
        jax.lax.dynamic_slice_in_dim(track.ground, track.first, tracks.NUM_NODES)
    )
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
        road=_surface_names(ground[:, tracks.ROAD]),
        verge=_surface_names(ground[:, tracks.VERGE]),
        kerb=float(track.kerb),
    )


def _surface_names(ground: np.ndarray) -> np.ndarray:
    """Names [N] of the surfaces with the numbers [N, 5]; UNKNOWN for numbers that none has."""
    known = np.array([dataclasses.astuple(surface) for surface in SURFACES.values()])
    distance = np.abs(ground[:, None] - known).max(axis=-1)
    names = np.array(list(SURFACES))[distance.argmin(axis=-1)]
    return np.where(distance.min(axis=-1) < 1e-3, names, UNKNOWN)


def profile_of(lap: ReferenceLap) -> ReferenceProfile:
    reference = jax.device_get(lap)
    return ReferenceProfile(
        s=reference.s, speed=reference.speed, lap_time=float(reference.lap_time)
    )
