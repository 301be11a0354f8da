"""What the page's script knows of each run: numbers to draw, and texts that are written here.

Units and signs are written in one place, `sieve.report.values`; the script only subtracts.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sieve.report.dashboard import columns as cells
from sieve.report.dashboard.gather import Run
from sieve.report.dashboard.levels import kept_by_layout
from sieve.report.dashboard.settings import varying_settings
from sieve.report.sentence import drop_interval, verdict
from sieve.report.units import is_relative, metric_name, metric_value, unit
from sieve.report.values import (
    NOT_MEASURED,
    count,
    duration,
    look,
    measure,
    memory,
    percent,
    points,
    size,
    times,
)

# What a fact's difference is: points of a share, a number of the metric itself, or a ratio.
POINTS, PLAIN, RATIO = "points", "plain", "ratio"


def records(runs: Sequence[Run], out: Path) -> dict[str, Any]:
    """All that the script needs, for a page that is written to `out`: layouts and runs."""
    layouts, kept = kept_by_layout(runs)
    settings, names = varying_settings(runs), folder_names(runs)
    several = _several_metrics(runs)
    return {
        "layouts": layouts,
        "runs": [
            _record(run, out)
            | {"folder": name, "series": series(run, several), "settings": found}
            | {"layout": layout, "levels": levels}
            for run, name, found, (layout, levels) in zip(runs, names, settings, kept, strict=True)
        ],
    }


def folder_names(runs: Sequence[Run]) -> list[str]:
    """Each run's folder below the one that holds them all; the last part of it for a lone run."""
    folders = [os.path.abspath(run.folder) for run in runs]
    common = os.path.commonpath(folders) if len(set(folders)) > 1 else os.path.dirname(folders[0])
    return [Path(os.path.relpath(folder, common)).as_posix() for folder in folders]


def link(path: Path | None, out: Path) -> str | None:
    """A file's address as seen from the page's folder, which holds when both are moved at once."""
    if path is None:
        return None
    try:
        relative = os.path.relpath(os.path.abspath(path), os.path.abspath(out.parent))
    except ValueError:  # another drive
        return path.absolute().as_uri()
    return quote(Path(relative).as_posix())


def series(run: Run, several: set[str]) -> str:
    """The task, with its metric where runs of the task have several, as these do not compare."""
    task = str(look(run.result, "task"))
    return f"{task} ({metric_name(run.result)})" if task in several else task


def _several_metrics(runs: Sequence[Run]) -> set[str]:
    pairs = {(str(look(run.result, "task")), metric_name(run.result)) for run in runs}
    return {task for task, count in Counter(task for task, _ in pairs).items() if count > 1}


def _record(run: Run, out: Path) -> dict[str, Any]:
    result = run.result
    found = verdict(result)
    return {
        "task": str(look(result, "task")),
        "model": cells.model(run),
        "projection": cells.projection(run) or NOT_MEASURED,
        "search": cells.method(run) or NOT_MEASURED,
        "date": cells.date(run),
        "href": link(run.report, out),
        "metric": metric_name(result),
        "relative": is_relative(result),
        "kept": _rounded(measure(result, "kept_fraction.prunable")),
        "kept_model": _rounded(measure(result, "kept_fraction.model")),
        "dense": _rounded(measure(result, "baseline.accuracy")),
        "pruned": _rounded(measure(result, "pruned.accuracy")),
        "drop": _rounded(measure(result, "drop.point")),
        "low": _rounded(measure(result, "drop.low")),
        "high": _rounded(measure(result, "drop.high")),
        "tolerance": _rounded(measure(result, "tolerance")),
        "verdict": found.kind,
        "verdict_text": cells.VERDICTS[found.kind][1],
        "facts": facts(run),
        "text": {
            "kept": percent(look(result, "kept_fraction.prunable")),
            "scores": cells.scores(run),
            "drop": _drop(run),
        },
    }


def facts(run: Run) -> list[list[Any]]:
    """What a comparison shows: name, number, its text, and what a difference of two of them is."""
    result, metric = run.result, metric_name(run.result)
    score = PLAIN if is_relative(result) else POINTS
    lines = [
        (f"{metric.capitalize()}, dense", "baseline.accuracy", _metric_text(result), score),
        (f"{metric.capitalize()}, pruned", "pruned.accuracy", _metric_text(result), score),
        ("Drop on test", "drop.point", lambda value: _drop(run), POINTS),
        ("Tolerance", "tolerance", lambda value: f"{points(value)} {unit(result)}", POINTS),
        ("Test rows", "examples", count, RATIO),
        ("Kept of prunable", "kept_fraction.prunable", percent, POINTS),
        ("Kept of model", "kept_fraction.model", percent, POINTS),
        ("Parameters kept", "parameters.model_kept", count, RATIO),
        ("On disk", "bytes.pruned", size, RATIO),
        ("On disk, dense", "bytes.dense", size, RATIO),
        ("Prefill, over dense", "speed.prefill_ratio", times, RATIO),
        ("Decode, over dense", "speed.decode_ratio", times, RATIO),
        ("Peak memory of the run", "memory.peak_mib", memory, RATIO),
        ("Genomes evaluated", "search.evaluations", count, RATIO),
    ]
    found = [[name, measure(result, path), written, kind] for name, path, written, kind in lines]
    found.append(["Time of all stages", cells.seconds(run), duration, RATIO])
    return [
        [name, _rounded(value), NOT_MEASURED if value is None else written(value), kind]
        for name, value, written, kind in found
    ]


def _metric_text(result: Mapping[str, Any]) -> Any:
    return lambda value: metric_value(result, value)


def _drop(run: Run) -> str:
    bounds = drop_interval(run.result)
    return f"{cells.drop(run)} ({bounds})" if bounds else cells.drop(run)


def _rounded(value: float | None) -> float | None:
    """Six figures: more than is shown, less than would weigh."""
    return None if value is None else float(f"{value:.6g}")
