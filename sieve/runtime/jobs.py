"""How the jobs of a Hydra multirun ended: a callback of Hydra that every job leaves a file for.

A job may run in another process or on another machine, so its end is a file in its folder.
"""

import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode

ENDED = "job.json"  # how a job ended
_sweeps: list[Path] = []  # the folders of the multiruns of this process


class JobEnds(Callback):
    """Remembers the folder of a multirun, and writes how each of its jobs ended."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Remember the folder."""
        _sweeps.append(Path(config.hydra.sweep.dir))

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        """Remove what an earlier job wrote in this folder."""
        if _is_sweep(config):
            _ended(config).unlink(missing_ok=True)

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        """Write whether the job failed, and why."""
        if _is_sweep(config):
            from sieve.runtime.artifacts import write_json_atomic

            value = getattr(job_return, "_return_value", None)
            failure = str(value) or type(value).__name__ if isinstance(value, Exception) else None
            write_json_atomic(_ended(config), {"failure": failure})


def take_sweep() -> Path | None:
    """The folder of this process's multirun, once; None if there was none."""
    return _sweeps.pop() if _sweeps else None


def failure_of(job: Path) -> str | None:
    """Why the job in a folder failed; None if it did not."""
    path = job / ENDED
    if not path.is_file():
        return "it did not finish."
    failure: str | None = json.loads(path.read_text(encoding="utf-8"))["failure"]
    return failure


def _is_sweep(config: Any) -> bool:
    return config.hydra.mode == RunMode.MULTIRUN


def _ended(config: Any) -> Path:
    return Path(config.hydra.runtime.output_dir) / ENDED
