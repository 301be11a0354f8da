"""Mutation and the first population, for genomes of discrete and continuous genes.

Steps have a heavy tail, after the fast genetic algorithms of Doerr et al. (arXiv:1703.03334). The
level switch is that of EvoPress (arXiv:2410.14649): one gene up, another down, the size kept.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pymoo.core.mutation import Mutation

from ._space import Discrete, Genome, Space, Variable

REACH = 0.1  # standard deviation of a step of a continuous gene, in parts of its range
ATTEMPTS = 200  # to find one more genome that is not there yet


class Mutate(Mutation):
    """Moves each gene with probability `rate`, or switches two with probability `switch`.

    down: probability that a gene whose values have order moves down.
    """

    def __init__(self, space: Space, rate: float, switch: float, down: float = 0.5) -> None:
        super().__init__()
        self.variables, self.rate, self.switch, self.down = space.variables, rate, switch, down

    def _do(
        self, problem: Any, X: np.ndarray, *args: Any, random_state: Any = None, **kwargs: Any
    ) -> np.ndarray:
        """X: (n, genes); returns changed copies."""
        return np.stack([self.mutated(row, random_state) for row in X])

    def mutated(self, row: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A changed copy of one genome (genes,)."""
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
    """A gene elsewhere: near by where values have order, any other where they have none.

    The logarithm of a step is even between that of one and that of half of all values. What would
    fall below the lowest value stops there; at a bound the way back is the way out.
    """
    if variable.low == variable.high:
        return number
    if not isinstance(variable, Discrete):
        step = abs(random.normal(0, REACH * (variable.high - variable.low)))
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
    """A gene that can rise and another that can fall; None where there are none."""
    fits = [isinstance(v, Discrete) and v.ordered for v in variables]
    up = [i for i, v in enumerate(variables) if fits[i] and row[i] < v.high]
    down = [i for i, v in enumerate(variables) if fits[i] and row[i] > v.low]
    if not up or not down or (len(up) == 1 and up == down):
        return None
    rising = int(random.choice(up))
    falling = [i for i in down if i != rising]
    return (rising, int(random.choice(falling))) if falling else None


def _switch(variables: Sequence[Variable], row: np.ndarray, rising: int, falling: int) -> None:
    """Raise one gene by a step and lower the other by what costs as much, at least by a step."""
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
    """A genome drawn evenly."""
    return tuple(
        float(random.integers(0, len(v.values)))
        if isinstance(v, Discrete)
        else float(random.uniform(v.low, v.high))
        for v in space.variables
    )


def first_population(
    space: Space, size: int, fill: str, rate: float, random: np.random.Generator
) -> list[Genome]:
    """Seeds without repetition, the first `size` of them, filled up to `size` genomes.

    fill: "mutate" adds changed seeds where there are seeds, "random" draws evenly. A space with
    fewer genomes gives what it has.
    """
    genomes = list(dict.fromkeys(space.seeds))[:size]
    seeds, known = len(genomes), set(genomes)
    mutate = Mutate(space, max(rate, 1 / len(space.variables)), 0)
    for _ in range(size * ATTEMPTS):
        if len(genomes) == size:
            break
        if fill == "mutate" and seeds:
            parent = np.array(genomes[len(genomes) % seeds])
            genome = tuple(float(x) for x in mutate.mutated(parent, random))
        else:
            genome = random_genome(space, random)
        if genome not in known:
            known.add(genome)
            genomes.append(genome)
    return genomes
