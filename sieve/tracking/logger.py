"""The logger of a run: metrics.jsonl, and one Weights & Biases run.

It is a Lightning logger, so stages and Lightning modules log to the same place. W&B is online with
a key, offline without, and not imported with `logger=none`. Only rank 0 logs.
"""

import json
import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from sieve.config import LoggerConfig
from sieve.runtime.artifacts import append_line
from sieve.runtime.progress import is_rank_zero

log = logging.getLogger(__name__)


class RunLogger(Logger):
    """Appends metrics to `<run_dir>/metrics.jsonl` and mirrors them to W&B.

    Args:
        settings: plain containers, logged as the configuration of the W&B run.
        title: name of the W&B run.
        tags: of the W&B run.
        job_type: of the W&B run.

    Raises:
        RuntimeError: W&B is enabled and cannot start.
    """

    def __init__(
        self,
        run_dir: Path,
        config: LoggerConfig,
        settings: Mapping[str, object],
        title: str,
        tags: Sequence[str] = (),
        job_type: str | None = None,
    ) -> None:
        super().__init__()
        self.run_dir = Path(run_dir)
        self._title, self._tags, self._job_type = title, tuple(tags), job_type
        self._uploads = config.artifact
        self._wandb: Any = None
        if not is_rank_zero():
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if config.wandb:
            self._wandb = self._start(config, settings)
        self.path.touch()

    @property
    def path(self) -> Path:
        """The file of metrics, one JSON object a line."""
        return self.run_dir / "metrics.jsonl"

    @property
    def name(self) -> str:
        """The title of the run."""
        return self._title

    @property
    def version(self) -> str:
        """The name of the run directory."""
        return self.run_dir.name

    @rank_zero_only
    def log_hyperparams(self, params: object, *_: object, **__: object) -> None:
        """Do nothing: settings are logged once, at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line with keys `stage/name`; values that are not finite become null."""
        clean = self._write(metrics, step)
        if self._wandb is not None:
            self._wandb.log({key: value for key, value in clean.items() if value is not None})

    @rank_zero_only
    def log_series(self, name: str, rows: Sequence[Mapping[str, object]], step: str) -> None:
        """Log rows of numbers as metrics `name/key`, drawn by W&B against the column `step`.

        In metrics.jsonl the step is that column if it holds integers, else the index of the row.
        """
        if self._wandb is not None and rows:
            self._wandb.define_metric(f"{name}/{step}", hidden=True)
            self._wandb.define_metric(f"{name}/*", step_metric=f"{name}/{step}")
        for index, row in enumerate(rows):
            value = row[step]
            metrics: Any = {f"{name}/{key}": value for key, value in row.items()}
            self.log_metrics(metrics, value if isinstance(value, int) else index)

    @rank_zero_only
    def log_summary(self, summary: Mapping[str, object]) -> None:
        """Set the summary of the W&B run."""
        if self._wandb is not None:
            self._wandb.summary.update(dict(summary))

    @rank_zero_only
    def log_figures(self, figures: Mapping[str, object]) -> None:
        """Log Plotly figures by name to W&B."""
        if self._wandb is not None:
            self._wandb.log({f"figures/{name}": figure for name, figure in figures.items()})

    @rank_zero_only
    def log_table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Log a table to W&B, and each row as a line of metrics.jsonl with keys `name/column`."""
        for index, row in enumerate(rows):
            self._write({f"{name}/{key}": value for key, value in row.items()}, index)
        if self._wandb is not None and rows:
            import wandb

            columns: list[str | int] = list(dict.fromkeys(key for row in rows for key in row))
            data: list[Any] = [[_number(row.get(str(c))) for c in columns] for row in rows]
            table = wandb.Table(columns=columns, data=data, allow_mixed_types=True)
            self._wandb.log({f"tables/{name}": table})

    @rank_zero_only
    def log_artifact(self, name: str, folder: Path, *files: Path) -> None:
        """Upload a folder and files as an artifact, if `logger.artifact` is true.

        The files of the folder are not copied; offline, keep them until `wandb sync`.
        """
        if self._wandb is None or not self._uploads:
            return
        import wandb

        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), "model")
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            inside = file.relative_to(folder.parent).as_posix()
            artifact.add_file(str(file), name=inside, policy="immutable")
        for file in files:
            artifact.add_file(str(file))
        self._wandb.log_artifact(artifact)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Do nothing: Lightning calls this after every loop, and the run ends with `close`."""

    @rank_zero_only
    def close(self, failed: bool = False) -> None:
        """Finish the W&B run; closing twice is harmless."""
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))
            self._wandb = None

    def _write(self, values: Mapping[str, object], step: int | None) -> dict[str, object]:
        """Append a line to metrics.jsonl; returns the values written."""
        clean = {key: _number(value) for key, value in values.items()}
        line = {"time": round(time.time(), 3)} | ({} if step is None else {"step": step}) | clean
        append_line(self.path, json.dumps(line))
        return clean

    def _start(self, config: LoggerConfig, settings: Mapping[str, object]) -> Any:
        import os

        import wandb

        mode: Any = config.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        try:
            return wandb.init(
                project=config.project,
                entity=config.entity,
                group=config.group,
                name=self._title,
                tags=self._tags,
                job_type=self._job_type,
                dir=str(self.run_dir),
                config=dict(settings),
                mode=mode,
                reinit="finish_previous",
                # The URL of a git remote may contain a token.
                settings=wandb.Settings(silent=True, console="off", disable_git=True),
            )
        except wandb.Error as error:
            raise RuntimeError(
                f"Weights & Biases could not start ({_sentence(error)}); run `wandb login`, or set "
                "logger.mode=offline or logger=none."
            ) from error


def _has_key() -> bool:
    """Whether W&B has a valid key in the environment or the netrc file; warns if it is refused."""
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except wandb.Error as error:
        log.warning(
            "Weights & Biases refused the key (%s), so this run is logged offline; upload it later "
            "with `wandb sync`.",
            _sentence(error),
        )
        return False


def _sentence(error: Exception) -> str:
    return str(error).rstrip(". ")


def _number(value: object) -> object:
    number = value.item() if hasattr(value, "item") else value
    return None if isinstance(number, float) and not math.isfinite(number) else number
