"""The car catalogue: real cars as parameter tables, every value with its source.

A value is a number followed by the letter of its source in `SOURCES`; `e` marks an estimate.
`load_car` turns a column into a `Car`, `describe` lists it with its sources.
"""

import difflib

import jax.numpy as jnp
import numpy as np

from projects.sophy.car import Car
from projects.sophy.drivetrain import MAX_GEARS, NUM_POINTS, Drivetrain
from projects.sophy.tyre import Tyre

SOURCES = {
    "e": "estimate",
    "B": "BMW Motorsport, Z4 GT3 data sheet",
}

_TABLE = """
parameter             unit     gt3_fr
mass                  kg       1285B
yaw_inertia           kgm2     1750e
wheelbase             m        2.497B
front_arm             m        1.25e
height                m        .42e
roll_share            -        .56e
track_front           m        1.65e
track_rear            m        1.65e
radius_front          m        .33e
radius_rear           m        .35e
wheel_inertia_front   kgm2     1.5e
wheel_inertia_rear    kgm2     1.8e
length                m        4.39B
width                 m        2.01B
drag_area             m2       1.05e
downforce_front       m2       .85e
downforce_rear        m2       1.35e
tyre_load             kN       3.2e
friction_x_front      -        1.50e
friction_y_front      -        1.50e
friction_x_rear       -        1.55e
friction_y_rear       -        1.55e
friction_slope        1/kN     -.025e
peak_ratio            -        .08e
peak_angle            deg      5.5e
peak_slope            1/kN     0e
shape                 -        1.6e
steering_limit        deg      22e
steering_rate         deg/s    60e
throttle_lag          s        .05e
brake_lag             s        .05e
brake_torque          Nm       8500e
brake_bias            -        .58e
idle                  rpm      1500e
launch                rpm      5000e
rev_limit             rpm      8800e
drag_torque           Nm       90e
engine_inertia        kgm2     .12e
efficiency            -        .93e
shift_up              rpm      8300e
shift_down            rpm      6400e
shift_time            s        .06e
front_share           -        0B
lock_front            Nm       0B
ramp_front            -        0B
lock_rear             Nm       60e
ramp_rear             -        .25e
lock_centre           Nm       0B
ramp_centre           -        0B
"""

# Full-throttle torque as (rpm, N m) pairs and the ratios engine over wheel, each with its source.
_TORQUE = {
    "gt3_fr": "1500 280, 3000 390, 4000 430, 5000 470, 6500 490, 7500 470, 8300 436, 8800 405 e",
}
_RATIOS = {
    "gt3_fr": "10.7 8.4 6.85 5.7 4.75 4.0 e",
}

_UNITS = {"kN": 1e3, "1/kN": 1e-3, "deg": np.pi / 180, "deg/s": np.pi / 180, "rpm": np.pi / 30}


def _parse() -> dict[str, dict[str, tuple[float, str, str]]]:
    """Per car, per parameter: (value as written, unit, source letter)."""
    header, *rows = (line.split() for line in _TABLE.strip().splitlines())
    names = header[2:]
    return {
        name: {row[0]: (float(row[2 + i][:-1]), row[1], row[2 + i][-1]) for row in rows}
        for i, name in enumerate(names)
    }


_CATALOGUE = _parse()
CAR_NAMES = tuple(_CATALOGUE)


class CarError(ValueError):
    """A car was asked for that does not exist."""


def _check(name: str) -> None:
    if name not in _CATALOGUE:
        close = difflib.get_close_matches(name, CAR_NAMES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise CarError(f"unknown car {name!r}.{hint} Cars: {', '.join(CAR_NAMES)}")


def load_car(name: str) -> Car:
    """The named car in SI units; raises `CarError` for a name not in `CAR_NAMES`."""
    _check(name)
    value = {
        key: number * _UNITS.get(unit, 1.0) for key, (number, unit, _) in _CATALOGUE[name].items()
    }

    def axles(front: str, rear: str) -> jnp.ndarray:
        return jnp.array([value[front]] * 2 + [value[rear]] * 2, jnp.float32)

    def four(key: str) -> jnp.ndarray:
        return jnp.full(4, value[key], jnp.float32)

    def scalar(key: str) -> jnp.ndarray:
        return jnp.float32(value[key])

    def three(key: str) -> jnp.ndarray:
        return jnp.array(
            [value[f"{key}_{end}"] for end in ("front", "rear", "centre")], jnp.float32
        )

    points = np.array([pair.split() for pair in _TORQUE[name][:-1].split(",")], float)
    grid = np.linspace(value["idle"], value["rev_limit"], NUM_POINTS)
    ratios = [float(ratio) for ratio in _RATIOS[name].split()[:-1]]
    front, rear = value["front_arm"], value["front_arm"] - value["wheelbase"]
    left, right = 0.5 * value["track_front"], 0.5 * value["track_rear"]
    drivetrain = Drivetrain(
        torque=jnp.array(np.interp(grid, points[:, 0] * np.pi / 30, points[:, 1]), jnp.float32),
        idle=scalar("idle"),
        launch=scalar("launch"),
        rev_limit=scalar("rev_limit"),
        drag_torque=scalar("drag_torque"),
        inertia=scalar("engine_inertia"),
        ratios=jnp.array(ratios + ratios[-1:] * (MAX_GEARS - len(ratios)), jnp.float32),
        num_gears=jnp.float32(len(ratios)),
        efficiency=scalar("efficiency"),
        shift_up=scalar("shift_up"),
        shift_down=scalar("shift_down"),
        shift_time=scalar("shift_time"),
        front_share=scalar("front_share"),
        lock_preload=three("lock"),
        lock_ramp=three("ramp"),
    )
    return Car(
        mass=scalar("mass"),
        yaw_inertia=scalar("yaw_inertia"),
        wheel_x=jnp.array([front, front, rear, rear], jnp.float32),
        wheel_y=jnp.array([left, -left, right, -right], jnp.float32),
        height=scalar("height"),
        roll_share=scalar("roll_share"),
        wheel_radius=axles("radius_front", "radius_rear"),
        wheel_inertia=axles("wheel_inertia_front", "wheel_inertia_rear"),
        length=scalar("length"),
        width=scalar("width"),
        drag_area=scalar("drag_area"),
        downforce_area=jnp.array([value["downforce_front"], value["downforce_rear"]], jnp.float32),
        steering_limit=scalar("steering_limit"),
        steering_rate=scalar("steering_rate"),
        throttle_lag=scalar("throttle_lag"),
        brake_lag=scalar("brake_lag"),
        brake_torque=scalar("brake_torque"),
        brake_bias=scalar("brake_bias"),
        tyre=Tyre(
            nominal_load=four("tyre_load"),
            friction_x=axles("friction_x_front", "friction_x_rear"),
            friction_y=axles("friction_y_front", "friction_y_rear"),
            friction_slope=four("friction_slope"),
            peak_ratio=four("peak_ratio"),
            peak_angle=jnp.tan(four("peak_angle")),
            peak_slope=four("peak_slope"),
            shape=four("shape"),
        ),
        drivetrain=drivetrain,
    )
