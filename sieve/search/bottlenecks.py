"""The bottleneck map: how far each matrix alone can be pruned, the rest dense."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.model.matrices import Matrix
from sieve.runtime.progress import track
from sieve.search.lines import Scorer
from sieve.search.space import genome_of_levels

LEVELS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0)
SHARE = 0.25  # of the prunable parameters, that a contrast takes away


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


@dataclass(frozen=True)
class Part:
    """Some matrices taken out of the dense model."""

    genome: Genome
    matrices: int  # how many of them
    removed: float  # the fraction of the prunable parameters that went


def contrast(
    bank: Bank, mapped: Sequence[dict[str, Any]], lowest_rank: int = 0, share: float = SHARE
) -> dict[str, Part]:
    """Two models: one without its bottlenecks, and one without as much of what is none.

    mapped: rows of `find_bottlenecks`. "bottlenecks" takes the matrices that alone must keep the
    most, until a share of the prunable parameters is reached, "others" those that need the least;
    all are put on the lowest rank there is, and the rest stays dense.
    """
    need = {row["name"]: row["kept_fraction"] for row in mapped}
    ordered = sorted(bank.genes, key=lambda gene: (need[gene.name], gene.name))
    return {
        "bottlenecks": _without(bank, ordered[::-1], share, lowest_rank),
        "others": _without(bank, ordered, share, lowest_rank),
    }


def _without(bank: Bank, ordered: Sequence[Matrix], share: float, lowest_rank: int) -> Part:
    taken, covered, size = set[str](), set[str](), 0
    for gene in ordered:
        if size >= share * bank.size:
            break
        if covered & set(gene.members or (gene.name,)):  # by a group, or by one of its members
            continue
        taken.add(gene.name)
        covered |= set(gene.members or (gene.name,))
        size += gene.size
    lowest = [bank.sizing.level(gene, lowest_rank) for gene in bank.genes]
    levels = [low if g.name in taken else 1.0 for g, low in zip(bank.genes, lowest, strict=True)]
    genome = genome_of_levels(bank, levels)
    return Part(genome, len(covered), 1 - bank.kept_fraction(genome))
