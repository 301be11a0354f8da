"""The applications that are searched, and how a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

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
