"""A result's metric in words."""

import pytest

from sieve.report.result import read
from sieve.report.units import limit, lost, metric_name, metric_value, unit, word

TEXT = read({"metric": "perplexity", "relative": True})
ANSWERS = read({"metric": "exact_match", "relative": False})


@pytest.mark.parametrize(
    ("value", "text"), [(21.704, "21.70"), (1234.5, "1,234"), (3.2e7, "3.2e+07"), (None, "–")]
)
def test_a_perplexity_is_a_number(value, text):
    assert metric_value(TEXT, value) == text


def test_an_accuracy_is_a_percentage_and_drops_by_points():
    assert metric_value(ANSWERS, 0.784) == "78.4 %" and metric_name(ANSWERS) == "exact match"
    assert lost(ANSWERS, 0.01) == "1.0 point" and lost(ANSWERS, 0.016) == "1.6 points"
    assert (unit(ANSWERS), word(ANSWERS), word(ANSWERS, gained=True)) == ("points", "drop", "gain")


def test_a_perplexity_rises_in_percent():
    assert lost(TEXT, 0.053) == "5.3 %" and unit(TEXT) == "%"
    assert (word(TEXT), word(TEXT, gained=True)) == ("rise", "fall")


def test_the_limit_is_above_a_perplexity_and_below_an_accuracy():
    assert limit(TEXT, 20.0, 0.05) == pytest.approx(21)
    assert limit(ANSWERS, 0.8, 0.05) == pytest.approx(0.75)


def test_a_result_without_a_metric_has_accuracy():
    assert metric_name(read({})) == "accuracy" and metric_value(read({}), 0.5) == "50.0 %"
