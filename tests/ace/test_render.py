"""Pictures of returns: what is drawn and written is what was given.

The ball comes in along straight lines at known speeds, the racket stands at (-1.6, 0.2, 0.3).
"""

import dataclasses
import io
import re

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from core_rl.report import encode_png
from projects.ace.arm import FOREARM, HAND, HOME, SHOULDER_Z, UPPER_ARM, joint_centres
from projects.ace.render import (
    MEANINGS,
    TICK,
    Exchange,
    PictureError,
    exchange,
    landing_map,
    racket_speed,
    return_rates,
    topspin,
)

COUNTS = {"miss": 5, "volley": 0, "touch": 1, "net": 2, "out": 4, "legal": 3}
LANDING = np.array([[0.5, 0.3], [1.2, -0.6], [0.9, 0.0]])
SPEED = np.array([5.0, 9.5, 7.0])


def make_exchange() -> Exchange:
    """0.3 s to the bounce, 0.2 s to the contact, 0.4 s to the landing."""
    stroke, bounce = np.array([1.8, -0.1, 0.4]), np.array([-0.9, 0.1, 0.02])
    contact, landing = np.array([-1.6, 0.2, 0.3]), np.array([1.1, -0.4, 0.02])
    incoming_time, outgoing_time = np.linspace(0, 0.5, 126), np.linspace(0.5, 0.9, 101)
    knots = np.stack([stroke, bounce, contact])
    incoming = np.stack([np.interp(incoming_time, [0, 0.3, 0.5], k) for k in knots.T], axis=1)
    share = (outgoing_time[:, None] - 0.5) / 0.4
    arm_time = np.linspace(0, 0.5, 501)
    foot = np.array([-2.0, 0.0, -0.56])
    rest = foot + np.array([[0, 0, 0], [0, 0, 0.66], [0.1, 0.4, 0.9], [0.3, 0.3, 0.7]])
    joints = np.concatenate([rest, contact[None]])
    drift = 2.0 * (arm_time[:, None, None] - 0.5) * np.array([1.0, 0.0, 0.0])  # 2 m/s
    return Exchange(
        incoming=incoming,
        incoming_time=incoming_time,
        bounce=bounce,
        outgoing=contact + share * (landing - contact),
        outgoing_time=outgoing_time,
        arm=joints + drift,
        normal=np.tile([1.0, 0.0, 0.0], (501, 1)),
        arm_time=arm_time,
        velocity=np.array([[-12.0, 5.0, 0.0], [-8.0, 0.0, 0.0], [6.0, 0.0, 2.5]]),
        spin=np.array([[0.0, 0.0, 400.0], [0.0, -310.0, 0.0], [0.0, -120.0, 90.0]]),
        outcome="legal",
    )


def make_rows(names: list[str], **records: list) -> list[dict]:
    rows = [
        {"bin": name, "rate": 0.9 - 0.1 * i, "low": 0.8 - 0.1 * i, "high": 0.95 - 0.1 * i, "n": 20}
        for i, name in enumerate(names)
    ]
    rows[-1] |= {"rate": None, "low": 0.0, "high": 1.0, "n": 0}
    return [
        {**row, **{who: shares[i] for who, shares in records.items()}} for i, row in enumerate(rows)
    ]


BY_SPIN = make_rows(["0-100", "100-200", "200+"], ace=[0.9, 0.8, 0.7], human=[0.8, 0.7, None])
BY_SPEED = make_rows(["0-6", "6+"], ace=[0.92, 0.1])


def line(axes, name: str) -> np.ndarray:
    """Points [N, 2] of the line with this label."""
    (found,) = [line for line in axes.lines if line.get_label() == name]
    return np.asarray(found.get_xydata())


def texts(figure: Figure) -> list[str]:
    inside = [text.get_text() for axes in figure.axes for text in axes.texts]
    return [*inside, *(text.get_text() for text in figure.texts), figure.get_suptitle()]


@pytest.mark.parametrize(
    "figure",
    [
        exchange(make_exchange(), "An exchange"),
        landing_map(LANDING, SPEED, COUNTS, "Landings"),
        return_rates(BY_SPIN, BY_SPEED, "Rates"),
    ],
    ids=["exchange", "landing_map", "return_rates"],
)
def test_pictures_are_small_palette_pngs(figure: Figure) -> None:
    data = encode_png(figure)
    assert len(data) <= 200_000
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.mode) == ("PNG", "P")
    assert 500 < picture.height < 2000 and 1000 < picture.width < 1600
    # Nothing is cut off: the picture's edge is empty.
    pixels = np.asarray(picture.convert("RGB"))
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert (edge == pixels[0, 0]).all()


def test_an_exchange_is_drawn_from_the_side_and_from_above() -> None:
    given = make_exchange()
    figure = exchange(given, "An exchange")
    above, side = figure.axes[:2]
    assert above.get_xlim() == side.get_xlim()
    for axes, up in ((side, 2), (above, 1)):
        assert axes.get_aspect() == 1.0
        shown = [0, up]
        np.testing.assert_array_equal(line(axes, "ball in"), given.incoming[:, shown])
        np.testing.assert_array_equal(line(axes, "ball out"), given.outgoing[:, shown])
        np.testing.assert_array_equal(line(axes, "racket's way"), given.arm[:, -1][:, shown])
        np.testing.assert_array_equal(line(axes, "arm at the contact"), given.arm[-1][:, shown])
        np.testing.assert_array_equal(line(axes, "bounce"), given.bounce[None, shown])
        np.testing.assert_array_equal(line(axes, "contact"), given.incoming[-1:, shown])
        np.testing.assert_array_equal(line(axes, "landing"), given.outgoing[-1:, shown])


def test_dots_on_the_way_are_equal_times_apart() -> None:
    given = make_exchange()
    side = exchange(given, "").axes[1]
    dots = [np.asarray(drawn.get_xydata()) for drawn in side.lines if drawn.get_marker() == "."]
    before, after = dots
    assert (len(before), len(after)) == (round(0.5 / TICK) + 1, round(0.4 / TICK) + 1)
    np.testing.assert_allclose(np.diff(before[:7, 0]), -2.7 / 0.3 * TICK)
    np.testing.assert_allclose(np.diff(after[:, 0]), 2.7 / 0.4 * TICK)


def test_the_numbers_of_an_exchange_are_written() -> None:
    written = texts(exchange(make_exchange(), "A title"))
    for expected in (
        "13.0 m/s",  # 5, 12, 13
        "8.0 m/s",
        "6.5 m/s",
        "400 rad/s = 64 turns/s",
        "310 rad/s = 49 turns/s",
        "150 rad/s = 24 turns/s",
        "0 rad/s topspin",
        "310 rad/s topspin",
        "120 rad/s backspin",
        "contact 0.50 s after the stroke · racket 2.0 m/s · legal return",
        "A title",
    ):
        assert expected in written, expected


def test_topspin_pulls_the_ball_down() -> None:
    for way in (np.array([-8.0, 0.0, 1.0]), np.array([3.0, 4.0, 0.0])):
        down = np.cross(way, [0.0, 0.0, -1.0])  # so that spin x velocity points down
        spin = 200.0 * down / np.linalg.norm(down)
        assert np.cross(spin, way)[2] < 0
        assert topspin(way, spin) == pytest.approx(200.0)
        assert topspin(way, -spin) == pytest.approx(-200.0)
        assert topspin(way, np.array([0.0, 0.0, 300.0])) == 0.0


def test_a_contact_at_the_first_sample_can_be_drawn() -> None:
    given = make_exchange()
    short = dataclasses.replace(
        given, arm=given.arm[-1:], normal=given.normal[-1:], arm_time=given.arm_time[-1:]
    )
    assert racket_speed(short) == 0.0
    exchange(short, "").savefig(io.BytesIO(), dpi=20)


def test_a_return_that_flies_far_out_does_not_shrink_the_table() -> None:
    given = make_exchange()
    far = dataclasses.replace(given, outgoing=given.outgoing * [1, 30, 30], outcome="out")
    figure = exchange(far, "")
    assert figure.get_figheight() < 14
    assert any(text.endswith(MEANINGS["out"]) for text in texts(figure))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"incoming": np.zeros((3, 3))}, "exchange.incoming has shape (3, 3), expected [126, 3]"),
        ({"bounce": np.zeros(2)}, "exchange.bounce has shape (2,), expected [3]"),
        ({"arm": np.zeros((501, 3))}, "exchange.arm has shape (501, 3)"),
        ({"spin": np.full((3, 3), np.nan)}, "exchange.spin is not finite"),
        ({"outgoing_time": np.zeros(101)}, "exchange.outgoing_time must increase"),
        ({"arm_time": np.zeros(0)}, "exchange.arm_time has shape (0,)"),
    ],
)
def test_a_bad_exchange_is_refused_in_one_line(change: dict, message: str) -> None:
    with pytest.raises(PictureError) as error:
        dataclasses.replace(make_exchange(), **change)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_landings_are_seen_from_the_robot_and_counted() -> None:
    figure = landing_map(LANDING, SPEED, COUNTS, "Landings")
    left, right = figure.axes[:2]
    points = left.collections[0]
    np.testing.assert_array_equal(np.asarray(points.get_offsets()), LANDING[:, ::-1])
    np.testing.assert_array_equal(points.get_array(), SPEED)
    low, high = points.get_clim()
    assert low <= SPEED.min() and high >= SPEED.max()
    assert left.get_xlim()[0] > left.get_xlim()[1]  # the robot's left is on the left
    assert left.get_aspect() == 1.0
    # The table is drawn first, then what happened to the balls, in the order of MEANINGS.
    widths = [bar.get_width() for bar in right.patches]  # pyright: ignore[reportAttributeAccessIssue]
    assert widths == [COUNTS[name] for name in MEANINGS]
    names = [text.get_text() for text in right.texts]
    assert [name for name in names if name in MEANINGS.values()] == list(MEANINGS.values())
    assert "3 legal returns of 15 balls = 20.0 %, seen from the robot" in texts(figure)


def test_a_smash_does_not_leave_one_colour_to_the_others() -> None:
    speed = np.append(np.linspace(4.0, 6.0, 99), 20.0)
    figure = landing_map(np.full((100, 2), 0.5), speed, {"legal": 100}, "")
    assert figure.axes[0].collections[0].get_clim() == (4.0, 6.0)
    assert figure.axes[0].collections[0].colorbar.extend == "max"  # pyright: ignore


def test_no_legal_return_is_a_picture_too() -> None:
    figure = landing_map(np.zeros((0, 2)), np.zeros(0), {"miss": 4, "legal": 0}, "None")
    assert "0 legal returns of 4 balls = 0.0 %, seen from the robot" in texts(figure)
    figure.savefig(io.BytesIO(), dpi=20)


@pytest.mark.parametrize(
    ("landing", "speed", "message"),
    [
        (LANDING[:, :1], SPEED, "landing has shape (3, 1), expected [N, 2]"),
        (LANDING, SPEED[:2], "speed has shape (2,), expected [3]"),
        (LANDING[:2], SPEED[:2], "2 landings, but 3 legal returns counted"),
    ],
)
def test_bad_landings_are_refused(landing, speed, message: str) -> None:
    with pytest.raises(PictureError, match=f"^{re.escape(message)}$"):
        landing_map(landing, speed, COUNTS, "")


def test_rates_stand_beside_the_record() -> None:
    spin, speed = return_rates(BY_SPIN, BY_SPEED, "Rates").axes
    np.testing.assert_array_equal(line(spin, "Ace")[:, 1], [0.9, 0.8, 0.7])
    np.testing.assert_array_equal(line(spin, "people")[:, 1], [0.8, 0.7])
    np.testing.assert_array_equal(line(speed, "Ace")[:, 1], [0.92, 0.1])
    (bars,) = spin.containers
    # A bin without balls has no rate.
    np.testing.assert_allclose(np.asarray(bars[0].get_ydata()), [0.9, 0.8])  # pyright: ignore
    ends = [segment[:, 1] for segment in bars[2][0].get_segments()]  # pyright: ignore
    np.testing.assert_allclose(ends, [[0.8, 0.95], [0.7, 0.85]])
    ticks = [label.get_text() for label in spin.get_xticklabels()]
    assert ticks == ["0-100\nn=20", "100-200\nn=20", "200+\nn=0"]
    legend = speed.get_legend()
    assert legend is not None and "people" in [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no bins of speed"),
        ([{"bin": "0-6", "rate": 0.5, "low": 0.4, "high": 0.6}], "has no 'n'"),
        ([{"bin": "0-6", "rate": 0.5, "low": 0.6, "high": 0.7, "n": 9}], "does not hold its rate"),
    ],
)
def test_bad_rates_are_refused(rows: list[dict], message: str) -> None:
    with pytest.raises(PictureError, match=message) as error:
        return_rates(BY_SPIN, rows, "")
    assert "\n" not in str(error.value)


def test_joint_centres_have_the_links_lengths() -> None:
    q = np.random.default_rng(0).uniform(-1.5, 1.5, (64, 8)).astype(np.float32)
    q[0] = HOME
    foot, shoulder, elbow, wrist, blade = np.moveaxis(np.asarray(jax.vmap(joint_centres)(q)), 1, 0)
    for start, end, length in (
        (shoulder, elbow, UPPER_ARM),
        (elbow, wrist, FOREARM),
        (wrist, blade, HAND),
    ):
        np.testing.assert_allclose(np.linalg.norm(end - start, axis=1), length, atol=1e-5)
    np.testing.assert_array_equal(foot[:, :2], shoulder[:, :2])
    np.testing.assert_allclose(shoulder[:, 2], SHOULDER_Z, atol=1e-6)
