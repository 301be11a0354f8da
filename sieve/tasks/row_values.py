"""The value of one row, from the log-likelihoods of its choices or from a written answer."""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

from sieve.tasks.example import Example

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def relevant(example: Example) -> list[int]:
    """Indices of the right choices: all with a relevance above 0, or else the answer."""
    graded = [index for index, grade in enumerate(example.relevance) if grade > 0]
    return graded or [example.answer]


def likeliest(logprobs: Sequence[float]) -> int:
    """The index of the largest log-likelihood, the first of equal ones."""
    return max(range(len(logprobs)), key=lambda index: logprobs[index])


def _ranked(logprobs: Sequence[float]) -> list[int]:
    """Indices of the choices, the likeliest first."""
    return sorted(range(len(logprobs)), key=lambda index: (-logprobs[index], index))


def hit(logprobs: Sequence[float], example: Example) -> float:
    """1 where the likeliest choice is relevant, else 0."""
    return float(likeliest(logprobs) in relevant(example))


def reciprocal_rank(logprobs: Sequence[float], example: Example) -> float:
    """1 / the rank of the first relevant choice; the likeliest choice has rank 1."""
    right = relevant(example)
    return 1.0 / next(rank for rank, i in enumerate(_ranked(logprobs), start=1) if i in right)


def ndcg(logprobs: Sequence[float], example: Example) -> float:
    """Normalized discounted cumulative gain of all choices; the gain is 2^relevance − 1."""
    right = relevant(example)
    grades = list(example.relevance) or [float(i in right) for i in range(len(logprobs))]
    ranked = [grades[index] for index in _ranked(logprobs)]
    return _discounted_gain(ranked) / _discounted_gain(sorted(grades, reverse=True))


def _discounted_gain(grades: Sequence[float]) -> float:
    return sum((2**grade - 1) / math.log2(rank + 1) for rank, grade in enumerate(grades, start=1))


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 where the prediction equals a reference without case, punctuation and articles, else 0.

    As in SQuAD (arXiv:1606.05250), but numbers are compared as numbers, and a reference of only
    articles and punctuation is compared as it stands.
    """
    return float(any(_same(prediction, reference) for reference in references))


def same_answers(answers: Sequence[str], examples: Sequence[Example]) -> list[float]:
    """`exact_match` of answers with the references; an empty text is an answer too."""
    pairs = zip(answers, examples, strict=True)
    return [exact_match(answer, example.references) for answer, example in pairs]


def _same(prediction: str, reference: str) -> bool:
    number = _number(reference)
    if number is not None:
        return _number(prediction) == number
    normalized = normalize_answer(reference)
    if not normalized:
        return prediction.strip().casefold() == reference.strip().casefold()
    return normalize_answer(prediction) == normalized


def _number(text: str) -> float | None:
    """The number in a text that is nothing but a number, such as "-1,234.5", "$3" or "4."."""
    try:
        number = float(text.strip().strip("$%").rstrip(".").replace(",", ""))
    except ValueError:
        return None
    return None if math.isnan(number) else number


def f1(prediction: str, references: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of words, for the reference that fits best."""
    return max((_overlap(prediction, reference) for reference in references), default=0.0)


def _overlap(prediction: str, reference: str) -> float:
    predicted, right = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not predicted or not right or _number(reference) is not None:
        return float(_same(prediction, reference))
    common = (Counter(predicted) & Counter(right)).total()
    return 2 * common / (len(predicted) + len(right))


def normalize_answer(text: str) -> str:
    """The text in lower case, without punctuation and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
