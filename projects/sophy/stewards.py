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
4. *corner*: the attacker is the car behind two seconds before. On the inside he is entitled to room
   if he stayed on the road and his front axle was level with the other's mirrors; on the outside if
   it was ahead of the other's. Without that he is at fault; with it, whoever moved towards the
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
import numpy as np
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
    a: Trace, b: Trace, body_a: Bodies, body_b: Bodies, normal: Array, curvature: Array, need: Array
) -> dict[str, Array]:
    """What car `a` would be charged with after a contact with `b`; leaves of both without [M].

    Args:
      normal: [2] from `a` to `b`, along and to the left of the course.
      curvature: [] of the sharpest bend within reach, left positive.
      need: [] deceleration that the lap asks for soon after `b`.
    """
    ahead = b.s - a.s  # [MEMORY] how far b is ahead
    moved_b = b.offset[-1] - b.offset[-1 - SECOND]
    side_b = b.offset[-1] - a.offset[-1]

    stands = a.speed[-1] < STANDS
    rejoining = jnp.any(a.off_course > 0.0) | stands
    seen = (a.speed[0] < STANDS) & (a.off_course[0] == 0.0) & (ahead[0] < 0.0)
    seen &= (-ahead[0] < SEEN_WITHIN) & (b.speed[-1] > SLOWED * b.speed[0])
    # Where both were off or stand, neither is charged by this rule.
    other_too = jnp.any(b.off_course > 0.0) | (b.speed[-1] < STANDS)

    def to_the_axis(car: Trace) -> Array:
        return normal[0] * car.cosine[-1] + normal[1] * car.sine[-1]

    bumps = (to_the_axis(a) > TAIL) & (to_the_axis(b) > TAIL) & (ahead[-1] > 0.0)
    closing = a.speed[-1] > b.speed[-1]
    # Into the way of the one behind: from beside him to in front of him.
    before = jnp.abs(b.offset[-1 - SECOND] - a.offset[-1])
    blocks = (jnp.abs(moved_b) > BLOCKING * body_b.width) & (before > jnp.abs(side_b)) & closing
    tests = b.braking[-1] > need + BRAKE_TEST

    attacks = ahead[0] > 0.0
    inside = jnp.sign(curvature) * side_b < 0.0  # a is nearer to the inside than b
    then = -1 - ALONGSIDE_BEFORE
    axle = a.s[then] + body_a.front_axle
    mirrors = b.s[then] + body_b.nose - MIRRORS * body_b.length
    held = jnp.all(a.off_course[then:] == 0.0)
    entitled = jnp.where(inside, (axle >= mirrors) & held, axle > b.s[then] + body_b.front_axle)
    towards_b = jnp.maximum(jnp.sign(side_b) * a.across[-1], 0.0)
    towards_a = jnp.maximum(-jnp.sign(side_b) * b.across[-1], 0.0)
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


def judge_pair(
    trace: tuple[Trace, Trace],
    body: tuple[Bodies, Bodies],
    normal: Array,
    curvature: Array,
    need: tuple[Array, Array],
    chained: Array,
) -> Verdicts:
    """The verdict on one contact; leaves [].

    Args:
      trace, body, need: of the two cars, see `_charges`; leaves without [M].
      normal: [2] from the first to the second car, along and to the left of the course.
      chained: [] bool, whether the contact follows from another.
    """
    ours = _charges(trace[0], trace[1], body[0], body[1], normal, curvature, need[1])
    theirs = _charges(trace[1], trace[0], body[1], body[0], -normal, curvature, need[0])
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
    curvature: Array,
    need: Array,
    chained: Array,
    length: Array,
) -> Verdicts:
    """Verdicts on all contacts that are judged in a step.

    Args:
      trace: leaves [MEMORY, M], the last of them before the contacts.
      bodies: leaves [M].
      judged: [M, M] bool, those contacts, first < second.
      normal: [M, M, 2] from first to second, along and to the left of the course at the first.
      curvature: [M] of the sharpest bend within `CORNER_REACH` of each car, left positive.
      need: [M] deceleration that the lap asks for soon after each car [m/s^2].
      chained: [M, M] bool.
      length: [] of the lap, by which cars may be apart that are side by side [m].
    """
    num = judged.shape[0]

    def pair(first: Array, second: Array) -> Verdicts:
        cars = first, second
        ours, theirs = (jax.tree.map(lambda leaf, at=at: leaf[:, at], trace) for at in cars)
        laps = jnp.round((ours.s[-1] - theirs.s[-1]) / length)
        views = ours, theirs._replace(s=theirs.s + laps * length)
        body = tuple(jax.tree.map(lambda leaf, at=at: leaf[at], bodies) for at in cars)
        sharper = jnp.abs(curvature[first]) >= jnp.abs(curvature[second])
        bend = jnp.where(sharper, curvature[first], curvature[second])
        return judge_pair(
            views,
            body,  # pyright: ignore[reportArgumentType]
            normal[first, second],
            bend,
            (need[first], need[second]),
            chained[first, second],
        )

    upper = np.triu_indices(num, 1)
    verdicts = jax.vmap(pair)(*(jnp.asarray(index) for index in upper))
    first, second, reason = (
        jnp.zeros(judged.shape, leaf.dtype).at[upper].set(leaf) for leaf in verdicts
    )
    return _spare_victims(
        Verdicts(first & judged, second & judged, jnp.where(judged, reason, NONE))
    )


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
