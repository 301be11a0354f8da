"""rivals: what else the task's labels give, to compare the pruned model with."""

from dataclasses import asdict

from sieve.config import RecoveryConfig
from sieve.evaluation.tfidf import score_tfidf, why_not
from sieve.runtime.artifacts import fingerprint
from sieve.stages.cached import JSON, Record
from sieve.stages.run import Run
from sieve.stages.splits import split_key

VERSION = 1  # of the record; part of its fingerprint
LABELED_LOSSES = ("task", "both")  # values of recovery.loss that contain the right answers


def rivals(run: Run, recovered: Record | None, dense_accuracy: float) -> Record:
    """Scores on the test rows of TF-IDF and, with `model.adapter`, of the tuned dense model.

    Args:
        recovered: the record of the recovery; None: there was none.
        dense_accuracy: of the dense model on the test rows.
    """
    tuned = run.config.model.adapter is not None
    return _tfidf(run) | {
        "tuned_dense": dense_accuracy if tuned else None,
        "trained_on_labels": trains_on_labels(run.config.recovery, recovered)
        and not run.task.metric.agreement,
    }


def trains_on_labels(config: RecoveryConfig, recovered: Record | None) -> bool:
    """Whether a recovery with right answers changed the pruned model."""
    return recovered is not None and recovered["taken"] and config.loss in LABELED_LOSSES


def _tfidf(run: Run) -> Record:
    """The score of TF-IDF, which takes seconds, or null and the reason."""
    if reason := why_not(run.task):
        return {"tfidf": None, "why_not": reason}
    rows = [split_key(run.task, role) for role in ("calibration", "test")]
    key = fingerprint("tfidf", VERSION, rows, run.config.seed)
    [record] = run.cached(
        "rivals",
        key,
        {"tfidf": JSON},
        lambda: [{"tfidf": asdict(score_tfidf(run.task, run.config.seed)), "why_not": None}],
    )
    return dict(record)
