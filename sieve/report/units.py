"""The task's metric in words: a share drops by points, a perplexity rises by percent."""

from sieve.report.result import Comparison
from sieve.report.values import NOT_MEASURED, decimal, percent, points


def metric_name(result: Comparison) -> str:
    """The metric's name with spaces for underscores."""
    return (result.metric or "accuracy").replace("_", " ")


def metric_value(result: Comparison, value: float | None) -> str:
    """A value of the metric: "81.2 %", or "23.41" for a perplexity."""
    if value is None or not result.relative:
        return percent(value)
    return f"{value:.3g}" if abs(value) >= 1e6 else decimal(value, 2 if abs(value) < 1000 else 0)


def lost(result: Comparison, value: float | None) -> str:
    """A drop with its unit: "1.0 point", "1.6 points", or "1.6 %" of a perplexity."""
    text = points(value)
    if text == NOT_MEASURED:
        return text
    return f"{text} point" if text == "1.0" and not result.relative else f"{text} {unit(result)}"


def unit(result: Comparison) -> str:
    """The unit of a drop."""
    return "%" if result.relative else "points"


def word(result: Comparison, gained: bool = False) -> str:
    """The noun for a change of the metric for the worse, or for the better if `gained`."""
    if result.relative:
        return "fall" if gained else "rise"
    return "gain" if gained else "drop"


def scale(result: Comparison) -> float:
    """The factor from a value of the metric to its place on an axis."""
    return 1.0 if result.relative else 100.0


def axis(result: Comparison) -> str:
    """The end of an axis title: the metric's unit, if it has one."""
    return "" if result.relative else ", %"


def limit(result: Comparison, baseline: float, tolerance: float) -> float:
    """The worst value of the metric within the tolerance."""
    return baseline * (1 + tolerance) if result.relative else baseline - tolerance
