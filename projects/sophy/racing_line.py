"""The fastest line of the quasi-steady lap on each circuit, and how fast each car can drive it.

What a person sees at a glance: where the road lets one go, and where that is too fast. One line per
circuit serves all cars: the one on which the quasi-steady lap (`reference`) of `LINE_CAR` takes
least time. The speed on it is every car's own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from projects.sophy import track as tracks
from projects.sophy.car import Car
from projects.sophy.cars import load_car
from projects.sophy.first_guess import course_at, room_on, smooth_line
from projects.sophy.reference import (
    Envelope,
    envelopes_by_road,
    lap_within,
    line_at_nodes,
    smoothing,
)
from projects.sophy.track import NUM_NODES, Track

STEP, NUM_STEPS = 0.2, 200  # of the descent [m]
NUM_STATIONS = 512  # of a line and its speeds
LINE_CAR = "gt3_fr"  # whose lap the line makes short
HALF_TRACK = 0.8325  # of the catalogue's widest car, so that a circuit has one line for all [m]


class RacingLines(NamedTuple):
    """By even stations along the lap."""

    offset: Array  # [T, S] of the line, left positive [m]
    speed: Array  # [K, T, S] of cars on it [m/s]


class RacingLine(NamedTuple):
    """One car's on one circuit."""

    offset: Array  # [S] [m]
    speed: Array  # [S] [m/s]


def racing_lines(cars: Car, stack: Track) -> RacingLines:
    """Those of cars, leaves [K, ...], on circuits, leaves [T, ...].

    Takes about a second per circuit, and twenty per 500 cars and kind of road.
    """
    every = NUM_NODES // NUM_STATIONS
    envelopes = envelopes_by_road(cars)
    lines, speeds = fastest_lines(stack, load_car(LINE_CAR), HALF_TRACK), []
    for i, line in enumerate(lines):
        track = jax.tree.map(lambda leaf, i=i: leaf[i], stack)
        speeds.append(np.asarray(_speeds_of_all(envelopes(track), track, line))[:, ::every])
    return RacingLines(lines[:, ::every], jnp.asarray(np.stack(speeds, axis=1)))


def fastest_lines(stack: Track, car: Car, half_track: float) -> Array:
    """Lateral offsets [T, N] [m] at the nodes of circuits, leaves [T, ...], on which the
    quasi-steady lap of a car takes least time.

    By gradient descent through that lap (Adam), from the lines of least curvature. Wheels
    `half_track` [m] to either side have the room of `first_guess.room_on` but for what
    `reference.smoothing` rounds off.
    """
    envelopes_on_road = envelopes_by_road(jax.tree.map(lambda leaf: leaf[None], car))
    problems = []
    for i in range(stack.length.shape[0]):
        track = jax.tree.map(lambda leaf, i=i: leaf[i], stack)
        length = float(track.length)
        nodes = np.arange(NUM_NODES) * length / NUM_NODES
        low, high = room_on(course_at(track, nodes), half_track)
        line = line_at_nodes(smooth_line(track, half_track), length)
        within = jax.tree.map(lambda leaf: leaf[0], envelopes_on_road(track))
        problems.append((within, *(jnp.asarray(part, jnp.float32) for part in (low, high, line))))
    within, low, high, line = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    return _fastest_lines(within, stack, low, high, line)


@jax.jit
@jax.vmap
def _fastest_lines(within: Envelope, track: Track, low: Array, high: Array, line: Array) -> Array:
    factors = smoothing(track.length)

    def smooth(values: Array) -> Array:
        return jnp.fft.irfft(jnp.fft.rfft(values) * factors, NUM_NODES)

    def lap_time(line: Array) -> Array:
        return lap_within(within, track, offset=smooth(line)).lap_time

    optimiser = optax.adam(optax.cosine_decay_schedule(STEP, NUM_STEPS))

    def descend(carry: tuple, _: None) -> tuple[tuple, None]:
        line, state = carry
        update, state = optimiser.update(smooth(jax.grad(lap_time)(line)), state)
        return (jnp.clip(line + update, low, high), state), None

    (line, _), _ = jax.lax.scan(descend, (line, optimiser.init(line)), None, NUM_STEPS)
    return smooth(line)


_speeds_of_all = jax.jit(
    jax.vmap(
        lambda within, track, line: lap_within(within, track, offset=line).speed, (0, None, None)
    )
)


def along(values: Array, track: Track, s: Array) -> Array:
    """Evenly spaced `values` [S] of a lap at arc lengths `s` [...] [m], or `values` [S, K] at
    `s` []."""
    num = values.shape[0]
    place = tracks.wrap(track, s) / track.length * num
    index = jnp.floor(place).astype(jnp.int32)
    share = place - index
    low, high = values[index % num], values[(index + 1) % num]
    return low + share * (high - low)
