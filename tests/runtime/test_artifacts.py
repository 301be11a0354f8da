"""Fingerprints, and files that are whole or absent."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sieve.runtime import artifacts
from sieve.runtime.artifacts import (
    Cache,
    fingerprint,
    hash_files,
    read_json,
    temporary_folder,
    write_json_atomic,
    write_text_atomic,
    written_beside,
)


def test_equal_parts_give_equal_fingerprints_and_others_do_not() -> None:
    assert fingerprint({"a": 1, "b": 2}, [3]) == fingerprint({"b": 2, "a": 1}, [3])
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint(0.02) != fingerprint(0.03)


def test_hash_of_files_follows_their_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a.bin", tmp_path / "b.bin"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    before = hash_files([second, first])
    assert before == hash_files([first, second])
    second.write_bytes(b"3")
    assert before != hash_files([first, second])


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json_atomic(path, {"old": 1})
    with pytest.raises(RuntimeError), written_beside(path) as partial:
        partial.write_text("torn")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_replaces_an_older_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "export"
    for content in ("one", "two"):
        with written_beside(path) as partial:
            partial.mkdir()
            (partial / content).write_text(content)
    assert [p.name for p in path.iterdir()] == ["two"]


def test_a_process_killed_while_writing_leaves_no_file_under_the_name(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from sieve.runtime.artifacts import written_beside\n"
        "with written_beside(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "bank.safetensors"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert not path.exists()


def test_writers_of_one_path_do_not_touch_each_other_s_temporaries(tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    with written_beside(path) as first, written_beside(path) as second:
        assert first != second  # As with two nodes, whose pids may be equal.
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # Which was renamed last.
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_is_surely_left_behind_is_removed(tmp_path: Path) -> None:
    path, ended = tmp_path / "bank.safetensors", subprocess.Popen(["true"])
    ended.wait()
    with written_beside(path) as partial:
        partial.touch()
        space, own = partial.name.split(".")[3:5]
    elsewhere = "0" * 8
    dead, alive, young, old, other = (
        tmp_path / f".{name}.deadbeef.partial"
        for name in (
            f"{path.name}.{space}.{ended.pid}",
            f"{path.name}.{space}.{own}",
            f"{path.name}.{elsewhere}.{ended.pid}",
            f"{path.name}.{elsewhere}.{own}",
            f"{path.name}.index.json.{space}.{ended.pid}",
        )
    )
    for left in (dead, alive, young, old, other):
        left.touch()
    os.utime(old, (0, 0))
    write_text_atomic(path, "new")
    assert set(tmp_path.iterdir()) == {path, alive, young, other}


def test_a_temporary_folder_goes_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from sieve.runtime.artifacts import temporary_folder\n"
        "with temporary_folder(Path(sys.argv[1]), 'hidden') as folder:\n"
        "    (folder / 'states').write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (killed,) = tmp_path.iterdir()
    assert done.returncode == -9 and [p.name for p in killed.iterdir()] == ["states"]
    with temporary_folder(tmp_path, "other") as other:  # Of another name: not its own to remove.
        assert set(tmp_path.iterdir()) == {killed, other}
    with (
        temporary_folder(tmp_path, "hidden") as first,
        temporary_folder(tmp_path, "hidden") as second,
    ):
        assert set(tmp_path.iterdir()) == {first, second}  # Which live.
    with pytest.raises(RuntimeError), temporary_folder(tmp_path / "new", "hidden"):
        raise RuntimeError
    assert [p.name for p in tmp_path.rglob("*")] == ["new"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_many_processes_that_write_one_artifact_leave_it_whole(tmp_path: Path, kind: str) -> None:
    code = (
        "import runpy, sys; from pathlib import Path\n"
        "path, kind, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]\n"
        "written_beside = runpy.run_path(sys.argv[4])['written_beside']  # without torch\n"
        "for _ in range(25):\n"
        "    with written_beside(path) as partial:\n"
        "        if kind == 'directory': partial.mkdir()\n"
        "        files = [partial / 'a', partial / 'b'] if kind == 'directory' else [partial]\n"
        "        for file in files: file.write_text(name * 100_000)\n"
    )
    path = tmp_path / "artifact"
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), kind, name, artifacts.__file__])
        for name in "abcd"
    ]
    while any(writer.poll() is None for writer in writers):
        if kind == "file" and path.exists():
            text = path.read_text()
            assert len(text) == 100_000 and len(set(text)) == 1
    assert [writer.returncode for writer in writers] == [0] * 4
    files = sorted(path.iterdir()) if kind == "directory" else [path]
    assert len({file.read_text() for file in files}) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        with written_beside(tmp_path / "x") as partial:
            partial.touch(mode=0o600)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


def test_json_that_is_torn_is_named(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "g.json", json.dumps({"a": 1})[:-1])
    with pytest.raises(ValueError, match=r"g\.json is not JSON .*Delete it"):
        read_json(tmp_path / "g.json")


def test_a_cache_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"is not writable .*paths\.cache_dir"):
        Cache(tmp_path / "file" / "cache").prepare()
