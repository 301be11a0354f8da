"""Run Sieve in its own process."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SHARED = Path(os.environ.get("SIEVE_SHARED", "../shared"))


def finished(task: str, cache: Path, *overrides: str, source: Path | None = None) -> dict[str, Any]:
    """Run Sieve and return `result.json`.

    Speed is not measured, nothing is exported, ranks are not rounded, and genomes are chosen by the
    point estimate, unless overrides say so.
    Raises RuntimeError if the run fails.

    Args:
        task: task and model, such as "trec/reader-6m"; the model "embedded" comes with Sieve.
        source: a checkout of Sieve to run; None runs this one.
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
            *([] if source else ["confidence=null"]),  # An earlier checkout may not know it.
            f"paths.cache_dir={cache.absolute()}",
            f"hydra.run.dir={folder}/result",
            f"hydra.sweep.dir={folder}",
            *overrides,
        ]
        environment = dict(os.environ)
        if source is not None:
            plugin = source.absolute() / "plugins" / "hydra_genetic_sweeper"
            environment["PYTHONPATH"] = f"{source.absolute()}{os.pathsep}{plugin}"
        done = subprocess.run(
            command, text=True, capture_output=True, check=False, cwd=source, env=environment
        )
        path = Path(folder) / "result" / "result.json"
        if done.returncode or not path.exists():
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
        return json.loads(path.read_text())
