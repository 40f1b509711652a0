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

Fuel adds to the mass at the centre of gravity and is burnt by the engine's work; tyres wear
(`tyre.worn`). Both are off where their parameters are zero, as are the aids where their slips are
`NO_AID`: traction control takes drive torque, antilock brakes take a wheel's brake torque, growing
from nothing at the parameter's slip to everything `AID_BAND` above it. What they take is implicit
in the wheel's speed as well; by the slip of the step before, wheels of 700 kW would chatter.

Wheels are ordered FL FR RL RR; x points forward, y left, yaw is anticlockwise. There is no reverse
gear, no suspension travel and no road slope. `steady_load`, `wheel_travel` and `body_acceleration`
are also what `limit` computes the fastest lap with, by another array library `xp`.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array

from projects.sophy import drivetrain as drivetrains
from projects.sophy import tyre as tyres
from projects.sophy.drivetrain import FRONT, REAR, Drivetrain
from projects.sophy.tyre import Ground, Tyre

__all__ = ["Car", "CarState", "Command", "Ground", "rolling_start", "step"]

GRAVITY = 9.81  # [m/s^2]
AIR_DENSITY = 1.2  # [kg/m^3]
LOAD_LAG = 0.06  # time constant of the load transfer [s]
MINIMUM_LOAD = 20.0  # of a lifted wheel [N]
NO_AID = 1e6  # a slip that no wheel reaches [-]
AID_BAND = 0.5  # an aid's effect grows over this much slip, in slips at the peak [-]


@struct.dataclass
class Car:
    """Every parameter of a car, float32 leaves, so that different cars can be mapped over."""

    mass: Array  # driver included, fuel not [kg]
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
    fuel_load: Array  # at the start [kg]
    fuel_flow: Array  # burnt per work at the driven wheels; 0 burns none [kg/J]
    traction_control: Array  # slip ratio where it begins, in slips at the peak; `NO_AID` is off [-]
    antilock: Array  # the same of the brakes [-]
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
    fuel: Array  # on board [kg]
    wear: Array  # [4] of the tyres, 1 at the cliff [-]
    acceleration: Array  # [2] force over mass in the body frame, of the last step [m/s^2]
    slip_ratio: Array  # [4] of the last step [-]
    slip_angle: Array  # [4] of the last step, positive when the tyre pushes left [rad]


@struct.dataclass
class Command:
    """What the driver asks for; the car's actuators follow with their rates and lags."""

    steering: Array  # road-wheel angle [rad]
    throttle: Array  # 0..1 [-]
    brake: Array  # 0..1 [-]


def axles(front: Any, rear: Any) -> Any:
    """One number per wheel [4] from the front axle's and the rear's."""
    return FRONT * front + REAR * rear


def steady_load(car: Car, speed: Array, acceleration: Array, xp: Any = jnp) -> Array:
    """Steady vertical loads [4] in N at a forward speed and an acceleration [2].

    A wheel that would be pulled off the ground keeps the minimum; the others then carry so much
    less that the sum is still weight plus downforce.
    """
    wheelbase = car.wheel_x[0] - car.wheel_x[3]
    pressure = 0.5 * AIR_DENSITY * speed * speed
    weight = car.mass * GRAVITY
    # The axle behind carries the front's lever arm: moment balance about the other axle.
    arm = axles(-car.wheel_x[3], car.wheel_x[0])
    area = axles(car.downforce_area[0], car.downforce_area[1])
    roll = axles(car.roll_share, 1.0 - car.roll_share)
    toward = REAR - FRONT
    moment = car.mass * car.height
    load = (
        0.5 * (weight * arm + toward * moment * acceleration[0]) / wheelbase
        + 0.5 * pressure * area
        - 0.5 * roll * moment * acceleration[1] / car.wheel_y
    )
    load = xp.maximum(load, MINIMUM_LOAD)
    total = weight + pressure * (car.downforce_area[0] + car.downforce_area[1])
    return load * (total / xp.sum(load))


def wheel_travel(
    car: Car, forward: Array, left: Array, yaw_rate: Array, steering: Array, xp: Any = jnp
) -> tuple[Array, Array, Array, Array]:
    """How the contact points move in their wheels' own frames, along and across [4] [m/s], and how
    the wheels are turned, cosine and sine [4]."""
    cosine = 1.0 + FRONT * (xp.cos(steering) - 1.0)
    sine = FRONT * xp.sin(steering)
    contact_x = forward - yaw_rate * car.wheel_y
    contact_y = left + yaw_rate * car.wheel_x
    along = contact_x * cosine + contact_y * sine
    across = contact_y * cosine - contact_x * sine
    return along, across, cosine, sine


def body_acceleration(
    car: Car,
    forward: Array,
    left: Array,
    force_x: Array,
    force_y: Array,
    cosine: Array,
    sine: Array,
    xp: Any = jnp,
) -> tuple[Array, Array, Array]:
    """Force over mass forward and left [] [m/s^2] and yaw moment [] [N m] of the tyres' forces [4]
    in their wheels' frames [N] and the air."""
    body_x = force_x * cosine - force_y * sine
    body_y = force_x * sine + force_y * cosine
    air = 0.5 * AIR_DENSITY * car.drag_area * xp.sqrt(forward * forward + left * left + 1e-12)
    acceleration_x = (xp.sum(body_x) - air * forward) / car.mass
    acceleration_y = (xp.sum(body_y) - air * left) / car.mass
    return acceleration_x, acceleration_y, xp.sum(car.wheel_x * body_y - car.wheel_y * body_x)


def body_middle(car: Car) -> Array:
    """How far the body's middle is ahead of the centre of gravity [...] [m]."""
    return 0.5 * (car.wheel_x[..., 0] + car.wheel_x[..., 3])


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
        load=steady_load(fuelled(car, car.fuel_load), speed, jnp.zeros(2)),
        steering=zero,
        throttle=zero,
        brake=zero,
        gear=drivetrains.starting_gear(car.drivetrain, jnp.sum(share * wheel_speed)),
        shift_timer=zero,
        fuel=car.fuel_load,
        wear=jnp.zeros(4, jnp.float32),
        acceleration=jnp.zeros(2, jnp.float32),
        slip_ratio=jnp.zeros(4, jnp.float32),
        slip_angle=jnp.zeros(4, jnp.float32),
    )


def fuelled(car: Car, fuel: Array) -> Car:
    return dataclasses.replace(car, mass=car.mass + fuel)


def _aided(slip: Array, begins: Array) -> tuple[Array, Array]:
    """Part of a torque that an aid leaves and its fall with slip, slips in those at the peak."""
    left = jnp.clip(1.0 - (slip - begins) / AID_BAND, 0.0, 1.0)
    return left, jnp.where((left > 0.0) & (left < 1.0), 1.0 / AID_BAND, 0.0)


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
    car = fuelled(car, state.fuel)
    steering, throttle, brake = _actuate(car, state, command, time_step)
    forward, left, yaw_rate = state.velocity[0], state.velocity[1], state.yaw_rate

    target = steady_load(car, forward, state.acceleration)
    load = state.load + (target - state.load) * (time_step / (LOAD_LAG + time_step))

    along, across, cosine, sine = wheel_travel(car, forward, left, yaw_rate, steering)
    radius = car.wheel_radius
    scale = 1.0 / tyres.slip_scale(along)
    ground = dataclasses.replace(ground, grip=ground.grip * tyres.worn(state.wear))
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
    dry = (car.fuel_flow > 0.0) & (state.fuel <= 0.0)
    drive = drivetrains.drive(
        car.drivetrain, gear, timer, jnp.where(dry, 0.0, throttle), state.wheel_speed
    )
    slip = ratio / peak.ratio
    spinning = jnp.max(jnp.where(share > 0.0, slip, 0.0))
    held, fall = _aided(spinning, car.traction_control)
    pulling = jnp.maximum(drive.torque, 0.0)
    yielding = fall * share * pulling  # [4] how the aids' torques fall with slip [N m]
    drive = drive._replace(torque=drive.torque - (1.0 - held) * pulling)
    lever = time_step * radius * radius * scale
    inertia = car.wheel_inertia + lever * jnp.maximum(before.slope_x, 0.0)
    inertia = jnp.maximum(inertia, lever * before.secant_x)
    bias = axles(car.brake_bias, 1.0 - car.brake_bias)
    held, fall = _aided(-slip, car.antilock)
    braking = 0.5 * brake * car.brake_torque * bias
    yielding += fall * braking
    wheel_speed = drivetrains.turn_wheels(
        car.drivetrain,
        drive,
        state.wheel_speed,
        mobility=1.0 / (inertia + time_step * radius * scale * yielding / peak.ratio),
        torque=-radius * before.force_x,
        friction=held * braking + ground.rolling * radius * load,
        time_step=time_step,
    )

    ratio = (radius * wheel_speed - along) * scale
    after = tyres.contact(peak, ratio, tangent)
    extra = (inertia - car.wheel_inertia) * (wheel_speed - state.wheel_speed)
    force_x = before.force_x + extra / (time_step * radius)
    force_x = jnp.clip(force_x, -peak.force_x, peak.force_x)
    acceleration_x, acceleration_y, moment = body_acceleration(
        car, forward, left, force_x, after.force_y, cosine, sine
    )
    work = time_step * jnp.maximum(drive.torque, 0.0) * jnp.sum(share * wheel_speed)
    slid = jnp.abs(force_x * (radius * wheel_speed - along)) + jnp.abs(after.force_y * across)
    worn = time_step * slid * car.tyre.wear_rate / car.tyre.nominal_load
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
        fuel=jnp.maximum(state.fuel - car.fuel_flow * work, 0.0),
        wear=state.wear + worn,
        acceleration=jnp.stack([acceleration_x, acceleration_y]),
        slip_ratio=ratio,
        slip_angle=tyres.arctan(tangent),
    )
