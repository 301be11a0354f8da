"""Score a model on every example of a split, by the method of the split's batches."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torchmetrics import Metric as TorchMetric
from transformers import PreTrainedModel

from sieve.data.batches import batches_of_rank
from sieve.data.encoding import Tokens
from sieve.data.generation import WritingBatch
from sieve.data.prefix import PrefixCache
from sieve.data.scored import Reference, ScoredBatch
from sieve.distributed.sharding import Turns, without_gradients
from sieve.runtime.progress import track
from sieve.tasks.example import Example
from sieve.tasks.metrics import ACCURACY, Metric
from sieve.tasks.scores import Outcome, Scores

log = logging.getLogger(__name__)
UNSEEN = -2  # the predicted choice of an example that was not scored


@dataclass(frozen=True)
class Chance:
    """The accuracy of guessing, and whether the model that was scored beats it."""

    accuracy: float  # of the most common answer or of random guesses, whichever is higher
    beaten: bool  # by a one-sided exact binomial test at 5 %
    # Whether fewer answers are right than if they did not depend on the rows, by a test at 1 %.
    inverted: bool


def compare_with_chance(scores: Scores, examples: Sequence[Example]) -> Chance | None:
    """Compare scores with guessing; None where there are no choices to guess from.

    examples: the rows that were scored.
    """
    n = len(examples)
    if not scores.binary or any(len(example.choices) < 2 for example in examples):
        return None
    most_common = max(Counter(example.answer for example in examples).values()) / n
    accuracy = max(most_common, sum(1 / len(example.choices) for example in examples) / n)
    right = int(scores.correct.sum())
    p_value = stats.binomtest(right, n, min(accuracy, 1.0), alternative="greater").pvalue
    predicted, answers = Counter(scores.predicted.tolist()), Counter(e.answer for e in examples)
    # Right answers by luck at the model's own shares of answers.
    luck = sum(predicted[answer] * count for answer, count in answers.items()) / n**2
    low = stats.binomtest(right, n, min(luck, 1.0), alternative="less").pvalue
    return Chance(accuracy, bool(p_value < 0.05), bool(low < 0.01))


def check_finite(dense: Scores) -> None:
    """Raise ValueError if the dense model's numbers are not finite."""
    if dense.not_finite:
        raise ValueError(
            f"The dense model's scores are not finite (NaN or infinity) on {dense.not_finite} of "
            f"{len(dense.losses)} rows. Load the model in another dtype: set model.dtype=float32 "
            "or model.dtype=bfloat16."
        )


def warn_not_finite(pruned: Scores, model: str) -> None:
    """Log a warning if a pruned model's numbers are not finite.

    model: the model's name in the message, such as "The pruned model".
    """
    if pruned.not_finite:
        log.warning(
            "%s gives scores that are not finite (NaN or infinity) on %d of %d rows; these rows "
            "count as wrong. Set model.dtype=float32 or model.dtype=bfloat16.",
            *(model, pruned.not_finite, len(pruned.losses)),
        )


class ScoresMetric(TorchMetric):
    """The outcomes of N examples, each of which one rank scores.

    Examples that other ranks score are zero here, so the sum over ranks joins all outcomes.
    """

    full_state_update = False
    shifted: Tensor  # predicted choice − UNSEEN, so that 0 is an example that was not scored
    values: Tensor
    losses: Tensor
    divergences: Tensor
    weights: Tensor

    def __init__(self, examples: int, compares: bool = False, metric: Metric = ACCURACY) -> None:
        super().__init__()
        self.compares, self.metric = compares, metric
        self.add_state("shifted", torch.zeros(examples, dtype=torch.long), dist_reduce_fx="sum")
        for name in ("values", "losses", "divergences", "weights"):
            zeros = torch.zeros(examples, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, outcome: Outcome, examples: Tensor) -> None:
        """Store the outcome of a batch; examples: their indexes."""
        self.shifted[examples] = outcome.predicted.long() - UNSEEN
        ones = torch.ones(len(examples), device=self.values.device)
        for name, rows in (
            ("values", outcome.values),
            ("losses", outcome.losses),
            ("divergences", ones * 0 if outcome.divergences is None else outcome.divergences),
            ("weights", ones if outcome.weights is None else outcome.weights),
        ):
            getattr(self, name)[examples] = rows.double()

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Shifted predictions, values, losses, divergences and weights (N,), over all ranks."""
        return self.shifted, self.values, self.losses, self.divergences, self.weights

    def scores(self) -> Scores:
        """Scores of all examples; RuntimeError if one was not scored."""
        states = (state.reshape(-1).cpu().numpy() for state in self.compute())
        shifted, values, losses, divergences, weights = states
        if (missing := int((shifted == 0).sum())) > 0:
            raise RuntimeError(f"{missing} of {len(shifted)} examples were not scored.")
        return Scores(
            shifted + UNSEEN,
            values,
            losses,
            divergences if self.compares else divergences[:0],
            None if (weights == 1).all() else weights,
            self.metric,
        )


class ScoringModule(L.LightningModule):
    """Scores a split under `trainer.test`; the result is in `scores`.

    reference, prefix_cache: as in `ScoredBatch.outcome`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        examples: int,
        metric: Metric = ACCURACY,
        reference: Reference | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        super().__init__()
        self.model, self.reference = model, reference
        self.prefix_cache = prefix_cache or PrefixCache()
        self.metric = ScoresMetric(examples, reference is not None, metric)
        self.scores: Scores | None = None
        self.turns = Turns(model)

    def configure_model(self) -> None:
        """Do nothing: a model that ranks share is already sharded."""

    def test_step(self, batch: ScoredBatch, batch_idx: int = 0) -> None:
        """Score one batch."""
        with without_gradients(self.model):
            outcome = batch.outcome(self.model, self.reference, self.prefix_cache)
            self.metric.update(outcome, batch.examples)

    def on_test_start(self) -> None:
        self.metric.reset()
        self.turns.begin()

    def on_test_epoch_end(self) -> None:
        self.turns.end()
        self.scores = self.metric.scores()


class WritingModule(L.LightningModule):
    """Writes an answer to every row of a split under `trainer.test`.

    The results are in `texts` and `vocabulary`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.turns, self.prefix_cache = model, Turns(model), PrefixCache()
        self.texts: list[str] = []  # of all rows, up to a stop string
        self.vocabulary = set[int]()  # tokens that were written
        self._by_row = dict[int, tuple[str, Tokens]]()

    def configure_model(self) -> None:
        """Do nothing: a model that ranks share is already sharded."""

    def test_step(self, batch: WritingBatch, batch_idx: int = 0) -> None:
        """Write the answers of one batch."""
        written = batch.write(self.model, self.prefix_cache)
        answers = [(batch.writer.read(tokens), tokens) for tokens in written]
        self._by_row |= zip(batch.examples.tolist(), answers, strict=True)

    def on_test_start(self) -> None:
        self.turns.begin()

    def on_test_epoch_end(self) -> None:
        self.turns.end()
        of_ranks = [self._by_row]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            of_ranks *= torch.distributed.get_world_size()
            torch.distributed.all_gather_object(of_ranks, self._by_row)
        rows = {row: answer for part in of_ranks for row, answer in part.items()}
        self.texts = [rows[row][0] for row in sorted(rows)]
        self.vocabulary = {token for _, tokens in rows.values() for token in tokens}


def score(
    model: PreTrainedModel,
    batches: Sequence[ScoredBatch],
    description: str = "Scoring",
    reference: Reference | None = None,
    prefix_cache: PrefixCache | None = None,
) -> Scores:
    """Score all batches of a split; the ranks of a process group split them.

    Args:
        reference: as in `ScoredBatch.outcome`.
        prefix_cache: of this model with these weights, from batches that it scored before.
    """
    metric = batches[0].metric if batches else ACCURACY
    examples = sum(len(batch.examples) for batch in batches)
    module = ScoringModule(model, examples, metric, reference, prefix_cache).to(model.device)
    rank, world_size = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    with module.turns:
        own = batches_of_rank(batches, rank, world_size)
        for batch in track(own, description, unit="rows", size=lambda b: len(b.examples)):
            module.test_step(batch.to(model.device))
    return module.metric.scores()


def together(parts: Sequence[Scores]) -> Scores:
    """The scores of all parts as one, in order."""
    names = ("predicted", "values", "losses", "divergences")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    weights = None
    if any(part.weights is not None for part in parts):
        ones = [np.ones(len(p.values)) if p.weights is None else p.weights for p in parts]
        weights = np.concatenate(ones)
    return Scores(**joined, weights=weights, metric=parts[0].metric)
