"""The metric of a split and the drop between two models, against plain arithmetic."""

import numpy as np
import pytest

from sieve.tasks.metrics import ACCURACY, Metric
from sieve.tasks.scores import Scores, compare, drop_of, head_start, paired_drop

PERPLEXITY = Metric("perplexity", "perplexity", 0.0)


def scores(values, weights=None, metric=ACCURACY) -> Scores:
    values = np.asarray(values, dtype=float)
    weights = None if weights is None else np.asarray(weights, dtype=float)
    nothing = np.zeros(len(values))
    return Scores(nothing.astype(int), values, nothing, nothing, weights, metric)


def test_a_perplexity_is_over_all_tokens_of_all_texts():
    # Two texts of 3 and 1 tokens with 6 and 1 nats in all: exp(7 / 4).
    assert scores([-2, -1], [3, 1], PERPLEXITY).accuracy == pytest.approx(np.exp(7 / 4))


def test_the_drop_of_a_perplexity_is_a_fraction_of_it():
    dense, pruned = scores([-2, -1], [3, 1], PERPLEXITY), scores([-2.1, -1], [3, 1], PERPLEXITY)
    assert drop_of(dense, pruned) == pytest.approx(pruned.accuracy / dense.accuracy - 1)
    assert compare(dense, pruned).point == pytest.approx(np.exp(0.3 / 4) - 1)


def test_right_and_wrong_rows_are_compared_by_their_counts():
    rng = np.random.default_rng(0)
    before, after = rng.random(300) < 0.8, rng.random(300) < 0.7
    assert compare(scores(before), scores(after), 3) == paired_drop(before, after, 3)


def test_the_interval_of_fractional_values_has_the_width_of_the_normal_interval():
    rng = np.random.default_rng(1)
    before = rng.random(400)
    after = before - rng.normal(0.05, 0.2, 400)
    drop = compare(scores(np.minimum(before, 0.99)), scores(np.minimum(after, 0.99)))
    difference = np.minimum(before, 0.99) - np.minimum(after, 0.99)
    half = 1.96 * difference.std() / 20
    assert drop.point == pytest.approx(difference.mean())
    assert drop.low == pytest.approx(difference.mean() - half, abs=0.15 * half)
    assert drop.high == pytest.approx(difference.mean() + half, abs=0.15 * half)


def test_the_interval_of_a_perplexity_covers_the_truth_in_about_95_percent():
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        weights, before = rng.integers(5, 50, 80), rng.normal(-3, 0.5, 80)
        after = before - rng.normal(0.1, 0.3, 80)
        dense = scores(before, weights, PERPLEXITY)
        drop = compare(dense, scores(after, weights, PERPLEXITY), seed)
        covered += drop.low <= np.exp(0.1) - 1 <= drop.high
    assert 34 <= covered <= 40


def test_the_p_value_is_that_of_the_exact_sign_test():
    before, after = np.full(20, 0.5), np.r_[np.full(8, 0.4), np.full(2, 0.6), np.full(10, 0.5)]
    assert compare(scores(before), scores(after)).mcnemar_p == pytest.approx(112 / 1024)


def test_scores_of_different_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="expected equally many"):
        drop_of(scores([1, 0]), scores([1]))


@pytest.mark.parametrize("half", [False, True])
def test_the_interval_is_wide_where_few_rows_differ(half):
    before = np.ones(40)
    before[0] = 0.5 if half else 1
    drop = compare(scores(before), scores(before))
    assert drop.point == 0 and drop.high == pytest.approx(0.0881, abs=1e-3)
    assert drop.low == pytest.approx(-0.0881, abs=1e-3)


def test_a_head_start_is_the_difference_of_rows_where_it_is_more_than_chance():
    def right(count: int, rows: int = 100) -> Scores:
        return scores([1] * count + [0] * (rows - count))

    assert head_start(right(90), right(60)) == pytest.approx(0.3)
    assert head_start(right(60), right(90)) == 0  # Fresh rows that are easier are no head start.
    # Two standard errors of 62 and 50 of 100 rows: 2 sqrt(.62 * .38 / 100 + .25 / 100) = .139.
    assert head_start(right(62), right(50)) == 0
    assert head_start(right(64), right(50)) == pytest.approx(0.14)
    assert head_start(right(1240, 2000), right(1000, 2000)) == pytest.approx(0.12)


def test_a_head_start_on_texts_is_a_fraction_of_the_perplexity():
    known, fresh = scores([-2, -2.2] * 50, [3, 1] * 50, PERPLEXITY), scores([-2.5] * 9, [2] * 9)
    assert head_start(known, fresh) == pytest.approx(np.exp(2.5 - 2.05) - 1)


def test_the_error_of_a_weighted_mean():
    weighted = scores([0.0, 1.0, 1.0], [1, 2, 1])  # Mean 3/4.
    assert weighted.error == pytest.approx(np.sqrt(9 / 16 + 4 / 16 + 1 / 16) / 4)
    assert scores([0, 1, 1, 1]).error == pytest.approx(np.sqrt(0.1875 / 4))
