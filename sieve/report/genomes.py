"""The evaluated genomes of a search: which were scored on all rows, and the Pareto front.

A genome that was dropped early has upper bounds as accuracy and margin, and a lower bound as
divergence. It therefore never counts as feasible and is never on the front.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sieve.report.building import build
from sieve.report.result import EvaluatedGenome, Result

LINES = ("uniform", "waterfill")  # searches along one line of genomes
Row = Mapping[str, object]


def genomes(result: Result, key: str = "accuracy") -> list[EvaluatedGenome]:
    """The evaluated genomes with a kept fraction and a value of `key`, smallest first."""
    measured = [genome for genome in result.search.curve if value(genome, key) is not None]
    return sorted((g for g in measured if g.kept_fraction is not None), key=kept)


def kept(genome: EvaluatedGenome) -> float:
    """The kept fraction, 1 if it was not measured."""
    return 1.0 if genome.kept_fraction is None else genome.kept_fraction


def sizes(points: Sequence[EvaluatedGenome]) -> list[float]:
    """Kept fractions in percent."""
    return [100 * kept(genome) for genome in points]


def value(genome: EvaluatedGenome, key: str) -> float | None:
    """The genome's `accuracy` or `divergence`."""
    return genome.divergence if key == "divergence" else genome.accuracy


def is_line(result: Result) -> bool:
    """Whether the search went along one line of genomes, or has no name."""
    return not result.search.method or result.search.method in LINES


def pareto_front(
    points: Sequence[EvaluatedGenome], key: str, larger_is_better: bool
) -> list[EvaluatedGenome]:
    """The genomes that no other genome beats in size and in `key` at once, smallest first.

    Compares genomes that were scored on all rows of the search. Of equal genomes the first counts.
    """
    sign = -1 if larger_is_better else 1
    scored = [
        (kept(genome), sign * score, genome)
        for genome in points
        if genome.whole is not False and not genome.refitted
        if (score := value(genome, key)) is not None
    ]
    best, front = float("inf"), list[EvaluatedGenome]()
    for _, score, genome in sorted(scored, key=lambda entry: entry[:2]):
        if score < best:
            best = score
            front.append(genome)
    return front


def front(rows: Sequence[Row], key: str, larger_is_better: bool) -> list[Row]:
    """`pareto_front` of the rows of `search.curve` in `result.json`."""
    typed = [build(EvaluatedGenome, row) for row in rows]
    best = {id(genome) for genome in pareto_front(typed, key, larger_is_better)}
    return [row for row, genome in zip(rows, typed, strict=True) if id(genome) in best]


def genome_rows(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The rows of `search.curve` for a table, with a column for the level of each matrix."""
    table = []
    for row in rows:
        levels = row.get("levels")
        columns = levels.items() if isinstance(levels, Mapping) else ()
        flat = {key: entry for key, entry in row.items() if key != "levels"}
        table.append(flat | {f"level/{name}": level for name, level in columns})
    return table


def bottleneck_rows(search: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per matrix: the least that it alone can keep, and its level in the best genomes."""
    alone = {row["name"]: row for row in search.get("bottlenecks") or []}
    high = search.get("kept_high") or {}
    return [
        {"name": name, **alone.get(name, {}), "kept_high": high.get(name)}
        for name in dict.fromkeys([*alone, *high])
    ]
