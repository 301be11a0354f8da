"""Water-filling: the best ranks of all matrices at once for every budget, in closed form.

Each matrix's loss at rank r is the energy of the directions it leaves out, its cost what the
storage form says. Directions go in order of energy per parameter freed, over all matrices: the
lower convex hull of every matrix's (cost, loss) points, merged by slope, is the exact optimum of
the summed loss at each of its budgets (Lagrangian relaxation, Everett 1963). Energies of the
loss-aware projections share one unit; for others a normalisation says how to compare them. Where
siblings may share one V, a group's states are those of its members together and those of the whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.model.matrices import Matrix

NORMALIZATIONS = ("none", "relative")
LARGEST_WEIGHT = 64.0  # what a weight differs from 1 by, at most
Ranks = dict[str, int | None]


@dataclass(frozen=True)
class Frontier:
    """Steps from a genome, the dense one by default, down to nothing, by loss per parameter freed.

    changes: per step, names of matrices (and groups of siblings) and the ranks that they take; most
    steps change one. kept: (S + 1,) parameters of all matrices after s of S steps; loss: (S + 1,)
    estimated rise of the loss by then; start: ranks before the first.
    """

    bank: Bank
    changes: tuple[Ranks, ...]
    kept: np.ndarray
    loss: np.ndarray
    start: Ranks

    def within(self, kept_fraction: float) -> int:
        """The fewest steps after which at most this fraction is kept; all where none suffice."""
        fits = np.nonzero(self.kept <= kept_fraction * self.bank.size)[0]
        return int(fits[0]) if len(fits) else len(self.changes)

    def kept_fraction(self, steps: int) -> float:
        """Kept fraction of the prunable parameters after some steps."""
        return float(self.kept[steps] / self.bank.size)

    def ranks(self, steps: int) -> dict[str, int | None]:
        """Rank of every matrix and group after some steps; None is dense, or not shared."""
        ranks = dict(self.start)
        for change in self.changes[:steps]:
            ranks |= change
        return ranks

    def genome(self, steps: int) -> Genome:
        """The genome after some steps, on a grid of its own levels."""
        return genome_of_ranks(self.bank, self.ranks(steps))


def genome_of_ranks(bank: Bank, ranks: dict[str, int | None]) -> Genome:
    """The genome that gives every matrix of a bank a certain rank."""
    levels = [bank.sizing.level(matrix, ranks[matrix.name]) for matrix in bank.genes]
    grid = tuple(sorted({1.0, *levels}, reverse=True))
    indexes = tuple(grid.index(level) for level in levels)
    return Genome(grid, indexes, bank.names, bank.fingerprint)


def waterfill(
    bank: Bank, normalize: str = "none", lowest_rank: int = 0, start: Genome | None = None
) -> Frontier:
    """The frontier of a bank, from a genome down.

    normalize: "none" takes energies as they are; "relative" divides each matrix's by their sum, so
    that a matrix's error counts relative to its output. lowest_rank: 1 keeps every matrix; start:
    the dense model where None.
    Raises ValueError for an unknown normalisation.
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(
            f"got normalization {normalize!r}, expected one of {', '.join(NORMALIZATIONS)}."
        )
    begin: Ranks = dict.fromkeys(bank.names) if start is None else bank.ranks(start)

    def points(matrix: Matrix) -> list[_Point]:
        return _points(bank, matrix, normalize, lowest_rank, begin[matrix.name])

    grouped = {name for group in bank.groups for name in group.members}
    hulls = [_hull(points(matrix)) for matrix in bank.matrices if matrix.name not in grouped]
    for group in bank.groups:
        shared = points(group)
        if begin[group.name] is None:
            own = [_hull(points(m)) for m in bank.matrices if m.name in group.members]
            apart = _merged(own, {group.name: None})
            shared = sorted([*apart, *shared[1:]], key=lambda p: (-p.cost, p.loss))
            # What costs more than the start lies behind it.
            shared = [apart[0], *(p for p in shared if p.cost < apart[0].cost)]
        hulls.append(_hull(shared))
    steps = _by_slope(hulls)
    return Frontier(
        bank,
        tuple(b.ranks for _, b in steps),
        sum(hull[0].cost for hull in hulls)
        - np.concatenate([[0], np.cumsum([a.cost - b.cost for a, b in steps])]).astype(int),
        sum(hull[0].loss for hull in hulls)
        + np.concatenate([[0.0], np.cumsum([b.loss - a.loss for a, b in steps])]),
        begin,
    )


def weighted(bank: Bank, weights: Mapping[str, float], normalize: str = "none") -> Bank:
    """The bank with the energies of matrices scaled, once normalised; to be filled with "none".

    weights: 1 where none is given. It is the same bank to genomes, for its factors and ranks are;
    only what a rank is worth changes.
    """
    members = {gene.name: max(1, len(gene.members)) for gene in bank.genes}
    factors = {}
    for name, held in bank.factors.items():
        energy, scale = held.energy.double(), weights.get(name, 1.0)
        if normalize == "relative":  # A group's error counts for each of its members.
            scale *= members[name] / max(float(energy.sum()), float(np.finfo(float).tiny))
        factors[name] = replace(held, energy=energy * scale)
    return replace(bank, factors=factors)


def through(bank: Bank, genome: Genome) -> dict[str, float]:
    """Weights with which the frontier passes near a genome, at most 64 times apart from 1.

    The frontier stops at ranks where all matrices lose as much per parameter. So each matrix is
    weighted by the median of all matrices' slopes at the genome's ranks over its own. The bank's
    energies must share a unit: those of others are to be normalised first, by `weighted`.
    """
    slopes: dict[str, float] = {}
    for matrix, rank in bank.in_use(genome).items():
        energy = bank.factors[matrix.name].energy.double().clamp(min=0)
        top = min(len(energy), bank.sizing.top_rank(matrix))
        at = top if rank is None else min(rank, top)
        around = energy[max(0, at - 1) : at + 1].mean()  # of the last direction kept, the first not
        cost = bank.sizing.kept(matrix, max(1, at)) - bank.sizing.kept(matrix, max(1, at) - 1)
        slopes[matrix.name] = float(around) / max(1, cost)
    floor = max(slopes.values(), default=0.0) * 1e-9
    if floor == 0:
        return {}
    logs = {name: float(np.log(max(slope, floor))) for name, slope in slopes.items()}
    level = float(np.median(list(logs.values())))
    weights = {
        name: float(np.exp(np.clip(level - log, -np.log(LARGEST_WEIGHT), np.log(LARGEST_WEIGHT))))
        for name, log in logs.items()
    }
    for group in bank.groups:
        members = [weights[name] for name in group.members if name in weights]
        shared = weights.get(group.name, float(np.exp(np.mean(np.log(members or [1.0])))))
        weights |= dict.fromkeys([group.name, *group.members], shared) if not members else {
            group.name: shared
        }  # fmt: skip
    return weights


def estimated_loss(bank: Bank, name: str, rank: int | None) -> float:
    """What a matrix at a rank adds to the loss, by the energies left out; 0 for the dense one."""
    return 0.0 if rank is None else float(bank.factors[name].energy[rank:].double().sum())


def estimated_rise(bank: Bank, genome: Genome) -> float:
    """What a genome adds to the loss, by the energies left out of its matrices and groups."""
    return sum(estimated_loss(bank, m.name, rank) for m, rank in bank.in_use(genome).items())


class _Point(NamedTuple):
    """A state of a matrix or of a group: parameters, estimated loss, the ranks that make it."""

    cost: int
    loss: float
    ranks: Ranks


def _points(
    bank: Bank, matrix: Matrix, normalize: str, lowest_rank: int, begin: int | None
) -> list[_Point]:
    """All states of a matrix from the rank it begins with, by falling rank; None is dense."""
    energy = bank.factors[matrix.name].energy.double().numpy()
    if normalize == "relative":
        share = max(1, len(matrix.members))  # A group's error counts for each of its members.
        energy = share * energy / max(energy.sum(), np.finfo(float).tiny)
    sizing = bank.sizing
    top = min(bank.factors[matrix.name].rank, sizing.top_rank(matrix))
    left = np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])  # left[r]: energy from r on
    points = [] if begin is not None else [_Point(matrix.size, 0.0, {matrix.name: None})]
    first, last = (top, lowest_rank) if begin is None else (begin, min(begin, lowest_rank))
    for rank in range(first, last - 1, -1):
        if rank in (begin, sizing.rounded(rank)):
            loss = max(float(left[min(rank, len(energy))]), 0.0)
            points.append(_Point(sizing.kept(matrix, rank), loss, {matrix.name: rank}))
    return points


def _hull(points: list[_Point]) -> list[_Point]:
    """The lower convex hull of points in order of falling cost, from the first, dense one down."""
    hull = points[:1]
    for point in points[1:]:
        if point.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _by_slope(hulls: list[list[_Point]]) -> list[tuple[_Point, _Point]]:
    """The steps of all hulls, the cheapest loss per parameter first; each hull's in their order."""
    steps = [step for hull in hulls for step in pairwise(hull)]
    return sorted(steps, key=lambda step: _slope(*step))  # Stable.


def _merged(hulls: list[list[_Point]], ranks: Ranks) -> list[_Point]:
    """States of several matrices together on their common frontier, and `ranks` in each."""
    dense = ranks | {name: rank for hull in hulls for name, rank in hull[0].ranks.items()}
    points = [_Point(sum(h[0].cost for h in hulls), sum(h[0].loss for h in hulls), dense)]
    for a, b in _by_slope(hulls):
        last = points[-1]
        points.append(
            _Point(last.cost - a.cost + b.cost, last.loss - a.loss + b.loss, last.ranks | b.ranks)
        )
    return points


def _slope(a: _Point, b: _Point) -> float:
    """Loss per parameter freed from a point to a cheaper one."""
    return (b.loss - a.loss) / (a.cost - b.cost)
