"""From settings to a task: read rows, render them, make three splits, check them."""

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, cast

from hydra.utils import get_method

from sieve.runtime.artifacts import fingerprint
from sieve.tasks import classification, multiple_choice, ranking, written
from sieve.tasks.config import ROLES, TaskConfig
from sieve.tasks.example import Example
from sieve.tasks.judge import make_judge
from sieve.tasks.metrics import JUDGE, make_row_metric, metric_of
from sieve.tasks.prompts import RowReader
from sieve.tasks.rows import Rows, describe_source, read_rows
from sieve.tasks.shots import add_shots
from sieve.tasks.sketch import Sketch
from sieve.tasks.splits import (
    CARVED_FRACTION,
    Splits,
    carve,
    check_not_empty,
    drop_duplicates,
    sample,
)
from sieve.tasks.task import Task
from sieve.tasks.writing import Writing

log = logging.getLogger(__name__)
LISTED_ANSWERS = 12  # more are counted together
LARGEST = 100_000  # calibration rows of large data, chosen by the hash of their prompts
GRADING = ("url", "model", "prompt", "max_tokens")  # of a judge, what its grades depend on
CHOICE_KINDS = ("classification", "multiple_choice")  # kinds of which answers are counted


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
        every_row = (row for _, rows in source.values() for row in rows)
        labels = classification.find_labels(config, every_row)
    rendered = _Rendered(source, reader, labels)
    distinct, duplicates = drop_duplicates(rendered.examples())
    check_not_empty(config.name, distinct, duplicates)
    splits, carved = carve(distinct)
    check_not_empty(config.name, splits, duplicates)
    limits = rendered.limits(config)
    splits = {role: sample(splits[role], limits.get(role), seed) for role in ROLES}
    splits = rendered.whole(splits)
    if labels:
        for role in ("selection", "test"):
            classification.check_classes(config.name, role, splits[role])
    splits, preamble = add_shots(splits, config, seed)
    report = _report(config, rendered, splits, carved, duplicates)
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
        row_metric=make_judge(config.judge)
        if config.metric == JUDGE
        else make_row_metric(config.kind, config.metric),
        writing=_writing(config) if config.kind == "generation" else None,
        unit=config.unit,
        preamble=preamble,
        scoring=scoring_key(config),
    )


def scoring_key(config: TaskConfig) -> str:
    """Fingerprint of the settings that say what a row is worth, a function's text included."""
    judge = {k: v for k, v in (config.judge or {}).items() if k in GRADING}
    source = ""
    if isinstance(config.metric, Mapping) and (path := config.metric.get("_target_")):
        with suppress(Exception):  # Of compiled code there is no text.
            source = inspect.getsource(get_method(path))
    return fingerprint(config.metric, source, judge, config.lm_eval)


def _writing(config: TaskConfig) -> Writing:
    stop = tuple(text.replace("\\n", "\n") for text in config.stop)
    return Writing(config.max_new_tokens, stop, config.extract, config.extract_last)


class _Rendered:
    """The rows of all roles as examples; of large data, first as sketches that stand for them.

    Rows are counted from 1 in messages, as the lines of a file are.
    """

    def __init__(
        self, source: Mapping[str, tuple[str, Rows]], reader: RowReader, labels: tuple[str, ...]
    ) -> None:
        makers: dict[str, Callable[..., Example | None]] = {
            "classification": partial(classification.to_example, labels=labels),
            "multiple_choice": multiple_choice.to_example,
            "ranking": ranking.to_example,
            "generation": written.to_answer,
            "perplexity": written.to_text,
        }
        self.source, self.reader = source, reader
        self.make = makers[reader.config.kind]
        self.large = any(not isinstance(rows, list) for _, rows in source.values())
        self.read = dict.fromkeys(source, 0)

    def examples(self) -> dict[str, list[Any]]:
        """Role -> examples, or sketches of them."""
        return {
            role: [
                Sketch.of(example, role, number) if self.large else example
                for number, example in self._each(role)
            ]
            for role in self.source
        }

    def limits(self, config: TaskConfig) -> dict[str, int | None]:
        """Role -> how many rows are taken at most; of large data not all can be calibrated on."""
        limits = dict(config.max_rows)
        if self.large and limits.get("calibration") is None:
            limits["calibration"] = LARGEST
        return limits

    def whole(self, splits: Splits) -> Splits:
        """The examples that sketches stand for, by another pass over the rows."""
        if not self.large:
            return splits
        wanted: dict[str, dict[int, tuple[str, int]]] = {role: {} for role in self.source}
        for role, sketches in splits.items():
            for place, sketch in enumerate(cast(list[Sketch], sketches)):
                wanted[sketch.role][sketch.number] = role, place
        found: dict[str, list[Any]] = {role: [None] * len(held) for role, held in splits.items()}
        self.reader.truncated.clear()
        for source_role, numbers in wanted.items():
            for number, example in self._each(source_role, numbers):
                role, place = numbers[number]
                found[role][place] = example
        return found

    def _each(
        self, role: str, numbers: Collection[int] | None = None
    ) -> Iterator[tuple[int, Example]]:
        """Examples of a role with the numbers of their rows, all or those that are asked for."""
        name, rows = self.source[role]
        for number, row in enumerate(rows, start=1):
            self.read[role] = max(self.read[role], number)
            if numbers is None or number in numbers:
                example = self.make(row, self.reader, where=f"row {number} of {name}")
                if example is not None:
                    yield number, example


def _report(
    config: TaskConfig,
    rendered: _Rendered,
    splits: Mapping[str, list[Example]],
    carved: Mapping[str, int],
    duplicates: Mapping[str, int],
) -> dict[str, Any]:
    """What a reader of the result needs to know about the data; JSON-able."""
    source, calibration = rendered.source, rendered.source["calibration"][0]
    for role, rows in carved.items():
        log.info(
            "task '%s': no %s split; %d rows carved out of '%s' by the hash of their prompts",
            config.name, role, rows, calibration,
        )  # fmt: skip
    return {
        "source": describe_source(config),
        "read": rendered.read,
        "split_names": {role: name for role, (name, _) in source.items()},
        "rows": {role: len(splits[role]) for role in ROLES},
        "carved": {
            role: {"from": calibration, "fraction": CARVED_FRACTION[role], "rows": rows}
            for role, rows in carved.items()
        },
        "duplicates": dict(duplicates),
        "truncated": dict(rendered.reader.truncated),
        "answers": count_answers(splits) if config.kind in CHOICE_KINDS else {},
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
