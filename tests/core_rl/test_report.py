"""The report page, from synthetic metrics of five seeds and of a run that was stopped early."""

import base64
import re

import numpy as np
import pytest

from core_rl.report import CurveSpec, ReportError, read_series, style, write_report
from tests.pages import Reader

# One white pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8/x8AAwMCAO+ip1sAAAAASUVORK5CYII="
)
PAGE = '<!doctype html><title>inner</title><script>const a = "<b>" && 1;</script>'
COMMAND = (
    "python -m experiments.example --workdir=runs/a --agent.critic_lr=1e-4 --num_seeds=5 --steps=9"
)
CURVES = (
    CurveSpec("Return", ("return",), y_label="return"),
    CurveSpec("Absent", ("nowhere",)),
    CurveSpec("Terms", ("reward/*",), section="Reward terms"),
    CurveSpec("Critic", ("loss/critic",), section="Losses", log=True),
    CurveSpec("Speed", ("time/steps",), section="Timing", x="epoch", x_label="epoch"),
)


def make_metrics(num_rows: int) -> list[dict]:
    rng = np.random.default_rng(0)
    rows = []
    for k in range(num_rows):
        row = {"env_steps": 1000 * k, "epoch": k, "kind": "train"}
        row["return"] = [float(100 * (1 - np.exp(-k / 9)) + rng.normal()) for _ in range(5)]
        row["reward/progress"] = 2.0 + 0.1 * k
        row["reward/wall"] = -0.3
        row["loss/critic"] = [float(np.exp(-k / 5)) for _ in range(5)]
        row["time/steps"] = 80_000.0
        rows.append(row)
    return rows


def write(path, **changes) -> str:
    arguments = {
        "title": "A <run>",
        "subtitle": "with everything",
        "command": COMMAND,
        "record": {"seed": 0, "argv": ["a"], "config": {"agent": {"critic_lr": 1e-4}}},
        "numbers": [("lap time", 81.23456, "[s]"), ("steps", 12_000_000, ""), ("none", None, "")],
        "figures": [("Map", PNG, "a map"), ("Drawing", "<svg id='x'><g/></svg>", "a drawing")],
        "embedded_pages": [("Replay of a lap", PAGE, 640)],
        "metrics": make_metrics(12),
        "curves": CURVES,
        "log_tail": "epoch 11",
    }
    write_report(path, **{**arguments, **changes})
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def reader(page: str) -> Reader:
    return Reader(page)


def test_the_page_is_whole_and_loads_nothing(page: str, reader: Reader) -> None:
    assert len(reader.ids) == len(set(reader.ids))
    loaded = [
        value
        for _, name, value in reader.attributes
        if name in ("src", "href", "xlink:href", "action") and not value.startswith(("#", "data:"))
    ]
    assert loaded == []
    assert "http" not in page
    assert "@import" not in page
    assert len(page.encode()) < 200_000


def test_the_style_sheet_can_be_shared(page: str) -> None:
    assert f"<style>\n{style()}</style>" in page
    assert style().startswith(":root {") and "{%" not in style()


def test_references_inside_drawings_have_a_target(reader: Reader) -> None:
    targets = reader.values("use", "xlink:href") + reader.values("a", "href")
    assert targets
    assert {target.removeprefix("#") for target in targets} <= set(reader.ids)


def test_an_embedded_page_arrives_as_it_was(reader: Reader) -> None:
    assert reader.values("iframe", "srcdoc") == [PAGE]
    assert reader.values("iframe", "height") == ["640"]
    assert reader.values("iframe", "sandbox") == ["allow-scripts"]


def test_numbers_pictures_and_record_are_shown(page: str, reader: Reader) -> None:
    for text in ("81.23", "12,000,000", "–", "agent.critic_lr", "0.0001", "epoch 11", "A <run>"):
        assert text in reader.text
    assert base64.b64encode(PNG).decode() in page
    assert "<svg id='figure1-x'>" in page


def test_a_long_command_is_wrapped_and_still_the_same(reader: Reader) -> None:
    start = reader.text.index("python -m experiments")
    shown = reader.text[start : reader.text.index("Copy", start)]
    assert shown.count("\\\n") == 4
    assert shown.replace("\\\n    ", "") == COMMAND


def test_sections_follow_the_curves(reader: Reader) -> None:
    places = [reader.text.index(name) for name in ("Learning", "Reward terms", "Losses", "Timing")]
    assert places == sorted(places)
    assert reader.text.count("No row of the metrics holds this yet.") == 1
    # A pattern names its columns without what they share.
    assert "progress" in reader.text
    assert "reward/progress" not in reader.text


def test_a_run_that_stopped_early_says_what_is_missing(tmp_path) -> None:
    text = Reader(
        write(
            tmp_path / "report.html",
            numbers=[],
            figures=[],
            embedded_pages=[],
            metrics=[],
            record={},
            log_tail=None,
        )
    ).text
    for missing in ("No result yet", "No replay yet", "No pictures yet", "No numbers yet"):
        assert missing in text
    assert "no record" in text
    assert text.count("No row of the metrics holds this yet.") == len(CURVES)
    assert "No curves" in Reader(write(tmp_path / "report.html", curves=[])).text


def test_a_measurement_is_a_page_without_what_belongs_to_runs(tmp_path) -> None:
    measured = {"curves": [], "record": {}, "figures": [], "embedded_pages": [], "is_run": False}
    text = Reader(write(tmp_path / "report.html", **measured)).text
    of_runs = ("No curves", "Record", "no record", "continues it", "rows of metrics")
    for word in (*of_runs, "Replay", "Pictures"):
        assert word not in text
    assert "measures this again" in text


@pytest.mark.parametrize("num_rows", [1, 2])
def test_few_rows_draw_a_curve(tmp_path, num_rows: int) -> None:
    text = Reader(write(tmp_path / "report.html", metrics=make_metrics(num_rows))).text
    assert text.count("No row of the metrics holds this yet.") == 1


def test_the_same_input_gives_the_same_page(tmp_path, page: str) -> None:
    assert write(tmp_path / "report.html") == page


def test_a_failed_report_leaves_the_one_before(tmp_path) -> None:
    before = write(tmp_path / "report.html")
    with pytest.raises(ReportError, match="figure 'Broken' is neither PNG bytes nor"):
        write(tmp_path / "report.html", figures=[("Broken", "not a drawing", "")])
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_series_of_several_seeds_with_holes() -> None:
    metrics = [
        {"env_steps": 0, "lap": [None, 90.0]},
        {"env_steps": 10, "other": 1.0},  # another kind of row
        {"lap": [1.0, 1.0]},  # without the abscissa
        {"env_steps": 20, "lap": [88.0, float("nan")]},
        {"env_steps": 30, "lap": 80.0},  # one number stands for all seeds
        {"env_steps": 40, "lap": "crashed"},
        {"env_steps": 50, "lap": np.array([79.0, 78.0])},
    ]
    series = read_series(metrics, "lap", "env_steps")
    np.testing.assert_array_equal(series.x, [0, 20, 30, 50])
    np.testing.assert_array_equal(
        series.y, [[np.nan, 90.0], [88.0, np.nan], [80.0, 80.0], [79.0, 78.0]]
    )


def test_a_column_that_no_row_has_is_an_empty_series() -> None:
    series = read_series([{"env_steps": 1}], "lap", "env_steps")
    assert series.x.shape == (0,)
    assert read_series([], "lap", "env_steps").x.shape == (0,)


def drawn_lines(page: str) -> list[np.ndarray]:
    """The vertices [V, 2] of every line in the page's charts, upwards, in order of drawing."""
    paths: list[dict[str, str]] = []
    for tag, name, value in Reader(page).attributes:
        if (tag, name) == ("path", "d"):
            paths.append({})
        if tag == "path" and paths:
            paths[-1][name] = value
    curves = [path["d"] for path in paths if "var(--curve-" in path.get("style", "")]
    numbers = [np.array(re.findall(r"-?[\d.]+", curve), float) for curve in curves]
    return [each.reshape(-1, 2) * [1, -1] for each in numbers]


def test_every_seed_and_the_mean_are_drawn_as_they_are(tmp_path) -> None:
    # Three zigzags of height one, one above the other; the last row lacks the third seed, and
    # so the mean.
    metrics = [
        {"env_steps": k, "return": [1.0 - k % 2, 2.0 - k % 2, None if k == 6 else 3.0 - k % 2]}
        for k in range(7)
    ]
    spec = CurveSpec("Return", ("return",))
    lines = drawn_lines(write(tmp_path / "report.html", metrics=metrics, curves=[spec]))
    assert [len(line) for line in lines] == [7, 7, 6, 6]
    low, middle, high, mean = (line[:, 1] for line in lines)
    np.testing.assert_allclose(mean, middle[:6], atol=0.02)
    np.testing.assert_allclose(high - middle[:6], middle[:6] - low[:6], atol=0.02)
    unit = high[0] - middle[0]
    assert unit > 10
    np.testing.assert_allclose(np.diff(low), unit * np.array([-1, 1, -1, 1, -1, 1]), atol=0.02)


def test_smoothing_is_the_mean_of_the_last_rows(tmp_path) -> None:
    # Two rows at a time, 10, 0, 10, 0 becomes 10, 5, 5, 5.
    metrics = [{"env_steps": k, "return": 10.0 * (k % 2 == 0)} for k in range(7)]
    spec = CurveSpec("Return", ("return",), smoothing=2)
    page = write(tmp_path / "report.html", metrics=metrics, curves=[spec])
    (line,) = drawn_lines(page)
    assert line[0, 1] > line[1, 1] + 10
    np.testing.assert_allclose(line[1:, 1], line[1, 1], atol=0.02)
    assert "Mean of the last 2 rows." in page
