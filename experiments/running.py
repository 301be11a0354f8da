"""A whole run of Sieve in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SHARED = Path(os.environ.get("SIEVE_SHARED", "../shared"))


def finished(task: str, cache: Path, *overrides: str) -> dict[str, Any]:
    """What `result.json` of a run says.

    task: its name and its model, such as "trec/reader-6m"; "embedded" is Sieve's own. Speed is not
    measured and nothing exported unless the overrides ask for it, and ranks are of any size, not
    those that hardware likes. RuntimeError where it fails.
    """
    name, model = task.split("/")
    where = ["model=embedded"]
    if model != "embedded":
        where = [
            f"model.path={SHARED / 'models' / model}",
            f"task.data_dir={SHARED / 'data' / name}",
        ]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "sieve.run",
            f"+task={name}",
            *where,
            "logger.wandb=false",
            "speed.enabled=false",
            "export=none",
            "projection.rank_multiple=1",
            f"paths.cache_dir={cache.absolute()}",
            f"hydra.run.dir={folder}/result",
            f"hydra.sweep.dir={folder}",
            *overrides,
        ]
        done = subprocess.run(command, text=True, capture_output=True, check=False)
        path = Path(folder) / "result" / "result.json"
        if done.returncode or not path.exists():
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
        return json.loads(path.read_text())
