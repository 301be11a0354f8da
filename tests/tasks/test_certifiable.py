"""What rows can certify: closed forms by hand, both directions, and the sentences."""

import math

import pytest
from scipy import stats

from sieve.tasks.certifiable import forecast, rows_needed, smallest_tolerance
from sieve.tasks.drop_test import upper_of_counts
from sieve.tasks.metrics import ACCURACY, Metric

F1 = Metric("f1")


def certified_by_hand(each: int, rows: int, tolerance: float, z: float) -> bool:
    """Tango's score test in its own closed form, where as many rows get worse as better.

    The likeliest share q of better rows is the larger root of
    rows q² − (each − rows tolerance) q − each tolerance (1 − tolerance) / 2 = 0.
    """
    middle = each - rows * tolerance
    root = math.sqrt(middle**2 + 2 * rows * each * tolerance * (1 - tolerance))
    q = (middle + root) / (2 * rows)
    return rows * tolerance >= z * math.sqrt(rows * (2 * q + tolerance - tolerance**2))


@pytest.mark.parametrize(("rows", "each"), [(600, 15), (2000, 50), (4000, 100)])
@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.975])
def test_the_smallest_tolerance_is_where_the_score_test_begins_to_accept(
    rows: int, each: int, confidence: float
) -> None:
    z, bound = float(stats.norm.ppf(confidence)), smallest_tolerance(rows, confidence, 0.05)
    assert certified_by_hand(each, rows, bound + 1e-9, z)
    assert not certified_by_hand(each, rows, bound - 1e-9, z)


def test_without_a_difference_the_smallest_tolerance_is_where_no_loss_is_a_surprise() -> None:
    # (1 − ε)^rows = .1
    for rows in (50, 114, 1000):
        assert smallest_tolerance(rows, 0.9, 0) == pytest.approx(1 - 0.1 ** (1 / rows))
    assert rows_needed(0.02, 0.9, 0) == math.ceil(math.log(0.1) / math.log(0.98)) == 114


@pytest.mark.parametrize("differing", [0, 0.02, 0.05, 0.2])
@pytest.mark.parametrize("tolerance", [0.003, 0.02, 0.1])
def test_the_rows_needed_are_the_fewest_of_their_neighbors(
    differing: float, tolerance: float
) -> None:
    rows = rows_needed(tolerance, 0.9, differing)
    assert smallest_tolerance(rows, 0.9, differing) <= tolerance
    assert smallest_tolerance(rows - 1, 0.9, differing) > tolerance


def test_a_sentence_says_what_rows_can_certify_and_how_many_a_tolerance_needs() -> None:
    assert forecast(ACCURACY, 150, 0.02, 0.9) == (
        "With 150 selection rows and a pruned model that differs from the dense model on 5 % of "
        "them, the smallest tolerance that can be certified at 90 % confidence is 2.7 points; for "
        "2.0 points about 240 selection rows are needed."
    )
    enough = forecast(ACCURACY, 600, 0.02, 0.9)
    assert enough.endswith("at 90 % confidence is 1.2 points, which is within tolerance=0.02.")


def test_only_confirmation_rows_certify() -> None:
    sentence = forecast(ACCURACY, 300, 0.02, 0.9, share=0.4)
    assert sentence.startswith("With 120 of 300 selection rows and")
    assert sentence.endswith("for 2.0 points about 590 selection rows are needed.")  # 236 / .4
    with pytest.raises(
        ValueError, match=r"^40 of 100 selection rows .search.confirmation=0.4. are"
    ):
        forecast(ACCURACY, 100, 0.02, 0.9, share=0.4)


def test_rows_that_can_certify_nothing_are_refused_with_both_ways_out() -> None:
    with pytest.raises(ValueError) as refused:
        forecast(ACCURACY, 50, 0.02, 0.9)
    assert str(refused.value) == (
        "50 selection rows are too few to promise with 90 % confidence a drop of at most 2.0 "
        "points on new rows (tolerance=0.02): that takes at least 114 selection rows; set "
        "confidence=null to run without this promise, provide more rows, or set tolerance=0.046 "
        "or more."
    )
    for way in ({"rows": 114, "tolerance": 0.02}, {"rows": 50, "tolerance": 0.046}):
        assert forecast(ACCURACY, confidence=0.9, **way)
    assert forecast(ACCURACY, 50, 0.02, None) == ""


def test_no_number_of_rows_is_advised_for_a_tolerance_of_0() -> None:
    with pytest.raises(
        ValueError, match=r"no number of rows is enough; .*promise, or set tol.*=0\.003 "
    ):
        forecast(ACCURACY, 1000, 0, 0.9)


def test_values_between_right_and_wrong_have_the_exact_bound_alone() -> None:
    sentence = forecast(F1, 600, 0.02, 0.9)
    assert "0.4 points, for a pruned model that differs from the dense model on no row" in sentence
    with pytest.raises(ValueError, match="at least 114 selection rows"):
        forecast(F1, 113, 0.02, 0.9)
    with pytest.raises(
        ValueError, match="at least 1,151 selection rows"
    ):  # log(.1) / log(.998) = 1150.1
        forecast(Metric("grade", best=10.0), 114, 0.02, 0.9)


def test_of_agreement_the_answers_that_may_change_are_counted() -> None:
    agreement = Metric("agreement", agreement=True)
    assert forecast(agreement, 1000, 0.02, 0.9) == (
        "With 1,000 selection rows, tolerance=0.02 can be certified at 90 % confidence for a "
        "pruned model that answers at most 14 of them differently from the dense model."
    )
    assert upper_of_counts(14, 0, 1000, 0.9) <= 0.02 < upper_of_counts(15, 0, 1000, 0.9)
    assert "at most 0 of them" in forecast(agreement, 114, 0.02, 0.9)


def test_nothing_is_said_of_a_perplexity() -> None:
    assert forecast(Metric("perplexity", "perplexity", 0.0), 10, 0.02, 0.9) == ""


def test_rows_that_a_search_fits_certify_nothing() -> None:
    sentence = forecast(ACCURACY, 3_000, 0.02, 0.9, share=None)
    assert "fits all 3,000 selection rows" in sentence and "search.confirmation=0.4" in sentence
    assert forecast(ACCURACY, 3_000, 0.02, None, share=None) == ""


def test_two_tests_on_the_same_rows_take_as_many_rows_as_one_at_half_the_risk() -> None:
    two, strict = (forecast(ACCURACY, 600, 0.02, c, tests=n) for c, n in ((0.9, 2), (0.95, 1)))
    assert two == strict.replace("95 % confidence", "90 % confidence")
    assert two != forecast(ACCURACY, 600, 0.02, 0.9)
    with pytest.raises(ValueError, match="takes at least 149 selection rows"):
        forecast(ACCURACY, 130, 0.02, 0.9, tests=2)
