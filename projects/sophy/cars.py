"""The car catalogue: real cars as parameter tables, every value with its source.

A value is a number followed by the letter of its source in `SOURCES`; `e` marks an estimate.
`load_car` turns a column into a `Car`, `describe` lists it with its sources.
"""

import difflib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from core_rl.errors import UserError
from projects.sophy.car import Car
from projects.sophy.drivetrain import MAX_GEARS, NUM_POINTS, Drivetrain
from projects.sophy.tyre import Tyre

SOURCES = {
    "e": "estimate",
    "B": "BMW Motorsport press data, Z4 GT3 with 95 kg of driver, dimensions of the Z4 GTE",
    "C": "Honda press data, Civic Type R FK8 with 75 kg of driver, 62.5 % of the weight in front",
    "D": "computed from the car's tyre size, unloaded",
    "F": "FIA Formula E, data sheet of the first-generation car",
    "G": "Lot, minimum-time simulation of a GP2 car, as quoted in fastest-lap (MIT)",
    "H": "Hyundai Motorsport technical data, i20 Coupe WRC with 160 kg of crew",
    "K": "CIK-FIA KZ2 class: 175 kg with driver, 34 kW",
    "L": "Lot and Dal Bianco 2016, racing go-kart; fastest-lap XML (MIT)",
    "M": "Mazda press data, MX-5 ND 2.0 with 75 kg of driver",
    "P": "Perantoni and Limebeer 2014, Formula One car; fastest-lap XML (MIT)",
    "R": "Porsche press data, 911 GT3 (992) PDK with 75 kg of driver",
    "T": "TUM laptime-simulation (LGPL-3.0), FE_Berlin.ini and F1_Shanghai.ini",
}

MODELS = {
    "kart": "KZ2 shifter kart, 125 cm3, on the chassis of Lot and Dal Bianco 2016",
    "roadster_fr": "Mazda MX-5 ND 2.0, front engine, rear drive",
    "hatch_ff": "Honda Civic Type R FK8, front engine, front drive",
    "gt3_fr": "BMW Z4 GT3, front engine, rear drive",
    "sports_rr": "Porsche 911 GT3 (992), rear engine, rear drive",
    "rally_awd": "Hyundai i20 Coupe WRC on tarmac, all-wheel drive",
    "formula_e": "Formula E, first generation, electric, rear drive",
    "f1_2014": "Formula One car of Perantoni and Limebeer 2014, mid engine, rear drive",
    "f1_tum": "Formula One hybrid of TUM, season 2017, mid engine, rear drive, full boost",
}

# Tyre radii count as rolling radii. `spin` is a wheel's moment of inertia, `down` the downforce
# area of an axle, `mu` the peak friction at `tyre_load`; `lock` and `ramp` are the couplings'. The
# paper of f1_2014 has Q = 1.9, which leaves 16 % of the grip in a slide; with Q = 1.6 the slips at
# the peak are chosen such that the slope at zero slip, which decides the handling, is the paper's.
_TABLE = """
parameter      unit  kart   roadster_fr hatch_ff gt3_fr sports_rr rally_awd formula_e f1_2014 f1_tum
mass           kg    175K   1133M       1467C    1285B  1510R     1350H     880T      660P    733T
yaw_inertia    kgm2  25L    1400e       2200e    1750e  2050e     1900e     900e      450P    1000e
wheelbase      m     1.045L 2.31M       2.70C    2.497B 2.457R    2.57H     3.10T     3.40P   3.60T
front_arm      m     .645L  1.155e      1.013C   1.25e  1.499e    1.23e     1.906T    1.80P   1.968T
height         m     .25L   .46e        .53e     .42e   .46e      .48e      .345T     .30P    .335T
roll_share     -     .20e   .55e        .48e     .56e   .60e      .50e      .55e      .50P    .55e
track_front    m     1.055L 1.495M      1.60e    1.65e  1.60e     1.665H    1.30T     1.46P   1.60T
track_rear     m     1.20L  1.505M      1.59e    1.65e  1.55e     1.665H    1.30T     1.46P   1.60T
radius_front   m     .139L  .300D       .322D    .325e  .336D     .318e     .345T     .33P    .330T
radius_rear    m     .139L  .300D       .322D    .350e  .354D     .318e     .345T     .33P    .330T
spin_front     kgm2  .05e   .9e         1.2e     1.5e   1.4e      1.1e      1.1e      1.0G    1.0e
spin_rear      kgm2  .10L   .9e         1.2e     1.8e   1.9e      1.1e      1.4e      1.55G   1.5e
length         m     1.82e  3.915M      4.557C   4.394B 4.573R    4.10H     5.00F     5.0e    5.4e
width          m     1.40e  1.735M      1.877C   2.009B 1.852R    1.875H    1.78F     1.8e    2.0e
drag_area      m2    .70L   .68e        .75e     1.05e  .75e      1.00e     1.15T     1.35P   1.56T
down_front     m2    0L     -.05e       .02e     .85e   .25e      .25e      1.24T     1.985P  2.20T
down_rear      m2    0L     -.08e       .08e     1.35e  .50e      .55e      1.52T     2.515P  2.68T
tyre_load      kN    .56L   2.8e        3.6e     3.2e   3.7e      3.3e      2.5T      4.0P    3.0T
mu_x_front     -     1.44e  1.05e       1.10e    1.50e  1.18e     1.35e     1.22T     1.575P  1.65T
mu_y_front     -     1.50L  1.05e       1.10e    1.50e  1.18e     1.35e     1.22T     1.625P  1.85T
mu_x_rear      -     1.25e  1.05e       1.10e    1.55e  1.26e     1.35e     1.42T     1.575P  1.95T
mu_y_rear      -     1.50L  1.05e       1.10e    1.55e  1.26e     1.35e     1.42T     1.625P  2.15T
mu_slope       1/kN  -.18e  -.033e      -.03e    -.025e -.025e    -.029e    -.017T    -.0547P -.027T
peak_ratio     -     .08e   .10e        .10e     .08e   .09e      .10e      .10e      .0914e  .09e
peak_angle     deg   7e     8e          8e       5.5e   6.5e      8e        7e        7.40e   7e
peak_slope     1/kN  0e     0e          0e       0e     0e        0e        0e        -.027P  0e
shape          -     1.6e   1.5e        1.5e     1.6e   1.55e     1.4e      1.5e      1.6e    1.6e
steer_limit    deg   28e    35e         35e      25e    35e       40e       22e       20e     20e
steer_rate     deg/s 150e   45e         45e      60e    50e       90e       80e       90e     90e
throttle_lag   s     .03e   .06e        .10e     .05e   .05e      .08e      .02e      .04e    .04e
brake_lag      s     .05e   .06e        .06e     .05e   .06e      .05e      .04e      .04e    .04e
brake_torque   Nm    200L   5000e       7500e    8500e  9000e     8000e     6500e     10000P  13000e
brake_bias     -     0L     .62e        .68e     .58e   .52e      .60e      .50e      .60P    .58e
idle           rpm   3000e  900e        900e     1500e  1000e     1500e     0T        4000e   4000e
launch         rpm   9000e  4000e       3000e    5000e  6000e     4500e     0T        9000e   8500e
rev_limit      rpm   14500e 6800e       7000C    8800e  9000R     8500e     19000T    12800e  13400e
drag_torque    Nm    4e     40e         50e      90e    80e       60e       30e       80e     80e
engine_inertia kgm2  .003e  .15e        .20e     .12e   .12e      .12e      .012e     .04e    .03e
efficiency     -     .95e   .90e        .90e     .93e   .89e      .86e      .96T      .96e    .96T
shift_up       rpm   13000e 6500e       6500e    8300e  8700e     7500e     18000e    12000e  11800T
shift_down     rpm   9800e  4200e       4200e    6200e  6200e     5200e     9500e     9300e   9300e
shift_time     s     .05e   .20e        .25e     .06e   .05e      .06e      .05e      .03e    .03e
front_share    -     0L     0M          1C       0B     0R        .5e       0F        0P      0T
lock_front     Nm    0L     0M          20e      0B     0R        60e       0F        0P      0T
lock_rear      Nm    9999L  0e          0C       60e    60e       60e       50e       80e     80e
lock_centre    Nm    0L     0M          0C       0B     0R        150e      0F        0P      0T
ramp_front     -     0L     0M          .20e     0B     0R        .20e      0F        0P      0T
ramp_rear      -     0L     0e          0C       .25e   .20e      .20e      .15e      .25e    .25e
ramp_centre    -     0L     0M          0C       0B     0R        .20e      0F        0P      0T
"""

# Full-throttle torque [N m] at engine speeds [rpm], and the ratios engine over wheel speed, first
# gear first, with the final drive.
_TORQUE = {
    "kart": "3000 6e, 6000 13e, 8000 20e, 9500 25e, 11000 27.5e, 12000 27K, 13000 24.5e, 14500 19e",
    "roadster_fr": "900 140e, 2000 170e, 3000 188e, 4600 200M, 6000 187.8M, 6800 165e",
    "hatch_ff": "900 160e, 1800 300e, 2500 400C, 4500 400C, 5500 378e, 6500 345C, 7000 305e",
    "gt3_fr": "1500 280e, 3000 390e, 4000 430e, 5000 470e, 6500 490e, 8300 436B, 8800 405e",
    "sports_rr": "1000 270e, 3000 370e, 4500 430e, 6100 470R, 7500 455e, 8400 426R, 9000 385e",
    "rally_awd": "1500 180e, 2500 320e, 3500 410e, 5500 425e, 6500 416H, 7500 345e, 8500 270e",
    "formula_e": "0 150T, 12732 150T, 14000 136.4T, 16000 119.4T, 19000 100.5T",
    "f1_2014": "4000 380e, 7000 580e, 9000 660e, 10500 669e, 11000 638P, 12000 585e, 12800 520e",
    "f1_tum": "4000 360e, 7000 560e, 10500 587T, 11400 575T, 12200 506T, 13000 400e, 13400 340e",
}
_RATIOS = {
    "kart": "11.0e 8.4e 6.9e 5.85e 5.0e 4.3e",
    "roadster_fr": "14.58M 8.572M 5.832M 4.568M 3.686M 2.866M",
    "hatch_ff": "14.90C 8.695C 6.286C 4.625C 3.745C 3.017C",
    "gt3_fr": "10.7e 8.4e 6.85e 5.7e 4.75e 4.0e",
    "sports_rr": "15.71e 9.97e 7.21e 5.61e 4.65e 4.02e 3.52e",
    "rally_awd": "13.6e 10.3e 8.2e 6.8e 5.75e 5.0e",
    "formula_e": "17.86T 10.99T",
    "f1_2014": "12.5e 9.6e 7.9e 6.7e 5.8e 5.1e 4.6e 4.15e",
    "f1_tum": "25.0T 14.29T 10.53T 8.547T 6.993T 5.814T 5.263T 4.854T",
}

_UNITS = {"kN": 1e3, "1/kN": 1e-3, "deg": np.pi / 180, "deg/s": np.pi / 180, "rpm": np.pi / 30}

CAR_NAMES = tuple(MODELS)


class CarError(UserError):
    """A car was asked for that does not exist."""


class Entry(NamedTuple):
    """One line of a car's data sheet, as written in the catalogue."""

    parameter: str
    value: float
    unit: str
    source: str


def describe(name: str) -> tuple[Entry, ...]:
    """The named car's data sheet with the source of every value; raises `CarError`."""
    if name not in MODELS:
        close = difflib.get_close_matches(name, CAR_NAMES, n=1)
        hint = f" did you mean {close[0]!r}?" if close else ""
        raise CarError(f"unknown car {name!r};{hint} cars: {', '.join(CAR_NAMES)}")

    def entry(parameter: str, text: str, unit: str) -> Entry:
        return Entry(parameter, float(text[:-1]), unit, SOURCES[text[-1]])

    header, *rows = (str(line).split() for line in _TABLE.strip().splitlines())
    column = header.index(name)
    points = (point.split() for point in _TORQUE[name].split(","))
    return (
        *(entry(row[0], row[column], row[1]) for row in rows),
        *(entry(f"torque at {speed} rpm", torque, "Nm") for speed, torque in points),
        *(entry(f"ratio {i}", text, "-") for i, text in enumerate(_RATIOS[name].split(), 1)),
    )


def load_car(name: str) -> Car:
    """The named car in SI units; raises `CarError` for a name not in `CAR_NAMES`."""
    sheet = describe(name)
    value = {entry.parameter: entry.value * _UNITS.get(entry.unit, 1.0) for entry in sheet}
    curve = [(float(key.split()[2]), value[key]) for key in value if key.startswith("torque at")]
    ratios = [value[key] for key in value if key.startswith("ratio")]
    rpm, torque = np.array(curve).T
    grid = np.linspace(value["idle"], value["rev_limit"], NUM_POINTS)

    def scalar(key: str) -> Array:
        return jnp.float32(value[key])

    def four(key: str) -> Array:
        return jnp.full(4, value[key], jnp.float32)

    def axles(key: str) -> Array:
        front, rear = value[f"{key}_front"], value[f"{key}_rear"]
        return jnp.array([front, front, rear, rear], jnp.float32)

    def couplings(key: str) -> Array:
        ends = ("front", "rear", "centre")
        return jnp.array([value[f"{key}_{end}"] for end in ends], jnp.float32)

    rear_arm = value["wheelbase"] - value["front_arm"]
    drivetrain = Drivetrain(
        torque=jnp.array(np.interp(grid, rpm * np.pi / 30, torque), jnp.float32),
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
        lock_preload=couplings("lock"),
        lock_ramp=couplings("ramp"),
    )
    tyre = Tyre(
        nominal_load=four("tyre_load"),
        friction_x=axles("mu_x"),
        friction_y=axles("mu_y"),
        friction_slope=four("mu_slope"),
        peak_ratio=four("peak_ratio"),
        peak_angle=jnp.tan(four("peak_angle")),
        peak_slope=four("peak_slope"),
        shape=four("shape"),
    )
    return Car(
        mass=scalar("mass"),
        yaw_inertia=scalar("yaw_inertia"),
        wheel_x=jnp.array([value["front_arm"]] * 2 + [-rear_arm] * 2, jnp.float32),
        wheel_y=axles("track") * np.array([0.5, -0.5, 0.5, -0.5], np.float32),
        height=scalar("height"),
        roll_share=scalar("roll_share"),
        wheel_radius=axles("radius"),
        wheel_inertia=axles("spin"),
        length=scalar("length"),
        width=scalar("width"),
        drag_area=scalar("drag_area"),
        downforce_area=jnp.array([value["down_front"], value["down_rear"]], jnp.float32),
        steering_limit=scalar("steer_limit"),
        steering_rate=scalar("steer_rate"),
        throttle_lag=scalar("throttle_lag"),
        brake_lag=scalar("brake_lag"),
        brake_torque=scalar("brake_torque"),
        brake_bias=scalar("brake_bias"),
        tyre=tyre,
        drivetrain=drivetrain,
    )
