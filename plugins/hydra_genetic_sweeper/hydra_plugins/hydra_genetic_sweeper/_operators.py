"""Mutation and the first population, for genomes of discrete and continuous genes.

Step sizes are heavy-tailed as in Doerr et al. (arXiv:1703.03334). The level switch of EvoPress
(arXiv:2410.14649) raises one gene and lowers another, which keeps the total cost about equal.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pymoo.core.mutation import Mutation

from ._space import Discrete, Genome, Space, Variable

STEP_SIZE = 0.1  # standard deviation of a step of a continuous gene, as a fraction of its range
ATTEMPTS = 200  # per genome of the first population, to find one that is not a duplicate


class Mutate(Mutation):
    """Mutates genomes.

    Args:
        space: the variables.
        rate: probability that a gene changes.
        switch: probability that a genome gets a level switch instead.
        down: probability that an ordered gene changes to a lower value.
    """

    def __init__(self, space: Space, rate: float, switch: float, down: float = 0.5) -> None:
        super().__init__()
        self.variables, self.rate, self.switch, self.down = space.variables, rate, switch, down

    def _do(
        self, problem: Any, X: np.ndarray, *args: Any, random_state: Any = None, **kwargs: Any
    ) -> np.ndarray:
        """Mutate genomes X (n, genes) into an array of the same shape."""
        return np.stack([self.mutated(row, random_state) for row in X])

    def mutated(self, row: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A mutated copy of one genome (genes,)."""
        row = row.copy()
        if random.random() < self.switch and (pair := _pair(self.variables, row, random)):
            _switch(self.variables, row, *pair)
            return row
        for gene in np.flatnonzero(random.random(len(row)) < self.rate):
            row[gene] = moved(self.variables[gene], row[gene], random, self.down)
        return row


def moved(
    variable: Variable, number: float, random: np.random.Generator, down: float = 0.5
) -> float:
    """A new value of a gene: a nearby one if values are ordered, else any other one.

    Discrete steps are log-uniform between 1 and half the number of values. A step that would leave
    the range upward, or downward from the lowest value, is reversed; other steps are clipped.
    """
    if variable.low == variable.high:
        return number
    if not isinstance(variable, Discrete):
        step = abs(random.normal(0, STEP_SIZE * (variable.high - variable.low)))
    elif not variable.ordered:
        other = random.integers(0, len(variable.values) - 1)
        return float(other + (other >= number))
    else:
        step = int(np.exp(random.uniform(0, np.log(max(2.0, len(variable.values) / 2)))))
    step = -step if random.random() < down else step
    if number + step > variable.high or number == variable.low:
        step = -abs(step) if number > variable.low else abs(step)
    return float(np.clip(number + step, variable.low, variable.high))


def _pair(
    variables: Sequence[Variable], row: np.ndarray, random: np.random.Generator
) -> tuple[int, int] | None:
    """The indices of a gene to raise and another to lower; None if there is no such pair."""
    fits = [isinstance(v, Discrete) and v.ordered for v in variables]
    up = [i for i, v in enumerate(variables) if fits[i] and row[i] < v.high]
    down = [i for i, v in enumerate(variables) if fits[i] and row[i] > v.low]
    if not up or not down or (len(up) == 1 and up == down):
        return None
    rising = int(random.choice(up))
    falling = [i for i in down if i != rising]
    return (rising, int(random.choice(falling))) if falling else None


def _switch(variables: Sequence[Variable], row: np.ndarray, rising: int, falling: int) -> None:
    """Raise one gene by one step and lower the other by the steps whose cost is closest."""
    gained, lost = variables[rising].costs, variables[falling].costs
    at = int(row[rising])
    row[rising] += 1
    below = np.arange(int(row[falling]))
    if gained is None or lost is None:
        row[falling] -= 1
        return
    spent = gained[at + 1] - gained[at]
    saved = lost[int(row[falling])] - np.array([lost[i] for i in below])
    row[falling] = below[np.abs(saved - spent).argmin()]


def random_genome(space: Space, random: np.random.Generator) -> Genome:
    """A uniformly drawn genome."""
    return tuple(
        float(random.integers(0, len(v.values)))
        if isinstance(v, Discrete)
        else float(random.uniform(v.low, v.high))
        for v in space.variables
    )


def first_population(
    space: Space, size: int, fill: str, rate: float, random: np.random.Generator
) -> list[Genome]:
    """Up to `size` distinct genomes: the seeds, then mutated seeds or random genomes.

    Args:
        space: variables and seeds.
        size: number of genomes; a space with fewer genomes gives all of them.
        fill: "mutate" adds mutated seeds (if there are seeds), "random" draws uniformly.
        rate: probability that a gene of a seed changes.
        random: the generator to draw from.
    """
    genomes = list(dict.fromkeys(space.seeds))[:size]
    n_seeds, seen = len(genomes), set(genomes)
    mutate = Mutate(space, max(rate, 1 / len(space.variables)), 0)
    for _ in range(size * ATTEMPTS):
        if len(genomes) == size:
            break
        if fill == "mutate" and n_seeds:
            parent = np.array(genomes[len(genomes) % n_seeds])
            genome = tuple(float(x) for x in mutate.mutated(parent, random))
        else:
            genome = random_genome(space, random)
        if genome not in seen:
            seen.add(genome)
            genomes.append(genome)
    return genomes
