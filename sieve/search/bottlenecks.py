"""The bottleneck map: how far each matrix can be pruned on its own while the rest stays dense."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.model.matrices import Matrix
from sieve.runtime.progress import track
from sieve.search.lines import Scorer, shared_blocks
from sieve.search.space import genome_of_levels

LEVELS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0)
SHARE = 0.25  # of the prunable parameters that `contrast` removes


class Bottleneck(TypedDict):
    """The least level of a gene at which the margin is not negative, all else dense."""

    name: str
    level: float
    kept_fraction: float  # of the matrix
    evaluations: int


def find_bottlenecks(bank: Bank, objective: Scorer, lowest_rank: int = 0) -> list[Bottleneck]:
    """Find the least level of each gene at which the margin is not negative, the rest dense.

    The lowest level is tried first, since it suffices for most genes; then the others by bisection.

    Args:
        lowest_rank: 0 lets a matrix go altogether, 1 keeps every matrix.
    """
    with shared_blocks(objective, genome_of_levels(bank, [1.0] * len(bank.genes))):
        return [
            _bottleneck(bank, objective, gene, lowest_rank)
            for gene in track(range(len(bank.genes)), "Bottlenecks", unit="matrices")
        ]


def _bottleneck(bank: Bank, objective: Scorer, gene: int, lowest_rank: int) -> Bottleneck:
    matrix = bank.genes[gene]
    largest = bank.factors[matrix.name].rank
    ranks = [bank.sizing.rank(matrix, level) for level in LEVELS]
    ranks = [None if r is None or r > largest else max(r, lowest_rank) for r in ranks]
    refused, accepted, evaluations, middle = -1, len(LEVELS) - 1, 0, 0
    while accepted - refused > 1:
        genome_levels = [1.0] * len(bank.genes)
        genome_levels[gene] = bank.sizing.level(matrix, ranks[middle])
        evaluations += 1
        if objective.score(genome_of_levels(bank, genome_levels)).feasible:
            accepted = middle
        else:
            refused = middle
        middle = (accepted + refused) // 2
    return Bottleneck(
        name=matrix.name,
        level=bank.sizing.level(matrix, ranks[accepted]),
        kept_fraction=bank.sizing.kept(matrix, ranks[accepted]) / matrix.size,
        evaluations=evaluations,
    )


@dataclass(frozen=True)
class Part:
    """The dense model without some of its matrices."""

    genome: Genome
    matrices: int  # how many were removed
    removed: float  # fraction of the prunable parameters that was removed


def contrast(bank: Bank, mapped: Sequence[Bottleneck], lowest_rank: int = 0) -> dict[str, Part]:
    """Two models: "bottlenecks" lacks the neediest matrices, "others" the least needy ones.

    Matrices are put on the lowest rank until the removed ones hold `SHARE` of the prunable
    parameters. The rest stays dense.

    Args:
        mapped: rows of `find_bottlenecks`.
    """
    need = {row["name"]: row["kept_fraction"] for row in mapped}
    ordered = sorted(bank.genes, key=lambda gene: (need[gene.name], gene.name))
    return {
        "bottlenecks": _without(bank, ordered[::-1], lowest_rank),
        "others": _without(bank, ordered, lowest_rank),
    }


def _without(bank: Bank, ordered: Sequence[Matrix], lowest_rank: int) -> Part:
    removed, covered, size = set[str](), set[str](), 0
    for gene in ordered:
        names = set(gene.members or (gene.name,))
        # A group or a member of it may have been removed before.
        if size < SHARE * bank.size and not covered & names:
            removed.add(gene.name)
            covered |= names
            size += gene.size
    lowest = [bank.sizing.level(gene, lowest_rank) for gene in bank.genes]
    levels = [low if g.name in removed else 1.0 for g, low in zip(bank.genes, lowest, strict=True)]
    genome = genome_of_levels(bank, levels)
    return Part(genome, len(covered), 1 - bank.kept_fraction(genome))
