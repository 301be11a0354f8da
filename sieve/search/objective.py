"""The objective of every search: how small a genome is, and whether it still does the task.

The rows may come in stages. After each stage the margin has an upper bound: the margin if all
remaining rows were right. A genome whose bound is negative is dropped, since no further row can
make it feasible. With a confidence, one that all rows will almost surely find infeasible is dropped
too, and a provisional score ends where the drop is almost surely within ε. If genomes are judged by
divergence, the lower bound is the divergence if all remaining rows were answered as by the dense
model; a genome above the caller's limit is dropped.
"""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import replace
from typing import Self

import numpy as np
from scipy.special import ndtr, ndtri
from transformers import PreTrainedModel

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.data.prefix import PrefixCache
from sieve.data.scored import LARGEST_DIVERGENCE, ScoredBatch
from sieve.distributed.sharding import is_sharded
from sieve.evaluation.evaluation import check_finite, score, together
from sieve.search.score import Score
from sieve.search.shared_blocks import Checks, Ranks, SharedBlocks
from sieve.tasks.drop_test import upper_drop
from sieve.tasks.scores import Scores, as_baseline, drop_of

log = logging.getLogger(__name__)
Batches = Sequence[ScoredBatch] | Sequence[Sequence[ScoredBatch]]  # of one stage, or by stage
ALMOST_SURE = 0.99  # that all rows will find a genome infeasible, or that its drop is within ε
NOT_FINITE = (
    "A genome that keeps %.1f %% gives scores that are not finite on %d of %d rows. Such genomes "
    "count as infeasible. If there are many, set model.dtype=float32 or model.dtype=bfloat16."
)


class Objective:
    """Scores genomes on one split of examples; equal genomes are scored once.

    The baseline is the dense model on the same examples. The model is dense again after each call.

    Args:
        batches: scoring batches of the selection split, or a list of batches for each stage. Every
            stage counts its examples from 0.
        tolerance: ε, the accuracy that may be lost.
        confidence: with this probability, over draws of rows, the drop on fresh rows is within ε if
            the margin is 0 or more; above 0.5 and below 1. None: the margin is the point estimate.
        judge: the score by which a genome is discarded after a stage, "margin" or "divergence".
        dense_batches: what the dense model reads instead, of the same examples in the same stages.
            The model of a genome without factors then loses what the other prompt costs it.
        dense_model: makes the dense model the baseline, in a block.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        bank: Bank,
        batches: Batches,
        tolerance: float = 0.02,
        confidence: float | None = None,
        judge: str = "margin",
        dense_batches: Batches | None = None,
        dense_model: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.bank = bank
        self.judge = judge
        self.stages = _as_stages(batches)
        self.dense_stages = self.stages if dense_batches is None else _as_stages(dense_batches)
        self.tolerance = tolerance
        self.confidence = confidence
        # With a confidence, whether the scoring of a genome that is almost surely within ε may end
        # early. Such a score is not whole, so the genome does not count as feasible.
        self.provisional = False
        self.switch = Switch(model, bank, as_stored=False, split=True)
        self.examples_scored = 0
        self._warned = False  # whether the warning about scores that are not finite was logged
        self.tokens_per_genome = dict[str, int]()  # on all rows: run, and without a shared prefix
        self._shared: SharedBlocks | None = None
        self._checks = Checks()  # of sharing blocks
        self.evaluated: dict[Genome, Score] = {}
        self._reference: list[dict[int, object]] = [{} for _ in self.stages]
        with dense_model():
            self.baseline = self._score_dense()

    def score(self, genome: Genome, max_divergence: float = math.inf) -> Score:
        """Size, accuracy and margin of a genome; ValueError if it belongs to another bank.

        If the objective judges by divergence, scoring may stop once the genome's divergence is
        known to exceed `max_divergence` nats.
        """
        memo = self.evaluated.get(genome)
        if memo is None or not self._answers(memo, max_divergence):
            genome.check_bank(self.bank.fingerprint, self.bank.names)
            kept = self.bank.kept_fraction(genome)
            ranks = self.bank.ranks(genome)
            dense = all(rank is None for rank in ranks.values())
            if dense and self.dense_stages is self.stages:
                # The dense model loses nothing, however few the rows.
                best, scores, margin = self.baseline, self.baseline, self.tolerance
            else:
                with self.switch.to(genome):
                    best, scores, margin = self._score_pruned(
                        ranks, f"Scoring {kept:.1%} kept", max_divergence
                    )
            rows, loss = len(scores.values), scores.loss
            if scores.not_finite:
                if not self._warned:
                    log.warning(NOT_FINITE, 100 * kept, scores.not_finite, rows)
                self._warned = True
                margin, loss = min(margin, -1.0), LARGEST_DIVERGENCE
            self.evaluated[genome] = Score(
                kept_fraction=kept,
                accuracy=best.accuracy,
                margin=margin,
                examples_used=rows,
                loss=loss,
                divergence=self._least_divergence(scores),
                whole=rows == len(self.baseline.values),
            )
        return self.evaluated[genome]

    def share_blocks(self, genome: Genome | None) -> None:
        """Keep what each block of a genome computes, for genomes that begin with the same blocks.

        They run from the first block that differs, and their scores are the same. Call it before
        scoring many genomes that differ from one genome in a few blocks; None forgets.
        """
        self._shared = None
        model, tokens = self.switch.model, self.tokens_per_genome["run"]
        if genome is None or not self._checks.exact:
            return
        if is_sharded(model):  # Ranks would wait for each other's passes.
            return
        shared = SharedBlocks(model, self.bank, self.bank.ranks(genome), tokens, self._checks)
        with self.switch.to(genome):
            self._run_all("Sharing blocks", shared.recording(), self.stages)
        self._shared = shared

    def divergences(self, genome: Genome) -> np.ndarray:
        """KL(dense ‖ pruned) of every example (N,), nats, in the order of the stages."""
        with self.switch.to(genome):
            return self._run_all("Comparing answers", PrefixCache(), self.stages).divergences

    def on(self, bank: Bank) -> Self:
        """The same objective for another bank of this model; the baseline is not scored again."""
        other = copy(self)
        other.bank, other.evaluated, other._shared = bank, {}, None
        # Every rank solves such a bank by itself, so banks of different ranks differ by rounding
        # and their factors cannot be split over ranks.
        other.switch = Switch(self.switch.model, bank, as_stored=False)
        return other

    def _score_dense(self) -> Scores:
        prefix_cache = PrefixCache()
        scores = self._run_all("Scoring the dense model", prefix_cache, self.dense_stages)
        self._note_tokens(prefix_cache)
        check_finite(scores)
        return as_baseline(scores)

    def _note_tokens(self, prefix_cache: PrefixCache) -> None:
        self.tokens_per_genome = {"run": prefix_cache.tokens, "unshared": prefix_cache.unshared}

    def _run_all(
        self, description: str, prefix_cache: PrefixCache, stages: Sequence[Sequence[ScoredBatch]]
    ) -> Scores:
        parts = range(len(stages))
        return together([self._run(stages, part, description, prefix_cache) for part in parts])

    def _score_pruned(
        self, ranks: Ranks, description: str, max_divergence: float
    ) -> tuple[Scores, Scores, float]:
        """Best possible scores of all rows, scores of the scored rows, and best possible margin."""
        stage_scores = list[Scores]()
        prefix_cache = self._shared.sharing(ranks) if self._shared else PrefixCache()
        for stage in range(len(self.stages)):
            stage_scores.append(self._run(self.stages, stage, description, prefix_cache))
            scored = together(stage_scores)
            # The scores of all rows if all rows not yet scored were right.
            missing = np.full(len(self.baseline.values) - len(scored.values), scored.metric.best)
            best = replace(self.baseline, values=np.concatenate([scored.values, missing]))
            # With a confidence, the margin of the point estimate is an upper bound too.
            margin = self._point_margin(best)
            if self.judge == "margin":
                margin = min(margin, self._likely_margin(scored))
                decided = margin < 0 or self._almost_surely_feasible(scored)
            else:
                decided = self._least_divergence(scored) > max_divergence
            if decided and len(stage_scores) < len(self.stages):
                return best, scored, margin
        if self.dense_stages is not self.stages:  # The dense model read other prompts.
            self._note_tokens(prefix_cache)
        return best, scored, self.margin(best)

    def _likely_margin(self, scored: Scores) -> float:
        """With a confidence: below 0 if all rows will almost surely find the genome infeasible.

        scored: of the rows of the first stages.
        """
        if self.confidence is None or self.baseline.metric.relative:
            return math.inf
        share = len(scored.values) / len(self.baseline.values)
        # The gain of the dense model over the pruned one is at most the reverse drop's bound.
        refusing = refusing_confidence(share, self.confidence)
        return self.tolerance + upper_drop(scored, self._first(scored), refusing)

    def _almost_surely_feasible(self, scored: Scores) -> bool:
        """Whether scoring may stop because the drop is almost surely within ε on fresh rows."""
        if not self.provisional or self.confidence is None or self.baseline.metric.relative:
            return False
        return upper_drop(self._first(scored), scored, ALMOST_SURE) <= self.tolerance

    def _first(self, scored: Scores) -> Scores:
        """The dense model's scores of the same first rows."""
        rows, weights = len(scored.values), self.baseline.weights
        return replace(
            self.baseline,
            values=self.baseline.values[:rows],
            weights=None if weights is None else weights[:rows],
        )

    def margin(self, scores: Scores) -> float:
        """ε minus the drop of scores of all rows; with a confidence, minus its upper bound."""
        if self.confidence is not None:
            return self.tolerance - upper_drop(self.baseline, scores, self.confidence)
        return self._point_margin(scores)

    def _answers(self, memo: Score, max_divergence: float) -> bool:
        """Whether a memoized score answers the request, even if some rows were never scored."""
        if memo.whole or self.judge != "margin":
            return memo.whole or memo.divergence > max_divergence
        return memo.margin < 0 or self.provisional

    def _least_divergence(self, scored: Scores) -> float:
        """The divergence if all rows not yet scored were answered as by the dense model."""
        if len(scored.divergences) == 0:
            return math.nan
        return float(scored.divergences.sum() / len(self.baseline.values))

    def _point_margin(self, scores: Scores) -> float:
        if not (self.baseline.binary and scores.binary):
            return self.tolerance - drop_of(self.baseline, scores)
        rows = len(scores.values)
        newly_wrong = int(self.baseline.values.sum() - scores.values.sum())
        # Counts are exact, so a drop of exactly ε does not fail by rounding.
        return (round(self.tolerance * rows, 9) - newly_wrong) / rows

    def _run(
        self,
        stages: Sequence[Sequence[ScoredBatch]],
        stage: int,
        description: str,
        prefix_cache: PrefixCache,
    ) -> Scores:
        scores = score(
            self.switch.model, stages[stage], description, self._reference[stage], prefix_cache
        )
        self.examples_scored += len(scores.values)
        return scores


def refusing_confidence(share: float, confidence: float) -> float:
    """The confidence of a drop beyond ε on some rows with which all rows will find it too large.

    By the normal approximation: if the drop on a share f of the rows is d, with standard error s,
    the drop on all rows is around d with standard error s √(1 − f), and feasible below
    ε − z s √f. It is at least 0.55.

    Args:
        share: f, of the rows that were scored.
        confidence: of the bound on all rows; z is its quantile.
    """
    quantile = ndtri(ALMOST_SURE) * math.sqrt(1 - share) - ndtri(confidence) * math.sqrt(share)
    return max(0.55, float(ndtr(quantile)))


def _as_stages(batches: Batches) -> list[list[ScoredBatch]]:
    stages = [list(stage) for stage in batches if isinstance(stage, Sequence)]
    return stages or [[batch for batch in batches if not isinstance(batch, Sequence)]]


def stage_ends(rows: int, first: int = 32) -> list[int]:
    """How many rows are scored after each stage: `first`, twice that, and so on up to `rows`."""
    ends = []
    while first < rows:
        ends.append(first)
        first *= 2
    return [*ends, rows]


def hardest_first(scores: Scores) -> np.ndarray:
    """(N,) row indexes in an order that lowers the margin's upper bound as early as possible.

    The rows with the lowest dense score come first; among equals, the least likely answers.
    """
    return np.lexsort((-scores.losses, scores.values))
