"""A test of the drop between two models on the same rows, and an upper confidence bound of it.

For rows that are right or wrong: Tango's one-sided score test for paired proportions (Statistics in
Medicine 17:891-908, 1998) and its inversion. For all other values: a studentized bootstrap.
"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import bdtr, ndtr

from sieve.tasks.scores import (
    FEW,
    Scores,
    count_changes,
    drop_of,
    exact_upper,
    largest_change,
    resampled_sums,
)

SEED = 0  # of the bootstrap
SLACK = 1.1  # a test at .1 may reject in .11 of draws; chances of counts jump, so .1 costs rows


def score_test(worse: int, better: int, rows: int, tolerance: float) -> float:
    """P-value of the hypothesis that the drop in accuracy is at least `tolerance`, from −1 to 1.

    Where fewer than 10 rows differ or no row became better, Tango's approximation can reject too
    often. There the p-value is at least that of the exact binomial test of `worse`, with `better` /
    `rows` as a known gain; from 10 rows on it is at least 1 / 1.1 of that. At .1 the test is wrong
    in at most .11 of draws from 100 rows on; `tests/tasks/test_drop_level.py` sums it.

    Args:
        worse: number of rows that only the dense model answers correctly.
        better: number of rows that only the pruned model answers correctly.
        rows: number of all rows.
    """
    p_value = _tango(worse, better, rows, tolerance)
    few = worse + better < FEW
    if few or not better:
        most_lost = min(1.0, max(0.0, tolerance + better / rows))
        exact = float(bdtr(worse, rows, most_lost))
        p_value = max(p_value, exact if few else exact / SLACK)
    return p_value


def upper_drop(baseline: Scores, pruned: Scores, confidence: float) -> float:
    """The one-sided upper confidence bound of the drop, in the tolerance's unit.

    Where rows are right or wrong, this is the smallest tolerance whose `score_test` has a p-value
    of at most 1 − `confidence`. The same rows in any order give the same bound.

    Args:
        confidence: above 0.5 and below 1. With this probability, over draws of rows, the drop on
            all rows of the kind is at most the bound.

    Raises:
        ValueError: the models were not scored on equally many rows.
    """
    point = drop_of(baseline, pruned)
    if not (baseline.binary and pruned.binary):
        return max(point, _upper_of_values(baseline, pruned, confidence))
    worse, better = count_changes(baseline.values, pruned.values)
    return upper_of_counts(worse, better, len(baseline.values), confidence)


def upper_of_counts(worse: int, better: int, rows: int, confidence: float) -> float:
    """`upper_drop` of rows that are right or wrong; counts as for `score_test`."""
    if worse == rows:
        return 1.0

    def excess(tolerance: float) -> float:
        return score_test(worse, better, rows, tolerance) - (1 - confidence)

    return float(brentq(excess, (worse - better) / rows, 1.0, xtol=1e-12))


def _tango(worse: int, better: int, rows: int, drop: float) -> float:
    """P-value of Tango's score test, without a correction for few differences."""
    # The likelihood at this drop is largest where the share q of rows that became better is the
    # larger root of 2 rows q² − b q − better drop (1 − drop) = 0.
    b = worse + better + (worse - better) * drop - 2 * rows * drop
    root = math.sqrt(max(0.0, b * b + 8 * rows * better * drop * (1 - drop)))
    q = max((b + root) / (4 * rows), 0.0, -drop)
    variance = rows * (2 * q + drop * (1 - drop))
    difference = worse - better - rows * drop
    if variance <= 0:  # Only if drop is 0 and no row differs, or if drop is −1 or 1.
        return 0.5 if difference == 0 else float(difference > 0)
    return float(ndtr(difference / math.sqrt(variance)))


def _upper_of_values(baseline: Scores, pruned: Scores, confidence: float) -> float:
    """The upper bound by the studentized bootstrap; the exact bound where few rows differ.

    At confidence .9 it is below the drop of skewed F1 values in 10.5 % of draws of 300 rows and
    9.3 % of 1,000; BCa 10.4 and 8.6, percentile 12.6 and 9.8 (`tests/tasks/test_drop_level.py`).
    """
    before, after = baseline.values.astype(float), pruned.values.astype(float)
    point, rows = drop_of(baseline, pruned), len(before)
    worse, better = count_changes(before, after)
    if worse + better < FEW:
        most = largest_change(baseline, pruned)
        return most * exact_upper(worse, rows, confidence) - max(0.0, -point)
    weights = np.ones(rows) if baseline.weights is None else baseline.weights
    sums = [weights, weights * before, weights * after]
    total, first, second = (column.sum() - column for column in sums)  # without one row each
    # (N,) how much each row moves the drop, up to a factor that cancels below
    influence = point - np.asarray(baseline.metric.drop(first / total, second / total))
    total, first, second, *moments = resampled_sums([*sums, influence, influence**2], SEED)
    deviation = np.asarray(baseline.metric.drop(first / total, second / total)) - point
    mean, square = (moment / rows for moment in moments)
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    ratios = np.divide(deviation, spread, out=np.zeros(len(spread)), where=spread > 0)
    return point - float(np.quantile(ratios, 1 - confidence)) * float(influence.std())
