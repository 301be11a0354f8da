"""Several objectives on different rows as one."""

import math
from collections.abc import Sequence
from copy import copy
from typing import Self

import numpy as np

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.evaluation.evaluation import together
from sieve.search.objective import Objective
from sieve.search.score import Score
from sieve.tasks.scores import Scores


class JointObjective:
    """Several objectives on different rows: a genome must be feasible for each of them.

    With `together`, a genome must be feasible on all of their rows together instead.
    """

    def __init__(self, objectives: Sequence[Objective], together: bool = False) -> None:
        self.objectives, self.together = list(objectives), together

    @property
    def baseline(self) -> Scores:
        """The dense model on the rows of all objectives."""
        return together([objective.baseline for objective in self.objectives])

    @property
    def examples_scored(self) -> int:
        """Rows scored by all objectives so far."""
        return sum(objective.examples_scored for objective in self.objectives)

    def score(self, genome: Genome, max_divergence: float = math.inf) -> Score:
        """Score a genome on the rows of all objectives.

        The margin is the least margin of the objectives, or with `together` the margin over all
        rows. Without `together`, scoring ends at the first objective for which the genome is
        infeasible.
        """
        scores: list[Score] = []
        for objective in self.objectives:
            scores.append(objective.score(genome, max_divergence))
            if not self.together and not scores[-1].feasible:
                break
        rows = [score.examples_used for score in scores]
        accuracy, margin = self._combined(scores)
        return Score(
            kept_fraction=scores[0].kept_fraction,
            accuracy=accuracy,
            margin=margin if self.together else min(score.margin for score in scores),
            examples_used=sum(rows),
            loss=float(np.average([score.loss for score in scores], weights=rows)),
            divergence=float(np.average([score.divergence for score in scores], weights=rows)),
        )

    def _combined(self, scores: Sequence[Score]) -> tuple[float, float]:
        """Accuracy and margin over the rows of the objectives that were scored."""
        baselines = [objective.baseline for objective in self.objectives[: len(scores)]]
        metric, weights = baselines[0].metric, [baseline.total_weight for baseline in baselines]

        def average(values: list[float]) -> float:
            return float(np.average(values, weights=weights))

        if not metric.relative:
            return average([s.accuracy for s in scores]), average([s.margin for s in scores])
        pruned = average([metric.mean(score.accuracy) for score in scores])
        dense = average([baseline.mean for baseline in baselines])
        drop = float(metric.drop(dense, pruned))
        return float(metric.total(pruned)), self.objectives[0].tolerance - drop

    def on(self, bank: Bank) -> Self:
        """The same objectives for another bank of this model."""
        other = copy(self)
        other.objectives = [objective.on(bank) for objective in self.objectives]
        return other
