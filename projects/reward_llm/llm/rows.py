"""JSONL files of texts. `core_rl.tracking` writes them, and reads files of numbers."""

import json
from pathlib import Path
from typing import Any

from core_rl.errors import UserError


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a last line that a kill has torn is left out.

    Unlike `tracking.read_metrics` it leaves strings alone: a reply may be the word "inf".
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path}: line {number} is not a JSON object") from None
        else:
            rows.append(row)
    return rows
