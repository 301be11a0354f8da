"""How many genomes a search evaluates, and how many examples that takes: expected and at most.

Bounds come from the settings and from the constants of `sieve/search`. What only a run can tell,
the rows of a genome that is dropped early and the generation of the last improvement, is estimated
from past searches (`experiments/searches.jsonl`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sieve.bank.genome import Sizing
from sieve.config import SearchConfig
from sieve.costs.shape import Shape
from sieve.search import bottlenecks
from sieve.search.lines import FALLBACKS, MARGIN_NEIGHBORS, NEIGHBORS, RESIZE_NEIGHBORS, STEP
from sieve.search.measured import measured_rows

SCORED = {"margin": 0.7, "divergence": 0.6}  # share of the rows that a genome is scored on
PATIENCE = 1.3  # generations of a search over `stagnation_generations`
CONFIRMED = 3  # candidates that a confirmation scores
Sweeper = Mapping[str, float | None]  # settings of the genetic sweeper


@dataclass(frozen=True)
class Evaluations:
    """Genomes evaluated and examples scored, those of the dense model too."""

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
    share, limit = SCORED[search.judge], math.inf
    extra, extra_rows = 0.0, 2.0 * seen  # scored in any case; the dense model is scored twice
    if search.method in ("uniform", "waterfill"):
        count = line_length(shape, sizing, search, search.method)
        expected: float = min(count - 1, _bisections(count) + 1)
        most, remark = float(count - 1), f"bisection over {count} genomes"
        share, extra_rows = 1.0, seen
    elif search.method == "genetic":
        expected, most, remark = _generations(sweeper)
        extra, seed_rows = _seeds(shape, sizing, search, seen)
        extra_rows += 2 * seen + seed_rows  # The dense model once more by the last job.
    else:
        expected = most = search.evaluations
        remark, limit = f"{search.evaluations:,} genomes", search.examples or math.inf
        share = SCORED["margin"] if search.method == "random" else share
    most_extra = extra_rows
    if seen < rows:
        extra_rows += CONFIRMED * rows
        most_extra += search.candidates * rows
    if search.bottlenecks:
        genes = seen * len(shape.matrices)
        extra_rows += 1.5 * SCORED["margin"] * genes
        most_extra += (1 + _bisections(len(bottlenecks.LEVELS))) * genes
    return Evaluations(
        expected + extra,
        most + extra,
        min(limit, share * expected * seen) + extra_rows,
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
    offspring, most = sweeper.get("offspring") or population, sweeper.get("generations")
    stagnation = sweeper.get("stagnation_generations")
    expected = min(round(PATIENCE * stagnation) if stagnation else math.inf, most or math.inf)
    expected = expected if math.isfinite(expected) else 100
    limit = sweeper.get("evaluations") or math.inf
    bred, most_bred = (
        min(limit, population + offspring * (count - 1)) for count in (expected, most or expected)
    )
    words = f"population {population:,}, {expected} of at most {most or 'any'} generations"
    return bred, most_bred, words


def _seeds(shape: Shape, sizing: Sizing, search: SearchConfig, rows: int) -> tuple[float, float]:
    """Genomes and rows scored before and after the generations of a genetic search."""
    lines = [method for method in search.seeds if method != "measured"]
    ends = [_bisections(line_length(shape, sizing, search, line)) + 1 for line in lines]
    if search.judge == "margin":
        count = sum(ends) + len(lines) * (1 + sum(MARGIN_NEIGHBORS))
        return count, count * rows
    frontier = _bisections(line_length(shape, sizing, search, "waterfill")) + 1
    count = sum(ends or [frontier]) + max(1, len(lines)) * (1 + sum(NEIGHBORS))
    count += frontier + sum(RESIZE_NEIGHBORS) + len(FALLBACKS)
    if "measured" not in search.seeds:
        return count, count * rows
    measured = search.rounds * (2 * len(shape.matrices) + 1)
    count += frontier + 1 + sum(NEIGHBORS)
    return count + measured, count * rows + measured * min(rows, measured_rows(rows))
