"""Rows of JSON files.

The package `datasets` is not used for them, because it converts text that looks like a date.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from sieve.tasks.example import Row


class InvalidJson(ValueError):
    """Says in a few words what is wrong with a file."""


def is_json_list(path: Path) -> bool:
    """Whether a file is one JSON list, rather than JSON lines."""
    with path.open(encoding="utf-8-sig") as file:
        while (first := file.read(1)) and first.isspace():
            pass
    return first == "["


def json_lines(path: Path) -> Iterator[Row]:
    """The objects of a file of JSON lines, read one by one; blank lines are skipped."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise InvalidJson(f"line {number} is not JSON: {error}") from None
                yield _as_row(value, f"line {number}")


def json_list(path: Path) -> list[Row]:
    """The objects of a file that is one JSON list."""
    values = json.loads(path.read_text(encoding="utf-8-sig"))
    return [_as_row(value, f"entry {number}") for number, value in enumerate(values, start=1)]


def _as_row(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise InvalidJson(f"{where} is not a JSON object")
    return value
