"""Episodes of the return task played with all that a picture of them needs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from core_rl.env import named_obs
from projects.ace.actions import CONTROL_STEP, SAMPLE, drive
from projects.ace.arm import ArmParams, joint_centres, racket_pose
from projects.ace.ball import AIR, Ball, FlightModel
from projects.ace.events import COURT, Flight, simulate
from projects.ace.incoming import SAMPLE_STEP, to_ball
from projects.ace.render import Exchange
from projects.ace.return_env import (
    LONGEST,
    NET,
    OUTCOMES,
    RUNNING,
    SUBSTEPS,
    ReturnState,
    ReturnTask,
)

NUM_SAMPLES = round(CONTROL_STEP / SAMPLE)  # of the joints per decision
CHUNK = 500  # balls that are played together
LONGEST_RETURN = 360  # samples of the ball's way after the contact: 1.44 s


class Played(NamedTuple):
    """`N` episodes until their end; entries of a ball that was not hit are 0."""

    row: np.ndarray  # [N] of the ball in the environment's bank
    num_steps: np.ndarray  # [N] decisions until the episode ended
    outcome: np.ndarray  # [N] of OUTCOMES
    landing: np.ndarray  # [N, 2] [m]
    target: np.ndarray  # [N, 2] where the return should land [m]
    returned: np.ndarray  # [N, 9] the ball's state just after the contact
    pressed: np.ndarray  # [N, 8] largest |velocity| of each joint, as a share of its limit
    joints: np.ndarray | None  # [N, 1 + T * NUM_SAMPLES, 8] every `SAMPLE` from the stroke on


def end_of_episode(task: ReturnState, arm: ArmParams) -> dict[str, Array]:
    """What `Played` keeps of the last state of an episode."""
    ball = task.returned
    return {
        "num_steps": task.step,
        "outcome": task.outcome,
        "landing": task.landing,
        "target": task.target,
        "returned": jnp.concatenate([ball.position, ball.velocity, ball.spin], axis=-1),
        "pressed": task.fastest / arm.velocity_limit,
    }


def play(
    act: Callable[[dict[str, Array]], Array],
    env: ReturnTask,
    rows: np.ndarray,
    keys: Array,
    *,
    with_joints: bool = False,
) -> Played:
    """Plays the bank's balls `rows` [N], `CHUNK` at a time.

    Args:
      act: actions [n, 8] for observations [n, ...]; traced.
      env: the task.
      rows: [N] balls of its bank.
      keys: [N] what starts the episodes.
      with_joints: keep the joints' ways; they take 50 kB per ball.
    """

    def joints_of(task: ReturnState, action: Array) -> Array:
        """The joints [NUM_SAMPLES, 8] of which `env.step` keeps only the last."""
        return drive(env.arm, task.joints, task.memory, action, env.config.action)[2]

    @jax.jit
    def run(rows: Array, keys: Array) -> Any:
        first = jax.vmap(env.start)(rows, keys)

        def step(state: Any, _):
            before: ReturnState = state.pipeline_state
            action = act(named_obs(state))  # pyright: ignore[reportArgumentType]
            joints = jax.vmap(joints_of)(before, action) if with_joints else None
            state = jax.vmap(env.step)(state, action)
            after = jax.vmap(keep_ended)(before, state.pipeline_state)
            return state.replace(pipeline_state=after), joints

        last, joints = jax.lax.scan(step, first, None, length=LONGEST)
        final: ReturnState = last.pipeline_state  # pyright: ignore[reportAssignmentType]
        ends = jax.vmap(lambda task: end_of_episode(task, env.arm))(final)
        if joints is None:
            return ends
        start: ReturnState = first.pipeline_state  # pyright: ignore[reportAssignmentType]
        ways = jnp.moveaxis(joints, 0, 1).reshape(len(rows), -1, joints.shape[-1])
        return {**ends, "joints": jnp.concatenate([start.position[:, None], ways], axis=1)}

    size = min(CHUNK, len(rows))
    firsts = range(0, len(rows), size)
    numbers = np.minimum(
        np.arange(len(firsts) * size), len(rows) - 1
    )  # the last chunk is filled up
    parts = [
        jax.device_get(run(jnp.asarray(rows[part]), keys[part]))
        for part in np.split(numbers, len(firsts))
    ]
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(rows)], *parts)
    return Played(row=np.asarray(rows), joints=whole.pop("joints", None), **whole)


def keep_ended(before: ReturnState, after: ReturnState) -> ReturnState:
    """The state of an episode, which stays as it is once the episode has ended."""
    over = before.outcome > RUNNING
    return jax.tree.map(lambda old, new: jnp.where(over, old, new), before, after)


def _moment_of(place: np.ndarray, way: np.ndarray) -> float:
    """Where on the chords between a way's points [K, 3] a place [3] lies, in points."""
    start, chord = way[:-1], np.diff(way, axis=0)
    share = np.sum((place - start) * chord, axis=1) / np.maximum(np.sum(chord**2, axis=1), 1e-12)
    share = np.clip(share, 0.0, 1.0)
    k = int(np.argmin(np.linalg.norm(start + share[:, None] * chord - place, axis=1)))
    return k + float(share[k])


@functools.partial(jax.jit, static_argnames="model")
def _fly_return(model: FlightModel, ball: Ball) -> Flight:
    return simulate(model, AIR, COURT, ball, LONGEST_RETURN)


@jax.jit
def _bodies(q: Array) -> tuple[Array, Array]:
    """Joint centres [T, J, 3] and the blade's normal [T, 3] of joints [T, 8]."""
    return jax.vmap(joint_centres)(q), jax.vmap(racket_pose)(q).normal


def exchange_of(played: Played, env: ReturnTask, number: int) -> Exchange:
    """Episode `number` of `played`, whose ball must have been hit after its bounce."""
    outcome = int(played.outcome[number])
    if outcome < NET:
        raise ValueError(f"the racket did not return this ball: {OUTCOMES[outcome]}")
    if played.joints is None:
        raise ValueError("the joints' ways are needed: play with_joints")
    row = int(played.row[number])
    ball = jax.device_get(jax.tree.map(lambda leaf: leaf[row], env.bank.incoming))
    returned = played.returned[number]

    # The environment strikes the ball on a chord of its way, within the last decision.
    first = int(played.num_steps[number] - 1) * SUBSTEPS
    step = first + _moment_of(returned[:3], ball.position[first : first + SUBSTEPS + 1])
    contact, bounce_time = step * SAMPLE_STEP, float(ball.bounce_time)
    times = np.arange(len(ball.position)) * SAMPLE_STEP
    before = int(np.searchsorted(times, bounce_time, side="right")) - 1
    bounce = ball.position[before] + (bounce_time - times[before]) * ball.velocity[before]
    way = {t: p for t, p in zip(times, ball.position, strict=True) if t < contact - 1e-6}
    way = {**way, bounce_time: bounce, contact: returned[:3]}
    incoming_time = np.array(sorted(way))

    joint_times = np.arange(played.joints.shape[1]) * SAMPLE
    arm_time = np.append(joint_times[joint_times < contact - 1e-6], contact)
    ways = [np.interp(arm_time, joint_times, way) for way in played.joints[number].T]
    q = np.stack(ways, axis=1)
    # Filled up to one length for all balls, to compile `_bodies` once.
    filled = np.concatenate([q, np.repeat(q[-1:], len(joint_times) + 1 - len(q), axis=0)])
    centres, normal = (part[: len(q)] for part in jax.device_get(_bodies(jnp.asarray(filled))))

    flight = jax.device_get(_fly_return(env.config.model, to_ball(jnp.asarray(returned))))
    happened = np.argwhere(flight.events.kind > 0)
    free = np.arange(1, LONGEST_RETURN + 1) * SAMPLE_STEP
    outgoing, outgoing_time = flight.ball.position, free
    if len(happened):
        touch = tuple(happened[0])
        end, place = flight.events.time[touch], flight.events.before.position[touch]
        outgoing = np.concatenate([outgoing[free < end - 1e-6], place[None]])
        outgoing_time = np.append(free[free < end - 1e-6], end)
    velocity = [np.interp(contact, times, component) for component in ball.velocity.T]
    return Exchange(
        incoming=np.stack([way[t] for t in incoming_time]),
        incoming_time=incoming_time,
        bounce=bounce,
        outgoing=np.concatenate([returned[None, :3], outgoing]),
        outgoing_time=contact + np.append(0.0, outgoing_time),
        arm=centres,
        normal=normal,
        arm_time=arm_time,
        velocity=np.stack([ball.start[3:6], velocity, returned[3:6]]),
        spin=np.stack([ball.start[6:], ball.spin[1], returned[6:]]),
        outcome=OUTCOMES[outcome],
    )
