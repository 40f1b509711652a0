"""Circuits by name: our own designs, generated ones, and files of real ones."""

import re
from difflib import get_close_matches

from projects.sophy.circuits.built_in import DESIGNS
from projects.sophy.circuits.csv_file import read_circuit
from projects.sophy.circuits.generate import generate_circuit
from projects.sophy.circuits.outline import draw
from projects.sophy.track import CircuitError, Track

__all__ = ["BUILT_IN", "DEFAULT", "GROUPS", "CircuitError", "load_circuit"]

BUILT_IN = tuple(DESIGNS)
# Names of the built-in circuits by what their road is made of; one that is damp in part is asphalt.
GROUPS: dict[str, tuple[str, ...]] = {
    surface: tuple(name for name, design in DESIGNS.items() if surface in design.roads)
    for surface in ("asphalt", "dirt", "snow")
}
DEFAULT = "larkspur"


def load_circuit(spec: str) -> Track:
    """The circuit `spec`: a name in `BUILT_IN`, `generated:SEED`, or the path of a CSV file.

    What has a slash or ends with .csv is a path; `csv_file.read_circuit` says what is in the file.
    Raises `CircuitError`, whose one line says what is wrong where, and what is allowed.
    """
    if spec in DESIGNS:
        design = DESIGNS[spec]
        return draw(design.corners, design.runoff, design.road, design.verge, design.kerb)
    if spec.startswith("generated:"):
        seed = spec.removeprefix("generated:")
        if not re.fullmatch("[0-9]{1,18}", seed):
            raise CircuitError(
                f"circuit {spec!r}: the seed must be a whole number, as in 'generated:7'"
            )
        return generate_circuit(int(seed))
    if "/" in spec or "\\" in spec or spec.lower().endswith(".csv"):
        return read_circuit(spec)
    close = get_close_matches(spec.lower(), BUILT_IN, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise CircuitError(
        f"unknown circuit {spec!r}{hint}: allowed are {', '.join(BUILT_IN)}, 'generated:SEED',"
        " or the path of a .csv file"
    )
