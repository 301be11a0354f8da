"""What the page's script draws besides the runs: titles, horizontal lines and the style."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from sieve.report.building import Number
from sieve.report.dashboard.gather import Run
from sieve.report.result import Result
from sieve.report.style import ACCENT, WARNING, label, plain_layout, sequential_scale
from sieve.report.units import axis, limit, metric_name, scale, unit, word


def style() -> dict[str, object]:
    """A template of layouts, and the color scales of the level maps."""
    return {
        "template": {"layout": plain_layout().to_plotly_json()},
        "warning": WARNING,
        "kept": sequential_scale(),
        "change": [[0, WARNING], [0.5, "#ffffff"], [1, ACCENT]],
    }


def series(run: Run) -> str:
    """The name that runs share if their metrics compare: task and metric."""
    return f"{run.result.task}, {metric_name(run.result)}"


def fronts(runs: Sequence[Run]) -> dict[str, dict[str, object]]:
    """For each series and each measure (`metric`, `drop`) the title and lines of its plot."""
    members = defaultdict[str, list[Result]](list)
    for run in runs:
        members[series(run)].append(run.result)
    return {name: _measures(results) for name, results in members.items()}


def _measures(results: Sequence[Result]) -> dict[str, object]:
    first, factor = results[0], scale(results[0])
    dense = _common(result.baseline.accuracy for result in results)
    tolerance = _common(result.tolerance for result in results)
    worst = None if dense is None or tolerance is None else limit(first, dense, tolerance)
    return {
        "metric": {
            "title": label(metric_name(first)).capitalize() + axis(first),
            "lines": {"dense": _scaled(dense, factor), "tolerance": _scaled(worst, factor)},
            "larger_is_better": not first.relative,
        },
        "drop": {
            "title": f"{word(first).capitalize()}, {unit(first)}",
            "lines": {"dense": 0.0, "tolerance": _scaled(tolerance, 100)},
            "larger_is_better": False,
        },
    }


def _scaled(value: Number, factor: float) -> Number:
    return None if value is None else factor * value


def _common(values: Iterable[Number]) -> Number:
    """The value that all runs share, or None."""
    distinct = {None if value is None else round(value, 6) for value in values}
    return distinct.pop() if len(distinct) == 1 else None
