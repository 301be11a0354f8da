"""Banks on disk: safetensors files, one per block or one for all, read lazily by memory map.

U is stored transposed, so the first r directions of a matrix are contiguous in both factors, and a
genome reads no more of a file than its ranks need. A folder has one file per decoder block, each a
bank of its own, and `index.json`, which is written last: a folder without it is not finished.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sieve.bank.genome import Sizing
from sieve.model.matrices import Matrix
from sieve.projections import Factors
from sieve.runtime.artifacts import read_json, write_json_atomic, written_beside
from sieve.runtime.mapping import MappedFile, drop_pages, write_tensors

FORMAT = 4
INDEX = "index.json"


@dataclass(frozen=True)
class BankFactors(Factors):
    """Factors as a bank stores them: u and v in the storage dtype, the rest in float32."""

    def cut(self, rank: int) -> "BankFactors":
        """The factors of the first `rank` directions, with all energies."""
        offset = None if self.offset is None else self.offset[:rank]
        return BankFactors(self.u[:, :rank], self.v[:rank], self.energy, self.mean, offset)

    def every(self, start: int, step: int) -> "BankFactors":
        """Every `step`-th direction from `start` on."""
        chosen = slice(start, None, step)
        offset = None if self.offset is None else self.offset[chosen]
        return BankFactors(self.u[:, chosen], self.v[chosen], self.energy, self.mean, offset)

    def to(self, device: torch.device, dtype: torch.dtype) -> "BankFactors":
        """The factors on a device, in the dtype that a model computes in."""
        offset = None if self.offset is None else self.offset.to(device, dtype)
        u, v, mean = (part.to(device, dtype) for part in (self.u, self.v, self.mean))
        return BankFactors(u, v, self.energy, mean, offset)

    def digest(self) -> str:
        """Digest of all stored numbers."""
        digest = hashlib.sha256()
        for part in (self.u, self.v, self.energy, self.mean, self.offset):
            if part is not None:
                digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def write_bank(
    path: Path, factors: Mapping[str, Factors], header: dict[str, Any], drop: bool = False
) -> None:
    """Write one file, whole or not at all, with the header of `header_of`.

    drop: see `Bank.save`.
    """
    tensors: dict[str, Tensor] = {}
    for name, entry in factors.items():
        tensors[f"{name}|ut"] = entry.u.T
        for part in ("v", "energy", "mean", "offset"):
            tensor = getattr(entry, part)
            if tensor is not None:
                tensors[f"{name}|{part}"] = tensor
    with written_beside(path) as partial:
        metadata = {"sieve_bank": json.dumps({"format": FORMAT} | header)}
        write_tensors(partial, tensors, metadata, drop_pages if drop else None)


def write_index(folder: Path, files: Sequence[str], genes: Sequence[Matrix]) -> None:
    """Mark a folder as finished: list its files, and its matrices and groups in order."""
    body = {"format": FORMAT, "files": list(files), "genes": [gene.name for gene in genes]}
    write_json_atomic(folder / INDEX, body)


def is_finished(path: Path) -> bool:
    """Whether a path is a whole bank: a file, or a folder with its index."""
    return path.is_file() or (path / INDEX).is_file()


def read_bank(path: Path) -> tuple[dict[str, Any], list[Matrix], "StoredFactors"]:
    """Header, matrices and groups in order, and factors of a file or a folder of files.

    Raises ValueError where a file is damaged or is not a bank.
    """
    if not path.is_dir():
        header, genes = _header(path)
        return header, genes, StoredFactors({g.name: path for g in genes}, [g.name for g in genes])
    if not is_finished(path):
        raise ValueError(f"the bank {path} is not finished; run the same command again to resume.")
    index = read_json(path / INDEX)
    headers, matrices, paths = [], dict[str, Matrix](), dict[str, Path]()
    for name in index["files"]:
        header, genes = _header(path / name)
        headers.append(header)
        matrices |= {gene.name: gene for gene in genes}
        paths |= {gene.name: path / name for gene in genes}
    keys = {header["fingerprint"] for header in headers}
    if index.get("format") != FORMAT or len(keys) != 1 or set(index["genes"]) != matrices.keys():
        raise ValueError(f"the files of {path} are of different banks; delete it and run again.")
    names = index["genes"]
    return headers[0], [matrices[name] for name in names], StoredFactors(paths, names)


def _header(path: Path) -> tuple[dict[str, Any], list[Matrix]]:
    try:
        with safe_open(path, framework="pt") as file:
            header: Any = json.loads((file.metadata() or {}).get("sieve_bank", "null"))
            if not header or header["format"] != FORMAT:
                raise ValueError(f"{path} is not a bank; delete it and run again.")
            missing = {"sizing", "projection", "dtype", "fingerprint"} - header.keys()
            if missing:
                raise KeyError(min(missing))
            genes = [
                Matrix(**entry | {"members": tuple(entry["members"])})
                for entry in header["matrices"]
            ]
            expected = {f"{g.name}|{part}" for g in genes for part in ("ut", "v", "energy", "mean")}
            if absent := sorted(expected - set(file.keys())):
                raise KeyError(absent[0])
            return header, genes
    except (SafetensorError, KeyError, TypeError, FileNotFoundError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run again.") from error


class StoredFactors(Mapping[str, BankFactors]):
    """Factors by name: views of memory-mapped files, read from disk as they are used."""

    def __init__(self, paths: Mapping[str, Path], names: Sequence[str]) -> None:
        self._paths, self._names = dict(paths), list(names)
        self._factors: dict[str, BankFactors] = {}
        self._files: dict[Path, MappedFile] = {}

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return next(iter(self._paths.values())).parent

    def __getitem__(self, name: str) -> BankFactors:
        if name not in self._factors:
            self._factors[name] = self._read(name)
        return self._factors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _read(self, name: str) -> BankFactors:
        path = self._paths[name]
        if path not in self._files:
            self._files[path] = MappedFile(path)
        file = self._files[path]
        offset = f"{name}|offset"
        return BankFactors(
            file.get_tensor(f"{name}|ut").T,
            file.get_tensor(f"{name}|v"),
            file.get_tensor(f"{name}|energy"),
            file.get_tensor(f"{name}|mean"),
            file.get_tensor(offset) if offset in file.keys() else None,
        )


def header_of(
    genes: Sequence[Matrix], sizing: Sizing, projection: str, dtype: torch.dtype, key: str
) -> dict[str, Any]:
    """The JSON header of a bank's file."""
    return {
        "matrices": [asdict(gene) for gene in genes],
        "sizing": asdict(sizing),
        "projection": projection,
        "dtype": str(dtype).removeprefix("torch."),
        "fingerprint": key,
    }
