from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vehiclemodels.parameters_vehicle2 import parameters_vehicle2
from vehiclemodels.vehicle_dynamics_st import vehicle_dynamics_st

from projects.sophy import drivetrain as drivetrains
from projects.sophy.car import (
    AIR_DENSITY,
    GRAVITY,
    Car,
    CarState,
    Command,
    Ground,
    rolling_start,
    step,
)
from projects.sophy.cars import CAR_NAMES, load_car, load_cars
from projects.sophy.compounds import WEAR_RATE
from projects.sophy.tyre import SLIP_SPEED, dry_asphalt

STEP = 0.005
NUM_CARS = len(CAR_NAMES)
NUM_STEPS = 2000  # one length for all scripts, so that they share one compiled function
FLEET = load_cars(CAR_NAMES)
AIDED = load_cars(CAR_NAMES, traction_control=True, antilock=True)
ASPHALT: Ground = jax.tree.map(lambda leaf: jnp.tile(leaf, (NUM_CARS, 1)), dry_asphalt())


@partial(jax.jit, static_argnames="substeps")
def simulate(
    cars: Car, states: CarState, commands: Command, grounds: Ground, substeps: int = 1
) -> tuple[CarState, CarState]:
    """Final state and history [steps, cars] of a fleet; commands [steps, cars] every 5 ms."""

    def advance(state: CarState, command: Command) -> tuple[CarState, CarState]:
        def inner(state: CarState, _: None) -> tuple[CarState, None]:
            moved = jax.vmap(step, (0, 0, 0, 0, None))(
                cars, state, command, grounds, STEP / substeps
            )
            return moved, None

        state, _ = jax.lax.scan(inner, state, None, length=substeps)
        return state, state

    return jax.lax.scan(advance, states, commands)


def start(speed: float) -> CarState:
    fleet_start = jax.vmap(rolling_start, (0, None, None, None))
    return jax.jit(fleet_start)(FLEET, jnp.zeros(2), 0.0, speed)


def constant(steering: float, throttle: float, brake: float) -> Command:
    ones = jnp.ones((NUM_STEPS, NUM_CARS))
    return Command(steering=steering * ones, throttle=throttle * ones, brake=brake * ones)


def random_commands(draws: np.random.Generator, hold: int) -> Command:
    """Full-range inputs that jump every `hold` steps; pedals are pressed together now and then."""

    def draw(low: float, high: float) -> np.ndarray:
        values = draws.uniform(low, high, (NUM_STEPS // hold, NUM_CARS))
        return np.clip(np.repeat(values, hold, axis=0), -1.0, 1.0).astype(np.float32)

    return Command(
        steering=draw(-1.5, 1.5) * FLEET.steering_limit,
        throttle=jnp.maximum(draw(-1.0, 1.5), 0.0),
        brake=jnp.maximum(draw(-2.0, 1.5), 0.0),
    )


@pytest.mark.parametrize("brake", [0.0, 1.0])
def test_at_rest_stays_at_rest(brake: float) -> None:
    # Grip differs from wheel to wheel, so that any spurious force would turn the car as well.
    ground = ASPHALT.replace(grip=ASPHALT.grip * jnp.array([1.0, 0.4, 0.7, 0.2]))
    final, _ = simulate(FLEET, start(0.0), constant(0.1, 0.0, brake), ground)
    for value in (final.position, final.heading, final.velocity, final.wheel_speed):
        np.testing.assert_array_equal(value, jnp.zeros_like(value))


def test_a_pushed_car_comes_to_rest_under_its_brakes() -> None:
    moving = start(2.0)
    moving = moving.replace(
        velocity=moving.velocity + jnp.array([0.0, 1.0]), yaw_rate=jnp.full(NUM_CARS, 0.5)
    )
    final, history = simulate(FLEET, moving, constant(0.1, 0.0, 1.0), ASPHALT)
    assert float(jnp.abs(final.velocity).max()) < 1e-3
    assert float(jnp.abs(final.yaw_rate).max()) < 1e-3
    moved = jnp.linalg.norm(history.position[-1] - history.position[NUM_STEPS // 2], axis=-1)
    assert float(moved.max()) < 1e-2


def test_a_spinning_car_without_grip_and_air_flies_straight() -> None:
    # No force, so the centre of gravity keeps 20 m/s along x and 1 m/s along y while the car turns
    # at 3 rad/s: 10 s later it is at (200, 10).
    sliding = start(20.0)
    sliding = sliding.replace(
        velocity=sliding.velocity + jnp.array([0.0, 1.0]), yaw_rate=jnp.full(NUM_CARS, 3.0)
    )
    fleet = FLEET.replace(drag_area=jnp.zeros(NUM_CARS))
    ice = ASPHALT.replace(grip=0.0 * ASPHALT.grip)
    final, _ = simulate(fleet, sliding, constant(0.0, 0.0, 0.0), ice)
    np.testing.assert_allclose(final.yaw_rate, 3.0, rtol=1e-5)
    np.testing.assert_allclose(final.position, [[200.0, 10.0]] * NUM_CARS, atol=0.05)


def script() -> Command:
    """Ten seconds: accelerate, corner left, brake in a line, corner right, brake to a stop."""
    time = STEP * np.arange(NUM_STEPS)[:, None] * np.ones(NUM_CARS)

    def during(*spans: tuple[float, float, float]) -> jax.Array:
        return jnp.array(sum(np.where((time >= a) & (time < b), v, 0.0) for a, b, v in spans))

    return Command(
        steering=during((2.0, 4.0, 0.05), (5.5, 7.0, -0.05)),
        throttle=during((0.0, 2.0, 0.5), (2.0, 4.0, 0.2), (5.0, 7.0, 0.3)),
        brake=during((4.2, 5.0, 0.4), (7.2, 10.0, 0.5)),
    )


def test_mirrored_steering_gives_the_mirrored_trajectory() -> None:
    command = script()
    grip = ASPHALT.grip * jnp.array([1.0, 0.8, 0.9, 1.0])
    swap = jnp.array([1, 0, 3, 2])
    _, left = simulate(FLEET, start(12.0), command, ASPHALT.replace(grip=grip))
    mirrored = command.replace(steering=-command.steering)
    _, right = simulate(FLEET, start(12.0), mirrored, ASPHALT.replace(grip=grip[:, swap]))
    flip = jnp.array([1.0, -1.0])
    assert float(jnp.abs(left.heading).max()) > 0.3
    np.testing.assert_allclose(right.position, left.position * flip, atol=5e-3)
    np.testing.assert_allclose(right.heading, -left.heading, atol=5e-4)
    np.testing.assert_allclose(right.wheel_speed, left.wheel_speed[..., swap], atol=0.05)
    np.testing.assert_allclose(right.load, left.load[..., swap], atol=20.0)


def test_a_finer_time_step_changes_little() -> None:
    # First-order scheme: 5 ms against 1 ms on the same commands, path lengths of 120 to 260 m.
    _, coarse = simulate(FLEET, start(12.0), script(), ASPHALT)
    _, fine = simulate(FLEET, start(12.0), script(), ASPHALT, substeps=5)
    apart = jnp.linalg.norm(coarse.position - fine.position, axis=-1).max(axis=0)
    path = jnp.linalg.norm(jnp.diff(fine.position, axis=0), axis=-1).sum(axis=0)
    faster = jnp.abs(coarse.velocity[..., 0] - fine.velocity[..., 0]).max(axis=0)
    assert float(path.min()) > 80.0
    np.testing.assert_array_less(apart, 0.004 * path)
    np.testing.assert_array_less(faster, 0.25)


def test_violent_inputs_on_mixed_grip_stay_finite_and_bounded() -> None:
    draws = np.random.default_rng(3)
    grip = jnp.asarray(draws.uniform(0.1, 1.0, (NUM_CARS, 4)), jnp.float32)
    peak_slip = jnp.where(grip < 0.6, 2.0, 1.0)
    ground = ASPHALT.replace(grip=grip, peak_slip=peak_slip, shape=1.0 - 0.2 * (grip < 0.6))
    state, speed = start(30.0), []
    for _ in range(2):  # 20 s
        state, history = simulate(FLEET, state, random_commands(draws, hold=50), ground)
        speed.append(jnp.linalg.norm(history.velocity, axis=-1))
        for leaf in jax.tree.leaves(history):
            assert bool(jnp.isfinite(leaf).all())
        assert float(history.load.min()) > 0.0
        assert float(jnp.abs(history.yaw_rate).max()) < 20.0
    assert float(jnp.concatenate(speed).max()) < 110.0


def _energy(car: Car, state: CarState, coupled: jax.Array) -> jax.Array:
    """Kinetic energy of body, wheels and, if `coupled`, engine."""
    drivetrain = car.drivetrain
    ratio = drivetrains.gear_ratio(drivetrain, state.gear)
    engine = ratio * jnp.sum(drivetrains.wheel_share(drivetrain) * state.wheel_speed)
    return 0.5 * (
        car.mass * jnp.sum(state.velocity**2)
        + car.yaw_inertia * state.yaw_rate**2
        + jnp.sum(car.wheel_inertia * state.wheel_speed**2)
        + coupled * drivetrain.inertia * engine**2
    )


def _coast(car: Car, normal: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Energy before and after one step with the throttle closed, from a state made of noise.

    `normal` [11] is standard normal, `uniform` [10] lies in 0..1.
    """
    forward, left, spin = normal[:3] * jnp.array([25.0, 5.0, 0.7])
    state = rolling_start(car, jnp.zeros(2), 0.0, jnp.maximum(forward, 0.0))
    wheel_speed = state.wheel_speed * (1.0 + 0.5 * normal[3:7]) + 5.0 * normal[7:]
    # The wheels of a solid axle cannot differ; such a state cannot be reached.
    solid = car.drivetrain.lock_preload[1] > 1000.0
    rear = jnp.where(solid, wheel_speed[2], wheel_speed[3])
    state = state.replace(
        velocity=jnp.stack([forward, left]),
        yaw_rate=spin,
        wheel_speed=wheel_speed.at[3].set(rear),
        load=state.load * (0.1 + 1.9 * uniform[:4]),
        steering=car.steering_limit * (2.0 * uniform[4] - 1.0),
        brake=jnp.maximum(2.0 * uniform[5] - 1.0, 0.0),
    )
    ground = dry_asphalt().replace(grip=0.1 + 0.9 * uniform[6:])
    command = Command(steering=state.steering, throttle=jnp.float32(0.0), brake=state.brake)
    after = step(car, state, command, ground, STEP)
    drivetrain = car.drivetrain
    engine = drivetrains.gear_ratio(drivetrain, after.gear) * jnp.sum(
        drivetrains.wheel_share(drivetrain) * state.wheel_speed
    )
    coupled = (engine >= drivetrain.idle) & (after.shift_timer <= 0.0)
    return _energy(car, state.replace(gear=after.gear), coupled), _energy(car, after, coupled)


def test_no_step_without_throttle_creates_energy() -> None:
    # 4000 random states per car: sliding, spinning, locked, braked, turned, on mixed grip. The
    # tolerance is the rounding of an energy summed in float32.
    draws = np.random.default_rng(4)
    normal = draws.normal(size=(NUM_CARS, 4000, 11)).astype(np.float32)
    uniform = draws.uniform(size=(NUM_CARS, 4000, 10)).astype(np.float32)
    fleet_coast = jax.jit(jax.vmap(jax.vmap(_coast, (None, 0, 0))))
    for fleet in (FLEET, AIDED):
        before, after = fleet_coast(fleet, normal, uniform)
        assert float(((after - before) / before).max()) <= 1e-6


def _cornering_limit(car: Car, speed: float, drift: float) -> float:
    """Largest steady lateral acceleration in m/s^2, from the moment balance in float64.

    Each axle must carry its share of m ay; its grip is that of two load-sensitive tyres at their
    peak, less what the driven axle needs against drag, rolling and the steered wheels' drag. The
    car points into the corner by `drift`, so part of m ay acts along it and shifts load rearwards.
    """
    car = jax.tree.map(lambda leaf: np.asarray(leaf, float), car)
    tyre, front, rear = car.tyre, car.wheel_x[0], -car.wheel_x[3]
    base, weight = front + rear, car.mass * GRAVITY
    pressure = 0.5 * AIR_DENSITY * speed**2
    static = weight * np.array([rear, rear, front, front]) / (2 * base)
    static += 0.5 * pressure * np.repeat(car.downforce_area, 2)
    roll = np.array([car.roll_share, car.roll_share, 1 - car.roll_share, 1 - car.roll_share])
    lateral = 5.0
    for _ in range(200):
        moment = car.mass * lateral * car.height
        load = static - moment * roll / (2 * car.wheel_y)
        load += moment * drift / (2 * base) * np.array([-1.0, -1.0, 1.0, 1.0])
        load = np.maximum(load, 20.0)
        load *= static.sum() / load.sum()
        friction = (1 + tyre.friction_slope * (load - tyre.nominal_load)) * load
        grip_x = (tyre.friction_x * friction).reshape(2, 2).sum(axis=1)
        grip_y = (tyre.friction_y * friction).reshape(2, 2).sum(axis=1)
        steering = base * lateral / speed**2
        need = pressure * car.drag_area + 0.013 * static.sum()
        need += car.mass * lateral * rear / base * steering
        share = np.array([car.drivetrain.front_share, 1 - car.drivetrain.front_share])
        grip_y = grip_y * np.sqrt(np.maximum(1 - (need * share / grip_x) ** 2, 0.0))
        best = min(grip_y[0] * base / rear, grip_y[1] * base / front) / car.mass
        lateral = 0.5 * (lateral + best)
    return lateral


def test_steady_cornering_reaches_the_grip_limit() -> None:
    # Constant speed, steering turned in slowly until the car lets go; open differentials, because
    # locking works against the turn and the limit above knows nothing of it.
    speed = jnp.array([15.0, 18.0, 25.0, 40.0, 30.0, 22.0, 25.0, 45.0, 45.0])
    opened = FLEET.drivetrain.replace(
        lock_preload=jnp.zeros((NUM_CARS, 3)), lock_ramp=jnp.zeros((NUM_CARS, 3))
    )
    fleet = FLEET.replace(drivetrain=opened)

    @jax.jit
    @jax.vmap
    def turn_in(car: Car, speed: jax.Array) -> CarState:
        wheelbase = car.wheel_x[0] - car.wheel_x[3]
        final = 45.0 * wheelbase / speed**2 + 0.2

        def advance(
            carry: tuple[CarState, jax.Array], time: jax.Array
        ) -> tuple[tuple[CarState, jax.Array], CarState]:
            state, integral = carry
            error = speed - state.velocity[0]
            integral = jnp.clip(integral + 0.3 * error * STEP, 0.0, 1.0)
            throttle = jnp.clip(0.5 * error + integral, 0.0, 1.0)
            command = Command(steering=final * time / 20, throttle=throttle, brake=jnp.float32(0))
            state = step(car, state, command, dry_asphalt(), STEP)
            return (state, integral), state

        first = rolling_start(car, jnp.zeros(2), 0.0, speed)
        return jax.lax.scan(advance, (first, jnp.float32(0)), STEP * jnp.arange(2000))[1]

    history = turn_in(fleet, speed)
    for i, name in enumerate(CAR_NAMES):
        run = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), history)
        gripping = np.cumprod(np.abs(run.slip_angle).max(axis=-1) < 0.2)  # until it spins
        smooth = np.convolve(run.acceleration[:, 1] * gripping, np.ones(40) / 40, "same")
        best = smooth.argmax()
        forward, left = run.velocity[best]
        limit = _cornering_limit(load_car(name), float(forward), float(-left / forward))
        assert 0.955 * limit < smooth[best] < 1.02 * limit, name


def test_small_motions_match_the_commonroad_single_track() -> None:
    """Derivatives against `vehicle_dynamics_st` of commonroad-vehicle-models (Althoff 2020).

    That model is linear: two axles, Fy = mu Fz C alpha, static loads. Ours reduces to it with all
    four wheels on the centre line (no track), the centre of gravity on the ground (no load
    transfer), a friction that ignores load, no resistance, and slips of at most 1 % of the peak,
    where the tyre is linear with C = Q S / tan(peak angle). Its C is scaled by v / sqrt(v^2 + v0^2)
    for our regularised slip. With zero longitudinal input, v (beta' + r) is the lateral
    acceleration.
    """
    reference = parameters_vehicle2()
    stiffness = -reference.tire.p_ky1
    shape = 1.6
    tangent = shape * np.tan(np.pi / (2 * shape)) / stiffness
    base = load_car("roadster_fr")
    four = jnp.ones(4)
    car = base.replace(
        mass=jnp.float32(reference.m),
        yaw_inertia=jnp.float32(reference.I_z),
        wheel_x=jnp.array([reference.a, reference.a, -reference.b, -reference.b]),
        wheel_y=jnp.array([1e-3, -1e-3, 1e-3, -1e-3]),
        height=jnp.float32(0.0),
        drag_area=jnp.float32(0.0),
        downforce_area=jnp.zeros(2),
        tyre=base.tyre.replace(
            friction_x=four,
            friction_y=four,
            friction_slope=0.0 * four,
            peak_slope=0.0 * four,
            peak_angle=tangent * four,
            shape=shape * four,
        ),
        drivetrain=base.drivetrain.replace(drag_torque=jnp.float32(0.0), inertia=jnp.float32(0.0)),
    )
    ground = dry_asphalt().replace(rolling=jnp.zeros(4))
    duration = 1e-3

    @jax.jit
    @jax.vmap
    def ours(speed: jax.Array, beta: jax.Array, yaw: jax.Array, steering: jax.Array) -> jax.Array:
        state = rolling_start(car, jnp.zeros(2), 0.0, speed).replace(
            velocity=speed * jnp.stack([jnp.cos(beta), jnp.sin(beta)]),
            yaw_rate=yaw,
            steering=steering,
        )
        command = Command(steering=steering, throttle=jnp.float32(0), brake=jnp.float32(0))
        after = step(car, state, command, ground, duration)
        return jnp.stack([after.acceleration[1], (after.yaw_rate - yaw) / duration])

    draws = np.random.default_rng(5).uniform(-1e-3, 1e-3, (3, 50))
    beta, yaw, steering = draws * np.array([[1.0], [10.0], [1.0]])
    speed = np.random.default_rng(6).uniform(15.0, 45.0, 50)
    actual = ours(*(jnp.asarray(value, jnp.float32) for value in (speed, beta, yaw, steering)))
    expected = []
    for v, b, r, delta in zip(speed, beta, yaw, steering, strict=True):
        scaled = parameters_vehicle2()
        scaled.tire.p_ky1 = -stiffness * v / np.hypot(v, SLIP_SPEED)
        rate = vehicle_dynamics_st([0.0, 0.0, delta, v, 0.0, r, b], [0.0, 0.0], scaled)
        expected.append([v * (rate[6] + r), rate[5]])
    scale = np.abs(expected).max(axis=0)
    np.testing.assert_allclose(actual / scale, expected / scale, atol=3e-3)


def test_rolling_start_is_in_balance() -> None:
    # Half a second of coasting straight on: only drag, rolling and engine braking act.
    for speed in (5.0, 20.0, 40.0):
        final, history = simulate(FLEET, start(speed), constant(0.0, 0.0, 0.0), ASPHALT)
        early = jax.tree.map(lambda leaf: leaf[100], history)
        assert float(jnp.abs(early.slip_ratio).max()) < 0.03
        assert float((speed - early.velocity[:, 0]).max()) < 0.08 * speed
        assert float(jnp.abs(final.velocity[:, 1]).max()) < 1e-4


@pytest.mark.parametrize(("throttle", "grip"), [(0.35, 1.0), (0.6, 1.0), (1.0, 0.35)])
def test_gearbox_does_not_hunt_at_constant_throttle(throttle: float, grip: float) -> None:
    ground = ASPHALT.replace(grip=grip * ASPHALT.grip)
    _, history = simulate(FLEET, start(3.0), constant(0.0, throttle, 0.0), ground)
    shifts = jnp.diff(history.gear, axis=0)
    assert int(shifts.min()) == 0
    assert int(shifts.sum()) >= 9


@pytest.mark.parametrize("grip", [1.0, 0.4])
def test_antilock_brakes_stop_sooner_than_locked_wheels(grip: float) -> None:
    ground = ASPHALT.replace(grip=grip * ASPHALT.grip)
    way = {}
    for name, fleet in (("locked", FLEET), ("aided", AIDED)):
        final, history = simulate(fleet, start(35.0), constant(0.0, 0.0, 1.0), ground)
        way[name] = final.position[:, 0]
        slip = -history.slip_ratio / fleet.tyre.peak_ratio
        rolling = (history.velocity[:, :, 0] > 8.0)[..., None]
        if name == "aided":
            assert float(jnp.max(jnp.where(rolling, slip, 0.0))) < 1.6
            chatter = jnp.abs(jnp.diff(slip, axis=0)) * rolling[1:]
            assert float((chatter.sum(0) / rolling.sum(0)).max()) < 0.03
    np.testing.assert_array_less(way["aided"], 0.95 * way["locked"])


@pytest.mark.parametrize("grip", [1.0, 0.4])
def test_traction_control_launches_better_than_spinning_wheels(grip: float) -> None:
    ground = ASPHALT.replace(grip=grip * ASPHALT.grip)
    _, free = simulate(FLEET, start(0.0), constant(0.0, 1.0, 0.0), ground)
    _, held = simulate(AIDED, start(0.0), constant(0.0, 1.0, 0.0), ground)
    gained = held.velocity[400, :, 0] / free.velocity[400, :, 0]  # after 2 s
    assert float(gained.min()) > 0.999
    spun = (free.slip_ratio[:400] / FLEET.tyre.peak_ratio).max(axis=(0, 2)) > 3.0
    assert bool((gained[spun] > 1.15).all())
    assert int(spun.sum()) >= 5
    slip = held.slip_ratio[40:400] / FLEET.tyre.peak_ratio
    assert float(slip.max()) < 2.0
    assert float(jnp.abs(jnp.diff(slip, axis=0)).mean(axis=0).max()) < 0.05


def test_aids_take_nothing_where_wheels_do_not_slip() -> None:
    command = script()
    _, free = simulate(FLEET, start(12.0), command.replace(brake=0.2 * command.brake), ASPHALT)
    _, held = simulate(AIDED, start(12.0), command.replace(brake=0.2 * command.brake), ASPHALT)
    slip = jnp.abs(free.slip_ratio / FLEET.tyre.peak_ratio).max(axis=(0, 2))
    calm = np.flatnonzero(slip < 0.95)
    assert len(calm) >= 5
    np.testing.assert_allclose(held.position[:, calm], free.position[:, calm], atol=1e-3)


def test_fuel_is_mass_and_burns_by_the_work_it_does() -> None:
    # Without drag, rolling resistance and the engine's own drag and inertia all work becomes
    # motion, but for the slip of the tyres; 33 % of 43 MJ/kg reach the engine's shaft.
    fleet = load_cars([name for name in CAR_NAMES if name != "formula_e"] + ["gt3_fr"], fuel=2.0)
    zero = jnp.zeros(NUM_CARS)
    drivetrain = fleet.drivetrain.replace(inertia=zero, drag_torque=zero)
    fleet = fleet.replace(drag_area=zero, drivetrain=drivetrain)
    first = jax.vmap(rolling_start, (0, None, None, None))(fleet, jnp.zeros(2), 0.0, 20.0)
    weight = GRAVITY * (fleet.mass + 2.0)
    lift = 0.5 * AIR_DENSITY * 20.0**2 * fleet.downforce_area.sum(axis=1)
    np.testing.assert_allclose(first.load.sum(axis=1), weight + lift, rtol=1e-5)

    command = constant(0.0, 0.2, 0.0)
    final, history = simulate(fleet, first, command, ASPHALT.replace(rolling=0.0 * ASPHALT.grip))
    mass = fleet.mass + 0.5 * (2.0 + final.fuel)
    spin = jnp.sum(fleet.wheel_inertia * (final.wheel_speed**2 - first.wheel_speed**2), axis=1)
    gained = 0.5 * (mass * (final.velocity[:, 0] ** 2 - 20.0**2) + spin)
    burnt = (2.0 - final.fuel) * 0.33 * 43e6 * drivetrain.efficiency
    np.testing.assert_allclose(burnt, gained, rtol=0.02)
    assert float(jnp.diff(history.fuel, axis=0).max()) <= 0.0
    assert float((2.0 - final.fuel).min()) > 0.003


def test_an_empty_tank_drives_no_wheel() -> None:
    names = [name for name in CAR_NAMES if name != "formula_e"]
    fleet = load_cars([*names, "gt3_fr"], fuel=0.005)
    first = jax.vmap(rolling_start, (0, None, None, None))(fleet, jnp.zeros(2), 0.0, 20.0)
    final, history = simulate(fleet, first, constant(0.0, 1.0, 0.0), ASPHALT)
    np.testing.assert_array_equal(final.fuel, 0.0)
    speed = history.velocity[..., 0]
    assert bool((speed.max(axis=0) > 20.1).all())
    np.testing.assert_array_equal(history.fuel[1000], 0.0)
    assert float(jnp.diff(speed[1050:], axis=0).max()) < 0.0


def test_tyres_wear_by_the_energy_that_sliding_takes() -> None:
    # Wheels that lock at once turn the whole kinetic energy into sliding. Racing soft wears
    # WEAR_RATE per metre under the nominal load.
    fleet = load_cars(["gt3_fr"] * NUM_CARS, "racing_soft", wear=True)
    fleet = fleet.replace(drag_area=jnp.zeros(NUM_CARS), brake_torque=jnp.full(NUM_CARS, 1e6))
    first = jax.vmap(rolling_start, (0, None, None, None))(fleet, jnp.zeros(2), 0.0, 30.0)
    final, history = simulate(fleet, first, constant(0.0, 0.0, 1.0), ASPHALT)
    assert float(final.velocity[:, 0].max()) < 0.1
    slid = jnp.sum(final.wear * fleet.tyre.nominal_load, axis=1) / WEAR_RATE
    np.testing.assert_allclose(slid, 0.5 * fleet.mass * 30.0**2, rtol=0.02)
    assert float(jnp.diff(history.wear, axis=0).min()) >= 0.0

    _, unworn = simulate(FLEET, start(30.0), constant(0.1, 0.5, 0.0), ASPHALT)
    np.testing.assert_array_equal(unworn.wear, 0.0)


def test_worn_tyres_brake_worse() -> None:
    # Locked wheels and no air: the way grows as the friction falls, by 1 / worn(1.3) = 1 / 0.9095.
    fleet = FLEET.replace(
        drag_area=jnp.zeros(NUM_CARS),
        downforce_area=jnp.zeros((NUM_CARS, 2)),
        brake_torque=10.0 * FLEET.brake_torque,
    )
    fresh, _ = simulate(fleet, start(15.0), constant(0.0, 0.0, 1.0), ASPHALT)
    old = start(15.0).replace(wear=jnp.full((NUM_CARS, 4), 1.3))
    worn, _ = simulate(fleet, old, constant(0.0, 0.0, 1.0), ASPHALT)
    np.testing.assert_allclose(worn.position[:, 0] / fresh.position[:, 0], 1 / 0.9095, rtol=0.02)
