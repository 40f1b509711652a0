"""The line of least curvature on each circuit, and how fast each car can drive it.

What a person sees at a glance: where the road lets one go, and where that is too fast. The line is
`first_guess.smooth_line`'s, one per circuit; the speed on it is the quasi-steady lap's
(`reference`), of every car its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from projects.sophy import track as tracks
from projects.sophy.car import Car
from projects.sophy.first_guess import smooth_line
from projects.sophy.reference import envelopes_by_road, lap_within, line_at_nodes
from projects.sophy.track import NUM_NODES, Track

NUM_STATIONS = 512  # of a line and its speeds
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

    Takes some seconds per circuit, and twenty per 500 cars and kind of road.
    """
    circuits = [
        jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(stack.length.shape[0])
    ]
    every = NUM_NODES // NUM_STATIONS
    envelopes = envelopes_by_road(cars)
    offsets, speeds = [], []
    for track in circuits:
        line = line_at_nodes(smooth_line(track, HALF_TRACK), float(track.length)).astype(np.float32)
        offsets.append(line[::every])
        speeds.append(np.asarray(_speeds_of_all(envelopes(track), track, line))[:, ::every])
    return RacingLines(jnp.asarray(np.stack(offsets)), jnp.asarray(np.stack(speeds, axis=1)))


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
