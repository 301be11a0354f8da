"""The level of the test of a drop: exact sums, what can be attained, and the committed figures."""

import json
import re

import pytest
from scipy import stats

from experiments.claims import level
from experiments.claims.level import attainable, error_rate
from experiments.pages import RESULTS
from sieve.tasks.drop_test import score_test


def test_the_level_is_the_chance_of_all_counts_that_the_test_rejects() -> None:
    rows, tolerance, differing = 120, 0.03, 0.06
    shares = [(differing + tolerance) / 2, (differing - tolerance) / 2, 1 - differing]
    chance = sum(
        stats.multinomial.pmf([worse, better, rows - worse - better], rows, shares)
        for worse in range(30)
        for better in range(20)
        if score_test(worse, better, rows, tolerance) <= 0.1
    )
    assert error_rate(rows, tolerance, 0.1, differing) == pytest.approx(chance, abs=1e-9)


@pytest.mark.parametrize(
    ("rows", "tolerance", "differing"),
    [(300, 0.05, 0.05), (807, 0.02, 0.02), (200, 0.02, 0.05), (500, 0.05, 0.1), (4000, 0.02, 0.2)],
)
def test_no_level_is_above_11_percent(rows: int, tolerance: float, differing: float) -> None:
    rate = error_rate(rows, tolerance, 0.1, differing)
    lowest = attainable(rows, tolerance) if differing == tolerance else 0.09
    assert min(0.07, lowest) - 1e-9 <= rate <= 0.11


def test_the_attainable_level_is_the_last_binomial_chance_below_11_percent() -> None:
    # With 500 rows and a drop of .02, at most 5 lost rows have chance .065, at most 6 have .129.
    assert attainable(500, 0.02) == pytest.approx(stats.binom.cdf(5, 500, 0.02))
    assert stats.binom.cdf(6, 500, 0.02) > 0.11


def test_every_committed_level_is_between_7_and_11_percent_or_marked() -> None:
    summary = json.loads((RESULTS / "level.json").read_text())
    assert summary["counts"] == level.levels()
    table = level.tables(summary)["level"]
    rates = [float(cell) for cell in re.findall(r"\| (\d+\.\d) (?=\|)", table)]
    assert len(rates) > 30 and all(7 <= rate <= 11 for rate in rates)


@pytest.mark.slow
def test_the_bound_of_fractional_values_covers_the_drop_as_often_as_stated() -> None:
    rates = level.simulate(300, 400)
    assert 0.07 <= rates["studentized"] <= 0.14 and set(rates) == set(level.BOUNDS)
