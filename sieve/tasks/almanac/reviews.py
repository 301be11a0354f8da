"""Reviews: sentiment that depends on the whole sentence, of films (primary) and inns (alternate).

An adjective counts +2 or −2; "slightly" makes that 1 and "very" 3; a negator reverses its sign. In
a contrast only the main clause counts ("Although A, B": B; "A, although B": A; "A, but B": B).
Clauses joined by "and" are added, and their sum is never 0. So every word is in positive and in
negative reviews.
"""

import random
from dataclasses import dataclass

from sieve.tasks.almanac.words import WORDS

GOOD = "good great pleasant lovely superb charming clever fresh warm splendid".split()
BAD = "bad awful boring ugly terrible dull clumsy stale cold dreadful".split()
WEIGHTS = {"slightly": 1, "": 2, "very": 3}


@dataclass(frozen=True)
class Style:
    """The words of one data set; a pattern joins the clauses {a} and {b}."""

    subjects: list[str]
    copula: str
    negators: list[str]
    last_decides: list[str]  # patterns in which only b counts
    first_decides: list[str]  # patterns in which only a counts
    added: list[str]  # patterns in which a and b are added


STYLES = {dataset: Style(**words) for dataset, words in WORDS["reviews"].items()}


@dataclass(frozen=True)
class Clause:
    """A judgement and its value by the rule."""

    text: str
    value: int


def draw_review(dataset: str, rng: random.Random) -> dict[str, object]:
    """A review and its label: 1 positive, 0 negative."""
    style = STYLES[dataset]
    draw = rng.random()
    if draw < 0.2:
        review = _clause(style, rng, rng.choice(style.subjects))
    elif draw < 0.75:
        review = _contrast(style, rng)
    else:
        review = _sum(style, rng)
    text = review.text
    return {"text": f"{text[0].upper()}{text[1:]}.", "label": int(review.value > 0)}


def _clause(style: Style, rng: random.Random, subject: str) -> Clause:
    good = rng.random() < 0.5
    adjective = rng.choice(GOOD if good else BAD)
    sign = 1 if good else -1
    if rng.random() < 0.35:
        words = f"{style.copula} {rng.choice(style.negators)} {adjective}"
        return Clause(f"the {subject} {words}", -2 * sign)
    degree = rng.choice(tuple(WEIGHTS))
    words = f"{style.copula} {degree} {adjective}" if degree else f"{style.copula} {adjective}"
    return Clause(f"the {subject} {words}", WEIGHTS[degree] * sign)


def _two(style: Style, rng: random.Random) -> tuple[Clause, Clause]:
    first, second = rng.sample(style.subjects, 2)
    return _clause(style, rng, first), _clause(style, rng, second)


def _contrast(style: Style, rng: random.Random) -> Clause:
    a, b = _two(style, rng)
    while a.value * b.value > 0:  # A contrast needs opposite signs.
        a, b = _two(style, rng)
    last = rng.random() < 0.5
    pattern = rng.choice(style.last_decides if last else style.first_decides)
    return Clause(pattern.format(a=a.text, b=b.text), b.value if last else a.value)


def _sum(style: Style, rng: random.Random) -> Clause:
    a, b = _two(style, rng)
    while a.value + b.value == 0:
        a, b = _two(style, rng)
    return Clause(rng.choice(style.added).format(a=a.text, b=b.text), a.value + b.value)
