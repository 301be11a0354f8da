"""Files of a sweep on a full disk: named, and whole."""

import errno
import os
from pathlib import Path

import pytest
from hydra_plugins.hydra_genetic_sweeper._files import append, write


def test_what_does_not_fit_on_the_disk_is_named_and_what_stood_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, whole = tmp_path / "lines.jsonl", tmp_path / "whole.json"
    append(lines, "1")
    write(whole, "old")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    for path, work in ((lines, append), (whole, write)):
        with pytest.raises(OSError, match=f"{path.name} could not be written .No space.*Free disk"):
            work(path, "new")
    assert lines.read_text() == "1\n" and whole.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.jsonl", "whole.json"]
