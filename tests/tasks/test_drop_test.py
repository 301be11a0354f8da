"""The one-sided test of a drop and its upper bound: by hand, by enumeration and by simulation."""

import numpy as np
import pytest
from error_rates import error_rate
from scipy import stats

from sieve.tasks import drop_test
from sieve.tasks.drop_test import score_test, upper_drop
from sieve.tasks.metrics import ACCURACY, Metric
from sieve.tasks.scores import Scores

PERPLEXITY, BITS = Metric("perplexity", "perplexity", 0.0), Metric("bits", "bits", 0.0)


def scores(values, weights=None, metric=ACCURACY) -> Scores:
    values = np.asarray(values, dtype=float)
    weights = None if weights is None else np.asarray(weights, dtype=float)
    nothing = np.zeros(len(values))
    return Scores(nothing.astype(int), values, nothing, nothing, weights, metric)


def pair(worse: int, better: int, rows: int) -> tuple[Scores, Scores]:
    """Scores of two models that differ on `worse` + `better` of `rows` rows."""
    counts = [worse, better, rows - worse - better]
    return scores(np.repeat([1, 0, 1], counts)), scores(np.repeat([0, 1, 1], counts))


def likeliest_share(worse: int, better: int, rows: int, drop: float) -> float:
    """The share of rows that became better with the largest likelihood, found on a grid."""
    low, high = max(0.0, -drop), (1 - drop) / 2
    for _ in range(12):
        q = np.linspace(low, high, 2001)[1:-1]
        same = (rows - worse - better) * np.log(1 - 2 * q - drop)
        best = q[np.argmax(worse * np.log(q + drop) + better * np.log(q) + same)]
        step = (high - low) / 1000
        low, high = max(low, best - step), min(high, best + step)
    return float(best)


@pytest.mark.parametrize(
    ("worse", "better", "rows", "drop"),
    [
        (12, 5, 300, 0.02),
        (3, 9, 150, 0.01),
        (40, 45, 800, 0.05),
        (30, 8, 400, -0.03),
        (9, 1, 50, 0),
    ],
)
def test_the_p_value_is_that_of_the_score_at_the_likeliest_shares(
    worse: int, better: int, rows: int, drop: float
) -> None:
    share = likeliest_share(worse, better, rows, drop)
    deviation = np.sqrt(rows * (2 * share + drop - drop**2))
    expected = stats.norm.cdf((worse - better - rows * drop) / deviation)
    assert score_test(worse, better, rows, drop) == pytest.approx(expected, rel=1e-4)


def test_the_root_of_the_quadratic_is_as_by_hand() -> None:
    # 200 q² − 9.2 q − .098 = 0 for 11 worse and 5 better of 100 rows at a drop of .02: 16 + .12 − 4
    # is 12.12, so q = (12.12 + √(12.12² + 8 · 100 · 5 · .02 · .98)) / 400.
    share = (12.12 + np.sqrt(12.12**2 + 78.4)) / 400
    expected = stats.norm.cdf((6 - 2) / np.sqrt(100 * (2 * share + 0.0196)))
    assert score_test(11, 5, 100, 0.02) == pytest.approx(expected, rel=1e-12)


def test_if_no_row_became_better_the_p_value_is_at_least_the_binomial_one_over_1_1() -> None:
    exact = float(stats.binom.cdf(11, 807, 0.02))
    assert stats.norm.cdf((11 - 16.14) / np.sqrt(16.14 * 0.98)) < 0.1 < exact / 1.1
    assert score_test(11, 0, 807, 0.02) == pytest.approx(exact / 1.1)


def test_a_drop_of_exactly_the_tolerance_is_as_likely_as_not() -> None:
    assert score_test(14, 6, 400, 0.02) == pytest.approx(0.5)


def test_without_a_difference_the_p_value_is_the_chance_of_none() -> None:
    assert score_test(0, 0, 100, 0.02) == pytest.approx(0.98**100)
    assert score_test(0, 0, 100, 0.0) == 1
    assert upper_drop(*pair(0, 0, 100), confidence=0.9) == pytest.approx(1 - 0.1**0.01)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_every_row_can_become_worse_or_better(confidence: float) -> None:
    assert upper_drop(*pair(40, 0, 40), confidence) == 1
    assert -1 < upper_drop(*pair(0, 40, 40), confidence) < -0.85


@pytest.mark.parametrize(("level", "most"), [(0.2, 0.22), (0.1, 0.11), (0.05, 0.056)])
@pytest.mark.parametrize("rows", [100, 300, 1000, 4000])
def test_the_test_holds_its_level_at_every_share_of_rows_that_differ(
    rows: int, level: float, most: float
) -> None:
    for tolerance in (0.01, 0.02, 0.05):
        for differing in (0.01, 0.02, 0.03, 0.05, 0.1, 0.2):
            if differing >= tolerance:
                rate = error_rate(rows, tolerance, level, differing)
                assert rate <= most, (tolerance, differing)
                if rows * differing >= 80:
                    assert rate >= 0.85 * level, (tolerance, differing)


def test_more_worse_rows_raise_the_bound_and_more_better_rows_lower_it() -> None:
    bound = np.array([[upper_drop(*pair(w, b, 300), 0.9) for b in range(13)] for w in range(13)])
    assert (np.diff(bound, axis=0) > 0).all() and (np.diff(bound, axis=1) < 0).all()


def test_the_bound_is_within_a_tolerance_exactly_when_the_test_rejects() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        rows = int(random.integers(20, 2000))
        worse, better = random.multinomial(rows, [0.04, 0.02, 0.94])[:2]
        confidence, tolerance = random.uniform(0.55, 0.99), random.uniform(0, 0.06)
        bound = upper_drop(*pair(worse, better, rows), confidence)
        within = score_test(int(worse), int(better), rows, tolerance) <= 1 - confidence
        assert (bound <= tolerance) == within
        assert bound > (worse - better) / rows


def test_the_bound_of_many_rows_is_the_normal_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sieve.tasks.scores.RESAMPLES", 2000)
    random = np.random.default_rng(1)
    before, weights = random.uniform(-4, -2, 1000), random.integers(5, 50, 1000)
    after = before - random.normal(0.05, 0.2, 1000)
    ratio = np.average(before - after, weights=weights)
    error = np.sqrt((weights**2 * (before - after - ratio) ** 2).sum()) / weights.sum()
    for metric, slope in (
        (PERPLEXITY, np.exp(ratio)),
        (BITS, -1 / np.average(before, weights=weights)),
    ):
        dense, pruned = scores(before, weights, metric), scores(after, weights, metric)
        point = pruned.accuracy / dense.accuracy - 1
        expected = stats.norm.ppf(0.9) * error * slope
        assert upper_drop(dense, pruned, 0.9) - point == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("metric", [ACCURACY, Metric("grade", best=5.0)])
def test_where_few_fractional_values_differ_each_could_be_the_largest_loss(metric: Metric) -> None:
    before = np.full(50, 0.7)
    after = np.r_[0.6, 0.6, before[2:]]
    bound = upper_drop(scores(before, metric=metric), scores(after, metric=metric), 0.9)
    # Clopper and Pearson: the chance of at most 2 of 50 rows is .1 at this share.
    assert stats.binom.cdf(2, 50, bound / metric.best) == pytest.approx(0.1)


def test_a_bound_is_never_below_the_drop_and_grows_with_the_confidence() -> None:
    dense, pruned = scores(np.full(40, 0.5)), scores(np.full(40, 0.4))
    assert upper_drop(dense, pruned, 0.6) == pytest.approx(0.1)
    random = np.random.default_rng(2)
    dense, pruned = scores(random.random(60) * 0.9), scores(random.random(60) * 0.9)
    assert upper_drop(dense, pruned, 0.8) < upper_drop(dense, pruned, 0.95)


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_in_any_order_have_one_bound(weighted: bool) -> None:
    random = np.random.default_rng(3)
    before, after = random.random(200), random.random(200)
    weights = random.integers(1, 9, 200) if weighted else np.ones(200)
    order = random.permutation(200)
    first = upper_drop(scores(before, weights), scores(after, weights), 0.9)
    before, after, weights = before[order], after[order], weights[order]
    second = upper_drop(scores(before, weights), scores(after, weights), 0.9)
    assert first == pytest.approx(second, abs=1e-12)


def test_scores_of_different_numbers_of_rows_have_no_bound() -> None:
    with pytest.raises(ValueError, match="expected equally many"):
        drop_test.upper_drop(scores([1, 0]), scores([1]), 0.9)
