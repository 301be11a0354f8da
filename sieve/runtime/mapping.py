"""Safetensors files as memory maps whose pages can be dropped after they are read.

The pages of a mapped file that were read count as this process's memory until they are dropped. A
dropped page is read again when it is next used, mostly from the system's cache of files.
"""

import json
import math
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class MappedFile:
    """The floating-point tensors of an intact safetensors file, by name, as views of the file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self._entries: dict[str, dict[str, Any]] = json.loads(file.read(length))
            self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._start = 8 + length
        self._entries.pop("__metadata__", None)
        _mapped.add(self._pages)

    def keys(self) -> Iterable[str]:
        """Names of the tensors."""
        return self._entries.keys()

    def get_tensor(self, name: str) -> Tensor:
        """A view of a tensor; do not write to it, since dropped pages lose what was written."""
        entry = self._entries[name]
        shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
        count, offset = math.prod(shape), self._start + entry["data_offsets"][0]
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._pages, dtype=dtype, count=count, offset=offset).view(shape)


_mapped: WeakSet[mmap.mmap] = WeakSet()  # A map lives as long as a view of it.


def drop_pages() -> None:
    """Drop the pages of all mapped files, where the system can (Linux and macOS)."""
    for pages in list(_mapped):
        if hasattr(pages, "madvise"):
            pages.madvise(mmap.MADV_DONTNEED)
