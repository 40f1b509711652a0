"""From actions to joint references that break no limit, and from references to measured joints.

Every 32 ms an action becomes, for each joint by itself, four pieces of 8 ms with constant jerk.

**Why no sequence of actions breaks a limit.** Between segments each joint's state stays in a convex
set of states that can stop, held against limits a little inside Ace's. With c the jerk used for
stopping, x = a / c, w = v / c + x^2 / 2 and A = (acceleration limit) / c, a joint at v that ramps a
down, holds it and ramps it back to rest travels

    c (w x - x^3 / 6 + g(w)),   g = w^(3/2) for w <= A^2, else A w / 2 + w^2 / (2 A)

which is a convex function of (v, a) for every w >= 0, as is its least value over all larger v, got
by w := max(w, (2/3 max(-x, 0))^2). The set is: position plus that travel inside the position limit,
v + max(a, 0)^2 / 2c inside the velocity limit, a inside its own, and the mirror image of all. Along
the stop none of these grows, so the stop stays in the set. Its first 32 ms have switches between
the grid's times; four constant jerks that reach the very same position, velocity and acceleration
exist within `SPREAD` times its jerk, and stay within `SPREAD_*` of its path. So from every state of
the set there is a feasible segment back into it.

All limits are convex in the four jerks, so what is feasible between that segment and any wish is an
interval, and its end is taken. The map `velocity` has one wish, to be at a velocity soon and to
stay there. The others have several, "as fast as possible", "as slow as possible" and "no
acceleration" among them, and the action picks a mixture of what is feasible of each (`plan`). The
sampling and piece lengths are those of Ace; the maps are ours, for the idea of feasible actions see
the README of SonyResearch/feasible_action_for_optimal_control.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from projects.ace.arm import NUM_JOINTS, ArmParams, JointState

ActionMap = Literal["velocity", "reach", "reach_2d"]
FULL_VELOCITY = 0.5  # of the limit, what an action of 1 asks for with the map `velocity`
PIECES = 4
PIECE = 0.008  # [s]
CONTROL_STEP = PIECES * PIECE  # between two actions [s]
SAMPLE = 0.001  # of the joints' reference [s]
HISTORY = 9  # samples of the reference that `track` remembers, for delays of up to 8 ms
BISECTIONS = 4

# Four constant jerks that end where a stop of unit jerk ends need at most this jerk, and stray at
# most so far from its path at the pieces' ends, in units of (jerk) PIECE^n. Measured over 4e5 stops
# with any switching times, and rounded up.
SPREAD = 1.30
SPREAD_ACCELERATION = 0.27  # beyond the largest acceleration of the path
SPREAD_VELOCITY = 0.17
SPREAD_POSITION = 0.13
MARGIN = 1e-4  # of every limit, for rounding

# Moments of a jerk that is 1 in one piece: what it adds to a, v and p in the end, over PIECE^1..3.
_MOMENTS = np.array([[1, 1, 1, 1], [3.5, 2.5, 1.5, 0.5], [37 / 6, 19 / 6, 7 / 6, 1 / 6]])
# Accelerations at the pieces' ends that segments aim at, as shares of the limit: slowest, steady,
# fastest; and the steady velocity from further ahead, and from further back.
_SLOWEST, _STEADY, _FASTEST, _AHEAD, _BACK = range(5)
_WISHES = np.array(
    [[-1, -1, -1, -1], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, -1, 0], [-1, 0, 1, 0]], np.float32
)
# The smallest jerks [PIECES, 2] that add one to v or to p in the end, and nothing to the others.
_CORRECTION = (np.linalg.pinv(_MOMENTS)[:, 1:]).astype(np.float32)


@struct.dataclass
class Segment:
    """The reference until the next action."""

    jerk: Array  # [4, 8] of the pieces [m/s^3, rad/s^3]


@struct.dataclass
class Lagged:
    """Memory of `track`."""

    history: Array  # [HISTORY, 8] the reference's last positions, the newest last [m, rad]
    position: Array  # [8] of the joints [m, rad]


@struct.dataclass
class _Limits:
    """Inside Ace's limits: of pieces' ends, and of states that a segment may end in; all [8]."""

    position: Array
    velocity: Array
    acceleration: Array
    jerk: Array
    last_position: Array
    last_velocity: Array
    last_acceleration: Array
    last_jerk: Array


def _limits(arm: ArmParams) -> _Limits:
    share = 1.0 - MARGIN
    jerk = share * arm.jerk_limit
    last_jerk = jerk / SPREAD
    acceleration = share * arm.acceleration_limit
    # Inside a piece v leaves its chord by at most |jerk| PIECE^2 / 8, and p by |a| PIECE^2 / 8.
    velocity = share * arm.velocity_limit - jerk * PIECE**2 / 8
    position = share * arm.position_limit - acceleration * PIECE**2 / 8
    return _Limits(
        position=position,
        velocity=velocity,
        acceleration=acceleration,
        jerk=jerk,
        last_position=position - SPREAD_POSITION * last_jerk * PIECE**3,
        last_velocity=velocity - SPREAD_VELOCITY * last_jerk * PIECE**2,
        last_acceleration=acceleration - SPREAD_ACCELERATION * last_jerk * PIECE,
        last_jerk=last_jerk,
    )


def _stop_margin(limits: _Limits, p: Array, v: Array, x: Array) -> Array:
    """Least of what is left of the limits upwards, by state over the stop's jerk; concave."""
    top = limits.last_acceleration / limits.last_jerk
    w = v + 0.5 * x * x
    peak = v + 0.5 * jnp.maximum(x, 0.0) ** 2
    w = jnp.maximum(w, (4.0 / 9.0) * jnp.minimum(x, 0.0) ** 2)
    ramps = w * jnp.sqrt(w)
    hold = 0.5 * w * (top + w * (1.0 / top))
    travel = w * x - (1.0 / 6.0) * x * x * x + jnp.where(w <= top * top, ramps, hold)
    left = limits.last_position / limits.last_jerk - p - jnp.maximum(travel, 0.0)
    return jnp.minimum(left, limits.last_velocity / limits.last_jerk - peak)


def _margin(limits: _Limits, p: Array, v: Array, x: Array) -> Array:
    """Both ways; positive inside the set."""
    return jnp.minimum(_stop_margin(limits, p, v, x), _stop_margin(limits, -p, -v, -x))


def can_stop(arm: ArmParams, state: JointState) -> Array:
    """Whether each joint [8] is in the set that actions never leave; start inside it.

    Every position within 99.9 % of its limit is, at rest.
    """
    limits = _limits(arm)
    scale = 1.0 / limits.last_jerk
    margin = _margin(
        limits, scale * state.position, scale * state.velocity, scale * state.acceleration
    )
    return (margin >= 0.0) & (jnp.abs(state.acceleration) <= limits.last_acceleration)


def _unit_stop(top: Array, v: Array, x: Array) -> list[Array]:
    """The first pieces' jerks of a stop with jerks -1, 0, 1, from a state that `x` ramped to zero
    leaves at a velocity of at least zero; `top` bounds the acceleration. All [8]."""
    w = jnp.maximum(v + 0.5 * x * x, 0.0)
    peak = jnp.minimum(jnp.sqrt(w), top)
    # The jerk is -1 until t1, 0 until t2, 1 until t3.
    t1 = jnp.maximum(x + peak, 0.0)
    t2 = t1 + jnp.maximum(w - top * top, 0.0) / top
    t3 = t2 + peak
    ramped = [
        jnp.clip(k * PIECE - t2, 0.0, peak) - jnp.minimum(k * PIECE, t1) for k in range(PIECES + 1)
    ]
    mean = [(ramped[k + 1] - ramped[k]) / PIECE for k in range(PIECES)]
    left1, left2, left3 = (jnp.maximum(CONTROL_STEP - t, 0.0) for t in (t1, t2, t3))
    miss_v = (left1**2 - CONTROL_STEP**2 + left2**2 - left3**2) / (2.0 * PIECE**2)
    miss_p = (left1**3 - CONTROL_STEP**3 + left2**3 - left3**3) / (6.0 * PIECE**3)
    for k in range(PIECES):
        miss_v -= float(_MOMENTS[1, k]) * mean[k]
        miss_p -= float(_MOMENTS[2, k]) * mean[k]
    correction = _CORRECTION.tolist()
    return [mean[k] + correction[k][0] * miss_v + correction[k][1] * miss_p for k in range(PIECES)]


def _stop_jerks(limits: _Limits, state: JointState) -> list[Array]:
    """The jerks of the stop's first pieces, [8] each."""
    jerk = limits.last_jerk
    top = limits.last_acceleration / jerk
    v, x = state.velocity / jerk, state.acceleration / jerk
    forward = v + 0.5 * x * jnp.abs(x) >= 0.0
    # Both ways, because near the switch both are right. A sign taken out beforehand would be worked
    # out anew, and rounded anew, wherever XLA needs it, and its copies may disagree.
    pairs = zip(_unit_stop(top, v, x), _unit_stop(top, -v, -x), strict=True)
    return [
        jnp.clip(jerk * jnp.where(forward, down, -up), -limits.jerk, limits.jerk)
        for down, up in pairs
    ]


def _towards(limits: _Limits, start: Array, wish: Array) -> list[Array]:
    """Jerks that bring the acceleration from `start` [8] to each of `wish` [W, PIECES, 8] in turn,
    as fast as limits let."""
    jerks, a = [], start
    for k in range(PIECES):
        bound = limits.last_acceleration if k == PIECES - 1 else limits.acceleration
        to = jnp.clip(wish[:, k], -bound, bound)
        jerk = jnp.clip((to - a) / PIECE, -limits.jerk, limits.jerk)
        a = a + PIECE * jerk
        jerks.append(jerk)
    return jerks


def _knots(state: JointState, jerks: list[Array]) -> tuple[list[Array], list[Array], list[Array]]:
    """Accelerations, velocities and positions at the ends of the pieces."""
    a, v, p = state.acceleration, state.velocity, state.position
    accelerations, velocities, positions = [], [], []
    for jerk in jerks:
        p = p + PIECE * (v + PIECE * (a / 2.0 + PIECE / 6.0 * jerk))
        v = v + PIECE * (a + PIECE / 2.0 * jerk)
        a = a + PIECE * jerk
        accelerations.append(a)
        velocities.append(v)
        positions.append(p)
    return accelerations, velocities, positions


def _largest_share(
    limits: _Limits,
    base: tuple[list[Array], list[Array], list[Array]],
    wish: tuple[list[Array], list[Array], list[Array]],
) -> Array:
    """How far one may go from the feasible knots `base` [8] to `wish`: shares [W, 8], 0 to 1."""
    share = jnp.ones_like(wish[0][0])

    def linear(share: Array, low: Array, high: Array, limit: Array) -> Array:
        way = high - low
        room = jnp.maximum(limit - jnp.where(way > 0.0, low, -low), 0.0)
        return jnp.minimum(share, room / jnp.maximum(jnp.abs(way), 1e-9))

    # Accelerations are inside their limits at both ends, so also in between. The terminal state's
    # margin below is tighter than the limits of pieces' ends.
    for k in range(PIECES - 1):
        share = linear(share, base[1][k], wish[1][k], limits.velocity)
        share = linear(share, base[2][k], wish[2][k], limits.position)

    scale = 1.0 / limits.last_jerk
    start = [scale * knots[-1] for knots in base]
    way = [scale * knots[-1] - low for knots, low in zip(wish, start, strict=True)]

    def margin(at: Array) -> Array:
        a, v, p = (low + at * change for low, change in zip(start, way, strict=True))
        return _margin(limits, p, v, a)

    def halve(_, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = carry
        middle = 0.5 * (low + high)
        good = margin(middle) >= 0.0
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    # A loop, because XLA would compute what is unrolled many times over.
    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(share), share))
    # The margin is concave, so it is not negative where its chord meets zero.
    room, lack = jnp.maximum(margin(low), 0.0), -margin(high)
    return jnp.where(lack > 0.0, low + (high - low) * room / jnp.maximum(room + lack, 1e-20), high)


def _feasible(limits: _Limits, state: JointState, wish: list[Array]) -> list[Array]:
    """Jerks as near to each of `wish` [W, 8] as limits let, from those of the stop."""
    safe = _stop_jerks(limits, state)
    share = _largest_share(limits, _knots(state, safe), _knots(state, wish))
    return [low + share * (high - low) for low, high in zip(safe, wish, strict=True)]


def _corners(arm: ArmParams, state: JointState, count: int) -> tuple[list[Array], Array]:
    """Feasible jerks to the first `count` wishes, and their last velocities, [count, 8] each."""
    limits = _limits(arm)
    wish = _towards(limits, state.acceleration, limits.acceleration * _WISHES[:count, :, None])
    mixed = _feasible(limits, state, wish)
    return mixed, _knots(state, mixed)[1][-1]


def _to_velocity(limits: _Limits, state: JointState, target: Array) -> list[Array]:
    """Jerks [8] that bring the velocity to `target` [8] soon, and the acceleration to zero there.

    Each piece ends with the largest acceleration x from which ramping down to zero does not pass
    the target (by more than J PIECE^2 / 8, since pieces are not split). With D what the piece would
    leave to do if it ended at rest, and J the jerk, a ramp that takes one piece or less needs
    PIECE x / 2 and a longer one x^2 / 2J, so

        D = PIECE x / 2 + max(PIECE x / 2, x^2 / 2J)
    """
    jerks, a, v = [], state.acceleration, state.velocity
    for k in range(PIECES):
        bound = limits.last_acceleration if k == PIECES - 1 else limits.acceleration
        short = target - v - PIECE / 2.0 * a
        far = jnp.abs(short)
        ramp = limits.jerk * (jnp.sqrt(PIECE**2 / 4.0 + 2.0 * far / limits.jerk) - PIECE / 2.0)
        to = jnp.sign(short) * jnp.minimum(jnp.minimum(far / PIECE, ramp), bound)
        jerk = jnp.clip((to - a) / PIECE, -limits.jerk, limits.jerk)
        v = v + PIECE * (a + PIECE / 2.0 * jerk)
        a = a + PIECE * jerk
        jerks.append(jerk)
    return jerks


def _asked(limits: _Limits, state: JointState, action: Array) -> list[Array]:
    """The jerks [8] that the map `velocity` wishes for."""
    share = FULL_VELOCITY * jnp.clip(action, -1.0, 1.0)
    return _to_velocity(limits, state, share * limits.last_velocity)


def action_size(action_map: ActionMap) -> int:
    """How many numbers an action has."""
    return 2 * NUM_JOINTS if action_map == "reach_2d" else NUM_JOINTS


def plan(
    arm: ArmParams, state: JointState, action: Array, action_map: ActionMap = "velocity"
) -> Segment:
    """The segment that an action picks; whatever the action, it is feasible.

    - `velocity`: a velocity, as a share of `FULL_VELOCITY` of the joint's limit. The joint goes
      there as fast as it can without passing it, and holds it. (To be there after 32 ms with
      whatever acceleration makes it so rings for half a second, and was learnt far worse.)
    - `reach`: -1 and 1 are the lowest and the highest terminal velocity that can be reached, in
      between the terminal velocity is linear in the action.
    - `reach_2d`: terminal velocity and position. The first eight numbers pull to the fastest and
      the slowest segment, the last eight to those that get as far ahead and as far back as can be
      while they end near the steady velocity (at it, from no acceleration); (0, 0) is the steady
      segment, and the square of the two maps onto all mixtures of it with its neighbours.

    The steady segment brings the acceleration to zero.

    Args:
      action: [8] in [-1, 1], [16] for `reach_2d`.
    """
    if action_map == "velocity":
        limits = _limits(arm)
        wish = _asked(limits, state, action)
        jerks = _feasible(limits, state, [jerk[None] for jerk in wish])
        return Segment(jax.lax.optimization_barrier(jnp.stack([jerk[0] for jerk in jerks])))
    action = jnp.clip(action, -1.0, 1.0)
    if action_map == "reach_2d":
        jerks, _ = _corners(arm, state, _BACK + 1)
        fast, ahead = action[:NUM_JOINTS], action[NUM_JOINTS:]
        # The square onto the diamond |x| + |y| <= 1, along rays.
        longest = jnp.maximum(jnp.abs(fast), jnp.abs(ahead))
        ray = longest / jnp.maximum(jnp.abs(fast) + jnp.abs(ahead), 1e-9)
        pulls = {_FASTEST: fast, _SLOWEST: -fast, _AHEAD: ahead, _BACK: -ahead}
        weights = {corner: ray * jnp.maximum(pull, 0.0) for corner, pull in pulls.items()}
    else:
        jerks, speeds = _corners(arm, state, _FASTEST + 1)
        steady = speeds[_STEADY]
        low = jnp.minimum(speeds[_SLOWEST], steady)
        high = jnp.maximum(speeds[_FASTEST], steady)
        target = low + 0.5 * (action + 1.0) * (high - low)
        up = jnp.clip((target - steady) / jnp.maximum(high - steady, 1e-9), 0.0, 1.0)
        down = jnp.clip((steady - target) / jnp.maximum(steady - low, 1e-9), 0.0, 1.0)
        weights = {_FASTEST: up, _SLOWEST: down}
    mixed = []
    for jerk in jerks:
        pull = sum(weights[corner] * (jerk[corner] - jerk[_STEADY]) for corner in weights)
        mixed.append(jerk[_STEADY] + pull)
    # Else XLA works the jerks out anew, and rounds them anew, in everything that uses them.
    return Segment(jax.lax.optimization_barrier(jnp.stack(mixed)))


def towards(arm: ArmParams, state: JointState, action: Array) -> JointState:
    """Where the reference would end if no position limit were near: `plan` with the map `velocity`,
    without what keeps it able to stop. A tenth of the work, also for gradients."""
    return end_of(state, Segment(jnp.stack(_asked(_limits(arm), state, action))))


def plan_stop(arm: ArmParams, state: JointState) -> Segment:
    """The segment in which every joint brakes to rest, or goes on braking."""
    return Segment(jnp.stack(_stop_jerks(_limits(arm), state)))


def follow(state: JointState, segment: Segment, times: Array) -> JointState:
    """The reference at `times` [N] in [0, CONTROL_STEP] [s] after `state`, leaves [N, 8]. Exact."""
    t = jnp.asarray(times)[:, None]
    after = [jnp.clip(t - k * PIECE, 0.0, None) for k in range(PIECES)]
    jerk = segment.jerk
    changes = [jerk[0]] + [jerk[k] - jerk[k - 1] for k in range(1, PIECES)]
    a = sum(s * c for s, c in zip(after, changes, strict=True))
    v = sum(s * s * c for s, c in zip(after, changes, strict=True)) / 2.0
    p = sum(s * s * s * c for s, c in zip(after, changes, strict=True)) / 6.0
    return JointState(
        position=state.position + t * (state.velocity + 0.5 * t * state.acceleration) + p,
        velocity=state.velocity + t * state.acceleration + v,
        acceleration=state.acceleration + a,
    )


def end_of(state: JointState, segment: Segment) -> JointState:
    """The reference at the end of the segment, leaves [8]."""
    knots = _knots(state, [segment.jerk[k] for k in range(PIECES)])
    acceleration, velocity, position = (values[-1] for values in knots)
    return JointState(position, velocity, acceleration)


def drive(
    arm: ArmParams,
    state: JointState,
    memory: Lagged,
    action: Array,
    action_map: ActionMap,
) -> tuple[JointState, Lagged, Array, Array]:
    """One action: the reference and the memory after it, and the joints' positions and
    velocities every `SAMPLE` until then, [CONTROL_STEP / SAMPLE, 8] each."""
    segment = plan(arm, state, action, action_map)
    times = (1 + jnp.arange(round(CONTROL_STEP / SAMPLE))) * SAMPLE
    reference = follow(state, segment, times)
    memory, positions, velocities = track(arm, memory, reference.position)
    return end_of(state, segment), memory, positions, velocities


def at_rest(position: Array) -> Lagged:
    """Memory of joints that have stood at `position` [8] for a while."""
    return Lagged(jnp.broadcast_to(position, (HISTORY, *position.shape)), position)


def track(arm: ArmParams, memory: Lagged, reference: Array) -> tuple[Lagged, Array, Array]:
    """The joints behind their reference: a pure delay, then a first-order lag; both exact for a
    reference that is straight between its samples.

    Args:
      memory: of the last call, or `at_rest`.
      reference: [N, 8] the reference's positions, one each `SAMPLE`; the first one `SAMPLE` after
        the last one of the call before.

    Returns:
      The memory, and the joints' positions and velocities at the samples' times, [N, 8] each.
    """
    count = reference.shape[0]
    samples = jnp.concatenate([memory.history, reference])
    delay = jnp.clip(arm.delay / SAMPLE, 0.0, HISTORY - 1.0)
    # A delay between samples interpolates: a hat function over the taps, one before the first too.
    delayed = jnp.zeros((count + 1, *delay.shape), reference.dtype)
    for tap in range(HISTORY):
        hat = jnp.maximum(1.0 - jnp.abs(delay - tap), 0.0)
        delayed += hat * samples[HISTORY - 1 - tap : HISTORY + count - tap]
    lag = jnp.maximum(arm.lag, 1e-6)
    decay = jnp.exp(-SAMPLE / lag)

    def step(position: Array, pair: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        before, now = pair
        slope = (now - before) / SAMPLE
        error = decay * (position - before + lag * slope)
        position = now - lag * slope + error
        return position, (position, slope - error / lag)

    last, (positions, velocities) = jax.lax.scan(step, memory.position, (delayed[:-1], delayed[1:]))
    return Lagged(samples[-HISTORY:], last), positions, velocities
