import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy import drivetrain as drivetrains
from projects.sophy.cars import CAR_NAMES, load_car
from projects.sophy.drivetrain import Drive

STEP = 0.005
engine_torque = jax.jit(jax.vmap(drivetrains.engine_torque, (None, 0, None)))
turn_wheels = jax.jit(drivetrains.turn_wheels, static_argnames="time_step")
NO_TORQUE = jnp.zeros(4)


def _drive(name: str, torque: float = 0.0, inertia: float = 0.0) -> Drive:
    share = drivetrains.wheel_share(load_car(name).drivetrain)
    return Drive(share=share, torque=jnp.float32(torque), inertia=jnp.float32(inertia))


@pytest.mark.parametrize("name", CAR_NAMES)
def test_torque_table_is_linear_interpolation(name: str) -> None:
    drivetrain = load_car(name).drivetrain
    grid = np.linspace(drivetrain.idle, drivetrain.rev_limit, drivetrains.NUM_POINTS)
    speed = np.linspace(drivetrain.idle, drivetrain.rev_limit, 200, dtype=np.float32)
    torque = engine_torque(drivetrain, speed, 1.0)
    np.testing.assert_allclose(torque, np.interp(speed, grid, drivetrain.torque), rtol=1e-4)


def test_engine_without_throttle_only_brakes() -> None:
    drivetrain = load_car("gt3_fr").drivetrain
    torque = [
        float(drivetrains.engine_torque(drivetrain, speed, jnp.float32(0.0)))
        for speed in (drivetrain.idle, drivetrain.rev_limit, 1.1 * drivetrain.rev_limit)
    ]
    assert torque[0] == 0.0
    assert torque[1] == pytest.approx(-float(drivetrain.drag_torque))
    assert torque[2] < torque[1]


def test_rev_limiter_ends_the_torque() -> None:
    drivetrain = load_car("gt3_fr").drivetrain
    over = drivetrain.rev_limit + drivetrains.LIMITER_BAND
    assert float(drivetrains.engine_torque(drivetrain, over, jnp.float32(1.0))) == 0.0


@pytest.mark.parametrize("name", CAR_NAMES)
def test_shares_follow_the_layout(name: str) -> None:
    share = drivetrains.wheel_share(load_car(name).drivetrain)
    front = {"hatch_ff": 1.0, "rally_awd": 0.5}.get(name, 0.0)
    np.testing.assert_allclose(share, 0.5 * np.array([front, front, 1 - front, 1 - front]))


def test_engine_inertia_solves_the_coupled_system() -> None:
    # (diag(J) + I s s^T) dw = dt (s T + torque), solved densely in float64; open differentials.
    car = load_car("rally_awd")
    drivetrain = car.drivetrain.replace(lock_preload=jnp.zeros(3), lock_ramp=jnp.zeros(3))
    drive = _drive("rally_awd", torque=2000.0, inertia=20.0)
    inertia, torque = np.array([1.0, 2.0, 5.0, 1.5]), np.array([100.0, -300.0, 50.0, 0.0])
    share = np.asarray(drive.share, float)
    matrix = np.diag(inertia) + 20.0 * np.outer(share, share)
    expected = 50.0 + np.linalg.solve(matrix, STEP * (share * 2000.0 + torque))
    wheel_speed = turn_wheels(
        drivetrain,
        drive,
        jnp.full(4, 50.0),
        mobility=jnp.asarray(1.0 / inertia, jnp.float32),
        torque=jnp.asarray(torque, jnp.float32),
        friction=jnp.zeros(4),
        time_step=STEP,
    )
    np.testing.assert_allclose(wheel_speed, expected, rtol=1e-5)


def test_brake_stops_a_wheel_but_never_turns_it_back() -> None:
    keys = jax.random.split(jax.random.key(1), 3)
    wheel_speed = 30.0 * jax.random.normal(keys[0], (500, 4))
    mobility = jax.random.uniform(keys[1], (500, 4), minval=0.01, maxval=10.0)
    friction = 10 ** jax.random.uniform(keys[2], (500, 4), minval=1.0, maxval=6.0)
    drivetrain = load_car("roadster_fr").drivetrain  # open differential
    drive = _drive("roadster_fr", inertia=13.0)

    @jax.jit
    def brake(wheel_speed: jax.Array, mobility: jax.Array, friction: jax.Array) -> jax.Array:
        return turn_wheels(drivetrain, drive, wheel_speed, mobility, NO_TORQUE, friction, STEP)

    after = jax.vmap(brake)(wheel_speed, mobility, friction)
    assert float((after * wheel_speed).min()) >= 0.0
    front = jnp.abs(after[:, :2]) <= jnp.abs(wheel_speed[:, :2])  # not joined to the engine
    assert bool(front.all())
    assert int((after == 0.0).sum()) > 100
    still = brake(jnp.zeros(4), mobility[0], friction[0])
    np.testing.assert_array_equal(still, jnp.zeros(4))


def _differential(lock: float, ramp: float, torque: float) -> tuple[jax.Array, jax.Array]:
    """Rear wheels at 40 and 50 rad/s, one step; returns (speeds, what the same step does open)."""
    drivetrain = load_car("gt3_fr").drivetrain
    results = []
    for share in (1.0, 0.0):
        held = drivetrain.replace(
            lock_preload=share * jnp.array([0.0, lock, 0.0]),
            lock_ramp=share * jnp.array([0.0, ramp, 0.0]),
        )
        results.append(
            turn_wheels(
                held,
                _drive("gt3_fr", torque=torque),
                jnp.array([45.0, 45.0, 40.0, 50.0]),
                mobility=jnp.array([0.5, 0.5, 0.4, 0.8]),
                torque=NO_TORQUE,
                friction=jnp.zeros(4),
                time_step=STEP,
            )
        )
    return results[0], results[1]


def test_differential_moves_its_lock_torque_to_the_slower_wheel() -> None:
    # Lock torque 60 + 0.25 * 1000 = 310 N m for 5 ms: 1.55 N m s, times the wheels' mobility.
    locked, free = _differential(lock=60.0, ramp=0.25, torque=1000.0)
    np.testing.assert_allclose(locked - free, [0.0, 0.0, 1.55 * 0.4, -1.55 * 0.8], atol=1e-4)


def test_differential_conserves_angular_momentum() -> None:
    locked, free = _differential(lock=400.0, ramp=0.0, torque=500.0)
    inertia = 1.0 / jnp.array([0.5, 0.5, 0.4, 0.8])
    assert float((inertia * locked).sum()) == pytest.approx(float((inertia * free).sum()), rel=1e-6)


def test_solid_axle_turns_as_one_without_overshoot() -> None:
    # Common speed: momentum over inertia, (40 / 0.4 + 50 / 0.8) / (1 / 0.4 + 1 / 0.8).
    locked, _ = _differential(lock=1e9, ramp=0.0, torque=0.0)
    np.testing.assert_allclose(locked[2:], 162.5 / 3.75, rtol=1e-5)


@pytest.mark.parametrize("name", CAR_NAMES)
def test_gearbox_has_hysteresis(name: str) -> None:
    # Straight after an upshift the same speed must not call for the lower gear again, and the
    # next-lower gear that a downshift takes must not be due for an upshift.
    drivetrain = load_car(name).drivetrain
    assert float(drivetrain.shift_down) < 0.85 * float(drivetrain.shift_up)
    assert float(drivetrain.shift_up) < float(drivetrain.rev_limit)


def test_spinning_wheels_do_not_shift_up_and_locked_wheels_not_down() -> None:
    drivetrain, zero = load_car("gt3_fr").drivetrain, jnp.float32(0.0)
    slow = drivetrain.shift_down / drivetrain.ratios[0] * 0.5
    fast = drivetrain.shift_up / drivetrain.ratios[3] * 0.95
    gear, timer = drivetrains.select_gear(drivetrain, jnp.int32(1), zero, 5 * slow, slow, STEP)
    assert (int(gear), float(timer)) == (1, 0.0)
    gear, _ = drivetrains.select_gear(drivetrain, jnp.int32(4), zero, zero, fast, STEP)
    assert int(gear) == 4


def test_shift_takes_its_time_without_torque() -> None:
    drivetrain, zero = load_car("gt3_fr").drivetrain, jnp.float32(0.0)
    due = 1.01 * drivetrain.shift_up / drivetrain.ratios[0]
    gear, timer = drivetrains.select_gear(drivetrain, jnp.int32(1), zero, due, due, STEP)
    assert (int(gear), float(timer)) == (2, float(drivetrain.shift_time))
    steps = 0
    while float(timer) > 0.0:
        drive = drivetrains.drive(drivetrain, gear, timer, jnp.float32(1.0), jnp.full(4, due))
        assert float(drive.torque) == 0.0
        gear, timer = drivetrains.select_gear(drivetrain, gear, timer, due, due, STEP)
        steps += 1
    assert steps in (12, 13)  # 0.06 s, give or take the last digit of the timer
    drive = drivetrains.drive(drivetrain, gear, timer, jnp.float32(1.0), jnp.full(4, due))
    assert float(drive.torque) > 1000.0
