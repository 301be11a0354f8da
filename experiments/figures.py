"""Numbers with intervals, and the comparison of new numbers with committed intervals.

A measured number is stored as {"value", "low", "high"}. The interval covers what another machine or
another sample of rows may give.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

Number = dict[str, float]
RESAMPLES = 10_000
LEGEND = "Sizes are *likely* only (`confidence=null`); † exceeds the tolerance on test rows."
TIMES = 3.0  # timings differ between machines and with their load


def number(value: float, low: float, high: float, digits: int = 4) -> Number:
    """A measured number. Its interval is widened to contain it."""
    ends = min(low, value), max(high, value)
    return {
        "value": round(float(value), digits),
        "low": round(float(ends[0]), digits),
        "high": round(float(ends[1]), digits),
    }


def share(value: float, rows: int) -> Number:
    """A fraction of rows, with its 95 % Wilson interval."""
    found = stats.binomtest(round(value * rows), rows).proportion_ci(0.95, method="wilson")
    return number(value, found.low, found.high)


def drop(record: Mapping[str, float]) -> Number:
    """The drop of a result, with its paired interval."""
    return number(record["point"], record["low"] or 0.0, record["high"] or 0.0)


def timed(seconds: float) -> Number:
    """A time. Its interval is wide, because only the order of magnitude is comparable."""
    return number(seconds, seconds / TIMES, seconds * TIMES, digits=2)


def mean(numbers: Sequence[Number], digits: int = 4) -> Number:
    """The mean of independent numbers; their half-intervals are added in quadrature."""
    value = float(np.mean([n["value"] for n in numbers]))
    half = [
        float(np.sqrt(sum((n[end] - n["value"]) ** 2 for n in numbers))) / len(numbers)
        for end in ("low", "high")
    ]
    return number(value, value - half[0], value + half[1], digits)


def geometric(ratios: Sequence[float]) -> Number:
    """The geometric mean of ratios, with a 95 % interval bootstrapped over them."""
    logs = np.log(ratios)
    drawn = np.random.default_rng(0).integers(len(logs), size=(RESAMPLES, len(logs)))
    low, high = np.percentile(np.exp(logs[drawn].mean(1)), [2.5, 97.5])
    return number(float(np.exp(logs.mean())), low, high, digits=2)


def pooled(numbers: Sequence[Number], digits: int = 4) -> Number:
    """The mean of numbers on the same rows, whose intervals are averaged."""
    ends = {end: float(np.mean([n[end] for n in numbers])) for end in ("value", "low", "high")}
    return number(ends["value"], ends["low"], ends["high"], digits)


def kept(result: Mapping[str, Any]) -> Number:
    """The kept fraction of a result, with the sizes that other selection rows could have chosen.

    The interval goes from the smallest scored genome whose margin may be positive to the largest
    one whose margin may be negative, within 1.96 standard errors of the margin.
    """
    chosen, tolerance = result["kept_fraction"]["prunable"], result["tolerance"]
    points = [p for p in result["search"]["curve"] if p.get("whole", True)]
    if not points:  # Every genome was dropped early; the dense model is kept.
        return number(chosen, chosen, chosen)
    rows = max(point["examples_used"] for point in points)

    def error(point: Mapping[str, Any]) -> float:
        return float(np.sqrt(max(tolerance - point["margin"], 1 / rows) / rows))

    low = [p["kept_fraction"] for p in points if p["margin"] >= -1.96 * error(p)]
    high = [p["kept_fraction"] for p in points if p["margin"] <= 1.96 * error(p)]
    return number(chosen, min([*low, chosen]), max([*high, chosen]))


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace(" --- ", "---")


def cell(entry: Mapping[str, Any] | None) -> str:
    """Kept (%) and drop on test rows (points); a dagger marks drops beyond the tolerance."""
    if not entry:
        return ""
    mark = " †" if entry.get("within") is False else ""
    return f"{100 * entry['kept']['value']:.1f} ({100 * entry['drop']['value']:.1f}){mark}"


def spread(found: Mapping[str, float], digits: int = 1, times: float = 1) -> str:
    """A number and its interval."""
    value, low, high = (f"{times * found[end]:.{digits}f}" for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def chosen(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a run kept, what it lost on test rows, and whether that is within the tolerance."""
    return {
        "kept": kept(result),
        "drop": drop(result["drop"]),
        "within": result["drop"]["point"] <= result["tolerance"] + 1e-9,
    }


def with_legend(table: str) -> str:
    """A table of chosen sizes, with the meaning of the dagger below it if it has one."""
    return f"{table}\n\n{LEGEND}" if "†" in table else table


def numbers(tree: Any, path: str = "") -> Iterator[tuple[str, Number]]:
    """All numbers with an interval in nested containers, with their paths."""
    if isinstance(tree, Mapping):
        if {"value", "low", "high"} <= tree.keys():
            yield path, dict(tree)
            return
        for key, value in tree.items():
            yield from numbers(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from numbers(value, f"{path}.{index}")


def outside(committed: Any, fresh: Any) -> tuple[int, list[str], int]:
    """Compare new numbers with committed ones.

    Returns the number of committed numbers, one line per new value outside its committed
    interval, and the number of committed numbers without a new value.
    """
    found, held, lines, missing = dict(numbers(fresh)), list(numbers(committed)), [], 0
    for path, old in held:
        new = found.get(path)
        if new is None:
            missing += 1
        elif not old["low"] - 1e-9 <= new["value"] <= old["high"] + 1e-9:
            ends = f"{old['low']:g} to {old['high']:g}"
            lines.append(f"{path}: committed {old['value']:g} ({ends}), found {new['value']:g}")
    return len(held), lines, missing
