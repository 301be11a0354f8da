"""What a search says of its genomes: which were scored to the end, and which no other one beats.

A genome that was dropped early has an accuracy and a margin that are upper bounds and a divergence
that is a lower one: it is never taken for feasible, and stands on no front.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sieve.report.values import look, number

LINES = ("uniform", "waterfill")  # searches that walk one line of genomes
Point = Mapping[str, Any]


def genomes(result: Mapping[str, Any], key: str = "accuracy") -> list[dict[str, Any]]:
    """The evaluated genomes that have a size and a number under `key`, the smallest first."""
    points = look(result, "search.curve") or []
    drawable = [
        point
        for point in points
        if number(point.get("kept_fraction")) is not None and number(point.get(key)) is not None
    ]
    return sorted(drawable, key=lambda point: point["kept_fraction"])


def walks_a_line(result: Mapping[str, Any]) -> bool:
    """Whether the search went along one line of genomes, or is not named."""
    method = look(result, "search.method")
    return method is None or method in LINES


def most_examples(points: Sequence[Point]) -> float:
    """Rows that a genome of the search was scored on at most; refitted ones saw others as well."""
    return max((number(p.get("examples_used")) or 0 for p in points if not p.get("refitted")),
               default=0)  # fmt: skip


def is_whole(point: Point, full: float) -> bool:
    """Whether a genome was scored to the end: as the record says, or on `full` rows."""
    if point.get("whole") is not None:
        return bool(point["whole"])
    used = number(point.get("examples_used"))
    return used is None or used >= full


def is_feasible(point: Point) -> bool:
    """Whether a genome is known to be within the tolerance."""
    return bool(point.get("feasible")) and is_whole(point, 0)


def front(points: Sequence[Point], key: str, larger_is_better: bool) -> list[Point]:
    """The genomes that no other one beats in size and in `key` at once, the smallest first.

    Only those scored to the end on the rows of the search are compared; of equals the first stands.
    """
    full, sign = most_examples(points), -1 if larger_is_better else 1
    compared = [
        point
        for point in points
        if is_whole(point, full)
        and not point.get("refitted")
        and number(point.get(key)) is not None
    ]
    best, found = float("inf"), list[Point]()
    for point in sorted(compared, key=lambda p: (p["kept_fraction"], sign * p[key])):
        if sign * point[key] < best:
            best = sign * point[key]
            found.append(point)
    return found


def genome_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A flat row per genome for a table: the level of each matrix, where known, has a column."""
    rows = []
    for point in points:
        levels = point.get("levels")
        row = {key: value for key, value in point.items() if key != "levels"}
        if isinstance(levels, Mapping):
            row |= {f"level/{name}": level for name, level in levels.items()}
        rows.append(row)
    return rows


def bottleneck_rows(search: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per matrix: what it alone must keep, and how high the search kept it."""
    alone = {row["name"]: row for row in search.get("bottlenecks") or []}
    high = search.get("kept_high") or {}
    return [
        {"name": name, **alone.get(name, {}), "kept_high": high.get(name)}
        for name in dict.fromkeys([*alone, *high])
    ]
