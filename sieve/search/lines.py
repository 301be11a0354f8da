"""Searches that need a handful of evaluations: uniform levels, and water-filled ranks.

Both walk one line of genomes from large to small and find, by bisection on the selection split,
the smallest within ε: `search_uniform` over levels that all matrices share, `search_waterfill`
along the closed-form frontier of `sieve/search/waterfill.py`.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.config import LEVELS
from sieve.search.objective import Score
from sieve.search.waterfill import waterfill

log = logging.getLogger(__name__)
STRIDE = 8  # places on a line that the way down begins with
MARGIN_NEIGHBORS = (6, 12)  # larger and smaller genomes around the end of a line, seeds by margin
NEIGHBORS = (3, 4)  # the same, seeds by divergence
RESIZE_NEIGHBORS = (6, 4)  # the same, after a genetic search
LARGER = (8, 12, 17, 24, 33, 45)  # positions of larger genomes that a confirmation can fall back on
STEP = 0.97  # kept fractions along the frontier that are tried stand 3 % apart


@dataclass(frozen=True)
class Line:
    """`count` genomes of a bank from large to small; the first is the dense model."""

    count: int
    genome: Callable[[int], Genome]

    def index(self, genome: Genome) -> int:
        """Where a genome stands; ValueError when it does not."""
        return next(i for i in range(self.count) if self.genome(i) == genome)


class Scorer(Protocol):
    """Anything that scores a genome: `sieve.Objective`, or a user's own."""

    def score(self, genome: Genome, farthest: float = math.inf) -> Score:
        """Size, accuracy and margin of a genome, in part where it is farther from the dense model
        than that, in nats."""
        ...


def search_uniform(bank: Bank, objective: Scorer, levels: Sequence[float] = LEVELS) -> Genome:
    """Smallest uniform genome whose margin is not negative, by bisection over `levels`.

    The dense model (level 1) is feasible by definition. Raises ValueError without level 1.
    """
    return smallest(objective, uniform_line(bank, levels))


def search_waterfill(
    bank: Bank, objective: Scorer, normalize: str = "none", lowest_rank: int = 0
) -> Genome:
    """Smallest genome on the water-filling frontier whose margin is not negative, by bisection.

    normalize, lowest_rank: as `sieve.search.waterfill.waterfill`.
    """
    return smallest(objective, waterfill_line(bank, normalize, lowest_rank))


def uniform_line(bank: Bank, levels: Sequence[float] = LEVELS) -> Line:
    """One level for all matrices; ValueError without level 1."""
    grid = tuple(sorted({float(level) for level in levels}, reverse=True))
    if not grid or grid[0] != 1:
        raise ValueError(f"got levels {list(levels)}, expected fractions with 1 among them.")
    return Line(len(grid), lambda index: uniform_genome(bank, grid, index))


def waterfill_line(
    bank: Bank, normalize: str = "none", lowest_rank: int = 0, start: Genome | None = None
) -> Line:
    """The frontier from a genome, or the dense model, at kept fractions 3 % apart, to its end."""
    frontier = waterfill(bank, normalize, lowest_rank, start)
    steps, fraction = [0], frontier.kept_fraction(0)
    while steps[-1] < len(frontier.changes):
        fraction *= STEP
        if (here := frontier.within(fraction)) > steps[-1]:
            steps.append(here)
    return Line(len(steps), lambda index: frontier.genome(steps[index]))


def smallest(objective: Scorer, line: Line) -> Genome:
    """The smallest feasible genome of a line.

    The margin need not be monotone along the line: the genome returned was itself evaluated and
    feasible, and the search goes on below while the next, or the one after, is feasible.
    """

    @cache
    def feasible(index: int) -> bool:
        tried = line.genome(index)
        score = objective.score(tried)
        levels = set(tried.indexes)
        log.info(
            "  %-12s kept %5.1f %%  accuracy %.4f  margin %+.4f",
            f"level {tried.grid[tried.indexes[0]]:g}" if len(levels) == 1 else "",
            100 * score.kept_fraction, score.accuracy, score.margin,
        )  # fmt: skip
        return score.feasible

    accepted, refused = 0, line.count
    while refused - accepted > 1:
        middle = (accepted + refused) // 2
        if feasible(middle):
            accepted = middle
        else:
            refused = middle
    while below := [i for i in (accepted + 1, accepted + 2) if i < line.count and feasible(i)]:
        accepted = below[-1]
    return line.genome(accepted)


def within(objective: Scorer, line: Line, divergence: float) -> int:
    """The last place on a line, by bisection, that is no farther from the dense model."""
    accepted, refused = 0, line.count
    while refused - accepted > 1:
        middle = (accepted + refused) // 2
        if objective.score(line.genome(middle)).divergence <= divergence:
            accepted = middle
        else:
            refused = middle
    return accepted


def around(line: Line, index: int, before: int = 6, after: int = 12) -> list[Genome]:
    """Genomes of a line near a place on it, some larger and some smaller."""
    places = range(max(0, index - before), min(line.count, index + after + 1))
    return [line.genome(place) for place in places]


def uniform_genome(bank: Bank, grid: tuple[float, ...], index: int) -> Genome:
    """The genome that puts every matrix of a bank on level `grid[index]`; groups stay apart."""
    apart = (grid.index(1.0),) * len(bank.groups)
    indexes = (index,) * len(bank.matrices) + apart
    return Genome(grid, indexes, bank.names, bank.fingerprint)


@dataclass(frozen=True)
class Improved:
    """A genome with a bank of its own, after its factors were solved or tuned again."""

    bank: Bank
    genome: Genome
    score: Score


def descend(
    line: Line,
    start: int,
    improve: Callable[[Genome], tuple[Bank, Genome]],
    score: Callable[[Bank, Genome], Score],
    before: Score,
    tries: int = 10,
) -> Improved | None:
    """The smallest genome found at or below `start` on a line that is within ε once improved.

    improve: gives a genome better factors of the same ranks; before: the score at `start` without
    them. At `start` improved factors are taken where they lose no accuracy, or none of them are.
    The steps down are halved at each refusal; `tries` counts all that are improved.
    """

    def improved(index: int) -> Improved:
        bank, genome = improve(line.genome(index))
        result = Improved(bank, genome, score(bank, genome))
        log.info(
            "  refitted     kept %5.1f %%  accuracy %.4f  margin %+.4f",
            100 * result.score.kept_fraction, result.score.accuracy, result.score.margin,
        )  # fmt: skip
        return result

    best = improved(start)
    if not best.score.feasible or best.score.margin < before.margin:
        return None
    index, stride = start, STRIDE
    for _ in range(tries - 1):
        stride = min(stride, line.count - 1 - index)
        if stride < 1:
            break
        below = improved(index + stride)
        if below.score.feasible:
            best, index = below, index + stride
        else:
            stride //= 2
    return best
