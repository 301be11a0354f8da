"""Hidden states by block and batch, in files or in memory.

Files are read and written without memory maps, since mapped pages would count as the process's
memory. In memory, hidden states of a GPU model are page-locked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sieve.runtime.artifacts import temporary_folder


@contextmanager
def hidden_states(parent: Path | None = None) -> Iterator["HiddenStates"]:
    """A store in a temporary folder under `parent`, or in memory if `parent` is None."""
    if parent is None:
        yield HiddenStates()
        return
    with temporary_folder(parent, "hidden") as folder:
        yield HiddenStates(folder)


class HiddenStates:
    """Hidden states by block and batch, in files of `folder`, or in memory if it is None."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._in_memory: dict[tuple[int, int], Tensor] = {}
        self._shapes: dict[tuple[int, int], tuple[torch.Size, torch.dtype]] = {}

    def put(self, block: int, batch: int, states: Tensor) -> None:
        """Store the input of a block for a batch; raises OSError if the disk is full."""
        states = states.detach()
        if self._folder is None:
            copied = states.to("cpu", copy=True)
            self._in_memory[block, batch] = copied.pin_memory() if states.is_cuda else copied
            return
        plain = states.cpu().contiguous()
        self._shapes[block, batch] = plain.shape, plain.dtype
        try:
            path = self._path(block, batch)
            plain.view(torch.uint8).numpy().tofile(path)
        except OSError as error:
            raise OSError(
                f"Hidden states could not be written to {self._folder} "
                f"({error.strerror or error}). Free space on its disk, set paths.cache_dir to a "
                "folder with space, lower calibration.tokens or projection.refit_tokens, or set "
                "calibration.hidden=memory."
            ) from error

    def get(self, block: int, batch: int, device: torch.device) -> Tensor:
        """The input of a block for a batch, on a device."""
        if self._folder is None:
            return self._in_memory[block, batch].to(device, copy=True)
        shape, dtype = self._shapes[block, batch]
        states = torch.empty(shape, dtype=dtype)
        with self._path(block, batch).open("rb") as file:
            file.readinto(states.view(torch.uint8).numpy().data)
        return states.to(device)

    def drop(self, block: int) -> None:
        """Delete the inputs of a block."""
        for key in [key for key in {*self._in_memory, *self._shapes} if key[0] == block]:
            self._in_memory.pop(key, None)
            if self._shapes.pop(key, None) is not None:
                self._path(*key).unlink()

    def _path(self, block: int, batch: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{block}.{batch}"
