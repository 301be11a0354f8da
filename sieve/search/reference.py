"""Reference searches on the end metric, for a budget of evaluations or rows: random, and EvoPress.

Both begin with the smallest feasible of the seeds and look for a smaller one that is feasible.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sieve.bank.genome import Genome
from sieve.search.lines import Scorer
from sieve.search.objective import Score
from sieve.search.space import GenomeSpace

log = logging.getLogger(__name__)
OFFSPRING = 8  # per generation of EvoPress
SWITCHES = 3  # level switches of an offspring, at most
SMALLER = 0.03  # of the size, at each step down
LOWEST = 0.25  # of the best size, the smallest that random search tries

Positions = tuple[int, ...]


@dataclass
class Budget:
    """What a search may still spend: genomes, and rows that they are scored on."""

    evaluations: float = math.inf
    rows: float = math.inf
    seen: dict[Genome, Score] = field(default_factory=dict)

    @property
    def left(self) -> bool:
        """Whether there is something of both."""
        return self.evaluations > 0 and self.rows > 0

    def score(self, objective: Scorer, genome: Genome, farthest: float = math.inf) -> Score:
        """Score a genome and pay for it; one that was scored before costs no rows."""
        score = objective.score(genome, farthest)
        fresh = self.seen.get(genome) is not score
        self.seen[genome] = score
        self.evaluations -= 1
        self.rows -= score.examples_used if fresh else 0
        return score


def search_random(
    space: GenomeSpace,
    objective: Scorer,
    seeds: Sequence[Genome],
    budget: Budget,
    seed: int = 0,
    judge: str = "margin",
) -> Genome:
    """The smallest feasible of random genomes that are smaller than the best so far.

    Sizes are drawn evenly on a logarithmic scale; alleles at random, then moved at random until the
    size is met. `judge` changes nothing here.
    """
    random = np.random.default_rng(seed)
    best, size = _smallest(space, objective, seeds)
    while budget.left:
        target = size * math.exp(random.uniform(math.log(LOWEST), 0))
        drawn = tuple(int(random.integers(len(held))) for held in space.alleles)
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
    """EvoPress's (1+λ) evolution by level switches at one size, going down where that is feasible.

    Sec. 3 of arXiv:2410.14649 searches at a given size. Here the size falls by 3 % as soon as a
    genome of it is feasible; of the offspring at a size the one with the largest margin lives on,
    or with judge="divergence", as in the paper, the one nearest to the dense model.
    """

    def fitness_of(score: Score) -> float:
        return -score.divergence if judge == "divergence" else score.margin

    random = np.random.default_rng(seed)
    best, size = _smallest(space, objective, seeds)
    target = size * (1 - SMALLER)
    parent, fitness = space.positions(best), -math.inf
    while budget.left:
        scored: list[tuple[Score, Positions]] = []
        nearest = math.inf  # Farther than the best sibling none lives on.
        while budget.left and len(scored) < OFFSPRING:
            child = _resized(space, _switched(space, parent, random), target, random)
            farthest = nearest if judge == "divergence" else math.inf
            scored.append((budget.score(objective, space.genome(child), farthest), child))
            nearest = min(nearest, scored[-1][0].divergence)
        score, child = max(scored, key=lambda pair: fitness_of(pair[0]))
        if fitness_of(score) >= fitness:
            parent, fitness = child, fitness_of(score)
        if score.feasible and score.kept_fraction < size:
            best, size = space.genome(child), score.kept_fraction
            target, fitness = size * (1 - SMALLER), -math.inf
            log.info("  evopress     kept %5.2f %%  margin %+.4f", 100 * size, score.margin)
    return best


def _smallest(
    space: GenomeSpace, objective: Scorer, seeds: Sequence[Genome]
) -> tuple[Genome, float]:
    """The smallest feasible seed, the dense model among them, and its kept fraction."""
    dense = space.genome([len(held) - 1 for held in space.alleles])
    scores: list[tuple[Score, Genome]] = [(objective.score(g), g) for g in (dense, *seeds)]
    score, best = min(
        (pair for pair in scores if pair[0].feasible), key=lambda pair: pair[0].kept_fraction
    )
    return best, score.kept_fraction


def _switched(space: GenomeSpace, positions: Positions, random: np.random.Generator) -> Positions:
    """Some genes a step up and as many a step down."""
    changed = list(positions)
    for _ in range(int(random.integers(1, SWITCHES + 1))):
        up, down = random.choice(len(changed), 2, replace=False)
        if changed[up] < len(space.alleles[up]) - 1 and changed[down] > 0:
            changed[up] += 1
            changed[down] -= 1
    return tuple(changed)


def _resized(
    space: GenomeSpace, positions: Positions, target: float, random: np.random.Generator
) -> Positions:
    """Moved a step at a time, genes at random, until at most `target` of all is kept, and no less
    than a step away from it."""
    changed, limit = list(positions), target * space.bank.size
    kept = sum(costs[at] for costs, at in zip(space.costs, changed, strict=True))

    def move(direction: int) -> None:
        nonlocal kept
        able = [
            gene
            for gene, costs in enumerate(space.costs)
            if 0 <= changed[gene] + direction < len(costs)
        ]
        gene = int(random.choice(able))
        kept -= space.costs[gene][changed[gene]]
        changed[gene] += direction
        kept += space.costs[gene][changed[gene]]

    while kept < limit and any(at < len(c) - 1 for at, c in zip(changed, space.costs, strict=True)):
        move(1)
    while kept > limit and any(changed):
        move(-1)
    return tuple(changed)
