"""From settings to a task: read rows, render them, make three splits, check them."""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import cache, partial
from itertools import islice

from hydra.utils import get_method

from sieve.runtime.artifacts import fingerprint
from sieve.tasks.classification import check_classes
from sieve.tasks.config import AUTO, CHOICE_KINDS, ROLES, UNLABELLED, TaskConfig
from sieve.tasks.example import Example
from sieve.tasks.judge import make_judge
from sieve.tasks.metrics import JUDGE, make_row_metric, metric_of
from sieve.tasks.rendering import RenderedRows
from sieve.tasks.rows import describe_source, read_rows, read_unlabelled
from sieve.tasks.shots import add_shots
from sieve.tasks.splits import Division, divide
from sieve.tasks.task import Task
from sieve.tasks.writing import Writing

LARGEST_CALIBRATION = 100_000  # rows of large data, unless `max_rows` is set
LISTED_ANSWERS = 12  # rarer answers are counted together
GRADING_KEYS = ("url", "model", "prompt", "max_tokens")  # settings that a judge's grade depends on


def build_task(config: TaskConfig, seed: int = 0, student_prompt: str | None = None) -> Task:
    """Read, render, split and check a task; needs no model.

    Args:
        seed: chooses the rows where `max_rows` is smaller than a split, and the shots.
        student_prompt: the setting `recovery.student_prompt`; every example has a twin with this
            prompt. See `sieve.tasks.student`.

    Raises:
        ValueError: settings or data are unusable.
        RuntimeError: the Hub cannot be reached.
    """
    config.validate()
    if config.shots == AUTO:
        raise ValueError(
            f"task '{config.name}': task.shots is auto, expected a number because no model is "
            "loaded to measure it; set the number that a run chose (data.prompt in result.json)."
        )
    return task_by_shots(config, seed, student_prompt)(int(config.shots))


def task_by_shots(
    config: TaskConfig, seed: int = 0, student_prompt: str | None = None
) -> Callable[[int], Task]:
    """Read and split the rows; returns a function that builds the task with a number of shots.

    Arguments and errors are the same as for `build_task`, but `task.shots` is ignored.
    """
    config.validate()
    if config.lm_eval is not None:
        from sieve.tasks.harness import build_harness_task

        task = build_harness_task(config, seed)
        return lambda shots: task  # The harness draws the shots.
    rows = RenderedRows(config, read_rows(config), student_prompt)
    division = _divide(rows, config, seed)
    rows.leaks.check()
    if rows.short is not None and "calibration" in rows.labelled:
        rows.short.check(division.splits["calibration"])
    if config.kind == "classification" and rows.labelled == ROLES:
        for role in ("selection", "test"):
            check_classes(config, role, division.splits[role])
    unlabelled = _unlabelled(config, rows, division)
    return cache(partial(_with_shots, config, rows, division, unlabelled, seed))


def _unlabelled(
    config: TaskConfig, rows: RenderedRows, division: Division[Example]
) -> list[Example]:
    """Distinct rows without labels whose prompts are in no split."""
    split = read_unlabelled(config)
    if split is None:
        return []
    taken = {example.content for examples in division.splits.values() for example in examples}
    distinct = {
        example.content: example
        for example in islice(rows.questions(split), LARGEST_CALIBRATION)
        if example.content not in taken
    }
    return list(distinct.values())


def _with_shots(
    config: TaskConfig,
    rows: RenderedRows,
    division: Division[Example],
    unlabelled: list[Example],
    seed: int,
    shots: int,
) -> Task:
    shown, preamble = add_shots(division.splits | {UNLABELLED: unlabelled}, config, shots, seed)
    splits = {role: shown[role] for role in ROLES}
    row_metric = make_row_metric(config.kind, config.metric)
    if config.metric == JUDGE:
        row_metric = make_judge(config.judge or {})
    return Task(
        name=config.name,
        domain=config.domain,
        metric=metric_of(config.kind, config.metric),
        splits=splits,
        report=_report(config, rows, splits, division) | {"unlabelled": len(unlabelled)},
        chat=config.chat,
        delimiter=config.delimiter,
        normalize=config.normalize,
        labels=rows.labels,
        kind=config.kind,
        row_metric=row_metric,
        writing=writing_of(config) if config.kind == "generation" else None,
        unit=config.unit,
        preamble=preamble,
        scoring=scoring_key(config),
        unlabelled=shown[UNLABELLED],
    )


def scoring_key(config: TaskConfig) -> str:
    """Fingerprint of the settings that decide what a row is worth, a function's source included."""
    judge = {k: v for k, v in (config.judge or {}).items() if k in GRADING_KEYS}
    source = ""
    if isinstance(config.metric, Mapping) and (path := config.metric.get("_target_")):
        with suppress(Exception):  # A compiled function has no source.
            source = inspect.getsource(get_method(path))
    return fingerprint(config.metric, source, judge, config.lm_eval)


def _divide(rows: RenderedRows, config: TaskConfig, seed: int) -> Division[Example]:
    """The splits; large data is read twice, so that only the chosen rows are in memory."""
    limits, wanted = dict(config.max_rows), config.selection_rows
    classes = config.kind == "classification"
    if not rows.large:
        division = divide(config.name, rows.examples(), limits, seed, wanted, classes)
    else:
        if limits.get("calibration") is None:
            limits["calibration"] = LARGEST_CALIBRATION
        digests = divide(config.name, rows.digests(), limits, seed, wanted, classes)
        values = {field.name: getattr(digests, field.name) for field in fields(digests)}
        division = Division(**values | {"splits": rows.of_digests(digests.splits)})
    return division


def writing_of(config: TaskConfig) -> Writing:
    """How the answers of a generation task are written and read."""
    stop = tuple(text.replace("\\n", "\n") for text in config.stop)
    return Writing(config.max_new_tokens, stop, config.extract, config.extract_last)


def _report(
    config: TaskConfig,
    rows: RenderedRows,
    splits: Mapping[str, list[Example]],
    division: Division[Example],
) -> dict[str, object]:
    """What a reader of the result needs to know about the data, for JSON."""
    calibration = rows.source["calibration"].name
    return division.report(calibration) | {
        "source": describe_source(config),
        "read": rows.rows_read,
        "split_names": {role: split.name for role, split in rows.source.items()},
        "rows": {role: len(splits[role]) for role in ROLES},
        "truncated": dict(rows.reader.truncated),
        "empty": dict(rows.reader.empty),
        "answers": count_answers(splits)
        if config.kind in CHOICE_KINDS and rows.labelled == ROLES
        else {},
    }


def count_answers(splits: Mapping[str, list[Example]]) -> dict[str, dict[str, int]]:
    """Role -> answer -> rows, the most frequent answer first; rare answers are one entry."""
    counts = {
        role: Counter(example.choices[example.answer].strip() for example in examples)
        for role, examples in splits.items()
    }
    total = sum(counts.values(), Counter[str]())
    listed = [answer for answer, _ in total.most_common(LISTED_ANSWERS)]
    rest = len(total) - len(listed)
    table = {role: {answer: counts[role][answer] for answer in listed} for role in splits}
    if rest:
        for role, row in table.items():
            row[f"{rest} other answers"] = counts[role].total() - sum(row.values())
    return table
