"""A result's metric in words: a share, lost in points; a perplexity, risen in percent."""

from collections.abc import Mapping
from typing import Any

from sieve.report.values import NOT_MEASURED, decimal, look, number, percent, points


def is_relative(result: Mapping[str, Any]) -> bool:
    """Whether the metric is the smaller the better, and what is lost a fraction of it."""
    return look(result, "relative") is True


def metric_name(result: Mapping[str, Any]) -> str:
    """What the metric is called, in words."""
    return str(look(result, "metric") or "accuracy").replace("_", " ")


def metric_value(result: Mapping[str, Any], value: Any) -> str:
    """A value of the metric: "81.2 %", or "23.41" for a perplexity."""
    found = number(value)
    if found is None or not is_relative(result):
        return percent(value)
    return f"{found:.3g}" if abs(found) >= 1e6 else decimal(found, 2 if abs(found) < 1000 else 0)


def lost(result: Mapping[str, Any], value: Any) -> str:
    """What was lost, with its unit: "1.0 point", "1.6 points", or "1.6 %" of a perplexity."""
    text = points(value)
    if text == NOT_MEASURED:
        return text
    if is_relative(result):
        return f"{text} %"
    return f"{text} point" if text == "1.0" else f"{text} points"


def unit(result: Mapping[str, Any]) -> str:
    """The unit of what was lost."""
    return "%" if is_relative(result) else "points"


def word(result: Mapping[str, Any], gained: bool = False) -> str:
    """What a loss, or a gain, of the metric is called."""
    if is_relative(result):
        return "fall" if gained else "rise"
    return "gain" if gained else "drop"


def scale(result: Mapping[str, Any]) -> float:
    """What a value of the metric is multiplied by on an axis."""
    return 1.0 if is_relative(result) else 100.0


def axis(result: Mapping[str, Any]) -> str:
    """The unit of the metric on an axis, behind a comma."""
    return "" if is_relative(result) else ", %"


def limit(result: Mapping[str, Any], baseline: float, tolerance: float) -> float:
    """The worst value that is within the tolerance of the dense model's."""
    return baseline * (1 + tolerance) if is_relative(result) else baseline - tolerance
