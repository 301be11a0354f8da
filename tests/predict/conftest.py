"""The export that the tests of predictions share."""

from pathlib import Path

import pytest
from served import export_to


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a task with two labels, which tests only read."""
    return export_to(tmp_path_factory.mktemp("predict") / "run" / "export")
