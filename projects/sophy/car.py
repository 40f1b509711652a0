"""The car: a planar double track with wheel spin, load transfer and a drivetrain.

Three body degrees of freedom (Rajamani, "Vehicle Dynamics and Control", 2nd ed. 2012, chapter 8;
Perantoni and Limebeer 2014, equations 1-3), four wheel spins, quasi-steady load transfer behind a
first-order lag that stands for the suspension, the tyre of `tyre`, the engine of `drivetrain`.

    m (vx' - r vy) = sum Fx_i - 1/2 rho CdA vx |v|
    m (vy' + r vx) = sum Fy_i - 1/2 rho CdA vy |v|
    Iz r'          = sum (x_i Fy_i - y_i Fx_i)
    Iw_i w_i'      = T_drive_i - T_brake_i - R_i Fx_i(w_i) - c_i R_i Fz_i

The wheels are stiff (thousands per second at walking pace), so each spin is updated implicitly:
Fx is linearised in w alone, w+ = w + dt (T - R Fx) / (Iw + dt R dFx/dw), with dFx/dw >= 0 and a
denominator just large enough that Fx alone never carries a wheel past free rolling. The body then
feels that linearised Fx, up to the tyre's peak: what the road gives to a wheel it takes from the
body, so that no step creates energy. Brake and rolling resistance are friction impulses that can
stop a wheel but not turn it back. The body moves by a symplectic Euler step in which the frame's
own rotation is exact, and the yaw inertia is raised where the tyres' yaw damping, at walking pace,
would overshoot. 5 ms is a good step, 1 ms a reference.

Wheels are ordered FL FR RL RR; x points forward, y left, yaw is anticlockwise. There is no reverse
gear, no suspension travel and no road slope.
"""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from projects.sophy import drivetrain as drivetrains
from projects.sophy import tyre as tyres
from projects.sophy.drivetrain import Drivetrain
from projects.sophy.tyre import Ground, Tyre

__all__ = ["Car", "CarState", "Command", "Ground", "rolling_start", "step"]

GRAVITY = 9.81  # [m/s^2]
AIR_DENSITY = 1.2  # [kg/m^3]
LOAD_LAG = 0.06  # time constant of the load transfer [s]
MINIMUM_LOAD = 20.0  # of a lifted wheel [N]

FRONT = np.array([1.0, 1.0, 0.0, 0.0], np.float32)


@struct.dataclass
class Car:
    """Every parameter of a car, float32 leaves, so that different cars can be mapped over."""

    mass: Array  # driver included [kg]
    yaw_inertia: Array  # [kg m^2]
    wheel_x: Array  # [4] wheel centres ahead of the centre of gravity [m]
    wheel_y: Array  # [4] wheel centres left of the centre of gravity [m]
    height: Array  # of the centre of gravity [m]
    roll_share: Array  # front axle's part of the roll stiffness [-]
    wheel_radius: Array  # [4] [m]
    wheel_inertia: Array  # [4] [kg m^2]
    length: Array  # of the body [m]
    width: Array  # of the body [m]
    drag_area: Array  # Cd A [m^2]
    downforce_area: Array  # [2] Cl A of the front and the rear axle, positive pushes down [m^2]
    steering_limit: Array  # largest road-wheel angle [rad]
    steering_rate: Array  # fastest change of the road-wheel angle [rad/s]
    throttle_lag: Array  # time constant [s]
    brake_lag: Array  # time constant [s]
    brake_torque: Array  # of all four wheels at full pedal [N m]
    brake_bias: Array  # front axle's part [-]
    tyre: Tyre
    drivetrain: Drivetrain


@struct.dataclass
class CarState:
    """The state of one car between sub-steps."""

    position: Array  # [2] of the centre of gravity [m]
    heading: Array  # [rad]
    velocity: Array  # [2] forward and left, in the body frame [m/s]
    yaw_rate: Array  # [rad/s]
    wheel_speed: Array  # [4] [rad/s]
    load: Array  # [4] vertical [N]
    steering: Array  # road-wheel angle [rad]
    throttle: Array  # 0..1 [-]
    brake: Array  # 0..1 [-]
    gear: Array  # 1 is the lowest, int32 [-]
    shift_timer: Array  # left of the running shift [s]
    acceleration: Array  # [2] force over mass in the body frame, of the last step [m/s^2]
    slip_ratio: Array  # [4] of the last step [-]
    slip_angle: Array  # [4] of the last step, positive when the tyre pushes left [rad]


@struct.dataclass
class Command:
    """What the driver asks for; the car's actuators follow with their rates and lags."""

    steering: Array  # road-wheel angle [rad]
    throttle: Array  # 0..1 [-]
    brake: Array  # 0..1 [-]


def steady_load(car: Car, speed: Array, acceleration: Array) -> Array:
    """Steady vertical loads [4] in N at a forward speed and an acceleration [2].

    A wheel that would be pulled off the ground keeps the minimum; the others then carry so much
    less that the sum is still weight plus downforce.
    """
    wheelbase = car.wheel_x[0] - car.wheel_x[3]
    pressure = 0.5 * AIR_DENSITY * speed * speed
    weight = car.mass * GRAVITY
    # The axle behind carries the front's lever arm: moment balance about the other axle.
    arm = jnp.where(FRONT > 0, -car.wheel_x[3], car.wheel_x[0])
    toward = jnp.where(FRONT > 0, -1.0, 1.0)
    area = jnp.where(FRONT > 0, car.downforce_area[0], car.downforce_area[1])
    roll = jnp.where(FRONT > 0, car.roll_share, 1.0 - car.roll_share)
    moment = car.mass * car.height
    load = (
        0.5 * (weight * arm + toward * moment * acceleration[0]) / wheelbase
        + 0.5 * pressure * area
        - 0.5 * roll * moment * acceleration[1] / car.wheel_y
    )
    load = jnp.maximum(load, MINIMUM_LOAD)
    total = weight + pressure * (car.downforce_area[0] + car.downforce_area[1])
    return load * (total / jnp.sum(load))


def rolling_start(car: Car, position: Array, heading: Array, speed: Array) -> CarState:
    """A car rolling straight at `speed` [m/s] from `position` [2] with a heading [rad]."""
    speed = jnp.asarray(speed, jnp.float32)
    zero = jnp.zeros((), jnp.float32)
    wheel_speed = speed / car.wheel_radius
    share = drivetrains.wheel_share(car.drivetrain)
    return CarState(
        position=jnp.asarray(position, jnp.float32),
        heading=jnp.asarray(heading, jnp.float32),
        velocity=jnp.stack([speed, zero]),
        yaw_rate=zero,
        wheel_speed=wheel_speed,
        load=steady_load(car, speed, jnp.zeros(2)),
        steering=zero,
        throttle=zero,
        brake=zero,
        gear=drivetrains.starting_gear(car.drivetrain, jnp.sum(share * wheel_speed)),
        shift_timer=zero,
        acceleration=jnp.zeros(2, jnp.float32),
        slip_ratio=jnp.zeros(4, jnp.float32),
        slip_angle=jnp.zeros(4, jnp.float32),
    )


def _actuate(
    car: Car, state: CarState, command: Command, time_step: float
) -> tuple[Array, Array, Array]:
    """The next (steering, throttle, brake)."""
    travel = car.steering_rate * time_step
    target = jnp.clip(command.steering, -car.steering_limit, car.steering_limit)
    steering = state.steering + jnp.clip(target - state.steering, -travel, travel)
    throttle = jnp.clip(command.throttle, 0.0, 1.0) - state.throttle
    brake = jnp.clip(command.brake, 0.0, 1.0) - state.brake
    throttle = state.throttle + throttle * (time_step / (car.throttle_lag + time_step))
    brake = state.brake + brake * (time_step / (car.brake_lag + time_step))
    return steering, throttle, brake


def step(car: Car, state: CarState, command: Command, ground: Ground, time_step: float) -> CarState:
    """One sub-step of `time_step` seconds for one car."""
    steering, throttle, brake = _actuate(car, state, command, time_step)
    forward, left, yaw_rate = state.velocity[0], state.velocity[1], state.yaw_rate

    target = steady_load(car, forward, state.acceleration)
    load = state.load + (target - state.load) * (time_step / (LOAD_LAG + time_step))

    # Contact-point velocities in each wheel's own frame.
    cosine = 1.0 + FRONT * (jnp.cos(steering) - 1.0)
    sine = FRONT * jnp.sin(steering)
    contact_x = forward - yaw_rate * car.wheel_y
    contact_y = left + yaw_rate * car.wheel_x
    along = contact_x * cosine + contact_y * sine
    across = contact_y * cosine - contact_x * sine

    radius = car.wheel_radius
    scale = 1.0 / tyres.slip_scale(along)
    peak = tyres.peak(car.tyre, load, ground)
    tangent = -across * scale
    ratio = (radius * state.wheel_speed - along) * scale
    before = tyres.contact(peak, ratio, tangent)

    share = drivetrains.wheel_share(car.drivetrain)
    gear, timer = drivetrains.select_gear(
        car.drivetrain,
        state.gear,
        state.shift_timer,
        jnp.sum(share * state.wheel_speed),
        jnp.sum(share * along / radius),
        time_step,
    )
    drive = drivetrains.drive(car.drivetrain, gear, timer, throttle, state.wheel_speed)
    lever = time_step * radius * radius * scale
    inertia = car.wheel_inertia + lever * jnp.maximum(before.slope_x, 0.0)
    inertia = jnp.maximum(inertia, lever * before.secant_x)
    bias = jnp.where(FRONT > 0, car.brake_bias, 1.0 - car.brake_bias)
    wheel_speed = drivetrains.turn_wheels(
        car.drivetrain,
        drive,
        state.wheel_speed,
        mobility=1.0 / inertia,
        torque=-radius * before.force_x,
        friction=0.5 * brake * car.brake_torque * bias + ground.rolling * radius * load,
        time_step=time_step,
    )

    ratio = (radius * wheel_speed - along) * scale
    after = tyres.contact(peak, ratio, tangent)
    extra = (inertia - car.wheel_inertia) * (wheel_speed - state.wheel_speed)
    force_x = before.force_x + extra / (time_step * radius)
    force_x = jnp.clip(force_x, -peak.force_x, peak.force_x)
    body_x = force_x * cosine - after.force_y * sine
    body_y = force_x * sine + after.force_y * cosine

    air = 0.5 * AIR_DENSITY * car.drag_area * jnp.sqrt(forward * forward + left * left)
    acceleration_x = (jnp.sum(body_x) - air * forward) / car.mass
    acceleration_y = (jnp.sum(body_y) - air * left) / car.mass
    moment = jnp.sum(car.wheel_x * body_y - car.wheel_y * body_x)
    damping = scale * (after.secant_y * car.wheel_x**2 + after.secant_x * car.wheel_y**2)
    yaw_rate += time_step * moment / jnp.maximum(car.yaw_inertia, time_step * jnp.sum(damping))
    forward = forward + time_step * acceleration_x
    left = left + time_step * acceleration_y
    # The body frame turns under the velocity: a Cayley rotation keeps its length exactly.
    half = 0.5 * time_step * yaw_rate
    turn_sine = 2.0 * half / (1.0 + half * half)
    turn_cosine = 1.0 - half * turn_sine
    forward, left = (
        forward * turn_cosine + left * turn_sine,
        left * turn_cosine - forward * turn_sine,
    )
    heading = state.heading + time_step * yaw_rate
    east, north = jnp.cos(heading), jnp.sin(heading)
    travel = jnp.stack([forward * east - left * north, forward * north + left * east])

    return CarState(
        position=state.position + time_step * travel,
        heading=heading,
        velocity=jnp.stack([forward, left]),
        yaw_rate=yaw_rate,
        wheel_speed=wheel_speed,
        load=load,
        steering=steering,
        throttle=throttle,
        brake=brake,
        gear=gear,
        shift_timer=timer,
        acceleration=jnp.stack([acceleration_x, acceleration_y]),
        slip_ratio=ratio,
        slip_angle=jnp.arctan(tangent),
    )
