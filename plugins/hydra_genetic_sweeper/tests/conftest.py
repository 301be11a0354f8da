"""Running applications as a user does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
APPS = HERE / "apps"
BOWL = HERE.parent / "example" / "bowl.py"
Result = subprocess.CompletedProcess[str]


def command(app: Path, *overrides: str) -> list[str]:
    """The command line of a multirun."""
    return [sys.executable, str(app), "-m", *overrides]


def environment() -> dict[str, str]:
    """The environment with the applications importable."""
    return os.environ | {"PYTHONPATH": str(APPS), "OMP_NUM_THREADS": "1"}


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
