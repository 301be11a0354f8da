"""What the pruned model is to be compared with beside the dense model, in sentences."""

from sieve.report.result import Result
from sieve.report.units import metric_value
from sieve.report.values import counted

_FLATTERED = (
    "The pruned model was trained on the task's labels and the dense model was not, which flatters "
    "the pruned one. The honest standard is the dense model tuned on the same labels: train it "
    "with python -m sieve.tune, then prune it with model.adapter."
)


def standards(result: Result) -> str:
    """What the labels give without a language model, and whether the dense model had them too."""
    return " ".join(filter(None, (_tfidf(result), _flattered(result))))


def _tfidf(result: Result) -> str:
    rival = result.rivals.tfidf
    if rival is None or rival.accuracy is None or rival.rows is None:
        return ""
    alone, pruned = (metric_value(result, a) for a in (rival.accuracy, result.pruned.accuracy))
    return (
        f"Without a language model the labels alone give {alone} on the test split (TF-IDF with "
        f"logistic regression, {counted(rival.rows, 'row')}); the pruned model has {pruned}."
    )


def _flattered(result: Result) -> str:
    rivals = result.rivals
    return _FLATTERED if rivals.trained_on_labels and rivals.tuned_dense is None else ""
