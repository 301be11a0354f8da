"""How many genomes a search scores, and on how many rows: expected and at most.

Bounds come from the settings and from the constants of `sieve/search`. The rows of a genome that is
dropped early and the generation of the last improvement are estimated from past searches.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sieve.bank.genome import Sizing
from sieve.config import SearchConfig
from sieve.costs.shape import Shape
from sieve.search import bottlenecks
from sieve.search.lines import FALLBACKS, MARGIN_NEIGHBORS, RESIZE_NEIGHBORS, STEP
from sieve.search.measured import measured_rows

# Mean share of the blocks from a matrix on, which run for a genome that differs there alone.
DIFFERING = 0.5
SCORED = {"margin": 0.7, "divergence": 0.6}  # share of the rows that a genome is scored on
PATIENCE = 1.3  # generations of a search, as a multiple of `stagnation_generations`
CONFIRMED = 3  # candidates that a confirmation scores
Sweeper = Mapping[str, float | None]  # settings of the genetic sweeper
Pair = NDArray[np.float64]  # expected and at most


def search_evaluations(
    shape: Shape,
    sizing: Sizing,
    search: SearchConfig,
    rows: int,
    sweeper: Sweeper,
    differing: float = DIFFERING,
) -> tuple[Pair, Pair, str]:
    """Genomes and rows that a search scores, and a remark.

    A row that runs half of the blocks counts as half a row. The rows include the scores of the
    dense model, the confirmation and a map of bottlenecks.

    Args:
        rows: of the selection split.
        differing: share of the blocks that run for a genome that differs in a single matrix.
    """
    seen = rows - round(search.confirmation * rows)
    share = np.array([SCORED[search.judge], 1.0])
    if search.method in ("uniform", "waterfill"):
        count = line_length(shape, sizing, search, search.method)
        genomes = np.array([min(count - 1, _bisections(count) + 1), count - 1.0])
        scored, remark = genomes * seen + seen, f"bisection over {count} genomes"
    elif search.method == "genetic":
        bred, remark = _generations(sweeper)
        seeds, seed_rows = _seeds(shape, sizing, search, seen, differing)
        genomes, scored = bred + seeds, share * bred * seen + seed_rows + 4 * seen
    else:
        genomes, remark = np.full(2, float(search.evaluations)), f"{search.evaluations:,} genomes"
        scored = np.minimum(share * genomes * seen, search.examples or math.inf) + 2 * seen
    if seen < rows:
        scored = scored + np.array([CONFIRMED, search.candidates]) * rows
    if search.bottlenecks:
        each = np.array([1.5 * SCORED["margin"], 1 + _bisections(len(bottlenecks.LEVELS))])
        scored = scored + each * differing * seen * len(shape.matrices)
    return genomes, scored, remark


def line_length(shape: Shape, sizing: Sizing, search: SearchConfig, method: str) -> int:
    """The most genomes on a line: on the grid, or on a frontier down to its smallest genome."""
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


def _generations(sweeper: Sweeper) -> tuple[Pair, str]:
    """Genomes of a genetic search, and the remark."""
    population = sweeper.get("population") or 100
    offspring, most = sweeper.get("offspring") or population, sweeper.get("generations") or 100
    stagnation = sweeper.get("stagnation_generations")
    expected = min(most, round(PATIENCE * stagnation)) if stagnation else most
    bred = population + offspring * (np.array([expected, most]) - 1)
    remark = f"population {population:,}, {expected} of at most {most} generations"
    return np.minimum(bred, sweeper.get("evaluations") or math.inf), remark


def _seeds(
    shape: Shape, sizing: Sizing, search: SearchConfig, rows: int, differing: float
) -> tuple[float, float]:
    """Genomes before and after the generations of a genetic search, and whole rows for them."""
    margin = search.judge == "margin"
    line = _bisections(line_length(shape, sizing, search, "waterfill")) + 2
    line += sum(MARGIN_NEIGHBORS if margin else RESIZE_NEIGHBORS)
    count = line * (len(search.seeds) + (not margin)) + len(FALLBACKS) * (not margin)
    measured = search.rounds * (2 * len(shape.matrices) + 1) * ("measured" in search.seeds)
    return count + measured, count * rows + differing * measured * min(rows, measured_rows(rows))
