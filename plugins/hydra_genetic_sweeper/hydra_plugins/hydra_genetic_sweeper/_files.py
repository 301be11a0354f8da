"""Files that are whole or absent, and values as plain containers that JSON can hold."""

import os
import uuid
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def write(path: Path, text: str) -> None:
    """Write a file that is whole or absent, through to the disk, whoever else writes it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def plain(value: Any) -> Any:
    """A value as plain containers and numbers; NumPy's, PyTorch's and OmegaConf's are converted."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.tolist() if callable(getattr(value, "tolist", None)) else value
