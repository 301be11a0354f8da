"""The file formats in which stages keep their values, from one run to the next."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.runtime.artifacts import read_json, write_json_atomic, write_text_atomic

T = TypeVar("T")
Record = dict[str, Any]  # nested containers and numbers, as JSON stores them


@dataclass(frozen=True)
class FileFormat(Generic[T]):
    """How a value is written to a file, whole or not at all, and read again."""

    suffix: str
    write: Callable[[T, Path], None]
    read: Callable[[Path], T]


def _write_lines(records: Sequence[Record], path: Path) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_text_atomic(path, "".join(lines))


def _read_lines(path: Path) -> list[Record]:
    # Not splitlines: it would also split at separators that a text of a record may hold.
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


JSON = FileFormat[Record]("json", lambda record, path: write_json_atomic(path, record), read_json)
JSON_LINES = FileFormat[Sequence[Record]]("jsonl", _write_lines, _read_lines)
GENOME = FileFormat("json", Genome.save, Genome.load)
BANK = FileFormat("safetensors", Bank.save, Bank.load)
# For a run that never trains, whose memory the pages of factors should not fill.
STREAMED_BANK = FileFormat("safetensors", partial(Bank.save, drop=True), Bank.load)
