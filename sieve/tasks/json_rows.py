"""Rows of JSON files: lines are read one at a time, as often as they are asked for.

Not through `datasets`, which takes text that looks like a date for one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGE = 2**25  # bytes of a file whose rows are not held in memory together


class Fault(ValueError):
    """What is wrong with a file, in a few words."""


class JsonLines:
    """The rows of a file of JSON lines; iterating reads it, and raises Fault at what is none.

    Blank lines are passed over; a row has the fields that it has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.large = path.stat().st_size > LARGE

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self.path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _row(line, number)


def json_rows(path: Path) -> JsonLines | list[dict[str, Any]]:
    """Rows of JSON lines, or of one list."""
    with path.open(encoding="utf-8-sig") as file:
        first = file.read(1)
        while first and first.isspace():
            first = file.read(1)
    if first != "[":
        return JsonLines(path)
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    wrong = next((i for i, row in enumerate(rows, start=1) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise Fault(f"entry {wrong} is not a JSON object")
    return list(rows)


def _row(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise Fault(f"line {number} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise Fault(f"line {number} is not a JSON object")
    return row
