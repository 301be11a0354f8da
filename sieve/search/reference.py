"""Reference searches on the task's metric, with a budget of evaluations or rows: random, EvoPress.

Both start from the smallest feasible seed and look for smaller feasible genomes.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sieve.bank.genome import Genome
from sieve.search.lines import Scorer
from sieve.search.score import Score
from sieve.search.space import GenomeSpace

log = logging.getLogger(__name__)
OFFSPRING = 8  # per generation of EvoPress
MAX_SWITCHES = 3  # level switches of an offspring
SHRINKAGE = 0.03  # share of the size that EvoPress removes at each step down
SMALLEST = 0.25  # smallest size that random search tries, as a share of the best size

Positions = tuple[int, ...]


@dataclass
class Budget:
    """What a search may still spend: evaluations of genomes, and rows to score them on."""

    evaluations: float = math.inf
    rows: float = math.inf
    scores: dict[Genome, Score] = field(default_factory=dict)

    @property
    def left(self) -> bool:
        """Whether any evaluation can be paid for."""
        return self.evaluations > 0 and self.rows > 0

    def score(self, objective: Scorer, genome: Genome, max_divergence: float = math.inf) -> Score:
        """Score a genome at the cost of an evaluation, and of its rows if it is new."""
        score = objective.score(genome, max_divergence)
        if self.scores.get(genome) is not score:
            self.rows -= score.examples_used
        self.scores[genome] = score
        self.evaluations -= 1
        return score


def search_random(
    space: GenomeSpace,
    objective: Scorer,
    seeds: Sequence[Genome],
    budget: Budget,
    seed: int = 0,
    judge: str = "margin",
) -> Genome:
    """Draw random genomes smaller than the best so far; return the smallest feasible one.

    Sizes are drawn uniformly on a logarithmic scale. Random alleles are drawn, then
    changed at random until the genome has that size. `judge` has no effect.
    """
    random = np.random.default_rng(seed)
    best, size = _smallest(space, objective, seeds)
    while budget.left:
        target = size * math.exp(random.uniform(math.log(SMALLEST), 0))
        drawn = tuple(int(random.integers(len(alleles))) for alleles in space.alleles)
        tried = space.genome(_resized(space, drawn, target, random))
        score = budget.score(objective, tried)
        if score.feasible and score.kept_fraction < size:
            best, size = tried, score.kept_fraction
            log.info("  random       kept %5.2f %%  margin %+.4f", 100 * size, score.margin)
    return best


def search_evopress(
    space: GenomeSpace,
    objective: Scorer,
    seeds: Sequence[Genome],
    budget: Budget,
    seed: int = 0,
    judge: str = "margin",
) -> Genome:
    """EvoPress's (1+λ) evolution by level switches; feasible genomes shrink the target size.

    The paper (Sec. 3, arXiv:2410.14649) searches at a given size. Here the size falls by 3 % as
    soon as a genome of that size is feasible. The offspring with the largest margin survives; with
    judge="divergence", as in the paper, the one with the least divergence from the dense model.
    """

    def fitness_of(score: Score) -> float:
        return -score.divergence if judge == "divergence" else score.margin

    random = np.random.default_rng(seed)
    best, size = _smallest(space, objective, seeds)
    target = size * (1 - SHRINKAGE)
    parent, fitness = space.positions(best), -math.inf
    while budget.left:
        scored: list[tuple[Score, Positions]] = []
        least = math.inf  # divergence; a child that exceeds it cannot survive
        while budget.left and len(scored) < OFFSPRING:
            child = _resized(space, _switched(space, parent, random), target, random)
            max_divergence = least if judge == "divergence" else math.inf
            scored.append((budget.score(objective, space.genome(child), max_divergence), child))
            least = min(least, scored[-1][0].divergence)
        score, child = max(scored, key=lambda pair: fitness_of(pair[0]))
        if fitness_of(score) >= fitness:
            parent, fitness = child, fitness_of(score)
        if score.feasible and score.kept_fraction < size:
            best, size = space.genome(child), score.kept_fraction
            target, fitness = size * (1 - SHRINKAGE), -math.inf
            log.info("  evopress     kept %5.2f %%  margin %+.4f", 100 * size, score.margin)
    return best


def _smallest(
    space: GenomeSpace, objective: Scorer, seeds: Sequence[Genome]
) -> tuple[Genome, float]:
    """The smallest feasible genome among the seeds and the dense model, and its kept fraction.

    The dense model if none is feasible, as may be if the pruned model reads a shorter prompt.
    """
    dense = space.genome([len(alleles) - 1 for alleles in space.alleles])
    scores: list[tuple[Score, Genome]] = [(objective.score(g), g) for g in (dense, *seeds)]
    feasible = (pair for pair in scores if pair[0].feasible)
    score, best = min(feasible, key=lambda pair: pair[0].kept_fraction, default=scores[0])
    return best, score.kept_fraction


def _switched(space: GenomeSpace, positions: Positions, random: np.random.Generator) -> Positions:
    """Move one to three genes one allele up and as many one allele down (level switches)."""
    changed = list(positions)
    for _ in range(int(random.integers(1, MAX_SWITCHES + 1))):
        up, down = random.choice(len(changed), 2, replace=False)
        if changed[up] < len(space.alleles[up]) - 1 and changed[down] > 0:
            changed[up] += 1
            changed[down] -= 1
    return tuple(changed)


def _resized(
    space: GenomeSpace, positions: Positions, target: float, random: np.random.Generator
) -> Positions:
    """Move random genes by one allele until the kept fraction is just below or at `target`."""
    changed, limit = list(positions), target * space.bank.size
    # Where units go as a whole, what feeds them goes too, so costs do not add up.
    exact = space.bank.structural
    kept = _kept(space, changed) if exact else _sum(space, changed)

    def move(direction: int) -> None:
        nonlocal kept
        movable = [
            gene
            for gene, costs in enumerate(space.costs)
            if 0 <= changed[gene] + direction < len(costs)
        ]
        gene = int(random.choice(movable))
        kept -= space.costs[gene][changed[gene]]
        changed[gene] += direction
        kept = _kept(space, changed) if exact else kept + space.costs[gene][changed[gene]]

    while kept < limit and any(at < len(c) - 1 for at, c in zip(changed, space.costs, strict=True)):
        move(1)
    while kept > limit and any(changed):
        move(-1)
    return tuple(changed)


def _sum(space: GenomeSpace, positions: Sequence[int]) -> int:
    """The sum of the costs of the alleles at these positions."""
    return sum(costs[position] for costs, position in zip(space.costs, positions, strict=True))


def _kept(space: GenomeSpace, positions: Sequence[int]) -> int:
    """Parameters of the genome at these positions."""
    return space.bank.kept_parameters(space.genome(positions))
