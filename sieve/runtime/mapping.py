"""Safetensors files as memory maps whose pages can be dropped after they are read.

The pages of a mapped file that were read count as this process's memory until they are dropped. A
dropped page is read again when it is next used, mostly from the system's cache of files.
"""

import json
import math
import mmap
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast
from weakref import WeakSet, finalize

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
CHUNK = 2**28  # bytes of a file of a spool
ALIGNMENT = 64  # bytes
NAMES = {dtype: name for name, dtype in DTYPES.items()}


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


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    after: Callable[[], None] | None = None,
) -> None:
    """Write a safetensors file tensor by tensor; safetensors' own function copies all of them.

    Raises OSError if the disk is full.

    Args:
        after: called after each tensor.
    """
    # The largest numbers first, so that all are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for name in names:
            numbers = tensors[name].detach().cpu().contiguous().flatten()
            file.write(numbers.view(torch.uint8).numpy().data if numbers.numel() else b"")
            if after is not None:
                after()


class Spool:
    """Tensors in unnamed temporary files of a folder, as views whose pages can be dropped.

    A file is freed with its last view. Many tensors share a file, since each file that is mapped
    keeps a descriptor open.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None
        self._pages: mmap.mmap | None = None
        self._end = 0

    def put(self, tensor: Tensor) -> Tensor:
        """A view of a copy of a tensor in a file; OSError if the disk is full."""
        numbers = tensor.detach().cpu().contiguous()
        if not numbers.numel():
            return numbers
        start = -(-self._end // ALIGNMENT) * ALIGNMENT
        try:
            if self._pages is None or start + numbers.nbytes > len(self._pages):
                self._open(max(CHUNK, numbers.nbytes))
                start = 0
            assert self._file is not None and self._pages is not None
            # A page of a private map shows what is written to the file until it is written to.
            self._file.seek(start)
            self._file.write(numbers.flatten().view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"Factors could not be written to {self.folder} ({error.strerror or error}). Free "
                "space on its disk, or set paths.cache_dir to a folder with space."
            ) from error
        self._end = start + numbers.nbytes
        view = torch.frombuffer(
            self._pages, dtype=numbers.dtype, count=len(numbers.flatten()), offset=start
        )
        return view.view(numbers.shape)

    def _open(self, size: int) -> None:
        if self._file is not None:
            self._file.close()  # Its map stays.
        self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=self.folder))
        finalize(self, self._file.close)
        self._file.truncate(size)  # Space is taken as it is written.
        self._pages = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_COPY)
        _mapped.add(self._pages)


_mapped: WeakSet[mmap.mmap] = WeakSet()  # A map lives as long as a view of it.


def drop_pages() -> None:
    """Drop the pages of all mapped files, where the system can (Linux and macOS)."""
    for pages in list(_mapped):
        if hasattr(pages, "madvise"):
            pages.madvise(mmap.MADV_DONTNEED)
