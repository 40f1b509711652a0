"""Surfaces by name: what roads and what lies beside them are made of.

Estimates, in the proportions that tables of road tyres have: on wet asphalt 0.6 to 0.8 of the
friction on dry, on dry earth about as much, on packed snow a third or a little more, on ice a
tenth. On loose ground a tyre peaks late and flat, since it pushes up what it slides on, and rolls
through something soft.
"""

from projects.sophy.tyre import Ground

SURFACES: dict[str, Ground] = {
    name: Ground(*numbers)  # pyright: ignore[reportArgumentType]
    for name, numbers in {
        # Factors on friction, on the slip at its peak and on Q; rolling resistance; water.
        "asphalt": (1.0, 1.0, 1.0, 0.013, 0.0),
        "damp": (0.80, 1.0, 1.0, 0.015, 0.5),
        "wet": (0.60, 1.1, 1.0, 0.015, 1.0),
        "kerb": (0.95, 1.0, 1.0, 0.015, 0.0),
        "grass": (0.45, 1.8, 0.75, 0.08, 0.0),
        "gravel_trap": (0.50, 2.5, 0.72, 0.25, 0.0),
        "dirt": (0.60, 2.0, 0.81, 0.030, 0.0),  # 0.81: Q is 1.3 for a tyre of 1.6
        "snow": (0.35, 2.0, 0.81, 0.030, 0.0),  # packed
        "deep_snow": (0.30, 2.5, 0.75, 0.25, 0.0),  # the banks beside a snow road
        "ice": (0.12, 1.5, 0.81, 0.015, 0.0),
    }.items()
}
