"""Numbers with their intervals, and whether a fresh one is within a committed one's.

A measured number stands in JSON as {"value", "low", "high"}: what was found, and what another
machine or another draw of rows may find without contradicting it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

Number = dict[str, float]
RESAMPLES = 10_000
TIMES = 3.0  # machines differ, and so does what else they do


def number(value: float, low: float, high: float, digits: int = 4) -> Number:
    """A measured number, its interval widened to hold it."""
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
    return number(record["point"], record["low"], record["high"])


def timed(seconds: float) -> Number:
    """A time; good for its order of magnitude."""
    return number(seconds, seconds / TIMES, seconds * TIMES, digits=2)


def mean(numbers: Sequence[Number], digits: int = 4) -> Number:
    """The mean of independent numbers; its half interval is the root of their squares' sum."""
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
    """The mean of numbers that share their rows, so that it is no surer than each."""
    ends = {end: float(np.mean([n[end] for n in numbers])) for end in ("value", "low", "high")}
    return number(ends["value"], ends["low"], ends["high"], digits)


def kept(result: Mapping[str, Any]) -> Number:
    """The kept fraction of a result, and the sizes that another draw of its rows could have chosen.

    From the smallest genome that the search scored whose margin might have been positive, to the
    largest whose margin might have been negative: within 1.96 standard errors, those of the rows
    that a genome has lost (one at least) among as many.
    """
    chosen, tolerance = result["kept_fraction"]["prunable"], result["tolerance"]
    points = [p for p in result["search"]["curve"] if p.get("whole", True)]
    rows = max(point["examples_used"] for point in points)

    def error(point: Mapping[str, Any]) -> float:
        return float(np.sqrt(max(tolerance - point["margin"], 1 / rows) / rows))

    low = [p["kept_fraction"] for p in points if p["margin"] >= -1.96 * error(p)]
    high = [p["kept_fraction"] for p in points if p["margin"] <= 1.96 * error(p)]
    return number(chosen, min([*low, chosen]), max([*high, chosen]))


def numbers(tree: Any, path: str = "") -> Iterator[tuple[str, Number]]:
    """All numbers with an interval in nested containers, and where they stand."""
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
    """How many numbers are committed, a line for each that a fresh one contradicts, and how many
    have no fresh one.

    A fresh number agrees when its value is in the committed interval.
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
