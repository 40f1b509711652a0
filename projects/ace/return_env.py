"""Returning one ball, as a brax environment: the tasks T0 to T3.

An episode begins with the opponent's stroke and the arm at rest at home, and ends with the
racket's contact, with the ball's death (its second bounce, or the floor) or with a touch of the
table by the arm. The policy decides every 32 ms; the joints follow jerk-limited references, with
delay and lag, sampled at 1 kHz; the racket is swept against the ball every 4 ms.

    T0  touch the ball                           balls of slow play
    T1  return it                                balls of slow play
    T2  return it to a target on the far half    balls of slow play
    T3  return the shots and serves of elite and professional players

The ball's way, its measurements and the filter's estimate until the contact come from a bank that
is computed once (`incoming`, `sensing`): before it is touched, a ball knows no robot.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from core_rl.env import Env, State, observation_sizes, register_environment
from core_rl.types import Afterstate, Hindsight, Obs, Transition
from projects.ace.actions import (
    CONTROL_STEP,
    ActionMap,
    Lagged,
    action_size,
    at_rest,
    drive,
    towards,
)
from projects.ace.arm import (
    NUM_JOINTS,
    JointState,
    ace_arm,
    clearances,
    home,
    racket_motion,
)
from projects.ace.ball import AIR, Ball, FlightModel
from projects.ace.bank import Bank, BankConfig, load_bank
from projects.ace.contact import RIM, RUBBERS, strike
from projects.ace.foresight import foresee
from projects.ace.incoming import SAMPLE_STEP
from projects.ace.racket import RacketMotion, sweep
from projects.ace.returning import Verdict, judge_return
from projects.ace.reward import (
    AIM,
    PRECISE,
    RewardConfig,
    closeness,
    reward_terms,
    weighted_sum,
)
from projects.ace.sensing import SensingConfig

SUBSTEPS = round(CONTROL_STEP / SAMPLE_STEP)  # sweeps of the racket per decision
LONGEST = 45  # decisions after which every incoming ball is dead: 1.44 s
FARTHEST = 1.5  # a miss is not counted worse than this [m]
STRIDE = 4  # every so many samples of the ball's way, how near the racket is to it is looked at
PREDICTED, NUM_AHEAD = 0.5, 16  # of the predicted way after the bounce: how long [s], points
SOON, SOON_STRIDE = 24, 2  # samples of the ball's way that the critics look ahead, every second one
PLANES = (-1.2, -1.6, -2.0)  # where the predicted way is looked up [m]
TASKS = ("T0", "T1", "T2", "T3")
TARGET_LOW, TARGET_HIGH = np.array([0.35, -0.55]), np.array([1.2, 0.55])  # [m]

TARGET = slice(-2, None)  # of the entry `state`
# Where the foreseen landings, less the target, stand in other entries.
OFF_TARGET = {"estimate": slice(-19, -17), "privileged_state": slice(-2, None)}

# How an episode ended; RUNNING goes on.
RUNNING, MISS, VOLLEY, TOUCH, NET, OUT, LEGAL = range(7)
OUTCOMES = ("running", "miss", "volley", "touch", "net", "out", "legal")


@struct.dataclass
class ReturnState:
    row: Array  # [] int32, the ball in the bank
    step: Array  # [] int32, decisions since the stroke
    joints: JointState  # [8] the reference
    memory: Lagged  # of the joints behind it
    position: Array  # [8] of the joints
    velocity: Array  # [8] of the joints
    fastest: Array  # [8] the largest |velocity| of each joint so far
    achieved: Array  # [] the smallest distance of ball and racket after the bounce so far [m]
    nearest: Array  # [] the smallest miss that is achieved or still possible [m]
    target: Array  # [2] where the return should land [m]
    outcome: Array  # [] int32
    landing: Array  # [2] of the return [m]
    down: Array  # [] bool, whether the return comes down to the table's height in time
    net_clearance: Array  # [] of the return where it passes the net [m]; -1 where it never does
    returned: Ball  # just after the racket's contact; zeros before


@dataclasses.dataclass(frozen=True)
class ReturnConfig:
    task: Literal["T0", "T1", "T2", "T3"] = "T1"
    model: FlightModel = "conti"  # of the flight
    rubber: str = "inverted"  # of both faces
    action: ActionMap = "velocity"  # what an action asks of a joint
    start_noise: float = 0.05  # standard deviation of the joints at the start [rad, m]
    balls: BankConfig = BankConfig()  # without a source: human for T3, slow for the others
    sensing: SensingConfig = SensingConfig()
    reward: RewardConfig = RewardConfig()

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if self.action not in get_args(ActionMap):
            allowed = ", ".join(get_args(ActionMap))
            raise ValueError(f"action must be one of {allowed}, got {self.action!r}")
        if self.rubber not in RUBBERS:
            allowed = ", ".join(RUBBERS)
            raise ValueError(f"rubber must be one of {allowed}, got {self.rubber!r}")
        if not self.start_noise >= 0:
            raise ValueError(f"start_noise must not be negative, got {self.start_noise}")

    def balls_of_task(self) -> BankConfig:
        """With the task's own source where none is named."""
        own = "human" if self.task == "T3" else "slow"
        return dataclasses.replace(self.balls, source=self.balls.source or own)


class ReturnTask(Env):
    """See the module's text. Observations: dict with `state`, `readings`, `estimate` and
    `privileged_state`, of which the actor reads the first three, and `bank_index`, which no network
    reads (see `_observe`).

    The balls are drawn (or read), flown and measured once, and kept on disk for the next time.
    Raises UserError for a file of balls that cannot be used.
    """

    def __init__(self, config: ReturnConfig = ReturnConfig()):
        self.config = config
        bank = load_bank(config.balls_of_task(), config.model, config.sensing)
        self.bank: Bank = jax.tree.map(jnp.asarray, bank)
        self.num_balls = len(bank.incoming.legal)
        self.arm = ace_arm()

    def reset(self, rng: Array) -> State:
        """A ball of the bank, and the arm about its home."""
        row_key, rest = jax.random.split(rng)
        return self.start(jax.random.randint(row_key, (), 0, self.num_balls), rest)

    def start(self, row: Array, rng: Array) -> State:
        """The episode of one ball of the bank."""
        joint_key, target_key = jax.random.split(rng)
        joints = home(self.arm)
        noise = self.config.start_noise * jax.random.normal(joint_key, (NUM_JOINTS,))
        joints = dataclasses.replace(joints, position=joints.position + noise)
        target = jax.random.uniform(target_key, (2,), minval=TARGET_LOW, maxval=TARGET_HIGH)
        zero = jnp.zeros(())
        task = ReturnState(
            row=jnp.asarray(row, jnp.int32),
            step=jnp.zeros((), jnp.int32),
            joints=joints,
            memory=at_rest(joints.position),
            position=joints.position,
            velocity=joints.velocity,
            fastest=jnp.abs(joints.velocity),
            achieved=jnp.asarray(FARTHEST),
            nearest=jnp.asarray(FARTHEST),
            target=target if self.config.task == "T2" else jnp.array(AIM),
            outcome=jnp.zeros((), jnp.int32),
            landing=jnp.zeros(2),
            down=jnp.asarray(False),
            net_clearance=zero,
            returned=Ball(jnp.zeros(3), jnp.zeros(3), jnp.zeros(3)),
        )
        pose, _, _ = racket_motion(task.position, task.velocity)
        task = dataclasses.replace(task, nearest=self._still_possible(task, pose.centre))
        terms = {name: zero for name in dataclasses.asdict(self.config.reward)}
        return State(
            pipeline_state=task,  # pyright: ignore[reportArgumentType]
            obs=self._observe(task),
            reward=zero,
            done=zero,
            metrics=self._metrics(task, terms),
        )

    def step(self, state: State, action: Array) -> State:
        task: ReturnState = state.pipeline_state  # pyright: ignore[reportAssignmentType]
        arm, incoming = self.arm, self.bank.incoming
        joints, memory, positions, velocities = drive(
            arm, task.joints, task.memory, action, self.config.action
        )

        # The racket at both ends of every sweep.
        every = positions.shape[0] // SUBSTEPS
        q = jnp.concatenate([task.position[None], positions[every - 1 :: every]])
        qd = jnp.concatenate([task.velocity[None], velocities[every - 1 :: every]])
        racket = jax.vmap(racket_motion)(q, qd)
        poses, racket_velocity, racket_turn = racket
        first = task.step * SUBSTEPS
        slab = lambda leaf: jax.lax.dynamic_slice(  # noqa: E731
            leaf, (task.row, first, 0), (1, SUBSTEPS + 1, 3)
        )[0]
        place, speed = slab(incoming.position), slab(incoming.velocity)
        begins = (first + jnp.arange(SUBSTEPS)) * SAMPLE_STEP
        bounce_time, end_time = incoming.bounce_time[task.row], incoming.end_time[task.row]

        def ends(leaves: Any) -> tuple[Any, Any]:
            """Of quantities [SUBSTEPS + 1, ...], those at both ends of each sweep."""
            pick = lambda part: jax.tree.map(lambda leaf: leaf[part], leaves)  # noqa: E731
            return pick(slice(0, -1)), pick(slice(1, None))

        balls = ends(Ball(place, speed, jnp.zeros_like(place)))
        hits = jax.vmap(sweep, in_axes=(0, 0, 0, 0, None))(*balls, *ends(racket), SAMPLE_STEP)
        moments = begins + hits.fraction * SAMPLE_STEP
        happened = hits.happened & (moments < end_time)
        hit, which = jnp.any(happened), jnp.argmax(happened)
        bounced = moments[which] >= bounce_time

        def at(leaf: Array) -> Array:
            """A quantity [SUBSTEPS + 1, ...] at the moment of contact."""
            a, b = leaf[which], leaf[which + 1]
            return a + hits.fraction[which] * (b - a)

        normal, arm_of_hit = hits.normal[which], hits.arm[which]
        touched = at(racket_velocity) + jnp.cross(at(racket_turn), arm_of_hit)
        spin = incoming.spin[task.row, bounced.astype(jnp.int32)]
        ball = Ball(at(place), at(speed), spin)
        rubber = RUBBERS[self.config.rubber]
        covering = jax.tree.map(lambda r, f: jnp.where(hits.rim[which], r, f), RIM, rubber)
        out = strike(covering, ball, normal, touched)
        verdict = judge_return(self.config.model, AIR, out)

        contact, volley = hit & bounced, hit & ~bounced
        touch = ~hit & (jnp.min(clearances(positions[-1])) < 0.0)
        dead = ~hit & ((first + SUBSTEPS) * SAMPLE_STEP >= end_time)
        dead |= ~hit & (task.step + 1 >= LONGEST)
        moved = dataclasses.replace(
            task,
            step=task.step + 1,
            joints=joints,
            memory=memory,
            position=positions[-1],
            velocity=velocities[-1],
            fastest=jnp.maximum(task.fastest, jnp.max(jnp.abs(velocities), axis=0)),
            landing=jnp.where(contact, verdict.landing, task.landing),
            down=jnp.where(contact, verdict.down, task.down),
            net_clearance=jnp.where(contact, verdict.net_clearance, task.net_clearance),
            returned=jax.tree.map(lambda new, old: jnp.where(hit, new, old), out, task.returned),
            outcome=_outcome(contact, volley, touch, dead, verdict),
        )
        distances = _length(place[1:] - poses.centre[1:])
        live = (begins + SAMPLE_STEP >= bounce_time) & (begins < end_time)
        achieved = jnp.min(jnp.where(live, distances, FARTHEST))
        possible = self._still_possible(moved, poses.centre[-1])
        # What was achieved stays achieved; what was possible may be lost.
        best = jnp.minimum(task.achieved, achieved)
        nearest = jnp.where(contact, 0.0, jnp.minimum(possible, best))
        nearest = jnp.where(volley | touch, task.nearest, nearest)
        moved = dataclasses.replace(moved, nearest=nearest, achieved=best)
        terms = reward_terms(
            task.nearest - nearest,
            contact,
            volley,
            touch,
            verdict,
            task.target,
            action,
            precise=self.config.task == "T2",
        )
        return state.replace(  # pyright: ignore[reportAttributeAccessIssue]
            pipeline_state=moved,
            obs=self._observe(moved),
            reward=weighted_sum(terms, self.config.reward),
            done=(moved.outcome > RUNNING).astype(jnp.float32),
            metrics={**state.metrics, **self._metrics(moved, terms)},
        )

    def _still_possible(self, task: ReturnState, centre: Array) -> Array:
        """How near the racket's centre [3] is to the rest of the ball's way after its bounce."""
        way = self.bank.incoming.position[task.row, ::STRIDE]
        when = jnp.arange(way.shape[0]) * STRIDE * SAMPLE_STEP
        now = task.step * CONTROL_STEP
        incoming = self.bank.incoming
        live = (when >= jnp.maximum(now, incoming.bounce_time[task.row])) & (
            when < incoming.end_time[task.row]
        )
        distances = _length(way - centre)
        return jnp.minimum(jnp.min(jnp.where(live, distances, FARTHEST)), FARTHEST)

    def _observe(self, task: ReturnState) -> dict[str, Array]:
        """Entries; those that networks read are scaled to the order of 1.

        `state`: joints, racket, clock and target. `readings`: the newest measurements of the ball.
        `estimate`: what the filter makes of them, and its prediction. `privileged_state`: the
        ball's true state, for the critics. `bank_index`, for `afterstate` alone: the ball's row and
        the decision. With T2 also `achieved`, for hindsight alone: where the return landed, and
        whether it was legal.
        """
        arm, sensed = self.arm, self.bank.sensed
        joints = task.joints
        pose, racket_velocity, racket_turn = racket_motion(task.position, task.velocity)
        k = jnp.minimum(task.step, LONGEST - 1)
        read = jax.tree.map(lambda leaf: leaf[task.row, k], sensed)
        seen = read.estimate[:3]
        mask = read.history_mask[:, None]

        # The predicted way after the bounce: where it comes nearest to the racket, and where it
        # crosses three planes.
        ahead = jnp.linspace(0.0, PREDICTED, NUM_AHEAD)
        powers = jnp.stack([jnp.ones_like(ahead), ahead, ahead**2, ahead**3])
        way = (read.path @ powers).T  # [NUM_AHEAD, 3]
        slopes = jnp.stack([jnp.zeros_like(ahead), jnp.ones_like(ahead), 2 * ahead, 3 * ahead**2])
        near = jnp.argmin(jnp.sum((way - pose.centre) ** 2, axis=1))
        falling = jnp.maximum.accumulate(-way[:, 0])  # towards the robot, for the look-up
        crossings = [
            jnp.stack([jnp.interp(-x, falling, values) for values in (way[:, 1], way[:, 2], ahead)])
            for x in PLANES
        ]
        spins = jnp.broadcast_to(read.path_spin, way.shape)
        predicted = Ball(way, (read.path @ slopes).T, spins)
        racket = pose, racket_velocity, racket_turn
        angle = joints.position[2:]
        state = [
            joints.position / arm.position_limit,
            joints.velocity / arm.velocity_limit,
            joints.acceleration / arm.acceleration_limit,
            jnp.sin(angle),
            jnp.cos(angle),
            pose.centre,
            pose.normal,
            pose.handle,
            racket_velocity / 3.0,
            racket_turn / 10.0,
            task.step / LONGEST,
            task.target,
        ]
        newest = jnp.where(read.history_mask[0], read.history[0], 0.0)
        readings = [
            newest,
            (read.history[1:] - newest) * mask[1:] * 5.0,
            read.history_age * read.history_mask * 10.0,
            read.spin_reading / 250.0,
            read.spin_age * 5.0,
        ]
        estimate = [
            seen,
            read.estimate[3:6] / 8.0,
            read.estimate[6:] / 250.0,
            read.estimate_sd * jnp.array([100.0, 2.0, 0.02]),
            read.bounced,
            seen - pose.centre,
            way[near] - pose.centre,
            way[near],
            predicted.velocity[near] / 8.0,
            *self._foresee(predicted, read.path_time + ahead, racket, task.target),
            (read.path_time + ahead[near]) * 3.0,
            read.path_time * 3.0,
            way[0],
            read.path_spin / 250.0,
            *crossings,
        ]
        incoming = self.bank.incoming
        now = jnp.minimum(task.step * SUBSTEPS, incoming.position.shape[1] - 1)
        time = task.step * CONTROL_STEP
        place, bounce_time = incoming.position[task.row, now], incoming.bounce_time[task.row]
        bounced = (time >= bounce_time).astype(jnp.int32)
        soon, times = self._way(task.row, task.step, 0)
        privileged = [
            place,
            place - pose.centre,
            incoming.velocity[task.row, now] / 8.0,
            incoming.spin[task.row, bounced] / 250.0,
            incoming.spin[task.row, 1] / 250.0,
            (bounce_time - time) * 3.0,
            (jnp.minimum(incoming.end_time[task.row], LONGEST * CONTROL_STEP) - time) * 3.0,
            task.achieved,
            task.nearest,
            *self._foresee(soon, times, racket, task.target),
        ]
        index = jnp.stack([task.row, jnp.minimum(task.step, LONGEST)])
        legal = task.outcome == LEGAL
        achieved = {"achieved": _flat([task.landing, legal])} if self.config.task == "T2" else {}
        return {
            "state": _flat(state),
            "readings": _flat(readings),
            "estimate": _flat(estimate),
            "privileged_state": _flat(privileged),
            "bank_index": index.astype(jnp.float32),
            **achieved,
        }

    def _way(self, row: Array, step: Array, before: int) -> tuple[Ball, Array]:
        """The true ball's way around a decision, from `before` samples before it on.

        Returns the ball [T], with the spin that it has after its bounce, and the times [T] from the
        decision on [s].
        """
        incoming = self.bank.incoming
        offsets = jnp.arange(-before, SOON, SOON_STRIDE)
        rows = jnp.clip(step * SUBSTEPS + offsets, 0, incoming.position.shape[1] - 1)
        way = Ball(
            incoming.position[row, rows],
            incoming.velocity[row, rows],
            jnp.broadcast_to(incoming.spin[row, 1], (len(offsets), 3)),
        )
        return way, offsets * SAMPLE_STEP

    def _foresee(
        self, way: Ball, times: Array, racket: RacketMotion, target: Array
    ) -> tuple[Array, ...]:
        return foresee(self.config.model, RUBBERS[self.config.rubber], way, times, racket, target)

    def afterstate(self) -> Afterstate | None:
        """What the critics may know of an action beforehand: where it brings the arm, and what
        would come of it if the racket went on from there. Only for the map `velocity`."""
        if self.config.action != "velocity":
            return None
        arm = self.arm

        def features(obs: Obs, action: Array) -> Array:
            scaled = obs["state"][: 3 * NUM_JOINTS].reshape(3, NUM_JOINTS)
            limits = arm.position_limit, arm.velocity_limit, arm.acceleration_limit
            start = JointState(*(x * limit for x, limit in zip(scaled, limits, strict=True)))
            end = towards(arm, start, action)
            late = arm.delay + arm.lag
            position = end.position - late * (end.velocity - 0.5 * late * end.acceleration)
            velocity = end.velocity - late * end.acceleration
            racket = racket_motion(position, velocity)
            row, step = obs["bank_index"].astype(jnp.int32)
            # The ball may meet the racket on the way there, so the way begins with the action.
            way, times = self._way(row, step + 1, SUBSTEPS)
            now = jnp.argmin(jnp.abs(times))
            pose, racket_velocity, racket_turn = racket
            return _flat(
                [
                    position / arm.position_limit,
                    velocity / arm.velocity_limit,
                    end.acceleration / arm.acceleration_limit,
                    pose.centre,
                    pose.normal,
                    pose.handle,
                    racket_velocity / 3.0,
                    racket_turn / 10.0,
                    way.position[now] - pose.centre,
                    *self._foresee(way, times, racket, obs["state"][TARGET]),
                ]
            )

        obs = jax.eval_shape(self.reset, jax.random.key(0)).obs
        action = jax.ShapeDtypeStruct((self.action_size,), jnp.float32)
        return Afterstate(size=jax.eval_shape(features, obs, action).shape[-1], features=features)

    def _metrics(self, task: ReturnState, terms: dict[str, Array]) -> dict[str, Array]:
        ended = {
            name: (task.outcome == number).astype(jnp.float32)
            for number, name in enumerate(OUTCOMES)
            if number != RUNNING
        }
        hit = task.outcome >= NET
        distance = _length(task.landing - task.target)
        return {
            **{f"reward/{name}": term for name, term in terms.items()},
            **{f"ended/{name}": value for name, value in ended.items()},
            "hit": hit.astype(jnp.float32),
            "legal": (task.outcome == LEGAL).astype(jnp.float32),
            "landing_error": jnp.where(task.outcome == LEGAL, distance, 0.0),
        }

    def hindsight(self) -> Hindsight | None:
        """For T2: a legal return is one to the target at which it landed."""
        if self.config.task != "T2":
            return None
        weights = self.config.reward

        def goal(last: Transition) -> tuple[Array, Array]:
            achieved = last.next_obs["achieved"]
            return achieved[:2], achieved[2] > 0.0

        def reward(last: Transition, goal: Array) -> Array:
            landing = last.next_obs["achieved"][:2]

            def paid(aim: Array) -> Array:
                precision = closeness(landing, aim, PRECISE)
                return weights.landing * closeness(landing, aim) + weights.precision * precision

            return last.reward + paid(goal) - paid(last.obs["state"][TARGET])

        def obs(obs: Obs, goal: Array) -> Obs:
            moved = obs["state"][TARGET] - goal
            off = {name: obs[name].at[part].add(moved) for name, part in OFF_TARGET.items()}
            return {**obs, **off, "state": obs["state"].at[TARGET].set(goal)}

        return Hindsight(horizon=LONGEST, goal=goal, reward=reward, obs=obs)

    @property
    def observation_size(self) -> dict[str, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return observation_sizes(self)

    @property
    def action_size(self) -> int:
        return action_size(self.config.action)

    @property
    def backend(self) -> str:
        return "ace"


def _outcome(contact: Array, volley: Array, touch: Array, dead: Array, verdict: Verdict) -> Array:
    """How the step ended the episode, [] int32."""
    struck = jnp.where(verdict.legal, LEGAL, jnp.where(verdict.over_net, OUT, NET))
    outcome = jnp.where(dead, MISS, RUNNING)
    outcome = jnp.where(touch, TOUCH, outcome)
    outcome = jnp.where(volley, VOLLEY, outcome)
    return jnp.where(contact, struck, outcome).astype(jnp.int32)


def _length(vectors: Array) -> Array:
    """Of vectors [..., D], [...]."""
    return jnp.sqrt(jnp.sum(vectors**2, axis=-1))


def _flat(entries: list[Array]) -> Array:
    return jnp.concatenate([jnp.ravel(entry).astype(jnp.float32) for entry in entries])


register_environment("ace_return", ReturnTask)
