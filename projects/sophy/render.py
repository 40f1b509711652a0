"""Pictures of a drive: a map, a telemetry sheet and a page that replays it.

Figures show km/h, degrees and g; everything else is SI and radians. They are built on matplotlib's
objects with the Agg canvas, without the global state of pyplot.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from PIL import Image, ImageColor, ImageDraw, ImageFont

from core_rl.report import GRID, INK, MUTED, encode_png
from projects.sophy.drive import (
    CircuitOutline,
    Drive,
    Lap,
    ReferenceProfile,
    best_lap,
    progress,
    reference_delta,
    show_time,
    surface_patches,
)
from projects.sophy.replay import is_bright, paint_of
from projects.sophy.replay import replay_html as replay_html

GRAVITY = 9.80665  # [m/s^2] standard gravity, only for showing accelerations in g
KILOMETRES_PER_HOUR = 3.6  # per m/s
ANIMATION_SPEED, ANIMATION_RATE = 5.0, 10  # of the lap's time, frames a second

# Okabe and Ito, "Color Universal Design" (2008): told apart with any colour vision.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
LABEL = {"color": INK, "fontsize": 8.5}
LEGEND = {"frameon": False, "fontsize": 8, "ncols": 4, "borderaxespad": 0, "handlelength": 1.6}
# The darkest third of viridis cannot be seen on asphalt.
SPEED_COLOURS = ListedColormap(colormaps["viridis"](np.linspace(0.3, 1.0, 256)), "speed")


class _Stretch(NamedTuple):
    """The part of a drive that the figures show, with a sample on either side to reach the line."""

    part: slice
    distance: np.ndarray  # [m] since the start line
    lap: Lap


def _shown_stretch(drive: Drive, length: float) -> _Stretch:
    lap = best_lap(drive, length)
    whole = lap.lap_time is not None
    part = slice(max(lap.first - whole, 0), lap.last + 1 + whole)
    line = length * np.floor((lap.origin + 1.0) / length)
    return _Stretch(part, progress(drive, length)[part] - line, lap)


def _headline(stretch: _Stretch, reference: ReferenceProfile) -> str:
    lap_time = stretch.lap.lap_time
    if lap_time is None:
        return f"no whole lap in this record · reference {show_time(reference.lap_time)}"
    difference = lap_time - reference.lap_time
    return (
        f"lap {stretch.lap.number}: {show_time(lap_time)} · "
        f"reference {show_time(reference.lap_time)} · {difference:+.3f} s"
    )


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of every run of true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags.astype(bool), [False]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _norm(vectors: np.ndarray) -> np.ndarray:
    """Lengths [N, 1] of vectors [N, 2]."""
    return np.linalg.norm(vectors, axis=1, keepdims=True)


def _ring(outer: np.ndarray, inner: np.ndarray) -> Outline:
    """The band between two closed lines; opposite senses cut the hole."""
    codes = [Outline.MOVETO] + [Outline.LINETO] * len(outer)
    closed = np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])
    return Outline(closed, codes + [Outline.MOVETO] + [Outline.LINETO] * len(inner))


class _Page(NamedTuple):
    """How a circuit lies on the page: one that is taller than wide on its side."""

    turned: bool  # a quarter turn to the left
    ratio: float  # of the short side to the long one

    def place(self, points: np.ndarray) -> np.ndarray:
        return np.stack([-points[:, 1], points[:, 0]], axis=1) if self.turned else points


def _page_of(outline: CircuitOutline) -> _Page:
    walls = np.concatenate([outline.wall_left, outline.wall_right])
    width, height = walls.max(axis=0) - walls.min(axis=0)
    return _Page(bool(height > width), min(width, height) / max(width, height))


_UPRIGHT = _Page(False, 1.0)


def _round_number(value: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above value."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(power * max(step for step in (1, 2, 5) if step * power <= value * (1 + 1e-9)))


def _plain(axes: Axes, label: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=8, length=3)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.locator_params(axis="y", nbins=5)
    axes.set_ylabel(label, **LABEL)


def _marker(x: np.ndarray) -> str:
    """The format of a line: a single sample would be invisible without a marker."""
    return "o" if len(x) == 1 else "-"


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _draw_speed(axes: Axes, drive: Drive, stretch: _Stretch, reference: ReferenceProfile) -> None:
    _plain(axes, "speed\n[km/h]")
    axes.plot(
        reference.s,
        reference.speed * KILOMETRES_PER_HOUR,
        color=MUTED,
        linewidth=1.1,
        linestyle=(0, (4, 2)),
        label="reference (quasi-steady-state, centre line)",
    )
    x, speed = stretch.distance, drive.speed[stretch.part] * KILOMETRES_PER_HOUR
    axes.plot(x, speed, _marker(x), color=BLUE, linewidth=1.6, label="driven")
    axes.set_ylim(bottom=0)


def _draw_ground(
    axes: Axes, outline: CircuitOutline, place: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Verge, kerbs and road, each surface in its colour; the usual ones need no label."""
    labelled = {"asphalt", "grass"}

    def fill(band: Outline, surface: str, **edge: Any) -> None:
        label = None if surface in labelled else surface.replace("_", " ")
        labelled.add(surface)
        colour = paint_of(surface).light
        axes.add_patch(PathPatch(band, facecolor=colour, label=label, **{"linewidth": 0, **edge}))

    def cover(names: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
        surface, patches = surface_patches(names)
        fill(_ring(left, right), surface)
        for name, points in patches:
            fill(Outline(np.concatenate([left[points], right[points[::-1]]])), name)

    def edge_of(surface: str) -> dict[str, Any]:
        bright = is_bright(paint_of(surface).light)
        return {"color": "#46515d", "lw": 0.9} if bright else {"color": "#9aa2ab", "lw": 0.5}

    left, right = place(outline.left), place(outline.right)
    wall_left, wall_right = place(outline.wall_left), place(outline.wall_right)
    cover(outline.verge, wall_left, wall_right)
    wall = {"color": "#b7bfb2", "lw": 0.6}
    axes.add_patch(PathPatch(_ring(wall_left, wall_right), fill=False, **wall))
    if outline.kerb > 0:
        centre = place(outline.centre)
        outer = [
            line
            + (line - centre) / _norm(line - centre) * np.minimum(outline.kerb, _norm(end - line))
            for line, end in ((left, wall_left), (right, wall_right))
        ]
        # However wide the kerbs are, half a point of them shows.
        fill(_ring(*outer), "kerb", edgecolor=paint_of("kerb").light, linewidth=1.0)
    cover(outline.road, left, right)
    surface, patches = surface_patches(outline.road)
    axes.add_patch(PathPatch(_ring(left, right), fill=False, **edge_of(surface)))
    for name, points in patches:
        if edge_of(name) != edge_of(surface):
            for line in (left, right):
                axes.plot(*line[points].T, **edge_of(name))


def _draw_map(
    axes: Axes,
    outline: CircuitOutline,
    drive: Drive,
    stretch: _Stretch,
    page: _Page = _UPRIGHT,
    scale: float = 1.0,
) -> LineCollection:
    """The circuit with the line of the stretch; `scale` spreads its labels."""
    place = page.place
    left, right, centre = place(outline.left), place(outline.right), place(outline.centre)
    walls = np.concatenate([place(outline.wall_left), place(outline.wall_right)])
    low, high = walls.min(axis=0), walls.max(axis=0)
    extent = float(np.max(high - low))
    axes.set_aspect("equal")
    axes.axis("off")
    _draw_ground(axes, outline, place)

    line = place(drive.position)
    shown = line[stretch.part]
    speed = drive.speed * KILOMETRES_PER_HOUR
    speed = speed[stretch.part]
    coloured = LineCollection(
        list(np.stack([shown[:-1], shown[1:]], axis=1)),
        cmap=SPEED_COLOURS,
        norm=Normalize(speed.min(), max(speed.max(), speed.min() + 1)),
        linewidths=2.0,
        capstyle="round",
        zorder=4,
    )
    coloured.set_array((speed[1:] + speed[:-1]) / 2)
    axes.add_collection(coloured)
    if any(is_bright(paint_of(name).light) for name in np.unique(outline.road)):
        axes.plot(*shown.T, color=INK, linewidth=3.0, solid_capstyle="round", zorder=3.9)
    if len(shown) == 1:
        axes.plot(*shown[0], "o", color=BLUE, markersize=6, zorder=5)

    _mark_events(axes, drive, line)
    corridor = np.linalg.norm(outline.wall_left - outline.wall_right, axis=1)
    gap = 0.024 * scale * extent + 0.6 * float(np.median(corridor))
    _mark_distances(axes, outline, centre, gap)
    _mark_start(axes, np.stack([left[0], right[0]]), centre, gap)
    bar = _round_number(extent / 5)
    y = low[1] - 0.06 * extent
    axes.plot([low[0], low[0] + bar], [y, y], color=INK, linewidth=2.5, solid_capstyle="butt")
    name = f"{bar / 1000:g} km" if bar >= 1000 else f"{bar:g} m"
    axes.text(
        low[0] + bar / 2, y + 0.012 * scale * extent, name, ha="center", fontsize=8, color=INK
    )
    margin = 0.07 * extent
    axes.set_xlim(low[0] - margin, high[0] + margin)
    axes.set_ylim(low[1] - margin - 0.02 * extent, high[1] + margin)
    return coloured


def _mark_events(axes: Axes, drive: Drive, line: np.ndarray) -> None:
    """All of the record's excursions and contacts, not only those of the shown lap."""
    excursions, contacts = _runs(drive.off_course), _runs(drive.wall_contact)
    for k, (first, last) in enumerate(excursions):
        axes.plot(
            *line[max(first - 1, 0) : last + 1].T,
            color=VERMILION,
            linewidth=7,
            alpha=0.75,
            zorder=3,
            solid_capstyle="round",
            label=f"off course ({len(excursions)}x)" if k == 0 else None,
        )
    if contacts:
        at = line[[first for first, _ in contacts]]
        axes.plot(
            *at.T,
            "X",
            color=VERMILION,
            markeredgecolor="white",
            markersize=9,
            zorder=6,
            label=f"wall contact ({len(contacts)}x)",
            linestyle="none",
        )


def _beside(centre: np.ndarray, i: int, distance: float) -> np.ndarray:
    """A point beside centre[i], on the side that is farther from the rest of the circuit, [2]."""
    tangent = centre[(i + 1) % len(centre)] - centre[i - 1]
    normal = np.array([-tangent[1], tangent[0]]) / np.linalg.norm(tangent)
    sides = [centre[i] + sign * distance * normal for sign in (1.0, -1.0)]
    return max(sides, key=lambda point: np.min(np.linalg.norm(centre - point, axis=1)))


def _mark_distances(axes: Axes, outline: CircuitOutline, centre: np.ndarray, gap: float) -> None:
    every = _round_number(outline.length / 4)
    for distance in np.arange(every, outline.length - every / 4, every):
        i = int(np.argmin(np.abs(outline.s - distance)))
        x, y = _beside(centre, i, 1.4 * gap)
        root_x, root_y = centre[i]
        leader = [0.7 * x + 0.3 * root_x, 0.7 * y + 0.3 * root_y]
        axes.plot([root_x, leader[0]], [root_y, leader[1]], color=MUTED, linewidth=0.7, zorder=2)
        name = f"{distance / 1000:g} km" if outline.length > 2000 else f"{distance:g} m"
        axes.text(x, y, name, fontsize=7.5, color=MUTED, ha="center", va="center", zorder=7)


def _mark_start(axes: Axes, edge: np.ndarray, centre: np.ndarray, gap: float) -> None:
    """The line between the edges [2, 2], and an arrow beside it in the direction of travel."""
    over = 0.4 * (edge[0] - edge[1])
    ends = np.stack([edge[0] + over, edge[1] - over])
    axes.plot(*ends.T, color=INK, linewidth=3.5, zorder=5, solid_capstyle="butt")
    axes.plot(*ends.T, color="white", linewidth=1.5, zorder=5.1, solid_capstyle="butt")
    tangent = centre[1] - centre[-1]
    tangent = tangent / np.linalg.norm(tangent)
    root = _beside(centre, 0, gap)
    arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axes.annotate(
        "", xy=tuple(root + 2 * gap * tangent), xytext=tuple(root), zorder=7, arrowprops=arrow
    )
    flat = abs(tangent[0]) > abs(tangent[1])
    align = ("right" if tangent[0] > 0 else "left") if flat else "center"
    stand = "center" if flat else ("top" if tangent[1] > 0 else "bottom")
    x, y = root - 0.1 * gap * tangent
    bold = {"fontsize": 8, "weight": "bold", "color": INK, "zorder": 7}
    axes.text(x, y, "start", ha=align, va=stand, **bold)


def track_map(
    outline: CircuitOutline, drive: Drive, reference: ReferenceProfile, title: str
) -> Figure:
    """The circuit with the best lap coloured by speed, and below it speed against the reference.

    A circuit that is taller than wide is laid on its side (a quarter turn to the left).
    """
    stretch, page = _shown_stretch(drive, outline.length), _page_of(outline)
    map_height = 9.6 * (page.ratio + 0.16) / 1.14
    figure = _new_figure(11.0, map_height + 3.0)
    upper, lower = figure.subplots(2, 1, height_ratios=[map_height, 2.2])
    coloured = _draw_map(upper, outline, drive, stretch, page)
    bar = figure.colorbar(coloured, ax=upper, shrink=0.55, aspect=22, pad=0.01)
    bar.set_label("speed [km/h]", **LABEL)
    bar.ax.tick_params(labelsize=8, colors=MUTED)
    bar.outline.set_visible(False)  # type: ignore[union-attr]
    handles, names = upper.get_legend_handles_labels()
    if handles:
        legend = figure.legend(
            handles, names, **LEGEND, loc="upper right", bbox_to_anchor=(0.99, 0.985)
        )
        for swatch in legend.get_patches():  # snow is as white as the page
            swatch.set(edgecolor=MUTED, linewidth=0.5)
    _draw_speed(lower, drive, stretch, reference)
    lower.set_xlim(0, outline.length)
    lower.set_xlabel("arc length [m]", **LABEL)
    lower.legend(**LEGEND, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    figure.suptitle(f"{title}\n", x=0.012, ha="left", fontsize=14, weight="bold", color=INK)
    below = 1 - 0.40 / figure.get_figheight()  # 0.4 inches under the top edge
    figure.text(0.012, below, _headline(stretch, reference), fontsize=9.5, color=MUTED, va="top")
    return figure


def lap_animation(outline: CircuitOutline, drive: Drive, title: str) -> bytes:
    """The best lap as a GIF that plays `ANIMATION_SPEED` times as fast: the car runs along its line
    on the map, with the lap's time and the speed."""
    stretch, page = _shown_stretch(drive, outline.length), _page_of(outline)
    figure = _new_figure(8.0, max(8.0 * (page.ratio + 0.16) / 1.14, 2.5))
    figure.set_dpi(80)
    axes = figure.subplots()
    _draw_map(axes, outline, drive, stretch, page)
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    still = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    still = still.quantize(60, dither=Image.Dither.NONE)
    colours = (still.getpalette() or [])[: 3 * 60]
    for colour in (VERMILION, "white", INK):
        colours += ImageColor.getrgb(colour)[:3]
    still.putpalette(colours)
    paint, rim, ink = range(len(colours) // 3 - 3, len(colours) // 3)
    x, y = axes.transData.transform(page.place(drive.position[stretch.part])).T
    time, speed = drive.time[stretch.part], drive.speed[stretch.part] * KILOMETRES_PER_HOUR
    lap_time = stretch.lap.lap_time
    begin = time[0] if lap_time is None else float(np.interp(0.0, stretch.distance, time))
    end = time[-1] if lap_time is None else begin + lap_time
    frames, font = [], ImageFont.load_default(size=15)
    for now in np.append(np.arange(begin, end, ANIMATION_SPEED / ANIMATION_RATE), end):
        frame = still.copy()
        pen = ImageDraw.Draw(frame)
        at_x, at_y, fast = (float(np.interp(now, time, each)) for each in (x, y, speed))
        at_y = still.height - at_y
        pen.ellipse((at_x - 6, at_y - 6, at_x + 6, at_y + 6), fill=paint, outline=rim)
        told = f"{title}   {show_time(float(now - begin))}   {fast:3.0f} km/h"
        pen.text((8, 6), told, fill=ink, font=font)
        frames.append(frame)
    content = io.BytesIO()
    frames[0].save(
        content,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=1000 // ANIMATION_RATE,
        loop=0,
    )
    return content.getvalue()


def trade_off(
    curves: Mapping[str, np.ndarray], points: Mapping[str, np.ndarray], x: str, y: str, title: str
) -> Figure:
    """Mean and range over seeds of two measures: `curves` [P, S, 2] along a setting, `points`
    [S, 2]."""
    figure = _new_figure(7.2, 4.6)
    axes = figure.subplots()
    _plain(axes, y)
    colours = (BLUE, GREEN, PURPLE)
    for colour, (name, values) in zip(colours, curves.items(), strict=False):
        mean = np.nanmean(values, axis=1)
        axes.plot(*mean.T, "o-", color=colour, markersize=4, linewidth=1.5, label=name)
        axes.plot(*values.reshape(-1, 2).T, ".", color=colour, markersize=3, alpha=0.5)
    markers = "sD^vP*X"
    for marker, (name, values) in zip(markers, points.items(), strict=False):
        mean = np.nanmean(values, axis=0)
        axes.plot(*mean, marker, color=INK, markersize=6, linestyle="none", label=name)
        axes.plot(*values.T, ".", color=MUTED, markersize=3)
    axes.set_xlabel(x, **LABEL)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(title, loc="left", fontsize=11, weight="bold", color=INK)
    return figure


class Shown(NamedTuple):
    """A drive and what is told of its samples [T] in a comparison."""

    drive: Drive
    clearance: np.ndarray  # of the outermost wheel to the white line [m]
    violation: np.ndarray | None  # bool, where a wish was not kept; None where that is not known
    lap_times: Sequence[float]  # of its whole laps [s]


def comparison(outline: CircuitOutline, drives: Mapping[str, Shown], title: str) -> Figure:
    """Drives by name, each on a map of its own, and below over the arc length of their best laps
    the distance to the white lines, the steering and the speed."""
    page = _page_of(outline)
    place = page.place
    map_height = 11.0 / len(drives) * (page.ratio + 0.1)
    figure = _new_figure(11.0, map_height + 6.0)
    grid = figure.add_gridspec(2, 1, height_ratios=[map_height, 6.0])
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    maps = np.atleast_1d(upper.subplots(1, len(drives)))
    rows = lower.subplots(3, 1, sharex=True)
    for axes, label in zip(
        rows, ("nearest white line\n[m]", "steering\n[deg]", "speed\n[km/h]"), strict=True
    ):
        _plain(axes, label)
    colours = (MUTED, BLUE, GREEN, PURPLE)
    for axes, colour, (name, shown) in zip(maps, colours, drives.items(), strict=False):
        drive, violation = shown.drive, shown.violation
        axes.set_aspect("equal")
        axes.axis("off")
        band = _ring(place(outline.left), place(outline.right))
        axes.add_patch(PathPatch(band, facecolor=GRID, edgecolor="#9aa2ab", linewidth=0.5))
        stretch = _shown_stretch(drive, outline.length)
        part, x = stretch.part, stretch.distance
        line = place(drive.position)
        axes.plot(*line[part].T, color=colour, linewidth=1.4)
        told = f"{name}: {show_time(min(shown.lap_times, default=None))}"
        if violation is not None:
            count = int(np.sum(violation[part]))
            axes.plot(*line[part][violation[part]].T, ".", color=VERMILION, markersize=5)
            told += f", wish not kept in {count} steps"
        axes.set_title(told, fontsize=9.5, color=INK, loc="left")
        rows[0].plot(x, shown.clearance[part], color=colour, linewidth=1.2)
        rows[1].plot(x, np.degrees(drive.steering[part]), color=colour, linewidth=1.0)
        rows[2].plot(x, drive.speed[part] * KILOMETRES_PER_HOUR, color=colour, label=name)
        if violation is not None:
            marked = x[violation[part]]
            for axes, values in (
                (rows[0], shown.clearance),
                (rows[2], drive.speed * KILOMETRES_PER_HOUR),
            ):
                axes.plot(marked, values[part][violation[part]], ".", color=VERMILION, markersize=4)
    rows[0].axhline(0, color=INK, linewidth=0.8)
    rows[2].set_xlabel("arc length [m]", **LABEL)
    rows[2].set_xlim(0, outline.length)
    rows[2].legend(**LEGEND, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, weight="bold", color=INK)
    return figure


def _axle(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Front and rear: of the two wheels the value that is larger in size, [T] each."""
    pairs = values.reshape(-1, 2, 2)
    larger = np.take_along_axis(pairs, np.abs(pairs).argmax(axis=2)[..., None], axis=2)[..., 0]
    return larger[:, 0], larger[:, 1]


def _draw_width(axes: Axes, outline: CircuitOutline) -> None:
    """The road on either side of the centre line, behind the driven offset."""
    left = np.linalg.norm(outline.left - outline.centre, axis=1)
    right = np.linalg.norm(outline.right - outline.centre, axis=1)
    axes.fill_between(outline.s, -right, left, color=GRID, linewidth=0, zorder=0)
    axes.axhline(0, color="white", linewidth=0.8, zorder=1)


def _draw_friction(axes: Axes, acceleration: np.ndarray, speed: np.ndarray) -> None:
    """The g-g diagram, coloured by speed; left is left."""
    _plain(axes, "forward [g]")
    axes.scatter(-acceleration[:, 1], acceleration[:, 0], c=speed, cmap=SPEED_COLOURS, s=5)
    reach = max(1.0, 1.08 * float(np.abs(acceleration).max()))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.set_xlabel("← left [g] right →", **LABEL)


def _write_facts(axes: Axes, drive: Drive, stretch: _Stretch) -> None:
    part = stretch.part
    speed = drive.speed[part] * KILOMETRES_PER_HOUR
    acceleration = np.abs(drive.acceleration[part]) / GRAVITY
    facts = [
        ("top speed", f"{speed.max():.0f} km/h"),
        ("lowest speed", f"{speed.min():.0f} km/h"),
        ("lateral, most", f"{acceleration[:, 1].max():.2f} g"),
        ("braking, most", f"{max(0.0, -drive.acceleration[part, 0].min()) / GRAVITY:.2f} g"),
        ("full throttle", f"{100 * np.mean(drive.throttle[part] > 0.98):.0f} % of the time"),
        ("braking", f"{100 * np.mean(drive.brake[part] > 0.02):.0f} % of the time"),
        ("off course", f"{len(_runs(drive.off_course[part]))}x"),
        ("wall contact", f"{len(_runs(drive.wall_contact[part]))}x"),
    ]
    axes.axis("off")
    for row, (name, value) in enumerate(facts):
        line = {"y": 1 - 0.11 * row, "fontsize": 8.5, "transform": axes.transAxes}
        axes.text(x=0.0, s=name, color=MUTED, **line)
        axes.text(x=1.0, s=value, color=INK, ha="right", **line)


def telemetry(drive: Drive, outline: CircuitOutline, reference: ReferenceProfile) -> Figure:
    """Everything that was recorded over the arc length of the best lap, and the g-g diagram."""
    stretch = _shown_stretch(drive, outline.length)
    part, x = stretch.part, stretch.distance
    lost = reference_delta(drive, outline, reference)
    lost[: stretch.lap.first] = np.nan
    lost[stretch.lap.last + 1 :] = np.nan
    acceleration = drive.acceleration[part] / GRAVITY
    slip_front, slip_rear = _axle(100 * drive.slip_ratio[part])
    angle_front, angle_rear = _axle(np.degrees(drive.slip_angle[part]))
    load = drive.load[part].T / 1000
    sky, orange = "#56B4E9", "#E69F00"
    rows = {
        "time lost\n[s]": {"": (lost[part], BLUE)},
        "pedals\n[%]": {
            "throttle": (100 * drive.throttle[part], GREEN),
            "brake": (100 * drive.brake[part], VERMILION),
        },
        "steering\n[deg]": {"": (np.degrees(drive.steering[part]), BLUE)},
        "gear": {"": (drive.gear[part], BLUE)},
        "acceleration\n[g]": {
            "forward": (acceleration[:, 0], VERMILION),
            "left": (acceleration[:, 1], BLUE),
        },
        "slip ratio\n[%]": {"front": (slip_front, BLUE), "rear": (slip_rear, VERMILION)},
        "slip angle\n[deg]": {"front": (angle_front, BLUE), "rear": (angle_rear, VERMILION)},
        "wheel load\n[kN]": {
            "FL": (load[0], BLUE),
            "FR": (load[1], sky),
            "RL": (load[2], VERMILION),
            "RR": (load[3], orange),
        },
        "offset\n[m]": {"": (drive.lateral_offset[part], BLUE)},
    }
    figure = _new_figure(12.0, 13.5)
    grid = figure.add_gridspec(len(rows) + 1, 2, width_ratios=[3.0, 1.0])
    top = figure.add_subplot(grid[0, 0])
    _draw_speed(top, drive, stretch, reference)
    panels = [top]
    for row, (label, lines) in enumerate(rows.items(), start=1):
        axes = figure.add_subplot(grid[row, 0], sharex=top)
        _plain(axes, label)
        for name, (values, colour) in lines.items():
            style = "steps-post" if label == "gear" else "default"
            axes.plot(x, values, _marker(x), color=colour, lw=1.2, label=name, drawstyle=style)
        if label == "gear":
            axes.locator_params(axis="y", integer=True)
        if label.startswith("pedals"):
            axes.set_ylim(-4, 104)
        panels.append(axes)
    _draw_width(panels[-1], outline)
    for axes in panels:
        axes.tick_params(labelbottom=axes is panels[-1])
        for first, last in _runs(drive.off_course[part]):
            axes.axvspan(x[first], x[last], color=VERMILION, alpha=0.15, linewidth=0)
        for first, _ in _runs(drive.wall_contact[part]):
            axes.axvline(x[first], color=VERMILION, linewidth=1.5)
        if axes.get_legend_handles_labels()[1]:
            legend = axes.legend(**LEGEND, loc="lower right", bbox_to_anchor=(1.0, 0.97))
            legend.set_in_layout(False)
    top.set_xlim(0, outline.length)
    panels[-1].set_xlabel("arc length [m]", **LABEL)
    _draw_friction(figure.add_subplot(grid[0:3, 1]), acceleration, drive.speed[part])
    _draw_map(figure.add_subplot(grid[3:6, 1]), outline, drive, stretch, scale=2.4)
    _write_facts(figure.add_subplot(grid[6:, 1]), drive, stretch)
    heading = f"Telemetry · {_headline(stretch, reference)}\n"
    figure.suptitle(heading, x=0.012, ha="left", fontsize=12, weight="bold", color=INK)
    return figure


def save_png(figure: Figure, path: str | Path) -> None:
    Path(path).write_bytes(encode_png(figure))
