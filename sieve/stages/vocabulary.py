"""vocabulary: the model without the tokens that the task does not use.

The calibration rows say which tokens these are. The selection rows do not, so the search measures
on them what other words cost, as on fresh rows.
"""

import logging
from dataclasses import replace

from sieve.runtime.artifacts import fingerprint
from sieve.stages.cached import JSON, Record
from sieve.stages.run import Run
from sieve.stages.splits import split_key
from sieve.stages.unlabelled import rows_to_train
from sieve.stages.writing import rows_to_read, write
from sieve.tasks.scores import Scores
from sieve.vocabulary.backbone import CutBackbone, cut_backbone

log = logging.getLogger(__name__)


def with_task_vocabulary(run: Run) -> Run:
    """The run whose model has the task's tokens only, if `vocabulary.method` asks for it.

    Raises:
        ValueError: the tokenizer or the model cannot be cut exactly.
    """
    if run.config.vocabulary.method == "none":
        return run
    cut = cut_backbone(run.backbone, _used(run), run.config.vocabulary.fill)
    if run.leads:
        log.info(
            "vocabulary   %s of %s tokens stay, without %s parameters",
            *(f"{n:,}" for n in (*_tokens(cut), cut.vocabulary.removed)),
        )
    return replace(run, backbone=cut.backbone, cut=cut)


def vocabulary_record(run: Run, dense: Scores, pruned: Scores) -> Record | None:
    """How many tokens stay, and how many test rows have no others; None with all tokens.

    On these rows, and on all, `same` is how many answers of choices are the dense model's.
    """
    if (cut := run.cut) is None:
        return None
    data = run.original_data
    familiar = run.familiar(data.task, data.task.splits["test"])
    same = (dense.predicted == pruned.predicted).tolist()
    choices = run.task.writing is None
    tokens, dense_tokens = _tokens(cut)
    return {
        "tokens": tokens,
        "dense_tokens": dense_tokens,
        "rows": len(familiar),
        "same": sum(same) if choices else None,
        "rows_kept": sum(familiar),
        "same_kept": sum(a and b for a, b in zip(familiar, same, strict=True)) if choices else None,
    }


def _tokens(cut: CutBackbone) -> tuple[int, int]:
    """Tokens of the smaller tokenizer and of the original."""
    return len(cut.backbone.tokenizer), len(cut.original.tokenizer)


def _used(run: Run) -> set[int]:
    """The tokens of enough rows that calibration and training may read."""
    tasks = [task for task, _ in run.data.mix]
    if run.dense_task is not None:
        tasks.append(run.dense_task)
    rows = [(task, task.splits["calibration"]) for task in tasks]
    vocabularies = (
        run.data.reader.vocabulary(*pair, run.config.vocabulary.min_rows)
        for pair in (*rows, (run.task, rows_to_train(run)))
    )
    return _written(run).union(*vocabularies)


def _written(run: Run) -> set[int]:
    """The tokens that the dense model writes when it reads the calibration rows."""
    task = run.dense_task or run.task
    if task.writing is None or task.metric.agreement:  # With agreement they are the answers.
        return set()
    data = run.data_of(replace(task, splits={"test": rows_to_read(run, task)}))
    key = fingerprint("written", run.model_key, split_key(data.task, "test"))

    def compute() -> list[object]:
        data.divide_among(run.trainer.world_size)
        return [{"tokens": sorted(write(run, data).vocabulary)}]

    [record] = run.cached("write", key, {"written": JSON}, compute)
    return set(record["tokens"])
