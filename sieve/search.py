"""Uniform search: the smallest level, the same for all matrices, that stays within ε."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Protocol

from sieve.bank import Bank
from sieve.genome import LEVELS, Genome
from sieve.objective import Score

log = logging.getLogger(__name__)


class Scorer(Protocol):
    """Anything that scores a genome: `sieve.Objective`, or a user's own."""

    def score(self, genome: Genome) -> Score:
        """Size, accuracy and margin of a genome."""
        ...


def search_uniform(bank: Bank, objective: Scorer, levels: Sequence[float] = LEVELS) -> Genome:
    """Smallest uniform genome whose margin is not negative, by bisection over `levels`.

    The margin need not be monotone in the level: the level returned was itself evaluated and
    feasible, and the search goes on below while the next level, or the one after, is feasible.
    The dense model (level 1) is feasible by definition. Raises ValueError without level 1.
    """
    grid = tuple(sorted({float(level) for level in levels}, reverse=True))
    if not grid or grid[0] != 1:
        raise ValueError(f"got levels {list(levels)}, expected fractions with 1 among them.")

    @cache
    def feasible(index: int) -> bool:
        score = objective.score(uniform_genome(bank, grid, index))
        log.info(
            "  level %-5g kept %5.1f %%  accuracy %.4f  margin %+.4f",
            grid[index], 100 * score.kept_fraction, score.accuracy, score.margin,
        )  # fmt: skip
        return score.feasible

    accepted, refused = 0, len(grid)
    while refused - accepted > 1:
        middle = (accepted + refused) // 2
        if feasible(middle):
            accepted = middle
        else:
            refused = middle
    while below := [i for i in (accepted + 1, accepted + 2) if i < len(grid) and feasible(i)]:
        accepted = below[-1]
    return uniform_genome(bank, grid, accepted)


def uniform_genome(bank: Bank, grid: tuple[float, ...], index: int) -> Genome:
    """The genome that puts every matrix of a bank on level `grid[index]`."""
    return Genome(grid, (index,) * len(bank.names), bank.names, bank.fingerprint)
