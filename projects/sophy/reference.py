"""The quasi-steady-state lap of a car on a given line: a yardstick, not a bound.

The classical two-step method (Brayshaw and Harrison, "A quasi steady state approach to race car
lap simulation in order to understand the effects of racing line and centre of gravity location",
Proc. IMechE D 219, 2005; passes as in Heilmeier et al., "Minimum curvature trajectory
planning and control for an autonomous race car", Vehicle System Dynamics 58, 2020): first the car's
envelope, the accelerations it can hold at a speed and a lateral acceleration (g-g-v diagram); then
the fastest speed profile along the line whose accelerations stay inside.

The envelope is that of the simulated `Car` in steady cornering: its own loads, tyre peaks, engine,
gearbox, differentials and brakes. Per axle, with N the force towards the turn that the moment
balance asks for and alpha the slip angle that goes with it,

    N = Fy cos alpha + Fx sin alpha,   (Fx / mu_x Fz)^2 + (Fy / mu_y Fz)^2 <= 1

so cornering costs speed (Fy sin alpha) as it does in the simulator, and so do differentials, which
push against the turn. The driver is ideal, the car is not: left and right brake torques are equal,
their front part is `brake_bias`, and an inner wheel spins as far as the differential lets it. Left
out: the moment that turns the car in, wheel slip in the engine's speed, engine braking together
with the inertia of what spins while braking (about equal and opposite).

Against the simulator: on circles of 15, 40 and 150 m a steering controller holds every car of the
catalogue on its line up to 97 to 102 % of this speed; on a straight, accelerating takes 2 to 4 %
more way than here and braking within 5 % of it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from projects.sophy import drivetrain as drivetrains
from projects.sophy import track as tracks
from projects.sophy import tyre as tyres
from projects.sophy.car import AIR_DENSITY, GRAVITY, Car, steady_load
from projects.sophy.drivetrain import LIMITER_BAND, MAX_GEARS
from projects.sophy.track import NUM_NODES, Track
from projects.sophy.tyre import Ground

NUM_SPEEDS = 48  # of the envelope, evenly spaced in kinetic energy, as downforce and drag are
NUM_FRACTIONS = 8  # of the lateral limit, denser towards it
LOWEST_SPEED = 2.0  # [m/s]
NUM_BISECTIONS = 14
NUM_ANGLE_STEPS = 6  # slip angles and forces settle to 0.1 %
SMOOTHING = 60.0  # wavelengths of a line that are left out, about [m]
MAX_FRICTION = 3.0  # bounds every search: acceleration over load per mass
TURN = np.array([1.0, -1.0], np.float32)  # what a moment against the turn asks of the two axles


@struct.dataclass
class ReferenceLap:
    """A flying lap at the circuit's nodes, starting at node 0."""

    lap_time: Array  # [] [s]
    s: Array  # [N] arc length of the centre line, also where the line is another [m]
    speed: Array  # [N] along the driven line [m/s]
    time: Array  # [N] since node 0 [s]


@struct.dataclass
class Envelope:
    """What a car can do on flat ground: the g-g-v diagram.

    Column j holds at the lateral acceleration f (2 - f) `lateral` with f = j / (F - 1), where the
    remaining longitudinal acceleration is nearly linear in f.
    """

    energy: Array  # [V] half the square of the speed, evenly spaced [m^2/s^2]
    lateral: Array  # [V] largest acceleration towards the turn without losing speed [m/s^2]
    drive: Array  # [V, F] largest acceleration; negative where the engine cannot hold the speed
    brake: Array  # [V, F] largest deceleration, positive [m/s^2]


@struct.dataclass
class _Balance:
    """Forces of one car in steady cornering."""

    drive: Array  # [] sum of the wheels' forward forces that the acceleration asks for [N]
    drive_limit: Array  # [] the most of it that tyres and differentials carry [N]
    brake_limit: Array  # [] the most backwards that tyres and brakes carry [N]
    usage: Array  # [] part of the weaker axle's lateral force in use, above 1 it slides [-]


@jax.jit
def reference_lap(car: Car, track: Track, *, offset: Array | None = None) -> ReferenceLap:
    """The lap of `car` on the centre line, or on the line at lateral offsets [N] [m] from it.

    `offset` holds at the circuit's nodes, left positive, and must be smooth: its second derivative
    is part of the line's curvature.
    """
    return lap_within(envelopes_on(car, extreme_grounds(track)), track, offset=offset)


def extreme_grounds(track: Track) -> Ground:
    """The slipperiest and the grippiest surface of the road, leaves [2]."""
    road = jax.vmap(tracks.at, (None, 0))(track, tracks.node_stations(track)).road
    extremes = jnp.stack([jnp.argmin(road.grip), jnp.argmax(road.grip)])
    return jax.tree.map(lambda leaf: leaf[extremes], road)


def envelopes_on(car: Car, grounds: Ground) -> Envelope:
    """The envelopes on two grounds [2], leaves [2, ...]."""
    wheels = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:, None], (2, 4)), grounds)
    # One after the other, not mapped: on an even road both are what `envelope` gives, to the bit.
    return jax.lax.map(lambda ground: envelope(car, ground), wheels)


def envelopes_by_road(cars: Car) -> Callable[[Track], Envelope]:
    """The envelopes of cars, leaves [K, ...], on a circuit: leaves [K, 2, ...] as `envelopes_on`.

    Circuits whose roads are of the same surfaces share them; one kind takes 20 s for 500 cars.
    """
    known: dict[bytes, Envelope] = {}

    def on(track: Track) -> Envelope:
        grounds = extreme_grounds(track)
        key = np.asarray(jax.tree.leaves(grounds)).tobytes()
        if key not in known:
            known[key] = _envelopes_of_all(cars, grounds)
        return known[key]

    return on


_envelopes_of_all = jax.jit(jax.vmap(envelopes_on, (0, None)))


def lap_within(envelopes: Envelope, track: Track, *, offset: Array | None = None) -> ReferenceLap:
    """The lap of a car with `envelopes` on the circuit's `extreme_grounds`, as `reference_lap`.

    The envelope is taken as linear in the ground's factor on grip between the two: exact for a road
    of one surface or of two, an approximation for one of more.
    """
    stations = tracks.node_stations(track)
    point = jax.vmap(tracks.at, (None, 0))(track, stations)
    road, curvature = point.road, point.curvature
    low, high = jnp.min(road.grip), jnp.max(road.grip)
    share = (road.grip - low) / jnp.maximum(high - low, 1e-6)
    gap = jnp.full(NUM_NODES, track.length / NUM_NODES)
    if offset is not None:
        curvature, gap = _offset_line(curvature, track.length / NUM_NODES, offset)
    energy = _energy_profile(envelopes, share, curvature, gap)
    speed = jnp.sqrt(2.0 * energy)
    # Constant acceleration between nodes, as in the profile.
    steps = 2.0 * gap / (speed + jnp.roll(speed, -1))
    time = jnp.cumsum(steps)
    return ReferenceLap(lap_time=time[-1], s=stations, speed=speed, time=time - steps)


def envelope(car: Car, ground: Ground) -> Envelope:
    """The accelerations that `car` can hold on a flat `ground`."""
    drivetrain = car.drivetrain
    share = drivetrains.wheel_share(drivetrain)
    top = (
        (drivetrain.rev_limit + LIMITER_BAND)
        / jnp.min(drivetrain.ratios)
        / jnp.sum(share / car.wheel_radius)
    )
    energy = jnp.linspace(0.5 * LOWEST_SPEED**2, 0.5 * top * top, NUM_SPEEDS)
    along = jnp.linspace(0.0, 1.0, NUM_FRACTIONS)
    fraction = along * (2.0 - along)

    def at_point(speed: Array, direction: Array, fraction: Array) -> tuple[Array, Array]:
        highest = MAX_FRICTION * (
            GRAVITY + 0.5 * AIR_DENSITY * jnp.sum(car.downforce_area) * speed**2 / car.mass
        )
        pull, spin, shifting = _engine(car, speed)

        # One search after the other in one compiled loop: for the lateral limit, then forwards or
        # backwards at a fraction of it. There the tyres hold the speed; the engine may not, and
        # what it loses is found below zero.
        def search(limit: Array, turning: Array) -> tuple[Array, Array]:
            def holds(value: Array) -> Array:
                forward = jnp.where(turning, 0.0, direction * value)
                lateral = jnp.where(turning, value, fraction * limit)
                balance = _balance(car, ground, speed, forward, lateral)
                tyres_hold = (balance.usage <= 1.0) & (balance.drive <= balance.drive_limit)
                tyres_hold = tyres_hold & (-balance.drive <= balance.brake_limit)
                engine_holds = jnp.any(balance.drive + spin * forward <= pull)
                engine_holds = engine_holds | turning | (direction < 0.0)
                return (tyres_hold | (value <= 0.0)) & engine_holds

            lowest = jnp.where(turning | (direction < 0.0), 0.0, -highest)
            largest = _largest(holds, lowest, highest)
            return jnp.where(turning, largest, limit), largest

        lateral, found = jax.lax.scan(search, jnp.zeros_like(speed), jnp.array([True, False]))
        # Each gear begins with a shift, which is spread over the speed that the gear gains.
        slowing = 0.5 * AIR_DENSITY * car.drag_area * speed**2 / car.mass
        lost = jnp.where((direction > 0.0) & (found[1] > 0.0), found[1] + slowing, 0.0)
        return lateral, found[1] / (1.0 + shifting * lost)

    each = jax.vmap(at_point, (None, None, 0))
    each = jax.vmap(jax.vmap(each, (None, 0, None)), (0, None, None))
    lateral, gain = each(jnp.sqrt(2.0 * energy), jnp.array([1.0, -1.0]), fraction)
    return Envelope(energy=energy, lateral=lateral[:, 0, 0], drive=gain[:, 0], brake=gain[:, 1])


def _largest(feasible: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The largest number in [low, high] up to which `feasible` holds, `low` included; bisection."""

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        holds = feasible(middle)
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    return jax.lax.fori_loop(0, NUM_BISECTIONS, halve, (low, high))[0]


def _engine(car: Car, speed: Array) -> tuple[Array, Array, Array]:
    """Full-throttle force at the wheels [G] [N], mass that stands for all that spins [G] [kg], and
    time lost in shifts per gain of speed [] [s^2/m].

    A gear that the gearbox would have left pulls with -inf.
    """
    drivetrain = car.drivetrain
    share = drivetrains.wheel_share(drivetrain)
    per_radius = jnp.sum(share / car.wheel_radius)
    gear = np.arange(1, MAX_GEARS + 1)
    turning = drivetrain.ratios * per_radius * speed
    engine_speed = jnp.maximum(turning, drivetrain.launch)
    torque = jax.vmap(drivetrains.engine_torque, (None, 0, None))(
        drivetrain, engine_speed, jnp.float32(1.0)
    )
    # The speeds at which the gears are left; the last one is kept beyond its own.
    left = jnp.where(gear < drivetrain.num_gears, drivetrain.shift_up, drivetrain.rev_limit)
    left = left / (drivetrain.ratios * per_radius)
    usable = (speed <= left) | (gear == drivetrain.num_gears)
    usable = usable & (gear <= drivetrain.num_gears)
    gained = jnp.diff(left, prepend=-jnp.inf)[jnp.argmax(usable)]
    pull = torque * drivetrain.ratios * drivetrain.efficiency * per_radius
    closed = turning >= drivetrain.launch
    engine = jnp.where(closed, drivetrain.inertia * (drivetrain.ratios * per_radius) ** 2, 0.0)
    wheels = jnp.sum(car.wheel_inertia / car.wheel_radius**2)
    return jnp.where(usable, pull, -jnp.inf), engine + wheels, drivetrain.shift_time / gained


def _balance(car: Car, ground: Ground, speed: Array, forward: Array, lateral: Array) -> _Balance:
    """What a forward and a lateral acceleration [m/s^2] (along and across the line) take."""
    load = steady_load(car, speed, jnp.stack([forward, lateral]))
    # Axles by sides from here on, [2, 2]; in a left turn the left side is the inner one.
    peak = jax.tree.map(lambda leaf: leaf.reshape(2, 2), tyres.peak(car.tyre, load, ground))
    force_x, force_y = jnp.sum(peak.force_x, axis=1), jnp.sum(peak.force_y, axis=1)
    shape, stretch, angle = peak.shape[:, 0], peak.stretch[:, 0], jnp.mean(peak.angle, axis=1)
    radius, arm = car.wheel_radius[0::2], car.wheel_x[0::2]
    drivetrain = car.drivetrain
    axle_drive = _axles(drivetrain.front_share) / radius
    axle_brake = _axles(car.brake_bias) / radius
    split = jnp.where(forward < 0.0, axle_brake, axle_drive)
    split = split / jnp.sum(split)
    resistance = 0.5 * AIR_DENSITY * car.drag_area * speed * speed + jnp.sum(ground.rolling * load)
    push = car.mass * forward + resistance
    turn = -car.mass * lateral * arm[::-1] * TURN
    preload, ramp = drivetrain.lock_preload[:2], drivetrain.lock_ramp[:2]
    # On a shaft that is locked the slip ratios differ by the ratio of the wheels' paths.
    half_track = car.wheel_y[0::2]
    apart = 2.0 * half_track * lateral / speed**2

    def settle(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        tangent, gain, drive, _, _ = state
        # A coupling pushes with the inner wheel and drags with the outer one, against the turn.
        stiffness = gain * peak.force_x / peak.ratio
        inner, outer = stiffness[:, 0], stiffness[:, 1]
        shaft = split * drive
        outer_slip = (shaft - inner * apart) / (inner + outer)
        inner_slip = outer_slip + apart
        bound = preload / radius + ramp * jnp.maximum(shaft, 0.0)
        moved = jnp.clip(0.5 * (inner * inner_slip - outer * outer_slip), -bound, bound)
        moment = jnp.sum(2.0 * half_track * moved)
        towards = (turn + moment * TURN) / (arm[0] - arm[1])

        secant = jnp.sqrt(1.0 + tangent * tangent)
        drive = (push + jnp.sum(towards * tangent)) / jnp.sum(split * secant)
        usage = (towards * secant - split * drive * tangent) / force_y
        total = jnp.sqrt((split * drive / force_x) ** 2 + usage * usage + 1e-8)
        slip = jnp.tan(jnp.arcsin(jnp.minimum(total, 1.0)) / shape) / stretch * usage / total
        ratio = jnp.stack([inner_slip, outer_slip], axis=1) / peak.ratio
        rho = jnp.sqrt(ratio * ratio + (slip * slip)[:, None] + 1e-8)
        gain = jnp.sin(peak.shape * jnp.arctan(peak.stretch * rho)) / rho
        return angle * slip, gain, drive, usage, slip

    zero = jnp.zeros(2)
    state = (zero, jnp.ones((2, 2)), push, zero, zero)
    _, _, drive, usage, slip = jax.lax.fori_loop(0, NUM_ANGLE_STEPS, settle, state)

    # What the slip angle leaves to each wheel and the ellipse to each axle, as torques.
    wheel = peak.force_x * (radius * jnp.sqrt(jnp.maximum(1.0 - slip * slip, 0.0)))[:, None]
    axle = force_x * radius * jnp.sqrt(jnp.maximum(1.0 - usage * usage, 0.0))
    shafts = jnp.minimum(axle, _shared(jnp.float32(0.5), wheel[:, 0], wheel[:, 1], preload, ramp))
    centre = drivetrain.lock_preload[2], drivetrain.lock_ramp[2]
    driven = _shared(drivetrain.front_share, shafts[0], shafts[1], *centre)
    bias = _axles(car.brake_bias)
    braked = jnp.minimum(axle, 2.0 * jnp.min(wheel, axis=1))
    pedal = jnp.min(jnp.where(bias > 0.0, braked / bias, jnp.inf))
    return _Balance(
        drive=drive,
        drive_limit=driven * jnp.sum(axle_drive),
        brake_limit=jnp.minimum(pedal, car.brake_torque) * jnp.sum(axle_brake),
        usage=jnp.max(usage),
    )


def _axles(front: Array) -> Array:
    """The front's and the rear's part, [2]."""
    return jnp.stack([front, 1.0 - front])


def _shared(share: Array, first: Array, second: Array, preload: Array, ramp: Array) -> Array:
    """The most torque that two sides carry together when `share` of it goes to the first.

    The coupling between them moves up to preload + ramp * torque from one to the other.
    """

    def bound(share: Array, limit: Array) -> Array:
        apart = share - ramp
        return jnp.where(
            apart > 0.0, (limit + preload) / jnp.where(apart > 0.0, apart, 1.0), jnp.inf
        )

    return jnp.minimum(first + second, jnp.minimum(bound(share, first), bound(1.0 - share, second)))


def line_at_nodes(offset: np.ndarray, length: float) -> np.ndarray:
    """Evenly spaced offsets [M] of a line at the circuit's nodes [N] [m], without what is shorter
    than about `SMOOTHING`: smooth enough for `reference_lap`."""
    nodes, points = (np.arange(num) * length / num for num in (NUM_NODES, len(offset)))
    line = np.interp(nodes, points, offset, period=length)
    return np.fft.irfft(np.fft.rfft(line) * np.asarray(smoothing(length)), NUM_NODES)


def smoothing(length: float | Array) -> Array:
    """Factors [N // 2 + 1] on the waves of a line at the nodes of a circuit of `length` [m] that
    take out what is shorter than about `SMOOTHING`."""
    waves = np.fft.rfftfreq(NUM_NODES, 1.0 / NUM_NODES) / length
    return jnp.exp(-((SMOOTHING * waves) ** 2))


def _offset_line(curvature: Array, spacing: Array, offset: Array) -> tuple[Array, Array]:
    """Curvature [N] and distance to the next node [N] [m] of the line at `offset` [N] [m].

    From c + n N with T' = kappa N, N' = -kappa T; derivatives are periodic central differences.
    """

    def slope(values: Array) -> Array:
        return (jnp.roll(values, -1) - jnp.roll(values, 1)) / (2.0 * spacing)

    first = slope(offset)
    second = (jnp.roll(offset, -1) - 2.0 * offset + jnp.roll(offset, 1)) / spacing**2
    stretch = 1.0 - offset * curvature
    pace = jnp.sqrt(stretch**2 + first**2)
    turn = stretch * (stretch * curvature + second)
    turn = turn + first * (2.0 * first * curvature + offset * slope(curvature))
    return turn / pace**3, 0.5 * spacing * (pace + jnp.roll(pace, -1))


def _energy_profile(envelopes: Envelope, share: Array, curvature: Array, gap: Array) -> Array:
    """Half the squared speed [N] at points with `curvature` [N] and `gap` [N] [m] to the next.

    From each point to the next, the second of two `envelopes` (leaves [2, ...]) counts for `share`
    [N] and the first one for the rest.
    """
    bend = jnp.maximum(jnp.abs(curvature), 1e-6)

    def fastest(envelope: Envelope) -> Array:
        return jnp.interp(1.0 / bend, 2.0 * envelope.energy / envelope.lateral, envelope.energy)

    slow, fast = (fastest(jax.tree.map(lambda leaf, i=i: leaf[i], envelopes)) for i in range(2))
    cap = slow * (1.0 - share) + fast * share
    # From the slowest point on, where both passes begin at the cap, a lap is periodic at once
    # unless the engine cannot hold any cap; the second lap is for those.
    start = jnp.argmin(cap)
    bend, gap_ahead, cap_ahead, share_ahead = (
        jnp.roll(array, -start) for array in (bend, gap, cap, share)
    )
    # Two lanes: forward from the start with the engine, backward from it with the brakes.
    lanes = (
        jnp.stack([bend, jnp.roll(bend[::-1], 1)], axis=1),
        jnp.stack([gap_ahead, gap_ahead[::-1]], axis=1),
        jnp.stack([jnp.roll(cap_ahead, -1), cap_ahead[::-1]], axis=1),
        jnp.stack([share_ahead, share_ahead[::-1]], axis=1),
    )
    tables = jnp.stack([envelopes.drive, envelopes.brake])
    grid = envelopes.energy[0]  # the same for both
    lowest, spacing = grid[0], grid[1] - grid[0]
    lane = np.arange(2)

    def advance(energy: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        bend, gap, cap, share = inputs
        row, up = _cell((energy - lowest) / spacing, NUM_SPEEDS)

        def gain_of(ground: int) -> Array:
            limit, table = envelopes.lateral[ground], tables[:, ground]
            lateral = limit[row] * (1.0 - up) + limit[row + 1] * up
            fraction = jnp.clip(2.0 * energy * bend / lateral, 0.0, 1.0)
            rest = jnp.maximum(1.0 - fraction, 1e-9)  # its root has a slope at zero too
            column, right = _cell((1.0 - jnp.sqrt(rest)) * (NUM_FRACTIONS - 1), NUM_FRACTIONS)
            low = table[lane, row, column] * (1.0 - right) + table[lane, row, column + 1] * right
            high = (
                table[lane, row + 1, column] * (1.0 - right)
                + table[lane, row + 1, column + 1] * right
            )
            return low * (1.0 - up) + high * up

        gain = gain_of(0) * (1.0 - share) + gain_of(1) * share
        energy = jnp.clip(energy + gap * gain, lowest, cap)
        return energy, energy

    lanes = jax.tree.map(lambda values: jnp.tile(values, (2, 1)), lanes)
    profile = jax.lax.scan(advance, jnp.full(2, cap[start]), lanes)[1][NUM_NODES:]
    return jnp.roll(jnp.minimum(jnp.roll(profile[:, 0], 1), profile[::-1, 1]), start)


def _cell(place: Array, num: int) -> tuple[Array, Array]:
    """Index of the grid cell at `place` and the part of it that lies before `place`."""
    index = jnp.clip(jnp.floor(place), 0, num - 2)
    return index.astype(jnp.int32), jnp.clip(place - index, 0.0, 1.0)
