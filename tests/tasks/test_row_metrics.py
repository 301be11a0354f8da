"""The value of a row, and the metric of a task."""

import math

import pytest

from sieve.tasks.example import Example
from sieve.tasks.metrics import make_row_metric, metric_of
from sieve.tasks.row_values import exact_match, f1, ndcg, reciprocal_rank

QUESTION = Example("q", (" a", " b", " c"), 1)
GRADED = Example("q", (" a", " b", " c"), 2, relevance=(0.0, 1.0, 2.0))


def test_an_exact_match_ignores_case_punctuation_articles_and_spaces() -> None:
    assert exact_match(" The  Eiffel tower!", ["eiffel tower"]) == 1
    assert exact_match("Eiffel", ["eiffel tower", "Tower"]) == 0
    assert exact_match("tower", ["eiffel tower", "Tower"]) == 1


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("", "A", False),
        ("a", "A", True),
        ("the", "A", False),
        ("-5", "5", False),
        ("1.5", "15", False),
        ("1,234", "1234", True),
        ("$3.00", "3", True),
        ("4.", "4", True),
        ("four", "4", False),
        ("", "the", False),
    ],
)
def test_letters_and_numbers_are_compared(prediction: str, reference: str, same: bool) -> None:
    assert exact_match(prediction, [reference]) == f1(prediction, [reference]) == float(same)


def test_any_relevant_option_of_a_ranking_is_right() -> None:
    metric = make_row_metric("ranking", "accuracy")
    assert metric is not None
    assert metric.choice([-3.0, -1.0, -2.0], GRADED) == 1
    assert metric.choice([-1.0, -3.0, -2.0], GRADED) == 0


def test_f1_counts_words_against_the_best_reference() -> None:
    # Two of two words said, two of three wanted: 2 · 1 · ⅔ / (1 + ⅔).
    assert f1("red house", ["the big red house"]) == pytest.approx(0.8)
    assert f1("red red", ["red house"]) == pytest.approx(0.5)
    assert f1("blue", ["red", "blue sky"]) == pytest.approx(2 / 3)
    assert f1("", ["red"]) == 0


def test_a_reciprocal_rank_is_that_of_the_first_relevant_option() -> None:
    assert reciprocal_rank([-1.0, -2.0, -3.0], QUESTION) == 1 / 2
    assert reciprocal_rank([-3.0, -2.0, -1.0], GRADED) == 1
    assert reciprocal_rank([-1.0, -3.0, -2.0], GRADED) == 1 / 2


def test_ndcg_is_1_for_the_best_order_and_follows_its_definition() -> None:
    assert ndcg([-3.0, -2.0, -1.0], GRADED) == pytest.approx(1)
    ideal = 3 + 1 / math.log2(3)
    assert ndcg([-1.0, -2.0, -3.0], GRADED) == pytest.approx((1 / math.log2(3) + 3 / 2) / ideal)


def initial(prediction: str, references: list[str], length: int = 1) -> float:
    """A user's metric: the first letters agree."""
    return float(any(prediction[:length] == reference[:length] for reference in references))


def too_good(prediction: str, references: list[str]) -> float:
    return 7.0


def test_a_users_function_is_imported_and_called_with_its_keywords() -> None:
    setting = {"_target_": f"{__name__}.initial", "length": 2, "name": "begins"}
    for kind in ("generation", "classification", "multiple_choice"):
        metric = make_row_metric(kind, setting)
        assert metric is not None and metric.metric.name == "begins"
        assert metric.text("abc", ["abd"]) == 1 and metric.text("abc", ["axc"]) == 0
    choices = Example("q", (" apple", " apricot", " pear"), 1)
    found = make_row_metric("classification", setting)
    assert found is not None and found.choice([-1.0, -2.0, -3.0], choices) == 1
    assert found.choice([-2.0, -3.0, -1.0], choices) == 0


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        ("classification", "f1", "task.metric is 'f1', expected one of accuracy"),
        ("perplexity", "accuracy", "expected one of perplexity, bits"),
        ("generation", {"_target_": "no.such.thing"}, "cannot be imported.*set it to"),
        ("generation", {"name": "x"}, "task.metric._target_ to the function"),
        ("perplexity", {"_target_": "math.exp"}, "a kind of task that has answers"),
    ],
)
def test_a_metric_of_another_kind_is_refused(kind: str, setting: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        metric_of(kind, setting)
    assert "\n" not in str(caught.value)


def test_a_value_above_the_best_is_refused_and_the_best_can_be_set() -> None:
    setting = {"_target_": f"{__name__}.too_good"}
    metric = make_row_metric("generation", setting)
    assert metric is not None
    with pytest.raises(ValueError, match="returned 7.0 .* set ..task.metric.best"):
        metric.text("a", ["b"])
    better = make_row_metric("generation", setting | {"best": 10})
    assert better is not None and better.text("a", ["b"]) == 7


def test_a_perplexity_is_relative_and_accuracy_is_not() -> None:
    assert metric_of("perplexity", None).relative and metric_of("perplexity", "bits").relative
    assert not metric_of("generation", None).relative
    assert metric_of("perplexity", None).total(-math.log(12)) == pytest.approx(12)
    assert metric_of("perplexity", "bits").total(-math.log(8)) == pytest.approx(3)
