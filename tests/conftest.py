"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import chromium

# No test may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parent.parent

# Files of few but long tests. They start first, so that none is left for one core at the end.
LONG = (
    "test_run_recovered.py",
    "test_killed.py",
    "test_run.py",
    "test_run_breadth.py",
    "test_run_vocabulary.py",
    "test_ranks.py",
    "test_genetic.py",
    "test_wandb_dashboards.py",
    "test_precision.py",
    "test_genetic_launchers.py",
    "test_fsdp.py",
    "test_jobs_table.py",
    "test_embedded.py",
    "test_harness.py",
    "test_docs_site.py",
    "test_onnx.py",
    "test_onnx_writing.py",
    "test_self_check.py",
    "test_dtypes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; within a file the order stays."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; skips if it or playwright is not installed."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def shared() -> Path:
    """The folder of real data and models; tests that ask for it skip where it is absent."""
    folder = Path(os.environ.get("SIEVE_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set SIEVE_SHARED")
    return folder
