"""Hidden states of many batches, by block: in files of a folder, or in memory.

In files they are read and written whole, not mapped: a map's pages would count as the process's own
memory. In memory they are page-locked where there is a GPU to copy to.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


@contextmanager
def hidden_states(parent: Path | None = None) -> Iterator["HiddenStates"]:
    """Hidden states in a folder of their own under `parent`, or in memory; nothing stays behind."""
    if parent is None:
        yield HiddenStates()
        return
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hidden.", dir=parent) as folder:
        yield HiddenStates(Path(folder))


class HiddenStates:
    """Tensors by block and batch.

    folder: where they wait in files; None keeps them in memory. Raises OSError in one sentence
    where the disk is full.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._held: dict[tuple[int, int], Tensor] = {}
        self._shapes: dict[tuple[int, int], tuple[torch.Size, torch.dtype]] = {}

    def put(self, block: int, batch: int, states: Tensor) -> None:
        """Keep the states of a batch before a block, in place of older ones."""
        states = states.detach()
        if self._folder is None:
            kept = states.to("cpu", copy=True)
            self._held[block, batch] = kept.pin_memory() if states.is_cuda else kept
            return
        plain = states.cpu().contiguous()
        self._shapes[block, batch] = plain.shape, plain.dtype
        try:
            path = self._path(block, batch)
            plain.view(torch.uint8).numpy().tofile(path)
        except OSError as error:
            raise OSError(
                f"{self._folder} could not be written ({error.strerror or error}), where hidden "
                "states of calibration wait; free space on its disk, set paths.cache_dir to a "
                "folder with space, lower calibration.tokens, or set calibration.hidden=memory."
            ) from error

    def get(self, block: int, batch: int, device: torch.device) -> Tensor:
        """The states of a batch before a block, on a device."""
        if self._folder is None:
            return self._held[block, batch].to(device, copy=True)
        shape, dtype = self._shapes[block, batch]
        states = torch.empty(shape, dtype=dtype)
        with self._path(block, batch).open("rb") as file:
            file.readinto(states.view(torch.uint8).numpy().data)
        return states.to(device)

    def drop(self, block: int) -> None:
        """Forget the states before a block."""
        for key in [key for key in {*self._held, *self._shapes} if key[0] == block]:
            self._held.pop(key, None)
            if self._shapes.pop(key, None) is not None:
                self._path(*key).unlink()

    def _path(self, block: int, batch: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{block}.{batch}"
