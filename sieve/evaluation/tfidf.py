"""What a task's labels give without a language model: TF-IDF with logistic regression.

The features of a prompt are its words, pairs of words and character n-grams, weighted by sublinear
TF-IDF (Salton and Buckley, 1988). A linear classifier of them is trained on the calibration rows.
A pruned model that does no better is not worth its parameters.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sieve.tasks.example import Example
from sieve.tasks.splits import prompt_hash, sample
from sieve.tasks.task import Task

WORD = r"\w+|[^\w\s]"  # a word or a sign
CHARACTERS = (3, 5)  # lengths of the n-grams of characters, within words
MOST_FEATURES = 30_000  # of words, and of characters: the most frequent ones
MOST_CHARACTERS = 4_000  # of a prompt; the rest is not read
MOST_ROWS = 20_000  # that are trained on, drawn by the seed
STRENGTHS = (1.0, 10.0, 100.0)  # values of C, the inverse of the regularization
HELD_OUT = 5  # one calibration row of five chooses C


@dataclass(frozen=True)
class TfidfScore:
    """The accuracy of the classifier on the test rows."""

    accuracy: float
    rows: int  # that it was trained on
    seconds: float


def why_not(task: Task) -> str:
    """Why a task has no such classifier, as a clause; "" if it has one."""
    if task.kind != "classification":
        return f"the answers of a task of kind {task.kind} are not classes of its rows"
    if task.metric.name != "accuracy":
        return f"the metric is {task.metric.name}, not accuracy"
    if len({example.answer for example in task.splits["calibration"]}) < 2:
        return "all calibration rows have the same label"
    return ""


def score_tfidf(task: Task, seed: int = 0) -> TfidfScore:
    """Train on the calibration rows of a classification task and score its test rows, once.

    Held-out calibration rows choose the regularization; the final classifier is trained on all of
    them. `why_not` names the tasks that have no classes.
    """
    started = time.perf_counter()
    rows = sample(task.splits["calibration"], MOST_ROWS, seed)
    rows = sorted(rows, key=lambda example: prompt_hash(example.content, f"tfidf {seed}"))
    vectorizer = _vectorizer()
    features = vectorizer.fit_transform(_texts(rows))
    labels = [example.answer for example in rows]
    count = max(1, len(rows) // HELD_OUT)

    def held_out_accuracy(strength: float) -> float:
        model = _fitted(features[count:], labels[count:], strength, seed)
        return float(model.score(features[:count], labels[:count]))

    model = _fitted(features, labels, max(STRENGTHS, key=held_out_accuracy), seed)
    test = task.splits["test"]
    scored = vectorizer.transform(_texts(test))
    accuracy = float(model.score(scored, [example.answer for example in test]))
    return TfidfScore(accuracy, len(rows), round(time.perf_counter() - started, 3))


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    options = {"sublinear_tf": True, "max_features": MOST_FEATURES}
    return make_union(
        TfidfVectorizer(token_pattern=WORD, ngram_range=(1, 2), **options),
        TfidfVectorizer(analyzer="char_wb", ngram_range=CHARACTERS, **options),
    )


def _fitted(features: Any, labels: Sequence[int], strength: float, seed: int) -> Any:
    """A logistic regression for each label against all others."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    regression = LogisticRegression(
        C=strength, solver="liblinear", dual=True, tol=0.1, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A single label, or an early end of the optimizer.
        return OneVsRestClassifier(regression).fit(features, labels)


def _texts(examples: Sequence[Example]) -> list[str]:
    return [example.content[:MOST_CHARACTERS] for example in examples]
