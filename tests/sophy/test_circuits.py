"""Where circuits come from: the designs, the generator, and files with everything wrong in turn."""

from pathlib import Path

import numpy as np
import pytest

from projects.sophy.circuits import BUILT_IN, DEFAULT, GROUPS, load_circuit
from projects.sophy.circuits.built_in import DESIGNS
from projects.sophy.circuits.generate import RUNOFF
from projects.sophy.circuits.outline import Corner, draw, make_bend, trace
from projects.sophy.surfaces import SURFACES
from projects.sophy.track import NUM_NODES, ROAD, VERGE, CircuitError, Track

CURVATURE, WIDTH_LEFT, WIDTH_RIGHT, WALL_LEFT, WALL_RIGHT = range(8, 13)
HEADER = "# x_m,y_m,w_tr_right_m,w_tr_left_m"


def columns(track: Track) -> np.ndarray:
    return np.asarray(track.nodes, np.float64)


def total_turning(track: Track) -> float:
    """In whole turns, left positive."""
    spacing = float(track.length) / NUM_NODES
    return float(columns(track)[:, CURVATURE].sum() * spacing / (2.0 * np.pi))


def ring_rows(num: int = 60, radius: float = 100.0) -> list[str]:
    angle = 2.0 * np.pi * np.arange(num) / num
    return [f"{radius * np.cos(a):.6f},{radius * np.sin(a):.6f},6.0,4.0" for a in angle]


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def refusal(spec: str) -> str:
    """The one line with which a circuit is refused."""
    with pytest.raises(CircuitError) as error:
        load_circuit(spec)
    assert "\n" not in str(error.value)
    return str(error.value)


# Length, smallest radius, road width: the range each design promises.
@pytest.mark.parametrize(
    ("name", "length", "radius", "width"),
    [
        ("larkspur", (2500, 3500), (12, 16), (12, 14)),
        ("saltmarket", (2000, 2500), (10, 12), (8, 10)),
        ("highmoor", (4000, 5000), (100, 120), (13, 14)),
        ("ironvale", (4500, 5000), (16, 20), (11, 14)),
        ("copperbowl", (2000, 3000), (140, 160), (15, 15)),
        ("goatstep", (3000, 3500), (12, 14), (10, 11)),
        ("ribbon", (2500, 3500), (38, 41), (12, 13)),
        ("longfurrow", (6000, 7000), (16, 20), (12, 14)),
        ("galemere", (4500, 5500), (190, 220), (13, 14)),
        ("thimble", (1800, 2500), (12, 14), (10, 12)),
        ("bracken", (3500, 4200), (14, 18), (11, 11)),
        ("ravenstair", (4000, 5000), (11, 13), (8.5, 10)),
        ("quayside", (3000, 3700), (11, 13), (10, 10)),
        ("foxglove", (4000, 5000), (16, 20), (13, 15)),
        ("fernhollow", (3800, 4500), (20, 23), (10.5, 12)),
        ("redgully", (3500, 4200), (12, 14), (9, 9)),
        ("dustwillow", (3000, 3700), (16, 19), (8, 8)),
        ("whitefell", (3700, 4300), (14, 17), (9, 9)),
        ("frostpine", (2500, 3000), (12, 15), (8, 8)),
    ],
)
def test_built_in_circuits_keep_their_promises(name, length, radius, width):
    track = load_circuit(name)
    values = columns(track)
    widths = values[:, WIDTH_LEFT] + values[:, WIDTH_RIGHT]
    assert length[0] < float(track.length) < length[1]
    assert radius[0] < 1.0 / np.abs(values[:, CURVATURE]).max() < radius[1]
    assert width[0] - 0.1 < widths.min() and widths.max() < width[1] + 0.1


def test_every_built_in_circuit_is_tested_and_one_is_the_default():
    assert len(BUILT_IN) == 19
    assert DEFAULT in BUILT_IN


def surfaces(track: Track, columns: slice) -> dict[str, float]:
    """The part of a circuit's length that has each surface, for its road or its verge."""
    rows = np.asarray(track.ground[:, columns])
    named = {name: np.float32(list(vars(ground).values())) for name, ground in SURFACES.items()}
    parts = {name: float((rows == row).all(axis=1).mean()) for name, row in named.items()}
    return {name: part for name, part in parts.items() if part > 0.0}


def test_circuits_are_grouped_by_their_road():
    assert list(GROUPS) == ["asphalt", "dirt", "snow"]
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(BUILT_IN)
    assert len(GROUPS["asphalt"]) == 15
    assert GROUPS["dirt"] == ("redgully", "dustwillow")
    assert GROUPS["snow"] == ("whitefell", "frostpine")
    for name in BUILT_IN:
        track = load_circuit(name)
        road, verge = surfaces(track, ROAD), surfaces(track, VERGE)
        if name in GROUPS["asphalt"]:
            assert road.get("asphalt", 0.0) > 0.5 and set(road) <= {"asphalt", "damp"}
            assert verge.get("grass", 0.0) > 0.5 and set(verge) <= {"grass", "gravel_trap"}
        elif name in GROUPS["dirt"]:
            assert (road, verge) == ({"dirt": 1.0}, {"grass": 1.0})
        else:
            assert (road, verge) == ({"snow": 1.0}, {"deep_snow": 1.0})


def test_the_first_seven_are_dry_asphalt_between_meadows_without_kerbs():
    # What was recorded on them stays comparable.
    for name in BUILT_IN[:7]:
        track = load_circuit(name)
        assert surfaces(track, ROAD) == {"asphalt": 1.0}
        assert surfaces(track, VERGE) == {"grass": 1.0}
        assert float(track.kerb) == 0.0


def test_some_circuits_change_on_the_way():
    assert 0.25 < surfaces(load_circuit("fernhollow"), ROAD)["damp"] < 0.4
    assert 0.15 < surfaces(load_circuit("foxglove"), VERGE)["gravel_trap"] < 0.4
    assert float(load_circuit("foxglove").kerb) == 1.0


def test_surfaces_of_a_corner_hold_from_the_end_of_the_corner_before():
    square = [Corner(x, y, 40.0, 12.0) for x, y in ((300, 0), (300, 300), (0, 300), (0, 0))]
    road = ("dirt", "ice", "snow", "asphalt")
    track = draw(square, 5.0, road=road)
    grip = np.asarray(track.ground[:, 0])
    # All four sides are alike, the start is in the middle of the first.
    expected = [SURFACES[name].grip for name in road]
    np.testing.assert_allclose(grip[0], expected[0])
    changes = np.flatnonzero(np.diff(grip)) + 1
    assert len(changes) == 4
    np.testing.assert_allclose(grip[changes], [*expected[1:], expected[0]])
    # The bends, all to the left, have just ended there.
    curvature = columns(track)[:, CURVATURE]
    assert np.all(np.abs(curvature[changes]) < 0.1 / 40.0)
    assert np.all(curvature[changes - 10] > 0.1 / 40.0)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "ribbon"])
def test_built_in_circuits_keep_their_distance_from_themselves(name):
    """Walls never cross: parts of the road are two roads and run-offs apart, or half the way."""
    track = load_circuit(name)
    values = columns(track)[::2]
    s = np.arange(len(values)) * float(track.length) / len(values)
    way = np.abs(s[:, None] - s)
    way = np.minimum(way, float(track.length) - way)
    distance = np.hypot(*(values[:, None, :2] - values[:, :2]).transpose(2, 0, 1))
    clearance = values[:, WALL_LEFT].max() + values[:, WALL_RIGHT].max()
    assert np.all(distance >= np.minimum(clearance, 0.5 * way))


@pytest.mark.parametrize("name", BUILT_IN)
def test_designs_name_one_surface_or_one_per_corner(name):
    design = DESIGNS[name]
    for names in (design.road, design.verge):
        assert isinstance(names, str) or len(names) == len(design.corners)


def test_circuits_turn_once_and_the_figure_of_eight_not_at_all():
    turns = {name: total_turning(load_circuit(name)) for name in BUILT_IN}
    assert turns["ribbon"] == pytest.approx(0.0, abs=2e-3)
    assert turns["copperbowl"] == pytest.approx(1.0, abs=2e-3)
    assert turns[DEFAULT] == pytest.approx(-1.0, abs=2e-3)
    for name in set(BUILT_IN) - {"ribbon"}:
        assert abs(turns[name]) == pytest.approx(1.0, abs=2e-3), name


@pytest.mark.parametrize("name", ["saltmarket", "quayside"])
def test_street_walls_are_close(name):
    values = columns(load_circuit(name))
    np.testing.assert_allclose(values[:, WALL_LEFT] - values[:, WIDTH_LEFT], 0.5, atol=1e-5)
    np.testing.assert_allclose(values[:, WALL_RIGHT] - values[:, WIDTH_RIGHT], 0.5, atol=1e-5)


def test_bend_is_the_clothoid_arc_clothoid_it_says():
    # A right angle with radius 40: spirals turn a quarter of it each over 2 R (pi / 8) = 31.4 m,
    # the arc a half over R (pi / 4) = 31.4 m; in all 1.5 R (pi / 2).
    bend = make_bend(np.pi / 2.0, 40.0)
    steps = np.hypot(*np.diff(bend.points, axis=0).T)
    assert steps.sum() == pytest.approx(1.5 * 40.0 * np.pi / 2.0, rel=1e-3)
    # It ends at (tangent, tangent) because a bend is symmetric about its vertex.
    np.testing.assert_allclose(bend.points[-1], bend.tangent, rtol=1e-6)
    # In the middle the circle through three points has the radius asked for.
    a, b, c = bend.points[len(bend.points) // 2 - 2 :][:5:2]
    sides = [np.hypot(*(q - p)) for p, q in ((a, b), (b, c), (c, a))]
    area = abs((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]) / 2.0
    assert np.prod(sides) / (4.0 * area) == pytest.approx(40.0, rel=1e-3)


def test_corners_that_do_not_fit_are_refused():
    square = [Corner(x, y, 60.0, 12.0) for x, y in ((0, 0), (100, 0), (100, 100), (0, 100))]
    with pytest.raises(CircuitError, match=r"corners 3 and 0 need .* m, but are 100\.0 m"):
        trace(square)


@pytest.fixture(scope="module")
def generated() -> list[Track]:
    return [load_circuit(f"generated:{seed}") for seed in range(30)]


def test_generated_circuits_can_be_driven(generated):
    for track in generated:
        values = columns(track)
        bend = np.abs(values[:, CURVATURE, None]) * values[:, [WIDTH_LEFT, WIDTH_RIGHT]]
        assert bend.max() < 0.95
        assert np.abs(values[:, CURVATURE]).max() < 1.0 / 10.0
        assert 1500.0 < float(track.length) < 6000.0
        assert abs(total_turning(track)) == pytest.approx(1.0, abs=5e-3)
        assert 9.0 - 0.1 < 2.0 * values[:, WIDTH_LEFT].min() < 15.1


def test_generated_circuits_keep_their_distance_from_themselves(generated):
    for track in generated:
        values = columns(track)[::2]
        x, y = values[:, 0], values[:, 1]
        s = np.arange(len(values)) * float(track.length) / len(values)
        way = np.abs(s[:, None] - s)
        apart = np.minimum(way, float(track.length) - way) > 80.0
        distance = np.hypot(x[:, None] - x, y[:, None] - y)[apart]
        # Half a road and the run-off on either side; a metre for the spacing of the samples.
        assert distance.min() > 2.0 * values[:, WIDTH_LEFT].max() + 2.0 * RUNOFF - 1.0


def test_generated_circuits_differ_and_go_both_ways(generated):
    assert len({round(float(track.length)) for track in generated}) > 25
    ways = [total_turning(track) > 0.0 for track in generated]
    assert 5 < sum(ways) < 25


def test_a_seed_is_one_circuit(generated):
    again = load_circuit("generated:7")
    np.testing.assert_array_equal(again.nodes, generated[7].nodes)
    # The length when this was written: another number means that every seed's circuit changed.
    assert float(again.length) == pytest.approx(2183.0, abs=1.0)


def test_file_is_loaded_with_five_metres_of_run_off(tmp_path):
    track = load_circuit(write(tmp_path / "ring.csv", HEADER, *ring_rows()))
    # The smoothing spline may shrink a circle a little: 0.05 m^2 is 0.22 m of radius.
    assert float(track.length) == pytest.approx(2.0 * np.pi * 100.0, abs=1.5)
    values = columns(track)
    np.testing.assert_allclose(values[:, WALL_RIGHT] - values[:, WIDTH_RIGHT], 5.0, atol=1e-5)
    # The white lines stay where they were, at radii 96 and 106.
    radius = np.hypot(values[:, 0], values[:, 1])
    np.testing.assert_allclose(radius - values[:, WIDTH_LEFT], 96.0, atol=0.05)
    np.testing.assert_allclose(radius + values[:, WIDTH_RIGHT], 106.0, atol=0.05)


def test_columns_are_found_by_name(tmp_path):
    plain = load_circuit(write(tmp_path / "plain.csv", *ring_rows()))
    shuffled = []
    for row in ring_rows():
        x, y, right, left = row.split(",")
        shuffled.append(f"{left}, 17, {right}, {y}, {x}")
    header = "Width_Left [m], bank, width right, y_m, X"
    named = load_circuit(write(tmp_path / "named.csv", header, "", *shuffled))
    np.testing.assert_array_equal(named.nodes, plain.nodes)


def test_comments_and_a_repeated_first_point_are_fine(tmp_path):
    rows = ring_rows()
    plain = load_circuit(write(tmp_path / "plain.csv", *rows))
    path = write(tmp_path / "ring.csv", "# my circuit", HEADER, "# start", *rows, rows[0], "")
    np.testing.assert_array_equal(load_circuit(path).nodes, plain.nodes)


def test_unknown_name_lists_the_names_and_the_likely_one():
    line = refusal("larkspurr")
    assert line.startswith("unknown circuit 'larkspurr' (did you mean 'larkspur'?)")
    assert all(name in line for name in BUILT_IN)
    assert "generated:SEED" in line and ".csv" in line
    assert "did you mean" not in refusal("")


@pytest.mark.parametrize("seed", ["", "-1", "1.5", "x", " 3"])
def test_seed_must_be_a_whole_number(seed):
    assert "the seed must be a whole number" in refusal(f"generated:{seed}")


def test_missing_and_unreadable_files(tmp_path):
    missing = str(tmp_path / "missing.csv")
    assert refusal(missing).startswith(f"{missing}: No such file")
    assert "directory" in refusal(f"{tmp_path}/")
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    assert "image.csv: not a text file" in refusal(str(tmp_path / "image.csv"))
    assert "no points; rows of 'x, y, width right, width left'" in refusal(
        write(tmp_path / "empty.csv", "")
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1.0,2.0,3.0", "3 columns; 'x, y, width right, width left' in metres are needed"),
        ("1.0,abc,5.0,5.0", "y is 'abc', not a finite number"),
        ("1.0,,5.0,5.0", "y is '', not a finite number"),
        ("nan,2.0,5.0,5.0", "x is 'nan', not a finite number"),
        ("1.0,2.0,5.0,inf", "width left is 'inf', not a finite number"),
        ("1.0,5.4e6,5.0,5.0", "more than 20000 m from the origin, where float32 is too coarse"),
        ("1.0,2.0,-5.0,5.0", "both widths must be positive"),
        ("1.0,2.0,5.0,0", "both widths must be positive"),
    ],
)
def test_bad_rows_are_refused_with_file_and_line(tmp_path, row, reason):
    rows = ring_rows()
    rows[8] = row  # line 10: the header is line 1, the first row line 2
    path = write(tmp_path / "ring.csv", HEADER, *rows)
    assert refusal(path) == f"{path}:10: {reason}"


def test_missing_column_is_refused(tmp_path):
    path = write(tmp_path / "ring.csv", "x,y,width right", *ring_rows())
    assert refusal(path).startswith(f"{path}:1: no column 'width left' among x, y, width right;")
    path = write(tmp_path / "twice.csv", "x,y,right,width right", *ring_rows())
    assert "more than one column 'width right'" in refusal(path)


def test_too_few_points_are_refused(tmp_path):
    path = write(tmp_path / "few.csv", HEADER, *ring_rows(19))
    assert refusal(path) == f"{path}: 19 different points; at least 20 are needed"
    same = [row for row in ring_rows(10) for _ in range(5)]
    assert "10 different points" in refusal(write(tmp_path / "same.csv", HEADER, *same))


def test_a_gap_instead_of_a_loop_is_refused(tmp_path):
    # 50 of 60 points 10.5 m apart: the chord over the 11 missing steps is 2 * 100 sin(33 deg).
    path = write(tmp_path / "open.csv", HEADER, *ring_rows()[:50])
    assert refusal(path) == (
        f"{path}:51: not a loop: the last point is 108.9 m from the first, where points are"
        " 10.5 m apart"
    )


def test_crossing_normals_are_refused_at_their_line(tmp_path):
    # An ellipse 200 x 80 has radius 40^2 / 100 = 16 m at its ends; the road is 18 m wide inside.
    angle = 2.0 * np.pi * np.arange(200) / 200
    rows = [f"{100.0 * np.cos(a)},{40.0 * np.sin(a)},6,{18 if 2 < a < 4 else 6}" for a in angle]
    line = refusal(write(tmp_path / "tight.csv", HEADER, *rows))
    assert "too tight for its width: radius 1" in line and "inner width 1" in line
    # The far end is point 100, in line 102; the spline wavers a little.
    assert int(line.split(".csv:")[1].split(":")[0]) == pytest.approx(102, abs=3)


def test_wild_centre_line_is_refused(tmp_path):
    # Points that jump 6 m sideways cannot be smoothed to a road 2 m wide.
    rows = [row.replace("6.0,4.0", "1.0,1.0") for row in ring_rows(200)]
    x, y = (float(value) for value in rows[50].split(",")[:2])
    rows[50] = f"{x * 1.06},{y * 1.06},1.0,1.0"
    line = refusal(write(tmp_path / "wild.csv", HEADER, *rows))
    assert "leaves the road" in line or "too tight for its width" in line
