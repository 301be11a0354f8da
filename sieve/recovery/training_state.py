"""Save and load the state of a training: one safetensors file, or a folder with one per rank.

Ranks write a folder together through `torch.distributed.checkpoint`, which splits the tensors over
them. File and folder get their final name only when they are complete.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed

from sieve.runtime.artifacts import read_json, written_beside

HEADER = "header.json"


def save_state(path: Path, tensors: dict[str, Tensor], header: Mapping[str, object]) -> None:
    """Write tensors and a header to one file."""
    with written_beside(path) as partial:
        save_file(tensors, partial, metadata={"sieve_training": json.dumps(header)})


def save_state_together(
    path: Path, tensors: dict[str, Tensor], header: Mapping[str, object]
) -> None:
    """Write tensors that are equal on all ranks to a folder on a common disk; all ranks call it."""
    if distributed.get_rank():
        _write_part(None, tensors)
        return
    with written_beside(path) as partial:
        partial.mkdir()
        (partial / HEADER).write_text(json.dumps(header), encoding="utf-8")
        _write_part(partial, tensors)


def _write_part(folder: Path | None, tensors: dict[str, Tensor]) -> None:
    """Write this rank's part to the folder of rank 0."""
    from torch.distributed import checkpoint

    folders = [folder]
    distributed.broadcast_object_list(folders)
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.WARNING)
    writer = checkpoint.HuggingFaceStorageWriter(str(folders[0]), save_distributed=True)
    checkpoint.save(dict(tensors), storage_writer=writer)
    distributed.barrier()  # Rank 0 renames the folder when all parts are written.


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors and the header of a file or a folder; the header is None in any other file.

    Raises ValueError where a file is damaged.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] | None = read_json(path / HEADER) if path.is_dir() else None
    for file_path in files:
        try:
            with safe_open(file_path, framework="pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys()}
                if not path.is_dir():
                    header = json.loads((file.metadata() or {}).get("sieve_training", "null"))
        except SafetensorError as error:
            raise ValueError(
                f"{file_path} is damaged ({error}); delete it and run again."
            ) from error
    return tensors, header
