"""The report's section on how a search went: generations, what was spent, what unseen rows said."""

from collections.abc import Mapping
from typing import Any

from sieve.report import html
from sieve.report.html import text
from sieve.report.result import read
from sieve.report.spent import confirmation, spent
from sieve.report.units import metric_name, metric_value, unit
from sieve.report.values import (
    NOT_MEASURED,
    count,
    decimal,
    duration,
    look,
    number,
    points,
)

Result = Mapping[str, Any]


def search(result: Result, plot: str = "") -> str:
    """The whole section around the plot of the generations; "" where there is nothing but a line
    of genomes, which the curve shows."""
    tried = look(result, "search.confirmation.tried")
    if not (look(result, "search.generations") or tried):
        return ""
    sentences = [words for words in (spent(read(result)), confirmation(read(result))) if words]
    return html.section(
        "generations",
        "How the search went",
        *(html.paragraph(words, css="said") for words in sentences),
        plot,
        _candidates(result),
        _generations(result),
    )


def _candidates(result: Result) -> str:
    """A row per genome that was tried on unseen rows, in order."""
    rows = [
        [
            count(place),
            _kept(row.get("kept_fraction")),
            text(metric_value(result, row.get("accuracy"))),
            points(row.get("margin")),
            "yes" if row.get("feasible") else "no",
        ]
        for place, row in enumerate(look(result, "search.confirmation.tried") or [], 1)
    ]
    if not rows:
        return ""
    metric = metric_name(result).capitalize()
    heads = ["Tried", "Kept of prunable", metric, f"Margin, {unit(result)}", "Within the tolerance"]
    return html.table(heads, rows, "Candidates on rows that the search has not seen, in order")


def _generations(result: Result) -> str:
    """A row per generation, folded away."""
    rows = [
        [
            count(row.get("generation")),
            _kept(row.get("best")),
            _kept(row.get("median")),
            _spread(row),
            count(row.get("feasible")),
            count(row.get("evaluated")),
            count(row.get("memo")),
            text(duration(row.get("seconds"))),
        ]
        for row in look(result, "search.generations") or []
    ]
    if not rows:
        return ""
    heads = ["Generation", "Best so far", "Median", "Spread", "Feasible", "Evaluated", "Known",
             "Time"]  # fmt: skip
    caption = (
        "Kept prunable parameters of the genomes of a generation; the spread is that of the middle "
        "80 %. Known: evaluated before"
    )
    table = html.table(heads, rows, caption, css="generations")
    noun = "generation" if len(rows) == 1 else "generations"
    return f"<details><summary>{count(len(rows))} {noun}</summary>\n{table}</details>"


def _spread(row: Mapping[str, Any]) -> str:
    low, high = (number(row.get(key)) for key in ("low", "high"))
    if low is None or high is None:
        return NOT_MEASURED
    return f"{_kept(low)} to {_kept(high)}"


def _kept(fraction: Any) -> str:
    """Percent with two decimals: candidates and generations may differ by less than one."""
    value = number(fraction)
    return NOT_MEASURED if value is None else text(f"{decimal(100 * value, 2)} %")
