"""Fixtures of the sweeper's tests."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from applications import Result, command, environment


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Result]:
    """Run an application in a folder of its own and return what it printed."""

    def run(app: Path, *overrides: str, folder: str = ".") -> Result:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        return subprocess.run(
            command(app, *overrides), cwd=place, env=environment(), capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip

    return run
