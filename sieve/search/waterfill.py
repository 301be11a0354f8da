"""Water-filling: the best ranks of all matrices at once for every budget, in closed form.

The loss of a matrix at rank r is the energy of the directions that it leaves out; its cost is the
number of parameters that it stores. Directions are removed in order of energy per parameter freed,
over all matrices: the lower convex hulls of the matrices' (cost, loss) points, merged by slope,
give the exact optimum of the summed loss at each budget (Lagrangian relaxation, Everett 1963).
Energies of the loss-aware projections share one unit; energies of others are normalized
first. A group of siblings has the states of its separate members and the states with one shared V.
A writer and the matrices that feed it (`sieve/model/units.py`) have the states of all of them, and
the state without any: it stores the writer's bias and loses all energy of the writer alone. Where
the bank knows the neurons between them, they also have the states of fewer neurons. A structural
bank has only these states and the dense one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.model.matrices import Matrix
from sieve.search.space import genome_of_levels

NORMALIZATIONS = ("none", "relative")
LARGEST_WEIGHT = 64.0  # weights are clipped to 1/64 ... 64
Ranks = dict[str, int | None]


@dataclass(frozen=True)
class Frontier:
    """S steps from a genome, by default the dense one, down to nothing, cheapest loss first.

    Args:
        changes: for each step, the ranks that change, by matrix or group name; mostly one.
        kept: (S + 1,) parameters of all matrices after each number of steps.
        loss: (S + 1,) estimated rise of the loss after each number of steps.
        start: ranks before the first step.
    """

    bank: Bank
    changes: tuple[Ranks, ...]
    kept: np.ndarray
    loss: np.ndarray
    start: Ranks

    def steps_to(self, kept_fraction: float) -> int:
        """The fewest steps that keep at most this fraction; all steps if none do."""
        steps = np.nonzero(self.kept <= kept_fraction * self.bank.size)[0]
        return int(steps[0]) if len(steps) else len(self.changes)

    def kept_fraction(self, steps: int) -> float:
        """Kept fraction of the prunable parameters after `steps` steps."""
        return float(self.kept[steps] / self.bank.size)

    def ranks(self, steps: int) -> dict[str, int | None]:
        """Rank by matrix and group name after `steps` steps; None: dense, or no shared factor."""
        ranks = dict(self.start)
        for change in self.changes[:steps]:
            ranks |= change
        return ranks

    def genome(self, steps: int) -> Genome:
        """The genome after `steps` steps; its grid holds the levels that it uses."""
        return genome_of_ranks(self.bank, self.ranks(steps))


def genome_of_ranks(bank: Bank, ranks: dict[str, int | None]) -> Genome:
    """The genome with these ranks by matrix and group name."""
    levels = [bank.sizing.level(matrix, ranks[matrix.name]) for matrix in bank.genes]
    return genome_of_levels(bank, levels)


def waterfill(
    bank: Bank, normalize: str = "none", lowest_rank: int = 0, start: Genome | None = None
) -> Frontier:
    """The frontier of a bank, from a genome down.

    Raises ValueError for an unknown normalization.

    Args:
        normalize: "none" takes energies as they are. "relative" divides a matrix's energies by
            their sum, so that its error counts relative to its output.
        lowest_rank: 0 lets a matrix go altogether, 1 keeps every matrix.
        start: the first genome; None is the dense model.
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(
            f"got normalization {normalize!r}, expected one of {', '.join(NORMALIZATIONS)}."
        )
    start_ranks: Ranks = dict.fromkeys(bank.names) if start is None else bank.ranks(start)

    hulls = _Hulls(bank, normalize, lowest_rank, start_ranks).of_all()
    steps = _by_slope(hulls)
    return Frontier(
        bank,
        tuple(_changed(a, b) for a, b in steps),
        sum(hull[0].cost for hull in hulls)
        - np.concatenate([[0], np.cumsum([a.cost - b.cost for a, b in steps])]).astype(int),
        sum(hull[0].loss for hull in hulls)
        + np.concatenate([[0.0], np.cumsum([b.loss - a.loss for a, b in steps])]),
        start_ranks,
    )


def scale_energies(bank: Bank, weights: Mapping[str, float], normalize: str = "none") -> Bank:
    """The bank with energies normalized and then scaled; pass it on with normalize="none".

    Factors and ranks stay, so genomes of the bank remain valid. A matrix without a weight has 1.
    """
    members = {gene.name: shares_of(gene) for gene in bank.genes}
    scaled = {}
    for name, factors in bank.factors.items():
        energy, scale = factors.energy.double(), weights.get(name, 1.0)
        if normalize == "relative":  # A group's error counts for each of its members.
            scale *= members[name] / max(float(energy.sum()), float(np.finfo(float).tiny))
        scaled[name] = replace(factors, energy=energy * scale)
    return replace(bank, factors=scaled)


def weights_toward(bank: Bank, genome: Genome) -> dict[str, float]:
    """Energy weights, from 1/64 to 64, with which the frontier passes near a genome.

    On a frontier all matrices lose the same per parameter. So a matrix's weight is the median slope
    of all matrices at the genome's ranks over its own slope. The bank's energies must share a unit;
    normalize others first with `scale_energies`.
    """
    slopes: dict[str, float] = {}
    for matrix, rank in bank.in_use(genome).items():
        energy = bank.factors[matrix.name].energy.double().clamp(min=0)
        top = min(len(energy), bank.sizing.top_rank(matrix))
        rank = top if rank is None else min(rank, top)
        energy_at_rank = energy[max(0, rank - 1) : rank + 1].mean()  # last kept and first removed
        kept = [bank.sizing.kept(matrix, r) for r in (max(1, rank), max(1, rank) - 1)]
        slopes[matrix.name] = float(energy_at_rank) / max(1, kept[0] - kept[1])
    floor = max(slopes.values(), default=0.0) * 1e-9
    if floor == 0:
        return {}
    logs = {name: float(np.log(max(slope, floor))) for name, slope in slopes.items()}
    median = float(np.median(list(logs.values())))
    largest = np.log(LARGEST_WEIGHT)
    weights = {
        name: float(np.exp(np.clip(median - log, -largest, largest))) for name, log in logs.items()
    }
    idle = bank.unneeded(genome)
    weights |= {m.name: weights[m.feeds] for m in bank.matrices if m.feeds and m.name in idle}
    for group in sorted(bank.groups, key=lambda group: group.name not in weights):
        # The genome uses either the members or the group; the other gets the same weight.
        if group.name in weights:
            weights |= dict.fromkeys(group.members, weights[group.name])
        else:
            members = [weights[name] for name in group.members if name in weights]
            weights[group.name] = float(np.exp(np.mean(np.log(members))))
    return weights


def shares_of(gene: Matrix) -> int:
    """How many relative errors a gene stands for: one for each member of a shared V."""
    return 1 if gene.neurons else max(1, len(gene.members))


def estimated_loss(bank: Bank, name: str, rank: int | None) -> float:
    """Estimated rise of the loss when a matrix has this rank; 0 if it is dense (None)."""
    return 0.0 if rank is None else float(bank.factors[name].energy[rank:].double().sum())


def estimated_rise(bank: Bank, genome: Genome) -> float:
    """Estimated rise of the loss for a genome: the sum over its matrices and groups."""
    return sum(estimated_loss(bank, m.name, rank) for m, rank in bank.in_use(genome).items())


class _Point(NamedTuple):
    """A state of a matrix or group: its parameters, its estimated loss, and its ranks."""

    cost: int
    loss: float
    ranks: Ranks


class _Hulls:
    """The hulls of the units, groups and matrices of a bank; see `waterfill`."""

    def __init__(self, bank: Bank, normalize: str, lowest_rank: int, start: Ranks) -> None:
        self.bank, self.start, self.lowest_rank = bank, start, lowest_rank
        self.normalize = normalize
        self.feeders: dict[str | None, list[Matrix]] = {}
        for matrix in bank.matrices:
            self.feeders.setdefault(matrix.feeds, []).append(matrix)

    def of_all(self) -> list[list["_Point"]]:
        """The hulls of a bank, independent of each other."""
        return self._of(self.feeders.get(None, []))

    def _of(self, matrices: Sequence[Matrix]) -> list[list["_Point"]]:
        names = {matrix.name for matrix in matrices}
        joint = [group for group in self.bank.groups if not group.neurons]
        groups = [group for group in joint if names.issuperset(group.members)]
        grouped = {name for group in groups for name in group.members}
        single = [self._unit(matrix) for matrix in matrices if matrix.name not in grouped]
        return single + [
            self._group(g, [m for m in matrices if m.name in g.members]) for g in groups
        ]

    def _points(self, matrix: Matrix) -> list["_Point"]:
        start, name = self.start[matrix.name], matrix.name
        points = _points(self.bank, matrix, self.normalize, self.lowest_rank, start)
        if not self.bank.structural or matrix.neurons:
            return points
        unit = name in self.feeders  # Only a unit goes as a whole.
        return points[:1] + [p for p in points[1:] if unit and p.ranks[name] == 0]

    def _group(self, group: Matrix, members: Sequence[Matrix]) -> list["_Point"]:
        """The states of siblings: separate, or with one shared V."""
        states = self._points(group)
        if self.start[group.name] is None:
            separate = _merged([self._unit(m) for m in members], {group.name: None})
            states = _below(separate[0], [*separate[1:], *states[1:]])
        return _hull(states)

    def _unit(self, writer: Matrix) -> list["_Point"]:
        """The states of a matrix together with the matrices that feed only it."""
        own, feeders = self._points(writer), self.feeders.get(writer.name, [])
        removed = next((point for point in own if point.ranks[writer.name] == 0), None)
        if not feeders:
            return _hull(own)
        if removed is not None and len(own) == 1:  # The start is without the unit.
            return own
        groups = [g for g in self.bank.groups if g.neurons and writer.name in g.members]
        off: Ranks = {group.name: None for group in groups}
        states = _merged([_hull([p for p in own if p is not removed]), *self._of(feeders)], off)
        names = {name for state in states for name in state.ranks} - {writer.name}
        joint: Ranks = {g.name: None for g in self.bank.groups if g.name in names}
        for group in groups:
            members: Ranks = dict.fromkeys(group.members)
            start = self.start[group.name]
            fewer = self._points(group)[start is None :]
            fewer = [p._replace(ranks=joint | members | p.ranks) for p in fewer]
            states = fewer if start is not None else _below(states[0], [*states[1:], *fewer])
        if removed is not None:
            ranks = dict.fromkeys(names, 0) | joint | off | removed.ranks
            states = [*states, removed._replace(ranks=ranks)]
        return _hull(states)


def _points(
    bank: Bank, matrix: Matrix, normalize: str, lowest_rank: int, start: int | None
) -> list[_Point]:
    """All states of a matrix from rank `start` (None: dense) down to `lowest_rank`."""
    energy = bank.factors[matrix.name].energy.double().numpy()
    if normalize == "relative":
        energy = shares_of(matrix) * energy / max(energy.sum(), np.finfo(float).tiny)
    sizing = bank.sizing
    top = min(bank.factors[matrix.name].rank, sizing.top_rank(matrix))
    losses = np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])  # losses[r]: energy from r on
    points = [] if start is not None else [_Point(matrix.size, 0.0, {matrix.name: None})]
    lowest = max(1, lowest_rank) if matrix.neurons else lowest_rank
    first, last = (top, lowest) if start is None else (start, min(start, lowest))
    for rank in range(first, last - 1, -1):
        if rank in (start, sizing.rounded(rank, matrix)):
            loss = max(float(losses[min(rank, len(energy))]), 0.0)
            points.append(_Point(sizing.kept(matrix, rank), loss, {matrix.name: rank}))
    return points


def _below(start: _Point, points: Sequence[_Point]) -> list[_Point]:
    """A start, and the points that cost less, from high to low cost: a frontier only goes down."""
    below = [point for point in points if point.cost < start.cost]
    return [start, *sorted(below, key=lambda p: (-p.cost, p.loss))]


def _hull(points: list[_Point]) -> list[_Point]:
    """The lower convex hull of points, which are ordered from high to low cost."""
    hull = points[:1]
    for point in points[1:]:
        if point.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _by_slope(hulls: list[list[_Point]]) -> list[tuple[_Point, _Point]]:
    """The steps of all hulls by rising slope; steps of one hull keep their order."""
    steps = [step for hull in hulls for step in pairwise(hull)]
    return sorted(steps, key=lambda step: _slope(*step))


def _changed(a: _Point, b: _Point) -> Ranks:
    """The ranks that a step from point a to point b changes."""
    return {name: rank for name, rank in b.ranks.items() if a.ranks.get(name, -1) != rank}


def _merged(hulls: list[list[_Point]], ranks: Ranks) -> list[_Point]:
    """The states of several matrices on their common frontier; each also has `ranks`."""
    start = ranks | {name: rank for hull in hulls for name, rank in hull[0].ranks.items()}
    points = [_Point(sum(h[0].cost for h in hulls), sum(h[0].loss for h in hulls), start)]
    for a, b in _by_slope(hulls):
        last = points[-1]
        points.append(
            _Point(last.cost - a.cost + b.cost, last.loss - a.loss + b.loss, last.ranks | b.ranks)
        )
    return points


def _slope(a: _Point, b: _Point) -> float:
    """Rise of the loss per parameter freed, from point a to the cheaper point b."""
    return (b.loss - a.loss) / (a.cost - b.cost)
