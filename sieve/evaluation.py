"""Scores per example, and the paired comparison of two models on the same rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import lightning as L
import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedModel

from sieve.backbone import forward
from sieve.batches import ScoringBatch, choice_logprobs, shard
from sieve.calibration import as_inputs
from sieve.progress import track
from sieve.tasks.example import Example

RESAMPLES = 10_000
FEW = 10  # rows that differ; a bootstrap of fewer is too narrow, and of none has no width
NOT_FINITE = -1
FARTHEST = 100.0  # nats, what a divergence that is not finite counts as


@dataclass(frozen=True)
class Scores:
    """Predicted choice of every example and whether it is right, in the order of the split."""

    predicted: np.ndarray  # (N,) int64; −1 where a log-likelihood was not finite
    correct: np.ndarray  # (N,) bool
    losses: np.ndarray  # (N,) negative log-likelihood of the right answer, nats
    # (N,) KL(dense ‖ model) over the choices, nats; empty where there was no dense model to compare
    divergences: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def accuracy(self) -> float:
        """Fraction of examples whose likeliest choice is the right one."""
        return float(self.correct.mean())

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of the right answer, nats per example."""
        return float(self.losses.mean())

    @property
    def divergence(self) -> float:
        """Mean KL(dense ‖ model) over the choices, nats per example; nan where it is unknown."""
        return float(self.divergences.mean()) if len(self.divergences) else float("nan")


@dataclass(frozen=True)
class Drop:
    """What pruning lost on the same rows: baseline − pruned accuracy, with its uncertainty."""

    point: float
    low: float  # 95 % paired percentile bootstrap interval
    high: float
    mcnemar_p: float  # exact, two-sided


@dataclass(frozen=True)
class Chance:
    """What a model scores that knows nothing of the task, and whether another does better."""

    accuracy: float  # always the commonest answer, or a guess among the choices: the higher
    beaten: bool  # one-sided exact binomial test at 5 %


def compare_with_chance(scores: Scores, examples: Sequence[Example]) -> Chance:
    """Compare the scores of a split with those of guessing; examples: the same split."""
    n = len(examples)
    commonest = max(Counter(example.answer for example in examples).values()) / n
    accuracy = max(commonest, sum(1 / len(example.choices) for example in examples) / n)
    right = int(scores.correct.sum())
    p_value = stats.binomtest(right, n, min(accuracy, 1.0), alternative="greater").pvalue
    return Chance(accuracy, bool(p_value < 0.05))


class PredictionMetric(Metric):
    """Predicted choices of N examples, each scored on one rank; summed over ranks."""

    full_state_update = False
    shifted: Tensor
    answers: Tensor
    losses: Tensor
    divergences: Tensor

    def __init__(self, examples: int, compares: bool = False) -> None:
        super().__init__()
        self.compares = compares
        # Zero means not seen, so that the sum over ranks is the union.
        self.add_state("shifted", torch.zeros(examples, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("answers", torch.zeros(examples, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("losses", torch.zeros(examples), dist_reduce_fx="sum")
        self.add_state("divergences", torch.zeros(examples), dist_reduce_fx="sum")

    def update(self, logprobs: Tensor, batch: ScoringBatch, dense: Tensor | None = None) -> None:
        """Take the log-likelihoods (n, C) of one batch, and those of the dense model."""
        finite = ~(logprobs.isnan().any(1) | logprobs.isposinf().any(1))
        best = torch.where(finite, logprobs.argmax(1), NOT_FINITE)
        self.shifted[batch.examples] = best + 2
        self.answers[batch.examples] = batch.answers
        self.losses[batch.examples] = -logprobs.gather(1, batch.answers[:, None]).squeeze(1)
        if dense is not None:
            self.divergences[batch.examples] = choice_divergence(dense, logprobs)

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shifted predictions, right answers, losses and divergences (N,) each, over all ranks."""
        return self.shifted, self.answers, self.losses, self.divergences

    def scores(self) -> Scores:
        """Scores of all examples; RuntimeError when one was never scored."""
        shifted, answers, losses, far = (p.reshape(-1).cpu().numpy() for p in self.compute())
        if (missing := int((shifted == 0).sum())) > 0:
            raise RuntimeError(f"{missing} of {len(shifted)} examples were never scored.")
        predicted = shifted - 2
        return Scores(predicted, predicted == answers, losses, far if self.compares else far[:0])


def choice_divergence(dense: Tensor, pruned: Tensor) -> Tensor:
    """KL(dense ‖ pruned) over the choices of every example (n,), nats, at most 100.

    dense, pruned: log-likelihoods of the choices (n, C), -inf where an example has fewer.
    """
    p, q = torch.log_softmax(dense, 1), torch.log_softmax(pruned, 1)
    terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
    return terms.sum(1).nan_to_num(FARTHEST, FARTHEST).clamp(0.0, FARTHEST)


class ScoringModule(L.LightningModule):
    """Scores a split under `trainer.validate` or `trainer.test`; the result is in `scores`.

    reference: the dense model's log-likelihoods by the first example of a batch; a batch that is
    not there is put there, and compared with itself.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        examples: int,
        normalize: bool = False,
        reference: dict[int, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.normalize = normalize
        self.reference = reference
        self.metric = PredictionMetric(examples, compares=reference is not None)
        self.scores: Scores | None = None

    @torch.inference_mode()
    def test_step(self, batch: ScoringBatch, batch_idx: int = 0) -> None:
        """One batch of the test split."""
        logits = forward(self.model, as_inputs(batch), batch.keep)
        logprobs = choice_logprobs(logits, batch, self.normalize)
        dense = None
        if self.reference is not None:
            dense = self.reference.setdefault(int(batch.examples[0]), logprobs)
        self.metric.update(logprobs, batch, dense)

    def on_test_start(self) -> None:
        self.metric.reset()

    def on_test_epoch_end(self) -> None:
        self.scores = self.metric.scores()


def count_examples(batches: Sequence[ScoringBatch]) -> int:
    """Number of examples in all batches of a split."""
    return sum(len(batch.examples) for batch in batches)


def score(
    model: PreTrainedModel,
    batches: Sequence[ScoringBatch],
    normalize: bool = False,
    description: str = "Scoring",
    reference: dict[int, Tensor] | None = None,
) -> Scores:
    """Score all batches of a split; with a process group every rank takes its share.

    reference: as of `ScoringModule`; filled by the dense model, compared with by the others.
    """
    module = ScoringModule(model, count_examples(batches), normalize, reference).to(model.device)
    rank, world_size = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for batch in track(shard(batches, rank, world_size), description):
        module.test_step(batch.to(model.device))
    return module.metric.scores()


def paired_drop(baseline: np.ndarray, pruned: np.ndarray, seed: int = 0) -> Drop:
    """Drop in accuracy between two models on the same rows.

    baseline, pruned: (N,) bool, right or wrong. The interval is the percentile bootstrap over
    examples; where fewer than 10 differ it is too narrow, and is widened to the exact bounds of
    the rows lost and won. The p-value is McNemar's exact test on the examples that differ.
    Raises ValueError unless the shapes agree.
    """
    if baseline.shape != pruned.shape or baseline.size == 0:
        raise ValueError(f"got scores of {baseline.shape} and {pruned.shape} rows, expected equal.")
    difference = baseline.astype(float) - pruned.astype(float)
    lost, won = int((difference > 0).sum()), int((difference < 0).sum())
    low, high = _bootstrap_mean(lost, won, len(difference), seed)
    if lost + won < FEW:
        high = max(high, _exact_upper(lost, len(difference)) - won / len(difference))
        low = min(low, lost / len(difference) - _exact_upper(won, len(difference)))
    p_value = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    return Drop(float(difference.mean()), low, high, float(p_value))


def _exact_upper(count: int, total: int) -> float:
    """Upper end of the 95 % Clopper-Pearson interval of a fraction count / total."""
    return float(stats.binomtest(count, total).proportion_ci(0.95, method="exact").high)


def _bootstrap_mean(lost: int, won: int, total: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of +1 (lost), −1 (won) and 0, resampled.

    Resampling N rows of three values is a multinomial draw of their counts.
    """
    generator = np.random.default_rng(seed)
    shares = [lost / total, won / total, (total - lost - won) / total]
    draws = generator.multinomial(total, shares, size=RESAMPLES)
    means = (draws[:, 0] - draws[:, 1]) / total
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
