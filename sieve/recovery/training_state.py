"""The state of a training on disk, in safetensors: one file, or one of each rank in a folder.

Ranks that train together write their parts at once through `torch.distributed.checkpoint`, which
deals what all of them hold. Either stands under its name only when it is whole.
"""

import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed

from sieve.runtime.artifacts import read_json, written_beside

HEADER = "header.json"


def save_state(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a header to one file."""
    with written_beside(path) as partial:
        save_file(tensors, partial, metadata={"sieve_training": json.dumps(header)})


def save_state_together(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write what every rank holds alike to a folder, a file of each; all ranks call it.

    The disk is one that all of them see.
    """
    if distributed.get_rank():
        _write_part(None, tensors)
        return
    with written_beside(path) as partial:
        partial.mkdir()
        (partial / HEADER).write_text(json.dumps(header), encoding="utf-8")
        _write_part(partial, tensors)


def _write_part(folder: Path | None, tensors: dict[str, Tensor]) -> None:
    """Write this rank's part to the folder that rank 0 names."""
    from torch.distributed import checkpoint

    named: list[Any] = [folder]
    distributed.broadcast_object_list(named)
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.WARNING)
    writer = checkpoint.HuggingFaceStorageWriter(str(named[0]), save_distributed=True)
    checkpoint.save(dict(tensors), storage_writer=writer)
    distributed.barrier()  # Rank 0 gives the folder its name when all parts are there.


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors and the header of either form; the header is None in a file of other contents.

    Raises ValueError where a file is damaged.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] | None = read_json(path / HEADER) if path.is_dir() else None
    for one in files:
        try:
            with safe_open(one, framework="pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys()}
                if not path.is_dir():
                    header = json.loads((file.metadata() or {}).get("sieve_training", "null"))
        except SafetensorError as error:
            raise ValueError(f"{one} is damaged ({error}); delete it and run again.") from error
    return tensors, header
