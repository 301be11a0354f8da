"""Scores per example of a split, by whatever its batches say of a model."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torchmetrics import Metric as TorchMetric
from transformers import PreTrainedModel

from sieve.data.batches import batches_of_rank
from sieve.data.prefix import PrefixCache
from sieve.data.scored import ScoredBatch
from sieve.distributed.sharding import Turns, without_gradients
from sieve.runtime.progress import track
from sieve.tasks.example import Example
from sieve.tasks.metrics import ACCURACY, Metric
from sieve.tasks.scores import Outcome, Scores

UNSEEN = -2  # a predicted choice that no rank has told


@dataclass(frozen=True)
class Chance:
    """What a model scores that knows nothing of the task, and whether another does better."""

    accuracy: float  # always the commonest answer, or a guess among the choices: the higher
    beaten: bool  # one-sided exact binomial test at 5 %


def compare_with_chance(scores: Scores, examples: Sequence[Example]) -> Chance | None:
    """Compare the scores of a split with those of guessing; None where nothing can be guessed.

    examples: the same split.
    """
    n = len(examples)
    if not scores.binary or any(len(example.choices) < 2 for example in examples):
        return None
    commonest = max(Counter(example.answer for example in examples).values()) / n
    accuracy = max(commonest, sum(1 / len(example.choices) for example in examples) / n)
    right = int(scores.correct.sum())
    p_value = stats.binomtest(right, n, min(accuracy, 1.0), alternative="greater").pvalue
    return Chance(accuracy, bool(p_value < 0.05))


class ScoresMetric(TorchMetric):
    """Outcomes of N examples, each scored on one rank; summed over ranks."""

    full_state_update = False
    shifted: Tensor
    values: Tensor
    losses: Tensor
    divergences: Tensor
    weights: Tensor

    def __init__(self, examples: int, compares: bool = False, metric: Metric = ACCURACY) -> None:
        super().__init__()
        self.compares, self.metric = compares, metric
        # Zero means not seen, so that the sum over ranks is the union.
        self.add_state("shifted", torch.zeros(examples, dtype=torch.long), dist_reduce_fx="sum")
        for name in ("values", "losses", "divergences", "weights"):
            zeros = torch.zeros(examples, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, outcome: Outcome, examples: Tensor) -> None:
        """Take the outcome of one batch; examples: which ones it is of."""
        self.shifted[examples] = outcome.predicted.long() - UNSEEN
        ones = torch.ones(len(examples), device=self.values.device)
        for name, found in (
            ("values", outcome.values),
            ("losses", outcome.losses),
            ("divergences", ones * 0 if outcome.divergences is None else outcome.divergences),
            ("weights", ones if outcome.weights is None else outcome.weights),
        ):
            getattr(self, name)[examples] = found.double()

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Shifted predictions, values, losses, divergences and weights (N,), over all ranks."""
        return self.shifted, self.values, self.losses, self.divergences, self.weights

    def scores(self) -> Scores:
        """Scores of all examples; RuntimeError when one was never scored."""
        found = (part.reshape(-1).cpu().numpy() for part in self.compute())
        shifted, values, losses, far, weights = found
        if (missing := int((shifted == 0).sum())) > 0:
            raise RuntimeError(f"{missing} of {len(shifted)} examples were never scored.")
        uneven = None if (weights == 1).all() else weights
        far = far if self.compares else far[:0]
        return Scores(shifted + UNSEEN, values, losses, far, uneven, self.metric)


class ScoringModule(L.LightningModule):
    """Scores a split under `trainer.validate` or `trainer.test`; the result is in `scores`.

    reference, shared: as of `ScoredBatch.outcome`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        examples: int,
        metric: Metric = ACCURACY,
        reference: dict[int, Any] | None = None,
        shared: PrefixCache | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.reference = reference
        self.shared = shared or PrefixCache()
        self.metric = ScoresMetric(examples, reference is not None, metric)
        self.scores: Scores | None = None
        self.turns = Turns(model)

    def configure_model(self) -> None:
        """A model that is to be sharded is so before it comes here."""

    def test_step(self, batch: ScoredBatch, batch_idx: int = 0) -> None:
        """One batch of the test split."""
        with without_gradients(self.model):
            outcome = batch.outcome(self.model, self.reference, self.shared)
            self.metric.update(outcome, batch.examples)

    def on_test_start(self) -> None:
        self.metric.reset()
        self.turns.begin()

    def on_test_epoch_end(self) -> None:
        self.turns.end()
        self.scores = self.metric.scores()


def count_examples(batches: Sequence[ScoredBatch]) -> int:
    """Number of examples in all batches of a split."""
    return sum(len(batch.examples) for batch in batches)


def score(
    model: PreTrainedModel,
    batches: Sequence[ScoredBatch],
    description: str = "Scoring",
    reference: dict[int, Any] | None = None,
    shared: PrefixCache | None = None,
) -> Scores:
    """Score all batches of a split; with a process group every rank takes its share.

    reference: as of `ScoredBatch.outcome`; filled by the dense model, compared with by the others.
    shared: of the model as it stands, where other batches of its rows were scored before.
    """
    metric = batches[0].metric if batches else ACCURACY
    examples = count_examples(batches)
    module = ScoringModule(model, examples, metric, reference, shared).to(model.device)
    rank, world_size = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    with module.turns:
        for batch in track(batches_of_rank(batches, rank, world_size), description):
            module.test_step(batch.to(model.device))
    return module.metric.scores()


def together(parts: Sequence[Scores]) -> Scores:
    """Scores of the rows of all parts, one after the other."""
    names = ("predicted", "values", "losses", "divergences")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    weights = None
    if any(part.weights is not None for part in parts):
        ones = [np.ones(len(p.values)) if p.weights is None else p.weights for p in parts]
        weights = np.concatenate(ones)
    return Scores(**joined, weights=weights, metric=parts[0].metric)
