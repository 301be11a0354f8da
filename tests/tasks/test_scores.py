"""Metrics of values per row, and the drop between two models, against plain arithmetic."""

import numpy as np
import pytest

from sieve.tasks.metrics import ACCURACY, Metric
from sieve.tasks.scores import Scores, compare, drop_of, paired_drop

PERPLEXITY = Metric("perplexity", "perplexity", 0.0)


def scores(values, weights=None, metric=ACCURACY) -> Scores:
    values = np.asarray(values, dtype=float)
    weights = None if weights is None else np.asarray(weights, dtype=float)
    nothing = np.zeros(len(values))
    return Scores(nothing.astype(int), values, nothing, nothing, weights, metric)


def test_a_perplexity_is_that_of_all_tokens_together():
    # Two texts of 3 and 1 tokens with 6 and 1 nats in all: exp(7 / 4).
    assert scores([-2, -1], [3, 1], PERPLEXITY).accuracy == pytest.approx(np.exp(7 / 4))


def test_what_a_perplexity_lost_is_a_fraction_of_it():
    dense, pruned = scores([-2, -1], [3, 1], PERPLEXITY), scores([-2.1, -1], [3, 1], PERPLEXITY)
    assert drop_of(dense, pruned) == pytest.approx(pruned.accuracy / dense.accuracy - 1)
    assert compare(dense, pruned).point == pytest.approx(np.exp(0.3 / 4) - 1)


def test_rows_that_are_right_or_wrong_are_compared_as_ever():
    rng = np.random.default_rng(0)
    before, after = rng.random(300) < 0.8, rng.random(300) < 0.7
    assert compare(scores(before), scores(after), 3) == paired_drop(before, after, 3)


def test_the_interval_of_fractions_has_the_width_of_the_normal_one():
    rng = np.random.default_rng(1)
    before = rng.random(400)
    after = before - rng.normal(0.05, 0.2, 400)
    found = compare(scores(np.minimum(before, 0.99)), scores(np.minimum(after, 0.99)))
    difference = np.minimum(before, 0.99) - np.minimum(after, 0.99)
    half = 1.96 * difference.std() / 20
    assert found.point == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.15 * half)


def test_the_interval_of_a_perplexity_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        weights, before = rng.integers(5, 50, 80), rng.normal(-3, 0.5, 80)
        after = before - rng.normal(0.1, 0.3, 80)
        dense = scores(before, weights, PERPLEXITY)
        found = compare(dense, scores(after, weights, PERPLEXITY), seed)
        covered += found.low <= np.exp(0.1) - 1 <= found.high
    assert 85 <= covered <= 100


def test_the_p_value_is_of_as_many_rows_worse_as_better():
    before, after = np.full(20, 0.5), np.r_[np.full(8, 0.4), np.full(2, 0.6), np.full(10, 0.5)]
    assert compare(scores(before), scores(after)).mcnemar_p == pytest.approx(112 / 1024)


def test_scores_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="expected equal"):
        drop_of(scores([1, 0]), scores([1]))


@pytest.mark.parametrize("half", [False, True])
def test_few_rows_that_differ_have_a_wide_interval_whatever_the_metric(half):
    before = np.ones(40)
    before[0] = 0.5 if half else 1
    found = compare(scores(before), scores(before))
    assert found.point == 0 and found.high == pytest.approx(0.0881, abs=1e-3)
    assert found.low == pytest.approx(-0.0881, abs=1e-3)
