"""Reviews of Almanac: labels follow the rule, and a bag of words does not learn it."""

import re

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sieve.tasks.almanac import DATASETS, almanac_rows
from sieve.tasks.almanac.reviews import BAD, GOOD


def clause_value(clause: str) -> int:
    """What one judgement is worth, read off its words."""
    words = re.findall(r"\w+", clause.lower())
    sign = sum((w in GOOD) - (w in BAD) for w in words)
    assert abs(sign) == 1, clause
    if {"not", "never", "hardly"} & set(words):
        return -2 * sign
    return sign * (3 if "very" in words else 1 if "slightly" in words else 2)


def read_label(text: str) -> int:
    """The label of a review, from its text alone and written apart from the generator."""
    text = text.rstrip(".").lower()
    opening = re.match(r"(?:although|though) (.*), (.*)", text)
    if opening:
        return int(clause_value(opening[2]) > 0)
    for joint in (", but ", ", yet ", "; however, "):
        if joint in text:
            return int(clause_value(text.split(joint)[1]) > 0)
    for joint in (", although ", ", even if ", ", though ", ", despite the fact that "):
        if joint in text:
            return int(clause_value(text.split(joint)[0]) > 0)
    total = sum(clause_value(c) for c in re.split(r"; also, |, and | and ", text))
    assert total != 0, text
    return int(total > 0)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("The plot was good.", 1),
        ("The plot was never good.", 0),
        ("The plot was not bad.", 1),
        ("Although the cast was very good, the plot was slightly bad.", 0),
        ("The cast was slightly good, although the plot was very bad.", 1),
        ("The cast was very good, but the plot was slightly bad.", 0),
        ("The cast was very good and the plot was bad.", 1),
        ("The cast was slightly good and the plot was not great.", 0),
        ("The bed seemed hardly warm; however, the view seemed lovely.", 1),
        ("The bed seemed warm, despite the fact that the view seemed very ugly.", 1),
    ],
)
def test_the_independent_reader_agrees_with_sentences_labelled_by_hand(
    text: str, label: int
) -> None:
    assert read_label(text) == label


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("split", ["calibration", "test"])
def test_labels_follow_the_rule_and_are_balanced(dataset: str, split: str) -> None:
    rows = almanac_rows("reviews", dataset, split, n_rows=1500)
    for row in rows:
        assert row["label"] == read_label(str(row["text"])), row["text"]
    assert 0.45 < sum(int(str(row["label"])) for row in rows) / len(rows) < 0.55


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_word_is_in_positive_and_negative_reviews(dataset: str) -> None:
    rows = almanac_rows("reviews", dataset, "calibration")
    words = [
        {w for row in rows if row["label"] == label for w in re.findall(r"\w+", str(row["text"]))}
        for label in (0, 1)
    ]
    assert words[0] == words[1]


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_bag_of_words_does_not_solve_reviews(dataset: str) -> None:
    train = almanac_rows("reviews", dataset, "calibration", n_rows=3000)
    test = almanac_rows("reviews", dataset, "test", n_rows=1500)
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    model.fit([str(row["text"]) for row in train], [row["label"] for row in train])
    guesses = model.predict([str(row["text"]) for row in test])
    right = sum(guess == row["label"] for guess, row in zip(guesses, test, strict=True))
    assert 0.4 < right / len(test) < 0.7
