"""The space of genomes that a search on the end metric walks: what each gene may be, and seeds.

An allele of a matrix is a rank, written as the level that gives it. By default ranks stand about
10 % apart, every one of the small ones; with levels given, an allele is a level of that grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.model.matrices import Matrix
from sieve.runtime.artifacts import read_json

STEP = 1.1  # from one rank to the next


@dataclass(frozen=True)
class GenomeSpace:
    """Alleles of every gene of a bank, ranks from the smallest to dense (None)."""

    bank: Bank
    alleles: tuple[tuple[int | None, ...], ...]

    def genome(self, positions: Sequence[int]) -> Genome:
        """The genome with one allele per gene."""
        ranks = [held[at] for held, at in zip(self.alleles, positions, strict=True)]
        sizing, genes = self.bank.sizing, self.bank.genes
        return genome_of_levels(
            self.bank, [sizing.level(gene, r) for gene, r in zip(genes, ranks, strict=True)]
        )

    def positions(self, genome: Genome) -> tuple[int, ...]:
        """Where the alleles of a genome stand, or the next larger ones."""
        ranks = self.bank.ranks(genome)
        return tuple(
            next(i for i, allele in enumerate(held) if _reaches(allele, ranks[gene.name]))
            for gene, held in zip(self.bank.genes, self.alleles, strict=True)
        )

    @cached_property
    def costs(self) -> tuple[tuple[int, ...], ...]:
        """Parameters of every allele."""
        sizing = self.bank.sizing
        return tuple(
            tuple(sizing.kept(gene, rank) for rank in held)
            for gene, held in zip(self.bank.genes, self.alleles, strict=True)
        )

    def describe(self, seeds: Sequence[Genome]) -> dict[str, Any]:
        """Plain containers for a sweeper: a variable per gene, and the seeds as levels."""
        sizing = self.bank.sizing
        variables = [
            {
                "name": gene.name,
                "values": [sizing.level(gene, rank) for rank in held],
                "costs": list(costs),
            }
            for gene, held, costs in zip(self.bank.genes, self.alleles, self.costs, strict=True)
        ]
        levels = [self.genome(self.positions(seed)).levels for seed in seeds]
        return {"variables": variables, "seeds": [list(seed.values()) for seed in levels]}


def make_space(bank: Bank, levels: Sequence[float] | None, lowest_rank: int = 0) -> GenomeSpace:
    """The space of a bank.

    levels: a grid with 1 among them; None takes ranks, from `lowest_rank` up.
    """
    return GenomeSpace(
        bank,
        tuple(
            _ranks(bank, gene, lowest_rank) if levels is None else _levels(bank, gene, levels)
            for gene in bank.genes
        ),
    )


def genome_of_levels(bank: Bank, levels: Sequence[float]) -> Genome:
    """The genome with these levels, in the order of the bank's genes, on a grid of its own."""
    grid = tuple(sorted({1.0, *levels}, reverse=True))
    return Genome(grid, tuple(grid.index(x) for x in levels), bank.names, bank.fingerprint)


def from_prepared(config: Any, prepared: Mapping[str, Any]) -> Any:
    """What the sweeper asks for (`hydra.sweeper.space`): the space that the first job wrote."""
    described = read_json(Path(prepared["space"]))
    return {key: described[key] for key in ("variables", "seeds")}


def _ranks(bank: Bank, gene: Matrix, lowest_rank: int) -> tuple[int | None, ...]:
    top = min(bank.factors[gene.name].rank, bank.sizing.top_rank(gene))
    sizing, ranks, rank = bank.sizing, [], lowest_rank
    while rank < top:
        ranks.append(rank)
        rank = sizing.rounded(rank + max(sizing.step(rank), int(rank * (STEP - 1))))
    return (*ranks, None)


def _levels(bank: Bank, gene: Matrix, levels: Sequence[float]) -> tuple[int | None, ...]:
    ranks = {bank.sizing.rank(gene, level) for level in levels}
    return (*sorted(rank for rank in ranks if rank is not None), None)


def _reaches(allele: int | None, rank: int | None) -> bool:
    return allele is None or (rank is not None and allele >= rank)
