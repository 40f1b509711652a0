"""What the robot's sensors say about an incoming ball, and what a filter makes of it, per ball.

Before the racket touches it a ball knows no robot, so neither do its measurements: they are drawn
once, offline, beside the bank of `incoming`, and an episode only reads them.

Cameras see the ball every 5 ms, from a random moment within the first 5 ms, and gaze-controlled
event cameras its spin; both reach the policy 20.2 ms later (Durr et al. 2026, Nature 652:886-891).
How the paper filters is not known to us. Here it is an extended Kalman filter over the models of
flight and table of `ball` and `contact`, whose covariance is three numbers: position and velocity,
alike in every axis, and the spin by itself. From its estimate, flown forward over the latency, the
ball is predicted to its bounce on the robot's half and half a second beyond. The filter takes the
ball for a legal one: it knows from the rules how often a serve touches the table before the robot
may play it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from core_rl.types import Key
from projects.ace.actions import CONTROL_STEP
from projects.ace.ball import AIR, LIFT_FACTOR, RADIUS, Ball, FlightModel, fly
from projects.ace.contact import ROLLING, TABLE, bounce
from projects.ace.events import HALF_LENGTH
from projects.ace.incoming import CHUNK, NUM_SAMPLES, SAMPLE_STEP, Incoming, select, to_ball

NUM_CONTROLS = 45  # control steps that are sensed, the first at the stroke: 1.41 s
OLDEST = 0.2  # [s] age of a spin reading from before the last contact

# Means of the fitted rally shots and serves (`shots`), in round numbers, and the wide standard
# deviations that the filter begins with.
PRIOR = np.array(
    [
        [1.7, 0.0, 0.2, -10.6, 0.0, 1.7, 0.0, -240.0, 0.0],  # rally
        [1.8, 0.0, 0.25, -6.9, 0.0, -1.2, 0.0, 30.0, 0.0],  # serve
    ],
    np.float32,
)
PRIOR_POSITION, PRIOR_VELOCITY, PRIOR_SPIN = 0.5, 5.0, 250.0  # [m] [m/s] [rad/s], per axis

# The filter's tuning. A wrong spin bends the way by an acceleration that lasts; as the noise of a
# random walk it counts with the time over which it lasts.
LIFT = 0.2  # [] typical C_M
BEND_TIME = 0.05  # [s]
WALK = 0.08  # [m/s per sqrt(s)] of the velocity, for what the models of flight do not know
SPIN_WALK = 10.0  # [rad/s per sqrt(s)] of the spin
BOUNCE_SPIN = 10.0  # [rad/s] that a bounce adds to the spin's deviation beyond the table's law
PERFECT_POSITION, PERFECT_SPIN = 1e-4, 1.0  # [m] [rad/s] of readings without noise, for rounding

PREDICTION_STEP = 0.02  # [s]
SEARCH_STEPS = 65  # 1.28 s and two bounces; the slowest ball bounces after 0.9 s
PATH_TIME = 0.5  # [s] for which `Sensed.path` is valid
_PATH_STEPS = round(PATH_TIME / PREDICTION_STEP)
NEWTON_STEPS = 4


@dataclasses.dataclass(frozen=True)
class SensingConfig:
    """The defaults are Ace's published numbers; share, drop-outs and history are ours."""

    rate: float = 200.0  # [Hz] of readings of position, and of spin
    position_noise: float = 0.003  # [m] mean distance between a reading and the ball
    latency: float = 0.0202  # [s] from the moment that is measured to the policy
    spin_noise: float = 25.0  # [rad/s] mean size of a spin reading's random error
    spin_bias: float = 0.03  # standard deviation of a ball's systematic spin error, as a share
    spin_dropout: tuple[float, float] = (0.02, 0.06)  # [s] without spin after a stroke or bounce
    history: int = 8  # newest position readings that the policy sees
    perfect: bool = False  # no noise, no latency, no drop-outs

    def __post_init__(self):
        if not 100.0 <= self.rate <= 1000.0:
            raise ValueError(f"rate must be in [100, 1000], got {self.rate}")
        for name in "position_noise spin_noise spin_bias".split():
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.latency <= 0.03:
            raise ValueError(f"latency must be in [0, 0.03], got {self.latency}")
        if not 0 <= self.spin_dropout[0] <= self.spin_dropout[1]:
            raise ValueError(f"spin_dropout must be a range from 0 up, got {self.spin_dropout}")
        if self.history < 1:
            raise ValueError(f"history must be at least 1, got {self.history}")


@struct.dataclass
class _Sensors:
    """The numbers of a configuration, as arrays: changing them compiles nothing."""

    tick: Array | float  # [] between readings [s]
    latency: Array | float  # [] [s]
    position_sd: Array | float  # [] per axis [m]
    spin_sd: Array | float  # [] per axis [rad/s]
    spin_bias: Array | float  # [] standard deviation of the systematic share
    spin_dropout: Array | np.ndarray  # [2] [s]


def _sensors(config: SensingConfig) -> _Sensors:
    # An isotropic Gaussian vector of deviation s per axis is s sqrt(8 / pi) long on average, so a
    # mean error of 3.0 mm is 1.88 mm per axis.
    per_axis = float(np.sqrt(np.pi / 8.0))
    real = 0.0 if config.perfect else 1.0
    return _Sensors(
        tick=1.0 / config.rate,
        latency=real * config.latency,
        position_sd=real * per_axis * config.position_noise,
        spin_sd=real * per_axis * config.spin_noise,
        spin_bias=real * config.spin_bias,
        spin_dropout=real * np.array(config.spin_dropout, np.float32),
    )


def _num_ticks(config: SensingConfig) -> int:
    """Readings of a ball until the last control step."""
    return int((NUM_CONTROLS - 1) * CONTROL_STEP * config.rate) + 1


@struct.dataclass
class Sensed:
    """`N` balls at `K` control steps, the k-th 0.032 k seconds after the stroke."""

    history: Array  # [N, K, H, 3] the newest position readings, newest first, 0 where none [m]
    history_age: Array  # [N, K, H] time since each was true [s]
    history_mask: Array  # [N, K, H] bool, whether there is one
    spin_reading: Array  # [N, K, 3] the newest one, 0 before the first [rad/s]
    spin_age: Array  # [N, K] [s], `OLDEST` if there is none since the last contact
    estimate: Array  # [N, K, 9] of position, velocity and spin now
    estimate_sd: Array  # [N, K, 3] of each, per axis
    bounced: Array  # [N, K] bool, whether the filter takes it to have bounced on the robot's half
    path: Array  # [N, K, 3, 4] cubic of the way after that bounce, see `on_path`
    path_time: Array  # [N, K] from now to that bounce, 0 if it is past [s]
    path_spin: Array  # [N, K, 3] after that bounce [rad/s]


def on_path(path: Array, time: Array | float) -> Array:
    """Predicted positions [..., 3] from `path` [..., 3, 4], `time` [...] [s] after `path_time`;
    valid to `PATH_TIME`."""
    time = jnp.asarray(time)[..., None]
    c0, c1, c2, c3 = (path[..., i] for i in range(4))
    return ((c3 * time + c2) * time + c1) * time + c0


def _path_fit() -> np.ndarray:
    """[4, T]: positions at the steps of the path to the coefficients of its cubic.

    Least squares with weights that halve in 0.1 s: an early error costs more than a late one.
    """
    t = PREDICTION_STEP * np.arange(_PATH_STEPS + 1)
    weight = 0.5 ** (t / 0.1)
    return np.linalg.pinv(weight[:, None] * t[:, None] ** np.arange(4)) * weight


@struct.dataclass
class _Contacts:
    """Of one ball: stroke, a serve's first bounce (for others the stroke again), own bounce."""

    time: Array  # [3] [s]
    spin: Array  # [3, 3] after each [rad/s]


def _contacts(ball: Incoming) -> _Contacts:
    # A serve's first bounce turns it upwards, close to the table; the bank does not keep its time.
    low, vz = ball.position[:-1, 2] < 0.1, ball.velocity[:, 2]
    turns = low & (vz[:-1] < 0.0) & (vz[1:] > 0.0)
    index = jnp.argmax(turns)
    drop = (ball.position[index, 2] - RADIUS) / jnp.maximum(-vz[index], 1e-3)
    first = SAMPLE_STEP * index + jnp.clip(drop, 0.0, SAMPLE_STEP)
    first = jnp.where(ball.serve, jnp.where(jnp.any(turns), first, jnp.inf), 0.0)
    return _Contacts(
        time=jnp.stack([jnp.zeros(()), first, ball.bounce_time]),
        spin=jnp.stack([jnp.where(ball.serve, ball.start[6:], ball.spin[0]), *ball.spin]),
    )


def _last_contact(contacts: _Contacts, time: Array) -> Array:
    """[] int32, the last of the three before `time`."""
    return jnp.sum(time >= contacts.time[1:])


def _true_position(model: FlightModel, ball: Incoming, contacts: _Contacts, time: Array) -> Array:
    """[3] at any `time` [s].

    The ball flown forward from the sample before agrees with the one flown backward from the sample
    after, unless it bounces between them; then the higher of the two is right.
    """

    def flown(index: Array) -> Array:
        at = SAMPLE_STEP * index
        spin = contacts.spin[_last_contact(contacts, at)]
        start = Ball(ball.position[index], ball.velocity[index], spin)
        return fly(model, AIR, start, time - at).position

    index = jnp.clip(jnp.floor(time / SAMPLE_STEP).astype(jnp.int32), 0, NUM_SAMPLES - 2)
    before, after = jax.vmap(flown)(index + jnp.arange(2))
    return jnp.where(after[2] > before[2], after, before)


@struct.dataclass
class _Readings:
    """Of one ball, `M` ticks in order."""

    time: Array  # [M] at which each is true [s]
    position: Array  # [M, 3] [m]
    spin: Array  # [M, 3] [rad/s]
    spin_seen: Array  # [M] bool, False in drop-outs
    contact: Array  # [M] int32, the last one before the reading


def _measure(
    sensors: _Sensors, num_ticks: int, model: FlightModel, ball: Incoming, key: Key
) -> _Readings:
    phase_key, position_key, spin_key, bias_key, dropout_key = jax.random.split(key, 5)
    contacts = _contacts(ball)
    time = sensors.tick * (jnp.arange(num_ticks) + jax.random.uniform(phase_key))
    last = jax.vmap(lambda t: _last_contact(contacts, t))(time)
    position = jax.vmap(lambda t: _true_position(model, ball, contacts, t))(time)
    noise = jax.random.normal(position_key, position.shape)
    share = sensors.spin_bias * jax.random.normal(bias_key)
    spin_noise = jax.random.normal(spin_key, position.shape)
    low, high = sensors.spin_dropout
    gap = jax.random.uniform(dropout_key, (3,), minval=low, maxval=high)
    return _Readings(
        time=time,
        position=position + sensors.position_sd * noise,
        spin=(1.0 + share) * contacts.spin[last] + sensors.spin_sd * spin_noise,
        spin_seen=time - contacts.time[last] >= gap[last],
        contact=last,
    )


@struct.dataclass
class _Belief:
    """The filter's state."""

    ball: Ball
    time: Array  # [] of which it is the state [s]
    position_var: Array  # [] per axis [m^2]
    cross_var: Array  # [] of position and velocity [m^2/s]
    velocity_var: Array  # [] [m^2/s^2]
    spin_var: Array  # [] without the share that is systematic [rad^2/s^2]
    touches: Array  # [] int32, touches of the table before the robot may play: 0 after its bounce


def _fly_or_bounce(
    model: FlightModel, ball: Ball, time: Array | float, may_bounce: Array
) -> tuple[Array, Array, Ball, Ball]:
    """A step of `time` [s], at most 40 ms, over a table that reaches on without end behind the
    robot's edge (a legal ball never needs that, but a doubtful estimate should not fall past).

    Returns whether it bounces [], when as a share of the step [], the ball that bounced, and the
    ball that flew on without a bounce.
    """
    end = fly(model, AIR, ball, time)
    a, b = ball.position, end.position
    va, vb = ball.velocity * time, end.velocity * time
    # The cubic Hermite path, a + va t + c t^2 + d t^3.
    c, d = 3.0 * (b - a) - 2.0 * va - vb, 2.0 * (a - b) + va + vb

    def refine(_, t: Array) -> Array:
        height = ((d[2] * t + c[2]) * t + va[2]) * t + a[2] - RADIUS
        slope = (3.0 * d[2] * t + 2.0 * c[2]) * t + va[2]
        return jnp.clip(t - height / jnp.minimum(slope, -1e-6), 0.0, 1.0)

    guess = jnp.clip((a[2] - RADIUS) / jnp.maximum(a[2] - b[2], 1e-9), 0.0, 1.0)
    share = jax.lax.fori_loop(0, NEWTON_STEPS, refine, guess)
    at = Ball(
        position=((d * share + c) * share + va) * share + a,
        velocity=((3.0 * d * share + 2.0 * c) * share + va) / jnp.maximum(time, 1e-6),
        spin=ball.spin + share * (end.spin - ball.spin),
    )
    falls = (b[2] < RADIUS) & (end.velocity[2] < 0.0)
    bounces = falls & may_bounce & (at.position[0] < HALF_LENGTH + RADIUS)
    return bounces, share, bounce(TABLE, at, jnp.array([0.0, 0.0, 1.0])), end


def _where(condition: Array, yes: Ball, no: Ball) -> Ball:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _spin_sd(sensors: _Sensors, belief: _Belief) -> Array:
    """[rad/s] per axis, with the systematic share."""
    systematic = sensors.spin_bias**2 * jnp.sum(belief.ball.spin**2) / 3.0
    return jnp.sqrt(belief.spin_var + systematic)


def _forward(sensors: _Sensors, model: FlightModel, belief: _Belief, time: Array) -> _Belief:
    """The belief at a later `time` [s], at most 40 ms on."""
    step = time - belief.time
    bounces, share, bounced, end = _fly_or_bounce(model, belief.ball, step, belief.touches > 0)
    ball = _where(bounces, fly(model, AIR, bounced, (1.0 - share) * step), end)
    spin_sd = _spin_sd(sensors, belief)
    speed = jnp.sqrt(jnp.sum(ball.velocity**2))
    bend = LIFT_FACTOR * LIFT * speed * spin_sd
    pp, pv, vv = belief.position_var, belief.cross_var, belief.velocity_var
    pp, pv = pp + (2.0 * pv + vv * step) * step, pv + vv * step
    vv = vv + (WALK**2 + BEND_TIME * bend**2) * step
    # Rolling passes a share of the spin's error on to the velocity, and of the velocity's to it.
    spin_var = belief.spin_var + BOUNCE_SPIN**2 + (1.5 * ROLLING / RADIUS) ** 2 * vv
    return _Belief(
        ball=ball,
        time=time,
        position_var=pp,
        cross_var=pv,
        velocity_var=jnp.where(bounces, vv + (ROLLING * RADIUS * spin_sd) ** 2, vv),
        spin_var=jnp.where(bounces, spin_var, belief.spin_var) + SPIN_WALK**2 * step,
        touches=belief.touches - bounces,
    )


def _believe(sensors: _Sensors, model: FlightModel, serve: Array, readings: _Readings) -> _Belief:
    """Beliefs [M + 1]: the prior at the stroke, then after each reading."""
    noise = jnp.maximum(sensors.position_sd, PERFECT_POSITION) ** 2
    spin_noise = jnp.maximum(sensors.spin_sd, PERFECT_SPIN) ** 2
    prior = _Belief(
        ball=to_ball(jnp.where(serve, PRIOR[1], PRIOR[0])),
        time=jnp.zeros(()),
        position_var=jnp.asarray(PRIOR_POSITION**2),
        cross_var=jnp.zeros(()),
        velocity_var=jnp.asarray(PRIOR_VELOCITY**2),
        spin_var=jnp.asarray(PRIOR_SPIN**2),
        touches=jnp.where(serve, 2, 1),
    )

    def tick(belief: _Belief, reading: _Readings):
        belief = _forward(sensors, model, belief, reading.time)
        ball = belief.ball
        pp, pv, vv = belief.position_var, belief.cross_var, belief.velocity_var
        miss = reading.position - ball.position
        gain, velocity_gain = pp / (pp + noise), pv / (pp + noise)
        spin_gain = jnp.where(
            reading.spin_seen, belief.spin_var / (belief.spin_var + spin_noise), 0.0
        )
        belief = dataclasses.replace(
            belief,
            ball=Ball(
                position=ball.position + gain * miss,
                velocity=ball.velocity + velocity_gain * miss,
                spin=ball.spin + spin_gain * (reading.spin - ball.spin),
            ),
            position_var=noise * gain,
            cross_var=noise * velocity_gain,
            velocity_var=vv - pv * velocity_gain,
            spin_var=(1.0 - spin_gain) * belief.spin_var,
        )
        return belief, belief

    _, beliefs = jax.lax.scan(tick, prior, readings)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), prior, beliefs)


def _predict(model: FlightModel, ball: Ball, touches: Array) -> tuple[Array, Array, Array]:
    """From the ball now [] and the touches before the robot may play: the cubic [3, 4] of its way
    after them, the time until then [] and the spin then [3]."""

    def search(carry: tuple[Ball, Array, Array], _):
        ball, touches, time = carry
        bounces, share, bounced, end = _fly_or_bounce(model, ball, PREDICTION_STEP, touches > 0)
        searching = touches > 0
        step = jnp.where(bounces, share, 1.0) * PREDICTION_STEP
        ball = _where(searching, _where(bounces, bounced, end), ball)
        return (ball, touches - bounces, time + jnp.where(searching, step, 0.0)), None

    def follow(ball: Ball, _):
        return fly(model, AIR, ball, PREDICTION_STEP), ball.position

    (first, _, time), _ = jax.lax.scan(
        search, (ball, touches, jnp.zeros(())), None, length=SEARCH_STEPS
    )
    _, way = jax.lax.scan(follow, first, None, length=_PATH_STEPS + 1)
    return (jnp.asarray(_path_fit(), way.dtype) @ way).T, time, first.spin


def _sense_ball(
    sensors: _Sensors,
    num_ticks: int,
    history: int,
    model: FlightModel,
    ball: Incoming,
    key: Key,
) -> Sensed:
    """One ball; leaves [K, ...]."""
    readings = _measure(sensors, num_ticks, model, ball, key)
    beliefs = _believe(sensors, model, ball.serve, readings)
    # The last spin reading at or before each tick, -1 if there is none.
    last_spin = jax.lax.cummax(jnp.where(readings.spin_seen, jnp.arange(num_ticks), -1))

    def control(now: Array) -> Sensed:
        arrived = jnp.sum(readings.time <= now - sensors.latency)
        belief = jax.tree.map(lambda leaf: leaf[arrived], beliefs)
        belief = _forward(sensors, model, belief, now)
        path, path_time, path_spin = _predict(model, belief.ball, belief.touches)

        tick = arrived - 1 - jnp.arange(history)
        exists = tick >= 0
        tick = jnp.maximum(tick, 0)
        newest = jnp.maximum(arrived - 1, 0)
        spin_tick = jnp.where(arrived > 0, last_spin[newest], -1)
        has_spin = spin_tick >= 0
        spin_tick = jnp.maximum(spin_tick, 0)
        fresh = has_spin & (readings.contact[spin_tick] == readings.contact[newest])
        spin_age = jnp.minimum(now - readings.time[spin_tick], OLDEST)
        sd = [
            jnp.sqrt(belief.position_var),
            jnp.sqrt(belief.velocity_var),
            _spin_sd(sensors, belief),
        ]
        return Sensed(
            history=jnp.where(exists[:, None], readings.position[tick], 0.0),
            history_age=jnp.where(exists, now - readings.time[tick], 0.0),
            history_mask=exists,
            spin_reading=jnp.where(has_spin, readings.spin[spin_tick], 0.0),
            spin_age=jnp.where(fresh, spin_age, OLDEST),
            estimate=jnp.concatenate(
                [belief.ball.position, belief.ball.velocity, belief.ball.spin]
            ),
            estimate_sd=jnp.stack(sd),
            bounced=belief.touches == 0,
            path=path,
            path_time=path_time,
            path_spin=path_spin,
        )

    return jax.vmap(control)(CONTROL_STEP * jnp.arange(NUM_CONTROLS))


@functools.partial(jax.jit, static_argnames=("num_ticks", "history", "model"))
def _sense_chunk(
    sensors: _Sensors,
    bank: Incoming,
    key: Key,
    rows: Array,
    *,
    num_ticks: int,
    history: int,
    model: FlightModel,
) -> Sensed:
    def one(ball: Incoming, row: Array) -> Sensed:
        ball_key = jax.random.fold_in(key, row)
        return _sense_ball(sensors, num_ticks, history, model, ball, ball_key)

    return jax.vmap(one)(bank, rows)


def sense(config: SensingConfig, model: FlightModel, bank: Incoming, key: Key) -> Sensed:
    """What is sensed of every ball of the bank, as numpy arrays.

    A ball's noise depends on `key` and on its row only, not on how many balls there are.

    Args:
      model: of the filter's flights, the one that the bank was flown with or another.
    """
    sensors, parts, num_balls = _sensors(config), [], len(bank.start)
    for first in range(0, num_balls, CHUNK):
        rows = np.arange(first, first + CHUNK)  # always the same shapes, so one compilation
        sensed = _sense_chunk(
            sensors,
            select(bank, np.minimum(rows, num_balls - 1)),
            key,
            rows,
            num_ticks=_num_ticks(config),
            history=config.history,
            model=model,
        )
        parts.append(jax.device_get(sensed))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num_balls], *parts)
