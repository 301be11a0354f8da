"""Files that are whole or absent, and values as plain containers that JSON can hold."""

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def write(path: Path, text: str) -> None:
    """Write a file that is whole or absent, through to the disk, whoever else writes it too."""
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
    """Append a line that is whole or absent, through to the disk."""
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
    """What to do about a file that could not be written."""
    return OSError(
        f"{path} could not be written ({error.strerror}); free space on its disk and run again "
        "with the same hydra.sweep.dir, which goes on where it ended."
    )


def plain(value: Any) -> Any:
    """A value as plain containers and numbers; NumPy's, PyTorch's and OmegaConf's are converted."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.tolist() if callable(getattr(value, "tolist", None)) else value
