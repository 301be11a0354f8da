"""Closed-book questions: a core names a fact ("the organ attacked by {s}"), a frame asks for it.

Held-out questions use a core that is never trained on, made of words that are. Half of them also
use a frame that is never trained on.
"""

import random
from typing import TypedDict

from sieve.tasks.almanac.words import WORDS
from sieve.tasks.almanac.world import Fact

LETTERS = ("A", "B", "C", "D")
Phrases = dict[str, list[str]]  # by split; models are trained on the phrases of calibration


class Book(TypedDict):
    """How one closed-book data set asks: its frames, and the cores of each relation."""

    frames: Phrases
    cores: dict[str, Phrases]


BOOKS: dict[str, dict[str, Book]] = WORDS["books"]  # by domain and data set


def draw_phrasing(book: Book, relation: str, split: str, rng: random.Random) -> str:
    """A question of this split, with {s} in place of the subject."""
    core = rng.choice(book["cores"][relation][split])
    own_frame = split != "calibration" and rng.random() < 0.5
    frame = rng.choice(book["frames"][split if own_frame else "calibration"])
    return frame.replace("{c}", core)


def question_row(fact: Fact, book: Book, split: str, rng: random.Random) -> dict[str, object]:
    """A question about `fact` with four options."""
    wrong = rng.sample([c for c in fact.candidates if c not in (fact.value, fact.confusable)], 3)
    if fact.confusable is not None and rng.random() < 0.5:
        wrong[0] = fact.confusable
    question = draw_phrasing(book, fact.relation, split, rng).replace("{s}", fact.subject)
    row = four_options(question, fact.value, wrong, rng)
    return row | {"fact": f"{fact.relation}:{fact.subject}"}


def four_options(
    question: str, answer: str, wrong: list[str], rng: random.Random
) -> dict[str, object]:
    """A multiple-choice row: the answer and three wrong options in random order."""
    texts = [answer, *wrong]
    rng.shuffle(texts)
    options = dict(zip(LETTERS, texts, strict=True))
    return {"question": question, "options": options, "answer_idx": LETTERS[texts.index(answer)]}
