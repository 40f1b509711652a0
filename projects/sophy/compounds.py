"""Tyre compounds: nine dry ones and two for rain, as factors on the tyre a car is known with.

All numbers are estimates. Neighbours of a class lie as far apart as those of real racing tyres,
where a step in hardness is worth half a second to a second a lap. A softer tyre wears faster; a
tyre of a tamer class peaks at larger slips.

The rain tyres' `wet_gain` is such that on the `wet` surface (grip 0.60, water 1) the intermediate
reaches 0.85 and the wet tyre 0.90 of what `racing_medium` has on dry asphalt. Their dry grip is
chosen so that each is the best of all somewhere: slicks in the dry, the intermediate on a damp
road, the wet tyre on a wet one.
"""

import dataclasses
from typing import NamedTuple

from projects.sophy.tyre import Tyre


class Compound(NamedTuple):
    grip: float  # friction on dry asphalt, to compare compounds by [-]
    peak_slip: float  # slip angle at the peak of its class, to compare compounds by [deg]
    wear: float  # rate of wear relative to `racing_soft` [-]
    wet_gain: float = 0.0  # see `tyre.Tyre` [-]


COMPOUNDS = {
    "comfort_hard": Compound(0.80, 9.0, 0.25),
    "comfort_medium": Compound(0.85, 9.0, 0.30),
    "comfort_soft": Compound(0.90, 9.0, 0.35),
    "sports_hard": Compound(0.95, 8.0, 0.35),
    "sports_medium": Compound(1.00, 8.0, 0.45),
    "sports_soft": Compound(1.06, 8.0, 0.60),
    "racing_hard": Compound(1.20, 6.0, 0.45),
    "racing_medium": Compound(1.26, 6.0, 0.65),
    "racing_soft": Compound(1.32, 6.0, 1.00),
    "intermediate": Compound(1.15, 7.0, 1.00, wet_gain=0.85 * 1.26 / (0.60 * 1.15) - 1.0),
    "wet": Compound(1.00, 7.0, 1.30, wet_gain=0.90 * 1.26 / (0.60 * 1.00) - 1.0),
}

# Wear of `racing_soft` per metre slid under the nominal load. Measured: the policy `prior` drives
# gt3_fr on larkspur (as `experiments.sophy_evaluate`, but `laps.make_driver` traces `motion.wear`)
# for 20 laps of 76.8 s at a wear_rate too small to cost grip, 1e-9; per 90 s the tyres FL FR RL RR
# slide 234, 166, 221 and 183 m, within 1 % from lap to lap. The most worn one shall reach the cliff
# in 18 such laps; medium and hard then last 28 and 40. With the wear on, the same policy reaches it
# in 19.6 on soft and in 25.9 on medium.
#
# What it costs, aimed at 0.085, 0.050 and 0.028 s per lap of 90 s for soft, medium and hard: by the
# reference lap 0.048, 0.034 and 0.024 on average to the cliff (all four tyres as worn as the worst:
# 0.065, 0.044, 0.031); the policy, which drives worn tyres like new ones, loses 0.052 on medium.
WEAR_RATE = 1.0 / (18 * 234.0)  # [1/m]


def fitted(tyre: Tyre, standard: str, compound: str, wear: bool) -> Tyre:
    """A car's tyres, known on the compound `standard`, exchanged for `compound`; `standard` itself
    changes nothing but what `wear` switches on."""
    old, new = COMPOUNDS[standard], COMPOUNDS[compound]
    grip, slip = new.grip / old.grip, new.peak_slip / old.peak_slip
    zero = 0.0 * tyre.wear_rate
    return dataclasses.replace(
        tyre,
        friction_x=tyre.friction_x * grip,
        friction_y=tyre.friction_y * grip,
        peak_ratio=tyre.peak_ratio * slip,
        peak_angle=tyre.peak_angle * slip,
        wet_gain=zero + new.wet_gain,
        wear_rate=zero + (WEAR_RATE * new.wear if wear else 0.0),
    )
