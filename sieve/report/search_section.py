"""Values for the page's tables on the search: candidates, generations, other sizes, removals."""

from sieve.report.result import Result, TestPoint
from sieve.report.sentence import drop_interval
from sieve.report.templating import Table
from sieve.report.units import metric_name, metric_value, unit
from sieve.report.values import NOT_MEASURED, count, decimal, duration, percent, points


def candidates(result: Result) -> Table:
    """A row per genome that was scored on the confirmation rows, in order."""
    record = result.search.confirmation
    rows = [
        [
            count(place),
            _kept(candidate.kept_fraction),
            metric_value(result, candidate.accuracy),
            points(candidate.margin),
            "yes" if candidate.feasible else "no",
        ]
        for place, candidate in enumerate(record.tried if record else [], 1)
    ]
    metric = metric_name(result).capitalize()
    heads = ["Tried", "Kept of prunable", metric, f"Margin, {unit(result)}", "Within the tolerance"]
    return Table(heads, rows)


def generations(result: Result) -> Table:
    """A row per generation of a genetic search."""
    rows = [
        [
            count(row.generation),
            _kept(row.best),
            _kept(row.median),
            _spread(row.low, row.high),
            count(row.feasible),
            count(row.evaluated),
            count(row.memo),
            duration(row.seconds),
        ]
        for row in result.search.generations
    ]
    heads = "Generation|Best so far|Median|Spread|Feasible|Evaluated|Known|Time"
    return Table(heads.split("|"), rows)


def _spread(low: float | None, high: float | None) -> str:
    return NOT_MEASURED if low is None or high is None else f"{_kept(low)} to {_kept(high)}"


def _kept(fraction: float | None) -> str:
    """Percent with two decimals, as candidates may differ by less than 0.1 %."""
    return NOT_MEASURED if fraction is None else f"{decimal(100 * fraction, 2)} %"


def other_sizes(result: Result) -> Table:
    """Metric and drop on the test split at kept fractions that the search did not choose."""
    rows = [[percent(point.kept_fraction), *_measured(result, point)] for point in result.curve]
    return Table(
        ["Kept of prunable", metric_name(result).capitalize(), "Drop", "95 % interval"], rows
    )


def without_bottlenecks(result: Result) -> Table:
    """The dense model on the test split, without the matrices that need the most or the least."""
    removals = {"most": result.contrast.bottlenecks, "least": result.contrast.others}
    rows = [
        [
            f"Dense, without those that need {need}",
            count(point.matrices),
            percent(point.removed),
            *_measured(result, point),
        ]
        for need, point in removals.items()
        if point
    ]
    heads = ["Model", "Matrices removed", "Parameters removed", metric_name(result).capitalize()]
    return Table([*heads, "Drop", "95 % interval"], rows)


def _measured(result: Result, point: TestPoint) -> list[str]:
    accuracy = metric_value(result, point.accuracy)
    return [accuracy, points(point.drop.point), drop_interval(point.drop)]
