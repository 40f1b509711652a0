"""The reference lap against limits worked out in plain numpy, and against the simulator itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from projects.sophy import track as tracks
from projects.sophy.car import Command, rolling_start, step
from projects.sophy.cars import load_car
from projects.sophy.circuits import load_circuit
from projects.sophy.drivetrain import NUM_POINTS
from projects.sophy.reference import reference_lap
from projects.sophy.track import NUM_NODES, make_track, stack_tracks
from projects.sophy.tyre import dry_asphalt

RADIUS = 60.0  # of the circle [m]
STRAIGHT = 300.0  # of the stadium [m]
GRAVITY, AIR = 9.81, 1.2
ROLLED = 700  # nodes


def circle_points(radius):
    angle = np.linspace(0.0, 2.0 * np.pi, 400, endpoint=False)
    return radius * np.column_stack([np.cos(angle), np.sin(angle)])


def flat_track(points, **ground):
    width = np.full(len(points), 5.0)
    return make_track(points, width, width, smoothing=1e-6, **ground)


def stadium_points():
    """Two straights joined by half circles, anticlockwise from the start of a straight."""
    along = np.arange(0.0, STRAIGHT, 2.0)
    angle = np.linspace(-np.pi / 2, np.pi / 2, 95, endpoint=False)
    bend = RADIUS * np.column_stack([np.cos(angle), np.sin(angle)]) + [STRAIGHT, 0.0]
    half = np.vstack([np.column_stack([along, np.full_like(along, -RADIUS)]), bend])
    return np.vstack([half, [STRAIGHT, 0.0] - half])


def frictionless(track):
    """The same circuit without rolling resistance."""
    return track.replace(ground=track.ground.at[:, 3].set(0.0))


def plain(car, **torques):
    """The car without what has no closed form: drag, slip angles, differentials, shift times."""
    return car.replace(
        drag_area=jnp.float32(0.0),
        tyre=car.tyre.replace(peak_angle=jnp.full(4, 1e-3)),
        drivetrain=car.drivetrain.replace(
            lock_preload=jnp.zeros(3),
            lock_ramp=jnp.zeros(3),
            shift_time=jnp.float32(0.0),
            **torques,
        ),
    )


def roll(track):
    nodes, ground = (jnp.roll(rows, -ROLLED, axis=0) for rows in (track.nodes, track.ground))
    return track.replace(nodes=nodes, ground=ground)


def with_torque(car, factor):
    drivetrain = car.drivetrain
    return car.replace(drivetrain=drivetrain.replace(torque=factor * drivetrain.torque))


def with_grip(car, factor):
    tyre = car.tyre
    return car.replace(
        tyre=tyre.replace(friction_x=factor * tyre.friction_x, friction_y=factor * tyre.friction_y)
    )


@pytest.fixture(scope="module")
def cases():
    gt3 = load_car("gt3_fr")
    larkspur = load_circuit("larkspur")
    circle = flat_track(circle_points(RADIUS))
    stadium = flat_track(stadium_points())
    strong = plain(gt3, torque=10.0 * gt3.drivetrain.torque)
    even = strong.replace(tyre=strong.tyre.replace(friction_slope=jnp.zeros(4)))
    even = even.replace(brake_torque=jnp.float32(1e5))
    return {
        "gt3": (gt3, larkspur),
        "rolled": (gt3, roll(larkspur)),
        "grip": (with_grip(gt3, 1.05), larkspur),
        "power": (with_torque(gt3, 1.1), larkspur),
        "front drive": (load_car("hatch_ff"), larkspur),
        "all drive": (load_car("rally_awd"), larkspur),
        "circle": (plain(gt3), frictionless(circle)),
        "corners": (plain(gt3), frictionless(larkspur)),
        "engine": (plain(gt3), frictionless(stadium)),
        "traction": (even, frictionless(stadium)),
        "oval": (load_car("kart"), load_circuit("copperbowl")),
        "rolled oval": (load_car("kart"), roll(load_circuit("copperbowl"))),
    }


@pytest.fixture(scope="module")
def laps(cases):
    """All laps in one call, mapped over cars and circuits."""
    cars, circuits = zip(*cases.values(), strict=True)
    cars = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cars)
    found = jax.device_get(jax.vmap(reference_lap)(cars, stack_tracks(circuits)))
    names = enumerate(cases)
    return {name: jax.tree.map(lambda leaf, i=i: leaf[i], found) for i, name in names}


def curvature(track):
    return np.asarray(jax.vmap(tracks.at, (None, 0))(track, tracks.node_stations(track)).curvature)


def wheel_loads(car, speed, forward, lateral):
    """[front inner, front outer, rear inner, rear outer] in N."""
    front, rear = float(car.wheel_x[0]), -float(car.wheel_x[2])
    base, mass, height = front + rear, float(car.mass), float(car.height)
    wing = 0.5 * AIR * speed**2 * np.asarray(car.downforce_area, float)
    axles = [
        (mass * GRAVITY * rear - mass * height * forward) / base + wing[0],
        (mass * GRAVITY * front + mass * height * forward) / base + wing[1],
    ]
    loads = []
    for axle, share, half in zip(
        axles,
        (float(car.roll_share), 1.0 - float(car.roll_share)),
        (float(car.wheel_y[0]), float(car.wheel_y[2])),
        strict=True,
    ):
        moved = share * mass * height * lateral / (2.0 * half)
        loads += [axle / 2.0 - moved, axle / 2.0 + moved]
    return np.array(loads)


def lateral_limit(car, speed):
    """Largest lateral acceleration of a plain car, from the weaker axle's balance."""
    front, rear = float(car.wheel_x[0]), -float(car.wheel_x[2])
    tyre = car.tyre
    low, high = 0.0, 60.0
    for _ in range(40):
        lateral = 0.5 * (low + high)
        load = wheel_loads(car, speed, 0.0, lateral)
        slope = np.asarray(tyre.friction_slope, float)
        friction = 1.0 + slope * (load - np.asarray(tyre.nominal_load, float))
        side = np.asarray(tyre.friction_y, float) * friction * load
        share = np.array([rear, front]) / (front + rear)
        holds = np.all(float(car.mass) * lateral * share <= [side[:2].sum(), side[2:].sum()])
        low, high = (lateral, high) if holds else (low, lateral)
    return low


def acceleration(lap, length):
    """Between the nodes, [N] in m/s^2."""
    return (np.roll(lap.speed, -1) ** 2 - lap.speed**2) / (2.0 * length / NUM_NODES)


def test_circle_is_driven_at_the_weaker_axles_limit(cases, laps):
    car = jax.device_get(cases["circle"][0])
    # The fixed point v^2 / R = limit(v) with downforce, by bisection on v.
    low, high = 5.0, 60.0
    for _ in range(40):
        speed = 0.5 * (low + high)
        low, high = (speed, high) if speed**2 / RADIUS < lateral_limit(car, speed) else (low, speed)
    np.testing.assert_allclose(laps["circle"].speed, low, rtol=3e-3)


def test_corners_are_driven_at_the_limit_and_never_above(cases, laps):
    car, track = jax.device_get(cases["corners"][0]), cases["corners"][1]
    speed = laps["corners"].speed
    grid = np.linspace(5.0, 90.0, 30)
    limit = np.interp(speed, grid, [lateral_limit(car, v) for v in grid])
    usage = speed**2 * np.abs(curvature(track)) / limit
    assert usage.max() < 1.005
    assert usage.max() > 0.99


def test_full_throttle_is_what_the_engine_gives(cases, laps):
    car, track = cases["engine"]
    lap, drivetrain = laps["engine"], car.drivetrain
    # 2/3 down the straight, where the slip is small and the gearbox in between two shifts.
    node = int(NUM_NODES * (0.33 * STRAIGHT) / float(track.length))
    speed = float(lap.speed[node])
    radius = float(car.wheel_radius[2])
    turning = np.asarray(drivetrain.ratios) * speed / radius
    gear = int(np.argmax(turning < float(drivetrain.shift_up)))
    ratio = float(drivetrain.ratios[gear])
    revs = np.linspace(float(drivetrain.idle), float(drivetrain.rev_limit), NUM_POINTS)
    torque = np.interp(ratio * speed / radius, revs, np.asarray(drivetrain.torque))
    force = torque * ratio * float(drivetrain.efficiency) / radius
    inertia = float(drivetrain.inertia) * (ratio / radius) ** 2
    inertia += float(jnp.sum(car.wheel_inertia / car.wheel_radius**2))
    expected = force / (float(car.mass) + inertia)
    got = acceleration(lap, float(track.length))[node - 3 : node + 3].mean()
    assert got == pytest.approx(expected, rel=0.02)


def test_traction_and_brakes_are_what_the_loads_give(cases, laps):
    car, track = jax.device_get(cases["traction"][0]), cases["traction"][1]
    lap = laps["traction"]
    got = acceleration(lap, float(track.length))
    mass, height = float(car.mass), float(car.height)
    base = float(car.wheel_x[0] - car.wheel_x[2])
    straight = slice(20, int(NUM_NODES * STRAIGHT / float(track.length)) - 20)
    middle = np.sqrt((lap.speed**2 + np.roll(lap.speed, -1) ** 2) / 2.0)
    # Rear drive: m a = mu (Wr + m h a / L), Wr static and downforce.
    # Brakes: m d share_i = mu_i (W_i +- m h d / L) for the axle that locks first.
    pushes, brakes = [], []
    force = np.array([car.brake_bias / car.wheel_radius[0], 1 - car.brake_bias])
    force[1] /= car.wheel_radius[2]
    force /= force.sum()
    friction = np.array([car.tyre.friction_x[0], car.tyre.friction_x[2]])
    for speed in middle[straight]:
        load = wheel_loads(car, speed, 0.0, 0.0)
        static = np.array([load[:2].sum(), load[2:].sum()])
        transfer = np.array([1.0, -1.0]) * friction * mass * height / base
        pushes.append(friction[1] * static[1] / (mass + transfer[1]))
        brakes.append(np.min(friction * static / (mass * force - transfer)))
    got = got[straight]
    push, brake = np.array(pushes), np.array(brakes)
    driving = got > 0.0
    assert driving.sum() > 100
    assert (~driving).sum() > 50
    turns = np.flatnonzero(np.diff(driving))
    assert len(turns) == 1
    clear = np.abs(np.arange(len(got)) - turns[0]) > 3
    np.testing.assert_allclose(got[driving & clear], push[driving & clear], rtol=0.01)
    np.testing.assert_allclose(got[~driving & clear], -brake[~driving & clear], rtol=0.01)


def test_power_in_and_out_of_the_body_has_a_source(cases, laps):
    car, track = cases["gt3"]
    lap = laps["gt3"]
    engine = np.linspace(float(car.drivetrain.idle), float(car.drivetrain.rev_limit), NUM_POINTS)
    most = float(car.drivetrain.efficiency) * np.max(engine * np.asarray(car.drivetrain.torque))
    drag = 0.5 * AIR * float(car.drag_area) * lap.speed**2
    power = (float(car.mass) * acceleration(lap, float(track.length)) + drag) * lap.speed
    # The energy of a step is spread over a node; 2 % for the speed's change within.
    assert power.max() < 1.02 * most
    assert power.max() > 0.85 * most


def test_more_grip_or_power_is_faster(laps):
    assert laps["grip"].lap_time < 0.99 * laps["gt3"].lap_time
    assert laps["power"].lap_time < 0.999 * laps["gt3"].lap_time
    assert np.all(laps["grip"].speed > 0.999 * laps["gt3"].speed)
    assert np.all(laps["power"].speed > 0.999 * laps["gt3"].speed)


@pytest.mark.parametrize("name", ["gt3", "oval"])
def test_the_start_line_may_be_anywhere(laps, name):
    """Also where the engine, not a corner, sets the speed all the way round."""
    lap, rolled = laps[name], laps["rolled" if name == "gt3" else "rolled oval"]
    assert rolled.lap_time == pytest.approx(lap.lap_time, rel=2e-4)
    np.testing.assert_allclose(np.roll(rolled.speed, ROLLED), lap.speed, rtol=2e-3)


def test_time_is_the_integral_of_distance_over_speed(cases, laps):
    lap = laps["gt3"]
    length = float(cases["gt3"][1].length)
    # Constant acceleration between nodes: v^2 is linear in s. Midpoints of 50 pieces a node.
    part = (np.arange(50) + 0.5) / 50.0
    square = lap.speed[:, None] ** 2
    square = square + part * (np.roll(square, -1, axis=0) - square)
    steps = np.mean(1.0 / np.sqrt(square), axis=1) * length / NUM_NODES
    np.testing.assert_allclose(lap.time, np.cumsum(steps) - steps, rtol=1e-4, atol=1e-4)
    assert lap.lap_time == pytest.approx(steps.sum(), rel=1e-4)


@pytest.mark.parametrize("name", ["gt3", "front drive", "all drive"])
def test_mapped_is_one_by_one(cases, laps, name):
    alone = reference_lap(*cases[name])
    assert float(alone.lap_time) == pytest.approx(float(laps[name].lap_time), rel=1e-5)
    np.testing.assert_allclose(alone.speed, laps[name].speed, rtol=1e-4)


def test_a_displaced_circle_is_a_circle(cases):
    """Offsets that draw a circle of 55 m with its centre moved by 3 m: its own speed and length."""
    car, track = cases["circle"]
    radius, moved = 55.0, 3.0
    angle = np.arange(NUM_NODES) * (2.0 * np.pi / NUM_NODES)
    reach = moved * np.cos(angle) + np.sqrt(radius**2 - (moved * np.sin(angle)) ** 2)
    lap = reference_lap(car, track, offset=jnp.asarray(RADIUS - reach, jnp.float32))
    alone = reference_lap(car, frictionless(flat_track(circle_points(radius))))
    np.testing.assert_allclose(lap.speed, alone.speed[0], rtol=2e-3)
    assert float(lap.lap_time) == pytest.approx(float(alone.lap_time), rel=1e-3)


def test_a_road_of_several_surfaces_is_driven_by_what_lies_there(cases):
    car, points = cases["gt3"][0], circle_points(RADIUS)
    plain = {
        name: reference_lap(car, flat_track(points, road=name))
        for name in ("asphalt", "damp", "wet")
    }
    speeds = {name: float(lap.speed[0]) for name, lap in plain.items()}
    assert speeds["wet"] < 0.9 * speeds["damp"] < 0.85 * speeds["asphalt"]

    # Two surfaces are exact: the wet half, entered by braking and left at its limit, is driven as
    # a wet circle, and the dry one as a dry circle as soon as the car has its speed.
    two = reference_lap(car, flat_track(points, road=["wet"] * 200 + ["asphalt"] * 200))
    half = NUM_NODES // 2
    np.testing.assert_allclose(two.speed[:half], plain["wet"].speed[:half], rtol=1e-4)
    assert np.all(two.speed[half + 1 :] > speeds["wet"])
    assert float(two.speed.max()) == pytest.approx(speeds["asphalt"], rel=2e-3)
    assert plain["asphalt"].lap_time < two.lap_time < plain["wet"].lap_time
    # In between the car accelerates and brakes no harder than it can on the dry half.
    square = two.speed**2 / 2.0
    gain = (jnp.roll(square, -1) - square) / (2.0 * np.pi * RADIUS / NUM_NODES)
    assert -15.0 < float(gain.min()) < -3.0 and 1.0 < float(gain.max()) < 10.0

    # Of three, the middle one's limit is found between the others' to a percent.
    road = ["damp"] * 200 + ["wet"] * 100 + ["asphalt"] * 100
    three = reference_lap(car, flat_track(points, road=road))
    assert float(three.speed[300]) == pytest.approx(speeds["damp"], rel=0.01)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def hold_circle(car, limit, part):
    """Whether the simulated car stays within 1.5 m of the circle at part * limit for 4 seconds.

    It comes up to speed from 80 %. The driver steers for place, course and yaw rate, but never
    beyond the peak of the front tyres, and feeds the throttle.
    """
    wheelbase = car.wheel_x[0] - car.wheel_x[3]
    ground = dry_asphalt()
    peak = jnp.arctan(jnp.max(car.tyre.peak_angle))
    start = rolling_start(car, jnp.array([RADIUS, 0.0]), jnp.float32(jnp.pi / 2), 0.8 * limit)
    start = start.replace(yaw_rate=0.8 * limit / RADIUS, steering=wheelbase / RADIUS)

    def advance(carry, time):
        state, outward_sum, slow_sum = carry
        target = limit * jnp.minimum(0.8 + 0.04 * time, part)
        speed = jnp.hypot(*state.velocity)
        outward = jnp.hypot(*state.position) - RADIUS
        course = state.heading + jnp.arctan2(state.velocity[1], state.velocity[0])
        course = course - jnp.arctan2(state.position[1], state.position[0]) - jnp.pi / 2
        course = jnp.arctan2(jnp.sin(course), jnp.cos(course))
        outward_sum = jnp.clip(outward_sum + 0.005 * outward, -3.0, 3.0)
        slow_sum = jnp.clip(slow_sum + 0.005 * (target - speed), -1.0, 1.0)
        steering = wheelbase / RADIUS + 0.03 * outward + 0.02 * outward_sum - 1.2 * course
        steering = steering + 0.18 * (speed / RADIUS - state.yaw_rate)
        drift = state.velocity[1] + state.yaw_rate * car.wheel_x[0]
        drift = jnp.arctan2(drift, state.velocity[0])
        steering = jnp.clip(steering, drift - 1.1 * peak, drift + 1.1 * peak)
        throttle = 0.5 * (target - speed) + 0.5 * slow_sum
        state = step(car, state, Command(steering, throttle, jnp.float32(0.0)), ground, 0.005)
        return (state, outward_sum, slow_sum), (jnp.abs(outward), speed / limit)

    times = 0.005 * jnp.arange(2200)
    outward, speed = jax.lax.scan(advance, (start, jnp.zeros(()), jnp.zeros(())), times)[1]
    settled = jnp.min(jnp.where(times > 7.0, speed, jnp.inf))
    return (jnp.max(outward) < 1.5) & (settled > part - 0.01)


@pytest.fixture(scope="module")
def real_circle(cases):
    """Different layouts and the speeds that the reference says they hold on the circle."""
    circle = flat_track(circle_points(RADIUS))
    cars = [cases[name][0] for name in ("gt3", "front drive", "all drive")]
    speeds = [float(reference_lap(car, circle).speed[0]) for car in cars]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *cars), jnp.array(speeds)


@pytest.mark.parametrize(("part", "held"), [(0.97, True), (1.03, False)])
def test_the_simulated_car_agrees(real_circle, part, held):
    """Neither optimistic nor pessimistic: 97 % of the reference can be held, 103 % cannot."""
    assert np.all(np.asarray(hold_circle(*real_circle, part)) == held)
