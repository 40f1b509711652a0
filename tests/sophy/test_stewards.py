"""The stewards' rules on contacts made by hand: every case also swapped, mirrored and both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy import stewards
from projects.sophy.stewards import (
    CHAIN,
    MEMORY,
    REAR_END,
    REASONS,
    Bodies,
    Situation,
    Trace,
    Verdicts,
    charge,
    clean_record,
    foreseen,
    judge,
    severity,
)

LENGTH, WIDTH = 4.4, 2.0
CLOCK = 0.1 * np.arange(1 - MEMORY, 1)  # [s], the contact at 0


@dataclasses.dataclass(frozen=True)
class Past:
    """Two seconds of a car, as it drove: constant but for what is told."""

    behind: float = 0.0  # how far behind the place of the contact it is at the end [m]
    offset: float = 0.0  # left of the centre line at the end [m]
    speed: float = 40.0  # [m/s]
    across: float = 0.0  # to the left, in the last second [m/s]
    braking: float = 0.0  # in the last half second [m/s^2]
    off: tuple[float, float] | None = None  # times between which it was off course [s]
    slowed: float = 0.0  # how much faster it was two seconds before [m/s]
    angle: float = 0.0  # from the course's direction to its heading, left positive [rad]

    def trace(self) -> list[np.ndarray]:
        last = np.clip(CLOCK + 1.0, 0.0, None)
        speed = self.speed - self.slowed * CLOCK / 2.0
        s = self.speed * CLOCK - self.slowed * CLOCK**2 / 4.0 - self.behind
        braking = self.braking * (CLOCK > -0.55)
        off = np.zeros(MEMORY)
        if self.off:
            off = ((CLOCK >= self.off[0] - 1e-6) & (CLOCK <= self.off[1] + 1e-6)).astype(float)
        across = self.across * (last > 0.0)
        offset = self.offset + self.across * (last - 1.0)
        axis = np.full(MEMORY, np.sin(self.angle)), np.full(MEMORY, np.cos(self.angle))
        return [s, offset, speed, across, braking, off, *axis]


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    first: Past
    second: Past
    normal: tuple[float, float]  # from the first to the second, along and to the left
    fault: str  # first, second, both or nobody
    reason: str
    curvature: float = 0.0  # left positive [1/m]
    need: tuple[float, float] = (0.0, 0.0)  # deceleration that the lap asks for [m/s^2]
    chained: bool = False


AHEAD, LEFT, RIGHT = (1.0, 0.0), (0.0, 1.0), (0.0, -1.0)
NOSE_TO_TAIL = LENGTH
BESIDE = WIDTH

CASES = [
    # Rear ends.
    Case("drives into a slower car", Past(NOSE_TO_TAIL, speed=45), Past(), AHEAD, "first", "rear"),
    Case(
        "drives into a car that brakes for the corner",
        Past(NOSE_TO_TAIL, speed=45),
        Past(braking=12.0),
        AHEAD,
        "first",
        "rear",
        need=(0.0, 12.0),
    ),
    Case(
        "is brake tested",
        Past(NOSE_TO_TAIL, speed=42),
        Past(braking=12.0),
        AHEAD,
        "second",
        "brake test",
    ),
    Case(
        "brakes a little on a straight",
        Past(NOSE_TO_TAIL, speed=42),
        Past(braking=2.5),
        AHEAD,
        "first",
        "rear",
    ),
    Case(
        "brakes harder than the corner asks for",
        Past(NOSE_TO_TAIL, speed=42),
        Past(braking=12.0),
        AHEAD,
        "second",
        "brake test",
        need=(0.0, 8.0),
    ),
    Case(
        "is blocked: the car ahead swerves in front",
        Past(NOSE_TO_TAIL, offset=2.0, speed=46),
        Past(offset=1.8, across=1.5),
        AHEAD,
        "second",
        "blocking",
    ),
    Case(
        "moves a little, a third of a width",
        Past(NOSE_TO_TAIL, offset=2.0, speed=46),
        Past(offset=1.8, across=0.7),
        AHEAD,
        "first",
        "rear",
    ),
    Case(
        "moves out of the way, and is hit all the same",
        Past(NOSE_TO_TAIL, offset=0.0, speed=46),
        Past(offset=1.5, across=1.5),
        AHEAD,
        "first",
        "rear",
    ),
    Case(
        "moves across while the one behind does not close",
        Past(NOSE_TO_TAIL, offset=2.0, speed=39),
        Past(offset=1.8, across=1.5, speed=40),
        AHEAD,
        "first",
        "rear",
    ),
    Case(
        "blocks and brakes: blocking counts",
        Past(NOSE_TO_TAIL, offset=2.0, speed=46),
        Past(offset=1.8, across=1.5, braking=12.0),
        AHEAD,
        "second",
        "blocking",
    ),
    Case(
        "a bump at an angle within 45 degrees",
        Past(NOSE_TO_TAIL, offset=-1.0, speed=45),
        Past(),
        (0.8, 0.6),
        "first",
        "rear",
    ),
    Case(
        "a bump along the course by a car that slides across it is none into a tail",
        Past(NOSE_TO_TAIL, offset=0.5, speed=45, angle=1.2, across=1.0),
        Past(speed=40, angle=1.2),
        AHEAD,
        "nobody",
        "straight",
    ),
    Case(
        "hits the side of a car that has turned",
        Past(NOSE_TO_TAIL, speed=45),
        Past(offset=0.5, speed=40, angle=1.2, across=-1.0),
        AHEAD,
        "second",
        "straight",
    ),
    Case(
        "a rear end of two cars that are both turned like the road's edge",
        Past(NOSE_TO_TAIL, speed=45, angle=0.9),
        Past(angle=0.9),
        (0.6, 0.8),
        "first",
        "rear",
    ),
    Case(
        "a rear end in the middle of a corner",
        Past(NOSE_TO_TAIL, speed=32),
        Past(speed=28),
        AHEAD,
        "first",
        "rear",
        curvature=0.01,
    ),
    # Rejoining and standing.
    Case(
        "rejoins into the path of another",
        Past(offset=-3.0, across=2.0, speed=25, off=(-1.5, -0.5)),
        Past(offset=-1.0, speed=40),
        LEFT,
        "first",
        "rejoining",
    ),
    Case(
        "is hit from behind after rejoining",
        Past(NOSE_TO_TAIL, speed=45),
        Past(speed=20, off=(-1.9, -1.0)),
        AHEAD,
        "second",
        "rejoining",
    ),
    Case(
        "was off just two seconds ago",
        Past(NOSE_TO_TAIL, speed=45),
        Past(speed=40, off=(-1.9, -1.9)),
        AHEAD,
        "second",
        "rejoining",
    ),
    Case(
        "stands on the road behind a bend: it has been out of sight",
        Past(NOSE_TO_TAIL, speed=60),
        Past(speed=0.0),
        AHEAD,
        "second",
        "rejoining",
    ),
    Case(
        "stands in full view of one who does not slow down",
        Past(NOSE_TO_TAIL, speed=40),
        Past(speed=0.0),
        AHEAD,
        "both",
        "rejoining",
    ),
    Case(
        "stands in full view of one who slows down",
        Past(NOSE_TO_TAIL, speed=20, slowed=20.0),
        Past(speed=0.0),
        AHEAD,
        "second",
        "rejoining",
    ),
    Case(
        "both were off course: judged as if none was",
        Past(NOSE_TO_TAIL, speed=45, off=(-1.5, -1.0)),
        Past(off=(-1.8, -1.2)),
        AHEAD,
        "first",
        "rear",
    ),
    # Corners, to the left; the inside is the left.
    Case(
        "dives inside from far behind",
        Past(0.5, offset=1.0, speed=46),
        Past(offset=-1.0, speed=34),
        RIGHT,
        "first",
        "corner",
        curvature=0.01,
    ),
    Case(
        "is alongside inside when the other turns in",
        Past(0.0, offset=1.0, speed=36),
        Past(offset=-1.0, speed=34, across=1.2),
        RIGHT,
        "second",
        "corner",
        curvature=0.01,
    ),
    Case(
        "is alongside inside and runs wide into the other",
        Past(0.0, offset=1.0, speed=36, across=-1.2),
        Past(offset=-1.0, speed=34),
        RIGHT,
        "first",
        "corner",
        curvature=0.01,
    ),
    Case(
        "both lean on each other alike inside",
        Past(0.0, offset=1.0, speed=36, across=-0.8),
        Past(offset=-1.0, speed=34, across=0.9),
        RIGHT,
        "nobody",
        "corner",
        curvature=0.01,
    ),
    Case(
        "is alongside inside with wheels on the grass",
        Past(0.0, offset=4.0, speed=36, off=(-0.2, 0.0)),
        Past(offset=2.0, speed=34, across=1.2, off=(-1.9, -1.8)),
        RIGHT,
        "first",
        "corner",
        curvature=0.01,
    ),
    Case(
        "attacks outside, its axle ahead, and is squeezed",
        Past(-1.5, offset=-1.0, speed=40),
        Past(0.0, offset=1.0, speed=36, across=-1.2),
        LEFT,
        "second",
        "corner",
        curvature=0.01,
    ),
    Case(
        "attacks outside, not ahead, and is squeezed",
        Past(0.8, offset=-1.0, speed=37),
        Past(0.0, offset=1.0, speed=36, across=-1.2),
        LEFT,
        "first",
        "corner",
        curvature=0.01,
    ),
    Case(
        "attacks outside, ahead, and cuts in",
        Past(-1.5, offset=-1.0, speed=40, across=1.2),
        Past(0.0, offset=1.0, speed=36),
        LEFT,
        "first",
        "corner",
        curvature=0.01,
    ),
    Case(
        "the same contact before a corner to the right",
        Past(0.0, offset=-1.0, speed=36),
        Past(offset=1.0, speed=34, across=-1.2),
        LEFT,
        "second",
        "corner",
        curvature=-0.01,
    ),
    # Straights.
    Case(
        "moves over into a car alongside",
        Past(offset=1.0, across=-1.0),
        Past(offset=-1.0),
        RIGHT,
        "first",
        "straight",
    ),
    Case(
        "both move towards each other alike",
        Past(offset=1.0, across=-0.8),
        Past(offset=-1.0, across=0.7),
        RIGHT,
        "nobody",
        "straight",
    ),
    Case(
        "one moves twice as fast",
        Past(offset=1.0, across=-0.5),
        Past(offset=-1.0, across=1.0),
        RIGHT,
        "second",
        "straight",
    ),
    Case(
        "they rub, driving straight",
        Past(offset=1.0, across=-0.1),
        Past(offset=-1.0),
        RIGHT,
        "nobody",
        "straight",
    ),
    Case(
        "moves away and is followed",
        Past(offset=1.0, across=0.8),
        Past(offset=-1.0, across=1.2),
        RIGHT,
        "second",
        "straight",
    ),
    Case(
        "a gentle bend is a straight",
        Past(1.0, offset=1.0),
        Past(offset=-1.0, across=1.2),
        RIGHT,
        "second",
        "straight",
        curvature=0.002,
    ),
    # Chains.
    Case(
        "is pushed into the car ahead by a third",
        Past(NOSE_TO_TAIL, speed=45),
        Past(),
        AHEAD,
        "nobody",
        "chain",
        chained=True,
    ),
]

BODIES = Bodies(*(jnp.full(2, value) for value in (LENGTH, WIDTH, 1.25, 2.2)))
FAULTS = {
    (True, False): "first",
    (False, True): "second",
    (True, True): "both",
    (False, False): "nobody",
}
judged, told = jax.jit(judge), jax.jit(foreseen)


def trace_of(case: Case, swapped: bool, mirrored: bool, laps: int = 0) -> Trace:
    pasts = [case.first.trace(), case.second.trace()]
    trace = [np.stack(columns, 1) for columns in zip(*pasts[:: 1 - 2 * swapped], strict=True)]
    trace[0][:, 1] += 3000.0 * laps
    if mirrored:
        trace[1], trace[3], trace[6] = -trace[1], -trace[3], -trace[6]
    return Trace(*(jnp.asarray(leaf, jnp.float32) for leaf in trace))


def situation(case: Case, swapped: bool, mirrored: bool) -> Situation:
    curvature = -case.curvature if mirrored else case.curvature
    need = case.need[:: 1 - 2 * swapped]
    return Situation(jnp.full(2, curvature, jnp.float32), jnp.asarray(need, jnp.float32))


def verdict(case: Case, swapped: bool, mirrored: bool, laps: int = 0) -> tuple[str, str]:
    normal = np.array(case.normal) * (1 - 2 * swapped)
    if mirrored:
        normal = normal * [1.0, -1.0]
    upper = np.triu(np.ones((2, 2), bool), 1)
    result = judged(
        trace_of(case, swapped, mirrored, laps),
        BODIES,
        jnp.asarray(upper),
        jnp.asarray(np.where(upper[..., None], normal, 0.0), jnp.float32),
        situation(case, swapped, mirrored),
        jnp.asarray(upper & case.chained),
        jnp.float32(3000.0),
    )
    fault = FAULTS[bool(result.first[0, 1]), bool(result.second[0, 1])]
    if swapped:
        fault = {"first": "second", "second": "first"}.get(fault, fault)
    return fault, REASONS[int(result.reason[0, 1])]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_verdicts(case):
    found = {verdict(case, swapped, mirrored) for swapped in (0, 1) for mirrored in (0, 1)}
    assert len(found) == 1, "swapped or mirrored, the verdict is another"
    fault, reason = found.pop()
    assert fault == case.fault
    assert reason.startswith(case.reason)


@pytest.mark.parametrize(
    # Neither contacts before nor corners that meet are foreseen.
    "case",
    [case for case in CASES if not case.chained and case.normal in (AHEAD, LEFT, RIGHT)],
    ids=lambda case: case.name.replace(" ", "_"),
)
def test_drivers_can_be_told_the_verdict_before_the_contact(case):
    for swapped in (0, 1):
        trace, where = trace_of(case, bool(swapped), True, laps=1), situation(case, swapped, True)
        at_fault = np.asarray(told(trace, BODIES, where, jnp.float32(3000.0)))
        first, second = (1, 0) if swapped else (0, 1)
        found = FAULTS[bool(at_fault[first, second]), bool(at_fault[second, first])]
        assert found == case.fault


def test_a_car_that_is_laps_behind_is_judged_alike():
    for case in CASES[::5]:
        assert verdict(case, False, False, laps=2) == verdict(case, False, False)


def test_there_are_at_least_thirty_cases_and_every_reason_occurs():
    assert len(CASES) >= 30
    reasons = {verdict(case, False, False)[1] for case in CASES}
    assert reasons == set(REASONS[1:])


def test_without_a_contact_there_is_no_verdict():
    trace = Trace(*(jnp.zeros((MEMORY, 2)) for _ in Trace._fields))
    result = judged(
        trace,
        BODIES,
        jnp.zeros((2, 2), bool),
        jnp.zeros((2, 2, 2)),
        Situation(jnp.zeros(2), jnp.zeros(2)),
        jnp.zeros((2, 2), bool),
        jnp.float32(3000.0),
    )
    assert not bool(result.first.any() | result.second.any())
    assert (np.asarray(result.reason) == stewards.NONE).all()


def test_severity_is_that_of_the_lighter_car():
    # 1000 N s change a car of 1000 kg by 1 m/s, one of 2500 kg by 0.4 m/s.
    assert int(severity(jnp.float32(1000.0), jnp.float32(1000.0), jnp.float32(2500.0))) == 1
    assert int(severity(jnp.float32(1000.0), jnp.float32(2500.0), jnp.float32(2500.0))) == 0
    assert int(severity(jnp.float32(9000.0), jnp.float32(1000.0), jnp.float32(2500.0))) == 2


def test_who_is_pushed_into_a_third_car_in_the_same_step_is_not_charged():
    # Nose to tail: the last drives into the second, and that one into the first.
    pasts = [Past(speed=30), Past(NOSE_TO_TAIL, speed=35), Past(2 * NOSE_TO_TAIL, speed=45)]
    trace = [
        np.stack(columns, 1) for columns in zip(*(past.trace() for past in pasts), strict=True)
    ]
    touch = np.zeros((3, 3), bool)
    touch[0, 1] = touch[1, 2] = True
    result = judge(
        Trace(*(jnp.asarray(leaf, jnp.float32) for leaf in trace)),
        Bodies(*(jnp.full(3, value) for value in (LENGTH, WIDTH, 1.25, 2.2))),
        jnp.asarray(touch),
        jnp.asarray(np.where(touch[..., None], (-1.0, 0.0), 0.0), jnp.float32),
        Situation(jnp.zeros(3), jnp.zeros(3)),
        jnp.zeros((3, 3), bool),
        jnp.float32(3000.0),
    )
    assert not bool(result.first.any())
    assert np.argwhere(np.asarray(result.second)).tolist() == [[1, 2]]
    assert int(result.reason[1, 2]) == REAR_END and int(result.reason[0, 1]) == CHAIN
    # His is the worse of both contacts.
    record = charge(clean_record(3), result, jnp.zeros((3, 3), jnp.int32).at[0, 1].set(2))
    np.testing.assert_array_equal(record.faults, [[0, 0, 0], [0, 0, 0], [0, 0, 1]])


def one_verdict(first, second, reason, faulted=(False, False)):
    """On a contact of two of three cars."""
    no = jnp.zeros((3, 3), bool)
    at = first, second
    return Verdicts(
        no.at[at].set(faulted[0]),
        no.at[at].set(faulted[1]),
        jnp.zeros((3, 3), jnp.int32).at[at].set(reason),
    )


def how(first, second, level):
    return jnp.zeros((3, 3), jnp.int32).at[first, second].set(level)


def test_a_chain_makes_the_fault_it_follows_from_more_severe_and_adds_none():
    # The first touches the second lightly, then rams it; the second is pushed into the third.
    record = charge(clean_record(3), one_verdict(0, 1, REAR_END, (True, False)), how(0, 1, 0))
    np.testing.assert_array_equal(record.faults, [[1, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert record.calm.tolist()[:2] == [0, 0] and int(record.calm[2]) > MEMORY
    record = charge(record, one_verdict(0, 1, CHAIN), how(0, 1, 1))
    np.testing.assert_array_equal(record.faults, [[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    record = charge(record, one_verdict(1, 2, CHAIN), how(1, 2, 2))
    np.testing.assert_array_equal(record.faults, [[0, 0, 1], [0, 0, 0], [0, 0, 0]])
    # A lighter one changes nothing; a later one on its own is a fault of its own.
    record = charge(record, one_verdict(1, 2, CHAIN), how(1, 2, 1))
    np.testing.assert_array_equal(record.faults, [[0, 0, 1], [0, 0, 0], [0, 0, 0]])
    record = charge(record, one_verdict(0, 2, REAR_END, (True, True)), how(0, 2, 1))
    np.testing.assert_array_equal(record.faults, [[0, 1, 1], [0, 0, 0], [0, 1, 0]])
