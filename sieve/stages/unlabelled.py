"""Training rows without labels: the dense model answers them, and its answers teach."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from sieve.data.calibration_rows import draw_rows, drawn_order
from sieve.data.paired import Pair, dense_examples, paired_calibration_batches
from sieve.evaluation.evaluation import score
from sieve.runtime.artifacts import fingerprint
from sieve.stages.answers import with_answer
from sieve.stages.cached import JSON
from sieve.stages.run import Run
from sieve.stages.splits import split_key
from sieve.tasks import Example

VERSION = 1  # of the answers; part of their fingerprint


def unlabelled_pairs(run: Run, batch_tokens: int, tokens: int | None) -> list[Pair]:
    """Batches of rows without labels, each with the dense model's batch of the same rows.

    A row is the prompt and the answer that the dense model chooses; it is left out where that is
    not a number. The answers are computed once and cached. The model must be dense.

    Args:
        batch_tokens: padded tokens of a batch.
        tokens: of the rows, drawn by the run's seed; None takes all rows.
    """
    rows = _drawn(run, tokens) if run.config.recovery.unlabelled else []
    if not rows:
        return []
    answers = zip(rows, _choices(run, dense_examples(rows)), strict=True)
    answered = [with_answer(row, choice, run.task) for row, choice in answers if choice >= 0]
    task = replace(run.task, splits=run.task.splits | {"calibration": answered})
    pruned = run.data_of(task)
    dense = pruned if run.dense_data is run.data else run.dense_data
    return paired_calibration_batches(pruned, dense, batch_tokens, None)


def unlabelled_key(run: Run) -> str:
    """Fingerprint of the rows without labels as both models read them."""
    tasks = [run.task, *([run.dense_task] if run.dense_task else [])]
    return fingerprint([_key(run, task.unlabelled) for task in tasks])


def _drawn(run: Run, tokens: int | None) -> list[Example]:
    """The rows that hold `tokens` tokens as the pruned model reads them."""
    rows, seed = run.task.unlabelled, run.config.seed
    encoded, _, _ = draw_rows(rows, partial(run.data.reader.encode, run.task), tokens, seed)
    return [rows[index] for index in drawn_order(len(rows), seed)[: len(encoded)]]


def _choices(run: Run, examples: Sequence[Example]) -> list[int]:
    """The dense model's choice of every example, −1 where its numbers are not finite."""
    key = fingerprint("unlabelled", VERSION, run.model_key, _key(run, examples))

    def compute() -> list[object]:
        batches = run.dense_data.scoring_batches(examples)
        scores = score(run.backbone.model, batches, "Answering rows without labels")
        return [{"choices": scores.predicted.tolist()}]

    [record] = run.remembered("unlabelled", key, {"unlabelled": JSON}, compute)
    return list(record["choices"])


def _key(run: Run, examples: Sequence[Example]) -> str:
    task = replace(run.dense_task or run.task, splits={"test": list(examples)})
    return split_key(task, "test")
