"""What tells one car from another, as a vector: the static part of what a driver of many cars
sees, and what analyses of the field attribute differences to."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from projects.sophy import drivetrain as drivetrains
from projects.sophy.car import GRAVITY, NO_AID, Car
from projects.sophy.compounds import WEAR_RATE
from projects.sophy.drivetrain import MAX_GEARS, NUM_POINTS

# Every entry of the vector, in its order, and the group that it belongs to.
CAR_FEATURES: dict[str, str] = {
    "mass": "mass",
    "yaw_inertia": "mass",  # over that of two masses above the axles
    "wheelbase": "mass",
    "track": "mass",
    "height": "mass",
    "power_per_mass": "power",
    "power": "power",
    "front_share": "drivetrain",
    "gears": "drivetrain",
    "top_gear_speed": "drivetrain",
    "shift_time": "drivetrain",
    "lock_preload": "drivetrain",  # of the driven axles, near 1 locked
    "lock_ramp": "drivetrain",
    "traction_control": "drivetrain",
    "downforce_front": "aero",  # over mass, as the next two
    "downforce_rear": "aero",
    "drag": "aero",
    "friction_x_front": "tyres",
    "friction_x_rear": "tyres",
    "friction_y_front": "tyres",
    "friction_y_rear": "tyres",
    "peak_ratio": "tyres",
    "peak_angle": "tyres",
    "load_sensitivity": "tyres",  # relative loss of friction per nominal load
    "shape": "tyres",
    "wet_gain": "tyres",
    "wear_rate": "tyres",
    "weight_front": "balance",
    "roll_share": "balance",
    "brake_bias": "balance",
    "brake_torque": "balance",  # over what blocks the wheels at a friction of two
    "antilock": "balance",
    "steering_limit": "balance",
    "steering_rate": "balance",
}


def car_features(car: Car) -> Array:
    """The features [F] of a car in the order of `CAR_FEATURES`, scaled to order one."""
    drivetrain, tyre = car.drivetrain, car.tyre
    front_arm, rear_arm = car.wheel_x[0], -car.wheel_x[3]
    tonnes = car.mass / 1000.0
    speed = drivetrain.idle + (drivetrain.rev_limit - drivetrain.idle) * np.linspace(
        0.0, 1.0, NUM_POINTS, dtype=np.float32
    )
    power = jnp.max(drivetrain.torque * speed)
    per_radius = jnp.sum(drivetrains.wheel_share(drivetrain) / car.wheel_radius)
    top = drivetrain.rev_limit / jnp.min(drivetrain.ratios) / per_radius
    blocking = car.mass * GRAVITY * jnp.mean(car.wheel_radius)
    share = jnp.stack([drivetrain.front_share, 1.0 - drivetrain.front_share])
    preload = jnp.sum(share * drivetrain.lock_preload[:2])
    values = {
        "mass": tonnes,
        "yaw_inertia": car.yaw_inertia / (car.mass * front_arm * rear_arm),
        "wheelbase": (front_arm + rear_arm) / 3.0,
        "track": jnp.mean(jnp.abs(car.wheel_y)) / 0.75,
        "height": car.height / 0.4,
        "power_per_mass": power / car.mass / 500.0,
        "power": power / 4e5,
        "front_share": drivetrain.front_share,
        "gears": drivetrain.num_gears / MAX_GEARS,
        "top_gear_speed": top / 80.0,
        "shift_time": drivetrain.shift_time / 0.1,
        "lock_preload": preload / (preload + 0.1 * blocking),
        "lock_ramp": jnp.sum(share * drivetrain.lock_ramp[:2]) / 0.2,
        "traction_control": car.traction_control < NO_AID,
        "downforce_front": car.downforce_area[0] / tonnes / 2.0,
        "downforce_rear": car.downforce_area[1] / tonnes / 2.0,
        "drag": car.drag_area / tonnes / 1.5,
        "friction_x_front": tyre.friction_x[0] / 1.5,
        "friction_x_rear": tyre.friction_x[3] / 1.5,
        "friction_y_front": tyre.friction_y[0] / 1.5,
        "friction_y_rear": tyre.friction_y[3] / 1.5,
        "peak_ratio": jnp.mean(tyre.peak_ratio) / 0.1,
        "peak_angle": jnp.mean(tyre.peak_angle) / 0.1,
        "load_sensitivity": -jnp.mean(tyre.friction_slope * tyre.nominal_load) / 0.1,
        "shape": jnp.mean(tyre.shape) / 1.5,
        "wet_gain": jnp.mean(tyre.wet_gain),
        "wear_rate": jnp.mean(tyre.wear_rate) / WEAR_RATE,
        "weight_front": rear_arm / (front_arm + rear_arm) / 0.5,
        "roll_share": car.roll_share / 0.5,
        "brake_bias": car.brake_bias / 0.5,
        "brake_torque": car.brake_torque / blocking / 2.0,
        "antilock": car.antilock < NO_AID,
        "steering_limit": car.steering_limit / 0.5,
        "steering_rate": car.steering_rate,
    }
    return jnp.stack([jnp.asarray(values[name], jnp.float32) for name in CAR_FEATURES])
