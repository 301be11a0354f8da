"""What a result says of sizes that nobody chose, and of a model without its bottlenecks.

Both were measured on the test rows after the search was over; a result without them has neither.
"""

from collections.abc import Mapping
from typing import Any

from sieve.report import html
from sieve.report.html import text
from sieve.report.sentence import drop_interval
from sieve.report.units import metric_name, metric_value
from sieve.report.values import count, look, percent, points

SIDES = {
    "bottlenecks": "without those that need most",
    "others": "without those that need least",
}


def other_sizes(result: Mapping[str, Any]) -> str:
    """Accuracy and drop on the test split by kept fraction, the largest first."""
    rows = [
        [percent(look(point, "kept_fraction")), *_measured(result, point)]
        for point in look(result, "curve") or []
    ]
    if not rows:
        return ""
    caption = "On the test split, before any refit or training; nothing was chosen by it"
    heads = ["Kept of prunable", metric_name(result).capitalize(), "Drop", "95 % interval"]
    cells = [[text(cell) for cell in row] for row in rows]
    return html.table(heads, cells, caption)


def without_bottlenecks(result: Mapping[str, Any]) -> str:
    """What the dense model is worth without some matrices, the neediest or the least needy."""
    rows = [
        [
            f"Dense, {label}", count(look(part, "matrices")), percent(look(part, "removed")),
            *_measured(result, part),
        ]
        for side, label in SIDES.items()
        if (part := look(result, f"contrast.{side}"))
    ]  # fmt: skip
    if not rows:
        return ""
    heads = ["Model", "Matrices gone", "Parameters gone", metric_name(result).capitalize(), "Drop",
             "95 % interval"]  # fmt: skip
    caption = "On the test split: what matrices are worth together, whose needs were found alone"
    return html.table(heads, [[text(cell) for cell in row] for row in rows], caption)


def _measured(result: Mapping[str, Any], point: Mapping[str, Any]) -> list[str]:
    """Metric, drop and its interval, as words."""
    known = {**result, "drop": look(point, "drop")}
    return [
        metric_value(result, look(point, "accuracy")),
        points(look(point, "drop.point")),
        drop_interval(known) or "",
    ]
