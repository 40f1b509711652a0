"""Pictures and the replay page, on a circuit and a drive that are known in closed form.

The circuit is r(a) = 190 + 50 cos 2a + 25 sin 3a metres around the origin, the driver follows a
given offset from its centre line at the speed that a friction circle of 1.2 g allows.
"""

import io
import json
import re
from dataclasses import fields, replace

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import PathPatch
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from projects.sophy.circuits import load_circuit
from projects.sophy.drive import (
    DriveError,
    best_lap,
    reference_delta,
    split_laps,
    surface_patches,
)
from projects.sophy.laps import outline_of
from projects.sophy.render import (
    ANIMATION_RATE,
    ANIMATION_SPEED,
    CircuitOutline,
    Drive,
    ReferenceProfile,
    lap_animation,
    replay_html,
    save_png,
    telemetry,
    track_map,
)
from projects.sophy.replay import PALETTE, is_bright
from projects.sophy.surfaces import SURFACES
from projects.sophy.track import NUM_NODES, ROAD

NUM_POINTS = 600
GRIP = 12.0  # [m/s^2]
FORWARD = 5.0  # [m/s^2]
TOP_SPEED = 60.0  # [m/s]


def make_outline(points: np.ndarray, half_width: float = 6.0) -> tuple[CircuitOutline, np.ndarray]:
    """An outline with equal arc steps through dense closed points [M, 2], and its curvature [N]."""
    step = np.linalg.norm(np.diff(points, axis=0, append=points[:1]), axis=1)
    along = np.concatenate([[0.0], np.cumsum(step)])
    length = float(along[-1])
    s = np.linspace(0.0, length, NUM_POINTS, endpoint=False)
    closed = np.concatenate([points, points[:1]])
    centre = np.stack([np.interp(s, along, closed[:, k]) for k in (0, 1)], axis=1)
    first = (np.roll(centre, -1, 0) - np.roll(centre, 1, 0)) * NUM_POINTS / (2 * length)
    heading = np.unwrap(np.arctan2(first[:, 1], first[:, 0]))
    turn = (np.roll(heading, -1) - np.roll(heading, 1) + np.pi) % (2 * np.pi) - np.pi
    curvature = turn * NUM_POINTS / (2 * length)
    kernel = np.hanning(9) / np.hanning(9).sum()
    curvature = np.convolve(np.pad(curvature, 4, mode="wrap"), kernel, mode="valid")
    normal = np.stack([-np.sin(heading), np.cos(heading)], axis=1)
    left, right = centre + half_width * normal, centre - half_width * normal
    outline = CircuitOutline(s, centre, left, right, left + 5 * normal, right - 5 * normal, length)
    return outline, curvature


def speed_profile(curvature: np.ndarray, step: float, grip: float) -> np.ndarray:
    """The highest speed [N] within cornering, braking and acceleration limits, forward and back."""
    speed = np.minimum(TOP_SPEED, np.sqrt(grip / np.maximum(np.abs(curvature), 1e-4)))
    for _ in range(2):
        for i in range(len(speed)):
            speed[i] = min(speed[i], np.sqrt(speed[i - 1] ** 2 + 2 * FORWARD * step))
        for i in reversed(range(len(speed))):
            after = speed[(i + 1) % len(speed)]
            speed[i] = min(speed[i], np.sqrt(after**2 + 2 * 0.8 * grip * step))
    return speed


def make_reference(outline: CircuitOutline, curvature: np.ndarray) -> ReferenceProfile:
    step = outline.length / NUM_POINTS
    speed = speed_profile(curvature, step, GRIP)
    # The rule by which a profile is read: trapezoids of 1 / speed over equal steps sum to the mean.
    return ReferenceProfile(outline.s, speed, float(step * np.sum(1 / speed)))


def make_drive(
    outline: CircuitOutline,
    curvature: np.ndarray,
    num_laps: float = 2.2,
    pace: float = 0.96,
    rate: float = 10.0,
    start: float = 0.0,
    wander: float = 3.5,
) -> Drive:
    """A car at `pace` times the speed profile, from arc length `start` [m] on, `rate` [Hz]."""
    length = outline.length
    step = length / NUM_POINTS
    speed = pace * speed_profile(curvature, step, GRIP)
    travelled = np.arange(start, start + num_laps * length, 0.5)

    def at(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.interp(where % length, np.append(outline.s, length), np.append(values, values[0]))

    clock = np.concatenate([[0.0], np.cumsum(0.5 / at(speed, travelled)[:-1])])
    time = np.arange(0.0, clock[-1], 1 / rate)
    where = np.interp(time, clock, travelled)
    s = where % length
    smooth = np.convolve(np.pad(curvature, 20, mode="wrap"), np.ones(41) / 41, mode="valid")
    line = wander * np.tanh(120 * smooth) + 0.4 * np.sin(outline.s / 35)
    offset = at(line, where)
    side = np.stack([at(outline.left[:, k] - outline.centre[:, k], where) for k in (0, 1)], axis=1)
    centre = np.stack([at(outline.centre[:, k], where) for k in (0, 1)], axis=1)
    position = centre + side / np.linalg.norm(side, axis=1)[:, None] * offset[:, None]
    velocity = np.gradient(position, time, axis=0) if len(time) > 1 else np.ones((1, 2))
    v = at(speed, where)
    forward = np.gradient(v, time) if len(time) > 1 else np.zeros(1)
    sideways = at(curvature, where) * v**2
    ratio = 0.01 * forward[:, None] * np.array([0.6, 0.6, 1.0, 1.0])
    angle = 0.006 * sideways[:, None] * np.array([1.0, 1.0, 0.8, 0.8])
    weight = 3500 + np.stack(
        [sum_ * forward * 60 + sign * sideways * 90 for sum_ in (-1, 1) for sign in (-1, 1)], axis=1
    )
    return Drive(
        time=time,
        s=s,
        position=position,
        heading=np.arctan2(velocity[:, 1], velocity[:, 0]),
        speed=v,
        lateral_offset=offset,
        throttle=np.clip(forward / FORWARD + 0.15, 0, 1),
        brake=np.clip(-forward / 10, 0, 1),
        steering=np.arctan(2.6 * at(curvature, where)) + 0.004 * sideways / GRIP,
        acceleration=np.stack([forward, sideways], axis=1),
        gear=np.clip((v // 9).astype(int), 1, 6),
        slip_ratio=ratio,
        slip_angle=angle,
        load=weight,
        off_course=np.abs(offset) > 4.1,
        wall_contact=np.zeros(len(time), bool),
        lap=(where // length).astype(int),
    )


def steady_drive(speed: float, start: float, num: int, interval: float, length: float) -> Drive:
    """Constant speed along a straight that is called closed; laps are counted on the line."""
    time = np.arange(num) * interval
    travelled = start + speed * time
    none, flat = np.zeros(num), np.zeros((num, 2))
    wheels, flags = np.zeros((num, 4)), np.zeros(num, bool)
    return Drive(
        time=time,
        s=travelled % length,
        position=np.stack([travelled, none], axis=1),
        heading=none,
        speed=np.full(num, speed),
        lateral_offset=none,
        throttle=none,
        brake=none,
        steering=none,
        acceleration=flat,
        gear=np.ones(num, int),
        slip_ratio=wheels,
        slip_angle=wheels,
        load=wheels,
        off_course=flags,
        wall_contact=flags,
        lap=(travelled // length).astype(int),
    )


def first_samples(drive: Drive, num: int) -> Drive:
    return Drive(
        **{
            field.name: getattr(drive, field.name)[:num]
            for field in fields(drive)
            if field.name != "car_size"
        }
    )


def page_data(page: str) -> dict:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert text is not None

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text.group(1), parse_constant=refuse)


@pytest.fixture(scope="module")
def circuit() -> tuple[CircuitOutline, np.ndarray]:
    angle = np.linspace(0, 2 * np.pi, 8000, endpoint=False)
    radius = 190 + 50 * np.cos(2 * angle) + 25 * np.sin(3 * angle)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return make_outline(points)


@pytest.fixture(scope="module")
def outline(circuit) -> CircuitOutline:
    return circuit[0]


@pytest.fixture(scope="module")
def reference(circuit) -> ReferenceProfile:
    return make_reference(*circuit)


@pytest.fixture(scope="module")
def drive(circuit) -> Drive:
    return make_drive(*circuit)


def test_lap_times_are_interpolated_between_samples() -> None:
    # 10 m/s on 100 m from the line: 10 s a lap. Samples every 0.3 s (3 m) straddle the line:
    # the last before it are at 99 m (9.9 s) and 198 m (19.8 s).
    laps = split_laps(steady_drive(10.0, 0.0, 75, 0.3, 100.0), 100.0)
    assert [lap.lap_time for lap in laps] == [pytest.approx(10.0), pytest.approx(10.0), None]
    assert [lap.start for lap in laps] == pytest.approx([0.0, 10.0, 20.0])
    assert [(lap.first, lap.last) for lap in laps] == [(0, 33), (34, 66), (67, 74)]


def test_a_lap_that_was_joined_midway_is_not_whole() -> None:
    # From 40 m: 60 m to the line, one whole lap, then 22 m.
    laps = split_laps(steady_drive(10.0, 40.0, 61, 0.3, 100.0), 100.0)
    assert [lap.lap_time for lap in laps] == [None, pytest.approx(10.0), None]


def test_best_lap_is_the_fastest_whole_one(drive: Drive, outline: CircuitOutline) -> None:
    laps = split_laps(drive, outline.length)
    times = [lap.lap_time for lap in laps if lap.lap_time is not None]
    assert len(times) == 2
    assert best_lap(drive, outline.length).lap_time == min(times)
    without = first_samples(drive, 100)
    assert best_lap(without, outline.length) == split_laps(without, outline.length)[0]


def test_delta_grows_by_the_difference_in_pace_and_starts_anew_each_lap() -> None:
    # Reference 10 m/s, driven 8 m/s: after t seconds of a lap 8 t metres, which took the
    # reference 0.8 t. A lap takes 12.5 s, so the sample at 14.7 s is 2.2 s into the second.
    s = np.linspace(0.0, 100.0, 50, endpoint=False)
    flat = np.stack([s, 0 * s], axis=1)
    outline = CircuitOutline(s, flat, flat, flat, flat, flat, 100.0)
    reference = ReferenceProfile(s, np.full(50, 10.0), 10.0)
    delta = reference_delta(steady_drive(8.0, 0.0, 75, 0.3, 100.0), outline, reference)
    assert delta[40] == pytest.approx(0.2 * 12.0)
    assert delta[49] == pytest.approx(0.2 * 2.2)
    joined = reference_delta(steady_drive(8.0, 40.0, 20, 0.3, 100.0), outline, reference)
    assert joined[0] == pytest.approx(0.0)
    assert joined[10] == pytest.approx(0.2 * 3.0)


def test_the_reference_driver_has_no_delta(circuit, reference: ReferenceProfile) -> None:
    same = make_drive(*circuit, pace=1.0)
    # The trapezoids of the drive (0.5 m) and of the profile (2.2 m) differ by some milliseconds.
    np.testing.assert_allclose(reference_delta(same, circuit[0], reference), 0.0, atol=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": np.zeros(3)}, "drive.speed has shape (3,)"),
        ({"load": np.full((732, 4), np.nan)}, "drive.load is not finite at sample 0"),
        ({"time": np.zeros(732)}, "drive.time must increase, does not at sample 1"),
    ],
)
def test_a_bad_record_is_refused_in_one_line(drive: Drive, change: dict, message: str) -> None:
    with pytest.raises(DriveError) as error:
        replace(drive, **change)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_record_without_samples_is_refused(drive: Drive) -> None:
    with pytest.raises(DriveError, match="at least 1 sample"):
        first_samples(drive, 0)


def test_the_map_shows_the_best_lap_with_equal_axes(
    drive: Drive, outline: CircuitOutline, reference: ReferenceProfile
) -> None:
    figure = track_map(outline, drive, reference, "A title")
    upper, lower = figure.axes[:2]
    assert upper.get_aspect() == 1.0
    lap = best_lap(drive, outline.length)
    coloured = upper.collections[0].get_array()
    # One sample on either side closes the gap to the line: n + 2 samples, n + 1 pieces.
    assert coloured is not None and len(coloured) == lap.last - lap.first + 2
    assert lower.get_xlim() == (0.0, outline.length)
    driven = next(line for line in lower.lines if line.get_label() == "driven")
    top = 3.6 * drive.speed[lap.first : lap.last + 1].max()
    assert np.max(np.asarray(driven.get_ydata())) == pytest.approx(top)
    assert "A title" in figure.get_suptitle()


def test_the_animation_plays_the_best_lap(drive: Drive, outline: CircuitOutline) -> None:
    lap_time = best_lap(drive, outline.length).lap_time
    assert lap_time is not None
    film = Image.open(io.BytesIO(lap_animation(outline, drive, "A title")))
    assert isinstance(film, GifImageFile)
    step = ANIMATION_SPEED / ANIMATION_RATE
    assert film.n_frames == int(np.ceil(lap_time / step)) + 1
    frames = []
    for number in (0, film.n_frames // 2, film.n_frames - 1):
        film.seek(number)
        frames.append(np.asarray(film.convert("RGB"), float))
    red = [np.argwhere(np.abs(frame - [213, 94, 0]).sum(-1) < 60).mean(0) for frame in frames]
    # It comes back to where it began, and was elsewhere between.
    assert np.linalg.norm(red[0] - red[2]) < 8.0
    assert np.linalg.norm(red[0] - red[1]) > 50.0


def test_a_tall_circuit_is_laid_on_its_side(outline: CircuitOutline, drive: Drive) -> None:
    turned = replace(
        outline,
        **{
            name: getattr(outline, name)[:, ::-1] * np.array([1.0, 3.0])
            for name in ("centre", "left", "right", "wall_left", "wall_right")
        },
    )
    reference = ReferenceProfile(outline.s, np.full(NUM_POINTS, 30.0), outline.length / 30)
    upper = track_map(turned, drive, reference, "").axes[0]
    across, up = np.diff(upper.get_xlim())[0], np.diff(upper.get_ylim())[0]
    assert across > up


def test_every_contact_and_excursion_is_counted_in_the_legend(
    drive: Drive, outline: CircuitOutline, reference: ReferenceProfile
) -> None:
    flags = np.zeros(len(drive.time), bool)
    contacts, excursions = flags.copy(), flags.copy()
    contacts[[10, 11, 200]] = True
    excursions[[5, 6, 100, 300, 301]] = True
    marked = replace(drive, wall_contact=contacts, off_course=excursions)
    texts = track_map(outline, marked, reference, "").legends[0].get_texts()
    assert [text.get_text() for text in texts] == ["off course (3x)", "wall contact (2x)"]


def test_pictures_are_small_palette_pngs(
    tmp_path, drive: Drive, outline: CircuitOutline, reference: ReferenceProfile
) -> None:
    save_png(telemetry(drive, outline, reference), tmp_path / "telemetry.png")
    data = (tmp_path / "telemetry.png").read_bytes()
    assert len(data) <= 200_000
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.mode) == ("PNG", "P")
    assert picture.getpixel((2, picture.height - 2)) == picture.getpixel((2, picture.height // 2))


@pytest.mark.parametrize("num", [1, 60])
def test_a_record_without_a_whole_lap_can_be_drawn(
    num: int, drive: Drive, outline: CircuitOutline, reference: ReferenceProfile
) -> None:
    short = first_samples(drive, num)
    figure = track_map(outline, short, reference, "short")
    assert "no whole lap" in figure.texts[-1].get_text()
    sheet = telemetry(short, outline, reference)
    assert len(sheet.axes) == 13
    for drawn in (figure, sheet):
        drawn.savefig(io.BytesIO(), dpi=30)
    (car,) = page_data(replay_html(outline, {"a": short}, reference, "short"))["cars"]
    assert len(car["time"]) == num
    assert [lap["lap_time"] for lap in car["laps"]] == [None]


def test_the_page_holds_the_drive(
    drive: Drive, outline: CircuitOutline, reference: ReferenceProfile
) -> None:
    data = page_data(replay_html(outline, {"policy": drive}, reference, "page"))
    (car,) = data["cars"]
    rounded = {
        "time": (drive.time, 0.0005),
        "s": (drive.s, 0.05),
        "x": (drive.position[:, 0], 0.005),
        "y": (drive.position[:, 1], 0.005),
        "heading": (np.unwrap(drive.heading), 0.0005),
        "speed": (drive.speed, 0.005),
        "throttle": (drive.throttle, 0.005),
        "brake": (drive.brake, 0.005),
        "steering": (drive.steering, 0.0005),
        "forward": (drive.acceleration[:, 0], 0.05),
        "left": (drive.acceleration[:, 1], 0.05),
        "gear": (drive.gear, 0),
        "off_course": (drive.off_course, 0),
        "wall_contact": (drive.wall_contact, 0),
        "delta": (reference_delta(drive, outline, reference), 0.005),
    }
    for name, (values, half_digit) in rounded.items():
        np.testing.assert_allclose(car[name], values, rtol=0, atol=half_digit + 1e-9, err_msg=name)
    assert car["name"] == "policy"
    laps = split_laps(drive, outline.length)
    assert [lap["first"] for lap in car["laps"]] == [lap.first for lap in laps]
    assert data["reference"]["lap_time"] == pytest.approx(reference.lap_time, abs=0.0005)


def test_the_page_loads_nothing_and_is_small(reference: ReferenceProfile, circuit) -> None:
    outline, curvature = circuit
    # Five times the size, 6.6 km, driven slowly: 190 s a lap.
    large = replace(
        outline,
        **{
            name: 5 * getattr(outline, name)
            for name in ("s", "centre", "left", "right", "wall_left", "wall_right", "length")
        },
    )
    slow = make_drive(large, curvature / 5, num_laps=2.0, pace=0.55)
    assert len(slow.time) > 3500
    page = replay_html(large, {"policy": slow}, replace(reference, s=5 * reference.s), "large")
    assert len(page.encode()) < 400_000
    assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|<link|\bsrc=|\burl\(", page)


def test_a_finer_record_is_thinned_and_keeps_its_events(
    circuit, outline: CircuitOutline, reference: ReferenceProfile
) -> None:
    fine = make_drive(*circuit, num_laps=0.5, rate=100.0)
    contact = np.zeros(len(fine.time), bool)
    contact[537] = True
    page = replay_html(outline, {"a": replace(fine, wall_contact=contact)}, reference, "fine")
    (car,) = page_data(page)["cars"]
    np.testing.assert_allclose(np.diff(car["time"]), 0.1, atol=1e-9)
    # Sample 537 is at 5.37 s, within the tenth that begins at 5.3 s.
    assert np.flatnonzero(car["wall_contact"]).tolist() == [53]


def test_names_cannot_break_the_page(
    drive: Drive, outline: CircuitOutline, reference: ReferenceProfile
) -> None:
    name = "</script><b>&amp;"
    cars = {name: drive, "second": drive}
    page = replay_html(outline, cars, reference, "<i>title</i>")
    assert [car["name"] for car in page_data(page)["cars"]] == [name, "second"]
    assert "<i>title" not in page
    assert "<title>&lt;i&gt;title&lt;/i&gt;</title>" in page


def test_a_replay_of_nothing_is_refused(
    outline: CircuitOutline, reference: ReferenceProfile
) -> None:
    with pytest.raises(DriveError, match="at least one is needed"):
        replay_html(outline, {}, reference, "empty")


def test_thinned_edges_stay_within_their_tolerance(
    outline: CircuitOutline, drive: Drive, reference: ReferenceProfile
) -> None:
    data = page_data(replay_html(outline, {"a": drive}, reference, ""))["circuit"]
    kept = np.reshape(data["left"], (-1, 2))
    assert 20 < len(kept) < NUM_POINTS / 2
    start, step = kept[:-1], np.diff(kept, axis=0)
    for point in outline.left:
        along = np.sum((point - start) * step, axis=1) / np.sum(step**2, axis=1)
        foot = start + np.clip(along, 0, 1)[:, None] * step
        # 5 cm, and half a centimetre of rounding in each coordinate.
        assert np.min(np.linalg.norm(point - foot, axis=1)) < 0.05 + 0.0071


def surfaced(outline: CircuitOutline) -> CircuitOutline:
    """Snow with ice in two places, one over the start line; deep snow, a trap and kerbs beside."""
    i = np.arange(NUM_POINTS)
    icy = (100 <= i) & (i < 150) | (i < 20) | (i >= NUM_POINTS - 30)
    road = np.where(icy, "ice", "snow")
    verge = np.where((300 <= i) & (i < 400), "gravel_trap", "deep_snow")
    return replace(outline, road=road, verge=verge, kerb=1.5)


def colour_at(pixels: np.ndarray, place, point: np.ndarray) -> tuple[int, ...]:
    x, y = place(point)
    return tuple(int(value) for value in pixels[len(pixels) - 1 - int(y), int(x), :3])


def rgb(surface: str) -> tuple[int, ...]:
    return tuple(round(255 * value) for value in to_rgb(PALETTE[surface].light))


def map_colours(outline: CircuitOutline, drive: Drive, points: dict[str, np.ndarray]) -> dict:
    """The colours of a map at points, drawn with 20 pixels or so for every metre."""
    reference = ReferenceProfile(outline.s, np.full(len(outline.s), 30.0), outline.length / 30)
    figure = track_map(outline, drive, reference, "")
    figure.set_layout_engine("none")
    axes, *others = figure.axes
    axes.set_position((0.0, 0.0, 1.0, 1.0))
    for other in others:
        other.set_visible(False)
    figure.set_dpi(40)
    found = {}
    for name, point in points.items():
        axes.set_xlim(point[0] - 10, point[0] + 10)
        axes.set_ylim(point[1] - 10, point[1] + 10)
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())  # pyright: ignore[reportAttributeAccessIssue]
        found[name] = colour_at(pixels, axes.transData.transform, point)
    return found


def test_every_surface_has_a_colour_of_its_own() -> None:
    assert set(PALETTE) == {*SURFACES, "unknown"}
    for shades in zip(*PALETTE.values(), strict=True):
        assert len(set(shades)) == len(PALETTE)
        assert all(re.fullmatch("#[0-9a-f]{6}", shade) for shade in shades)
    assert [name for name in PALETTE if is_bright(PALETTE[name].light)] == [
        "grass",
        "gravel_trap",
        "snow",
        "deep_snow",
        "ice",
        "unknown",
    ]


def test_an_outline_without_surfaces_is_asphalt_in_grass(outline: CircuitOutline) -> None:
    assert outline.road.shape == outline.verge.shape == (NUM_POINTS,)
    assert set(outline.road) == {"asphalt"} and set(outline.verge) == {"grass"}
    assert outline.kerb == 0.0
    assert set(replace(outline, road=np.array("dirt")).road) == {"dirt"}
    with pytest.raises(DriveError, match=r"outline.verge has shape \(3,\), must be"):
        replace(outline, verge=np.full(3, "grass"))


def test_patches_reach_to_the_next_surface_also_over_the_start_line() -> None:
    names = np.array(list("ccabbaaaac"))
    most, patches = surface_patches(names)
    assert most == "a"
    assert [(name, points.tolist()) for name, points in patches] == [
        ("b", [3, 4, 5]),
        ("c", [9, 0, 1, 2]),
    ]
    assert surface_patches(np.full(5, "snow")) == ("snow", [])


def test_surfaces_of_a_circuit_are_recovered_from_its_numbers() -> None:
    foxglove = outline_of(load_circuit("foxglove"))
    assert set(foxglove.road) == {"asphalt"} and foxglove.kerb == 1.0
    assert set(foxglove.verge) == {"grass", "gravel_trap"}
    # The first trap is beside the second corner and the straight before it, the start is not.
    assert foxglove.verge[0] == "grass"
    corner = np.argmin(np.linalg.norm(foxglove.centre - np.array([590.0, 0.0]), axis=1))
    assert foxglove.verge[corner] == "gravel_trap"

    track = load_circuit("whitefell")
    assert set(outline_of(track).road) == {"snow"}
    assert set(outline_of(track).verge) == {"deep_snow"}
    for name, surface in SURFACES.items():
        numbers = jnp.asarray([getattr(surface, each.name) for each in fields(surface)])
        row = NUM_NODES // 2
        changed = replace(track, ground=track.ground.at[row, ROAD].set(numbers))
        assert outline_of(changed).road[row] == name
        assert outline_of(changed).road[row + 1] == "snow"
    odd = replace(track, ground=track.ground.at[5, ROAD].add(0.02))
    assert outline_of(odd).road[4:7].tolist() == ["snow", "unknown", "snow"]


def test_the_map_shows_what_the_circuit_is_made_of(outline: CircuitOutline, drive: Drive) -> None:
    def beside(i: int, offset: float) -> np.ndarray:
        left = (outline.left[i] - outline.centre[i]) / 6.0
        return outline.centre[i] + offset * left

    # 6 m to the white lines, 11 m to the walls; the drive keeps within 4 m of the centre line.
    points = {
        "road": beside(60, -5.0),
        "patch": beside(125, 5.0),
        "start": beside(NUM_POINTS - 12, -5.0),
        "kerb": beside(200, 6.8),
        "kerb right": beside(200, -6.8),
        "verge": beside(200, 9.0),
        "verge patch": beside(350, -9.0),
        "verge under no kerb": beside(200, -8.2),
    }
    assert map_colours(surfaced(outline), drive, points) == {
        "road": rgb("snow"),
        "patch": rgb("ice"),
        "start": rgb("ice"),
        "kerb": rgb("kerb"),
        "kerb right": rgb("kerb"),
        "verge": rgb("deep_snow"),
        "verge patch": rgb("gravel_trap"),
        "verge under no kerb": rgb("deep_snow"),
    }
    plain = map_colours(outline, drive, points)
    assert {plain[name] for name in ("road", "patch", "start")} == {(0x34, 0x3A, 0x42)}
    assert {plain[name] for name in points if "road" not in name} == {
        rgb("asphalt"),
        rgb("grass"),
    }
    strange = replace(outline, road=np.full(NUM_POINTS, "lava"))
    assert map_colours(strange, drive, {"road": points["road"]}) == {"road": rgb("unknown")}


def test_kerbs_end_at_the_walls(outline: CircuitOutline, drive: Drive) -> None:
    reference = ReferenceProfile(outline.s, np.full(NUM_POINTS, 30.0), 1.0)
    axes = track_map(replace(outline, kerb=50.0), drive, reference, "").axes[0]
    (kerb,) = [patch for patch in axes.patches if patch.get_label() == "kerb"]
    assert isinstance(kerb, PathPatch)
    walls = np.concatenate([outline.wall_left, outline.wall_right])
    reach = np.asarray(kerb.get_path().vertices)
    np.testing.assert_allclose(
        [reach.min(axis=0), reach.max(axis=0)], [walls.min(axis=0), walls.max(axis=0)], atol=1e-6
    )


def test_the_line_has_a_dark_hem_on_a_bright_road_only(
    outline: CircuitOutline, drive: Drive, reference: ReferenceProfile
) -> None:
    def hems(shown: CircuitOutline) -> list[float]:
        axes = track_map(shown, drive, reference, "").axes[0]
        driven = axes.collections[0].get_zorder()
        num = len(axes.collections[0].get_array()) + 1  # pyright: ignore[reportArgumentType]
        lines = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == num]
        assert all(line.get_zorder() < driven for line in lines)
        return [max(to_rgb(line.get_color())) for line in lines]

    assert hems(outline) == hems(replace(outline, road=np.array("damp"))) == []
    (darkness,) = hems(replace(outline, road=np.array("snow")))
    assert darkness < 0.3


def test_the_legend_names_what_is_out_of_the_ordinary(
    outline: CircuitOutline, drive: Drive, reference: ReferenceProfile
) -> None:
    clean = replace(drive, off_course=np.zeros(len(drive.time), bool))
    assert track_map(outline, clean, reference, "").legends == []
    (legend,) = track_map(surfaced(outline), clean, reference, "").legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["deep snow", "gravel trap", "kerb", "snow", "ice"]


def test_the_page_holds_the_surfaces(
    outline: CircuitOutline, drive: Drive, reference: ReferenceProfile
) -> None:
    data = page_data(replay_html(surfaced(outline), {"a": drive}, reference, ""))
    circuit = data["circuit"]
    assert circuit["kerb"] == 1.5
    assert circuit["road"]["surface"] == "snow"
    assert [patch["surface"] for patch in circuit["road"]["patches"]] == ["ice", "ice"]
    assert circuit["verge"]["surface"] == "deep_snow"
    (trap,) = circuit["verge"]["patches"]
    assert trap["surface"] == "gravel_trap"
    ends = np.concatenate([trap["left"][:2], trap["right"][-2:]])
    expected = np.concatenate([outline.wall_left[300], outline.wall_right[400]])
    np.testing.assert_allclose(ends, expected, atol=0.0051)
    across = circuit["road"]["patches"][1]
    ends = np.concatenate([across["left"][:2], across["right"][-2:]])
    expected = np.concatenate([outline.left[NUM_POINTS - 30], outline.right[20]])
    np.testing.assert_allclose(ends, expected, atol=0.0051)
    # Every surface of the page has its two colours there, and no other does.
    used = {"snow", "ice", "deep_snow", "gravel_trap", "kerb"}
    assert data["palette"] == {name: list(PALETTE[name]) for name in used}

    plain = page_data(replay_html(outline, {"a": drive}, reference, ""))
    assert plain["circuit"]["road"] == {"surface": "asphalt", "patches": []}
    assert plain["circuit"]["verge"] == {"surface": "grass", "patches": []}
    assert plain["circuit"]["kerb"] == 0
    strange = replace(outline, road=np.full(NUM_POINTS, "lava"))
    palette = page_data(replay_html(strange, {"a": drive}, reference, ""))["palette"]
    assert palette["lava"] == list(PALETTE["unknown"])
