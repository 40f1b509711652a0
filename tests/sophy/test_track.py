"""The geometry of circuits: closed forms on circles, and accuracy on every circuit there is."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import splev

from projects.sophy.circuits import BUILT_IN, load_circuit
from projects.sophy.circuits.built_in import DESIGNS
from projects.sophy.circuits.outline import SMOOTHING, trace
from projects.sophy.surfaces import SURFACES
from projects.sophy.time_trial import TimeTrial, TimeTrialConfig
from projects.sophy.track import (
    NUM_NODES,
    CircuitError,
    Track,
    at,
    fit_spline,
    lateral_offset,
    locate,
    make_track,
    node_stations,
    project,
    resurface,
    select_track,
    stack_tracks,
    surface_at,
    wrap_difference,
)
from projects.sophy.tyre import Ground

REAL_CIRCUITS = Path(__file__).parents[2].parent / "shared/data/racetracks"
SPECS = [*BUILT_IN, *(str(path) for path in sorted(REAL_CIRCUITS.glob("*.csv")))]

point_at = jax.jit(at)
points_at = jax.jit(jax.vmap(at, in_axes=(None, 0)))
project_all = jax.jit(jax.vmap(project, in_axes=(None, 0, 0)))
locate_all = jax.jit(jax.vmap(locate, in_axes=(None, 0)))
offset_all = jax.jit(jax.vmap(lateral_offset))


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, None))
def grounds(track: Track, s: jax.Array, n: jax.Array) -> Ground:
    """What lies at arc lengths [B] and lateral offsets [K]; leaves [B, K]."""
    return surface_at(at(track, s), n)


@pytest.fixture(scope="module")
def tracks() -> dict[str, Track]:
    return {spec: load_circuit(spec) for spec in SPECS}


def circle(radius: float, runoff: float = 5.0, direction: float = 1.0, **ground) -> Track:
    """From (radius, 0), 4 m to the left and 6 m to the right white line; direction 1 turns left."""
    angle = direction * 2.0 * np.pi * np.arange(400) / 400
    centre = radius * np.column_stack([np.cos(angle), np.sin(angle)])
    right, left, space = (np.full(400, width) for width in (6.0, 4.0, runoff))
    return make_track(centre, right, left, runoff=space, smoothing=0.0, **ground)


@pytest.fixture(scope="module")
def ring() -> Track:
    return circle(100.0)


def gap(track: Track, a, b) -> np.ndarray:
    """Distance along the track [m], in float64."""
    length = float(track.length)
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return np.abs((difference + length / 2.0) % length - length / 2.0)


def beside(track: Track, s, n) -> jax.Array:
    """Positions [B, 2] at arc lengths and lateral offsets [B]."""
    point = points_at(track, jnp.asarray(s, jnp.float32))
    left = jnp.stack([-point.tangent[:, 1], point.tangent[:, 0]], axis=1)
    return point.position + jnp.asarray(n, jnp.float32)[:, None] * left


def test_circle_has_its_closed_form(ring):
    assert float(ring.length) == pytest.approx(2.0 * np.pi * 100.0, rel=1e-6)
    s = np.linspace(-700.0, 1300.0, 300)  # outside [0, L) too: s wraps
    point = points_at(ring, jnp.asarray(s, jnp.float32))
    angle = s / 100.0
    radial = np.column_stack([np.cos(angle), np.sin(angle)])
    np.testing.assert_allclose(point.position, 100.0 * radial, atol=1e-3)
    np.testing.assert_allclose(
        point.tangent, np.column_stack([-radial[:, 1], radial[:, 0]]), atol=1e-5
    )
    np.testing.assert_allclose(point.curvature, 0.01, atol=1e-5)  # left turn: positive
    np.testing.assert_allclose(point.width_left, 4.0, atol=1e-3)
    np.testing.assert_allclose(point.width_right, 6.0, atol=1e-3)
    np.testing.assert_allclose(point.wall_left, 9.0, atol=1e-3)  # 5 m of run-off
    np.testing.assert_allclose(point.wall_right, 11.0, atol=1e-3)


def test_circle_driven_the_other_way_turns_right():
    point = point_at(circle(50.0, direction=-1.0), jnp.float32(0.0))
    assert float(point.curvature) == pytest.approx(-0.02, abs=1e-5)
    # (48, 0) lies inside the circle, which is now on the right.
    offset = float(lateral_offset(point, jnp.array([48.0, 0.0])))
    assert offset == pytest.approx(-2.0, abs=1e-4)


def test_projection_on_a_circle_has_its_closed_form(ring):
    angle, n = np.meshgrid(np.linspace(0.0, 6.2, 40), np.linspace(-8.0, 60.0, 18))
    angle, n = angle.ravel(), n.ravel()
    # Inside the circle is left, so the offset shortens the radius.
    position = (100.0 - n)[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    s = project_all(ring, jnp.asarray(position, jnp.float32), jnp.float32(100.0 * angle + 0.8))
    assert gap(ring, s, 100.0 * angle).max() < 2e-3
    found = offset_all(points_at(ring, s), jnp.asarray(position, jnp.float32))
    np.testing.assert_allclose(found, n, atol=1e-3)
    assert gap(ring, locate_all(ring, jnp.asarray(position, jnp.float32)), s).max() < 2e-3


def test_projection_wraps_into_the_lap(ring):
    position = beside(ring, [0.5, -0.5], [0.0, 0.0])
    s = project_all(ring, position, jnp.array([-0.4, float(ring.length) + 0.4]))
    np.testing.assert_allclose(s, [0.5, float(ring.length) - 0.5], atol=1e-3)
    # A hair before the line: L - 1e-6 is L in float32, which must come back as 0.
    hair = project_all(ring, jnp.array([[100.0, -1e-6]]), jnp.zeros(1))
    assert 0.0 <= float(hair[0]) < float(ring.length)


def test_wrap_difference_goes_the_short_way(ring):
    length = float(ring.length)
    new = jnp.array([1.0, length - 1.0, 200.0, length / 2.0])
    old = jnp.array([length - 1.0, 1.0, 150.0, 0.0])
    found = wrap_difference(ring, new, old)
    np.testing.assert_allclose(found, [2.0, -2.0, 50.0, -length / 2.0], atol=1e-3)


def test_wheels_stand_on_the_road_up_to_the_white_lines(ring):
    point = point_at(ring, jnp.float32(10.0))
    ground = surface_at(point, jnp.array([0.0, 3.99, 4.01, -5.99, -6.01]))
    np.testing.assert_allclose(ground.grip, [1.0, 1.0, 0.45, 1.0, 0.45])
    np.testing.assert_allclose(ground.peak_slip, [1.0, 1.0, 1.8, 1.0, 1.8])
    np.testing.assert_allclose(ground.shape, [1.0, 1.0, 0.75, 1.0, 0.75])
    np.testing.assert_allclose(ground.rolling, [0.013, 0.013, 0.08, 0.013, 0.08])
    np.testing.assert_array_equal(ground.water, 0.0)


def test_kerbs_lie_between_the_white_lines_and_the_verge():
    point = point_at(circle(100.0, verge="gravel_trap", kerb=1.5), jnp.float32(10.0))
    ground = surface_at(point, jnp.array([3.99, 4.01, 5.49, 5.51, -5.99, -6.01, -7.49, -7.51]))
    grip = [1.0, 0.95, 0.95, 0.5]
    rolling = [0.013, 0.015, 0.015, 0.25]
    np.testing.assert_allclose(ground.grip, grip * 2)
    np.testing.assert_allclose(ground.rolling, rolling * 2)


def test_the_kerb_of_a_wet_road_is_wet():
    point = point_at(circle(100.0, road="wet", kerb=1.0), jnp.float32(10.0))
    kerb = surface_at(point, jnp.float32(4.5))
    assert float(kerb.grip) == pytest.approx(0.95 * 0.6)
    assert float(kerb.peak_slip) == pytest.approx(1.1)
    assert float(kerb.water) == 1.0


@pytest.mark.parametrize("name", SURFACES)
def test_every_surface_can_be_road_and_verge(name):
    point = point_at(circle(100.0, road=name, verge=name), jnp.float32(10.0))
    for ground in (point.road, point.verge):
        for field, value in vars(SURFACES[name]).items():
            assert float(getattr(ground, field)) == pytest.approx(value), field
    # The tyre's curve must keep its shape, whose factor Q it cuts at 1.05, for a Q of 1.6.
    assert 0.0 < SURFACES[name].grip <= 1.0
    assert SURFACES[name].shape * 1.6 > 1.05


def test_surfaces_change_along_the_circuit_and_around_the_line():
    # Of 400 points the first hundred and the last fifty are wet: 270 to 360 and 0 to 90 degrees.
    road = ["wet"] * 100 + ["asphalt"] * 250 + ["wet"] * 50
    verge = ["gravel_trap"] * 200 + ["grass"] * 200
    track = circle(100.0, road=road, verge=verge)
    length = float(track.length)
    # A surface begins at the first node from its point on, nodes are 0.3 m apart.
    part = np.array([0.1, 0.2499, 0.2505, 0.4, 0.4999, 0.5005, 0.8749, 0.8755, 0.9999])
    wet = np.array([1, 1, 0, 0, 0, 0, 0, 1, 1], bool)
    trap = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0], bool)
    for laps in (-1.0, 0.0, 2.0):  # s wraps
        found = grounds(track, jnp.asarray((part + laps) * length), jnp.array([1.0, 5.0]))
        np.testing.assert_allclose(found.grip[:, 0], np.where(wet, 0.6, 1.0))
        np.testing.assert_array_equal(found.water[:, 0], wet)
        np.testing.assert_allclose(found.grip[:, 1], np.where(trap, 0.5, 0.45))
        np.testing.assert_array_equal(found.water[:, 1], 0.0)


def test_surfaces_of_duplicate_points_are_dropped_with_them():
    angle = 2.0 * np.pi * np.arange(60) / 60
    centre = 80.0 * np.column_stack([np.cos(angle), np.sin(angle)])
    names = ["dirt"] * 20 + ["asphalt"] * 40
    plain = make_track(centre, np.full(60, 5.0), np.full(60, 5.0), road=names)
    doubled = np.repeat(centre, 2, axis=0)
    track = make_track(
        doubled, np.full(120, 5.0), np.full(120, 5.0), road=list(np.repeat(names, 2))
    )
    np.testing.assert_array_equal(track.ground, plain.ground)
    assert 0.3 < float(jnp.mean(track.ground[:, 0] < 1.0)) < 0.36  # a third is dirt


def test_another_surface_for_the_whole_road():
    track = circle(100.0, road=["damp"] * 100 + ["asphalt"] * 300, kerb=1.0)
    snowy = resurface(track, "snow")
    found = grounds(snowy, jnp.array([10.0, 300.0]), jnp.array([0.0, 4.5, 6.0]))
    np.testing.assert_allclose(found.grip, [[0.35, 0.95 * 0.35, 0.45]] * 2)
    np.testing.assert_allclose(found.rolling, [[0.03, 0.03, 0.08]] * 2)
    np.testing.assert_array_equal(snowy.nodes, track.nodes)
    assert resurface(circle(100.0), "asphalt").ground.tobytes() == circle(100.0).ground.tobytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda name: circle(100.0, road=name),
        lambda name: resurface(circle(100.0), name),
        lambda name: TimeTrial(TimeTrialConfig(surface=name)),
    ],
)
def test_unknown_surfaces_are_refused_with_the_likely_one(make):
    with pytest.raises(CircuitError) as error:
        make("Asfalt")
    assert str(error.value) == (
        "unknown surface 'Asfalt' (did you mean 'asphalt'?): allowed are " + ", ".join(SURFACES)
    )
    with pytest.raises(CircuitError, match=r"^unknown surface 'quartz': allowed are asphalt, damp"):
        make("quartz")


def test_a_time_trial_is_driven_on_the_surface_it_names():
    dry, wet = (TimeTrial(TimeTrialConfig(surface=name)) for name in ("", "wet"))
    assert float(wet.track.ground[0, 0]) == pytest.approx(0.6)
    assert wet.reference.lap_time > 1.15 * dry.reference.lap_time

    @jax.jit
    def lost(track: Track) -> jax.Array:
        """Speed that full brakes take in a second, from the same start at 19.6 m/s."""
        env = copy.copy(dry)
        env.track = track
        state = env.reset(jax.random.key(3))
        braked = jax.lax.fori_loop(
            0, 10, lambda _, state: env.step(state, jnp.array([0.0, -1.0])), state
        )
        return state.pipeline_state.motion.velocity[0] - braked.pipeline_state.motion.velocity[0]

    assert 0.5 < lost(wet.track) / lost(dry.track) < 0.75


def test_bad_surfaces_of_points_and_kerbs_are_refused():
    with pytest.raises(CircuitError, match=r"^point 7: unknown surface 'gras' \(.* 'grass'\?\)"):
        circle(100.0, verge=["grass"] * 7 + ["gras"] * 393)
    with pytest.raises(CircuitError, match=r"^3 surfaces for 400 points; one for all or one per"):
        circle(100.0, road=["dirt"] * 3)
    for kerb in (-1.0, np.nan, np.inf):
        with pytest.raises(
            CircuitError, match=r"^the kerb's width must be finite and not negative"
        ):
            circle(100.0, kerb=kerb)


def test_run_off_ends_before_the_centre_of_curvature():
    # The inner wall would stand 34 m inside radius 20, so it stops at 0.9 of that; outside 6 + 30.
    point = point_at(circle(20.0, runoff=30.0), jnp.float32(3.0))
    assert float(point.wall_left) == pytest.approx(18.0, abs=1e-2)
    assert float(point.wall_right) == pytest.approx(36.0, abs=1e-2)


def test_smoothing_moves_the_centre_line_but_not_the_white_lines():
    # Points zigzag by 10 cm about a circle, their widths lead to white lines at 96 and 106 m.
    angle = 2.0 * np.pi * np.arange(360) / 360
    error = 0.1 * (-1.0) ** np.arange(360)
    centre = (100.0 + error)[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    track = make_track(centre, 6.0 - error, 4.0 + error)
    point = points_at(track, node_stations(track))
    radius = np.hypot(*np.asarray(point.position).T)
    np.testing.assert_allclose(radius - point.width_left, 96.0, atol=0.05)
    np.testing.assert_allclose(radius + point.width_right, 106.0, atol=0.05)
    # The zigzag rises by 20 cm in 1.7 m, which is six nodes.
    assert np.abs(np.diff(radius)).max() < 0.01


def test_duplicate_points_collapse_and_the_start_stays():
    angle = 2.0 * np.pi * np.arange(60) / 60
    centre = 80.0 * np.column_stack([np.cos(angle), np.sin(angle)])
    doubled = np.vstack([np.repeat(centre, 2, axis=0), centre[:1]])
    plain = make_track(centre, np.full(60, 5.0), np.full(60, 5.0))
    track = make_track(doubled, np.full(121, 5.0), np.full(121, 5.0))
    np.testing.assert_array_equal(track.nodes, plain.nodes)


def test_crossing_normals_are_refused_at_their_row():
    # An ellipse 200 x 80: the radius at its ends (rows 0 and 50) is 40^2 / 100 = 16 m.
    angle = 2.0 * np.pi * np.arange(100) / 100
    centre = np.column_stack([100.0 * np.cos(angle), 40.0 * np.sin(angle)])
    inner = np.where(np.arange(100) > 40, 16.0, 10.0)
    with pytest.raises(CircuitError, match=r"point 50: .*radius 16\.0 m, inner width 16\.0 m"):
        make_track(centre, np.full(100, 20.0), inner, smoothing=1e-8)


@pytest.mark.parametrize("spec", SPECS)
def test_nodes_have_equal_arc(tracks, spec):
    track = tracks[spec]
    position = np.asarray(points_at(track, node_stations(track)).position, np.float64)
    chords = np.hypot(*(np.roll(position, -1, axis=0) - position).T)
    curvature = np.asarray(track.nodes[:, 8], np.float64)
    # A chord is shorter than its arc h by (curvature h)^2 / 24 of it.
    middle = (curvature + np.roll(curvature, -1)) / 2.0
    arcs = chords * (1.0 + (middle * chords) ** 2 / 24.0)
    np.testing.assert_allclose(arcs, float(track.length) / NUM_NODES, atol=2e-3)


@pytest.mark.parametrize("spec", SPECS)
def test_hermite_follows_the_spline(tracks, spec):
    if spec in DESIGNS:
        spline, _ = fit_spline(trace(DESIGNS[spec].corners)[0], SMOOTHING)
    else:
        spline, _ = fit_spline(np.loadtxt(spec, delimiter=",")[:, :2], 0.05)
    u = np.linspace(0.0, 1.0, 200_001)
    steps = np.hypot(*np.diff(splev(u, spline), axis=1))
    arc = np.concatenate([[0.0], np.cumsum(steps)])
    s = (np.arange(NUM_NODES) + 0.5) / NUM_NODES * arc[-1]  # half way, where the error is largest
    expected = np.column_stack(splev(np.interp(s, arc, u), spline))
    found = points_at(tracks[spec], jnp.asarray(s, jnp.float32)).position
    assert float(tracks[spec].length) == pytest.approx(arc[-1], rel=1e-5)
    # 2 mm of Hermite error at most (Spa, nodes 3.4 m apart), 1 mm of float32 at 7 km.
    assert np.hypot(*(np.asarray(found) - expected).T).max() < 4e-3


@pytest.mark.parametrize("spec", SPECS)
def test_projection_is_accurate_between_the_walls(tracks, spec):
    track = tracks[spec]
    random = np.random.default_rng(0)
    s = random.uniform(0.0, float(track.length), 20_000)
    point = points_at(track, jnp.asarray(s, jnp.float32))
    # Anywhere up to 3 m outside the white lines where the wall leaves so much.
    n = random.uniform(
        -np.minimum(point.wall_right, point.width_right + 3.0),
        np.minimum(point.wall_left, point.width_left + 3.0),
    )
    guess = jnp.asarray(s + random.uniform(-1.0, 1.0, len(s)), jnp.float32)
    position = beside(track, s, n)
    found = project_all(track, position, guess)
    # Two steps end in float32's half millimetre; one would leave a centimetre.
    assert np.percentile(gap(track, found, s), 99.9) < 0.002
    offset = offset_all(points_at(track, found), position)
    assert np.percentile(np.abs(np.asarray(offset) - n), 99.9) < 0.002


@jax.jit
def drive(track: Track, s: jax.Array, positions: jax.Array) -> jax.Array:
    """Arc lengths [T] of a car that moves 0.4 m along the track between the positions [T, 2]."""

    def step(s, position):
        s = project(track, position, s + 0.4)
        return s, s

    return jax.lax.scan(step, s, positions)[1]


def crossing(track: Track) -> tuple[float, float]:
    """The two arc lengths [m] where a figure of eight meets itself."""
    position = np.asarray(points_at(track, node_stations(track)).position)[::4]
    distance = np.hypot(*(position[:, None] - position).transpose(2, 0, 1))
    num = len(position)
    way = np.abs(np.arange(num)[:, None] - np.arange(num))
    distance[np.minimum(way, num - way) < num // 8] = np.inf
    first, second = np.unravel_index(np.argmin(distance), distance.shape)
    return first / num * float(track.length), second / num * float(track.length)


@pytest.mark.parametrize("spec", [s for s in SPECS if s == "ribbon" or "Suzuka" in s])
def test_driving_through_the_crossing_stays_on_its_leg(tracks, spec):
    track = tracks[spec]
    for middle in crossing(track):
        truth = middle + np.arange(-60.0, 60.0, 0.4)  # 80 m/s at 5 ms
        n = 3.0 * np.sin(truth / 15.0)
        position = beside(track, truth, n)

        found = drive(track, jnp.float32(truth[0] - 0.4), position)
        assert gap(track, found, truth).max() < 0.01


def test_figure_of_eight_crosses_itself(tracks):
    track = tracks["ribbon"]
    first, second = crossing(track)
    meeting = points_at(track, jnp.array([first, second]))
    assert np.hypot(*(meeting.position[0] - meeting.position[1])) < 6.0  # nodes 6 m apart searched
    assert gap(track, first, second) > 1000.0


def test_stacked_circuits_are_one_batch(tracks):
    stack = stack_tracks([tracks[name] for name in BUILT_IN])
    assert stack.nodes.shape == (len(BUILT_IN), NUM_NODES, 18)
    assert stack.ground.shape == (len(BUILT_IN), NUM_NODES, 10)
    index = jnp.array([3, 0, 5, 0])
    s = jnp.array([10.0, 500.0, -20.0, 1700.0])

    def offset_of_a_guess(track, s):
        place = at(track, s).position + 1.0
        return project(track, place, s), locate(track, place), at(track, s).wall_left

    one = jax.jit(offset_of_a_guess)
    alone = [one(tracks[BUILT_IN[i]], x) for i, x in zip([3, 0, 5, 0], s, strict=True)]
    select = jax.jit(jax.vmap(lambda i, x: offset_of_a_guess(select_track(stack, i), x)))
    np.testing.assert_allclose(np.transpose(select(index, s)), alone, atol=2e-3)
    one_each = jax.jit(jax.vmap(offset_of_a_guess))(stack, jnp.full(len(BUILT_IN), 10.0))
    np.testing.assert_allclose(one_each[0][3], alone[0][0], atol=2e-3)


def test_circuits_of_a_stack_keep_their_surfaces():
    damp = ["asphalt"] * 200 + ["damp"] * 200
    stack = stack_tracks(
        [
            circle(100.0),
            circle(60.0, road="dirt"),
            circle(80.0, road=damp, verge="gravel_trap", kerb=1.0),
            circle(90.0, road="snow", verge="deep_snow"),
        ]
    )
    index = jnp.array([2, 0, 3, 1, 2])
    s = jnp.array([400.0, 400.0, 400.0, -10.0, 100.0])
    n = jnp.array([0.0, 4.5, 8.0])

    def found(stack: Track) -> Ground:
        each = jax.jit(jax.vmap(lambda i, s: surface_at(at(select_track(stack, i), s), n)))
        return each(index, s)

    grip = np.array([[0.8, 0.76, 0.5], [1, 0.45, 0.45], [0.35, 0.3, 0.3], [0.6, 0.45, 0.45]])
    np.testing.assert_allclose(found(stack).grip, [*grip, [1.0, 0.95, 0.5]])
    np.testing.assert_allclose(found(stack).water[:, 0], [0.5, 0.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(found(resurface(stack, "wet")).grip[:, 0], 0.6)
    np.testing.assert_allclose(
        found(resurface(stack, "wet")).grip[:, 2], [0.5, 0.45, 0.3, 0.45, 0.5]
    )


def test_selecting_copies_no_nodes(tracks):
    stack = stack_tracks([tracks["larkspur"], tracks["ribbon"]])

    def compiled(look: Callable[[Track, jax.Array], Any]) -> str:
        step = jax.jit(jax.vmap(lambda i, s: look(select_track(stack, i), s)))
        text = step.lower(jnp.zeros(64, jnp.int32), jnp.zeros(64)).compile().as_text()
        assert text is not None
        return text

    surface = compiled(lambda track, s: surface_at(at(track, s), jnp.zeros(4)))
    assert "f32[64,18]" in surface and "f32[64,10]" in surface
    place = compiled(lambda track, s: at(track, s).position)
    assert "f32[64,18]" in place
    assert "f32[64,10]" not in place  # who asks for the geometry gathers no surfaces
    assert "f32[64,2048," not in surface + place
