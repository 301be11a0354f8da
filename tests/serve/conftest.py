"""What the tests of serving share."""

from pathlib import Path

import pytest
from served import export_to


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a task of two labels; it is only read."""
    return export_to(tmp_path_factory.mktemp("serve") / "export")
