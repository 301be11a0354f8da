"""How many genomes a search evaluates, and how many examples that takes: expected and at most.

Bounds come from the settings and from the constants of `sieve/search`. The rows of a genome that is
dropped early and the generation of the last improvement are estimated from past searches
(`experiments/searches.jsonl`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sieve.bank.genome import Sizing
from sieve.config import SearchConfig
from sieve.costs.shape import Shape
from sieve.search import bottlenecks
from sieve.search.lines import FALLBACKS, MARGIN_NEIGHBORS, RESIZE_NEIGHBORS, STEP
from sieve.search.measured import measured_rows

SCORED = {"margin": 0.7, "divergence": 0.6}  # share of the rows that a genome is scored on
PATIENCE = 1.3  # generations of a search over `stagnation_generations`
CONFIRMED = 3  # candidates that a confirmation scores
Sweeper = Mapping[str, float | None]  # settings of the genetic sweeper


@dataclass(frozen=True)
class Evaluations:
    """Genomes evaluated and examples scored; the dense model's are included in the examples."""

    expected: float
    most: float
    rows: float
    most_rows: float
    remark: str


def search_evaluations(
    shape: Shape, sizing: Sizing, search: SearchConfig, rows: int, sweeper: Sweeper
) -> Evaluations:
    """What a search takes on `rows` selection rows, with its confirmation and bottleneck map."""
    seen = rows - round(search.confirmation * rows)
    share, dense, limit = SCORED[search.judge], 2, math.inf
    seeds, seed_rows = 0.0, 0.0
    if search.method in ("uniform", "waterfill"):
        count = line_length(shape, sizing, search, search.method)
        expected, most = min(count - 1, _bisections(count) + 1.0), count - 1.0
        share, dense, remark = 1.0, 1, f"bisection over {count} genomes"
    elif search.method == "genetic":
        expected, most, remark = _generations(sweeper)
        seeds, seed_rows = _seeds(shape, sizing, search, seen)
        dense = 4
    else:
        expected = most = search.evaluations
        remark, limit = f"{search.evaluations:,} genomes", search.examples or math.inf
    extra = most_extra = dense * seen + seed_rows
    if seen < rows:
        extra, most_extra = extra + CONFIRMED * rows, most_extra + search.candidates * rows
    if search.bottlenecks:
        genes = seen * len(shape.matrices)
        extra += 1.5 * SCORED["margin"] * genes
        most_extra += (1 + _bisections(len(bottlenecks.LEVELS))) * genes
    return Evaluations(
        expected + seeds,
        most + seeds,
        min(limit, share * expected * seen) + extra,
        min(limit, most * seen) + most_extra,
        remark,
    )


def line_length(shape: Shape, sizing: Sizing, search: SearchConfig, method: str) -> int:
    """Genomes of a line at most: of the grid, or of a frontier down to its smallest genome."""
    if method == "uniform":
        return len({float(level) for level in search.levels})
    least = min(search.levels)
    lowest = 0 if 0 in [sizing.rank(matrix, least) for matrix in shape.matrices] else 1
    end = sum(sizing.kept(matrix, lowest) for matrix in shape.matrices)
    end = max(end, min(sizing.kept(matrix, 1) for matrix in shape.matrices))
    return 2 + math.ceil(math.log(end / shape.prunable) / math.log(STEP))


def _bisections(count: int) -> int:
    """Evaluations that find a position among `count` by bisection."""
    return math.ceil(math.log2(count)) if count > 1 else 0


def _generations(sweeper: Sweeper) -> tuple[float, float, str]:
    """Genomes of a genetic search, expected and at most, and in words."""
    population = sweeper.get("population") or 100
    offspring, most = sweeper.get("offspring") or population, sweeper.get("generations") or 100
    stagnation = sweeper.get("stagnation_generations")
    expected = min(most, round(PATIENCE * stagnation)) if stagnation else most
    limit = sweeper.get("evaluations") or math.inf
    bred, most_bred = (min(limit, population + offspring * (n - 1)) for n in (expected, most))
    return bred, most_bred, f"population {population:,}, {expected} of at most {most} generations"


def _seeds(shape: Shape, sizing: Sizing, search: SearchConfig, rows: int) -> tuple[float, float]:
    """Genomes and rows scored before and after the generations of a genetic search."""
    line = _bisections(line_length(shape, sizing, search, "waterfill")) + 2
    if search.judge == "margin":
        count = len(search.seeds) * (line + sum(MARGIN_NEIGHBORS))
        return count, count * rows
    lines = 1 + max(1, len(search.seeds))
    measured = search.rounds * (2 * len(shape.matrices) + 1) * ("measured" in search.seeds)
    count = lines * (line + sum(RESIZE_NEIGHBORS)) + len(FALLBACKS)
    return count + measured, count * rows + measured * min(rows, measured_rows(rows))
