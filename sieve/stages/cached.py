"""The file formats in which stages keep their values, from one run to the next."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.runtime.artifacts import read_json, write_json_atomic

T = TypeVar("T")
Record = dict[str, Any]  # nested containers and numbers, as JSON stores them


@dataclass(frozen=True)
class FileFormat(Generic[T]):
    """How a value is written to a file, whole or not at all, and read again."""

    suffix: str
    write: Callable[[T, Path], None]
    read: Callable[[Path], T]


JSON = FileFormat[Record]("json", lambda record, path: write_json_atomic(path, record), read_json)
GENOME = FileFormat("json", Genome.save, Genome.load)
BANK = FileFormat("safetensors", Bank.save, Bank.load)
