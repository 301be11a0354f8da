"""TF-IDF with logistic regression: what labels give without a language model."""

import random
from dataclasses import replace

from sieve.evaluation.tfidf import score_tfidf, why_not
from sieve.tasks.example import Example
from sieve.tasks.metrics import ACCURACY, Metric
from sieve.tasks.task import Task

LABELS = (" no", " maybe", " yes")
WORDS = (("awful", "boring"), ("fair", "passable"), ("superb", "moving"))


def rows(count: int, seed: int, labels: int = 3) -> list[Example]:
    """Rows whose label is told by one word among others that tell nothing."""
    rng = random.Random(seed)
    examples = []
    for index in range(count):
        label = index % labels
        noise = [f"word{rng.randint(0, 400)}" for _ in range(6)]
        noise.insert(rng.randint(0, 6), rng.choice(WORDS[label]))
        examples.append(Example(f"Review: {' '.join(noise)}\nIs it good?", LABELS[:labels], label))
    return examples


def task_of(calibration: list[Example], test: list[Example], kind: str = "classification") -> Task:
    splits = {"calibration": calibration, "selection": rows(4, 9), "test": test}
    return Task("reviews", "sentiment", ACCURACY, splits, {}, kind=kind)


def test_words_that_tell_the_label_are_learned() -> None:
    for labels in (2, 3):
        result = score_tfidf(task_of(rows(300, 0, labels), rows(90, 1, labels)))
        assert result.accuracy > 0.97
        assert result.rows == 300
        assert 0 < result.seconds < 60


def test_labels_that_have_nothing_to_do_with_the_text_give_chance() -> None:
    rng = random.Random(0)
    shuffled = [replace(row, answer=rng.randint(0, 2)) for row in rows(300, 0)]
    assert 0.15 < score_tfidf(task_of(shuffled, rows(300, 1))).accuracy < 0.5


def test_test_rows_are_not_trained_on() -> None:
    """A prompt that only the test split has is guessed by chance, whatever its label there."""
    test = [Example(f"Review: code{n} code{n}", LABELS, n % 3) for n in range(60)]
    moved = [replace(row, answer=(row.answer + 1) % 3) for row in test]
    calibration = rows(120, 0)
    first, second = (score_tfidf(task_of(calibration, t)).accuracy for t in (test, moved))
    assert first < 0.6 and second < 0.6


def test_the_same_seed_gives_the_same_accuracy() -> None:
    task = task_of(rows(60, 0), rows(60, 1))
    assert score_tfidf(task, 3).accuracy == score_tfidf(task, 3).accuracy


def test_two_calibration_rows_are_enough() -> None:
    assert score_tfidf(task_of(rows(2, 0), rows(10, 1))).rows == 2


def test_only_classes_have_such_a_rival() -> None:
    examples = rows(6, 0)
    task = task_of(examples, examples)
    assert why_not(task) == ""
    assert "multiple_choice" in why_not(replace(task, kind="multiple_choice"))
    assert "reciprocal_rank" in why_not(replace(task, metric=Metric("reciprocal_rank")))
    same = [replace(example, answer=0) for example in examples]
    assert "same label" in why_not(task_of(same, examples))
