"""The test rows that flipped between the dense and the pruned model, for the page."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sieve.report.building import Number, build

SHOWN = 20  # rows of the table
SHORT = 220  # characters of a shown prompt
_END = 60  # characters of its end, where many prompts ask


@dataclass(frozen=True)
class Flips:
    """How many test rows flipped, by outcome."""

    rows: Number
    lost: Number
    won: Number
    changed: Number


@dataclass(frozen=True)
class ClassScore:  # of the test rows with this right answer
    answer: str
    rows: Number
    dense: Number
    pruned: Number
    lost: Number
    won: Number


@dataclass(frozen=True)
class FlippedRow:
    """A line of `flips.jsonl`."""

    row: Number
    outcome: str
    prompt: str
    right: str
    dense: str
    pruned: str
    dense_score: Number
    pruned_score: Number


def read_flips(path: Path) -> list[FlippedRow]:
    """The first rows of `flips.jsonl`; none if the file does not exist."""
    return list(islice(_rows(path), SHOWN)) if path.is_file() else []


def _rows(path: Path) -> Iterator[FlippedRow]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield build(FlippedRow, record if isinstance(record, Mapping) else {})


def shortened(text: str, limit: int = SHORT) -> str:
    """Text on one line, without words in its middle if it is longer than `limit` characters.

    A word is only cut where it is longer than half of the part that it begins or ends.
    """
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    end = min(_END, limit // 3)
    start = line[: limit - end]
    if line[len(start)] != " " and start.rfind(" ") >= 0.5 * len(start):
        start = start[: start.rfind(" ")]
    ending = line[-end:]
    if line[-end - 1] != " " and 0 <= ending.find(" ") <= 0.5 * end:
        ending = ending[ending.find(" ") :]
    return f"{start.rstrip()} … {ending.lstrip()}"
