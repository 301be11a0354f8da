"""pymoo's genetic algorithms behind three methods: `ask`, `tell`, `best`.

One objective: a (μ+λ) genetic algorithm that prefers feasible genomes (Deb 2000). Several
objectives: NSGA-II (Deb et al. 2002). pymoo (Blank and Deb 2020) implements both; the mutation and
the first population come from `_operators.py`.
"""

from collections.abc import Sequence

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.termination import get_termination
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from ._objectives import Evaluation, Objectives
from ._operators import Mutate, first_population
from ._space import Genome, Space
from .config import GeneticSweeperConf

ENDLESS = 10**9  # generations; `_stopping.py` decides when to stop


class Evolution:
    """Breeds a population of genomes. The same seed gives the same genomes."""

    def __init__(self, space: Space, settings: GeneticSweeperConf, objectives: Objectives) -> None:
        self.space, self.objectives = space, objectives
        self.evaluations: dict[Genome, Evaluation] = {}
        random = np.random.default_rng(settings.seed)
        seeds = first_population(
            space, settings.population, settings.fill, settings.mutation, random
        )
        kind = GA if len(objectives.directions) == 1 else NSGA2
        self._algorithm = kind(
            pop_size=len(seeds),
            n_offsprings=settings.offspring or settings.population,
            sampling=np.array(seeds, dtype=float),
            crossover=UniformCrossover(prob=settings.crossover),
            mutation=Mutate(space, settings.mutation, settings.switch, settings.down),
            eliminate_duplicates=True,
            seed=settings.seed,
        )
        self._algorithm.setup(
            Problem(
                n_var=len(space.variables),
                n_obj=len(objectives.directions),
                n_ieq_constr=len(objectives.constraints) + 1,
                xl=np.array([v.low for v in space.variables]),
                xu=np.array([v.high for v in space.variables]),
            ),
            termination=get_termination("n_gen", ENDLESS),
        )
        self._asked: Population | None = None

    def ask(self) -> list[Genome]:
        """The genomes of the next generation; empty when all genomes have been evaluated."""
        self._asked = self._algorithm.ask()
        if self._asked is None:
            return []
        return [tuple(float(x) for x in row) for row in self._asked.get("X")]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take the evaluations of the first genomes that `ask` returned, in their order."""
        assert self._asked is not None
        offspring = self._asked[: len(evaluations)]
        genomes = [tuple(float(x) for x in row) for row in offspring.get("X")]
        self.evaluations.update(zip(genomes, evaluations, strict=True))
        offspring.set("F", np.array([self.objectives.costs(e) for e in evaluations]))
        offspring.set("G", np.array([self.objectives.violations(e) for e in evaluations]))
        offspring.set("H", np.zeros((len(offspring), 0)))
        for individual in offspring:
            individual.evaluated.update({"F", "G", "H"})
        self._algorithm.tell(infills=offspring)

    def best(self) -> list[Genome]:
        """The best genome, or the Pareto front sorted by the first objective.

        If no genome is feasible: the genome with the smallest violation. If all failed: empty.
        """
        usable = {g: e for g, e in self.evaluations.items() if not e.failed}
        if not usable:
            return []
        ranked = sorted(usable, key=lambda g: (self.objectives.order(usable[g]), g))
        feasible = [g for g in ranked if self.objectives.violation(usable[g]) == 0]
        if not feasible or len(self.objectives.directions) == 1:
            return ranked[:1]
        costs = np.array([self.objectives.costs(usable[g]) for g in feasible])
        front = NonDominatedSorting().do(costs, only_non_dominated_front=True)
        points: dict[tuple[float, ...], Genome] = {}  # one genome per point of the front
        for i in sorted(front):
            points.setdefault(tuple(costs[i]), feasible[i])
        return list(points.values())

    @property
    def limit(self) -> dict[str, float] | None:
        """The objective of the worst survivor, which a new genome must beat to survive.

        None with several objectives, and until the population is complete and feasible.
        """
        survivors = [self.evaluations.get(genome) for genome in self.population]
        if len(self.objectives.directions) > 1 or len(survivors) < self._algorithm.pop_size:
            return None
        if any(e is None or self.objectives.violation(e) > 0 for e in survivors):
            return None
        worst = max((e for e in survivors if e is not None), key=self.objectives.order)
        return {key: worst.values[key] for key in self.objectives.directions}

    @property
    def population(self) -> list[Genome]:
        """The surviving genomes, which are the parents of the next generation."""
        population = self._algorithm.pop
        if population is None:
            return []
        return [tuple(float(x) for x in row) for row in population.get("X")]
