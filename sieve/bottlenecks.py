"""The bottleneck map: how far each matrix alone can be pruned, the rest dense."""

from typing import Any

from sieve.bank import Bank
from sieve.progress import track
from sieve.search import Scorer
from sieve.space import genome_of_levels

LEVELS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0)


def find_bottlenecks(
    bank: Bank, objective: Scorer, levels: tuple[float, ...] = LEVELS, lowest_rank: int = 0
) -> list[dict[str, Any]]:
    """For each gene the least level that it alone can have before the margin is negative.

    The least level first, which most can do with, then bisection over the others: a row per gene
    with its name, the level of its rank there, the kept fraction of the matrix, and how many
    genomes that took. lowest_rank: 1 where no matrix may go altogether.
    """
    rows = []
    for gene, matrix in track(list(enumerate(bank.genes)), "Bottlenecks"):
        held = bank.factors[matrix.name].rank
        ranks = [bank.sizing.rank(matrix, level) for level in levels]
        ranks = [None if rank is None or rank > held else rank for rank in ranks]
        if lowest_rank:
            ranks = [None if rank is None else max(rank, lowest_rank) for rank in ranks]
        refused, accepted, tried, middle = -1, len(levels) - 1, 0, 0
        while accepted - refused > 1:
            whole = [1.0] * len(bank.genes)
            whole[gene] = bank.sizing.level(matrix, ranks[middle])
            tried += 1
            if objective.score(genome_of_levels(bank, whole)).feasible:
                accepted = middle
            else:
                refused = middle
            middle = (accepted + refused) // 2
        rows.append(
            {
                "name": matrix.name,
                "level": bank.sizing.level(matrix, ranks[accepted]),
                "kept_fraction": bank.sizing.kept(matrix, ranks[accepted]) / matrix.size,
                "evaluations": tried,
            }
        )
    return rows
