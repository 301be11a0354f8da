"""What one row is worth: right or wrong, an overlap of words, a rank, or a function of the user's.

Answers that are written are compared as in SQuAD (arXiv:1606.05250): without case, punctuation and
articles, against the reference that fits best.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sieve.tasks.example import Example
from sieve.tasks.scores import Metric

OF_CHOICES = ("accuracy", "reciprocal_rank", "ndcg")
OF_TEXTS = ("exact_match", "f1")
JUDGE = "judge"  # see `sieve.tasks.judge`
DEFAULTS = {
    "classification": "accuracy",
    "multiple_choice": "accuracy",
    "ranking": "reciprocal_rank",
    "generation": "exact_match",
    "perplexity": "perplexity",
}
UNITS = ("token", "word", "byte")  # of a perplexity
OF_TEXT = ("perplexity", "bits")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class RowMetric:
    """The value of a row, and the metric that the values make.

    of_choice: from the log-likelihoods of the choices; of_text: from a prediction in words and the
    answers that count as right; of_pairs: from log-likelihoods and whether each choice is what the
    model would write; of_writing: from all that was written; of_writings: of many rows at once.
    """

    metric: Metric
    of_choice: Callable[[Sequence[float], Example], float] | None = None
    of_text: Callable[[str, Sequence[str]], float] | None = None
    of_pairs: Callable[[Sequence[float], Sequence[bool], Example], float] | None = None
    of_writing: Callable[[str, Example], float] | None = None
    of_writings: Callable[[Sequence[str], Sequence[Example]], list[float]] | None = None

    def choice(
        self, logprobs: Sequence[float], example: Example, greedy: Sequence[bool] = ()
    ) -> float:
        """The value of a row whose choices have these log-likelihoods.

        greedy: whether a choice is what the model would write, where `of_pairs` asks for it.
        """
        if self.of_pairs is not None:
            return self.checked(self.of_pairs(logprobs, greedy, example), example.prompt)
        if self.of_choice is not None:
            return self.of_choice(logprobs, example)
        best = max(range(len(logprobs)), key=lambda index: logprobs[index])
        right = [example.choices[index].strip() for index in relevant(example)]
        return self.text(example.choices[best].strip(), right)

    def text(self, prediction: str, references: Sequence[str]) -> float:
        """The value of a prediction; ValueError where it is not a number, or above the best."""
        assert self.of_text is not None
        return self.checked(self.of_text(prediction, references), prediction)

    def checked(self, value: Any, of: str) -> float:
        """A value as a number; ValueError where it is none, or above the best."""
        if not isinstance(value, int | float) or not -math.inf < value <= self.metric.best:
            raise ValueError(
                f"the metric {self.metric.name} gave {value!r} for {of[:60]!r}, expected a number "
                f"of at most {self.metric.best}; mend it, set ++task.metric.best to the largest "
                "value that a row can have, or choose another."
            )
        return float(value)


def make_row_metric(kind: str, setting: Any) -> RowMetric | None:
    """The metric of a task: its name, or a mapping with `_target_`; None is the kind's own.

    None is returned for plain accuracy and for text, which need no rows. Raises ValueError where
    there is no such metric or it is not of this kind of task.
    """
    if isinstance(setting, Mapping):
        return _of_user(kind, dict(setting))
    name = setting or DEFAULTS[kind]
    known = _names(kind)
    if name not in known:
        raise ValueError(
            f"task.metric is {name!r}, expected one of {', '.join(known)} for task.kind={kind}, or "
            "a function, as task.metric._target_=my_module.my_function."
        )
    if name == "accuracy" and kind == "ranking":
        return RowMetric(Metric(name), of_choice=hit)
    if name in OF_TEXT or name == "accuracy":
        return None
    metric = Metric(name)
    if name == JUDGE:
        return RowMetric(metric, of_text=exact_match)  # Until the judge takes its place.
    if name in OF_TEXTS:
        return RowMetric(metric, of_text=exact_match if name == "exact_match" else f1)
    return RowMetric(metric, of_choice=reciprocal_rank if name == "reciprocal_rank" else ndcg)


def metric_of(kind: str, setting: Any) -> Metric:
    """The metric that values of rows make for a task."""
    if row_metric := make_row_metric(kind, setting):
        return row_metric.metric
    name = setting or DEFAULTS[kind]
    return Metric(name, name, 0.0) if name in OF_TEXT else Metric(name)


def _names(kind: str) -> tuple[str, ...]:
    if kind == "perplexity":
        return OF_TEXT
    return (*OF_TEXTS, JUDGE) if kind == "generation" else OF_CHOICES


def _of_user(kind: str, setting: dict[str, Any]) -> RowMetric:
    """A function of the user's, called as f(prediction, references, **the other keys)."""
    from hydra.utils import get_method

    path = setting.pop("_target_", None)
    best, name = float(setting.pop("best", 1.0)), setting.pop("name", None)
    if not path or kind == "perplexity":
        raise ValueError(
            f"task.metric is a mapping {setting} for task.kind={kind}, expected "
            "task.metric._target_ to name a function of a prediction and its references, for "
            "answers in words."
        )
    try:
        function = get_method(path)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"task.metric._target_ is {path!r}, which cannot be had ({reason}); name a function "
            "that can be imported, as my_module.my_function."
        ) from error

    def of_text(prediction: str, references: Sequence[str]) -> float:
        found: float = function(prediction, list(references), **setting)
        return float(found) if isinstance(found, bool) else found

    return RowMetric(Metric(name or path.rpartition(".")[2], best=best), of_text=of_text)


def relevant(example: Example) -> list[int]:
    """The choices that count as right: those with a relevance, else the answer."""
    found = [index for index, grade in enumerate(example.relevance) if grade > 0]
    return found or [example.answer]


def hit(logprobs: Sequence[float], example: Example) -> float:
    """1 where the likeliest choice is a relevant one."""
    best = max(range(len(logprobs)), key=lambda index: logprobs[index])
    return float(best in relevant(example))


def reciprocal_rank(logprobs: Sequence[float], example: Example) -> float:
    """1 / the rank of the first relevant choice, the likeliest being first."""
    order = sorted(range(len(logprobs)), key=lambda index: (-logprobs[index], index))
    wanted = set(relevant(example))
    return 1.0 / next(rank for rank, index in enumerate(order, start=1) if index in wanted)


def ndcg(logprobs: Sequence[float], example: Example) -> float:
    """Normalized discounted cumulative gain of all choices, gains 2^relevance − 1."""
    wanted = set(relevant(example))
    grades = list(example.relevance) or [float(i in wanted) for i in range(len(logprobs))]
    order = sorted(range(len(logprobs)), key=lambda index: (-logprobs[index], index))
    return _gain([grades[index] for index in order]) / _gain(sorted(grades, reverse=True))


def _gain(grades: Sequence[float]) -> float:
    return sum((2**grade - 1) / math.log2(rank + 1) for rank, grade in enumerate(grades, start=1))


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 where the prediction is one of the references but for case, punctuation and articles.

    Numbers are compared as numbers, and what has nothing but articles and punctuation as it is.
    """
    return float(any(_same(prediction, reference) for reference in references))


def _same(prediction: str, reference: str) -> bool:
    ours, theirs = _number(prediction), _number(reference)
    if theirs is not None:
        return ours == theirs
    plain = normalize_answer(reference)
    if not plain:
        return prediction.strip().casefold() == reference.strip().casefold()
    return normalize_answer(prediction) == plain


def _number(text: str) -> float | None:
    """A number as it is written in a text that holds nothing else: "-1,234.5", "$3", "4."."""
    try:
        return float(text.strip().strip("$%").rstrip(".").replace(",", ""))
    except ValueError:
        return None


def f1(prediction: str, references: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall of words, over the references."""
    return max((_overlap(prediction, reference) for reference in references), default=0.0)


def _overlap(prediction: str, reference: str) -> float:
    ours, theirs = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not ours or not theirs or _number(reference) is not None:
        return float(_same(prediction, reference))
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
