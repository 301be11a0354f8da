"""The documentation site, built once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The figures are drawn from few rows.
BUILD = """
from sieve.docs import subject
subject.CALIBRATED, subject.SCORED = 40, 30
from mkdocs.__main__ import cli
cli()
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site; skips if a package that builds it is missing."""
    for name in ("mkdocs", "material", "mkdocstrings", "matplotlib"):
        pytest.importorskip(name, reason=f"{name} is missing; pip install 'sieve-llm[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "error::UserWarning", "-c", BUILD, "build", "--strict"]
    command += ["--config-file", str(ROOT / "sieve/docs/mkdocs.yml"), "--site-dir", str(folder)]
    paths = [str(ROOT), str(ROOT / "plugins/hydra_genetic_sweeper"), os.environ.get("PYTHONPATH")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "NO_MKDOCS_2_WARNING": "1",
        "HF_HUB_OFFLINE": "1",
    }
    build = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert build.returncode == 0, build.stdout + build.stderr
    assert "WARNING" not in build.stdout + build.stderr
    return folder
