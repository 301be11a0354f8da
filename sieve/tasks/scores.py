"""The values of all rows of a split, and how the values of two models are compared.

`Scores` holds the values of one model, `compare` gives the drop between two with its interval and
p-value. What one value means is the `Metric` of the task, see `sieve.tasks.metrics`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from sieve.tasks.metrics import ACCURACY, Metric

RESAMPLES = 10_000
CHUNK = 500  # resamples drawn at once
CERTAIN = 2  # standard errors between two means that differ
FEW = 10  # a bootstrap over fewer rows that differ is too narrow; over none it has no width


@dataclass(frozen=True)
class Outcome:
    """What a model did on the N examples of one batch, (N,) each; fields as in `Scores`."""

    predicted: Tensor
    values: Tensor
    losses: Tensor
    divergences: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True)
class Scores:
    """What a model did on all N examples of a split, in their order."""

    predicted: np.ndarray  # (N,) int64, a choice; −1 where log-likelihoods are not finite
    values: np.ndarray  # (N,) float64 in the metric's unit, or bool for right and wrong
    # (N,) negative log-likelihood of the right answer, nats; nan where numbers are not finite
    losses: np.ndarray
    # (N,) divergence from the dense model, nats; empty where there was no dense model to compare
    divergences: np.ndarray = field(default_factory=lambda: np.zeros(0))
    weights: np.ndarray | None = None  # (N,) how much each row counts; None counts all alike
    metric: Metric = ACCURACY

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool, whether each row has the best possible value."""
        return self.values >= self.metric.best

    @property
    def total_weight(self) -> float:
        """Sum of the weights."""
        return float(len(self.values) if self.weights is None else self.weights.sum())

    @property
    def mean(self) -> float:
        """Weighted mean of the values."""
        return float(np.average(self.values, weights=self.weights))

    @property
    def accuracy(self) -> float:
        """The task's metric, whatever it is: for accuracy the fraction of right rows."""
        return float(self.metric.total(self.mean))

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        weights = np.ones(len(self.values)) if self.weights is None else self.weights
        return float(np.linalg.norm(weights * (self.values - self.mean)) / weights.sum())

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of the right answer, nats per example."""
        return float(self.losses.mean())

    @property
    def divergence(self) -> float:
        """Mean divergence from the dense model, nats per example; nan where it is unknown."""
        return float(self.divergences.mean()) if len(self.divergences) else float("nan")

    @property
    def not_finite(self) -> int:
        """Number of rows on which the model computed numbers that are not finite."""
        return int((~np.isfinite(self.losses)).sum())

    @property
    def binary(self) -> bool:
        """Whether every row is right or wrong and all rows count alike."""
        if self.weights is not None or self.metric.relative:
            return False
        return bool(np.isin(self.values, (0, 1)).all())


@dataclass(frozen=True)
class Drop:
    """The loss in quality by pruning on the same rows, in the tolerance's unit.

    A model loses nothing against itself, so that there is no interval and no p-value.
    """

    point: float
    low: float | None = None  # 95 % paired percentile bootstrap interval
    high: float | None = None
    # Exact and two-sided, of the hypothesis "as many rows worse as better".
    mcnemar_p: float | None = None


def as_baseline(dense: Scores) -> Scores:
    """The dense model's scores as what other models are compared with.

    By agreement every row is right. A row that the model now answers in another way differs by
    rounding alone, because it is in a batch with other rows.
    """
    return replace(dense, values=np.ones(len(dense.values))) if dense.metric.agreement else dense


def drop_of(baseline: Scores, pruned: Scores) -> float:
    """The drop between two models on the same rows; ValueError unless they have equally many."""
    _check_same_rows(baseline.values, pruned.values)
    return float(baseline.metric.drop(baseline.mean, pruned.mean))


def head_start(known: Scores, fresh: Scores) -> float:
    """By how much a model does better on rows that it knows than on fresh ones.

    In the tolerance's unit; 0 unless the difference is more than two standard errors.
    """
    if known.mean - fresh.mean <= CERTAIN * math.hypot(known.error, fresh.error):
        return 0.0
    return float(known.metric.drop(known.mean, fresh.mean))


def compare(baseline: Scores, pruned: Scores, seed: int = 0) -> Drop:
    """The drop between two models on the same rows, with its interval and p-value.

    The p-value is from the exact sign test on the rows that differ. Where rows are right or wrong
    this is McNemar's test. Raises ValueError unless both have equally many rows.
    """
    if pruned is baseline:
        return Drop(0.0)
    point = drop_of(baseline, pruned)
    if baseline.metric.agreement:  # No row can become better, so the interval is Clopper-Pearson's.
        worse, rows = count_changes(baseline.values, pruned.values)[0], len(pruned.values)
        ends = _binomial_test(worse, rows).proportion_ci(0.95, "exact")
        return Drop(point, float(ends.low), float(ends.high), _sign_test(worse, 0))
    if baseline.binary and pruned.binary:
        return paired_drop(baseline.values, pruned.values, seed)
    before, after = baseline.values.astype(float), pruned.values.astype(float)
    weights = np.ones(len(before)) if baseline.weights is None else baseline.weights
    low, high = _bootstrap_rows(before, after, weights, baseline.metric, seed)
    worse, better = count_changes(before, after)
    if worse + better < FEW:
        # Bounds as for right and wrong rows, where one row can lose `most`.
        most = largest_change(baseline, pruned)
        high = max(high, most * exact_upper(worse, len(before)) - max(0.0, -point))
        low = min(low, min(0.0, point) - most * exact_upper(better, len(before)))
    return Drop(point, low, high, _sign_test(worse, better))


def paired_drop(baseline: np.ndarray, pruned: np.ndarray, seed: int = 0) -> Drop:
    """The drop in accuracy between two models on the same rows.

    The interval is the percentile bootstrap over rows. Where fewer than 10 rows differ, this is
    too narrow, and it is widened to the exact bounds on the rows that became worse and better.

    Args:
        baseline: (N,), 1 or True for right.
        pruned: (N,), the same.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_rows(baseline, pruned)
    worse, better = count_changes(baseline, pruned)
    rows = len(baseline)
    low, high = _bootstrap_counts(worse, better, rows, seed)
    if worse + better < FEW:
        high = max(high, exact_upper(worse, rows) - better / rows)
        low = min(low, worse / rows - exact_upper(better, rows))
    point = float((baseline.astype(float) - pruned.astype(float)).mean())
    return Drop(point, low, high, _sign_test(worse, better))


def _check_same_rows(baseline: np.ndarray, pruned: np.ndarray) -> None:
    if baseline.shape != pruned.shape or baseline.size == 0:
        raise ValueError(
            f"got scores of {baseline.shape} and {pruned.shape} rows, expected equally many and at "
            "least one; score both models on the same split."
        )


def count_changes(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """Numbers of rows that became worse, and better."""
    return int((before > after).sum()), int((before < after).sum())


def _sign_test(worse: int, better: int) -> float:
    """Two-sided exact p-value of the hypothesis that rows become worse as often as better."""
    return float(_binomial_test(worse, worse + better).pvalue) if worse + better else 1.0


def _binomial_test(count: int, total: int, alternative: str = "two-sided") -> Any:
    """SciPy's test; its import takes half a second, which loading an export does without."""
    from scipy import stats

    return stats.binomtest(count, total, alternative=alternative)


def largest_change(baseline: Scores, pruned: Scores) -> float:
    """By how much one row's value can change; for a relative metric, the largest change seen."""
    if baseline.metric.relative:
        return float(np.abs(baseline.values - pruned.values).max())
    return baseline.metric.best - min(0.0, float(baseline.values.min()), float(pruned.values.min()))


def exact_upper(count: int, total: int, confidence: float = 0.975) -> float:
    """One-sided Clopper-Pearson upper bound of a fraction count / total.

    By default the upper end of the two-sided 95 % interval.
    """
    test = _binomial_test(count, total, "less")
    return float(test.proportion_ci(confidence, method="exact").high)


def _bootstrap_counts(worse: int, better: int, total: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of +1 (worse), −1 (better) and 0 (same).

    Resampling rows that have only three values is a multinomial draw of their counts.
    """
    generator = np.random.default_rng(seed)
    shares = [worse / total, better / total, (total - worse - better) / total]
    draws = generator.multinomial(total, shares, size=RESAMPLES)
    return _percentiles((draws[:, 0] - draws[:, 1]) / total)


def _bootstrap_rows(
    before: np.ndarray, after: np.ndarray, weights: np.ndarray, metric: Metric, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of the drop over rows resampled in pairs."""
    total, first, second = resampled_sums([weights, weights * before, weights * after], seed)
    return _percentiles(np.asarray(metric.drop(first / total, second / total)))


def resampled_sums(columns: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """(K, RESAMPLES) sums of K columns (N,) over N rows drawn with replacement.

    The same rows in another order give the same sums.
    """
    generator, values = np.random.default_rng(seed), np.stack(columns, axis=1)  # (N, K)
    values, rows = values[np.lexsort(values.T)], len(values)
    starts, sums = rows * np.arange(CHUNK)[:, None], []
    for _ in range(RESAMPLES // CHUNK):
        drawn = generator.integers(rows, size=(CHUNK, rows)) + starts
        counts = np.bincount(drawn.ravel(), minlength=CHUNK * rows).reshape(CHUNK, rows)
        sums.append((counts @ values).T)
    return np.concatenate(sums, axis=1)


def _percentiles(drops: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(drops, [2.5, 97.5])
    return float(low), float(high)
