"""The minimum lap time: the vehicle in CasADi, the solved lap, the table, the evaluator's alarm."""

import json

import casadi as ca
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_rl.errors import UserError
from projects.sophy import collocation, limit, limits
from projects.sophy import drivetrain as drivetrains
from projects.sophy import tyre as tyres
from projects.sophy.car import body_acceleration, steady_load, wheel_travel
from projects.sophy.cars import CAR_NAMES, load_car
from projects.sophy.circuits import BUILT_IN, load_circuit
from projects.sophy.circuits.outline import Corner, draw
from projects.sophy.collocation import Symbols
from projects.sophy.first_guess import course_at, first_guess, smooth_line
from projects.sophy.surfaces import SURFACES
from projects.sophy.track import make_track, resurface
from projects.sophy.tyre import Ground


def plain(car):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), car)


def forces(car, ground, v, xp):
    """Accelerations and moment from speeds, spins, lagged accelerations and steering [10]."""
    load = steady_load(car, v[0], (v[7], v[8]), xp)
    along, across, cosine, sine = wheel_travel(car, v[0], v[1], v[2], v[9], xp)
    scale = tyres.slip_scale(along, xp)
    spin = ca.vertcat(*(v[i] for i in range(3, 7))) if xp is Symbols else v[3:7]
    peak = tyres.peak(car.tyre, load, ground, xp)
    contact = tyres.contact(peak, spin / scale, -across / scale, xp)
    return body_acceleration(car, v[0], v[1], contact.force_x, contact.force_y, cosine, sine, xp)


@pytest.mark.parametrize("name", CAR_NAMES)
def test_vehicle_and_its_derivatives_are_the_same_in_both_libraries(name):
    with jax.enable_x64(True):
        car = plain(load_car(name))
        ground = Ground(*(np.full(4, value) for value in SURFACES["damp"].__dict__.values()))
        x = ca.SX.sym("x", 10)
        ours = ca.vertcat(*forces(car, ground, x, Symbols))
        symbolic = ca.Function("forces", [x], [ours, ca.jacobian(ours, x)])

        def array(v):
            return jnp.stack(forces(car, ground, v, jnp))

        both = jax.jit(lambda v: (array(v), jax.jacfwd(array)(v)))
        random = np.random.default_rng(3)
        for _ in range(20):
            v = random.uniform(-1.0, 1.0, 10) * [20, 2, 0.8, 2, 2, 2, 2, 8, 8, 0.15]
            v[0] += 30.0
            value, jacobian = both(v)
            there = [np.asarray(part) for part in symbolic(v)]
            # The simulator's polynomials are exact to a float: of 10 m/s^2, of 10 kN m.
            np.testing.assert_allclose(there[0][:2, 0], value[:2], atol=1e-6)
            np.testing.assert_allclose(there[0][2, 0], value[2], atol=1e-3)
            scale = np.abs(jacobian).max(axis=1, keepdims=True)
            np.testing.assert_allclose(there[1] / scale, jacobian / scale, atol=2e-5)


@pytest.mark.parametrize("name", ["gt3_fr", "formula_e", "kart"])
def test_engine_and_couplings_are_the_same_in_both_libraries(name):
    with jax.enable_x64(True):
        engine = plain(load_car(name)).drivetrain
        x = ca.SX.sym("x", 2)
        torque = drivetrains.engine_torque(engine, x[0], x[1], Symbols)
        both = ca.vertcat(torque, drivetrains.lock_torque(engine, 1, 5.0 * torque, Symbols))
        symbolic = ca.Function("torque", [x], [both, ca.jacobian(both, x)])

        def array(v):
            torque = drivetrains.engine_torque(engine, v[0], v[1])
            return jnp.stack([torque, drivetrains.lock_torque(engine, 1, 5.0 * torque)])

        random = np.random.default_rng(4)
        for _ in range(20):
            v = np.array([random.uniform(engine.idle, engine.rev_limit), random.uniform()])
            there = [np.asarray(part) for part in symbolic(v)]
            np.testing.assert_allclose(there[0][:, 0], array(v), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(there[1], jax.jacfwd(array)(v), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CAR_NAMES)
def test_the_engine_with_rounded_kinks_is_the_simulators(name):
    engine = plain(load_car(name)).drivetrain
    speed = np.linspace(engine.idle, engine.rev_limit + drivetrains.LIMITER_BAND, 2000)
    x = ca.SX.sym("x")
    torque = [
        collocation.engine_torque(engine, x, 1.0),
        drivetrains.engine_torque(engine, x, 1.0, Symbols),
    ]
    ours, theirs = (np.asarray(v)[0] for v in ca.Function("torque", [x], torque).map(2000)(speed))
    error = np.abs(ours - theirs) / engine.torque.max()
    assert error.max() < 0.04  # at the limiter
    below = speed < engine.rev_limit - collocation.ENGINE_BAND
    assert error[below].max() < 0.01
    assert error[below].mean() < 1e-3


def test_derivatives_of_the_problem_are_those_of_its_functions():
    car, track, num = plain(load_car("gt3_fr")), small_circuit(), 4
    steps, random = np.full(num, 2.0), np.random.default_rng(5)
    course = course_at(track, np.tile(np.arange(num) * 2.0, 2))
    courses = np.column_stack([np.column_stack(course[:-1]), course.ground]).T
    problem, derivatives, _ = collocation.make_problem(
        car, True, steps, courses, np.array([0.5, 1.0])
    )
    x, g = problem["x"], problem["g"]
    lam_f, lam_g = ca.MX.sym("lam_f"), ca.MX.sym("lam_g", g.numel())
    hessian, _ = ca.hessian(lam_f * problem["f"] + ca.dot(lam_g, g), x)
    at = np.tile(np.append(0.7, 0.05 * random.uniform(-1.0, 1.0, 11)), 2 * num)
    at = np.append(at, random.uniform(-0.5, 0.5, 2 * num))
    factors = random.uniform(-1.0, 1.0, g.numel())
    gradient = ca.Function("gradient", [x], [ca.gradient(problem["f"], x)])
    jacobian = ca.Function("jacobian", [x], [ca.jacobian(g, x)])
    hessian = ca.Function("hessian", [x, lam_f, lam_g], [ca.triu(hessian)])
    pairs = [
        (derivatives["grad_f"](at, [])[1], gradient(at)),
        (derivatives["jac_g"](at, [])[1], jacobian(at)),
        (
            derivatives["hess_lag"](at, [], 0.3, factors),
            hessian(at, 0.3, factors) + 0.3 * collocation.PROXIMAL * ca.DM.eye(len(at)),
        ),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours.full(), theirs.full(), rtol=1e-8, atol=1e-9)


def small_circuit(width=10.0, road="asphalt"):
    """A rounded triangle of about 500 m."""
    corners = [
        Corner(130.0, 0.0, 25.0, width),
        Corner(130.0, 150.0, 25.0, width),
        Corner(-60.0, 30.0, 25.0, width),
    ]
    return draw(corners, 5.0, road=road)


@pytest.fixture(scope="module")
def solved():
    """A lap on coarser meshes than usual, and what was reported meanwhile."""
    told = []
    car, track = load_car("roadster_fr"), small_circuit()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limit, "COARSE", 0.3)
        patch.setattr(limit, "FINE", 0.15)
        found = limit.compute_limit(car, track, report=lambda *row: told.append(row))
    return car, track, found, told


def test_a_solved_lap_is_consistent(solved):
    _, track, found, told = solved
    assert found.status in limit.SOLVED
    # The lap time is the integral of dt/ds along the line.
    course = course_at(track, found.s)
    forward, left, offset, angle = (found.states[:, i] for i in (0, 1, 3, 4))
    pace = (1.0 - offset * course.curvature) / (forward * np.cos(angle) - left * np.sin(angle))
    steps = np.diff(np.append(found.s, float(track.length)))
    middle = 0.5 * (pace + np.roll(pace, -1))
    assert np.sum(steps * middle) == pytest.approx(found.lap_time, rel=2e-3)
    assert found.lap_time <= found.careful_lap_time
    assert found.mesh_error < 5e-3
    assert found.guess_difference < 0.01 * found.lap_time
    stages = ["coarse mesh", "second guess", "fine mesh", "free lap", "free lap, fine mesh"]
    assert list(dict.fromkeys(stage for stage, *_ in told)) == stages
    # What a corner of this radius allows bounds its speed: mu g and a little downforce.
    assert np.abs(found.states[:, 10]).max() < 1.15 * 1.05 * 9.81


def test_the_careful_lap_stays_inside_and_can_be_driven(solved):
    car, track, found, _ = solved
    line = found.careful
    course = course_at(track, line.s)
    for x, y in zip(np.asarray(car.wheel_x), np.asarray(car.wheel_y), strict=True):
        place = line.states[:, 3] + x * np.sin(line.states[:, 4]) + y * np.cos(line.states[:, 4])
        assert np.all(place <= course.width_left + 0.01)
        assert np.all(place >= -course.width_right - 0.01)
    followed = limit.follow(car, track, line)
    # Gears change with a pause of 0.2 s; on the other hand tyres may be used up to their peak.
    assert found.lap_time < followed.lap_time < found.careful_lap_time * 1.012
    assert followed.wheels_out < 3


def test_less_grip_takes_longer(solved, monkeypatch):
    car, track, found, _ = solved
    monkeypatch.setattr(limit, "COARSE", 0.5)
    monkeypatch.setattr(limit, "FINE", 0.3)
    wet = limit.compute_limit(car, resurface(track, "wet"), second_guess=False)
    # In corners speed goes with the root of grip, 0.6 here.
    assert 1.1 * found.lap_time < wet.lap_time < found.lap_time / np.sqrt(0.6) * 1.05
    assert np.isnan(wet.guess_difference)


def test_the_first_guess_stays_on_the_road():
    car, track = plain(load_car("gt3_fr")), load_circuit("goatstep")
    line = smooth_line(track, float(np.max(np.abs(car.wheel_y))))
    states, controls = first_guess(car, track, line)
    course = course_at(track, np.arange(len(states)) * float(track.length) / len(states))
    assert np.all(states[:, 3] < course.width_left)
    assert np.all(states[:, 3] > -course.width_right)
    assert np.all(np.abs(controls) <= 1.0)
    # A smoother line than the centre's: less squared curvature.
    assert np.mean((states[:, 2] / states[:, 0]) ** 2) < np.mean(course.curvature**2)


def test_circuits_that_do_not_fit_are_refused_in_one_line():
    angle = np.linspace(0.0, 2.0 * np.pi, 200, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    car = load_car("gt3_fr")
    narrow = make_track(80.0 * circle, np.full(200, 0.6), np.full(200, 0.6))
    with pytest.raises(
        limit.LimitError, match=r"road is 1\.2\d? m wide .* wheels are 1\.65 m apart"
    ):
        limit.compute_limit(car, narrow)
    tight = make_track(3.0 * circle, np.full(200, 1.5), np.full(200, 1.5))
    with pytest.raises(limit.LimitError, match=r"outer radius is \d\.\d m .* no less than 5\.4 m"):
        limit.compute_limit(car, tight)


def test_an_unsolvable_problem_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(collocation, "MAX_ITERATIONS", 3)
    with pytest.raises(limit.LimitError, match="Maximum_Iterations_Exceeded after 3") as error:
        limit.compute_limit(load_car("kart"), small_circuit())
    assert "\n" not in str(error.value)


def test_a_table_finds_its_rows_by_what_they_were_computed_for(solved, tmp_path):
    car, track, found, _ = solved
    names = {"circuit": "small", "car": "roadster_fr", "compound": "", "surface": ""}
    path = tmp_path / "table.jsonl"
    path.write_text(json.dumps(limit.row_of(found, car, track, names)._asdict()) + "\n")
    row = limits.find_limit(car, track, path)
    assert row is not None and row.lap_time == pytest.approx(found.lap_time, abs=1e-3)
    assert len(row.offset) == len(row.speed) == limits.NUM_POINTS
    heavier = car.replace(mass=car.mass * 1.01)
    assert limits.find_limit(heavier, track, path) is None
    assert limits.find_limit(car, small_circuit(width=10.2), path) is None
    assert limits.find_limit(car, resurface(track, "wet"), path) is None
    assert limits.find_limit(car, track, tmp_path / "none.jsonl") is None
    alarm = limits.cheats([found.lap_time + 1.0, found.lap_time - 0.1], row)
    assert "FASTER THAN THE LIMIT" in alarm and "\n" not in alarm
    assert limits.cheats([found.lap_time + 0.1], row) == ""
    path.write_text("{}\n")
    limits.read_table.cache_clear()
    with pytest.raises(UserError, match=r"table.jsonl:1: not a row of limits"):
        limits.find_limit(car, track, path)


def test_the_committed_table_holds_present_cars_and_circuits():
    rows = limits.read_table()
    assert rows
    for row in rows:
        if row.status == limits.CAREFUL_ONLY:
            assert row.lap_time == row.careful_lap_time
        else:
            assert row.status in limit.SOLVED
            assert row.lap_time <= row.careful_lap_time
        if row.circuit in BUILT_IN and not row.surface:
            car = load_car(row.car, row.compound)
            assert limits.find_limit(car, load_circuit(row.circuit)) == row


def test_the_command_goes_on_after_a_cell_that_fails(tmp_path, capsys, monkeypatch):
    def compute(car, track, **_):
        if float(track.length) < 2500.0:
            raise limit.LimitError("no lap found")
        raise KeyboardInterrupt

    monkeypatch.setattr(limit, "compute_limit", compute)
    config = limit.ComputeLimit(circuit="thimble", car="gt3_fr,kart")
    assert limit.main(config) == 1
    assert capsys.readouterr().err.count("no lap found") == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (limit.ComputeLimit(circuit="larkspurr"), "unknown circuit 'larkspurr'"),
        (limit.ComputeLimit(car="gt3"), "unknown car 'gt3'"),
        (limit.ComputeLimit(compound="slick"), "slick"),
        (limit.ComputeLimit(surface="mud"), "mud"),
        (limit.ComputeLimit(circuit="thimble,larkspurr"), "unknown circuit 'larkspurr'"),
        (limit.ComputeLimit(car="gt3_fr,gt4"), "unknown car 'gt4'"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_solved(config, message, monkeypatch):
    monkeypatch.setattr(limit, "compute_limit", None)
    with pytest.raises(UserError, match=message):
        limit.main(config)


def test_a_table_that_cannot_be_written_is_told_before_anything_is_solved(tmp_path, monkeypatch):
    monkeypatch.setattr(limit, "compute_limit", None)
    with pytest.raises(FileNotFoundError):
        limit.main(limit.ComputeLimit(table=str(tmp_path / "none" / "table.jsonl")))


def test_what_the_table_holds_is_told_and_not_solved(monkeypatch, capsys):
    monkeypatch.setattr(limit, "compute_limit", None)
    assert limit.main(limit.ComputeLimit(circuit="thimble", table=str(limits.TABLE))) == 0
    assert "gt3_fr on thimble: 0:55.791" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("times", "lap_time", "status", "stages"),
    [
        # The first guess's free lap is found: nothing else is tried.
        ([60.0, 59.0], 59.0, "Solve_Succeeded", ["coarse mesh", "free lap"]),
        # It is not: that of the second guess is, though its careful lap is slower.
        ([60.0, None, 61.0, 59.5], 59.5, "Solve_Succeeded", ["second guess", "free lap"]),
        # Neither is: the faster careful lap is kept.
        ([60.0, None, 59.8, None], 59.8, limits.CAREFUL_ONLY, ["second guess", "free lap"]),
        ([60.0, 60.5, None], 60.0, limits.CAREFUL_ONLY, ["free lap", "second guess"]),
        ([None, 61.0, 60.0], 60.0, "Solve_Succeeded", ["second guess", "free lap"]),
    ],
)
def test_a_second_guess_is_tried_where_the_first_gives_no_free_lap(
    times, lap_time, status, stages, monkeypatch
):
    told, left = [], list(times)

    def solve(car, track, edges, states, controls, multipliers=None, *, stage, **_):
        told.append(stage)
        time = left.pop(0)
        outcome = (50.0, "Infeasible") if time is None else (time, "Solve_Succeeded")
        unused = (states, states, controls)
        return collocation.Solution(*outcome, 1, edges, states, controls, unused)

    monkeypatch.setattr(limit, "solve", solve)
    found = limit.compute_limit(
        load_car("roadster_fr"), small_circuit(), second_guess=False, fine_mesh=False
    )
    assert (found.lap_time, found.status, left) == (lap_time, status, [])
    assert told[-2:] == stages
    assert found.lap_time <= found.careful_lap_time


def test_ctrl_c_ends_a_solve_and_is_no_result():
    def interrupt(stage, iteration, objective):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        limit.compute_limit(load_car("roadster_fr"), small_circuit(), report=interrupt)
