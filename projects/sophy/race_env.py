"""Up to twenty cars on one circuit, as one environment with an action, an observation and a reward
per car.

A slot of the field may be empty: `present` says which hold a car, so fields of any size up to
`RaceConfig.num_cars` are one compilation. Cars set off from a standing grid, rolling in pairs, or
in a loose pack anywhere on the circuit; contact, walls and slipstream are switches, wear, fuel and
aids are the time trial's. A car that stands still, turned round or against a wall, is set back on
the road by marshals after some seconds, since there is no reverse gear. The race is over for a car
when it has crossed the line after its last lap, or has stood still for `RETIRES` seconds; it then
leaves its slot, and nobody meets it again.

Leaves of a `State` have a leading axis [M] where the time trial's have none. For a car that left
the race, or never was in it, `done` is 1; otherwise the clock of whoever runs races ends them.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from core_rl.env import Env, State, register_environment
from core_rl.errors import UserError
from projects.sophy import track as tracks
from projects.sophy.car import Car, body_middle, fuelled
from projects.sophy.driving import CONTROL_STEP, DriveState, drive_metrics
from projects.sophy.pits import PitConfig, Pits, no_stops, parked, put_back, serve, where
from projects.sophy.race import (
    Interaction,
    Meetings,
    drive_together,
    gaps,
    in_world,
    no_meetings,
    of_either,
    opponents_of,
)
from projects.sophy.race_reward import RaceRewardConfig, race_reward_terms
from projects.sophy.reward import reward_terms, weighted_sum
from projects.sophy.stewards import (
    CORNER_REACH,
    MEMORY,
    SECOND,
    Bodies,
    Record,
    Situation,
    Trace,
    Verdicts,
    charge,
    clean_record,
    foreseen,
    judge,
    severity,
)
from projects.sophy.time_trial import TimeTrial, TimeTrialConfig
from projects.sophy.track import Track

MOST_CARS = 20
GRID_GAP = 8.0  # from one place of a grid to the next [m]
ROLLING_GAP = 16.0  # the same of cars that roll [m]
PACK_GAP = (10.0, 40.0)  # between the cars of a loose pack [m]
GRID_SHARE = 0.45  # of the half width, where the columns of a grid stand
RETIRES = 15.0  # a car that stands still for so long is out [s]
STANDS = 1.0  # slower than this is standing still [m/s]
TRIES_AGAIN = 1.0  # after which marshals look again whether the road is clear [s]
SET_BACK_ROOM = (20.0, 3.0)  # along and across, where no other car may be for marshals [m]
NEED_OVER = 20.0  # way over which the lap's braking is looked at [m]
EARLY = 1.0  # so much before the lap one may brake as hard [s]
CONTACT_ENDS = 5  # with more control steps than these without touching, a contact is a new one


@dataclasses.dataclass(frozen=True)
class OpponentsConfig:
    """What a car sees of the others, as in Wurman et al. 2022: lists ahead and behind, nearest
    first, filled up with zeros."""

    ahead: int = 7  # cars listed
    behind: int = 7
    reach_ahead: float = 100.0  # along the course [m]
    reach_behind: float = 50.0  # [m]
    heading: bool = True  # whether their heading is told
    road: bool = False  # whether it is told where they are on the road
    blame: bool = False  # whether it is told who of the two would be at fault in a contact now

    def __post_init__(self):
        for name in ("ahead", "behind"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("reach_ahead", "reach_behind"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def size(self) -> int:
        return (self.ahead + self.behind) * (7 + 2 * self.heading + 5 * self.road + 2 * self.blame)


@dataclasses.dataclass(frozen=True)
class RaceConfig:
    solo: TimeTrialConfig = TimeTrialConfig(steering="delta")
    num_cars: int = 4  # slots, of which every episode fills some
    field: tuple[int, ...] = ()  # sizes of the field, one is drawn per episode; none: all slots
    start: Literal["grid", "rolling", "pack"] = "grid"  # how cars set off
    laps: int = 3  # length of the race; 0: without end
    contact: bool = True  # whether cars touch
    walls: bool = True  # whether walls stop them
    slipstream: bool = True  # whether wakes take drag and downforce
    marshals: float = 5.0  # set a car back on the road that has stood still so long, 0: never [s]
    pits: PitConfig = PitConfig()
    opponents: OpponentsConfig = OpponentsConfig()
    reward: RaceRewardConfig = RaceRewardConfig()  # counts instead of the time trial's

    def __post_init__(self):
        if not 1 <= self.num_cars <= MOST_CARS:
            raise ValueError(f"num_cars must be 1 to {MOST_CARS}, got {self.num_cars}")
        if any(not 1 <= size <= self.num_cars for size in self.field):
            raise ValueError(f"field must hold sizes of 1 to {self.num_cars}, got {self.field}")
        if self.start not in ("grid", "rolling", "pack"):
            raise ValueError(f"start must be grid, rolling or pack, got {self.start!r}")
        if self.start == "pack" and self.laps:
            raise ValueError(
                f"laps must be 0 with start=pack, whose cars have different ways, got {self.laps}"
            )
        if not self.marshals >= 0:
            raise ValueError(f"marshals must not be negative, got {self.marshals}")
        if self.laps < 0:
            raise ValueError(f"laps must not be negative, got {self.laps}")


@struct.dataclass
class Stewarding:
    """What the stewards remember and have decided."""

    trace: Trace  # leaves [MEMORY, M], oldest first, the last of them now
    apart: Array  # [M, M] int32, control steps since a pair touched, first < second
    verdicts: Verdicts  # on the contacts that were judged in the last step
    severity: Array  # [M, M] int32, highest of a pair's last contact: 0 light, 1 medium, 2 heavy
    record: Record


@struct.dataclass
class RaceState:
    """A race between two decisions."""

    drives: DriveState  # [M]
    present: Array  # [M] bool, slots with a car that takes part
    meetings: Meetings  # of the last step
    distance: Array  # [M] from where the race began, of a grid the line; at first negative [m]
    clock: Array  # [] since the start [s]
    laps: Array  # [] int32, length of the race, 0 if it has no end
    finish_time: Array  # [M] when the last lap ended, 0 while it has not [s]
    standing: Array  # [M] how long the car has stood still [s]
    retired: Array  # [M] bool
    steering_change: Array  # [M] of the target in the last step [rad]
    stewarding: Stewarding
    pits: Pits

    @property
    def on_road(self) -> Array:
        """[M] bool, the cars that others can meet: who takes part and is not at a stop."""
        return self.present & (self.pits.wait == 0.0)


def contacts_begun(before: Stewarding, met: Meetings) -> Array:
    """Which pairs of cars [M, M] bool began to touch in a step after `before`, first < second."""
    return (met.contact > 0.0) & (before.apart > CONTACT_ENDS)


def race_of(state: State) -> RaceState:
    """The race that a state of `RaceEnv` holds."""
    return state.pipeline_state  # pyright: ignore[reportReturnType]


def classification(race: RaceState) -> Array:
    """Place [M] of every car, 1 the first: by finish, then by distance; empty slots come last."""
    finished = race.finish_time > 0.0
    entered = race.present | finished | race.retired
    group = jnp.where(finished, 0, jnp.where(entered, 1, 2))
    distance = jnp.where(jnp.isfinite(race.distance), race.distance, 0.0)
    score = jnp.where(finished, race.finish_time, jnp.where(entered, -distance, 0.0))
    # Compared apart, since one number for both would round the times.
    better = (group[None] < group[:, None]) | (
        (group[None] == group[:, None]) & (score[None] < score[:, None])
    )
    return 1 + jnp.sum(better, axis=1)


def opponents(
    track: Track, race: RaceState, config: OpponentsConfig, blame: Array | None = None
) -> Array:
    """The others as every car sees them [M, config.size]: per car and listed opponent its position,
    velocity and acceleration relative to the car's in its own frame, and, if asked for, its heading
    there, where it is on the road, and whether the car and whether the opponent would be at fault
    in a contact now, of which `blame` [M, M] bool tells of the first; and one, or zeros.

    On the road it is so far along the course and to the left of the car, so much faster along it,
    and has so much room on its left and on its right: what passing is about, and what its position
    in the car's frame tells only together with the bend between the two.
    """
    drives, on_road = race.drives, race.on_road
    motion, num_cars = drives.motion, on_road.shape[0]
    gap = gaps(track, drives.s)
    cosine, sine = jnp.cos(motion.heading), jnp.sin(motion.heading)

    def seen(vector: Array, scale: float) -> list[Array]:
        """Differences [M, M] of world vectors [M, 2], in the frames of the first."""
        x, y = vector.T
        x, y = (x[None] - x[:, None]) / scale, (y[None] - y[:, None]) / scale
        along = x * cosine[:, None] + y * sine[:, None]
        return [along, y * cosine[:, None] - x * sine[:, None]]

    features = [
        *seen(motion.position, 20.0),
        *seen(in_world(motion.heading, motion.velocity), 10.0),
        *seen(in_world(motion.heading, motion.acceleration), 10.0),
    ]
    if config.heading:
        turn = motion.heading[None] - motion.heading[:, None]
        features += [jnp.cos(turn), jnp.sin(turn)]
    if config.road:
        offset, (speed, _) = drives.placement.offset, _on_course(drives)
        there = jax.vmap(tracks.at, (None, 0))(track, drives.s)
        body = 0.5 * drives.car.width
        room = jnp.stack([there.width_left - offset - body, there.width_right + offset - body])
        features += [
            gap / 20.0,
            (offset[None] - offset[:, None]) / 4.0,
            (speed[None] - speed[:, None]) / 10.0,
            *jnp.broadcast_to(room[:, None] / 4.0, (2, num_cars, num_cars)),
        ]
    if config.blame:
        assert blame is not None
        features += [blame.astype(jnp.float32), blame.T.astype(jnp.float32)]
    table = jnp.stack([*features, jnp.ones((num_cars, num_cars))], -1)  # [M, M, F]

    others = opponents_of(on_road)
    lists = []
    for count, way, reach in (
        (config.ahead, gap, config.reach_ahead),
        (config.behind, -gap, config.reach_behind),
    ):
        # A car exactly alongside counts as behind.
        side = (way > 0.0) if way is gap else (way >= 0.0)
        distance = jnp.where(others & side & (way < reach), way, jnp.inf)
        listed = min(count, num_cars)
        nearest, index = jax.lax.top_k(-distance, listed)
        rows = jnp.take_along_axis(table, index[..., None], axis=1)
        rows = jnp.where(jnp.isfinite(nearest)[..., None], rows, 0.0)
        lists.append(jnp.pad(rows, ((0, 0), (0, count - listed), (0, 0))))
    return jnp.concatenate(lists, axis=1).reshape(num_cars, config.size)


class RaceEnv(Env):
    """See the module's text. Observations: the time trial's entries and `opponents`, all [M, ...].

    Every entrant of `config.solo` drives in turn: slot k holds entrant k modulo their number. A
    reset draws the circuit and the size of the field. Raises UserError with one clear line.
    """

    def __init__(self, config: RaceConfig = RaceConfig()):
        self.config = config
        self.solo = TimeTrial(config.solo)
        slots = np.arange(config.num_cars)
        self.car_index = jnp.asarray(slots % len(self.solo.entrants), jnp.int32)
        shortest = float(jnp.min(self.solo.tracks.length))
        needed = PACK_GAP[1] * config.num_cars
        if needed > shortest:
            raise UserError(
                f"{config.num_cars} cars need {needed:.0f} m of a circuit, "
                f"the shortest has {shortest:.0f} m"
            )
        self.sizes = jnp.asarray(config.field or (config.num_cars,), jnp.int32)

    @property
    def num_agents(self) -> int:
        return self.config.num_cars

    def reset(self, rng: Array) -> State:
        keys = jax.random.split(rng, 6)
        circuit_key, size_key, order_key, origin_key, gap_key, share_key = keys
        circuit = jax.random.randint(circuit_key, (), 0, len(self.solo.circuits))
        size = jax.random.choice(size_key, self.sizes)
        slots = jnp.arange(self.config.num_cars)
        # Who stands where on the grid is drawn; empty slots stand at its end.
        draw = jax.random.uniform(order_key, slots.shape)
        present = slots < size
        place = jnp.argsort(jnp.argsort(jnp.where(present, draw, 2.0)))
        track = self.solo.track_of(circuit)
        if self.config.start == "pack":
            origin = jax.random.uniform(origin_key) * track.length
            low, high = PACK_GAP
            between = jax.random.uniform(gap_key, slots.shape, minval=low, maxval=high)
            distance = -jnp.cumsum(between)[place]
            share = 0.5 * jax.random.uniform(share_key, slots.shape, minval=-1.0)
            speed = 0.7
        else:
            origin = jnp.zeros(())
            standing = self.config.start == "grid"
            distance, share = in_columns(place, GRID_GAP if standing else ROLLING_GAP)
            speed = 0.0 if standing else 0.6
        return self.start(circuit, present, origin, distance, share, jnp.full(slots.shape, speed))

    def line_up(self, number: Array, place: Array) -> State:
        """Race `number` [] of a series, on the circuits in turn: all slots on a standing grid, at
        places [M] from 0."""
        circuit = (number % len(self.solo.circuits)).astype(jnp.int32)
        present, still = jnp.ones(place.shape, bool), jnp.zeros(place.shape)
        return self.start(circuit, present, jnp.zeros(()), *in_columns(place, GRID_GAP), still)

    def start(
        self,
        circuit: Array,
        present: Array,
        origin: Array,
        distance: Array,
        share: Array,
        speed_share: Array,
    ) -> State:
        """A field that sets off on a circuit [].

        Args:
          present: [M] bool.
          origin: [] arc length of where the race begins [m].
          distance: [M] from there to the cars, negative behind it [m].
          share, speed_share: [M] see `TimeTrial.start`.
        """
        track = self.solo.track_of(circuit)
        start = jax.vmap(self.solo.start, (None, 0, 0, 0, 0))
        s = tracks.wrap(track, origin + distance)
        state = start(circuit, self.car_index, s, share, speed_share)
        drives: DriveState = state.pipeline_state  # pyright: ignore[reportAssignmentType]
        num_cars = self.config.num_cars
        race = RaceState(
            drives=drives,
            present=present,
            meetings=no_meetings(num_cars),
            distance=distance,
            clock=jnp.zeros(()),
            laps=jnp.int32(self.config.laps),
            finish_time=jnp.zeros(num_cars),
            standing=jnp.zeros(num_cars),
            retired=jnp.zeros(num_cars, bool),
            steering_change=jnp.zeros(num_cars),
            stewarding=_nothing_judged(drives, distance),
            pits=no_stops(drives),
        )
        terms = self._terms(race, race, jnp.zeros((num_cars, 2)))
        return State(
            pipeline_state=race,  # pyright: ignore[reportArgumentType]
            obs=self._observe(race),
            reward=jnp.zeros(num_cars),
            done=1.0 - present.astype(jnp.float32),
            metrics=jax.tree.map(jnp.zeros_like, self._metrics(race, terms)),
        )

    def step(self, state: State, action: Array) -> State:
        """`action` [M, 2]."""
        previous = race_of(state)
        action = jnp.clip(action, -1.0, 1.0)
        current = self._race(previous, action)
        terms = self._terms(previous, current, action)
        # A slot that is empty, or was left in this step, earns nothing, nor does who is at a stop.
        took_part = previous.on_road.astype(jnp.float32)
        return state.replace(  # pyright: ignore[reportAttributeAccessIssue]
            pipeline_state=current,
            obs=self._observe(current),
            reward=took_part * weighted_sum(terms, self.config.reward),
            done=1.0 - current.present.astype(jnp.float32),
            metrics={**state.metrics, **self._metrics(current, terms)},
        )

    def _track(self, race: RaceState) -> Track:
        return self.solo.track_of(race.drives.circuit[0])

    def _race(self, previous: RaceState, action: Array) -> RaceState:
        config, track = self.config, self._track(previous)
        drives, met = drive_together(
            track,
            previous.drives,
            previous.on_road,
            lambda drives: jax.vmap(self.solo.command)(drives, action),
            config.solo.substeps,
            config.solo.corrections,
            Interaction(config.contact, config.slipstream, config.walls),
        )
        # Who left the race burns no fuel and wears no tyres while others drive on.
        drives = where(previous.present, drives, previous.drives)
        if config.pits.stops:
            drives = parked(previous.drives, drives, previous.pits)
        clock = previous.clock + CONTROL_STEP
        # The first crossing begins the first lap where all stand before the line.
        ended = (drives.laps_begun > previous.laps) & (previous.laps > 0)
        finishes = ended & (previous.finish_time == 0.0) & previous.present
        speed = jnp.sqrt(jnp.sum(drives.motion.velocity**2, -1))
        stands = (speed < STANDS) & (previous.pits.wait == 0.0)
        standing = jnp.where(stands, previous.standing + CONTROL_STEP, 0.0)
        retires = (standing >= RETIRES) & previous.present & ~finishes
        if config.marshals:
            # Tried again where the road was not clear; who was set back has time to drive off.
            late, late_before = standing - config.marshals, previous.standing - config.marshals
            calls = (late >= 0.0) & (late // TRIES_AGAIN > late_before // TRIES_AGAIN)
            offset, on_road = drives.placement.offset, previous.on_road
            drives, _ = put_back(
                track, drives, on_road, calls & on_road, offset, 0.0, SET_BACK_ROOM
            )
        distance = previous.distance + jnp.where(previous.present, drives.progress, 0.0)
        present, pits = previous.present & ~finishes & ~retires, previous.pits
        if config.pits.stops:
            pits, drives = serve(
                config.pits,
                track,
                pits,
                previous.drives,
                drives,
                previous.on_road & present,
                previous.laps,
            )
        return RaceState(
            drives=drives,
            present=present,
            meetings=met,
            distance=distance,
            clock=clock,
            laps=previous.laps,
            finish_time=jnp.where(finishes, clock - drives.lap_clock, previous.finish_time),
            standing=standing,
            retired=previous.retired | retires,
            steering_change=drives.steering_target - previous.drives.steering_target,
            stewarding=self._steward(track, previous.stewarding, drives, met, distance),
            pits=pits,
        )

    def _steward(
        self, track: Track, before: Stewarding, drives: DriveState, met: Meetings, distance: Array
    ) -> Stewarding:
        """Judges the contacts that began or got worse in a step, and remembers what it led to."""
        cars, begins = drives.car, contacts_begun(before, met)
        calm = before.record.calm
        chained = jnp.minimum(calm, calm[:, None]) < SECOND
        # Across the course at the first car, from the world.
        angle = jnp.arctan2(drives.placement.sine, drives.placement.cosine)
        course = drives.motion.heading - angle
        east, north = jnp.cos(course)[:, None], jnp.sin(course)[:, None]
        push_x, push_y = met.push[..., 0], met.push[..., 1]
        along, left = push_x * east + push_y * north, push_y * east - push_x * north
        impulse = jnp.sqrt(push_x**2 + push_y**2)
        normal = jnp.stack([along, left], -1) / jnp.maximum(impulse, 1e-6)[..., None]
        mass = fuelled(cars, drives.motion.fuel).mass
        how = severity(impulse, mass[:, None], mass)
        judged = begins | ((met.contact > 0.0) & (how > before.severity))

        situation = self._situation(track, drives)
        verdicts = judge(
            before.trace, _bodies(cars), judged, normal, situation, chained, track.length
        )
        return Stewarding(
            trace=_remember(before.trace, _seen(drives, distance)),
            apart=jnp.where(met.contact > 0.0, 0, before.apart + 1),
            verdicts=verdicts,
            severity=jnp.where(judged, how, before.severity),
            record=charge(before.record, verdicts, how),
        )

    def _situation(self, track: Track, drives: DriveState) -> Situation:
        """Where the cars are for stewards; what laps ask for is of the reference laps."""
        stations = drives.s[:, None] + jnp.linspace(-20.0, CORNER_REACH, 5)
        bends = jax.vmap(jax.vmap(lambda s: tracks.at(track, s).curvature))(stations)
        sharpest = jnp.argmax(jnp.abs(bends), axis=1)[:, None]
        curvature = jnp.take_along_axis(bends, sharpest, 1)[:, 0]

        def need(car_index: Array, circuit: Array, s: Array, speed: Array) -> Array:
            return braking_need(partial(self.solo.reference_speed, car_index, circuit), s, speed)

        speed = drives.motion.velocity[:, 0]
        return Situation(
            curvature, jax.vmap(need)(drives.car_index, drives.circuit, drives.s, speed)
        )

    def _terms(self, previous: RaceState, current: RaceState, action: Array) -> dict[str, Array]:
        alone = jax.vmap(reward_terms, (0, 0, 0, None))
        return {
            **alone(previous.drives, current.drives, action, CONTROL_STEP),
            **race_reward_terms(self._track(current), previous, current, CONTROL_STEP),
        }

    def _observe(self, race: RaceState) -> dict[str, Array]:
        track, drives, config = self._track(race), race.drives, self.config.opponents
        entries = jax.vmap(self.solo.observe, (None, 0))(track, drives)
        blame = None
        if config.blame:
            situation, trace = self._situation(track, drives), race.stewarding.trace
            blame = foreseen(trace, _bodies(drives.car), situation, track.length)
        return {**entries, "opponents": opponents(track, race, config, blame)}

    def _metrics(self, race: RaceState, terms: dict[str, Array]) -> dict[str, Array]:
        return {
            **{f"reward/{name}": term for name, term in terms.items()},
            **jax.vmap(drive_metrics)(race.drives),
            "contact_steps": of_either(race.meetings.contact > 0.0).astype(jnp.float32),
            "at_fault": -terms["unsporting"],
            "hard_at_fault": -terms["hard_fault"],
        }

    @property
    def observation_size(self) -> dict[str, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {**self.solo.observation_size, "opponents": self.config.opponents.size}

    @property
    def action_size(self) -> int:
        return 2

    @property
    def backend(self) -> str:
        return "sophy"


def in_columns(place: Array, gap: float) -> tuple[Array, Array]:
    """Where places [M] of a grid are, `gap` [m] apart: the way from the line [m], and the share of
    the half width, in turn to the left and to the right."""
    return -gap * (1.0 + place), GRID_SHARE * jnp.where(place % 2 == 0, 1.0, -1.0)


def _on_course(drives: DriveState) -> tuple[Array, Array]:
    """Speeds [M] along the course and to its left [m/s]."""
    forward, left = drives.motion.velocity.T
    sine, cosine = drives.placement.sine, drives.placement.cosine
    return forward * cosine - left * sine, forward * sine + left * cosine


def _bodies(cars: Car) -> Bodies:
    nose = body_middle(cars) + 0.5 * cars.length
    return Bodies(cars.length, cars.width, cars.wheel_x[:, 0], nose)


def braking_need(reference: Callable[[Array], Array], s: Array, speed: Array) -> Array:
    """The hardest braking [] [m/s^2] of a lap, of which `reference` tells the speed, within what a
    car at `s` [m] drives in `EARLY` seconds at its speed [m/s]."""
    begin = s + EARLY * speed * jnp.linspace(0.0, 1.0, 5)
    here, there = reference(jnp.stack([begin, begin + NEED_OVER]))
    return jnp.max(jnp.maximum(here**2 - there**2, 0.0)) / (2.0 * NEED_OVER)


def _seen(drives: DriveState, distance: Array) -> Trace:
    """What the stewards see of cars, leaves [M]."""
    speed, across = _on_course(drives)
    return Trace(
        s=distance,
        offset=drives.placement.offset,
        speed=speed,
        across=across,
        braking=-drives.motion.acceleration[:, 0],
        off_course=drives.off_course,
        sine=drives.placement.sine,
        cosine=drives.placement.cosine,
    )


def _remember(trace: Trace, now: Trace) -> Trace:
    return jax.tree.map(lambda past, new: jnp.concatenate([past[1:], new[None]]), trace, now)


def _nothing_judged(drives: DriveState, distance: Array) -> Stewarding:
    """As if all had stood where they are for as long as the stewards remember."""
    num = distance.shape[0]
    never = 10 * MEMORY
    no = jnp.zeros((num, num), bool)
    now = _seen(drives, distance)
    return Stewarding(
        trace=jax.tree.map(lambda leaf: jnp.tile(leaf, (MEMORY, 1)), now),
        apart=jnp.full((num, num), never, jnp.int32),
        verdicts=Verdicts(no, no, jnp.zeros((num, num), jnp.int32)),
        severity=jnp.zeros((num, num), jnp.int32),
        record=clean_record(num),
    )


register_environment("sophy_race", RaceEnv)
