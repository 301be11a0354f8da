"""Files that outlive a stage: fingerprints, atomic writes and the cache of finished stages.

A stage's artifact is keyed by a fingerprint of everything it depends on. Files are written beside
their final name and renamed, so that a killed run leaves either the whole artifact or none. That
holds too where nodes of a cluster write one artifact at once: the last one's stays.
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
ABANDONED_S = 86_400  # seconds until what another node has not finished is taken for left behind
BLOCK = 4096  # bytes that are looked through at a time for the end of a line


def fingerprint(*parts: Any) -> str:
    """Digest of JSON-able parts: equal parts give equal fingerprints on every machine."""
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

    Works for a file and for a directory, and replaces an older one. On an error the temporary is
    removed and `path`, if it stood before, is untouched. What a killed process left beside `path`
    is removed first. Other processes, of this machine and of others, may write the same at once.
    Raises OSError that names `path` when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    own = f"{_process_space()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    partial = path.with_name(f".{path.name}.{own}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        yield partial
        _sync(partial)
        _put(partial, path)
    except (OSError, SafetensorError) as error:
        raise _unwritten(path, error) from error
    finally:
        _remove(partial)


def _unwritten(path: Path, error: Exception) -> OSError:
    reason = getattr(error, "strerror", None) or str(error)
    return OSError(
        f"{path} could not be written ({reason}); free space on its disk, or set hydra.run.dir and "
        "paths.cache_dir to folders with space, and run again: what is finished is not done anew."
    )


def append_line(path: Path, line: str, sync: bool = False) -> None:
    """Append a line that is whole or absent; what a killed process left of another goes first.

    sync: through to the disk. Raises OSError that names `path` when the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            end = _whole(path)
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
        raise _unwritten(path, error) from error


def whole_lines(path: Path) -> list[str]:
    """The lines of a file but one that was cut short; none where there is no file."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].decode().splitlines()


def _whole(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - BLOCK)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put(partial: Path, path: Path) -> None:
    """Give a temporary its name; a directory that has the name, or gets it meanwhile, goes."""
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
            continue  # Another process was faster.
        shutil.rmtree(old)


@cache
def _process_space() -> str:
    """Digest of where a pid is of one process: this machine since its start, or this container.

    Containers and machines may share a name, and their pids are alike.
    """
    parts = [platform.node()]
    with suppress(OSError):  # Where there is no Linux, the name has to do.
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return fingerprint(parts)[:8]


def _remove_stale(path: Path) -> None:
    """Remove temporaries of `path` whose process is no more, as far as can be told from here.

    Those of other machines go when nothing has been written to them for a day.
    """
    pattern = re.compile(
        rf"\.{re.escape(path.name)}\.([0-9a-f]{{8}})\.(\d+)\.[0-9a-f]{{8}}(\.old)?\.partial"
    )
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if not (found := pattern.fullmatch(partial.name)):
            continue
        if found[1] == _process_space():
            stale = not _is_alive(int(found[2]))
        else:
            stale = _age_s(partial) > ABANDONED_S
        if stale:
            with suppress(FileNotFoundError):  # Another process was faster.
                _remove(partial)


def _age_s(path: Path) -> float:
    """Seconds since a file or directory was written to; 0 where it is gone by now."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    """Bring a file's bytes to the disk before its name appears; a directory file by file.

    Permissions become the usual ones: some writers make files that only their owner can read.
    """
    umask = os.umask(0)
    os.umask(umask)
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        file.chmod(0o666 & ~umask)
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file that is either whole or absent."""
    with written_beside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json_atomic(path: Path, value: Any) -> None:
    """Write JSON that is either whole or absent; keys keep their order."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a ValueError names the file when it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it and run again.") from error


class Cache:
    """Finished stages on disk: `<root>/<stage>-<fingerprint>.<suffix>`.

    A file exists under its name only when it is whole, so existence is the whole protocol.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser()

    def path(self, stage: str, key: str, suffix: str) -> Path:
        """Where the artifact of `stage` with fingerprint `key` stands or will stand."""
        return self.root / f"{stage}-{key}.{suffix}"

    def folder(self, stage: str, key: str) -> Path:
        """Where an artifact of several files stands; its maker says when it is whole."""
        return self.root / f"{stage}-{key}"

    def prepare(self) -> None:
        """Create the folder and see that it can be written; ValueError otherwise."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe.{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"The cache folder {self.root} cannot be written ({error.strerror}); "
                "set paths.cache_dir to a folder that can."
            ) from error
