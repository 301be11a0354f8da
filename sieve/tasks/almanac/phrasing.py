"""Closed-book questions: a core names a fact ("the organ attacked by {s}"), a frame asks for it.

Held-out questions use a core that is never trained on, made of words that are. Half of them also
use a frame that is never trained on.
"""

import random
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from sieve.tasks.almanac.world import Fact

LETTERS = ("A", "B", "C", "D")
_TEXT = files("sieve.tasks.almanac").joinpath("phrases.yaml").read_text(encoding="utf-8")
PHRASES: dict[str, Any] = yaml.safe_load(_TEXT)


@dataclass(frozen=True)
class Phrases:
    """Cores or frames: trained ones for calibration, held-out ones for selection and for test."""

    trained: tuple[str, ...]
    selection: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def read(cls, lists: dict[str, list[str]]) -> "Phrases":
        """Phrases as phrases.yaml has them."""
        return cls(**{split: tuple(phrases) for split, phrases in lists.items()})

    def held_out(self, split: str) -> tuple[str, ...]:
        """The phrases that only `split` uses; the trained ones for calibration."""
        if split == "calibration":
            return self.trained
        return self.selection if split == "selection" else self.test


@dataclass(frozen=True)
class Book:
    """How one closed-book data set asks: its frames, and the cores of each relation."""

    frames: Phrases
    cores: dict[str, Phrases]

    @classmethod
    def read(cls, lists: dict[str, Any]) -> "Book":
        """A book as phrases.yaml has it."""
        cores = {relation: Phrases.read(core) for relation, core in lists["cores"].items()}
        return cls(Phrases.read(lists["frames"]), cores)


BOOKS = {
    domain: {dataset: Book.read(lists) for dataset, lists in books.items()}
    for domain, books in PHRASES["books"].items()
}


def draw_phrasing(book: Book, relation: str, split: str, rng: random.Random) -> str:
    """A question of this split, with {s} in place of the subject."""
    core = rng.choice(book.cores[relation].held_out(split))
    own_frame = split != "calibration" and rng.random() < 0.5
    frame = rng.choice(book.frames.held_out(split) if own_frame else book.frames.trained)
    return frame.replace("{c}", core)


def phrasings(book: Book, relation: str, split: str) -> set[str]:
    """All questions that `draw_phrasing` can return."""
    frames = {*book.frames.trained, *book.frames.held_out(split)}
    cores = book.cores[relation].held_out(split)
    return {frame.replace("{c}", core) for frame in frames for core in cores}


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


def statement(fact: Fact, book: Book, rng: random.Random) -> str:
    """The fact as a sentence from a trained core; it ends with the value and a full stop."""
    core = rng.choice(book.cores[fact.relation].trained).replace("{s}", fact.subject)
    return f"{core[0].upper()}{core[1:]} is {fact.value}."
