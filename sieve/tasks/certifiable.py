"""What a number of rows can certify, from the run's own test of a drop, before anything is scored.

How small a drop can be certified depends on how many rows the two models answer differently. Where
no row differs, the bound is smallest: no pruned model can be certified for less.
"""

import math
from bisect import bisect_left

from sieve.tasks.drop_test import score_test, upper_of_counts
from sieve.tasks.metrics import Metric

DIFFERING = 0.05  # share of rows that the sentence assumes to differ
MOST_ROWS = 10**12


def smallest_tolerance(rows: int, confidence: float, differing: float = DIFFERING) -> float:
    """The smallest tolerance that rows certify for a model that loses as many rows as it gains.

    Args:
        rows: number of rows, right or wrong.
        differing: share of the rows that only one of the two models answers correctly.
    """
    each = round(differing * rows / 2)
    return upper_of_counts(each, each, rows, confidence)


def rows_needed(tolerance: float, confidence: float, differing: float = DIFFERING) -> int:
    """The rows that certify a tolerance above 0; arguments as for `smallest_tolerance`."""

    def certified(rows: int) -> bool:
        each = round(differing * rows / 2)
        return score_test(each, each, rows, tolerance) <= 1 - confidence

    return 1 + bisect_left(range(1, MOST_ROWS), True, key=certified)


def forecast(
    metric: Metric,
    rows: int,
    tolerance: float,
    confidence: float | None,
    share: float | None = 0.0,
    tests: int = 1,
) -> str:
    """One sentence on what selection rows can certify; "" if that cannot be computed beforehand.

    Args:
        rows: of the selection split.
        confidence: None certifies nothing.
        share: of these rows that confirm the winners of a search, and certify alone; 0: all do;
            None: the search fits all of them, so none does.
        tests: choices that the rows test, and that keep the confidence together.

    Raises:
        ValueError: not even a model that differs on no row can be certified.
    """
    if confidence is None or metric.relative or metric.best <= 0:
        return ""
    if share is None:
        return (
            f"The search fits all {rows:,} selection rows, so none of them can certify its choice; "
            "set search.confirmation=0.4, which keeps some of them back."
        )
    certifying = max(1, round(share * rows)) if share else rows
    named = f"{certifying:,} of {rows:,} selection rows" if share else f"{rows:,} selection rows"
    sure, each = f"at {100 * confidence:g} % confidence", 1 - (1 - confidence) / tests
    least = metric.best * smallest_tolerance(certifying, each, 0)
    if least > tolerance:
        fewest = math.inf
        if tolerance > 0:
            fewest = math.ceil(rows_needed(tolerance / metric.best, each, 0) / (share or 1))
        raise ValueError(_refusal(fewest, named, tolerance, confidence, share, least))
    if metric.agreement:
        most = _most_changes(certifying, tolerance, each)
        return (
            f"With {named}, tolerance={tolerance:g} can be certified {sure} for a pruned model "
            f"that answers at most {most:,} of them differently from the dense model."
        )
    if not metric.right_or_wrong:
        return (
            f"With {named}, the smallest tolerance that can be certified {sure} is "
            f"{_points(least)}, for a pruned model that differs from the dense model on no row; "
            "rows that differ raise it."
        )
    bound = smallest_tolerance(certifying, each)
    needed = _rounded_up(rows_needed(tolerance, each) / (share or 1))
    return (
        f"With {named} and a pruned model that differs from the dense model on "
        f"{100 * DIFFERING:g} % of them, the smallest tolerance that can be certified {sure} is "
        + _points(bound)
        + (
            f", which is within tolerance={tolerance:g}."
            if bound <= tolerance
            else f"; for {_points(tolerance)} about {needed:,} selection rows are needed."
        )
    )


def _most_changes(rows: int, tolerance: float, confidence: float) -> int:
    """The most rows that may change; where answers are compared, rows can only become worse."""
    counts = range(1, rows + 1)
    return bisect_left(
        counts, True, key=lambda n: upper_of_counts(n, 0, rows, confidence) > tolerance
    )


def _refusal(
    fewest: float, named: str, tolerance: float, confidence: float, share: float, least: float
) -> str:
    """Why no pruned model can be certified, and what to do; `fewest` rows could certify one."""
    used = f" (search.confirmation={share:g})" if share else ""
    enough, provide = "no number of rows is enough", ""
    if math.isfinite(fewest):
        enough = f"that takes at least {fewest:,} selection rows"
        provide = "provide more rows, "
    return (
        f"{named}{used} are too few to promise with {100 * confidence:g} % confidence a drop of "
        f"at most {_points(tolerance)} on new rows (tolerance={tolerance:g}): {enough}; set "
        f"confidence=null to run without this promise, {provide}or set "
        f"tolerance={math.ceil(1000 * least) / 1000:g} or more."
    )


def _points(value: float) -> str:
    """A tolerance in points, with one decimal, rounded up: .0305 is "3.1 points"."""
    tenths = math.ceil(round(1000 * value, 6)) / 10
    return f"{tenths:.1f} point{'s' * (tenths != 1)}"


def _rounded_up(rows: float) -> int:
    """Rows rounded up to two digits: 1,457 is 1,500."""
    unit = 10 ** max(0, math.floor(math.log10(rows)) - 1)
    return math.ceil(rows / unit) * unit
