"""What one evaluation says of a genome, and how genomes of different sizes compare."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

EXCHANGE = 0.25  # of log divergence for log kept fraction, as on most frontiers
LEAST_DIVERGENCE = 1e-7  # nats; smaller divergences are rounding
LEAST_KEPT = 1e-6  # a kept fraction below it is nothing but biases
CLOSEST, SMALLEST = 4.0, 2.5  # factors below the reference beyond which nothing can be gained


@dataclass(frozen=True)
class Score:
    """One evaluated genome; it is feasible if its margin is at least 0.

    margin: ε minus the drop in accuracy; with a confidence, ε minus the upper confidence bound of
    the drop. Unless all rows were scored, accuracy and margin are upper bounds, the divergence is a
    lower bound, and the loss is that of the scored rows.
    """

    kept_fraction: float
    accuracy: float
    margin: float
    examples_used: int
    loss: float = float("nan")  # mean negative log-likelihood of the right answer, nats
    divergence: float = float("nan")  # mean KL(dense ‖ pruned) over the choices, nats
    whole: bool = True  # whether all rows were scored

    @property
    def feasible(self) -> bool:
        """Whether the genome is known to be within the tolerance."""
        return self.whole and self.margin >= 0


@dataclass(frozen=True)
class CostModel:
    """Compares genomes by the kept fraction that each would have at the reference's divergence.

    Along a frontier, log kept fraction falls almost in proportion to log divergence.

    Args:
        kept_fraction: of the reference genome.
        divergence: of the reference genome, nats.
        exchange: −d log(kept fraction) / d log(divergence) on the frontier, at the reference.
        tolerance: ε. A model that always gives the same answer can have a low divergence, so
            divergence alone does not prove that a genome works.
    """

    kept_fraction: float
    divergence: float
    exchange: float
    tolerance: float = 1.0

    def cost(self, score: Score) -> float:
        """The kept fraction at the reference's divergence.

        A genome that loses more than twice the tolerance, by two standard errors, costs 1, as much
        as the dense model.
        """
        if score.whole:
            drop = max(0.0, self.tolerance - score.margin)
            if drop - 2 * math.sqrt(drop / score.examples_used) > 2 * self.tolerance:
                return 1.0
        divergence = max(score.divergence, self.divergence / CLOSEST)
        kept = max(score.kept_fraction, self.kept_fraction / SMALLEST)
        return float(kept * (divergence / self.divergence) ** self.exchange)

    def max_divergence(self, kept_fraction: float, cost: float) -> float:
        """The divergence, in nats, above which a genome of this size costs more than `cost`."""
        kept = max(kept_fraction, self.kept_fraction / SMALLEST)
        divergence = self.divergence * float((cost / kept) ** (1 / self.exchange))
        return divergence if divergence >= self.divergence / CLOSEST else -math.inf


def fit_cost_model(best: Score, others: Sequence[Score], tolerance: float = 1.0) -> CostModel:
    """The cost model with `best` as its reference.

    `exchange` is fitted by least squares to the genomes at most three times larger or smaller than
    `best`; with fewer than three of them it is 0.25.
    """
    divergence = max(best.divergence, LEAST_DIVERGENCE)
    kept = max(best.kept_fraction, LEAST_KEPT)
    similar = [
        score
        for score in others
        if score.divergence > LEAST_DIVERGENCE and 1 / 3 < score.kept_fraction / kept < 3
    ]
    exchange = EXCHANGE
    if len({score.divergence for score in similar}) > 2:
        log_divergence = np.log([score.divergence for score in similar])
        log_kept = np.log([score.kept_fraction for score in similar])
        slope = float(stats.linregress(log_divergence, log_kept).slope)
        exchange = float(np.clip(-slope, EXCHANGE / 4, EXCHANGE * 4))
    return CostModel(kept, divergence, exchange, tolerance)
