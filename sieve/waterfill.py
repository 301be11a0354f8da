"""Water-filling: the best ranks of all matrices at once for every budget, in closed form.

Each matrix's loss at rank r is the energy of the directions it leaves out, its cost what the
storage form says. Directions go in order of energy per parameter freed, over all matrices: the
lower convex hull of every matrix's (cost, loss) points, merged by slope, is the exact optimum of
the summed loss at each of its budgets (Lagrangian relaxation, Everett 1963). Energies of the
loss-aware projections share one unit; for others a normalisation says how to compare them.
"""

from dataclasses import dataclass

import numpy as np

from sieve.bank import Bank
from sieve.genome import Genome
from sieve.matrices import Matrix

NORMALIZATIONS = ("none", "relative")


@dataclass(frozen=True)
class Frontier:
    """Steps from the dense model down to nothing, in order of loss per parameter freed.

    matrix: (S,) index of the matrix a step shrinks; rank: (S,) what it shrinks to; kept: (S + 1,)
    parameters of all matrices after s steps; loss: (S + 1,) estimated rise of the loss by then.
    """

    bank: Bank
    matrix: np.ndarray
    rank: np.ndarray
    kept: np.ndarray
    loss: np.ndarray

    def within(self, kept_fraction: float) -> int:
        """The fewest steps after which at most this fraction is kept; all where none suffice."""
        fits = np.nonzero(self.kept <= kept_fraction * self.bank.size)[0]
        return int(fits[0]) if len(fits) else len(self.matrix)

    def kept_fraction(self, steps: int) -> float:
        """Kept fraction of the prunable parameters after some steps."""
        return float(self.kept[steps] / self.bank.size)

    def ranks(self, steps: int) -> dict[str, int | None]:
        """Rank of every matrix after some steps; None is dense."""
        ranks: dict[str, int | None] = dict.fromkeys(self.bank.names)
        for index, rank in zip(self.matrix[:steps], self.rank[:steps], strict=True):
            ranks[self.bank.names[index]] = int(rank)
        return ranks

    def genome(self, steps: int) -> Genome:
        """The genome after some steps, on a grid of its own levels."""
        return genome_of_ranks(self.bank, self.ranks(steps))


def genome_of_ranks(bank: Bank, ranks: dict[str, int | None]) -> Genome:
    """The genome that gives every matrix of a bank a certain rank."""
    levels = [bank.sizing.level(matrix, ranks[matrix.name]) for matrix in bank.matrices]
    grid = tuple(sorted({1.0, *levels}, reverse=True))
    indexes = tuple(grid.index(level) for level in levels)
    return Genome(grid, indexes, bank.names, bank.fingerprint)


def waterfill(bank: Bank, normalize: str = "none", lowest_rank: int = 0) -> Frontier:
    """The frontier of a bank.

    normalize: "none" takes energies as they are; "relative" divides each matrix's by their sum, so
    that a matrix's error counts relative to its output. lowest_rank: 1 keeps every matrix.
    Raises ValueError for an unknown normalisation.
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(
            f"got normalization {normalize!r}, expected one of {', '.join(NORMALIZATIONS)}."
        )
    steps: list[tuple[float, int, int, int, float]] = []  # slope, matrix, rank, freed, loss
    for index, matrix in enumerate(bank.matrices):
        energy = bank.factors[matrix.name].energy.double().numpy()
        if normalize == "relative":
            energy = energy / max(energy.sum(), np.finfo(float).tiny)
        steps += _steps(bank, matrix, index, energy, lowest_rank)
    steps.sort(key=lambda step: step[0])  # Stable: a matrix's own steps keep their order.
    freed = np.array([step[3] for step in steps])
    losses = np.array([step[4] for step in steps])
    return Frontier(
        bank,
        np.array([step[1] for step in steps], dtype=int),
        np.array([step[2] for step in steps], dtype=int),
        bank.size - np.concatenate([[0], np.cumsum(freed)]),
        np.concatenate([[0.0], np.cumsum(losses)]),
    )


def estimated_loss(bank: Bank, name: str, rank: int | None) -> float:
    """What a matrix at a rank adds to the loss, by the energies left out; 0 for the dense one."""
    return 0.0 if rank is None else float(bank.factors[name].energy[rank:].double().sum())


def _steps(
    bank: Bank, matrix: Matrix, index: int, energy: np.ndarray, lowest_rank: int
) -> list[tuple[float, int, int, int, float]]:
    """A matrix's steps along the lower convex hull of its (cost, loss) points, dense first."""
    sizing = bank.sizing
    multiple = sizing.rank_multiple
    top = min(bank.factors[matrix.name].rank, sizing.top_rank(matrix))
    ranks = [r for r in range(top, lowest_rank - 1, -1) if r < multiple or r % multiple == 0]
    left = np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])  # left[r]: energy from r on
    points = [(matrix.size, 0.0, -1)]
    for rank in ranks:
        cost, loss = sizing.kept(matrix, rank), max(float(left[min(rank, len(energy))]), 0.0)
        if cost >= points[-1][0]:
            continue
        while len(points) > 1 and _slope(points[-2], points[-1]) >= _slope(
            points[-1], (cost, loss, rank)
        ):
            points.pop()
        points.append((cost, loss, rank))
    return [
        (_slope(a, b), index, b[2], a[0] - b[0], b[1] - a[1])
        for a, b in zip(points, points[1:], strict=False)
    ]


def _slope(a: tuple[int, float, int], b: tuple[int, float, int]) -> float:
    """Loss per parameter freed from a point to a cheaper one."""
    return (b[1] - a[1]) / (a[0] - b[0])
