"""Fixtures of the sweeper's tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
from applications import CHUNKS, Result, run


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Result]:
    """Run an application in its own folder and return its output."""
    return lambda app, *overrides, folder=".": run(tmp_path / folder, app, *overrides)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted search over chunks."""
    folder = tmp_path_factory.mktemp("whole")
    done = run(folder, CHUNKS)
    assert done.returncode == 0, done.stderr
    return folder
