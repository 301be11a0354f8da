"""answers: with task.metric=agreement the dense model's own answers count as right.

The dense model answers the rows of every split once, before anything else depends on them. Its
answers take the place of labels, which are not read, so every later stage does as with labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from sieve.calibration.schedule import most_tokens
from sieve.data.calibration_rows import draw_rows, drawn_order
from sieve.evaluation.evaluation import WritingModule, check_finite
from sieve.runtime.artifacts import fingerprint
from sieve.stages.cached import JSON, Record
from sieve.stages.evaluate import score_test
from sieve.stages.run import Run
from sieve.stages.splits import split_key
from sieve.tasks import Example
from sieve.tasks.build import count_answers
from sieve.tasks.classification import only_answer
from sieve.tasks.config import CHOICE_KINDS, ROLES

VERSION = 1  # of the record; part of its fingerprint
SPARE = 1.25  # rows for the checks of a training, and because other answers are shorter
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
    splits = task.splits | {"calibration": _needed(run)}
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
    if run.task.writing is None:
        scores = score_test(run, data)
        check_finite(scores)
        choices: list[int] = scores.predicted.tolist()
        return choices
    module = WritingModule(run.backbone.model)
    run.trainer.test(module, datamodule=data, verbose=False)
    run.settle()
    return module.texts


def _needed(run: Run) -> list[Example]:
    """The calibration rows with the tokens of the stage that reads most of them, and spare ones."""
    config, reader, rows = run.config, run.data.reader, run.task.splits["calibration"]
    tokens, encode = round(SPARE * most_tokens(config)), partial(reader.encode, run.task)
    drawn, _, _ = draw_rows(rows, encode, tokens, config.seed, sharing=reader.sharing)
    count = max(len(drawn), config.calibration.rows or 0)
    return [rows[index] for index in sorted(drawn_order(len(rows), config.seed)[:count])]


def _check_classes(name: str, role: str, examples: Sequence[Example]) -> None:
    if (only := only_answer(examples)) is not None:
        raise ValueError(
            f"task '{name}': the dense model answers '{only}' to all {len(examples)} rows of the "
            f"{role} split, so agreement with it measures nothing; check task.prompt, task.labels "
            "and the model, or use other rows."
        )
