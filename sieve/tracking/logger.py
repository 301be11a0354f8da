"""What a run logs: metrics.jsonl always, and one Weights & Biases run beside it.

A Lightning logger, so that stages and modules log through one door. W&B is online with a key,
offline without, and left alone with `logger=none`. Rank 0 only.
"""

import json
import logging
import math
import re
import time
from argparse import Namespace
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

    settings: plain containers, logged as the W&B configuration; title, tags and job_type: what
    the run goes by there. Raises RuntimeError when W&B is asked for and cannot start.
    """

    def __init__(
        self,
        run_dir: Path,
        config: LoggerConfig,
        settings: dict[str, Any],
        title: str,
        tags: Sequence[str] = (),
        job_type: str | None = None,
    ) -> None:
        super().__init__()
        self.run_dir = Path(run_dir)
        self._title, self._tags, self._job_type = title, tuple(tags), job_type
        self._keeps = config.artifact
        self._wandb: Any = None
        if not is_rank_zero():
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if config.wandb:
            self._wandb = self._start(config, settings)
        self.path.touch()

    @property
    def path(self) -> Path:
        """Where all is logged, one line for each step."""
        return self.run_dir / "metrics.jsonl"

    @property
    def name(self) -> str:
        """Title of the run."""
        return self._title

    @property
    def version(self) -> str:
        """The run directory's name."""
        return self.run_dir.name

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Settings are logged once, at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line; keys are `stage/name`. Values that are not finite become null."""
        clean = self._write(metrics, step)
        if self._wandb is not None:
            self._wandb.log({key: value for key, value in clean.items() if value is not None})

    @rank_zero_only
    def log_series(self, name: str, rows: Sequence[Mapping[str, Any]], step: str) -> None:
        """Rows of numbers as metrics `name/key` over a step of their own, the key `step` of each.

        W&B draws them against that number, not against the order in which all was logged; in
        metrics.jsonl a fraction is no step, and the row's place stands for it.
        """
        if self._wandb is not None and rows:
            self._wandb.define_metric(f"{name}/{step}", hidden=True)
            self._wandb.define_metric(f"{name}/*", step_metric=f"{name}/{step}")
        for place, row in enumerate(rows):
            at = row[step] if isinstance(row[step], int) else place
            self.log_metrics({f"{name}/{key}": value for key, value in row.items()}, at)

    @rank_zero_only
    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """The run's closing figures, nested."""
        if self._wandb is not None:
            self._wandb.summary.update(dict(summary))

    @rank_zero_only
    def log_figures(self, figures: Mapping[str, Any]) -> None:
        """Plotly figures by name."""
        if self._wandb is not None:
            self._wandb.log({f"figures/{name}": figure for name, figure in figures.items()})

    @rank_zero_only
    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table, and a line of metrics.jsonl for each row; the columns are all keys of the rows.

        Lines have keys `name/column` and the row's place as their step.
        """
        for place, row in enumerate(rows):
            self._write({f"{name}/{key}": value for key, value in row.items()}, place)
        if self._wandb is not None and rows:
            import wandb

            columns: list[str | int] = list(dict.fromkeys(key for row in rows for key in row))
            data: list[Any] = [[_number(row.get(str(c))) for c in columns] for row in rows]
            table = wandb.Table(columns=columns, data=data, allow_mixed_types=True)
            self._wandb.log({f"tables/{name}": table})

    @rank_zero_only
    def log_artifact(self, name: str, folder: Path, *files: Path) -> None:
        """A folder and files beside it as an artifact, where `logger.artifact` asks for it.

        The files of the folder are not copied: offline, they have to stay until `wandb sync`.
        """
        if self._wandb is None or not self._keeps:
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
        """Lightning calls this after every loop; the run closes in `close`."""

    @rank_zero_only
    def close(self, failed: bool = False) -> None:
        """Finish the W&B run."""
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))
            self._wandb = None

    def _write(self, values: Mapping[str, Any], step: int | None) -> dict[str, Any]:
        """Append a line to metrics.jsonl; returns the values as they stand there."""
        clean = {key: _number(value) for key, value in values.items()}
        line = {"time": round(time.time(), 3)} | ({} if step is None else {"step": step}) | clean
        append_line(self.path, json.dumps(line))
        return clean

    def _start(self, config: LoggerConfig, settings: dict[str, Any]) -> Any:
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
                config=settings,
                mode=mode,
                reinit="finish_previous",
                # The address of a git remote may hold a token as its user.
                settings=wandb.Settings(silent=True, console="off", disable_git=True),
            )
        except wandb.Error as error:
            raise RuntimeError(
                f"Weights & Biases could not start ({_sentence(error)}); run `wandb login`, or set "
                "logger.mode=offline or logger=none."
            ) from error


def _has_key() -> bool:
    """Whether W&B finds credentials in the environment or the netrc file, and they are taken.

    A key that is refused, or a server out of reach, must not end a run: one warning instead.
    """
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except wandb.Error as error:
        log.warning(
            "Weights & Biases did not take the key (%s): this run is logged offline; `wandb sync` "
            "sends it later.",
            _sentence(error),
        )
        return False


def _sentence(error: Exception) -> str:
    return str(error).rstrip(". ")


def _number(value: Any) -> Any:
    number = value.item() if hasattr(value, "item") else value
    return None if isinstance(number, float) and not math.isfinite(number) else number
