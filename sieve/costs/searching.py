"""How often a search evaluates genomes, and how many rows that takes: expected and at most.

Bounds follow `search/lines.py`, `stages/seeds.py` and the genetic sweeper. What cannot be
known beforehand is set by what searches took so far (`experiments/searches.jsonl`): rows of a
genome that is dropped early, and when the best no longer improves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sieve.bank.genome import Sizing
from sieve.config import SearchConfig
from sieve.costs.shape import Shape
from sieve.search.lines import STEP

SCORED = {"margin": 0.7, "divergence": 0.6}  # of the rows per genome, others are dropped early
PATIENCE = 1.3  # generations of a search over those without improvement that end it
SEEDED = 1 / 4  # of the rows, at least 64, on which matrices are measured
FEWEST = 64
NEAR = 8  # genomes around a place on a line
NEAR_MARGIN = 19
RESIZED = 17
TRIED = 3  # candidates for a confirmation that are scored


@dataclass(frozen=True)
class Evaluations:
    """expected, most: genomes evaluated; rows, most_rows: scored, passes of the dense model too."""

    expected: float
    most: float
    rows: float
    most_rows: float
    words: str


def bisected(count: int) -> int:
    """Evaluations that it takes to find a place among `count` by bisection."""
    return math.ceil(math.log2(count)) if count > 1 else 0


def line_length(shape: Shape, sizing: Sizing, search: SearchConfig, method: str) -> int:
    """Genomes of a line, at most: of a grid, or 3 % apart down to what is always kept."""
    if method == "uniform":
        return len({float(level) for level in search.levels})
    least = min(search.levels)
    ranks = [sizing.rank(matrix, least) or 0 for matrix in shape.matrices]
    lowest = 0 if 0 in ranks else 1
    end = sum(sizing.kept(matrix, lowest) for matrix in shape.matrices)
    end = max(end, min(sizing.kept(matrix, 1) for matrix in shape.matrices))
    return 2 + math.ceil(math.log(end / shape.prunable) / math.log(STEP))


def search_evaluations(
    shape: Shape, sizing: Sizing, search: SearchConfig, rows: int, sweeper: Mapping[str, Any]
) -> Evaluations:
    """What a search takes on `rows` selection rows, its map of bottlenecks too.

    sweeper: the settings of a genetic one.
    """
    found = _searched(shape, sizing, search, rows, sweeper)
    if not search.bottlenecks:
        return found
    genes, seen = len(shape.matrices), rows - round(search.confirmation * rows)
    return replace(
        found,
        rows=found.rows + 1.5 * genes * seen * SCORED["margin"],
        most_rows=found.most_rows + 4 * genes * seen,
    )


def _searched(
    shape: Shape, sizing: Sizing, search: SearchConfig, rows: int, sweeper: Mapping[str, Any]
) -> Evaluations:
    held = round(search.confirmation * rows)
    seen = rows - held
    if search.method in ("uniform", "waterfill"):
        count = line_length(shape, sizing, search, search.method)
        found, most = min(count - 1, bisected(count) + 1), count - 1
        more = (held + seen) * TRIED if held else 0
        most_more = (held + seen) * search.candidates if held else 0
        return Evaluations(
            found, most, (found + 1) * seen + more, (most + 1) * seen + most_more,
            f"bisection over {count} genomes",
        )  # fmt: skip
    if search.method == "genetic":
        return _genetic(shape, sizing, search, seen, held, sweeper)
    limit = math.inf if search.examples is None else search.examples
    scored = SCORED["margin" if search.method == "random" else search.judge]
    number = search.evaluations
    return Evaluations(
        number, number, min(limit, (number * scored + 2) * seen + TRIED * rows),
        min(limit, (number + 2) * seen) + search.candidates * rows, f"{number:,} genomes",
    )  # fmt: skip


def _genetic(
    shape: Shape,
    sizing: Sizing,
    search: SearchConfig,
    seen: int,
    held: int,
    sweeper: Mapping[str, Any],
) -> Evaluations:
    """The first job's seeds, the generations, and what the last job confirms and maps."""
    population = int(sweeper.get("population") or 100)
    offspring = int(sweeper.get("offspring") or population)
    most = sweeper.get("generations")
    span = sweeper.get("stagnation_generations")
    expected = round(PATIENCE * span) if span else most
    generations = min(x for x in (most, expected) if x is not None) if (most or expected) else 100
    limit = sweeper.get("evaluations") or math.inf
    bred, at_most = (
        min(limit, population + offspring * (n - 1)) for n in (generations, most or generations)
    )
    seeds, seed_rows = _seeding(shape, sizing, search, seen)
    last = 0.0 if search.judge == "margin" else RESIZED + bisected(300)
    tried = TRIED * (seen + held) if held else 0
    scored = SCORED[search.judge]
    return Evaluations(
        seeds + bred + last,
        seeds + at_most + last,
        seed_rows + (scored * bred + last + 2) * seen + tried,
        seed_rows + (at_most + last + 2) * seen + search.candidates * held,
        f"population {population:,}, {generations} of at most {most or 'any'} generations",
    )


def _seeding(shape: Shape, sizing: Sizing, search: SearchConfig, seen: int) -> tuple[float, float]:
    """Genomes and rows to find what a genetic search begins with, the dense model's passes too."""
    lines = [name for name in search.seeds if name != "measured"]
    lengths = [line_length(shape, sizing, search, name) for name in lines]
    found = sum(bisected(count) + 1.0 for count in lengths)
    if search.judge == "margin":
        found += NEAR_MARGIN * len(lines)
        return found, (found + 2) * seen
    if not lines:
        found += bisected(line_length(shape, sizing, search, "waterfill")) + 1
    found += NEAR * max(1, len(lines))
    part, measured = 0.0, 0.0
    if "measured" in search.seeds:
        part = search.rounds * (2.0 * len(shape.matrices) + 1)
        measured = part * max(FEWEST, SEEDED * seen)
        found += 2 * NEAR
    return found + part, (found + 2) * seen + measured
