"""Who is at fault in a contact between two cars: fixed rules over the two seconds before it.

The rules are a version, `RULES`, that does not change once numbers were published with it. They
judge by geometry before the contact, not by who lost by it, and follow what the FIA's driving
standards guidelines (2022 to 2025) ask of the two sides, so far as that can be computed. In order;
the first that speaks, decides:

1. *chain*: a contact within a second of one of either car with a fault belongs to that: nobody is
   charged again, but the fault becomes as severe as the worst of them;
2. *rejoining*: a car that was off course within two seconds, or stands on the road, is at fault;
   both are where the other had seen it stand for two seconds and did not slow down;
3. *rear end*, where the contact is within 45 degrees of one's nose and the other's tail: the one
   behind, unless the one ahead moved across by half a width within a second
   (*blocking*), or braked far harder than the lap asks for there (*brake test*);
4. *corner*: the attacker is the car behind two seconds before. On the inside it is entitled to room
   if it stayed on the road and its front axle was level with the other's mirrors; on the outside if
   it was ahead of the other's. Without that it is at fault; with it, whoever moved towards the
   other clearly more is;
5. *straight*: whoever moved towards the other clearly more; else nobody is.

Severity goes by the change of speed that the contact made within a control step. A contact is
judged when it begins, and again in every step that is more severe than those before. A car that
another one, alone at fault, drove into is charged with no other contact that is judged in the same
step: that is a chain, too.

Everything is symmetric: swapped cars or a mirrored circuit give the swapped or the same verdict.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from projects.sophy.driving import CONTROL_STEP

RULES = "steward_v2"
MEMORY = 20  # control steps that are remembered, the last of them before the contact
SECOND = round(1.0 / CONTROL_STEP)
ALONGSIDE_BEFORE = 3  # steps before the contact at which entitlement is judged
STANDS = 3.0  # slower than this is standing on the road [m/s]
SEEN_WITHIN = 100.0  # a standing car nearer than this two seconds ago has been seen [m]
SLOWED = 0.95  # of the speed two seconds before: less is having slowed down
TAIL = 0.7071  # cosine of the angle between the contact's normal and a car's axis: a bump, no rub
BLOCKING = 0.5  # way across within a second, in widths
BRAKE_TEST = 3.0  # braking beyond what the lap asks for [m/s^2]
MIRRORS = 0.4  # behind the nose, in lengths
CORNER = 0.003  # curvature within reach that makes a corner [1/m]
CORNER_REACH = 60.0  # [m]
CLEARLY = 1.5  # ratio of the speeds across
ACROSS = 0.3  # slower across than this is driving straight [m/s]
LIGHT, MEDIUM = 0.5, 3.0  # changes of speed below which a contact is light, or medium [m/s]

NONE, CHAIN, REJOINING, REAR_END, BLOCKED, BRAKE_TESTED, CORNERING, STRAIGHT = range(8)
REASONS = (
    "no contact",
    "chain of contacts",
    "rejoining or standing",
    "rear end",
    "blocking",
    "brake test",
    "corner",
    "straight",
)


class Trace(NamedTuple):
    """What the stewards saw of cars, oldest first; leaves [MEMORY, M]."""

    s: Array  # way along the course, laps counted [m]
    offset: Array  # left of the centre line [m]
    speed: Array  # along the course [m/s]
    across: Array  # speed to the left [m/s]
    braking: Array  # deceleration [m/s^2]
    off_course: Array  # share of the step
    sine: Array  # of the angle from the course's direction to the car's heading
    cosine: Array


class _Past(NamedTuple):
    """What of a trace the rules ask for: at its begin, when entitlement is judged, a second before
    its end, and at its end, which has no name of its own; leaves [M]."""

    s_begin: Array
    s_then: Array
    s: Array
    offset_second: Array
    offset: Array
    speed_begin: Array
    speed: Array
    across: Array
    braking: Array
    off_begin: Array  # bool, whether it was off course at the begin
    off_ever: Array  # bool
    off_since_then: Array  # bool
    sine: Array
    cosine: Array


def _past(trace: Trace) -> _Past:
    then, off = -1 - ALONGSIDE_BEFORE, trace.off_course > 0.0
    return _Past(
        s_begin=trace.s[0],
        s_then=trace.s[then],
        s=trace.s[-1],
        offset_second=trace.offset[-1 - SECOND],
        offset=trace.offset[-1],
        speed_begin=trace.speed[0],
        speed=trace.speed[-1],
        across=trace.across[-1],
        braking=trace.braking[-1],
        off_begin=off[0],
        off_ever=jnp.any(off, 0),
        off_since_then=jnp.any(off[then:], 0),
        sine=trace.sine[-1],
        cosine=trace.cosine[-1],
    )


class Bodies(NamedTuple):
    """Leaves [M]."""

    length: Array  # [m]
    width: Array  # [m]
    front_axle: Array  # ahead of the centre of gravity [m]
    nose: Array  # ahead of the centre of gravity [m]


class Verdicts(NamedTuple):
    """Leaves [M, M], first < second."""

    first: Array  # bool, whether the first car is at fault
    second: Array  # bool; both may be
    reason: Array  # int32, index into `REASONS`


class Situation(NamedTuple):
    """Where cars are in a lap, as far as the rules ask; leaves [M]."""

    curvature: Array  # of the sharpest bend within `CORNER_REACH`, left positive [1/m]
    need: Array  # deceleration that the lap asks for soon [m/s^2]


class Record(NamedTuple):
    """Whom the stewards have charged; leaves [M] unless said otherwise."""

    calm: Array  # int32, control steps since a car was in a contact with a fault
    culprits: Array  # [M, M] bool, the second was at fault in the last such contact of the first
    charged: Array  # int32, severity of the car's last fault
    faults: Array  # [M, 3] int32, by severity


def clean_record(num_cars: int) -> Record:
    none = jnp.zeros(num_cars, jnp.int32)
    return Record(
        calm=none + 10 * MEMORY,
        culprits=jnp.zeros((num_cars, num_cars), bool),
        charged=none,
        faults=jnp.zeros((num_cars, 3), jnp.int32),
    )


def severity(impulse: Array, first_mass: Array, second_mass: Array) -> Array:
    """0 light, 1 medium, 2 heavy, by the larger change of speed of the two."""
    change = impulse / jnp.minimum(first_mass, second_mass)
    return (change >= LIGHT).astype(jnp.int32) + (change >= MEDIUM)


def _charges(
    a: _Past, b: _Past, body_a: Bodies, body_b: Bodies, normal: Array, curvature: Array, need: Array
) -> dict[str, Array]:
    """What car `a` would be charged with after a contact with `b`; leaves of both without [M].

    Args:
      normal: [2] from `a` to `b`, along and to the left of the course.
      curvature: [] of the sharpest bend within reach, left positive.
      need: [] deceleration that the lap asks for soon after `b`.
    """
    ahead, ahead_begin = b.s - a.s, b.s_begin - a.s_begin  # how far b is, or was, ahead
    moved_b = b.offset - b.offset_second
    side_b = b.offset - a.offset

    rejoining = a.off_ever | (a.speed < STANDS)
    seen = (a.speed_begin < STANDS) & ~a.off_begin & (ahead_begin < 0.0)
    seen &= (-ahead_begin < SEEN_WITHIN) & (b.speed > SLOWED * b.speed_begin)
    # Where both were off or stand, neither is charged by this rule.
    other_too = b.off_ever | (b.speed < STANDS)

    def to_the_axis(car: _Past) -> Array:
        return normal[0] * car.cosine + normal[1] * car.sine

    bumps = (to_the_axis(a) > TAIL) & (to_the_axis(b) > TAIL) & (ahead > 0.0)
    closing = a.speed > b.speed
    # Into the way of the one behind: from beside him to in front of him.
    before = jnp.abs(b.offset_second - a.offset)
    blocks = (jnp.abs(moved_b) > BLOCKING * body_b.width) & (before > jnp.abs(side_b)) & closing
    tests = b.braking > need + BRAKE_TEST

    attacks = ahead_begin > 0.0
    inside = jnp.sign(curvature) * side_b < 0.0  # a is nearer to the inside than b
    axle = a.s_then + body_a.front_axle
    mirrors = b.s_then + body_b.nose - MIRRORS * body_b.length
    held = ~a.off_since_then
    entitled = jnp.where(inside, (axle >= mirrors) & held, axle > b.s_then + body_b.front_axle)
    towards_b = jnp.maximum(jnp.sign(side_b) * a.across, 0.0)
    towards_a = jnp.maximum(-jnp.sign(side_b) * b.across, 0.0)
    moved_more = (towards_b > CLEARLY * towards_a) & (towards_b > ACROSS)
    return {
        "rejoining": rejoining & ~other_too,
        "shared": rejoining & ~other_too & seen,
        "bumps": bumps,
        "blocked": bumps & blocks,
        "tested": bumps & ~blocks & tests,
        "unentitled": attacks & ~entitled,
        "moved_more": moved_more,
    }


def _judge_pair(
    past: tuple[_Past, _Past],
    body: tuple[Bodies, Bodies],
    normal: Array,
    curvature: Array,
    need: tuple[Array, Array],
    chained: Array,
) -> Verdicts:
    """The verdict on one contact; leaves [].

    Args:
      past, body, need: of the two cars, see `_charges`; leaves without [M].
      normal: [2] from the first to the second car, along and to the left of the course.
      chained: [] bool, whether the contact follows from another.
    """
    ours = _charges(past[0], past[1], body[0], body[1], normal, curvature, need[1])
    theirs = _charges(past[1], past[0], body[1], body[0], -normal, curvature, need[0])
    corner = jnp.abs(curvature) > CORNER
    rejoins = ours["rejoining"] | theirs["rejoining"]
    bumps = ours["bumps"] | theirs["bumps"]
    reason = jnp.select(
        [
            chained,
            rejoins,
            ours["blocked"] | theirs["blocked"],
            ours["tested"] | theirs["tested"],
            bumps,
            corner,
        ],
        [CHAIN, REJOINING, BLOCKED, BRAKE_TESTED, REAR_END, CORNERING],
        STRAIGHT,
    )

    def guilty(own: dict[str, Array], other: dict[str, Array]) -> Array:
        # In a corner an attacker without right is at fault; else whoever moved over.
        turned_in = own["unentitled"] | (own["moved_more"] & ~other["unentitled"])
        return jnp.select(
            [reason == code for code in range(1, len(REASONS))],
            [
                jnp.zeros((), bool),
                own["rejoining"] | other["shared"],
                own["bumps"],
                other["blocked"],
                other["tested"],
                turned_in,
                own["moved_more"],
            ],
            default=False,
        )

    return Verdicts(guilty(ours, theirs), guilty(theirs, ours), reason.astype(jnp.int32))


def judge(
    trace: Trace,
    bodies: Bodies,
    judged: Array,
    normal: Array,
    situation: Situation,
    chained: Array,
    length: Array,
) -> Verdicts:
    """Verdicts on all contacts that are judged in a step.

    Args:
      trace: leaves [MEMORY, M], the last of them before the contacts.
      bodies: leaves [M].
      judged: [M, M] bool, those contacts, first < second.
      normal: [M, M, 2] from first to second, along and to the left of the course at the first.
      situation: leaves [M].
      chained: [M, M] bool.
      length: [] of the lap, by which cars may be apart that are side by side [m].
    """
    first, second, reason = _judge_all(trace, bodies, normal, situation, chained, length)
    return _spare_victims(
        Verdicts(first & judged, second & judged, jnp.where(judged, reason, NONE))
    )


def foreseen(trace: Trace, bodies: Bodies, situation: Situation, length: Array) -> Array:
    """Who would be at fault in a contact now: [M, M] bool, [i, j] whether car i would be in one
    with car j, nose to tail or side to side, whichever the two are nearer to. As a contact on its
    own: what chains make of it is not foreseen.

    Args:
      trace: leaves [MEMORY, M], up to now.
      bodies, situation: leaves [M].
      length: [] of the lap [m].
    """
    way = trace.s[-1][None] - trace.s[-1][:, None]
    along = (way - jnp.round(way / length) * length) / (bodies.length + bodies.length[:, None])
    left = trace.offset[-1][None] - trace.offset[-1][:, None]
    left /= bodies.width + bodies.width[:, None]
    nose_to_tail = jnp.abs(along) > jnp.abs(left)
    normal = jnp.stack([nose_to_tail * jnp.sign(along), ~nose_to_tail * jnp.sign(left)], -1)
    chained = jnp.zeros(way.shape, bool)
    return _judge_all(trace, bodies, normal, situation, chained, length).first


def _judge_all(
    trace: Trace,
    bodies: Bodies,
    normal: Array,
    situation: Situation,
    chained: Array,
    length: Array,
) -> Verdicts:
    """See `judge`, as if all pairs touched, either way round: both [i, j] and [j, i] are told."""

    def pair(
        first: tuple[_Past, Bodies, Situation],
        second: tuple[_Past, Bodies, Situation],
        normal: Array,
        chained: Array,
    ) -> Verdicts:
        ours, our_body, (our_bend, our_need) = first
        theirs, their_body, (their_bend, their_need) = second
        way = jnp.round((ours.s - theirs.s) / length) * length
        theirs = theirs._replace(
            s_begin=theirs.s_begin + way, s_then=theirs.s_then + way, s=theirs.s + way
        )
        bend = jnp.where(jnp.abs(our_bend) >= jnp.abs(their_bend), our_bend, their_bend)
        return _judge_pair(
            (ours, theirs), (our_body, their_body), normal, bend, (our_need, their_need), chained
        )

    # All pairs, also those that are not judged: without gathers that is cheap.
    cars = _past(trace), bodies, situation
    of_all = jax.vmap(jax.vmap(pair, (None, 0, 0, 0)), (0, None, 0, 0))
    return of_all(cars, cars, normal, chained)


def _spare_victims(verdicts: Verdicts) -> Verdicts:
    """Without the faults of cars that others drove into in the same step."""
    first, second, reason = verdicts
    victim = jnp.any(second & ~first, 1) | jnp.any(first & ~second, 0)
    left = first & ~victim[:, None], second & ~victim
    spared = (first | second) & ~(left[0] | left[1])
    return Verdicts(*left, jnp.where(spared, CHAIN, reason))


def charge(record: Record, verdicts: Verdicts, how: Array) -> Record:
    """The record after a step with `verdicts` on contacts of severity `how` [M, M], first <
    second."""
    # From here on both ways round: the second car is at fault in a contact with the first.
    guilty, chain = verdicts.second | verdicts.first.T, verdicts.reason == CHAIN
    how, chain = jnp.maximum(how, how.T), chain | chain.T
    charged = jnp.any(guilty, 0)
    involved = charged | jnp.any(guilty, 1)
    calm = jnp.where(involved, 0, record.calm + 1)
    own = jnp.eye(len(calm), dtype=bool) & charged
    culprits = jnp.where(involved[:, None], guilty | own, record.culprits)
    severity = jnp.where(charged, jnp.max(jnp.where(guilty, how, 0), 0), record.charged)
    # A chain belongs to the later of both cars' contacts with a fault.
    chained = jnp.max(jnp.where(chain & (calm[:, None] <= calm), how, 0), 1)
    worst = jnp.maximum(severity, jnp.max(jnp.where(culprits, chained[:, None], 0), 0))
    new, was, becomes = (jax.nn.one_hot(of, 3, dtype=jnp.int32) for of in (how, severity, worst))
    faults = record.faults + jnp.sum(guilty[..., None] * new, 0) - was + becomes
    return Record(calm, culprits, worst, faults)
