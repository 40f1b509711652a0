"""Sensing: what is measured is as configured and as late, and the filter is worth its name."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from projects.ace import sensing
from projects.ace.events import HALF_LENGTH, HALF_WIDTH
from projects.ace.incoming import SAMPLE_STEP, Incoming, make_flights, select
from projects.ace.sensing import CONTROL_STEP, NUM_CONTROLS, OLDEST, Sensed, SensingConfig, sense
from projects.ace.shots import shot_states

CONFIG = SensingConfig()
PERFECT = SensingConfig(perfect=True)
KEY = jax.random.key(3)
TIMES = CONTROL_STEP * np.arange(NUM_CONTROLS)
SAMPLES = 8  # of the bank per control step


@pytest.fixture(scope="module")
def bank() -> Incoming:
    """About 200 legal balls, a quarter of them serves; none touches the table's edge."""
    rng = np.random.default_rng(0)
    draws = [
        shot_states(kind, rng.integers(0, 2, count), rng.normal(size=(count, 9)), 1.0)  # pyright: ignore[reportArgumentType]
        for kind, count in (("rally", 400), ("serve", 112))
    ]
    flights = make_flights("conti")
    flown = flights(np.concatenate(draws), np.arange(512) >= 400)
    place = flown.position[np.arange(512), np.int32(np.nan_to_num(flown.bounce_time) / SAMPLE_STEP)]
    edge = np.array([HALF_LENGTH, HALF_WIDTH]) - 0.05
    inner = (np.abs(place[:, :2]) < edge).all(1) & (flown.start[:, 0] > 0.5)
    flown = select(flown, np.flatnonzero(flown.legal & inner)[-256:])
    assert 150 < len(flown.start) <= 256 and 30 < flown.serve.sum()
    return flown


@pytest.fixture(scope="module")
def sensed(bank) -> Sensed:
    return sense(CONFIG, "conti", bank, KEY)


@pytest.fixture(scope="module")
def perfect(bank) -> Sensed:
    return sense(PERFECT, "conti", bank, KEY)


def smooth(bank: Incoming, time: np.ndarray) -> np.ndarray:
    """Where `time` [N, ...] lies more than two samples from a bounce; for a serve, past its first
    one, and before the ball is dead."""
    shape = (-1,) + (1,) * (time.ndim - 1)
    first = np.where(bank.serve, first_bounce(bank) + 2 * SAMPLE_STEP, 0.0).reshape(shape)
    bounce, end = bank.bounce_time.reshape(shape), bank.end_time.reshape(shape)
    away = np.abs(time - bounce) > 2 * SAMPLE_STEP
    return away & (time > first) & (time < end - 2 * SAMPLE_STEP)


def first_bounce(bank: Incoming) -> np.ndarray:
    """[N] the sample before a serve's first bounce [s]."""
    vz, low = bank.velocity[..., 2], bank.position[:, :-1, 2] < 0.1
    return SAMPLE_STEP * np.argmax((vz[:, :-1] < 0) & (vz[:, 1:] > 0) & low, axis=1)


def true_position(bank: Any, time: np.ndarray) -> Any:
    """[N, T, 3] at `time` [N, T], by cubic Hermite polynomials between the bank's samples."""
    k = np.clip((time / SAMPLE_STEP).astype(int), 0, bank.position.shape[1] - 2)
    u = (time / SAMPLE_STEP - k)[..., None]
    row = np.arange(len(time))[:, None]
    a, b = bank.position[row, k], bank.position[row, k + 1]
    va, vb = (SAMPLE_STEP * bank.velocity[row, i] for i in (k, k + 1))
    c, d = 3 * (b - a) - 2 * va - vb, 2 * (a - b) + va + vb
    return ((d * u + c) * u + va) * u + a


def true_spin(bank: Incoming, time: np.ndarray) -> np.ndarray:
    """[N, T, 3] at `time` [N, T]."""
    after = (time >= bank.bounce_time[:, None])[..., None]
    spin = np.where(after, bank.spin[:, None, 1], bank.spin[:, None, 0])
    early = bank.serve[:, None] & (time <= first_bounce(bank)[:, None])
    return np.where(early[..., None], bank.start[:, None, 6:], spin)


def norm(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=-1)


def estimate_errors(bank: Incoming, sensed: Sensed, step: int) -> tuple[Any, ...]:
    """Position, velocity and spin, each [n, 3], of the balls that are away from bounces."""
    time = np.full((len(bank.start), 1), TIMES[step])
    good = smooth(bank, time)[:, 0]
    e = sensed.estimate[:, step]
    truth = bank.position[:, SAMPLES * step], bank.velocity[:, SAMPLES * step]
    return (
        (e[:, :3] - truth[0])[good],
        (e[:, 3:6] - truth[1])[good],
        (e[:, 6:] - true_spin(bank, time)[:, 0])[good],
    )


def crossings(bank: Incoming, sensed: Sensed, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the predicted moment [s] and place [m] at the plane x = -1.6, of balls that reach
    it over the table within half a second of their bounce and did not yet at `step`."""

    def cross(time: np.ndarray, way: Any) -> tuple[float, np.ndarray] | None:
        k = int(np.argmax(way[:, 0] <= -1.6))
        if way[k, 0] > -1.6 or k == 0:
            return None
        u = (way[k - 1, 0] + 1.6) / (way[k - 1, 0] - way[k, 0])
        return time[k - 1] + u * (time[k] - time[k - 1]), way[k - 1] + u * (way[k] - way[k - 1])

    grid, errors = np.arange(0.0, sensing.PATH_TIME, 0.002), []
    for i in range(len(bank.start)):
        times = SAMPLE_STEP * np.arange(bank.position.shape[1])
        way = (times > bank.bounce_time[i]) & (times < bank.end_time[i])
        truth = cross(times[way], bank.position[i, way])
        if truth is None or not TIMES[step] < truth[0] < bank.bounce_time[i] + 0.4:
            continue
        path = np.asarray(sensing.on_path(sensed.path[i, step][None], jax.numpy.asarray(grid)))
        found = cross(TIMES[step] + sensed.path_time[i, step] + grid, path)
        if found is None:
            errors.append((np.inf, np.inf))
        else:
            errors.append((abs(found[0] - truth[0]), norm(found[1] - truth[1])))
    assert len(errors) > 80
    time, place = np.array(errors).T
    return time, place


def test_shapes_and_types(bank, sensed):
    shapes = {
        "history": (8, 3),
        "history_age": (8,),
        "history_mask": (8,),
        "spin_reading": (3,),
        "spin_age": (),
        "estimate": (9,),
        "estimate_sd": (3,),
        "bounced": (),
        "path": (3, 4),
        "path_time": (),
        "path_spin": (3,),
    }
    assert set(vars(sensed)) == set(shapes)
    for name, shape in shapes.items():
        leaf = getattr(sensed, name)
        assert isinstance(leaf, np.ndarray) and leaf.shape == (len(bank.start), 45, *shape)
        assert leaf.dtype == (bool if name in ("history_mask", "bounced") else np.float32)
        assert np.isfinite(leaf).all(), name


@pytest.mark.parametrize("step", [4, 9, 15])
def test_nothing_newer_than_the_latency_is_used(bank, sensed, step):
    newest = TIMES[step] - CONFIG.latency
    # A reading lies between two samples, so the one after it may still count.
    later = SAMPLE_STEP * np.arange(bank.position.shape[1]) > newest + SAMPLE_STEP
    position, velocity, spin = bank.position.copy(), bank.velocity.copy(), bank.spin.copy()
    position[:, later] += 1.0
    velocity[:, later] *= -1.0
    spin[bank.bounce_time > newest, 1] += 300.0
    spin[bank.serve & (first_bounce(bank) > newest), 0] += 300.0
    other = dataclasses.replace(
        bank,
        position=position,
        velocity=velocity,
        spin=spin,
        bounce_time=np.where(bank.bounce_time > newest, newest + 0.001, bank.bounce_time),
        end_time=np.where(bank.end_time > newest, newest + 0.001, bank.end_time),
    )
    changed = sense(CONFIG, "conti", other, KEY)
    for name, leaf in vars(sensed).items():
        now = getattr(changed, name)
        np.testing.assert_array_equal(now[:, : step + 1], leaf[:, : step + 1], err_msg=name)
    assert (norm(changed.estimate - sensed.estimate)[:, step + 1] > 0.1).all()


def test_ages_are_the_latency_and_a_random_phase(sensed):
    age = sensed.history_age[:, 2:]  # of complete histories, from the third step on
    assert sensed.history_mask[:, 2:].all() and not sensed.history_mask[:, 0].any()
    assert age[..., 0].min() >= CONFIG.latency - 1e-6
    assert age[..., 0].max() <= CONFIG.latency + 0.005 + 1e-6
    phase = (age[:, 0, 0] - CONFIG.latency) / 0.005
    assert abs(phase.mean() - 0.5) < 0.08 and abs(phase.std() - 12**-0.5) < 0.04
    np.testing.assert_allclose(np.diff(age, axis=-1), 0.005, atol=1e-6)
    partial = ~sensed.history_mask
    assert (sensed.history[partial] == 0).all() and partial[:, 1].any()


def position_noise(bank: Incoming, sensed: Sensed) -> tuple[Any, Any]:
    """Errors of the newest six readings of each step [N, K, 6, 3] and which are good [N, K, 6]."""
    time = TIMES[:, None] - sensed.history_age[..., :6]
    truth = true_position(bank, time.reshape(len(time), -1)).reshape(*time.shape, 3)
    return sensed.history[..., :6, :] - truth, sensed.history_mask[..., :6] & smooth(bank, time)


def test_position_noise_is_as_configured(bank, sensed):
    error, good = position_noise(bank, sensed)
    assert good.sum() > 10_000
    assert norm(error[good]).mean() == pytest.approx(0.003, rel=0.03)
    np.testing.assert_allclose(error[good].std(axis=0), 0.00188, rtol=0.05)
    np.testing.assert_allclose(error[good].mean(axis=0), 0.0, atol=1e-4)
    pairs = good[..., 1:] & good[..., :-1]  # successive readings
    assert abs(np.corrcoef(error[..., 1:, 0][pairs], error[..., :-1, 0][pairs])[0, 1]) < 0.05


def test_spin_noise_and_its_systematic_share_are_as_configured(bank, sensed):
    fresh = sensed.spin_age < OLDEST
    time = TIMES - sensed.spin_age
    fresh &= smooth(bank, time)
    truth = true_spin(bank, time)
    error = sensed.spin_reading - truth
    # A ball's systematic share drops out of differences between readings of the same spin.
    pairs = fresh[:, 1:] & fresh[:, :-1] & (truth[:, 1:] == truth[:, :-1]).all(-1)
    difference = norm(error[:, 1:] - error[:, :-1])[pairs]
    assert pairs.sum() > 2000
    assert difference.mean() / np.sqrt(2) == pytest.approx(25.0, rel=0.03)
    shares, variances = [], []
    for i in np.flatnonzero(norm(bank.spin[:, 0]) > 150):
        w = truth[i, fresh[i]]
        weight = np.sum(w**2)
        shares.append(np.sum(error[i, fresh[i]] * w) / weight)
        variances.append(15.67**2 / weight)
    assert len(shares) > 80
    assert np.sqrt(np.var(shares) - np.mean(variances)) == pytest.approx(0.03, rel=0.25)


def test_spin_is_missing_for_a_while_after_stroke_and_bounce(bank, sensed):
    low, high = CONFIG.spin_dropout
    newest = TIMES - sensed.history_age[..., 0]  # of the position readings, which never drop out
    fresh = sensed.spin_age < OLDEST
    seen = TIMES - sensed.spin_age  # when the fresh ones were true
    stroke = np.where(bank.serve, np.inf, 0.0)  # serves bounce too soon after it
    for contact, until in ((stroke, bank.bounce_time), (bank.bounce_time, bank.end_time)):
        since = np.where(sensed.history_mask[..., 0], newest - contact[:, None], -1.0)
        current = (since >= 0) & (newest < until[:, None])
        assert not fresh[current & (since < low)].any()
        assert fresh[current & (since > high)].all()
        middle = current & (np.abs(since - (low + high) / 2) < 0.01)
        assert middle.sum() > 40 and 0.3 < fresh[middle].mean() < 0.7
        assert (seen - contact[:, None])[current & fresh].min() >= low - 1e-5
    assert (sensed.spin_age[~fresh] == pytest.approx(OLDEST)) and not fresh[:, 0].any()


def test_perfect_sensing_is_the_truth(bank, perfect):
    error, good = position_noise(bank, perfect)
    assert norm(error[good]).max() < 5e-5
    assert perfect.history_age[:, 1:, 0].max() <= 0.005 + 1e-6
    for step in (2, 6, 12):
        position, velocity, spin = estimate_errors(bank, perfect, step)
        assert norm(position).max() < 2e-4
        assert norm(velocity).max() < 0.02
        assert norm(spin).max() < 1.0


@pytest.mark.parametrize("step", [3, 8])
def test_perfect_predictions_agree_with_the_bank(bank, perfect, step):
    time, place = crossings(bank, perfect, step)
    assert np.median(place) < 5e-4 and place.max() < 0.01
    assert np.median(time) < 1e-4 and time.max() < 1e-3
    before = (bank.bounce_time > TIMES[step] + 0.002) & ~perfect.bounced[:, step]
    predicted = TIMES[step] + perfect.path_time[before, step]
    np.testing.assert_allclose(predicted, bank.bounce_time[before], atol=2e-3)
    np.testing.assert_allclose(perfect.path_spin[before, step], bank.spin[before, 1], atol=4.0)


def test_the_filter_beats_finite_differences(bank, sensed):
    for step in (4, 8):
        error = norm(estimate_errors(bank, sensed, step)[1])
        newest, oldest = sensed.history[:, step, 0], sensed.history[:, step, -1]
        span = sensed.history_age[:, step, -1] - sensed.history_age[:, step, 0]
        raw = (newest - oldest) / span[:, None] - bank.velocity[:, SAMPLES * step]
        assert np.median(error) < 0.12 * np.median(norm(raw))
        # Where the ball is now: the same velocity, from the newest reading over its age.
        age = sensed.history_age[:, step, :1]
        raw_now = newest + (raw + bank.velocity[:, SAMPLES * step]) * age
        raw_error = norm(raw_now - bank.position[:, SAMPLES * step])
        error = norm(estimate_errors(bank, sensed, step)[0])
        assert np.median(error) < 0.0025 and np.median(error) < 0.3 * np.median(raw_error)


@pytest.mark.parametrize("step", [6, 10])
def test_stated_deviations_cover_the_errors(bank, sensed, step):
    errors = estimate_errors(bank, sensed, step)
    sds = np.median(sensed.estimate_sd[:, step], axis=0)
    for error, sd in zip(errors, sds, strict=True):
        ratio = np.sqrt(np.median(error**2) / 0.455) / sd  # 0.455: the median of a chi-square
        assert 0.35 < ratio < 1.2


def test_predictions_are_good_enough_to_play_and_improve(bank, sensed):
    time, place = crossings(bank, sensed, 6)
    assert np.median(place) < 0.008 and np.quantile(place, 0.9) < 0.025
    assert np.median(time) < 1.5e-3 and np.quantile(time, 0.9) < 7e-3
    early = crossings(bank, sensed, 2)[1]
    assert np.median(place) < 0.25 * np.median(early)


def test_the_filter_knows_when_the_ball_has_bounced(bank, sensed):
    from_bounce = TIMES - bank.bounce_time[:, None]
    live = bank.end_time[:, None] > TIMES
    clear = live & (np.abs(from_bounce) > 0.006)
    np.testing.assert_array_equal(sensed.bounced[clear], (from_bounce > 0)[clear])
    assert (sensed.path_time[sensed.bounced] == 0).all()
    np.testing.assert_allclose(
        sensed.path[sensed.bounced][..., 0], sensed.estimate[sensed.bounced][:, :3], atol=0.05
    )


def test_one_compilation_serves_any_number_of_balls(bank, sensed):
    chunk: Any = sensing._sense_chunk
    compiled = chunk._cache_size()
    few = sense(CONFIG, "conti", select(bank, slice(7)), KEY)
    assert chunk._cache_size() == compiled
    for name, leaf in vars(few).items():
        np.testing.assert_array_equal(leaf, getattr(sensed, name)[:7], err_msg=name)


def test_another_key_is_another_noise(bank, sensed):
    other = sense(CONFIG, "conti", bank, jax.random.key(4))
    assert (other.history_age[:, 3, 0] != sensed.history_age[:, 3, 0]).mean() > 0.99
    assert len(np.unique(sensed.history_age[:, 3, 0])) == len(bank.start)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 20.0},
        {"position_noise": -0.001},
        {"spin_noise": -1.0},
        {"spin_bias": -0.1},
        {"latency": -0.01},
        {"latency": 0.2},
        {"spin_dropout": (0.06, 0.02)},
        {"history": 0},
    ],
)
def test_wrong_configurations_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SensingConfig(**wrong)
