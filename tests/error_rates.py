"""Exact error rates of the test of a drop, summed over all counts of worse and better rows."""

import numpy as np
from scipy import stats

from sieve.tasks.drop_test import score_test

MOST = 0.11  # up to here a level of .1 counts as kept


def error_rate(rows: int, tolerance: float, level: float, differing: float) -> float:
    """The exact chance that `score_test` is at most `level` when the drop is exactly `tolerance`.

    differing: share of all rows of the kind that only one of the two models answers correctly.
    """
    worse, better = (differing + tolerance) / 2, (differing - tolerance) / 2
    most = min(rows + 1, int(rows * differing + 9 * np.sqrt(rows * differing) + 12))
    first_accepted, start = [], 0  # by number of better rows, the fewest worse rows that fail
    for count in range(most):
        while start < most and score_test(start, count, rows, tolerance) <= level:
            start += 1
        first_accepted.append(start)
    counts = np.arange(most)
    fewer = stats.binom.cdf(np.array(first_accepted) - 1, rows - counts, worse / (1 - better))
    return float((stats.binom.pmf(counts, rows, better) * fewer).sum())


def attainable(rows: int, tolerance: float) -> float:
    """The largest level up to .11 of any test, if all rows that differ became worse.

    Only their number can be tested then, and its chances jump.
    """
    chances = stats.binom.cdf(np.arange(rows), rows, tolerance)
    return float(max(chances[chances <= MOST], default=0.0))
