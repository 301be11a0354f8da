"""Rows without labels: the dense model answers them, and its answers teach and certify.

The drop in accuracy is at most the share of answers that differ from the dense model's, and that
needs no labels. Rows that a training reads are left out, so a fifth of the rows is held out of it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from sieve.data.calibration_rows import draw_rows, drawn_order
from sieve.data.paired import Pair, dense_examples, paired_calibration_batches
from sieve.evaluation.evaluation import score
from sieve.runtime.artifacts import fingerprint
from sieve.stages.cached import JSON, Record
from sieve.stages.run import Run
from sieve.stages.splits import split_key
from sieve.tasks import Example
from sieve.tasks.scores import exact_upper
from sieve.tasks.splits import COMPARED_FRACTION, MOST_COMPARED, Reserved, reserve

VERSION = 1  # of the answers; part of their fingerprint
CONFIDENCE = 0.9  # of the bound where the run has none


def unlabelled_pairs(run: Run, batch_tokens: int, tokens: int | None) -> list[Pair]:
    """Batches of rows without labels, each with the dense model's batch of the same rows.

    A row is the prompt and the answer that the dense model chooses; it is left out where that is
    not a number. The model must be dense.

    Args:
        batch_tokens: padded tokens of a batch.
        tokens: of the rows, drawn by the run's seed; None takes all rows.
    """
    rows = _drawn(run, tokens) if run.config.recovery.unlabelled else []
    if not rows:
        return []
    answers = zip(rows, dense_choices(run, rows), strict=True)
    answered = [run.task.with_answer(row, choice) for row, choice in answers if choice >= 0]
    task = replace(run.task, splits=run.task.splits | {"calibration": answered})
    pruned = run.data_of(task)
    dense = pruned if run.dense_data is run.data else run.dense_data
    return paired_calibration_batches(pruned, dense, batch_tokens, None)


def rows_to_train(run: Run) -> list[Example]:
    """Rows without labels that a training may read."""
    return _divided(run).rest


def unlabelled_key(run: Run) -> str:
    """Fingerprint of the rows without labels as both models read them."""
    tasks = [run.task, *([run.dense_task] if run.dense_task else [])]
    return fingerprint(COMPARED_FRACTION, [_key(run, task.unlabelled) for task in tasks])


def compared_rows(run: Run) -> list[Example]:
    """Rows without labels that no training reads; none if other than first choices count."""
    accuracy = run.task.row_metric is None or run.task.metric.agreement
    return _divided(run).reserved if accuracy else []


def dense_choices(run: Run, rows: Sequence[Example]) -> list[int]:
    """The choice of the dense model for each row of the pruned model, −1 where it is not finite.

    The answers are computed once and cached. The model must be dense.
    """
    return _choices(run, dense_examples(rows)) if rows else []


def compare_answers(run: Run, rows: Sequence[Example], dense: Sequence[int]) -> Record | None:
    """How many answers of the pruned model differ from the dense model's, with an upper bound.

    `upper` is the Clopper-Pearson bound of the share that differs. None if there are no rows.
    """
    if not rows:
        return None
    batches, confidence = run.data.scoring_batches(rows), run.config.confidence or CONFIDENCE
    pruned = score(run.backbone.model, batches, "Comparing answers without labels").predicted
    changed = sum(own != other or own < 0 for own, other in zip(dense, pruned, strict=True))
    upper = exact_upper(int(changed), len(rows), confidence)
    return {"rows": len(rows), "changed": int(changed), "upper": upper, "confidence": confidence}


def _divided(run: Run) -> Reserved[Example]:
    """Rows for training, and rows for comparing answers; hashes decide."""
    recovery = run.config.recovery
    trains = recovery.method != "none" and recovery.unlabelled
    share = COMPARED_FRACTION if trains else 1.0
    return reserve(run.task.unlabelled, share, "unlabelled", MOST_COMPARED)


def _drawn(run: Run, tokens: int | None) -> list[Example]:
    """The rows that hold `tokens` tokens as the pruned model reads them."""
    rows, seed = _divided(run).rest, run.config.seed
    encoded, _, _ = draw_rows(rows, partial(run.data.reader.encode, run.task), tokens, seed)
    return [rows[index] for index in drawn_order(len(rows), seed)[: len(encoded)]]


def _choices(run: Run, examples: Sequence[Example]) -> list[int]:
    """The dense model's choice of every example, −1 where its numbers are not finite."""
    key = fingerprint("unlabelled", VERSION, run.model_key, _key(run, examples))

    def compute() -> list[object]:
        batches = run.original_data.scoring_batches(examples)
        with run.original_model():
            scores = score(run.backbone.model, batches, "Answering rows without labels")
        return [{"choices": scores.predicted.tolist()}]

    [record] = run.remembered("unlabelled", key, {"unlabelled": JSON}, compute)
    return list(record["choices"])


def _key(run: Run, examples: Sequence[Example]) -> str:
    task = replace(run.dense_task or run.task, splits={"test": list(examples)})
    return split_key(task, "test")
