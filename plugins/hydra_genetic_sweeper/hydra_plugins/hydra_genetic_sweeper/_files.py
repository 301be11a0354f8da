"""Atomic file writes, and conversion of values to what JSON can store."""

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def write(path: Path, text: str) -> None:
    """Write a file atomically and sync it to disk. Several processes may write the same file."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise unwritten(path, error) from error


def append(path: Path, line: str) -> None:
    """Append a line and sync it to disk. If that fails, the file is as before."""
    try:
        with path.open("ab") as file:
            end = file.tell()
            try:
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.truncate(path, end)
                raise
    except OSError as error:
        raise unwritten(path, error) from error


def unwritten(path: Path, error: OSError) -> OSError:
    """The error for a file that could not be written, with advice."""
    return OSError(
        f"{path} could not be written ({error.strerror}). Free disk space, then repeat the command "
        "with the same hydra.sweep.dir to resume."
    )


def plain(value: Any) -> Any:
    """Convert arrays, tensors and OmegaConf containers to lists, dicts and numbers."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.tolist() if callable(getattr(value, "tolist", None)) else value
