"""Circuits from files: a centre line with the widths to both white lines.

One row per point in driving direction, `x, y, width right, width left` in metres, an open list of a
closed loop: the form of the TUM racetrack database (Heilmeier et al., "Minimum curvature trajectory
planning and control for an autonomous race car", 2020).
"""

from math import isfinite
from pathlib import Path

from projects.sophy.track import CircuitError, Track, make_track

COLUMNS = ("x", "y", "width right", "width left")
_ALLOWED = f"'{', '.join(COLUMNS)}' in metres"
# Header names, in lower case, without a unit and with spaces for underscores.
ALIASES = {
    "x": "x",
    "y": "y",
    "w tr right": "width right",
    "w right": "width right",
    "right": "width right",
    "width right": "width right",
    "w tr left": "width left",
    "w left": "width left",
    "left": "width left",
    "width left": "width left",
}


def read_circuit(path: str) -> Track:
    """The circuit in a CSV file, with 5 m of run-off between the white lines and the walls.

    The first row may name the columns, with or without a leading '#', in any order and among
    others; without names the first four are taken as `COLUMNS`. Empty lines and other lines that
    start with '#' are skipped. Raises `CircuitError` with file, line, reason and what is allowed.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise CircuitError(f"{path}: {error.strerror}; a readable .csv file is needed") from error
    except UnicodeDecodeError as error:
        raise CircuitError(f"{path}: not a text file; rows of {_ALLOWED} are needed") from error
    order = [0, 1, 2, 3]
    points: list[list[float]] = []
    numbers: list[int] = []  # line number of each point
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip() for cell in line.strip().lstrip("#").split(",")]
        if not points and _is_header(line, cells):
            order = _read_header(cells, f"{path}:{number}")
        elif line.strip() and not line.lstrip().startswith("#"):
            points.append(_read_row(cells, order, f"{path}:{number}"))
            numbers.append(number)
    if not points:
        raise CircuitError(f"{path}: no points; rows of {_ALLOWED} are needed")
    x, y, right, left = zip(*points, strict=True)
    try:
        return make_track(list(zip(x, y, strict=True)), right, left)
    except CircuitError as error:
        where = path if error.row is None else f"{path}:{numbers[error.row]}"
        raise CircuitError(f"{where}: {error.reason}") from error


def _is_header(line: str, cells: list[str]) -> bool:
    """Whether a line names columns: no numbers at all, or a comment with an x and a y."""
    if line.lstrip().startswith("#"):
        return {"x", "y"} <= {_column(cell) for cell in cells}
    return all(cell and not _is_number(cell) for cell in cells)


def _read_header(cells: list[str], where: str) -> list[int]:
    """Positions of `COLUMNS` among the named columns."""
    names = [_column(cell) for cell in cells]
    for column in COLUMNS:
        if names.count(column) != 1:
            problem = "no column" if column not in names else "more than one column"
            raise CircuitError(
                f"{where}: {problem} {column!r} among {', '.join(cells)}; {_ALLOWED} are needed"
            )
    return [names.index(column) for column in COLUMNS]


def _read_row(cells: list[str], order: list[int], where: str) -> list[float]:
    """The numbers of one row in the order of `COLUMNS`."""
    if len(cells) <= max(order):
        raise CircuitError(f"{where}: {len(cells)} columns; {_ALLOWED} are needed")
    for i, column in zip(order, COLUMNS, strict=True):
        if not _is_number(cells[i]) or not isfinite(float(cells[i])):
            raise CircuitError(f"{where}: {column} is {cells[i]!r}, not a finite number")
    return [float(cells[i]) for i in order]


def _column(cell: str) -> str:
    """The column a header's cell names, or the cell itself."""
    name = cell.lower().replace("_", " ").replace("[m]", "").strip().removesuffix(" m").strip()
    return ALIASES.get(name, cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
