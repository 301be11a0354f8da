"""answers: with task.metric=agreement the dense model's own answers count as right.

The dense model answers the rows of every split once, before anything else depends on them. Its
answers take the place of labels, which are not read, so every later stage does as with labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sieve.evaluation.evaluation import check_finite
from sieve.runtime.artifacts import fingerprint
from sieve.stages.cached import JSON, Record
from sieve.stages.evaluate import score_test
from sieve.stages.run import Run
from sieve.stages.splits import split_key
from sieve.stages.writing import rows_to_read, write
from sieve.tasks import Example
from sieve.tasks.build import count_answers
from sieve.tasks.classification import only_answer
from sieve.tasks.config import CHOICE_KINDS, ROLES

VERSION = 1  # of the record; part of its fingerprint
Splits = Mapping[str, list[Example]]


def with_own_answers(run: Run) -> Run:
    """The run whose rows have the dense model's answers, if its metric is agreement.

    Only calibration rows that a stage can read are answered; the others leave the split.

    Raises:
        ValueError: the dense model's numbers are not finite, or it answers all rows of a split
            alike.
    """
    task = run.task
    if not task.metric.agreement:
        return run
    splits = task.splits | {"calibration": rows_to_read(run, task)}
    rows = [split_key(replace(task, splits={"test": splits[role]}), "test") for role in ROLES]
    key = fingerprint("answers", VERSION, run.model_key, rows)
    [record] = run.cached("answers", key, {"answers": JSON}, lambda: [_answer(run, splits)])
    answered = {
        role: [task.with_answer(e, answer) for e, answer in zip(splits[role], given, strict=True)]
        for role, given in record.items()
    }
    if task.kind == "classification":
        for role in ("selection", "test"):
            _check_classes(task.name, role, answered[role])
    counts = {role: len(examples) for role, examples in answered.items()}
    report = task.report | {"rows": counts}
    if task.kind in CHOICE_KINDS:
        report["answers"] = count_answers(answered)
    return replace(run, task=replace(task, splits=answered, report=report))


def _answer(run: Run, splits: Splits) -> Record:
    return {role: _answers(run, splits[role]) for role in ROLES}


def _answers(run: Run, examples: Sequence[Example]) -> list[int] | list[str]:
    """The dense model's answers. The trainer scores, so that ranks are joined from here on."""
    data = run.data_of(replace(run.task, splits={"test": list(examples)}))
    data.divide_among(run.trainer.world_size)
    if run.task.writing is not None:
        return write(run, data).texts
    scores = score_test(run, data)
    check_finite(scores)
    choices: list[int] = scores.predicted.tolist()
    return choices


def _check_classes(name: str, role: str, examples: Sequence[Example]) -> None:
    if (only := only_answer(examples)) is not None:
        raise ValueError(
            f"task '{name}': the dense model answers '{only}' to all {len(examples)} rows of the "
            f"{role} split, so agreement with it measures nothing; check task.prompt, task.labels "
            "and the model, or use other rows."
        )
