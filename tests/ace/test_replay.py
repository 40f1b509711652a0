"""The page that replays exchanges holds what was given, and nothing can break out of it.

The ball flies on parabolas with a kink at the bounce; the arm swings about its foot.
"""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from projects.ace.arm import BLADE_RADIUS
from projects.ace.ball import RADIUS
from projects.ace.events import HALF_LENGTH, HALF_WIDTH, NET_HEIGHT, TABLE_HEIGHT
from projects.ace.render import MEANINGS, Exchange, PictureError, racket_speed, topspin
from projects.ace.replay import replay_html

BOUNCE_TIME, CONTACT_TIME = 0.3137, 0.5313  # [s] between the samples
HALF_MM, HALF_TICK = 0.0005, 0.00005  # [m], [s] of rounding


def parabola(start: np.ndarray, end: np.ndarray, time: np.ndarray, span: tuple) -> np.ndarray:
    """Places [T, 3] on the way from `start` to `end` under gravity, at `time` [T] of `span`."""
    share = (time[:, None] - span[0]) / (span[1] - span[0])
    height = 0.5 * 9.81 * (time - span[0]) * (span[1] - time)
    return start + share * (end - start) + height[:, None] * [0.0, 0.0, 1.0]


def make_exchange(seed: int, end_time: float = 1.0) -> Exchange:
    random = np.random.default_rng(seed)
    stroke = np.array([1.8, random.uniform(-0.5, 0.5), 0.3])
    bounce = np.array([random.uniform(-1.2, -0.3), random.uniform(-0.5, 0.5), RADIUS])
    contact = np.array([-1.6, random.uniform(-0.5, 0.5), 0.31])
    landing = np.array([random.uniform(0.2, 1.3), random.uniform(-0.7, 0.7), RADIUS])
    grid = np.arange(0.0, CONTACT_TIME, 0.004)
    incoming_time = np.sort(np.append(grid, [BOUNCE_TIME, CONTACT_TIME]))
    before = parabola(stroke, bounce, incoming_time, (0.0, BOUNCE_TIME))
    after = parabola(bounce, contact, incoming_time, (BOUNCE_TIME, CONTACT_TIME))
    outgoing_time = np.append(np.arange(CONTACT_TIME, end_time - 1e-6, 0.004), end_time)
    arm_time = np.append(np.arange(0.0, CONTACT_TIME, 0.001), CONTACT_TIME)
    angle = (2.0 * arm_time**2 - 0.3)[:, None]
    out = np.array([0.0, 0.0, 0.1, 0.4, 0.65]) * np.cos(angle)
    side = np.array([0.0, 0.0, 0.1, 0.4, 0.65]) * np.sin(angle)
    height = np.broadcast_to([-0.56, 0.10, 0.45, 0.5, 0.3], out.shape)
    return Exchange(
        incoming=np.where(incoming_time[:, None] < BOUNCE_TIME, before, after),
        incoming_time=incoming_time,
        bounce=bounce,
        outgoing=parabola(contact, landing, outgoing_time, (CONTACT_TIME, end_time)),
        outgoing_time=outgoing_time,
        arm=np.stack([out - 2.2, side, height], axis=2),
        normal=np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=2)[:, 0],
        arm_time=arm_time,
        velocity=random.normal(0.0, 6.0, (3, 3)),
        spin=random.normal(0.0, 150.0, (3, 3)),
        outcome=("legal", "net", "out")[seed % 3],
    )


EXCHANGES = [make_exchange(seed) for seed in range(3)]


def page_data(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def data() -> dict:
    return page_data(replay_html(EXCHANGES, "page"))


def at_times(way: dict, time: np.ndarray) -> np.ndarray:
    """What the page draws at `time` [T] of a way in its data: [T, D]."""
    place = np.reshape(way["place"], (len(way["time"]), -1))
    return np.stack([np.interp(time, way["time"], column) for column in place.T], axis=1)


def test_every_exchange_is_on_the_page(data: dict) -> None:
    assert len(data["exchanges"]) == len(EXCHANGES)
    for shown, given in zip(data["exchanges"], EXCHANGES, strict=True):
        assert (shown["outcome"], shown["meaning"]) == (given.outcome, MEANINGS[given.outcome])
        assert shown["bounce_time"] == pytest.approx(BOUNCE_TIME, abs=HALF_TICK)
        assert shown["racket_speed"] == pytest.approx(racket_speed(given), abs=0.005)
        for name, values, half_digit in (
            ("bounce", given.bounce, HALF_MM),
            ("speed", np.linalg.norm(given.velocity, axis=1), 0.005),
            ("spin", np.linalg.norm(given.spin, axis=1), 0.05),
            ("topspin", topspin(given.velocity, given.spin), 0.05),
        ):
            np.testing.assert_allclose(shown[name], values, rtol=0, atol=half_digit + 1e-9)


def test_ball_and_arm_are_where_they_were(data: dict) -> None:
    for shown, given in zip(data["exchanges"], EXCHANGES, strict=True):
        for way, place, time, stray in (
            # Half a millimetre of rounding in place, half a tick at up to 15 m/s, and the chords.
            (shown["incoming"], given.incoming, given.incoming_time, 0.0015),
            (shown["outgoing"], given.outgoing, given.outgoing_time, 0.0015),
            (shown["arm"], given.arm.reshape(len(given.arm), -1), given.arm_time, 0.001),
        ):
            np.testing.assert_allclose(at_times(way, time), place, rtol=0, atol=stray)
            ends = np.array(way["time"])[[0, -1]]
            np.testing.assert_allclose(ends, time[[0, -1]], rtol=0, atol=HALF_TICK + 1e-9)
        normal = {"time": shown["arm"]["time"], "place": shown["normal"]}
        np.testing.assert_allclose(at_times(normal, given.arm_time), given.normal, atol=0.001)
        # The kink at the bounce is not cut off.
        bounced = at_times(shown["incoming"], np.array([shown["bounce_time"]]))[0]
        np.testing.assert_allclose(bounced, given.bounce, rtol=0, atol=HALF_MM + 1e-9)


def test_samples_are_thinned(data: dict) -> None:
    shown, given = data["exchanges"][0], EXCHANGES[0]
    assert len(given.arm_time) == 533 and len(shown["arm"]["time"]) in (54, 55)
    steps = np.diff(shown["arm"]["time"])[1:-1]
    np.testing.assert_allclose(steps, 0.01, atol=0.0011)
    assert len(shown["outgoing"]["time"]) < 0.6 * len(given.outgoing_time)


def test_samples_that_are_few_are_all_kept() -> None:
    given = EXCHANGES[0]
    short = replace(
        given, arm=given.arm[-1:], normal=given.normal[-1:], arm_time=given.arm_time[-1:]
    )
    short = replace(short, outgoing=given.outgoing[:1], outgoing_time=given.outgoing_time[:1])
    (shown,) = page_data(replay_html([short], "short"))["exchanges"]
    assert (len(shown["arm"]["time"]), len(shown["arm"]["place"])) == (1, 15)
    assert (len(shown["outgoing"]["time"]), len(shown["outgoing"]["place"])) == (1, 3)


def test_the_table_is_the_one_of_the_simulation(data: dict) -> None:
    table = data["table"]
    assert (table["half_length"], table["half_width"]) == (HALF_LENGTH, HALF_WIDTH)
    assert (table["height"], table["net_height"]) == (TABLE_HEIGHT, NET_HEIGHT)
    assert (data["ball_radius"], data["blade_radius"]) == (RADIUS, BLADE_RADIUS)


def test_twelve_long_exchanges_need_no_network_and_little_room() -> None:
    page = replay_html([make_exchange(seed, end_time=2.0) for seed in range(12)], "large")
    assert len(page.encode()) < 400_000
    assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|<link|\bsrc=|\burl\(", page)


def test_the_script_finds_every_element_it_asks_for() -> None:
    page = replay_html(EXCHANGES, "page")
    asked = set(re.findall(r'\$\("([\w-]+)"\)', page))
    assert len(asked) > 10 and asked <= set(re.findall(r'\bid="([\w-]+)"', page))


@pytest.mark.parametrize("hostile", ["</script><b>&amp;", "<!--<script>", "</title><i>"])
def test_no_text_breaks_out(hostile: str) -> None:
    page = replay_html([replace(EXCHANGES[0], outcome=hostile)], hostile)
    assert page_data(page)["exchanges"][0]["outcome"] == hostile
    assert hostile not in page
    escaped = hostile.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<title>{escaped}</title>" in page and f"<h1>{escaped}</h1>" in page


def test_a_replay_of_nothing_is_refused() -> None:
    with pytest.raises(PictureError) as error:
        replay_html([], "empty")
    assert str(error.value) == "no exchange to replay, at least one is needed"
