"""When to stop: after generations, evaluations or seconds, or on stagnation."""

from collections.abc import Sequence

import numpy as np
from pymoo.indicators.hv import HV

from ._ledger import Generation
from ._objectives import Evaluation, Objectives
from .config import GeneticSweeperConf


class Stopping:
    """Decides when the search ends. `reason` says why, and is empty until then.

    Stagnation as in LLM-Sieve (arXiv:2505.18350): over a number of generations, the best feasible
    value improved by less than a fraction of itself. With several objectives the value is the
    hypervolume that the front dominates; its reference point is the worst corner of the first
    generation with feasible genomes.
    """

    def __init__(self, settings: GeneticSweeperConf, objectives: Objectives) -> None:
        self.settings, self.objectives = settings, objectives
        self.progress: list[float | None] = []  # one per generation; smaller is better
        self.evaluated, self.seconds, self.reason = 0, 0.0, ""
        self._corner: np.ndarray | None = None
        self._front: list[np.ndarray] = []

    @property
    def budget(self) -> int | None:
        """Evaluations left; None if there is no limit."""
        limit = self.settings.evaluations
        return None if limit is None else max(0, limit - self.evaluated)

    def update(self, generation: Generation) -> None:
        """Count a finished generation."""
        self.evaluated += generation.evaluated
        self.seconds += generation.seconds
        self.progress.append(self._measure(generation.evaluations))
        self.reason = self._why()

    def _why(self) -> str:
        done, settings = len(self.progress), self.settings
        if settings.generations is not None and done >= settings.generations:
            return f"{done} generations"
        if self.budget == 0:
            return f"{self.evaluated} evaluations"
        if settings.seconds is not None and self.seconds >= settings.seconds:
            return f"{settings.seconds:g} seconds"
        span = settings.stagnation_generations
        if span is None or done <= span:
            return ""
        before, now = self.progress[-1 - span], self.progress[-1]
        if before is None or now is None:
            return ""  # Nothing is feasible yet, or nothing was feasible then.
        if before - now < settings.stagnation_improvement * abs(before):
            return (
                f"the best improved by less than {settings.stagnation_improvement:.0%} "
                f"in {span} generations"
            )
        return ""

    def _measure(self, evaluations: Sequence[Evaluation]) -> float | None:
        feasible = [
            self.objectives.costs(e) for e in evaluations if self.objectives.violation(e) == 0
        ]
        if feasible and self._corner is None:
            self._corner = np.max(feasible, axis=0)
        self._front += feasible
        if self._corner is None:
            return None
        if len(self._corner) == 1:
            best = float(min(cost[0] for cost in self._front))
            self._front = [np.array([best])]
            return best
        return -float(HV(ref_point=self._corner)(np.array(self._front)))
