"""Pictures of returns: one exchange, where the returns land, and how often they succeed.

Inputs are numpy arrays, in the frame and units of `ball`. Figures are built on matplotlib's objects
with the Agg canvas, without the global state of pyplot.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from core_rl.errors import UserError
from core_rl.report import GRID, INK, MUTED
from projects.ace.arm import BLADE_RADIUS
from projects.ace.events import (
    HALF_LENGTH,
    HALF_WIDTH,
    NET_HALF_WIDTH,
    NET_HEIGHT,
    TABLE_HEIGHT,
    TABLE_THICKNESS,
)

TURNS = 1 / (2 * np.pi)  # per radian
TICK = 0.05  # [s] between the dots on the ball's way
RACKET_WINDOW = 0.005  # [s] before the contact, over which the racket's speed is taken
NUM_POSES = 4  # of the arm, the last one at the contact

# Okabe and Ito, "Color Universal Design" (2008): told apart with any colour vision.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
TABLE, ARM = "#d3e0ea", "#8b96a3"
LABEL = {"color": INK, "fontsize": 8.5}
LEGEND = {"frameon": False, "fontsize": 8, "borderaxespad": 0, "handlelength": 1.8}
# The lightest part of viridis cannot be seen on the table's colour.
SPEED_COLOURS = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.88, 256)), "speed")
MEANINGS = {
    "legal": "legal return",
    "out": "out: beside or beyond the table",
    "net": "net: not over it",
    "miss": "miss: the ball was not touched",
    "volley": "volley: hit before its bounce",
    "touch": "touch: the arm touched the table",
}


class PictureError(UserError):
    """What is to be drawn has the wrong shape, or numbers that are not finite."""


def _check(name: str, values: np.ndarray, shape: tuple[int | None, ...]) -> None:
    """None in `shape` is any length but 0."""
    fits = values.ndim == len(shape) and all(
        have == want if want is not None else have > 0
        for have, want in zip(values.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("N" if want is None else str(want) for want in shape)
        raise PictureError(f"{name} has shape {values.shape}, expected [{wanted}]")
    if not np.all(np.isfinite(values)):
        raise PictureError(f"{name} is not finite")


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One ball that the racket has hit: before, at and after the contact."""

    incoming: np.ndarray  # [A, 3] the ball from the opponent's stroke to the contact [m]
    incoming_time: np.ndarray  # [A] since the stroke [s]
    bounce: np.ndarray  # [3] where it bounces on the robot's half [m]
    outgoing: np.ndarray  # [B, 3] from the contact to its first touch of anything [m]
    outgoing_time: np.ndarray  # [B] since the stroke [s]
    arm: np.ndarray  # [T, J, 3] joint centres from the foot on, last the blade's centre [m]
    normal: np.ndarray  # [T, 3] unit normal of the blade
    arm_time: np.ndarray  # [T] since the stroke, the last one that of the contact [s]
    velocity: np.ndarray  # [3, 3] of the ball: after the stroke, before and after the racket [m/s]
    spin: np.ndarray  # [3, 3] at the same moments [rad/s]
    outcome: str  # legal, out or net

    def __post_init__(self):
        A, B, T = len(self.incoming_time), len(self.outgoing_time), len(self.arm_time)
        joints = self.arm.shape[1] if self.arm.ndim == 3 and self.arm.shape[1] > 1 else 2
        shapes = {
            "incoming_time": (None,),
            "incoming": (A, 3),
            "bounce": (3,),
            "outgoing_time": (None,),
            "outgoing": (B, 3),
            "arm_time": (None,),
            "arm": (T, joints, 3),
            "normal": (T, 3),
            "velocity": (3, 3),
            "spin": (3, 3),
        }
        for name, shape in shapes.items():
            _check(f"exchange.{name}", getattr(self, name), shape)
        for name in ("incoming_time", "outgoing_time", "arm_time"):
            if np.any(np.diff(getattr(self, name)) <= 0):
                raise PictureError(f"exchange.{name} must increase")


def topspin(velocity: np.ndarray, spin: np.ndarray) -> np.ndarray:
    """Part of the spin [..., 3] about the level axis across the way, [...] [rad/s].

    Positive for topspin, which pulls the ball down; negative for backspin.
    """
    across = np.stack([-velocity[..., 1], velocity[..., 0]], axis=-1)
    length = np.maximum(np.linalg.norm(across, axis=-1), 1e-9)
    return np.sum(spin[..., :2] * across, axis=-1) / length


def racket_speed(record: Exchange) -> float:
    """Mean speed of the blade's centre in the last `RACKET_WINDOW` before the contact [m/s]."""
    time, blade = record.arm_time, record.arm[:, -1]
    ends = np.array([max(time[-1] - RACKET_WINDOW, time[0]), time[-1]])
    place = np.stack([np.interp(ends, time, component) for component in blade.T], axis=1)
    return float(np.linalg.norm(place[1] - place[0]) / max(ends[1] - ends[0], 1e-9))


def _plain(axes: Axes, x_label: str, y_label: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=8, length=3)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, **LABEL)
    axes.set_ylabel(y_label, **LABEL)


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches: views that share a scale line up to the dot."""
    across, up = figure.get_figwidth(), figure.get_figheight()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _head(figure: Figure, title: str, line: str) -> None:
    inch, left = 1 / figure.get_figheight(), 0.15 / figure.get_figwidth()
    style = {"ha": "left", "va": "top", "fontsize": 13, "weight": "bold", "color": INK}
    figure.suptitle(title, x=left, y=1 - 0.12 * inch, **style)
    figure.text(left, 1 - 0.42 * inch, line, fontsize=9.5, color=MUTED, ha="left", va="top")


def _blade(centre: np.ndarray, handle: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The blade's rim, [33, 3]."""
    angle = np.linspace(0, 2 * np.pi, 33)[:, None]
    other = np.cross(handle, normal)
    return centre + BLADE_RADIUS * (np.cos(angle) * handle + np.sin(angle) * other)


def _draw_table(axes: Axes, up: int) -> None:
    """Table and net, from the side (`up` 2) or from above (`up` 1)."""
    if up == 2:
        low, height = -TABLE_THICKNESS, TABLE_THICKNESS
        axes.axhline(-TABLE_HEIGHT, color=MUTED, linewidth=1.2, zorder=1)
        for x in (-1.0, 1.0):
            axes.plot([x, x], [-TABLE_HEIGHT, low], color=TABLE, linewidth=3, zorder=1)
        axes.plot([0, 0], [0, NET_HEIGHT], color=INK, linewidth=1.8, zorder=3)
    else:
        low, height = -HALF_WIDTH, 2 * HALF_WIDTH
        axes.plot([-HALF_LENGTH, HALF_LENGTH], [0, 0], color="white", linewidth=1.2, zorder=1.5)
        axes.plot([0, 0], [-NET_HALF_WIDTH, NET_HALF_WIDTH], color=INK, linewidth=1.8, zorder=3)
    board = Rectangle((-HALF_LENGTH, low), 2 * HALF_LENGTH, height)
    board.set(facecolor=TABLE, edgecolor="#7f95a8", linewidth=0.8, zorder=1)
    axes.add_patch(board)


def _draw_arm(axes: Axes, exchange: Exchange, up: int) -> None:
    """Poses at equal times, the paler the earlier, and the racket's way."""
    arm, times = exchange.arm, exchange.arm_time
    moments = np.linspace(times[0], times[-1], NUM_POSES)
    for number, moment in enumerate(moments):
        i, last = int(np.argmin(np.abs(times - moment))), number == NUM_POSES - 1
        shade = {"color": INK if last else ARM, "alpha": 1.0 if last else 0.35 + 0.15 * number}
        joints = arm[i]
        axes.plot(
            joints[:, 0],
            joints[:, up],
            "-o",
            linewidth=2.4 if last else 1.6,
            markersize=4.5 if last else 3,
            markevery=slice(0, len(joints) - 1),
            label="arm at the contact"
            if last
            else "arm at equal times before"
            if number == 1
            else None,
            zorder=4 + 0.1 * number,
            **shade,
        )
        handle = joints[-1] - joints[-2]
        rim = _blade(joints[-1], handle / np.linalg.norm(handle), exchange.normal[i])
        colour = {"facecolor": PURPLE, "edgecolor": shade["color"], "alpha": shade["alpha"]}
        axes.fill(rim[:, 0], rim[:, up], linewidth=1.0, zorder=4.5, **colour)
    axes.plot(
        arm[:, -1, 0],
        arm[:, -1, up],
        color=PURPLE,
        linewidth=1.6,
        zorder=4.4,
        label="racket's way",
    )


def _draw_rails(axes: Axes, exchange: Exchange) -> None:
    """What the trunk slides on, from the side, as far as it is used here."""
    foot = exchange.arm[:, 0]
    left, width = foot[:, 0].min() - 0.12, np.ptp(foot[:, 0]) + 0.24
    rails = Rectangle((left, -TABLE_HEIGHT), width, foot[0, 2] + TABLE_HEIGHT)
    rails.set(facecolor=GRID, edgecolor=ARM, linewidth=0.8, zorder=1)
    axes.add_patch(rails)
    middle = (foot[0, 2] - TABLE_HEIGHT) / 2
    axes.text(left + width + 0.03, middle, "rails", fontsize=8, color=MUTED, va="center", zorder=2)


def _draw_way(
    axes: Axes, way: np.ndarray, times: np.ndarray, up: int, colour: str, name: str
) -> None:
    """A ball's way with a dot every `TICK`, counted from the stroke."""
    axes.plot(way[:, 0], way[:, up], color=colour, linewidth=1.8, zorder=5, label=name)
    ticks = TICK * np.arange(np.ceil(times[0] / TICK), np.floor(times[-1] / TICK) + 1)
    at = [np.interp(ticks, times, way[:, axis]) for axis in (0, up)]
    axes.plot(*at, ".", color=colour, markersize=6, zorder=5.1)


def _draw_exchange(axes: Axes, exchange: Exchange, up: int) -> None:
    _draw_table(axes, up)
    _draw_arm(axes, exchange, up)
    incoming, outgoing = exchange.incoming, exchange.outgoing
    _draw_way(axes, incoming, exchange.incoming_time, up, VERMILION, "ball in")
    _draw_way(axes, outgoing, exchange.outgoing_time, up, BLUE, "ball out")
    ending = "landing" if exchange.outcome == "legal" else "first touch"
    for place, marker, size, colour, name in (
        (incoming[0], "o", 8, VERMILION, "opponent's stroke"),
        (exchange.bounce, "v", 8, VERMILION, "bounce"),
        (incoming[-1], "X", 9, INK, "contact"),
        (outgoing[-1], "*", 14, BLUE, ending),
    ):
        axes.plot(
            *place[[0, up]],
            marker,
            color=colour,
            markersize=size,
            markeredgecolor="white",
            label=name,
            zorder=6,
            linestyle="none",
        )
    axes.set_aspect("equal")


def _write_facts(axes: Axes, exchange: Exchange) -> None:
    """Speed and spin of the ball at three moments, as a small table."""
    speed = np.linalg.norm(exchange.velocity, axis=1)
    spin = np.linalg.norm(exchange.spin, axis=1)
    top = topspin(exchange.velocity, exchange.spin)
    rows = [
        ("the ball", ["after the stroke", "before the racket", "after the racket"]),
        ("speed", [f"{value:.1f} m/s" for value in speed]),
        ("spin", [f"{value:.0f} rad/s = {TURNS * value:.0f} turns/s" for value in spin]),
        (
            "of it top- or backspin",
            [f"{abs(value):.0f} rad/s {'topspin' if value >= 0 else 'backspin'}" for value in top],
        ),
    ]
    axes.axis("off")
    for number, (name, values) in enumerate(rows):
        line = {"y": 1 - 0.28 * number, "va": "top", "fontsize": 8.5, "transform": axes.transAxes}
        axes.text(x=0.0, s=name, color=MUTED, **line)
        for column, value in enumerate(values):
            colour = MUTED if number == 0 else (VERMILION, VERMILION, BLUE)[column]
            axes.text(x=0.2 + 0.24 * column, s=value, color=colour, **line)


def exchange(record: Exchange, title: str) -> Figure:
    """One return from the opponent's stroke to the landing, from the side and from above.

    Both views have equal scales [m]; the dots on the ball's way are `TICK` apart in time.
    """
    every = np.concatenate([record.incoming, record.outgoing, *record.arm])
    table = np.array([HALF_LENGTH, NET_HALF_WIDTH, TABLE_HEIGHT])
    low = np.minimum(every.min(axis=0), -table) - [0.2, 0.12, 0.12]
    high = np.maximum(every.max(axis=0), [HALF_LENGTH, NET_HALF_WIDTH, 0.5]) + 0.12
    # What flies far out leaves the picture, else all that matters would be small.
    low, high = np.maximum(low, [-3.7, -2.0, -0.85]), np.minimum(high, [3.2, 2.0, 2.2])
    size = high - low
    scale = float(min(9.4 / size[0], 10.5 / (size[1] + size[2])))  # inches per metre
    width, from_above, from_side = (scale * float(length) for length in size)
    figure = _new_figure(10.4, from_side + from_above + 3.35)
    top = _panel(figure, 0.75, 0.55, width, from_above)
    side = _panel(figure, 0.75, from_above + 1.15, width, from_side)
    facts = _panel(figure, 0.15, from_above + from_side + 1.85, 10.0, 0.75)
    _draw_exchange(side, record, 2)
    _draw_exchange(top, record, 1)
    _plain(side, "", "height above the table [m]")
    _plain(top, "along the table, towards the opponent [m]", "to the robot's left [m]")
    side.set(xlim=(low[0], high[0]), ylim=(low[2], high[2]))
    top.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    note = {"fontsize": 8, "color": MUTED, "va": "bottom", "zorder": 2}
    side.text(high[0] - 0.03, -TABLE_HEIGHT + 0.02, "floor", ha="right", **note)
    _draw_rails(side, record)
    note["va"] = "top"
    side.text(0, -TABLE_THICKNESS - 0.02, "net", ha="center", **note)
    top.text(0, -NET_HALF_WIDTH - 0.03, "net", ha="center", **note)
    top.text(-HALF_LENGTH, -HALF_WIDTH - 0.03, "robot's half", **note)
    top.text(HALF_LENGTH, -HALF_WIDTH - 0.03, "opponent's half", ha="right", **note)
    for axes, name in ((side, "side view"), (top, "from above")):
        axes.set_title(name, loc="left", fontsize=9, weight="bold", color=INK)
    _write_facts(facts, record)
    handles, names = side.get_legend_handles_labels()
    handles.append(Line2D([], [], color=MUTED, marker=".", markersize=6, linestyle="none"))
    names.append(f"every {1000 * TICK:.0f} ms")
    side.legend(
        handles, names, **LEGEND, ncols=5, loc="lower right", bbox_to_anchor=(9.4 / width, 1.01)
    )
    contact = f"contact {record.arm_time[-1]:.2f} s after the stroke"
    racket = f"racket {racket_speed(record):.1f} m/s"
    _head(figure, title, f"{contact} · {racket} · {MEANINGS.get(record.outcome, record.outcome)}")
    return figure


def landing_map(
    landing: np.ndarray, speed: np.ndarray, counts: Mapping[str, int], title: str
) -> Figure:
    """The far half from above with the landings of legal returns, and how all balls ended.

    Args:
      landing: [N, 2] x and y of the legal returns [m]; N may be 0.
      speed: [N] of the same returns, just after the racket [m/s].
      counts: balls by outcome, the names of `return_env.OUTCOMES`; legal ones included.
      title: of the picture.
    """
    num = len(landing)
    if num:
        _check("landing", landing, (None, 2))
        _check("speed", speed, (num,))
    if counts.get("legal", 0) != num:
        raise PictureError(f"{num} landings, but {counts.get('legal', 0)} legal returns counted")
    inches = 2.9  # per metre
    tall, wide = inches * 1.54, inches * 2.0
    figure = _new_figure(11.0, tall + 1.4)
    left = _panel(figure, 0.7, 0.55, wide, tall)
    right = _panel(figure, wide + 1.75, 0.55, 11.0 - wide - 2.0, tall)
    _plain(left, "← left [m] right →", "beyond the net [m]")
    left.grid(visible=False)
    left.add_patch(
        Rectangle(
            (-HALF_WIDTH, 0), 2 * HALF_WIDTH, HALF_LENGTH, facecolor=TABLE, edgecolor="#7f95a8"
        )
    )
    left.plot([0, 0], [0, HALF_LENGTH], color="white", linewidth=1.2, zorder=1.5)
    left.plot([-NET_HALF_WIDTH, NET_HALF_WIDTH], [0, 0], color=INK, linewidth=2.5, zorder=2)
    left.text(NET_HALF_WIDTH, -0.02, "net", color=INK, fontsize=8.5, va="top", ha="left")
    left.text(0, HALF_LENGTH + 0.02, "opponent's end", color=MUTED, fontsize=8.5, ha="center")
    # Many landings overlap; few should be seen from afar.
    dots = float(np.clip(6000 / max(num, 1), 12, 45))
    # A few smashes would leave one colour to all others, so the scale stops short of them.
    low, high = np.percentile(speed, [2, 98]) if num else (0.0, 1.0)
    low, high = np.floor(2 * low) / 2, np.ceil(2 * high) / 2
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
    beyond = extend[bool(np.any(speed < low)), bool(np.any(speed > high))]
    points = left.scatter(
        landing[:, 1] if num else [],
        landing[:, 0] if num else [],
        c=speed if num else [],
        s=dots,
        cmap=SPEED_COLOURS,
        norm=Normalize(low, high if high > low else low + 0.5),
        edgecolors="white",
        linewidths=0.4,
        zorder=3,
    )
    # Seen from the robot, whose left is on the left.
    left.set(xlim=(1.0, -1.0), ylim=(-0.07, 1.47), aspect="equal")
    left.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    if num:
        place = _panel(figure, wide + 0.75, 0.75, 0.16, tall - 0.6)
        bar = figure.colorbar(points, cax=place, extend=beyond)
        bar.locator = MaxNLocator(6)
        bar.set_label("speed of the return [m/s]", **LABEL)
        bar.ax.tick_params(labelsize=8, colors=MUTED)
        bar.outline.set_visible(False)  # type: ignore[union-attr]
    names = [name for name in MEANINGS if name in counts]
    names += [name for name in counts if name not in MEANINGS]
    _draw_counts(right, {name: counts[name] for name in names})
    total = sum(counts.values())
    share = f" = {100 * num / total:.1f} %" if total else ""
    _head(figure, title, f"{num} legal returns of {total} balls{share}, seen from the robot")
    return figure


def _draw_counts(axes: Axes, counts: dict[str, int]) -> None:
    places, most = np.arange(len(counts)), max([1, *counts.values()])
    colours = [GREEN if name == "legal" else ARM for name in counts]
    bars = axes.barh(places, list(counts.values()), color=colours, height=0.42)
    axes.bar_label(bars, padding=4, fontsize=9, color=INK)
    for place, name in zip(places, counts, strict=True):
        text = MEANINGS.get(name, name)
        axes.text(most / 100, place - 0.27, text, fontsize=8.5, color=INK, va="bottom")
    axes.set(xlim=(0, 1.12 * most), ylim=(len(counts) - 0.5, -0.7))
    axes.set_title("how the balls ended", loc="left", fontsize=9, weight="bold", color=INK)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(MUTED)
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)


def return_rates(
    by_spin: Sequence[Mapping[str, Any]], by_speed: Sequence[Mapping[str, Any]], title: str
) -> Figure:
    """Shares of legal returns by the incoming ball's spin and speed, beside Ace's and people's.

    Args:
      by_spin, by_speed: rows by bin as `experiments.ace_evaluate.by_bins` makes them: `bin` (its
        name), `rate` (None where `n` is 0), `low` and `high` (95 % interval), `n` (balls), and
        where there is a record `ace` and `human` (None: no record). Spin in rad/s, speed in m/s.
      title: of the picture.
    """
    figure = _new_figure(11.0, 4.85)
    panels = [_panel(figure, left, 0.7, 4.95, 3.2) for left in (0.7, 5.85)]
    for axes, rows, name in (
        (panels[0], by_spin, "spin of the opponent's ball [rad/s]"),
        (panels[1], by_speed, "speed of the opponent's ball [m/s]"),
    ):
        _draw_rates(axes, rows, name)
    panels[0].set_ylabel("legal returns [% of the balls]", **LABEL)
    panels[1].tick_params(labelleft=False)
    lines = {}  # of both panels: people's record is by spin only
    for axes in panels:
        handles, names = axes.get_legend_handles_labels()
        lines |= dict(zip(names, handles, strict=True))
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.02), "ncols": 3}
    panels[1].legend(lines.values(), lines.keys(), **LEGEND, **place)
    _head(
        figure,
        title,
        "simulated balls, each played once; Ace and people in real matches, recomputed from the "
        "published events",
    )
    return figure


def _draw_rates(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    if not rows:
        raise PictureError(f"no bins of {name}")
    for row in rows:
        missing = [key for key in ("bin", "rate", "low", "high", "n") if key not in row]
        if missing:
            raise PictureError(f"a bin of {name} has no {missing[0]!r}")
    _plain(axes, f"{name}; n: simulated balls", "")
    axes.grid(visible=False, axis="x")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    places = np.arange(len(rows))
    for who, colour, marker, label, shift in (
        ("human", GREEN, "s", "people", 0.24),
        ("ace", VERMILION, "D", "Ace", 0.0),
    ):
        at = [i for i, row in enumerate(rows) if row.get(who) is not None]
        if at:
            values = [rows[i][who] for i in at]
            style = {"color": colour, "markersize": 6, "linestyle": "none", "label": label}
            axes.plot(np.array(at) + shift, values, marker, zorder=3, **style)
    at = [i for i, row in enumerate(rows) if row["n"] > 0]
    values, low, high = (np.array([rows[i][key] for i in at]) for key in ("rate", "low", "high"))
    if not np.all((low <= values + 1e-9) & (values <= high + 1e-9)):
        raise PictureError(f"an interval of {name} does not hold its rate")
    axes.errorbar(
        np.array(at) - 0.24,
        values,
        yerr=np.maximum([values - low, high - values], 0.0),
        fmt="o",
        color=BLUE,
        markersize=7,
        capsize=3,
        linewidth=1.6,
        zorder=4,
        label="this policy, 95 % interval",
    )
    axes.set_xticks(places, [f"{row['bin']}\nn={row['n']}" for row in rows])
    axes.set_xlim(-0.6, len(rows) - 0.4)
    for edge in places[1:] - 0.5:
        axes.axvline(edge, color=GRID, linewidth=0.7, zorder=0)
