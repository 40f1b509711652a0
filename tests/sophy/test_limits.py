"""The table of limits and the estimates from it; how it is filled is tested with the solver."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy.cars import load_car
from projects.sophy.field import load_circuits
from projects.sophy.limits import (
    CAREFUL_ONLY,
    TABLE,
    cheats,
    estimate_limits,
    find_limit,
    read_table,
)
from projects.sophy.reference import reference_lap
from projects.sophy.track import NUM_NODES

NAMES = ["gt3_fr", "gt3_fr:1", "gt3_fr:2"]


def test_a_lap_is_impossible_beyond_what_the_meshes_differ_by():
    (row,) = [row for row in read_table() if (row.circuit, row.car) == ("larkspur", "gt3_fr")]
    on_two = row._replace(lap_time=100.0, mesh_error=0.001)
    assert not cheats([99.91], on_two) and cheats([99.89], on_two)
    on_one = row._replace(lap_time=100.0, mesh_error=None)  # ONE_MESH_ERROR of 0.5 %
    assert not cheats([99.51], on_one) and cheats([99.49], on_one)
    assert not cheats([10.0], on_two._replace(status=CAREFUL_ONLY))


@pytest.fixture(scope="module")
def stack():
    return load_circuits("thimble")[1]


@pytest.fixture(scope="module")
def estimates(stack):
    return estimate_limits(NAMES, [""] * 3, stack).lap_time[:, 0]


def test_a_car_of_the_table_has_its_own_limit(estimates):
    (row,) = [row for row in read_table() if (row.circuit, row.car) == ("thimble", "gt3_fr")]
    assert estimates[0] == pytest.approx(row.lap_time, rel=1e-12)


def test_driving_aids_leave_the_limit_as_it_is(stack):
    track = jax.tree.map(lambda leaf: leaf[0], stack)
    row = find_limit(load_car("gt3_fr"), track)
    assert row is not None
    assert find_limit(load_car("gt3_fr", traction_control=True, antilock=True), track) == row


def test_variations_differ_as_their_quasi_steady_laps_on_the_fastest_line_do(stack, estimates):

    track = jax.tree.map(lambda leaf: leaf[0], stack)
    row = find_limit(load_car("gt3_fr"), track)
    assert row is not None
    # The line without the smoothing, which changes the laps of both alike.
    line = np.interp(np.arange(NUM_NODES) / NUM_NODES, np.arange(200) / 200, row.offset, period=1.0)
    spread = np.hanning(65) / np.hanning(65).sum()
    line = np.convolve(np.concatenate([line[-32:], line, line[:32]]), spread, "valid")
    times = [
        float(reference_lap(load_car(name), track, offset=jnp.asarray(line, jnp.float32)).lap_time)
        for name in NAMES
    ]
    np.testing.assert_allclose(estimates / estimates[0], np.array(times) / times[0], rtol=2e-3)
    assert np.ptp(estimates) > 0.3  # [s]; they are other cars


def test_estimates_follow_the_table_and_are_nan_without_a_row(stack, tmp_path):
    rows = [json.loads(line) for line in TABLE.read_text().splitlines()]
    path = tmp_path / "twice.jsonl"
    twice = [{**row, "lap_time": 2.0 * row["lap_time"]} for row in rows if row["car"] == "gt3_fr"]
    path.write_text("".join(json.dumps(row) + "\n" for row in twice))
    doubled = estimate_limits(["gt3_fr:1", "kart:1"], ["", ""], stack, path).lap_time[:, 0]
    own = estimate_limits(["gt3_fr:1"], [""], stack).lap_time[0, 0]
    assert doubled[0] == pytest.approx(2.0 * own, rel=1e-6)
    assert np.isnan(doubled[1])
    assert np.isnan(estimate_limits(["gt3_fr"], ["wet"], stack).lap_time).all()


def test_only_a_car_of_the_table_whose_free_lap_was_found_bounds_others(stack, tmp_path):
    floor = estimate_limits(NAMES, [""] * 3, stack).floor
    assert (floor > 0.0).tolist() == [[True], [False], [False]]
    rows = [json.loads(line) for line in TABLE.read_text().splitlines()]
    path = tmp_path / "careful.jsonl"
    careful = [{**row, "status": CAREFUL_ONLY} for row in rows if row["circuit"] == "thimble"]
    path.write_text("".join(json.dumps(row) + "\n" for row in careful))
    assert not estimate_limits(NAMES, [""] * 3, stack, path).floor.any()
    row = read_table(path)[0]
    assert cheats([1.0], row) == "" and cheats([1.0], row._replace(status="Solve_Succeeded"))
