"""pymoo's genetic algorithms behind three methods: `ask`, `tell`, `best`.

One objective: a (μ+λ) genetic algorithm, feasible genomes first (Deb 2000); several: NSGA-II (Deb
et al. 2002). Both as in pymoo (Blank and Deb 2020), with the operators of `_operators.py`.
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

ENDLESS = 10**9  # generations; when to stop is decided elsewhere


class Evolution:
    """A population that is bred from evaluated genomes; the same seed, the same genomes."""

    def __init__(self, space: Space, settings: GeneticSweeperConf, objectives: Objectives) -> None:
        self.space, self.objectives = space, objectives
        self.known: dict[Genome, Evaluation] = {}
        random = np.random.default_rng(settings.seed)
        first = first_population(
            space, settings.population, settings.fill, settings.mutation, random
        )
        kind = GA if len(objectives.directions) == 1 else NSGA2
        self._algorithm = kind(
            pop_size=len(first),
            n_offsprings=settings.offspring or settings.population,
            sampling=np.array(first, dtype=float),
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
        """The genomes of the next generation; empty when there is none left that is new."""
        self._asked = self._algorithm.ask()
        if self._asked is None:
            return []
        return [tuple(float(x) for x in row) for row in self._asked.get("X")]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take what the genomes of `ask` were worth, in their order; fewer than all are allowed."""
        assert self._asked is not None
        told = self._asked[: len(evaluations)]
        genomes = [tuple(float(x) for x in row) for row in told.get("X")]
        self.known.update(zip(genomes, evaluations, strict=True))
        told.set("F", np.array([self.objectives.costs(e) for e in evaluations]))
        told.set("G", np.array([self.objectives.violations(e) for e in evaluations]))
        told.set("H", np.zeros((len(told), 0)))
        for individual in told:
            individual.evaluated.update({"F", "G", "H"})
        self._algorithm.tell(infills=told)

    def best(self) -> list[Genome]:
        """The best genome, or the Pareto front in order of its first objective.

        Where no genome is feasible, the one nearest to it; empty where all failed.
        """
        usable = {g: e for g, e in self.known.items() if not e.failed}
        if not usable:
            return []
        ranked = sorted(usable, key=lambda g: (self.objectives.order(usable[g]), g))
        feasible = [g for g in ranked if self.objectives.violation(usable[g]) == 0]
        if not feasible or len(self.objectives.directions) == 1:
            return ranked[:1]
        costs = np.array([self.objectives.costs(usable[g]) for g in feasible])
        front = NonDominatedSorting().do(costs, only_non_dominated_front=True)
        points: dict[tuple[float, ...], Genome] = {}  # one genome for each point
        for i in sorted(front):
            points.setdefault(tuple(costs[i]), feasible[i])
        return list(points.values())

    @property
    def limit(self) -> dict[str, float] | None:
        """What a genome must be better than to live on: the objective of the worst that lives.

        None where there is no such bound: with several objectives, and before the population is
        whole and meets the constraints.
        """
        living = [self.known.get(genome) for genome in self.population]
        if len(self.objectives.directions) > 1 or len(living) < self._algorithm.pop_size:
            return None
        if any(e is None or self.objectives.violation(e) > 0 for e in living):
            return None
        worst = max((e for e in living if e is not None), key=self.objectives.order)
        return {key: worst.values[key] for key in self.objectives.directions}

    @property
    def population(self) -> list[Genome]:
        """Genomes that live, from which the next are bred."""
        population = self._algorithm.pop
        if population is None:
            return []
        return [tuple(float(x) for x in row) for row in population.get("X")]
