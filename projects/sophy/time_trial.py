"""One car alone against the clock, as a brax environment; in a batch each may be another car on
another circuit (`field`).

The driver decides at 10 Hz; the car is simulated in 5 ms sub-steps (`car.step`). Two actions in
[-1, 1]: steering, as a target or as a change of the target, and one pedal, positive throttle,
negative brake (Wurman et al. 2022). With `steering="line"` both are relative to the racing line,
and a hand follows them at 50 Hz (`path_following`): how far beside it to aim, and at what share of
its speed. Episodes never terminate: the clock of whoever runs them truncates
(`TimeTrialConfig.episode_length`), so a value function must bootstrap through their end.
"""

import copy
import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from core_rl.env import Env, State, register_environment
from core_rl.errors import UserError
from projects.sophy import track as tracks
from projects.sophy.car import Car, Command
from projects.sophy.circuits import DEFAULT
from projects.sophy.driving import (
    CONTROL_STEP,
    DriveState,
    Underway,
    advance,
    arrive,
    at_present,
    command_of,
    drive_metrics,
    set_down,
    set_off,
)
from projects.sophy.field import load_circuits, load_entrants, reference_laps
from projects.sophy.observation import DESCRIPTION, ObservationConfig, observe
from projects.sophy.path_following import CORRECTIONS, LineConfig, along_line
from projects.sophy.racing_line import RacingLine, racing_lines
from projects.sophy.reference import ReferenceLap
from projects.sophy.reward import USUAL_PACE, RewardConfig, reward_terms, weighted_sum
from projects.sophy.track import Track


@dataclasses.dataclass(frozen=True)
class TimeTrialConfig:
    circuit: str = DEFAULT  # built-in name, generated:SEED, path of a CSV file; several: asphalt,..
    surface: str = ""  # another surface for the whole road, such as wet; empty: the circuit's own
    car: str = "gt3_fr"  # a car of the catalogue; several: a comma list, archetypes, FF, kart:*, ..
    compound: str = ""  # tyres, several by commas, or dry; empty: the car's own
    wear: bool = False  # whether tyres wear
    fuel: float = 0.0  # at the start, burnt on the way; 0: no fuel at all [kg]
    traction_control: bool = False  # driving aid
    antilock: bool = False  # driving aid
    describe: bool = False  # whether observations have the entries car and surface
    relative_progress: bool = False  # progress and speed by the car's own pace
    substeps: int = 20  # simulation steps per control step of 0.1 s
    episode_seconds: float = 150.0  # length of an episode [s]
    steering: Literal["target", "delta", "line"] = "target"  # what actions mean: see the top
    steering_step: float = 0.0524  # largest change of the target per decision in delta mode [rad]
    line: LineConfig = LineConfig()  # what they mean where they are relative to the racing line
    start_speed: tuple[float, float] = (0.3, 0.9)  # share of the reference speed at the start
    start_offset: float = 0.5  # largest lateral offset at the start, share of the half width
    observation: ObservationConfig = ObservationConfig()
    reward: RewardConfig = RewardConfig()

    def __post_init__(self):
        if self.substeps < 1:
            raise ValueError(f"substeps must be at least 1, got {self.substeps}")
        if not self.episode_seconds >= CONTROL_STEP:
            raise ValueError(f"episode_seconds must be at least 0.1, got {self.episode_seconds}")
        if self.steering not in ("target", "delta", "line"):
            raise ValueError(f"steering must be target, delta or line, got {self.steering!r}")
        if not self.steering_step > 0:
            raise ValueError(f"steering_step must be positive, got {self.steering_step}")
        low, high = self.start_speed
        if not 0 <= low <= high:
            raise ValueError(f"start_speed must be two rising shares, got {self.start_speed}")
        if not 0 <= self.start_offset < 1:
            raise ValueError(f"start_offset must be in [0, 1), got {self.start_offset}")

    @property
    def episode_length(self) -> int:
        """Control steps per episode."""
        return round(self.episode_seconds / CONTROL_STEP)

    @property
    def corrections(self) -> int:
        """How often per control step what the action asks for is worked out anew."""
        return math.gcd(self.substeps, CORRECTIONS) if self.steering == "line" else 1


class TimeTrial(Env):
    """See the module's text. Observations: dict with `state` and `privileged_state`, where
    `config.describe` also `car` and `surface`, and where `config.observation.racing_line` that.

    A reset draws circuit, car and compound, each alone and all with the same chance. Raises
    UserError (circuit, surface, car, compound, fuel) with one clear line.
    """

    def __init__(self, config: TimeTrialConfig = TimeTrialConfig()):
        self.config = config
        # Names of circuits [T] and of cars on compounds [K], and stacks of what they name.
        self.circuits, self.tracks = load_circuits(config.circuit, config.surface)
        self.entrants, self.cars = load_entrants(
            config.car,
            config.compound,
            wear=config.wear,
            fuel=config.fuel,
            traction_control=config.traction_control,
            antilock=config.antilock,
        )
        self.references = reference_laps(self.entrants, self.cars, self.tracks)
        # Worked out only where they are used: it takes some seconds per circuit.
        uses_lines = config.observation.racing_line or config.steering == "line"
        self.lines = racing_lines(self.cars, self.tracks) if uses_lines else None

    @property
    def track(self) -> Track:
        """The circuit, where there is one."""
        self._require("track", one_circuit=True)
        return _entry(self.tracks, 0)

    @track.setter
    def track(self, track: Track):
        self._require("track", one_circuit=True)
        self.tracks = tracks.stack_tracks([track])

    @property
    def car(self) -> Car:
        """The car, where there is one on one compound."""
        self._require("car", one_entrant=True)
        return _entry(self.cars, 0)

    @property
    def reference(self) -> ReferenceLap:
        """The quasi-steady lap, where there are one car and one circuit."""
        self._require("reference", one_circuit=True, one_entrant=True)
        return _entry(self.references.laps, (0, 0))

    def _require(self, what: str, *, one_circuit: bool = False, one_entrant: bool = False):
        """Raises UserError where there are several of what must be one."""
        circuits, entrants = len(self.circuits), len(self.entrants)
        if (one_circuit and circuits > 1) or (one_entrant and entrants > 1):
            raise UserError(
                f"this field has no single {what}: circuits {circuits}, cars times compounds "
                f"{entrants}; name one circuit, car and compound"
            )

    def track_of(self, circuit: Array) -> Track:
        """Circuit number `circuit` [] of the stack, as a view."""
        return self.track if len(self.circuits) == 1 else tracks.select_track(self.tracks, circuit)

    def reference_of(self, car_index: Array, circuit: Array) -> ReferenceLap:
        """The quasi-steady lap of one car on one circuit, indices [] of the field."""
        return _entry(self.references.laps, (self.references.row[car_index], circuit))

    def reference_speed(self, car_index: Array, circuit: Array, s: Array) -> Array:
        """The speed [...] [m/s] of that lap at arc lengths `s` [...] [m], which wrap.

        It reads what it needs of the table; `reference_of` would copy the whole lap for every car.
        """
        speeds, row = self.references.laps.speed, self.references.row[car_index]
        count = speeds.shape[-1]  # evenly spaced stations
        cell = s / (self.track_of(circuit).length / count)
        station = jnp.floor(cell)
        here, there = (
            speeds[row, circuit, (station.astype(jnp.int32) + step) % count] for step in (0, 1)
        )
        return here + (cell - station) * (there - here)

    def reset(self, rng: Array) -> State:
        """A start anywhere on a circuit, at a share of the reference speed there."""
        s_key, speed_key, offset_key, circuit_key, car_key = jax.random.split(rng, 5)
        config = self.config
        circuit = _any_of(circuit_key, len(self.circuits))
        car_index = _any_of(car_key, len(self.entrants))
        low, high = config.start_speed
        return self.start(
            circuit,
            car_index,
            jax.random.uniform(s_key) * self.track_of(circuit).length,
            jax.random.uniform(offset_key, minval=-1.0, maxval=1.0) * config.start_offset,
            jax.random.uniform(speed_key, minval=low, maxval=high),
        )

    def start(
        self, circuit: Array, car_index: Array, s: Array, share: Array, speed_share: Array
    ) -> State:
        """A car [] on a circuit [], indices of the field, at arc length `s` [] [m].

        `share` [] is the part of the half width that it stands to the left of the centre line,
        negative to the right; `speed_share` [] the part of the reference speed that it has.
        """
        config = self.config
        car = _entry(self.cars, car_index)
        lap = self.reference_of(car_index, circuit)
        track = self.track_of(circuit)
        point = tracks.at(track, s)
        offset = share * jnp.where(share > 0, point.width_left, point.width_right)
        speed = jnp.interp(s, lap.s, lap.speed) * speed_share
        motion, placement = set_down(car, point, offset, speed)
        pace = track.length / lap.lap_time
        drive = DriveState(
            circuit=circuit,
            car_index=car_index,
            pace=pace,
            progress_worth=USUAL_PACE / pace if config.relative_progress else jnp.ones(()),
            car=car,
            motion=motion,
            placement=placement,
            s=s,
            progress=jnp.zeros(()),
            steering_target=jnp.zeros(()),
            off_course=jnp.zeros(()),
            wall_contact=jnp.zeros(()),
            crossings=jnp.zeros((), jnp.int32),
            laps_begun=jnp.zeros((), jnp.int32),
            lap_clock=jnp.zeros(()),
            lap_time=jnp.zeros(()),
        )
        terms = reward_terms(drive, drive, jnp.zeros(2), CONTROL_STEP)
        return State(
            pipeline_state=drive,  # pyright: ignore[reportArgumentType]
            obs=self.observe(track, drive),
            reward=jnp.zeros(()),
            done=jnp.zeros(()),
            metrics=jax.tree.map(jnp.zeros_like, self._metrics(drive, drive, terms)),
        )

    def step(self, state: State, action: Array) -> State:
        previous: DriveState = state.pipeline_state  # pyright: ignore[reportAssignmentType]
        action = jnp.clip(action, -1.0, 1.0)
        current = self._drive(previous, action)
        terms = reward_terms(previous, current, action, CONTROL_STEP)
        return state.replace(  # pyright: ignore[reportAttributeAccessIssue]
            pipeline_state=current,
            obs=self.observe(self.track_of(current.circuit), current),
            reward=weighted_sum(terms, self.config.reward),
            # Wrappers add metrics of their own, which must stay.
            metrics={**state.metrics, **self._metrics(previous, current, terms)},
        )

    def command(self, drive: DriveState, action: Array) -> tuple[Array, Command]:
        """What an action [2] asks for: the road-wheel angle [] [rad], and with it the command."""
        limit, pedal = drive.car.steering_limit, action[1]
        if self.config.steering == "line":
            track = self.track_of(drive.circuit)
            target, pedal = along_line(track, drive, self.line_of(drive), action, self.config.line)
        elif self.config.steering == "target":
            target = action[0] * limit
        else:
            target = drive.steering_target + action[0] * self.config.steering_step
        target = jnp.clip(target, -limit, limit)
        return target, command_of(target, pedal)

    def line_of(self, drive: DriveState) -> RacingLine:
        """That of one car on its circuit, where the configuration uses racing lines."""
        assert self.lines is not None
        offset, speed = self.lines
        return RacingLine(offset[drive.circuit], speed[drive.car_index, drive.circuit])

    def _drive(self, previous: DriveState, action: Array) -> DriveState:
        """The car through one control step."""
        track, car, substeps = self.track_of(previous.circuit), previous.car, self.config.substeps
        corrections = self.config.corrections

        def correct(underway: Underway, _):
            target, command = self.command(at_present(track, previous, underway), action)

            def substep(underway: Underway, _):
                return advance(track, car, command, underway, CONTROL_STEP / substeps), None

            length = substeps // corrections
            return jax.lax.scan(substep, underway, None, length=length)[0], target

        underway, targets = jax.lax.scan(correct, set_off(previous), None, length=corrections)
        return arrive(track, previous, underway, targets[-1], substeps)

    def observe(self, track: Track, drive: DriveState) -> dict[str, Array]:
        """What the driver of one car sees on its circuit; entries as `observation_size`."""
        line = self.line_of(drive) if self.config.observation.racing_line else None
        entries = observe(track, drive.car, drive, self.config.observation, line)
        return {name: entries[name] for name in self.observation_size}

    def _metrics(
        self, previous: DriveState, drive: DriveState, terms: dict[str, Array]
    ) -> dict[str, Array]:
        return {
            **{f"reward/{name}": term for name, term in terms.items()},
            **drive_metrics(drive),
            "pace_share": drive.progress / (drive.pace * CONTROL_STEP),
            "steering_change": jnp.abs(drive.steering_target - previous.steering_target),
            "laps": (drive.lap_time > 0).astype(jnp.float32),
            "lap_seconds": drive.lap_time,
        }

    @property
    def observation_size(self) -> dict[str, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Replays keep every entry that is offered.
        sizes = self.config.observation.sizes
        kept = sizes if self.config.describe else set(sizes) - set(DESCRIPTION)
        return {name: size for name, size in sizes.items() if name in kept}

    @property
    def action_size(self) -> int:
        return 2

    @property
    def backend(self) -> str:
        return "sophy"


def _any_of(key: Array, number: int) -> Array:
    """A whole number [] below `number`."""
    if number == 1:  # known when traced, so that nothing is selected at run time
        return jnp.zeros((), jnp.int32)
    return jax.random.randint(key, (), 0, number)


def _entry(stack: Any, index: Any) -> Any:
    """One entry of stacked leaves."""
    return jax.tree.map(lambda leaf: leaf[index], stack)


def with_calm_starts(env: TimeTrial) -> TimeTrial:
    """The same with starts as a driver would choose them: near the middle of the road and slower
    than the circuit allows. What goes wrong then is the driver's doing and not the start's."""
    calm = copy.copy(env)  # circuit, car and reference stay the same arrays
    calm.config = dataclasses.replace(env.config, start_speed=(0.5, 0.8), start_offset=0.2)
    return calm


register_environment("sophy_time_trial", TimeTrial)
