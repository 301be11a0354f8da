"""The genomes that a search on the task's metric chooses from: every gene's alleles, and seeds.

A gene is a matrix or a group of siblings. An allele is a rank, written as the level that gives this
rank. By default, neighboring ranks are about 10 % apart and all small ranks are included. In a
structural bank units stay or go, and MLPs have numbers of neurons.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.model.matrices import Matrix
from sieve.runtime.artifacts import read_json

RATIO = 1.1  # of neighboring ranks


@dataclass(frozen=True)
class GenomeSpace:
    """The alleles of every gene of a bank: ranks from the smallest to dense (None)."""

    bank: Bank
    alleles: tuple[tuple[int | None, ...], ...]

    def genome(self, positions: Sequence[int]) -> Genome:
        """The genome whose genes have the alleles at these positions."""
        ranks = [alleles[i] for alleles, i in zip(self.alleles, positions, strict=True)]
        sizing, genes = self.bank.sizing, self.bank.genes
        return genome_of_levels(
            self.bank, [sizing.level(gene, r) for gene, r in zip(genes, ranks, strict=True)]
        )

    def positions(self, genome: Genome) -> tuple[int, ...]:
        """The positions of a genome's alleles; a rank that is no allele is rounded up."""
        ranks = self.bank.ranks(genome)

        def position(alleles: Sequence[int | None], rank: int | None) -> int:
            sizes = [math.inf if allele is None else allele for allele in alleles]
            return bisect_left(sizes, math.inf if rank is None else rank)

        genes = zip(self.bank.genes, self.alleles, strict=True)
        return tuple(position(alleles, ranks[gene.name]) for gene, alleles in genes)

    @cached_property
    def costs(self) -> tuple[tuple[int, ...], ...]:
        """How many parameters every allele keeps; of a group, more than its dense members.

        The sum over a genome is what it keeps where the members of groups in use are dense.
        """
        sizing = self.bank.sizing
        return tuple(
            tuple(sizing.kept(gene, rank) - gene.size * bool(gene.members) for rank in alleles)
            for gene, alleles in zip(self.bank.genes, self.alleles, strict=True)
        )

    def describe(self, seeds: Sequence[Genome]) -> dict[str, list[object]]:
        """Plain containers for the sweeper: a variable for each gene, and the seeds as levels."""
        sizing = self.bank.sizing
        variables: list[object] = [
            {
                "name": gene.name,
                "values": [sizing.level(gene, rank) for rank in alleles],
                "costs": list(costs),
            }
            for gene, alleles, costs in zip(self.bank.genes, self.alleles, self.costs, strict=True)
        ]
        levels = [self.genome(self.positions(seed)).levels for seed in seeds]
        return {"variables": variables, "seeds": [list(seed.values()) for seed in levels]}


def make_space(bank: Bank, levels: Sequence[float] | None, lowest_rank: int = 0) -> GenomeSpace:
    """The space of a bank's genomes.

    Args:
        levels: the levels that are alleles, 1 among them; None takes ranks from `lowest_rank` up.
    """
    return GenomeSpace(
        bank,
        tuple((*_ranks(bank, gene, levels, lowest_rank), None) for gene in bank.genes),
    )


def genome_of_levels(bank: Bank, levels: Sequence[float]) -> Genome:
    """The genome with these levels, in the order of the bank's genes."""
    grid = tuple(sorted({1.0, *levels}, reverse=True))
    return Genome(grid, tuple(grid.index(x) for x in levels), bank.names, bank.fingerprint)


def from_prepared(config: object, prepared: Mapping[str, str]) -> dict[str, object]:
    """The space that the first job of a genetic search wrote; called by `hydra.sweeper.space`."""
    space = read_json(Path(prepared["space"]))
    return {key: space[key] for key in ("variables", "seeds")}


def _ranks(bank: Bank, gene: Matrix, levels: Sequence[float] | None, lowest_rank: int) -> list[int]:
    sizing, ranks = bank.sizing, list[int]()
    rank = sizing.step(1, gene) if gene.neurons else lowest_rank
    if bank.structural and not gene.neurons:  # Only a unit goes as a whole.
        return [0] if rank == 0 and any(m.feeds == gene.name for m in bank.matrices) else []
    if levels is not None:
        return sorted({r for level in levels if (r := sizing.rank(gene, level)) is not None})
    top = min(bank.factors[gene.name].rank, sizing.top_rank(gene))
    while rank < top:
        ranks.append(rank)
        step = sizing.step(rank, gene)
        rank = sizing.rounded(rank + max(step, int(rank * (RATIO - 1))), gene)
    return ranks
