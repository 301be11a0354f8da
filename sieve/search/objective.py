"""The objective of every search: how small a genome is and whether it still does the task.

The rows may come in stages. After each the margin has an upper bound, as if all rows to come were
right: a genome whose bound is below 0 is refused there, as it would be by all rows. Where genomes
are judged by their divergence, that has a lower bound, as if all rows to come were answered as by
the dense model: a genome whose bound is beyond what is of interest is dropped there.
"""

import logging
import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from scipy import stats
from transformers import PreTrainedModel

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.data.prefix import PrefixCache
from sieve.data.scored import LARGEST_DIVERGENCE, ScoredBatch
from sieve.evaluation.evaluation import score, together
from sieve.tasks.scores import Scores, compare, drop_of

log = logging.getLogger(__name__)
EXCHANGE = 0.25  # of log divergence for log kept fraction, as on most frontiers
CLOSEST = 1e-7  # nats: below it nothing is told from nothing
LEAST = 1e-6  # kept fraction that counts as nothing, where biases are all that is left
NEAREST, SMALLEST = 4.0, 2.5  # how far from a genome of reference something can be gained


@dataclass(frozen=True)
class Score:
    """One evaluated genome. margin = ε minus the drop, accuracy − (baseline − ε), or with a
    guarantee ε minus the upper end of the drop's 95 % interval; feasible means margin ≥ 0.

    Where not all rows were scored, accuracy and margin are what they could have been at most, the
    divergence what it could have been at least, and loss is of those rows."""

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
class Par:
    """Compares genomes of different sizes and distances: what each would keep at one divergence.

    Along a frontier log kept fraction falls nearly in proportion to log divergence; `exchange` is
    that proportion near a genome which keeps `kept_fraction` at `divergence`. tolerance: ε; a model
    that gives one answer to all may be no farther in nats than one that is still right.
    """

    kept_fraction: float
    divergence: float
    exchange: float
    tolerance: float = 1.0

    def cost(self, score: Score) -> float:
        """Kept fraction at par. Far from the genome of reference nothing more can be gained.

        What has lost more than twice the tolerance, by two standard errors, costs as much as dense.
        """
        if score.whole:
            lost = max(0.0, self.tolerance - score.margin)
            if lost - 2 * math.sqrt(lost / score.examples_used) > 2 * self.tolerance:
                return 1.0
        far = max(score.divergence, self.divergence / NEAREST)
        kept = max(score.kept_fraction, self.kept_fraction / SMALLEST)
        return float(kept * (far / self.divergence) ** self.exchange)

    def farthest(self, kept_fraction: float, cost: float) -> float:
        """The divergence, nats, beyond which a genome of a size costs more than `cost` at par."""
        kept = max(kept_fraction, self.kept_fraction / SMALLEST)
        far = self.divergence * float((cost / kept) ** (1 / self.exchange))
        return far if far >= self.divergence / NEAREST else -math.inf  # Nothing is near enough.


def find_par(best: Score, others: Sequence[Score], tolerance: float = 1.0) -> Par:
    """The rate of exchange at a genome, from others on its frontier.

    By least squares over those at most three times as large or small; .25 where that is no line.
    """
    at, size = max(best.divergence, CLOSEST), max(best.kept_fraction, LEAST)
    near = [s for s in others if s.divergence > CLOSEST and 1 / 3 < s.kept_fraction / size < 3]
    exchange = EXCHANGE
    if len({s.divergence for s in near}) > 2:
        far, kept = np.log([s.divergence for s in near]), np.log([s.kept_fraction for s in near])
        slope = float(stats.linregress(far, kept).slope)
        exchange = float(np.clip(-slope, EXCHANGE / 4, EXCHANGE * 4))
    return Par(size, at, exchange, tolerance)


class Objective:
    """Scores genomes on one split of examples; equal genomes are scored once.

    batches: scoring batches of the selection split, or a list of them for each stage, which counts
    its examples from 0; tolerance: ε, accuracy that may be lost; judge: what ends the scoring of a
    genome between stages, "margin" or "divergence". The baseline is the dense model on the same
    examples. The model is left dense.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        bank: Bank,
        batches: Sequence[ScoredBatch] | Sequence[Sequence[ScoredBatch]],
        tolerance: float = 0.02,
        guarantee: bool = False,
        judge: str = "margin",
    ) -> None:
        self.bank = bank
        self.judge = judge
        self.stages = _staged(batches)
        self.tolerance = tolerance
        self.guarantee = guarantee
        self.switch = Switch(model, bank, as_stored=False, dealt=True)
        self.examples_scored = 0
        self._told = False  # whether it was said that scores are not finite
        self.tokens_per_genome = dict[str, int]()  # on all rows, run and without sharing
        self.evaluated: dict[Genome, Score] = {}
        self._reference: list[dict[int, Any]] = [{} for _ in self.stages]
        self.baseline = self._score_dense()

    def score(self, genome: Genome, farthest: float = math.inf) -> Score:
        """Size, accuracy and margin of a genome; ValueError when it belongs to another bank.

        farthest: a divergence, nats, beyond which a genome is of no interest and need not be scored
        to the end, where the objective judges by divergence.
        """
        known = self.evaluated.get(genome)
        if known is None or not self._settled(known, farthest):
            genome.check_bank(self.bank.fingerprint, self.bank.names)
            kept = self.bank.kept_fraction(genome)
            ranks = self.bank.ranks(genome)
            if all(rank is None for rank in ranks.values()):
                # The dense model itself loses nothing, however few the rows.
                best, scores, margin = self.baseline, self.baseline, self.tolerance
            else:
                with self.switch.to(genome):
                    best, scores, margin = self._score_pruned(f"Scoring {kept:.1%} kept", farthest)
            used, loss = len(scores.values), scores.loss
            if broken := int(np.isnan(scores.losses).sum()):
                self._tell(kept, broken, used)
                margin, loss = min(margin, -1.0), LARGEST_DIVERGENCE
            self.evaluated[genome] = Score(
                kept, best.accuracy, margin, used, loss, self._least(scores),
                used == len(self.baseline.values),
            )  # fmt: skip
        return self.evaluated[genome]

    def divergences(self, genome: Genome) -> np.ndarray:
        """KL(dense ‖ pruned) of every example (N,), nats, in the order of the stages."""
        with self.switch.to(genome):
            return self._run_all("Comparing answers", PrefixCache()).divergences

    def on(self, bank: Bank) -> Self:
        """The same objective for another bank of this model; the baseline is not scored again."""
        other = copy(self)
        other.bank, other.evaluated = bank, {}
        # Each rank has solved such a bank for itself: theirs agree to rounding, no further.
        other.switch = Switch(self.switch.model, bank, as_stored=False)
        return other

    def _score_dense(self) -> Scores:
        shared = PrefixCache()
        scores = self._run_all("Scoring the dense model", shared)
        self.tokens_per_genome = {"run": shared.tokens, "unshared": shared.unshared}
        if broken := int(np.isnan(scores.losses).sum()):
            raise ValueError(
                f"the dense model gives scores that are not finite on {broken} of "
                f"{len(scores.losses)} rows; load it in another dtype (model.dtype=float32 or "
                "bfloat16)."
            )
        return scores

    def _tell(self, kept: float, broken: int, rows: int) -> None:
        """Say once that genomes give numbers that are not finite."""
        if not self._told:
            log.warning(
                "a genome that keeps %.1f %% gives scores that are not finite on %d of %d rows: it "
                "counts as infeasible, as every other such one will; where many do, set "
                "model.dtype=float32 or bfloat16.", 100 * kept, broken, rows,
            )  # fmt: skip
        self._told = True

    def _run_all(self, description: str, shared: PrefixCache) -> Scores:
        stages = range(len(self.stages))
        return together([self._run(stage, description, shared) for stage in stages])

    def _score_pruned(self, description: str, farthest: float) -> tuple[Scores, Scores, float]:
        """Scores of all rows at best, of the rows that were scored, and the margin at best."""
        parts, shared = list[Scores](), PrefixCache()
        for stage in range(len(self.stages)):
            parts.append(self._run(stage, description, shared))
            scored = together(parts)
            best = self._at_best(scored)
            # The point estimate bounds the margin with a guarantee, too.
            margin = self._point_margin(best)
            hopeless = margin < 0 if self.judge == "margin" else self._least(scored) > farthest
            if hopeless and len(parts) < len(self.stages):
                return best, scored, margin
        return best, scored, self._margin(best)

    def _settled(self, known: Score, farthest: float) -> bool:
        """Whether a score holds for what is asked, though not all rows may have been scored."""
        return known.whole or self.judge == "margin" or known.divergence > farthest

    def _least(self, scored: Scores) -> float:
        """The divergence over all rows if those to come were answered as by the dense model."""
        if len(scored.divergences) == 0:
            return math.nan
        return float(scored.divergences.sum() / len(self.baseline.values))

    def _at_best(self, scored: Scores) -> Scores:
        """Scores of all rows if those to come were all right."""
        rest = np.full(len(self.baseline.values) - len(scored.values), scored.metric.best)
        return replace(self.baseline, values=np.concatenate([scored.values, rest]))

    def _margin(self, scores: Scores) -> float:
        if self.guarantee:
            return self.tolerance - compare(self.baseline, scores).high
        return self._point_margin(scores)

    def _point_margin(self, scores: Scores) -> float:
        if not (self.baseline.binary and scores.binary):
            return self.tolerance - drop_of(self.baseline, scores)
        rows, wrong = len(scores.values), int(self.baseline.values.sum() - scores.values.sum())
        # Counts, so that a drop of exactly ε is not lost to rounding.
        return (round(self.tolerance * rows, 9) - wrong) / rows

    def _run(self, stage: int, description: str, shared: PrefixCache) -> Scores:
        scores = score(
            self.switch.model, self.stages[stage], description, self._reference[stage], shared
        )  # fmt: skip
        self.examples_scored += len(scores.values)
        return scores


class Jointly:
    """Several objectives at once, on rows of their own: a genome must be feasible for each.

    together: on all their rows taken together instead, which says more than a few rows do alone.
    """

    def __init__(self, parts: Sequence[Objective], together: bool = False) -> None:
        self.parts, self.together = list(parts), together

    @property
    def baseline(self) -> Scores:
        """The dense model on the rows of all parts."""
        return together([part.baseline for part in self.parts])

    @property
    def examples_scored(self) -> int:
        """Rows scored for all parts so far."""
        return sum(part.examples_scored for part in self.parts)

    def score(self, genome: Genome, farthest: float = math.inf) -> Score:
        """The least margin of all parts, or that over all rows; accuracy and loss over these."""
        scores: list[Score] = []
        for part in self.parts:
            scores.append(part.score(genome, farthest))
            if not self.together and not scores[-1].feasible:
                break
        used = [s.examples_used for s in scores]
        accuracy, margin = self._combined(scores)
        return Score(
            scores[0].kept_fraction,
            accuracy,
            margin if self.together else min(s.margin for s in scores),
            sum(used),
            float(np.average([s.loss for s in scores], weights=used)),
            float(np.average([s.divergence for s in scores], weights=used)),
        )

    def _combined(self, scores: Sequence[Score]) -> tuple[float, float]:
        """The metric over the rows of those parts, and the margin of its drop."""
        parts = self.parts[: len(scores)]
        metric, masses = parts[0].baseline.metric, [part.baseline.total_weight for part in parts]
        if not metric.relative:
            accuracy, margin = (
                float(np.average([getattr(s, name) for s in scores], weights=masses))
                for name in ("accuracy", "margin")
            )
            return accuracy, margin
        means = [metric.mean(s.accuracy) for s in scores]
        pruned = float(np.average(means, weights=masses))
        dense = float(np.average([part.baseline.mean for part in parts], weights=masses))
        return float(metric.total(pruned)), parts[0].tolerance - float(metric.drop(dense, pruned))

    def on(self, bank: Bank) -> Self:
        """The same objectives for another bank of this model."""
        other = copy(self)
        other.parts = [part.on(bank) for part in self.parts]
        return other


def _staged(
    batches: Sequence[ScoredBatch] | Sequence[Sequence[ScoredBatch]],
) -> list[list[ScoredBatch]]:
    """Batches by stage; plain ones are one stage."""
    staged = [list(stage) for stage in batches if isinstance(stage, Sequence)]
    return staged or [[batch for batch in batches if not isinstance(batch, Sequence)]]


def growing(rows: int, first: int = 32) -> list[int]:
    """Ends of stages that double what was scored: `first`, twice that, ..., all rows."""
    ends = []
    while first < rows:
        ends.append(first)
        first *= 2
    return [*ends, rows]


def hardest_first(scores: Scores) -> np.ndarray:
    """(N,) order of rows in which the bound on a pruned model falls soonest.

    First the rows on which the dense model does worst, where most can be won; among equals the
    least likely answers first.
    """
    return np.lexsort((-scores.losses, scores.values))
