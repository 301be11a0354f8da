"""Searches that need a handful of evaluations: uniform levels, and water-filled ranks.

Both walk a line of genomes, ordered from large to small, and find the smallest genome within ε by
bisection on the selection split: `search_uniform` over levels that all matrices share,
`search_waterfill` along the closed-form frontier of `sieve/search/waterfill.py`.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.config import LEVELS
from sieve.search.objective import Objective
from sieve.search.score import Score
from sieve.search.waterfill import waterfill

log = logging.getLogger(__name__)
FIRST_STRIDE = 8  # positions by which `descend` first moves down a line
MARGIN_NEIGHBORS = (6, 12)  # larger and smaller genomes around the end of a line, seeds by margin
NEIGHBORS = (3, 4)  # the same, seeds by divergence
RESIZE_NEIGHBORS = (6, 4)  # the same, after a genetic search
FALLBACKS = (8, 12, 17, 24, 33, 45)  # positions up a line that a confirmation falls back on
STEP = 0.97  # kept fraction of a genome on the frontier over that of the genome before it


@dataclass(frozen=True)
class Line:
    """`count` genomes of a bank from large to small; `genome(0)` is the dense model."""

    count: int
    genome: Callable[[int], Genome]

    def index(self, genome: Genome) -> int:
        """The index of a genome; raises StopIteration if the line does not contain it."""
        return next(i for i in range(self.count) if self.genome(i) == genome)


def largest_within(line: Line, size: Callable[[Genome], float], limit: float) -> Genome | None:
    """The largest genome on a line that keeps at most `limit`; None if all keep more."""
    index = bisect(line.count + 1, lambda i: i == 0 or size(line.genome(i - 1)) > limit)
    return line.genome(index) if index < line.count else None


class Scorer(Protocol):
    """Anything that scores a genome: `sieve.Objective` or your own class."""

    def score(self, genome: Genome, max_divergence: float = math.inf) -> Score:
        """Score a genome; may stop early once its divergence exceeds `max_divergence` nats."""
        ...


@contextmanager
def shared_blocks(objective: Scorer, genome: Genome) -> Iterator[None]:
    """Score genomes that differ from `genome` in few matrices; see `Objective.share_blocks`."""
    if not isinstance(objective, Objective):
        yield
        return
    try:
        objective.share_blocks(genome)
        yield
    finally:
        objective.share_blocks(None)


def search_uniform(bank: Bank, objective: Scorer, levels: Sequence[float] = LEVELS) -> Genome:
    """Find the smallest feasible uniform genome by bisection over `levels`.

    The dense model (level 1) is feasible by definition. Raises ValueError without level 1.
    """
    return smallest_feasible(objective, uniform_line(bank, levels))


def search_waterfill(
    bank: Bank, objective: Scorer, normalize: str = "none", lowest_rank: int = 0
) -> Genome:
    """Find the smallest feasible genome on the water-filling frontier by bisection.

    For `normalize` and `lowest_rank` see `sieve.search.waterfill.waterfill`.
    """
    return smallest_feasible(objective, waterfill_line(bank, normalize, lowest_rank))


def uniform_line(bank: Bank, levels: Sequence[float] = LEVELS) -> Line:
    """Genomes with one level for all matrices; ValueError without level 1."""
    grid = tuple(sorted({float(level) for level in levels}, reverse=True))
    if not grid or grid[0] != 1:
        raise ValueError(f"got levels {list(levels)}, expected fractions with 1 among them.")
    return Line(len(grid), lambda index: uniform_genome(bank, grid, index))


def waterfill_line(
    bank: Bank, normalize: str = "none", lowest_rank: int = 0, start: Genome | None = None
) -> Line:
    """The frontier from `start` (default: the dense model) down, at kept fractions 3 % apart."""
    frontier = waterfill(bank, normalize, lowest_rank, start)
    steps, fraction = [0], frontier.kept_fraction(0)
    while steps[-1] < len(frontier.changes):
        fraction *= STEP
        if (step := frontier.steps_to(fraction)) > steps[-1]:
            steps.append(step)
    return Line(len(steps), lambda index: frontier.genome(steps[index]))


def smallest_feasible(objective: Scorer, line: Line, strict: bool = False) -> Genome:
    """The smallest feasible genome of a line; it was itself evaluated. See `last_feasible`.

    strict: bisect only, so that fewer genomes beyond ε get a chance to pass by luck.
    """

    @cache
    def feasible(index: int) -> bool:
        genome = line.genome(index)
        score = objective.score(genome)
        uniform = len(set(genome.indexes)) == 1
        _log_score(f"level {genome.grid[genome.indexes[0]]:g}" if uniform else "", score)
        return score.margin >= 0  # of an almost surely feasible genome some rows may be unscored

    return line.genome((bisect if strict else last_feasible)(line.count, feasible))


def last_feasible(count: int, feasible: Callable[[int], bool]) -> int:
    """The last feasible index of a line, by bisection.

    The margin need not fall monotonically along the line, so the search continues below the index
    while one of the next two is feasible. A bisection alone keeps the confidence of its tests if
    every smaller genome loses more, as the first one beyond ε must then pass. The looks below need
    not; over draws of rows they did (`experiments/claims/tolerance.py`).
    """
    accepted = bisect(count, feasible)
    while below := [i for i in (accepted + 1, accepted + 2) if i < count and feasible(i)]:
        accepted = below[-1]
    return accepted


def last_within(objective: Scorer, line: Line, divergence: float) -> int:
    """The last index on a line whose divergence from the dense model is at most `divergence`."""
    return bisect(
        line.count, lambda index: objective.score(line.genome(index)).divergence <= divergence
    )


def bisect(count: int, accepts: Callable[[int], bool]) -> int:
    """The last accepted index below `count` of a falling predicate; index 0 counts as accepted."""
    accepted, refused = 0, count
    while refused - accepted > 1:
        middle = (accepted + refused) // 2
        if accepts(middle):
            accepted = middle
        else:
            refused = middle
    return accepted


def neighbors(
    line: Line,
    index: int,
    before: int = MARGIN_NEIGHBORS[0],
    after: int = MARGIN_NEIGHBORS[1],
) -> list[Genome]:
    """The genomes around `index` on a line: `before` larger ones and `after` smaller ones."""
    indexes = range(max(0, index - before), min(line.count, index + after + 1))
    return [line.genome(i) for i in indexes]


def uniform_genome(bank: Bank, grid: tuple[float, ...], index: int) -> Genome:
    """The genome that puts every matrix on level `grid[index]`; siblings share no factor."""
    groups_off = (grid.index(1.0),) * len(bank.groups)
    indexes = (index,) * len(bank.matrices) + groups_off
    return Genome(grid, indexes, bank.names, bank.fingerprint)


def descend(
    line: Line,
    start: int,
    improve: Callable[[Genome], tuple[Bank, Genome]],
    score: Callable[[Bank, Genome], Score],
    before: Score,
    tries: int = 10,
) -> tuple[Bank, Genome] | None:
    """Find the smallest genome at or below `start` on a line that is within ε once improved.

    After a refusal the steps down are half as long, and only larger genomes than the refused one
    are tried. Returns the genome and a bank of its own, or None if the genome at `start` loses
    accuracy by being improved.

    All tries are tested on the same rows at one confidence, as in a bisection. Over draws of rows
    this kept the confidence of a single test, though nothing guarantees it.

    Args:
        improve: gives a genome better factors of the same ranks.
        before: the score of the genome at `start` before it is improved.
        tries: how many genomes are improved at most.
    """

    def improved(index: int) -> tuple[tuple[Bank, Genome], Score]:
        pair = improve(line.genome(index))
        result = score(*pair)
        _log_score("refitted", result)
        return pair, result

    best, first = improved(start)
    if not first.feasible or first.margin < before.margin:
        return None
    index, stride, refused = start, FIRST_STRIDE, line.count
    for _ in range(tries - 1):
        stride = min(stride, refused - 1 - index)
        if stride < 1:
            break
        smaller, result = improved(index + stride)
        if result.feasible:
            best, index = smaller, index + stride
        else:
            refused, stride = index + stride, stride // 2
    return best


def _log_score(label: str, score: Score) -> None:
    """Log a score; of rows that decided early, the accuracy would be no estimate for all rows."""
    outcome = f"score {score.accuracy:.4f}  margin {score.margin:+.4f}"
    if not score.whole:
        side = "beyond" if score.margin < 0 else "within"
        outcome = f"almost surely {side} the tolerance after {score.examples_used:,} rows"
    log.info("  %-12s kept %5.1f %%  %s", label, 100 * score.kept_fraction, outcome)
