"""From settings to a task: read rows, render them, make three splits, check them."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sieve.tasks import classification, multiple_choice, ranking, written
from sieve.tasks.config import ROLES, TaskConfig
from sieve.tasks.example import Example
from sieve.tasks.metrics import make_row_metric, metric_of
from sieve.tasks.prompts import RowReader
from sieve.tasks.rows import Rows, describe_source, read_rows
from sieve.tasks.shots import add_shots
from sieve.tasks.splits import CARVED_FRACTION, carve, check_not_empty, drop_duplicates, sample
from sieve.tasks.task import Task
from sieve.tasks.writing import Writing

log = logging.getLogger(__name__)
LISTED_ANSWERS = 12  # more are counted together
COUNTED = ("classification", "multiple_choice")  # kinds of which answers are counted


def build_task(config: TaskConfig, seed: int = 0) -> Task:
    """Read, render, split and check a task; needs no model.

    Args:
        seed: chooses the rows where `max_rows` is smaller than a split; nothing else.

    Raises:
        ValueError: settings or data are unusable; the message says what to do.
        RuntimeError: the Hub cannot be reached.
    """
    config.validate()
    if config.lm_eval is not None:
        from sieve.tasks.harness import build_harness_task

        return build_harness_task(config, seed)
    source = read_rows(config)
    reader = RowReader(config)
    labels: tuple[str, ...] = ()
    if config.kind == "classification":
        every_row = [row for _, rows in source.values() for row in rows]
        labels = classification.find_labels(config, every_row)
    rendered = _render(source, reader, labels)
    distinct, duplicates = drop_duplicates(rendered)
    check_not_empty(config.name, distinct, duplicates)
    splits, carved = carve(distinct)
    check_not_empty(config.name, splits, duplicates)
    splits = {role: sample(splits[role], config.max_rows.get(role), seed) for role in ROLES}
    if labels:
        for role in ("selection", "test"):
            classification.check_classes(config.name, role, splits[role])
    splits, preamble = add_shots(splits, config, seed)
    report = _report(config, source, splits, carved, duplicates, reader.truncated)
    return Task(
        name=config.name,
        domain=config.domain,
        metric=metric_of(config.kind, config.metric),
        splits=splits,
        report=report,
        chat=config.chat,
        delimiter=config.delimiter,
        normalize=config.normalize,
        labels=labels,
        kind=config.kind,
        row_metric=make_row_metric(config.kind, config.metric),
        writing=_writing(config) if config.kind == "generation" else None,
        unit=config.unit,
        preamble=preamble,
    )


def _writing(config: TaskConfig) -> Writing:
    stop = tuple(text.replace("\\n", "\n") for text in config.stop)
    return Writing(config.max_new_tokens, stop, config.extract, config.extract_last)


def _render(
    source: Mapping[str, tuple[str, Rows]], reader: RowReader, labels: tuple[str, ...]
) -> dict[str, list[Example]]:
    """Role -> examples; rows are counted from 1 in messages, as the lines of a file are."""
    makers: dict[str, Callable[..., Example | None]] = {
        "classification": partial(classification.to_example, labels=labels),
        "multiple_choice": multiple_choice.to_example,
        "ranking": ranking.to_example,
        "generation": written.to_answer,
        "perplexity": written.to_text,
    }
    make = makers[reader.config.kind]
    return {
        role: [
            example
            for number, row in enumerate(rows, start=1)
            if (example := make(row, reader, where=f"row {number} of {name}")) is not None
        ]
        for role, (name, rows) in source.items()
    }


def _report(
    config: TaskConfig,
    source: Mapping[str, tuple[str, Rows]],
    splits: Mapping[str, list[Example]],
    carved: Mapping[str, int],
    duplicates: Mapping[str, int],
    truncated: Mapping[str, int],
) -> dict[str, Any]:
    """What a reader of the result needs to know about the data; JSON-able."""
    calibration = source["calibration"][0]
    for role, rows in carved.items():
        log.info(
            "task '%s': no %s split; %d rows carved out of '%s' by the hash of their prompts",
            config.name, role, rows, calibration,
        )  # fmt: skip
    return {
        "source": describe_source(config),
        "read": {role: len(rows) for role, (_, rows) in source.items()},
        "split_names": {role: name for role, (name, _) in source.items()},
        "rows": {role: len(splits[role]) for role in ROLES},
        "carved": {
            role: {"from": calibration, "fraction": CARVED_FRACTION[role], "rows": rows}
            for role, rows in carved.items()
        },
        "duplicates": dict(duplicates),
        "truncated": dict(truncated),
        "answers": count_answers(splits) if config.kind in COUNTED else {},
    }


def count_answers(splits: Mapping[str, list[Example]]) -> dict[str, dict[str, int]]:
    """Role -> answer -> rows, most frequent first over all splits; rare answers are one entry."""
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
