"""Files that outlive a stage: fingerprints, atomic writes and the cache of finished stages.

An artifact is keyed by a fingerprint of everything that it depends on. Files are written under a
temporary name and renamed, so a killed run leaves either the whole artifact or none. If several
nodes of a cluster write the same artifact at once, the last one stays.
"""

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

FINGERPRINT_LENGTH = 16
ABANDONED_S = 86_400  # age in seconds at which a temporary file of another node is removed
BLOCK = 4096  # bytes read at a time in search of the end of a line


def fingerprint(*parts: object) -> str:
    """Digest of JSON-serializable parts; equal parts give equal digests on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]


def hash_files(paths: list[Path]) -> str:
    """Digest of the names and contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:FINGERPRINT_LENGTH]


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` when the block succeeds.

    `path` may be a file or a directory, and an older one is replaced. On an error the temporary is
    removed and an existing `path` stays as it was. Temporaries of killed processes are removed
    first. Other processes, also on other machines, may write the same path at the same time.
    Raises OSError that names `path` if the disk is full or the folder is not writable.
    """
    path = Path(path)
    partial = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        yield partial
        _sync(partial)
        _rename(partial, path)
    except (OSError, SafetensorError) as error:
        raise _write_error(path, error) from error
    finally:
        _remove(partial)


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new hidden folder under `parent`, which is removed at the end.

    Folders of the same name that killed processes left are removed first.
    """
    path = Path(parent) / name
    parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    folder = _temporary(path)
    folder.mkdir()
    try:
        yield folder
    finally:  # Network file systems keep a file that is mapped.
        shutil.rmtree(folder, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A hidden path beside `path` that names this process."""
    own = f"{_process_space()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{path.name}.{own}.partial")


def _write_error(path: Path, error: Exception) -> OSError:
    reason = getattr(error, "strerror", None) or str(error)
    return OSError(
        f"{path} could not be written ({reason}). Free space on its disk, or set hydra.run.dir and "
        "paths.cache_dir to folders with space. Then run the same command again to resume."
    )


def append_line(path: Path, line: str, sync: bool = False) -> None:
    """Append a line to a file; a failure leaves no part of the line behind.

    An incomplete last line, left by a killed process, is removed first. `sync` waits until the line
    is on the disk. Raises OSError that names `path` if the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            end = _end_of_lines(path)
            try:
                if end < file.tell():
                    file.truncate(end)
                file.write(line.encode() + b"\n")
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.truncate(path, end)
                raise
    except OSError as error:
        raise _write_error(path, error) from error


def whole_lines(path: Path) -> list[str]:
    """The complete lines of a file, without an incomplete last one; none if it does not exist."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].decode().splitlines()


def _end_of_lines(path: Path) -> int:
    """How many bytes of a file come before the end of its last complete line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _rename(partial: Path, path: Path) -> None:
    """Rename a temporary to its final name, in place of any file or directory there."""
    old = partial.with_suffix(".old.partial")
    while True:
        try:
            os.replace(partial, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR):
                raise
        try:
            os.replace(path, old)
        except FileNotFoundError:
            continue  # Another process has just removed it.
        shutil.rmtree(old)


@cache
def _process_space() -> str:
    """Digest of the machine, its boot and its container: pids are unique only within these."""
    parts = [platform.node()]
    with suppress(OSError):  # Other systems than Linux have only the name.
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return fingerprint(parts)[:8]


def _remove_stale(path: Path) -> None:
    """Remove the temporaries of `path` that dead processes of this machine left.

    Temporaries of other machines are removed after a day without a write. What cannot be removed
    stays.
    """
    pattern = re.compile(
        rf"\.{re.escape(path.name)}\.([0-9a-f]{{8}})\.(\d+)\.[0-9a-f]{{8}}(\.old)?\.partial"
    )
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if not (match := pattern.fullmatch(partial.name)):
            continue
        with suppress(OSError):  # Another process has just removed it, or another user owns it.
            if match[1] == _process_space():
                stale = not _is_alive(int(match[2]))
            else:
                files = [partial, *(partial.iterdir() if partial.is_dir() else ())]
                last = max(file.stat().st_mtime for file in files)
                stale = time.time() - last > ABANDONED_S
            if stale:
                _remove(partial)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    """Flush a file, or all files of a directory, to the disk, and give them default permissions.

    Some writers create files that only their owner can read.
    """
    umask = os.umask(0)
    os.umask(umask)
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        file.chmod(0o666 & ~umask)
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file; a failure leaves no partial file."""
    with written_beside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json_atomic(path: Path, value: object) -> None:
    """Write JSON; a failure leaves no partial file. Keys keep their order."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises ValueError that names the file if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}). Delete it and run again.") from error


class Cache:
    """Artifacts of finished stages: `<root>/<stage>-<fingerprint>.<suffix>`.

    Files appear under these names only when they are complete, so a file that exists can be used.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser()

    def path(self, stage: str, key: str, suffix: str) -> Path:
        """The path of the artifact of `stage` with fingerprint `key`, whether it exists or not."""
        return self.root / f"{stage}-{key}.{suffix}"

    def folder(self, stage: str, key: str) -> Path:
        """The folder of an artifact of several files; its writer marks when it is complete."""
        return self.root / f"{stage}-{key}"

    def prepare(self) -> None:
        """Create the folder; raises ValueError if it is not writable."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe.{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"The cache folder {self.root} is not writable ({error.strerror}). Set "
                "paths.cache_dir to a writable folder."
            ) from error
