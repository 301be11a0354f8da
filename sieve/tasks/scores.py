"""What a task is measured by, from values per row: their mean, or a perplexity of it.

A row's value is always the larger the better and never above `best`: 1 or 0 for right or wrong, an
F1, or for text its log-likelihood per token. A tolerance is of the metric: a difference of it, or
where the metric is relative (a perplexity, the smaller the better) a fraction by which it may rise.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import stats
from torch import Tensor

RESAMPLES = 10_000
CHUNK = 500  # resamples drawn at once
FEW = 10  # rows that differ; a bootstrap of fewer is too narrow, and of none has no width


@dataclass(frozen=True)
class Metric:
    """How values of rows become the number that a result gives.

    form: "mean"; "perplexity", exp of the mean loss; "bits", the mean loss in bits. best: what no
    row's value is above.
    """

    name: str = "accuracy"
    form: str = "mean"
    best: float = 1.0

    @property
    def relative(self) -> bool:
        """Whether smaller is better and the tolerance a fraction of the dense model's."""
        return self.form != "mean"

    def total(self, mean: np.ndarray | float) -> np.ndarray | float:
        """The metric, from the weighted mean of values."""
        if self.form == "perplexity":
            return np.exp(-np.asarray(mean, dtype=float))
        return -np.asarray(mean) / np.log(2) if self.form == "bits" else mean

    def mean(self, total: float) -> float:
        """The weighted mean of values that makes the metric `total`."""
        if self.form == "perplexity":
            return -float(np.log(total))
        return -total * float(np.log(2)) if self.form == "bits" else total

    def drop(self, baseline: np.ndarray | float, pruned: np.ndarray | float) -> np.ndarray | float:
        """What was lost between two weighted means, in the tolerance's unit; positive is worse."""
        if not self.relative:
            return baseline - pruned
        return self.total(pruned) / np.maximum(self.total(baseline), 1e-12) - 1


ACCURACY = Metric()


@dataclass(frozen=True)
class Scores:
    """What a model did on every example, in the order of the split."""

    predicted: np.ndarray  # (N,) int64, a choice; −1 where there is none that is finite, or fits
    values: np.ndarray  # (N,) float64, of the metric; 1 and 0, or bool, for right and wrong
    losses: np.ndarray  # (N,) negative log-likelihood of the right answer, nats
    # (N,) how far from the dense model, nats; empty where there was no dense model to compare
    divergences: np.ndarray = field(default_factory=lambda: np.zeros(0))
    weights: np.ndarray | None = None  # (N,) how much each row counts; None is all alike
    metric: Metric = ACCURACY

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool, which rows have the best value there is."""
        return self.values >= self.metric.best

    @property
    def mean(self) -> float:
        """Weighted mean of the values."""
        return float(np.average(self.values, weights=self.weights))

    @property
    def mass(self) -> float:
        """Sum of the weights."""
        return float(len(self.values) if self.weights is None else self.weights.sum())

    @property
    def accuracy(self) -> float:
        """The metric, whatever it is: for accuracy the fraction of rows that are right."""
        return float(self.metric.total(self.mean))

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of the right answer, nats per example."""
        return float(self.losses.mean())

    @property
    def divergence(self) -> float:
        """Mean divergence, nats per example; nan where it is unknown."""
        return float(self.divergences.mean()) if len(self.divergences) else float("nan")

    @property
    def countable(self) -> bool:
        """Whether it is rows that are right or wrong, all alike, that are counted."""
        alike = self.weights is None and not self.metric.relative
        return alike and bool(np.isin(self.values, (0, 1)).all())


@dataclass(frozen=True)
class Outcome:
    """What a model did on the N examples of one batch, (N,) each, as `Scores` has them."""

    predicted: Tensor
    values: Tensor
    losses: Tensor
    divergences: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True)
class Drop:
    """What pruning lost on the same rows, in the tolerance's unit, with its uncertainty."""

    point: float
    low: float  # 95 % paired percentile bootstrap interval
    high: float
    mcnemar_p: float  # exact, two-sided: of as many rows worse and better


def lost(baseline: Scores, pruned: Scores) -> float:
    """What was lost between two models on the same rows; ValueError unless they are as many."""
    if baseline.values.shape != pruned.values.shape or baseline.values.size == 0:
        shapes = f"{baseline.values.shape} and {pruned.values.shape}"
        raise ValueError(f"got scores of {shapes} rows, expected equal.")
    return float(baseline.metric.drop(baseline.mean, pruned.mean))


def compare(baseline: Scores, pruned: Scores, seed: int = 0) -> Drop:
    """The drop between two models on the same rows, with its interval.

    The p-value is of the exact sign test on the rows that differ, McNemar's where rows are right or
    wrong. Raises ValueError unless there are as many of both.
    """
    point = lost(baseline, pruned)
    if baseline.countable and pruned.countable:
        return paired_drop(baseline.values, pruned.values, seed)
    before, after = baseline.values.astype(float), pruned.values.astype(float)
    weights = np.ones(len(before)) if baseline.weights is None else baseline.weights
    low, high = _bootstrap_drop(before, after, weights, baseline.metric, seed)
    worse, better = int((before > after).sum()), int((before < after).sum())
    if worse + better < FEW:  # As of rows that are right or wrong, each of which may lose so much.
        most = 1.0 if not baseline.metric.relative else float(np.abs(before - after).max())
        high = max(high, most * _exact_upper(worse, len(before)) - max(0.0, -point))
        low = min(low, min(0.0, point) - most * _exact_upper(better, len(before)))
    return Drop(point, low, high, _sign_test(before, after))


def paired_drop(baseline: np.ndarray, pruned: np.ndarray, seed: int = 0) -> Drop:
    """Drop in accuracy between two models on the same rows.

    baseline, pruned: (N,), right or wrong. The interval is the percentile bootstrap over
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
    return Drop(float(difference.mean()), low, high, _sign_test(baseline, pruned))


def _sign_test(before: np.ndarray, after: np.ndarray) -> float:
    """Two-sided exact p-value of as many rows worse as better."""
    worse, better = int((before > after).sum()), int((before < after).sum())
    return float(stats.binomtest(worse, worse + better).pvalue) if worse + better else 1.0


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


def _bootstrap_drop(
    before: np.ndarray, after: np.ndarray, weights: np.ndarray, metric: Metric, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of the drop over rows resampled in pairs."""
    generator = np.random.default_rng(seed)
    columns = np.stack([weights, weights * before, weights * after], axis=1)  # (N, 3)
    drops = []
    for _ in range(RESAMPLES // CHUNK):
        drawn = generator.multinomial(len(before), np.full(len(before), 1 / len(before)), CHUNK)
        mass, first, second = (drawn @ columns).T
        drops.append(metric.drop(first / mass, second / mass))
    low, high = np.percentile(np.concatenate(drops), [2.5, 97.5])
    return float(low), float(high)
