"""Free memory respects the limit of a container, and counts file pages that can be dropped."""

import math
from pathlib import Path

import pytest

from sieve.runtime.memory import LIMITS, _control_group_bytes


@pytest.mark.parametrize(
    ("files", "page_key"), [(LIMITS[0], "inactive_file"), (LIMITS[1], "total_inactive_file")]
)
def test_a_container_leaves_its_limit_without_what_it_uses(
    files: tuple[str, str], page_key: str, tmp_path: Path
) -> None:
    folder = (tmp_path / files[0]).parent
    folder.mkdir(exist_ok=True)
    for name, number in zip(files, (1000, 900), strict=True):
        (tmp_path / name).write_text(f"{number}\n")
    (folder / "memory.stat").write_text(f"anon 200\n{page_key} 600\n")
    assert _control_group_bytes(tmp_path) == 1000 - 900 + 600


def test_without_a_limit_a_container_leaves_everything(tmp_path: Path) -> None:
    assert _control_group_bytes(tmp_path) == math.inf
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900\n")
    assert _control_group_bytes(tmp_path) == math.inf
