"""The rows on which two models differ, and what each class lost, by hand."""

from dataclasses import asdict

import numpy as np
import pytest

from sieve.tasks import Example
from sieve.tasks.flips import MOST_TEXTS, ClassScore, find_flips, hardest_hit, score_classes
from sieve.tasks.metrics import ACCURACY, Metric
from sieve.tasks.scores import Scores

LABELS = ("no", "yes", "maybe")
PERPLEXITY = Metric("perplexity", "perplexity", 0.0)


def example(answer: int, name: str = "row") -> Example:
    return Example(name, tuple(f" {label}" for label in LABELS), answer, bare=f"bare {name}")


def answered(examples: list[Example], choices: list[int], metric: Metric = ACCURACY) -> Scores:
    predicted = np.array(choices)
    right = np.array([one.answer for one in examples])
    zeros = np.zeros(len(choices))
    return Scores(predicted, (predicted == right).astype(float), zeros, metric=metric)


def valued(values: list[float], metric: Metric) -> Scores:
    zeros = np.zeros(len(values))
    return Scores(zeros.astype(int), np.array(values), zeros, metric=metric)


def test_lost_rows_come_first_then_changed_then_won_rows() -> None:
    rows = [example(0), example(1), example(2), example(1), example(0)]
    dense, pruned = answered(rows, [0, 0, 0, 1, 0]), answered(rows, [0, 1, 1, 0, 1])
    flips = find_flips(rows, dense, pruned)
    assert [(flip.row, flip.outcome) for flip in flips] == [
        (3, "lost"),
        (4, "lost"),
        (2, "changed"),
        (1, "won"),
    ]


def test_a_flip_has_the_bare_prompt_and_all_three_answers() -> None:
    rows = [example(1)]
    [flip] = find_flips(rows, answered(rows, [1]), answered(rows, [2]))
    assert asdict(flip) == {
        "row": 0,
        "id": rows[0].key,
        "outcome": "lost",
        "prompt": "bare row",
        "right": "yes",
        "dense": "yes",
        "pruned": "maybe",
        "dense_score": 1.0,
        "pruned_score": 0.0,
    }


def test_a_model_has_no_flips_against_itself() -> None:
    rows = [example(1)]
    scores = answered(rows, [0])
    assert find_flips(rows, scores, scores) == []


def test_by_agreement_the_dense_answer_is_right_and_rounding_changes_nothing() -> None:
    metric = Metric("agreement", agreement=True)
    rows = [example(1), example(1)]
    dense = Scores(np.array([0, 1]), np.ones(2), np.zeros(2), metric=metric)
    pruned = Scores(np.array([1, 0]), np.array([1.0, 0.0]), np.zeros(2), metric=metric)
    [flip] = find_flips(rows, dense, pruned)
    assert (flip.row, flip.dense, flip.pruned) == (1, "yes", "no")


def test_of_texts_only_those_that_lost_most_are_listed() -> None:
    losses = np.linspace(-0.1, 1, MOST_TEXTS + 50)
    texts = [Example("", (f"text {i}",), 0) for i in range(len(losses))]
    dense, pruned = valued([0.0] * len(losses), PERPLEXITY), valued([*-losses], PERPLEXITY)
    flips = find_flips(texts, dense, pruned)
    assert len(flips) == MOST_TEXTS and {flip.outcome for flip in flips} == {"lost"}
    assert flips[0].row == len(losses) - 1 and flips[0].right == "" and flips[0].dense is None
    assert flips[0].prompt == f"text {len(losses) - 1}"


def test_written_answers_are_listed_by_their_scores() -> None:
    rows = [Example(f"row {i}", (" Paris",), 0) for i in range(3)]
    metric = Metric("f1")
    flips = find_flips(rows, valued([1, 0.5, 0.5], metric), valued([0.9, 0.5, 0.1], metric))
    assert [(flip.row, flip.dense_score, flip.pruned_score) for flip in flips] == [
        (2, 0.5, 0.1),
        (0, 1.0, 0.9),
    ]
    assert flips[0].dense is None and flips[0].right == "Paris"


def test_options_with_prompts_of_their_own_are_named_by_their_place() -> None:
    row = Example("p", (" yes", " yes"), 0, contexts=("one", "two"))
    [flip] = find_flips([row], answered([row], [0]), answered([row], [1]))
    assert (flip.dense, flip.pruned) == ("option 1", "option 2")


def test_a_row_without_finite_numbers_says_so() -> None:
    rows = [example(0)]
    [flip] = find_flips(rows, answered(rows, [0]), answered(rows, [-1]))
    assert flip.pruned == "not a number"


def test_classes_are_counted_by_their_right_answers() -> None:
    rows = [example(0), example(0), example(1), example(1)]
    dense, pruned = answered(rows, [0, 1, 1, 1]), answered(rows, [0, 0, 2, 1])
    assert score_classes(rows, LABELS, dense, pruned) == [
        ClassScore("no", 2, 0.5, 1.0, 0, 1),
        ClassScore("yes", 2, 1.0, 0.5, 1, 0),
    ]


@pytest.mark.parametrize(
    ("lost", "stands_out"),
    [
        ((0, 0, 0), None),
        ((10, 10, 10), None),
        ((14, 8, 8), None),  # more than the others, but not twice the mean
        ((1, 0, 0), None),  # three times the mean, but one row proves nothing
        ((20, 2, 2), "a"),
        ((2, 2, 20), "c"),
    ],
)
def test_a_class_stands_out_by_twice_the_mean_and_more_than_luck(
    lost: tuple[int, ...], stands_out: str | None
) -> None:
    classes = [
        ClassScore(name, 100, 1.0, 1 - n / 100, n, 0) for name, n in zip("abc", lost, strict=True)
    ]
    worst = hardest_hit(classes)
    assert (worst and worst.answer) == stands_out
