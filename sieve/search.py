"""Searches that need a handful of evaluations: uniform levels, and water-filled ranks.

Both walk one line of genomes from large to small and find, by bisection on the selection split,
the smallest within ε: `search_uniform` over levels that all matrices share, `search_waterfill`
along the closed-form frontier of `sieve/waterfill.py`.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

from sieve.bank import Bank
from sieve.genome import LEVELS, Genome
from sieve.objective import Score
from sieve.waterfill import waterfill

log = logging.getLogger(__name__)
STEP = 0.97  # kept fractions along the frontier that are tried stand 3 % apart


class Scorer(Protocol):
    """Anything that scores a genome: `sieve.Objective`, or a user's own."""

    def score(self, genome: Genome) -> Score:
        """Size, accuracy and margin of a genome."""
        ...


def search_uniform(bank: Bank, objective: Scorer, levels: Sequence[float] = LEVELS) -> Genome:
    """Smallest uniform genome whose margin is not negative, by bisection over `levels`.

    The dense model (level 1) is feasible by definition. Raises ValueError without level 1.
    """
    grid = tuple(sorted({float(level) for level in levels}, reverse=True))
    if not grid or grid[0] != 1:
        raise ValueError(f"got levels {list(levels)}, expected fractions with 1 among them.")
    return _smallest(objective, len(grid), lambda index: uniform_genome(bank, grid, index))


def search_waterfill(
    bank: Bank, objective: Scorer, normalize: str = "none", lowest_rank: int = 0
) -> Genome:
    """Smallest genome on the water-filling frontier whose margin is not negative, by bisection.

    normalize, lowest_rank: as `sieve.waterfill.waterfill`. Kept fractions are tried on a grid
    3 % apart, down to the frontier's end.
    """
    frontier = waterfill(bank, normalize, lowest_rank)
    steps, fraction = [0], 1.0
    while steps[-1] < len(frontier.matrix):
        fraction *= STEP
        if (here := frontier.within(fraction)) > steps[-1]:
            steps.append(here)
    return _smallest(objective, len(steps), lambda index: frontier.genome(steps[index]))


def _smallest(objective: Scorer, count: int, genome: Callable[[int], Genome]) -> Genome:
    """The smallest feasible genome of a line of `count`, the first of which is the dense model.

    The margin need not be monotone along the line: the genome returned was itself evaluated and
    feasible, and the search goes on below while the next, or the one after, is feasible.
    """

    @cache
    def feasible(index: int) -> bool:
        tried = genome(index)
        score = objective.score(tried)
        levels = set(tried.indexes)
        log.info(
            "  %-12s kept %5.1f %%  accuracy %.4f  margin %+.4f",
            f"level {tried.grid[tried.indexes[0]]:g}" if len(levels) == 1 else "",
            100 * score.kept_fraction, score.accuracy, score.margin,
        )  # fmt: skip
        return score.feasible

    accepted, refused = 0, count
    while refused - accepted > 1:
        middle = (accepted + refused) // 2
        if feasible(middle):
            accepted = middle
        else:
            refused = middle
    while below := [i for i in (accepted + 1, accepted + 2) if i < count and feasible(i)]:
        accepted = below[-1]
    return genome(accepted)


def uniform_genome(bank: Bank, grid: tuple[float, ...], index: int) -> Genome:
    """The genome that puts every matrix of a bank on level `grid[index]`."""
    return Genome(grid, (index,) * len(bank.names), bank.names, bank.fingerprint)
