"""The table at the end of a multirun: each job with its settings, its result and its folder."""

from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sieve.report.dashboard.gather import RESULT, read_result
from sieve.report.result import Result
from sieve.report.sentence import figure
from sieve.report.units import metric_name, metric_value
from sieve.report.values import NOT_MEASURED
from sieve.report.verdict import verdict
from sieve.runtime.jobs import failure_of

STYLES = {"certified": "green", "likely": "yellow", "missed": "bold red", "unknown": "dim"}
OVERRIDES = Path(".hydra") / "overrides.yaml"


@dataclass(frozen=True)
class Job:
    """A job: its folder, its command line, and its result or why there is none."""

    folder: Path
    overrides: tuple[str, ...]
    result: Result | None
    failure: str | None


def read_jobs(sweep: Path) -> list[Job]:
    """The jobs of a multirun in order, without the parts of a genetic search."""
    folders = [path.parents[1] for path in sweep.glob(f"*/{OVERRIDES}")]
    jobs = [_read(folder) for folder in sorted(folders, key=_order)]
    return [j for j in jobs if not any(w.lstrip("+").startswith("sweep.") for w in j.overrides)]


def _order(folder: Path) -> tuple[int, int, str]:
    name = folder.name
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def _read(folder: Path) -> Job:
    overrides = yaml.safe_load((folder / OVERRIDES).read_text(encoding="utf-8")) or []
    failure, path = failure_of(folder), folder / RESULT
    result = None
    if failure is None and path.is_file():
        try:
            result = read_result(path)
        except (ValueError, OSError) as error:
            failure = str(error)
    return Job(folder, tuple(map(str, overrides)), result, failure)


def jobs_table(sweep: Path) -> RenderableType | None:
    """The table of a multirun; None if no job has a result and none failed."""
    jobs = read_jobs(sweep)
    if not any(job.result or job.failure for job in jobs):
        return None
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    names = {metric_name(job.result) for job in jobs if job.result}
    table = Table(box=None, padding=(0, 2, 0, 1), header_style="dim")
    table.add_column("job", no_wrap=True)
    table.add_column("settings", overflow="fold")
    table.add_column("kept", justify="right", no_wrap=True)
    table.add_column(names.pop() if len(names) == 1 else "score", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for job in jobs:
        own = [word for word in job.overrides if word not in shared]
        table.add_row(Text(job.folder.name), Text("\n".join(own)), *_cells(job))
    failures = [
        Padding(Text(f"Job {job.folder.name} failed: {job.failure}", style="bold red"), (0, 1))
        for job in jobs
        if job.failure
    ]
    return Group("", table, *failures, Text(f"\n The job's number is its folder in {sweep}"))


def _cells(job: Job) -> tuple[Text, Text, Text]:
    """Kept fraction, scores and badge."""
    if job.result is None:
        badge = Text("failed", "bold red") if job.failure else Text("no result", "dim")
        return Text(NOT_MEASURED), Text(NOT_MEASURED), badge
    judged = verdict(job.result)
    dense, pruned = (
        metric_value(job.result, model.accuracy)
        for model in (job.result.baseline, job.result.pruned)
    )
    kept, scores = Text(figure(job.result).value), Text(f"{dense} → {pruned}")
    return kept, scores, Text(judged.badge, STYLES[judged.kind])
