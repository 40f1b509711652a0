"""The car catalogue: nine real cars as parameter tables, every value with its source, and sixty
variations of each.

A value is a number followed by the letter of its source in `SOURCES`; `e` marks an estimate.
`load_car` turns a column into a `Car`, `describe` lists it with its sources.

`gt3_fr:7` is variation 7 of `gt3_fr`: a car of another mass, power, wing, balance and, one in four,
of other driven wheels, drawn from the name alone (counter-based numbers, Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", 2011) and the archetype's place in the catalogue: new ones are
appended. What hangs together is varied together: inertia, brakes and the tyres' load with the mass,
gear ratios with the top speed.
"""

import difflib
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core_rl.errors import UserError
from projects.sophy.car import NO_AID, Car
from projects.sophy.compounds import COMPOUNDS, fitted
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
NUM_VARIATIONS = 60  # of each
CATALOGUE = tuple(
    name
    for archetype in CAR_NAMES
    for name in (archetype, *(f"{archetype}:{k}" for k in range(1, NUM_VARIATIONS + 1)))
)
_NAMES = frozenset(CATALOGUE)

# Where the engine is, and the compound on which a car has the friction of the table: estimates, of
# the kind that the car is raced or sold on, and among road cars such that a grip of 1 is a friction
# of about 1.16.
_ENGINE = {
    "kart": "mid",
    "roadster_fr": "front",
    "hatch_ff": "front",
    "gt3_fr": "front",
    "sports_rr": "rear",
    "rally_awd": "front",
    "formula_e": "mid",
    "f1_2014": "mid",
    "f1_tum": "mid",
}
STANDARD_COMPOUND = {
    "kart": "racing_soft",
    "roadster_fr": "comfort_soft",
    "hatch_ff": "sports_hard",
    "gt3_fr": "racing_medium",
    "sports_rr": "sports_soft",
    "rally_awd": "sports_soft",
    "formula_e": "racing_medium",
    "f1_2014": "racing_medium",
    "f1_tum": "racing_medium",
}
_ELECTRIC = ("formula_e",)

# Ranges of a variation's factors, and how far it moves what is no factor, to either side.
MASS, POWER, DOWNFORCE = (0.85, 1.2), (0.7, 1.4), (0.5, 1.5)
DRAG, GRIP, HEIGHT = (0.9, 1.15), (0.9, 1.1), (0.92, 1.08)
FRONT_ARM, ROLL_SHARE, BRAKE_BIAS = 0.03, 0.05, 0.03  # the first in wheelbases
OTHER_LAYOUT = 0.25  # chance of other driven wheels
# Another layout takes the couplings of the named car that has it.
_LAYOUTS = {"front": (1.0, "hatch_ff"), "rear": (0.0, "gt3_fr"), "all": (0.4, "rally_awd")}
# Nobody drives the front wheels by an engine behind the driver, nor a kart or single-seater by
# others than the rear ones.
_ALLOWED = {"front": ("front", "rear", "all"), "mid": ("rear",), "rear": ("rear", "all")}

FUEL_EFFICIENCY = 0.33  # of the engine [-]
HEATING_VALUE = 43e6  # of petrol [J/kg]
AID_SLIP = 1.0  # where the aids begin, in slips at the peak [-]


class CarError(UserError):
    """A car was asked for that does not exist or cannot be had like that."""


class Entry(NamedTuple):
    """One line of a car's data sheet, as written in the catalogue."""

    parameter: str
    value: float
    unit: str
    source: str


def _hint(word: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, allowed, n=1)
    return f" did you mean {close[0]!r}?" if close else ""


def _parse(name: str) -> tuple[str, int]:
    """Archetype and number of a variation, 0 for the archetype itself."""
    archetype, _, number = name.partition(":")
    if archetype not in MODELS:
        hint = _hint(archetype, CAR_NAMES)
        raise CarError(f"unknown car {name!r};{hint} cars: {', '.join(CAR_NAMES)}")
    if name not in _NAMES:
        raise CarError(
            f"unknown car {name!r}; {archetype} has the variations "
            f"{archetype}:1 to {archetype}:{NUM_VARIATIONS}"
        )
    return archetype, int(number or 0)


@functools.cache
def describe(name: str) -> tuple[Entry, ...]:
    """The named car's data sheet with the source of every value; raises `CarError`."""
    archetype, number = _parse(name)
    if number:
        return _variation(archetype, number)

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


def _drives(front_share: float) -> str:
    return "front" if front_share == 1.0 else "rear" if front_share == 0.0 else "all"


def _variation(archetype: str, number: int) -> tuple[Entry, ...]:
    """The data sheet of a variation, in the archetype's order."""
    sheet = describe(archetype)
    value = {entry.parameter: entry.value for entry in sheet}
    random = np.random.Generator(np.random.Philox(key=[CAR_NAMES.index(archetype), number]))
    # All numbers are drawn for every car, so that none depends on what became of another.
    factors = (random.uniform(*bounds) for bounds in (MASS, POWER, DOWNFORCE, DRAG, GRIP, HEIGHT))
    mass, power, downforce, drag, grip, height = factors
    front_arm, roll_share, brake_bias = random.uniform(-1.0, 1.0, 3)
    chance, choice = random.uniform(size=2)

    factor = {
        **dict.fromkeys(("mass", "yaw_inertia", "tyre_load"), mass),
        # Larger tyres for a heavier car: the same friction at the same share of their load.
        **dict.fromkeys(("mu_slope", "peak_slope"), 1.0 / mass),
        **dict.fromkeys(("mu_x_front", "mu_y_front", "mu_x_rear", "mu_y_rear"), grip),
        **dict.fromkeys(("down_front", "down_rear"), downforce),
        "brake_torque": mass * grip,
        "drag_area": drag,
        "height": height,
    }
    # Where power meets drag: the cube of the top speed grows with one and falls with the other.
    top_speed = np.cbrt(power / drag)
    for key in value:
        if key.startswith("torque at"):
            factor[key] = power
        elif key.startswith("ratio"):
            factor[key] = 1.0 / top_speed
    changed = {key: value[key] * times for key, times in factor.items()}
    changed["front_arm"] = value["front_arm"] + FRONT_ARM * front_arm * value["wheelbase"]
    changed["roll_share"] = value["roll_share"] + ROLL_SHARE * roll_share
    if value["brake_bias"] > 0.0:  # a kart has no front brakes
        changed["brake_bias"] = value["brake_bias"] + BRAKE_BIAS * brake_bias
    driven = _drives(value["front_share"])
    others = [layout for layout in _ALLOWED[_ENGINE[archetype]] if layout != driven]
    if others and chance < OTHER_LAYOUT:
        share, model = _LAYOUTS[others[int(choice * len(others))]]
        couplings = ("lock_", "ramp_")
        changed |= {
            entry.parameter: entry.value
            for entry in describe(model)
            if entry.parameter.startswith(couplings)
        }
        changed["front_share"] = share
    source = f"variation {number} of {archetype}"
    return tuple(
        entry._replace(value=float(changed[entry.parameter]), source=source)
        if entry.parameter in changed
        else entry
        for entry in sheet
    )


def layout_of(name: str) -> str:
    """FF, FR, MR, RR or AWD: which end the engine is in and which wheels it drives."""
    archetype, _ = _parse(name)
    share = next(entry.value for entry in describe(name) if entry.parameter == "front_share")
    if _drives(share) == "rear":
        return {"front": "FR", "mid": "MR", "rear": "RR"}[_ENGINE[archetype]]
    return "FF" if _drives(share) == "front" else "AWD"


GROUPS: dict[str, tuple[str, ...]] = {
    layout: tuple(name for name in CATALOGUE if layout_of(name) == layout)
    for layout in ("FF", "FR", "MR", "RR", "AWD")
}


def load_car(
    name: str,
    compound: str = "",
    *,
    wear: bool = False,
    fuel: float = 0.0,
    traction_control: bool = False,
    antilock: bool = False,
) -> Car:
    """The named car in SI units; raises `CarError` for a name that is not in `CATALOGUE`.

    Args:
      compound: tyres of `COMPOUNDS`; empty: the car's own.
      wear: whether tyres wear.
      fuel: at the start [kg]; with 0 nothing is burnt.
      traction_control, antilock: driving aids.
    """
    car = _build(name, compound, wear, fuel, traction_control, antilock)
    return jax.tree.map(jnp.asarray, car)


def load_cars(
    names: Sequence[str],
    compound: str = "",
    *,
    wear: bool = False,
    fuel: float = 0.0,
    traction_control: bool = False,
    antilock: bool = False,
) -> Car:
    """The named cars as one `Car` of leaves [K, ...], each as `load_car` gives it."""
    if not names:
        raise CarError("no car was named")
    cars = [_build(name, compound, wear, fuel, traction_control, antilock) for name in names]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *cars)


def _build(
    name: str, compound: str, wear: bool, fuel: float, traction_control: bool, antilock: bool
) -> Car:
    """A `Car` of numpy's arrays."""
    archetype, _ = _parse(name)
    standard = STANDARD_COMPOUND[archetype]
    compound = compound or standard
    if compound not in COMPOUNDS:
        hint = _hint(compound, tuple(COMPOUNDS))
        raise CarError(f"unknown compound {compound!r};{hint} compounds: {', '.join(COMPOUNDS)}")
    if not 0.0 <= fuel < np.inf:
        raise CarError(f"fuel must be at least 0 kg, got {fuel}")
    if fuel > 0.0 and archetype in _ELECTRIC:
        raise CarError(f"{name} is electric: its fuel must be 0 kg, got {fuel}")

    value = {entry.parameter: entry.value * _UNITS.get(entry.unit, 1.0) for entry in describe(name)}
    curve = [(float(key.split()[2]), value[key]) for key in value if key.startswith("torque at")]
    ratios = [value[key] for key in value if key.startswith("ratio")]
    rpm, torque = np.array(curve).T
    grid = np.linspace(value["idle"], value["rev_limit"], NUM_POINTS)
    work_per_kg = FUEL_EFFICIENCY * HEATING_VALUE * value["efficiency"]

    # Any: numpy's arrays, which `Car` holds only until they are converted.
    def array(values: Any) -> Any:
        return np.asarray(values, np.float32)

    def scalar(key: str) -> Any:
        return array(value[key])

    def four(key: str) -> Any:
        return array([value[key]] * 4)

    def axles(key: str) -> Any:
        front, rear = value[f"{key}_front"], value[f"{key}_rear"]
        return array([front, front, rear, rear])

    def couplings(key: str) -> Any:
        return array([value[f"{key}_{end}"] for end in ("front", "rear", "centre")])

    rear_arm = value["wheelbase"] - value["front_arm"]
    drivetrain = Drivetrain(
        torque=array(np.interp(grid, rpm * np.pi / 30, torque)),
        idle=scalar("idle"),
        launch=scalar("launch"),
        rev_limit=scalar("rev_limit"),
        drag_torque=scalar("drag_torque"),
        inertia=scalar("engine_inertia"),
        ratios=array(ratios + ratios[-1:] * (MAX_GEARS - len(ratios))),
        num_gears=array(len(ratios)),
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
        peak_angle=array([np.tan(value["peak_angle"])] * 4),
        peak_slope=four("peak_slope"),
        shape=four("shape"),
        wet_gain=array(np.zeros(4)),
        wear_rate=array(np.zeros(4)),
    )
    return Car(
        mass=scalar("mass"),
        yaw_inertia=scalar("yaw_inertia"),
        wheel_x=array([value["front_arm"]] * 2 + [-rear_arm] * 2),
        wheel_y=axles("track") * np.array([0.5, -0.5, 0.5, -0.5], np.float32),
        height=scalar("height"),
        roll_share=scalar("roll_share"),
        wheel_radius=axles("radius"),
        wheel_inertia=axles("spin"),
        length=scalar("length"),
        width=scalar("width"),
        drag_area=scalar("drag_area"),
        downforce_area=array([value["down_front"], value["down_rear"]]),
        steering_limit=scalar("steer_limit"),
        steering_rate=scalar("steer_rate"),
        throttle_lag=scalar("throttle_lag"),
        brake_lag=scalar("brake_lag"),
        brake_torque=scalar("brake_torque"),
        brake_bias=scalar("brake_bias"),
        fuel_load=array(fuel),
        fuel_flow=array(1.0 / work_per_kg if fuel > 0.0 else 0.0),
        traction_control=array(AID_SLIP if traction_control else NO_AID),
        antilock=array(AID_SLIP if antilock else NO_AID),
        tyre=fitted(tyre, standard, compound, wear),
        drivetrain=drivetrain,
    )
