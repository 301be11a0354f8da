"""How often the test certifies a model whose drop is exactly the tolerance: about .1 of draws.

For rows that are right or wrong, this is a sum over all counts of worse and better rows. For F1
values it is simulated, and the bound is compared with two other bootstraps.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from error_rates import attainable, error_rate
from scipy import stats

from sieve.tasks import drop_test
from sieve.tasks.certifiable import smallest_tolerance
from sieve.tasks.drop_test import score_test, upper_drop
from sieve.tasks.scores import Scores

LEVEL = 0.1
LEAST = 0.07  # from here to .11 a level of .1 counts as kept
ROWS = (100, 200, 500, 1_000, 2_000, 4_000)
DIFFERING = (0.01, 0.02, 0.05, 0.1, 0.2)  # shares of rows that one of two models answers correctly
VALUES_DIFFER = 0.15
POPULATION = 2_000_000


def skewed(random: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """F1 values of which 15 % change: most fall, and most of these to 0."""
    kind = random.random(rows)
    before = np.where(kind < 0.3, 0, np.where(kind < 0.7, 1, random.beta(2, 2, rows)))
    lower = np.where(random.random(rows) < 0.6, 0, random.beta(1, 2, rows))
    changed, rises = random.random(rows) < VALUES_DIFFER, random.random(rows) < 0.2
    after = np.where(rises, np.maximum(before, random.beta(2, 1, rows)), np.minimum(before, lower))
    return before, np.where(changed, after, before)


def scores(values: np.ndarray) -> Scores:
    return Scores(np.zeros(len(values), int), values, np.zeros(len(values)))


def test_the_level_is_the_chance_of_all_counts_that_the_test_rejects() -> None:
    rows, tolerance, differing = 120, 0.03, 0.06
    shares = [(differing + tolerance) / 2, (differing - tolerance) / 2, 1 - differing]
    chance = sum(
        stats.multinomial.pmf([worse, better, rows - worse - better], rows, shares)
        for worse in range(30)
        for better in range(20)
        if score_test(worse, better, rows, tolerance) <= LEVEL
    )
    assert error_rate(rows, tolerance, LEVEL, differing) == pytest.approx(chance, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("rows", ROWS)
def test_the_level_is_no_lower_than_it_must_be(rows: int, tolerance: float) -> None:
    """At least .07, unless no test attains that; runs with too few rows are refused."""
    if smallest_tolerance(rows, 1 - LEVEL, 0) > tolerance:
        return
    for differing in DIFFERING:
        if differing >= tolerance:
            lowest = attainable(rows, tolerance) if differing == tolerance else LEAST
            assert error_rate(rows, tolerance, LEVEL, differing) >= min(LEAST, lowest) - 1e-9


def test_the_attainable_level_is_the_last_binomial_chance_below_11_percent() -> None:
    # With 500 rows and a drop of .02, at most 5 lost rows have chance .065, at most 6 have .129.
    assert attainable(500, 0.02) == pytest.approx(stats.binom.cdf(5, 500, 0.02))
    assert stats.binom.cdf(6, 500, 0.02) > 0.11


def simulated(rows: int, draws: int) -> dict[str, float]:
    """How often each bootstrap's upper bound at confidence .9 is below the true drop."""
    random = np.random.default_rng(0)
    before, after = skewed(random, POPULATION)
    drop = before.mean() - after.mean()
    bounds = [_bounds(*skewed(random, rows), random) for _ in range(draws)]
    return {name: float(np.mean([bound[name] < drop for bound in bounds])) for name in bounds[0]}


def _bounds(before: np.ndarray, after: np.ndarray, random: np.random.Generator) -> dict[str, float]:
    studentized = upper_drop(scores(before), scores(after), 1 - LEVEL)
    bootstrap = stats.bootstrap(
        (before - after,),
        np.mean,
        n_resamples=1_000,
        confidence_level=1 - LEVEL,
        alternative="less",
        rng=random,
    )
    return {
        "studentized": studentized,
        "BCa": float(bootstrap.confidence_interval.high),
        "percentile": float(np.quantile(bootstrap.bootstrap_distribution, 1 - LEVEL)),
    }


@pytest.mark.slow
def test_the_bound_of_fractional_values_covers_the_drop_as_often_as_stated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The docstring's shares are of 6,000 draws; the 95 % interval of 400 draws contains them."""
    monkeypatch.setattr("sieve.tasks.scores.RESAMPLES", 1_000)
    text = " ".join(Path(drop_test.__file__).read_text().split())
    stated = {
        name: float(re.search(rf"{label} (\d+\.\d)", text)[1])  # type: ignore[index]
        for name, label in (
            ("studentized", "F1 values in"),
            ("BCa", "BCa"),
            ("percentile", "percentile"),
        )
    }
    for name, rate in simulated(300, 400).items():
        ends = stats.binomtest(round(400 * rate), 400).proportion_ci(0.95, method="wilson")
        assert ends.low <= stated[name] / 100 <= ends.high, name
