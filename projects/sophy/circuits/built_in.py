"""The built-in circuits: our own designs, none a copy of a real place."""

from typing import NamedTuple

from projects.sophy.circuits.outline import Corner


class Design(NamedTuple):
    """A circuit as drawn; everything in metres."""

    character: str
    corners: list[Corner]
    runoff: float


def _design(
    character: str, *corners: tuple[float, ...], width: float, runoff: float = 5.0
) -> Design:
    """Corners are (x, y, radius) or (x, y, radius, width); the start is before the first one."""
    return Design(character, [Corner(*(*corner, width)[:4]) for corner in corners], runoff)


DESIGNS: dict[str, Design] = {
    "larkspur": _design(
        "varied and flowing: a straight, esses, one hairpin, a chicane, fast sweepers",
        (470, 40, 40, 14),
        (410, -120, 60),
        (560, -230, 65),
        (535, -375, 90),
        (640, -520, 80),
        (480, -650, 110),
        (290, -570, 130),
        (10, -655, 15, 13),
        (215, -405, 60),
        (-60, -325, 24),
        (-85, -265, 24),
        (-350, -235, 75),
        (-440, -80, 70),
        (-290, 10, 100, 13),
        width=12,
    ),
    "saltmarket": _design(
        "tight street circuit between walls: right angles, kinks, two hairpins",
        (250, 0, 14),
        (255, -120, 13),
        (370, -125, 16),
        (400, -200, 45),
        (380, -290, 12),
        (150, -265, 30),
        (120, -330, 26),
        (-40, -335, 20),
        (-60, -440, 11, 10),
        (-150, -300, 40),
        (-330, -290, 12, 10),
        (-200, -190, 18),
        (-215, -100, 22),
        (-330, -70, 13),
        (-320, 20, 14),
        (-130, 25, 120),
        width=9,
        runoff=0.5,
    ),
    "highmoor": _design(
        "fast sweepers: hardly a straight and hardly a brake",
        (140, 120, 350, 14),
        (660, 40, 190, 14),
        (900, -290, 200),
        (740, -620, 190),
        (960, -960, 120),
        (520, -1090, 210),
        (230, -840, 200),
        (-200, -980, 110),
        (-450, -640, 200),
        (-220, -340, 150),
        (-420, -10, 105),
        width=13,
        runoff=6,
    ),
    "ironvale": _design(
        "long straights broken by chicanes: power, drag and brakes",
        (820, 20, 18, 14),
        (845, -32, 18),
        (1080, -40, 150),
        (1330, -160, 130),
        (1350, -400, 22),
        (1300, -425, 22),
        (1260, -680, 48),
        (560, -560, 20),
        (520, -612, 20),
        (-60, -600, 200),
        (-400, -480, 34),
        (-300, -300, 60),
        (-530, -150, 70),
        (-500, 20, 55),
        width=11,
    ),
    "copperbowl": _design(
        "tri-oval: four corners and a kink, left turns only",
        (520, 20, 150),
        (520, 430, 150),
        (-420, 430, 150),
        (-420, 20, 150),
        (50, -50, 400),
        width=15,
        runoff=2,
    ),
    "goatstep": _design(
        "hairpins one above the other, joined by esses",
        (350, 10, 13, 11),
        (-60, 110, 13),
        (340, 200, 13),
        (190, 270, 22),
        (270, 360, 26),
        (170, 440, 26),
        (235, 560, 30),
        (80, 660, 45),
        (-120, 600, 70),
        (-330, 640, 14),
        (-110, 430, 60),
        (-310, 300, 13),
        (-110, 180, 45),
        (-370, 60, 24),
        (-270, -30, 40),
        width=10,
        runoff=3,
    ),
    "ribbon": _design(
        "figure of eight that crosses itself: every corner both ways round",
        (-440, 20, 90),
        (-330, -190, 75, 13),
        (-120, -190, 120),
        (60, 60, 220),
        (300, 250, 55),
        (430, 130, 45),
        (560, 160, 40),
        (610, -90, 75),
        (420, -190, 60),
        (280, -110, 80),
        (-130, 150, 200),
        (-290, 310, 85),
        (-500, 280, 70),
        width=12,
    ),
}
