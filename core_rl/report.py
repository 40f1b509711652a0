"""The page that a run leaves behind: one file with its result, curves, pictures and record.

Everything is inside the file, so it can be mailed and opens without a network. Curves are drawn
from the rows of metrics as they are: no smoothing unless a curve asks for it, and the mean over
seeds only where every seed has a value, as the mean of those that got that far means another thing.
"""

import base64
import fnmatch
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from core_rl.errors import UserError

NUM_TILES = 4
PNG_LIMIT = 200_000  # [bytes]
INK, MUTED, GRID = "#16202b", "#5b6775", "#e3e7ec"  # of pictures
# Okabe and Ito, "Color Universal Design" (2008). The page gives each a value per theme, so the
# drawings hold a placeholder that is replaced by the page's variable.
NUM_COLOURS = 7
PLACEHOLDERS = {f"#0000{k + 1:02x}": f"var(--curve-{k})" for k in range(NUM_COLOURS)}
PLACEHOLDERS |= {"#0000f0": "var(--muted)", "#0000f1": "var(--rule)"}
SERIES, (TEXT, RULE) = list(PLACEHOLDERS)[:NUM_COLOURS], list(PLACEHOLDERS)[NUM_COLOURS:]


class ReportError(UserError):
    """Content that cannot stand in a report; the message is one line."""


@dataclass(frozen=True)
class CurveSpec:
    """One chart: which columns of the metrics, over which."""

    title: str
    keys: tuple[str, ...]  # of a row; 'reward/*' stands for every key of that form
    x: str = "env_steps"
    x_label: str = "environment steps"
    y_label: str = ""
    section: str = "Learning"
    log: bool = False  # where the values span more than half a decade
    smoothing: int = 1  # rows of the moving average; 1 draws the rows themselves
    labels: Mapping[str, str] | None = None  # key -> name in the legend


class Series(NamedTuple):
    """One column of the metrics: R rows, S seeds; NaN where a row has no number."""

    key: str
    x: np.ndarray  # [R]
    y: np.ndarray  # [R, S]


class _Chart(NamedTuple):
    title: str
    svg: Markup | None
    legend: list[tuple[str, int]]
    note: str


def _as_numbers(value: Any) -> np.ndarray:
    """A row's entry as numbers of all seeds; text and the like are none."""
    try:
        numbers = np.atleast_1d(np.asarray(value, float)).ravel()
    except (TypeError, ValueError):
        return np.array([np.nan])
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _expand(spec: CurveSpec, metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The columns that a chart draws, with their names in its legend."""
    known = dict.fromkeys(key for row in metrics for key in row)
    found = {}
    for pattern in spec.keys:
        for key in fnmatch.filter(known, pattern):
            short = key.removeprefix(pattern[:-1]) if pattern.endswith("*") else key
            found[key] = (spec.labels or {}).get(key, short)
    return found


def read_series(metrics: Sequence[Mapping[str, Any]], key: str, x: str) -> Series:
    """One column over another, in order of the rows; rows without `x` are left out.

    An entry is a number or a list with one per member (of a population, each with its seeds); a
    number stands for all.
    """
    rows = [row for row in metrics if np.isfinite(_as_numbers(row.get(x))[0])]
    entries = [_as_numbers(row.get(key)) for row in rows]
    members = max((len(entry) for entry in entries), default=1)
    y = np.full((len(rows), members), np.nan)
    for row, entry in enumerate(entries):
        y[row, : len(entry)] = entry
        if len(entry) == 1:
            y[row] = entry[0]
    at = np.array([_as_numbers(row[x])[0] for row in rows])
    # A row that lacks the column altogether belongs to another kind of row (training, evaluation).
    present = np.any(np.isfinite(y), axis=1)
    return Series(key, at[present], y[present])


def _smooth(y: np.ndarray, rows: int) -> np.ndarray:
    """Mean of each row and the rows before it, [R, S]."""
    if rows <= 1 or len(y) == 0:
        return y
    return np.stack([y[max(0, k + 1 - rows) : k + 1].mean(axis=0) for k in range(len(y))])


def _draw_chart(spec: CurveSpec, metrics: Sequence[Mapping[str, Any]], name: str) -> _Chart:
    names = _expand(spec, metrics)
    series = [read_series(metrics, key, spec.x) for key in names]
    series = [each for each in series if len(each.x)]
    if not series:
        return _Chart(spec.title, None, [], "No row of the metrics holds this yet.")
    figure = Figure(figsize=(5.6, 3.0), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    for k, each in enumerate(series):
        colour = SERIES[k % NUM_COLOURS]
        dashes = "-" if k < NUM_COLOURS else "--"
        y = _smooth(each.y, spec.smoothing)
        marker = "o" if len(each.x) < 3 else ""
        mean = y.mean(axis=1)
        if y.shape[1] > 1:
            axes.plot(each.x, y, dashes, color=colour, lw=0.8, alpha=0.45, marker=marker, ms=3)
        axes.plot(each.x, mean, dashes, color=colour, lw=1.9, marker=marker, ms=4)
    positive = np.concatenate([each.y[each.y > 0] for each in series])
    span = np.log10(positive.max() / positive.min()) if len(positive) else 0.0
    if spec.log and span > 0.5:
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 2 else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(spec.x_label, color=TEXT)
    axes.set_ylabel(spec.y_label, color=TEXT)
    axes.tick_params(colors=TEXT, labelsize=9, length=3)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    legend = [(names[each.key], k) for k, each in enumerate(series)]
    members = max(each.y.shape[1] for each in series)
    notes = []
    if members > 1:
        notes.append(f"Thin: each of {members}. Bold: their mean, where all have a value.")
    if spec.smoothing > 1:
        notes.append(f"Mean of the last {spec.smoothing} rows.")
    return _Chart(spec.title, inline_svg(to_svg(figure), name), legend, " ".join(notes))


def to_svg(figure: Figure) -> str:
    """The figure as the text of an SVG."""
    text = io.StringIO()
    # Text stays text, and ids do not change from one drawing of the same rows to the next.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    return text.getvalue()


def encode_png(figure: Figure) -> bytes:
    """The figure as a PNG of at most `PNG_LIMIT` bytes: 256 colours, fewer dots where needed."""
    data = b""
    for dots_per_inch in (130, 110, 90, 70):
        raw, packed = io.BytesIO(), io.BytesIO()
        figure.savefig(raw, format="png", dpi=dots_per_inch)
        # Plain median cut drops the rare colours, of which the speed scale consists.
        picture = (
            Image.open(raw)
            .convert("RGB")
            .quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        )
        picture.save(packed, format="png", optimize=True)
        data = packed.getvalue()
        if len(data) <= PNG_LIMIT:
            return data
    raise ReportError(f"the figure needs {len(data)} bytes at 70 dpi, allowed are {PNG_LIMIT}")


def inline_svg(svg: str, name: str) -> Markup:
    """A drawing to stand inside a page: no prologue, ids of its own, colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"""(\bid=["']|url\(#|href=["']#)""", rf"\g<1>{name}-", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group()), svg)
    for placeholder, variable in PLACEHOLDERS.items():
        svg = svg.replace(placeholder, variable)
    return Markup(svg)


def _picture(title: str, content: bytes | str, name: str) -> Markup:
    if isinstance(content, str):
        if "<svg" not in content:
            raise ReportError(f"figure {title!r} is neither PNG bytes nor the text of an SVG")
        return inline_svg(content, name)
    data = base64.b64encode(content).decode("ascii")
    return Markup('<img alt="" src="data:image/png;base64,{}">').format(data)


def show_value(value: Any) -> str:
    """A number with four significant digits, and a dash for what is not there."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    if isinstance(value, bool | int | str):
        return f"{value:,}" if type(value) is int else str(value)
    if isinstance(value, float | np.floating):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return json.dumps(value, default=str)


def _flatten(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in record.items():
        if isinstance(value, Mapping) and value:
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            rows.append((prefix + str(key), text))
    return rows


def record_groups(record: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The plain entries first, then every nested one as a table of dotted names."""
    plain = {key: value for key, value in record.items() if not isinstance(value, Mapping)}
    groups = [("run", _flatten(plain))] if plain else []
    nested = [(key, value) for key, value in record.items() if isinstance(value, Mapping)]
    return groups + [(key, _flatten(value)) for key, value in nested]


def wrap_command(command: str) -> str:
    """One flag a line, so that a long command can be read and pasted."""
    if len(command) <= 88 or "\n" in command:
        return command
    return re.sub(r" (?=--)", " \\\\\n    ", command)


def _load_template() -> jinja2.Template:
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))


def style() -> Markup:
    """The style sheet of the page, for other pages that are to look like it."""
    template = _load_template()
    return Markup("".join(template.blocks["style"](template.new_context())))


def write_report(
    path: str | Path,
    *,
    title: str,
    subtitle: str,
    command: str,
    record: Mapping[str, Any],
    numbers: Sequence[tuple[str, Any, str]],
    figures: Sequence[tuple[str, bytes | str, str]],
    embedded_pages: Sequence[tuple[str, str, int]],
    metrics: Sequence[Mapping[str, Any]],
    curves: Sequence[CurveSpec],
    log_tail: str | None = None,
    is_run: bool = True,
) -> None:
    """Writes the page whole or not at all; of a measurement, which is no run (`is_run`), without
    curves and record.

    `numbers` are (label, value, note), the first four of them large; `figures` (title, PNG or SVG,
    caption); `embedded_pages` (title, page, height in pixels). Everything may be empty: a run that
    was stopped early leaves a page that says what is missing.
    """
    sections: dict[str, list[_Chart]] = {}
    for k, spec in enumerate(curves):
        sections.setdefault(spec.section, []).append(_draw_chart(spec, metrics, f"curve{k}"))
    shown = [(label, show_value(value), note) for label, value, note in numbers]
    page = _load_template().render(
        title=title,
        subtitle=subtitle,
        command=wrap_command(command),
        tiles=shown[:NUM_TILES],
        numbers=shown,
        pages=embedded_pages,
        figures=[
            (name, _picture(name, content, f"figure{k}"), caption)
            for k, (name, content, caption) in enumerate(figures)
        ],
        sections=sections,
        record=record_groups(record),
        num_rows=len(metrics),
        num_colours=NUM_COLOURS,
        log_tail=log_tail,
        is_run=is_run,
    )
    path = Path(path)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)
