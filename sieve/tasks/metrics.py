"""What a task is scored by: the value of one row, and the number that the mean of values becomes.

`RowMetric` gives a row its value: right or wrong, an F1 of words, a rank, a function of the user's.
`Metric` names the result and turns the mean of the values into it: an accuracy, a perplexity.
The values of a whole split, with intervals and tests on them, are `sieve.tasks.scores`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sieve.tasks.example import Example
from sieve.tasks.row_values import (
    exact_match,
    f1,
    hit,
    likeliest,
    ndcg,
    reciprocal_rank,
    relevant,
    same_answers,
)

JUDGE = "judge"  # see `sieve.tasks.judge`
AGREEMENT = "agreement"  # the dense model's own answers are the right ones; needs no labels
CHOICE_METRICS = ("accuracy", "reciprocal_rank", "ndcg", AGREEMENT)
# The metrics of each kind of task; the first one is the default.
METRICS = {
    "classification": CHOICE_METRICS,
    "multiple_choice": CHOICE_METRICS,
    "ranking": ("reciprocal_rank", "accuracy", "ndcg", AGREEMENT),
    "generation": ("exact_match", "f1", JUDGE, AGREEMENT),
    "perplexity": ("perplexity", "bits"),
}
# Metrics that count right rows, also lm-evaluation-harness's.
RIGHT_OR_WRONG = ("accuracy", "exact_match", "acc", "acc_norm")
UNITS = ("token", "word", "byte")  # a perplexity is per one of these


@dataclass(frozen=True)
class Metric:
    """How the mean of the rows' values becomes the number in a result.

    A row's value is larger where the answer is better. For text it is the log-likelihood per unit.
    The tolerance of an ordinary metric is a difference. A perplexity or bits is relative: smaller
    is better, and the tolerance is the fraction by which it may rise.

    Args:
        form: "mean"; "perplexity", exp of the mean loss; "bits", the mean loss in bits.
        best: the largest value that a row can have.
        agreement: whether the dense model's own answers are the right ones, so that it is always
            right.
    """

    name: str = "accuracy"
    form: str = "mean"
    best: float = 1.0
    agreement: bool = False

    @property
    def relative(self) -> bool:
        """Whether smaller is better and the tolerance is a fraction of the dense model's metric."""
        return self.form != "mean"

    @property
    def right_or_wrong(self) -> bool:
        """Whether every row is right or wrong, as far as the name says."""
        return self.name in RIGHT_OR_WRONG

    def total(self, mean: np.ndarray | float) -> np.ndarray | float:
        """The metric, from the weighted mean of values."""
        if self.form == "perplexity":
            return np.exp(-np.asarray(mean, dtype=float))
        return -np.asarray(mean) / np.log(2) if self.form == "bits" else mean

    def mean(self, total: float) -> float:
        """The weighted mean of values whose metric is `total`: the inverse of the method."""
        if self.form == "perplexity":
            return -float(np.log(total))
        return -total * float(np.log(2)) if self.form == "bits" else total

    def drop(self, baseline: np.ndarray | float, pruned: np.ndarray | float) -> np.ndarray | float:
        """The loss in quality between two weighted means, in the tolerance's unit."""
        if not self.relative:
            return baseline - pruned
        return self.total(pruned) / np.maximum(self.total(baseline), 1e-12) - 1


ACCURACY = Metric()


@dataclass(frozen=True)
class RowMetric:
    """Functions for the value of a row, of which one is enough, and the metric of all values.

    Args:
        from_logprobs: from the log-likelihoods of the choices.
        from_text: from a predicted answer and the answers that count as right.
        from_pairs: from the log-likelihoods, and whether greedy decoding would write each choice.
        from_outputs: from all generated texts of some rows, before an answer is extracted.
    """

    metric: Metric
    from_logprobs: Callable[[Sequence[float], Example], float] | None = None
    from_text: Callable[[str, Sequence[str]], object] | None = None
    from_pairs: Callable[[Sequence[float], Sequence[bool], Example], float] | None = None
    from_outputs: Callable[[Sequence[str], Sequence[Example]], Sequence[float]] | None = None

    def choice(
        self, logprobs: Sequence[float], example: Example, greedy: Sequence[bool] = ()
    ) -> float:
        """The value of a row whose choices have these log-likelihoods.

        greedy: for each choice, whether greedy decoding would write it; `from_pairs` needs it.
        """
        if self.from_pairs is not None:
            return self._checked(self.from_pairs(logprobs, greedy, example), example.prompt)
        if self.from_logprobs is not None:
            return self.from_logprobs(logprobs, example)
        right = [example.choices[index].strip() for index in relevant(example)]
        return self.text(example.choices[likeliest(logprobs)].strip(), right)

    def text(self, prediction: str, references: Sequence[str]) -> float:
        """The value of a predicted answer; ValueError unless finite and at most `best`."""
        assert self.from_text is not None
        return self._checked(self.from_text(prediction, references), prediction)

    def outputs(self, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        """The values of generated texts by `from_outputs`; ValueError as for `text`."""
        assert self.from_outputs is not None
        values = self.from_outputs(texts, examples)
        return [self._checked(value, text) for value, text in zip(values, texts, strict=True)]

    def _checked(self, value: object, text: str) -> float:
        if not isinstance(value, int | float) or not -math.inf < value <= self.metric.best:
            raise ValueError(
                f"the metric {self.metric.name} returned {value!r} for {text[:60]!r}, expected a "
                f"number of at most {self.metric.best}; correct the function, set "
                "++task.metric.best to the largest value it returns, or choose another metric."
            )
        return float(value)


def metric_of(kind: str, setting: object) -> Metric:
    """The metric of a task of this kind.

    Args:
        setting: `task.metric`: a name, a mapping with `_target_`, or None for the default.

    Raises:
        ValueError: there is no such metric for this kind of task.
    """
    if isinstance(setting, Mapping):
        return _user_metric(kind, setting).metric
    name = setting or METRICS[kind][0]
    if name not in METRICS[kind]:
        raise ValueError(
            f"task.metric is {name!r}, expected one of {', '.join(METRICS[kind])} for task.kind="
            f"{kind}, or a function; set for example task.metric._target_=my_module.my_function."
        )
    if kind == "perplexity":
        return Metric(str(name), str(name), 0.0)
    return Metric(str(name), agreement=name == AGREEMENT)


def make_row_metric(kind: str, setting: object) -> RowMetric | None:
    """The metric of a row, by the same setting as `metric_of`.

    None for what needs no function of a row: plain accuracy, text, and a judge's grades.
    """
    if isinstance(setting, Mapping):
        return _user_metric(kind, setting)
    metric = metric_of(kind, setting)
    if metric.name == "accuracy" and kind != "ranking" or metric.name == JUDGE or metric.relative:
        return None
    if kind == "generation":
        if metric.agreement:
            return RowMetric(metric, from_outputs=same_answers)
        return RowMetric(metric, from_text=exact_match if metric.name == "exact_match" else f1)
    functions = {"reciprocal_rank": reciprocal_rank, "ndcg": ndcg}
    return RowMetric(metric, from_logprobs=functions.get(metric.name, hit))


def _user_metric(kind: str, setting: Mapping[str, Any]) -> RowMetric:
    """The user's function, called as f(prediction, references, **other keys of setting)."""
    from hydra.utils import get_method

    options = dict(setting)
    path = options.pop("_target_", None)
    best, name = float(options.pop("best", 1.0)), options.pop("name", None)
    if not path or kind == "perplexity":
        raise ValueError(
            f"task.metric is the mapping {dict(setting)} for task.kind={kind}, expected a function "
            "of a predicted answer and the right answers, and a kind of task that has answers; set "
            "task.metric._target_ to the function, or task.metric to a name."
        )
    try:
        function = get_method(path)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"task.metric._target_ is {path!r}, which cannot be imported ({reason}), expected a "
            "function; set it to an importable name such as my_module.my_function."
        ) from error

    def from_text(prediction: str, references: Sequence[str]) -> object:
        return function(prediction, list(references), **options)

    return RowMetric(Metric(name or path.rpartition(".")[2], best=best), from_text=from_text)
