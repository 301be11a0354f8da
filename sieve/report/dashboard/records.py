"""The data of the page's script: for each run the numbers to draw and the texts to show."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from sieve.report.building import Number
from sieve.report.dashboard.columns import VERDICTS, scores
from sieve.report.dashboard.figures import fronts, series, style
from sieve.report.dashboard.gather import Run
from sieve.report.dashboard.settings import varying_settings
from sieve.report.heatmap import kept_by_cell, kind_key, layer_key, scale_end
from sieve.report.result import Matrix, Result
from sieve.report.sentence import drop_interval
from sieve.report.style import label
from sieve.report.units import lost, metric_name, scale, word
from sieve.report.values import NOT_MEASURED, percent, short_name
from sieve.report.verdict import verdict

Record = dict[str, object]


def page_data(runs: Sequence[Run]) -> Record:
    """All data of the script."""
    columns = zip(runs, folder_names(runs), varying_settings(runs), strict=True)
    return {
        "style": style(),
        "fronts": fronts(runs),
        "runs": [
            _record(run, folder) | {"settings": settings} for run, folder, settings in columns
        ],
    }


def folder_names(runs: Sequence[Run]) -> list[str]:
    """The folder of each run, relative to the folder that contains them all."""
    folders = [os.path.abspath(run.folder) for run in runs]
    common = os.path.commonpath(folders) if len(set(folders)) > 1 else os.path.dirname(folders[0])
    return [os.path.relpath(folder, common) for folder in folders]


def link(path: Path | None, out: Path) -> str | None:
    """The address of a file relative to the page's folder, so that both can move together."""
    return None if path is None else quote(os.path.relpath(path, out.parent))


def _record(run: Run, folder: str) -> Record:
    result, (_, symbol, words) = run.result, VERDICTS[verdict(run.result).kind]
    projection, search = (n or NOT_MEASURED for n in (result.projection, result.search.method))
    hover = [
        f"{label(projection)}, {label(search)}",
        label(short_name(result.model)),
        f"{percent(result.kept_fraction.prunable)} of prunable parameters kept",
        f"{label(metric_name(result))} {scores(result)}",
        f"{word(result)} {lost(result, result.drop.point)} ({drop_interval(result.drop) or '–'})",
        words,
        label(folder),
    ]
    return {
        "task": result.task,
        "model": short_name(result.model),
        "projection": projection,
        "search": search,
        "series": series(run),
        "folder": folder,
        "symbol": symbol,
        "at_chance": result.baseline.beats_chance is False,  # its size proves nothing
        "hover": "<br>".join(hover),
        "kept": _rounded(result.kept_fraction.prunable, 100),
        "kept_model": _rounded(result.kept_fraction.model, 100),
        "measures": _measures(result),
        "map": _level_map(result.matrices),
    }


def _measures(result: Result) -> dict[str, list[Number]]:
    """For each measure its value, and how far its 95 % interval extends above and below."""
    drop, dense = result.drop, result.baseline.accuracy
    if drop.point is None or drop.low is None or drop.high is None:
        above, below = 0.0, 0.0
    else:
        above, below = drop.high - drop.point, drop.point - drop.low
    ends = [above, below] if result.relative else [below, above]
    factor = (dense or 0.0) if result.relative else 100
    return {
        "metric": [_rounded(result.pruned.accuracy, scale(result)), *(factor * e for e in ends)],
        "drop": [_rounded(drop.point, 100), 100 * above, 100 * below],
    }


def _level_map(matrices: Sequence[Matrix]) -> Record | None:
    """Kept percents by layer and kind, None if no matrix is known."""
    cells = kept_by_cell(matrices)
    layers = sorted({layer for layer, _ in cells}, key=layer_key)
    kinds = sorted({kind for _, kind in cells}, key=kind_key)
    levels = [[_rounded(cells.get((layer, kind))) for kind in kinds] for layer in layers]
    names = {"layers": [label(layer) for layer in layers], "kinds": [label(kind) for kind in kinds]}
    if not cells:
        return None
    return names | {"levels": levels, "end": scale_end(max(cells.values()))}


def _rounded(value: Number, factor: float = 1) -> Number:
    """Four digits, to keep the page small."""
    return None if value is None else float(f"{factor * value:.4g}")
