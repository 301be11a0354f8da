"""Classification: the answer is one of the same few label words for every row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sieve.tasks.config import TaskConfig
from sieve.tasks.example import Example
from sieve.tasks.prompts import RowReader


def find_labels(config: TaskConfig, rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The label words: those of the settings, else the sorted distinct string labels of `rows`.

    Raises:
        ValueError: no labels are set and those of the data are not strings, or fewer than two.
    """
    if config.labels:
        return tuple(config.labels)
    reader = RowReader(config)
    found = {reader.get(row, config.label_field) for row in rows} - {None}
    other = next((value for value in found if not isinstance(value, str)), None)
    if other is not None:
        raise ValueError(
            f"task '{config.name}': the labels are not words but values like {other!r}, and "
            "task.labels is empty, expected one word per value; set task.labels, as [no,yes]."
        )
    if len(found) < 2:
        raise ValueError(
            f"task '{config.name}': found {len(found)} distinct labels in the field "
            f"'{config.label_field}', expected at least two; set task.label_field or task.labels."
        )
    return tuple(sorted(str(value).strip() for value in found))


def label_index(value: Any, labels: Sequence[str], values: Sequence[str] = ()) -> int | None:
    """Position of a label: by the data's own names, by the words (any case), else an integer."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # Words first, whatever the type: ratings 1 to 5 from a CSV file arrive as integers.
    text = str(value).strip()
    for names in (values, labels):
        words = [name.strip() for name in names]
        folded = [word.casefold() for word in words]
        if text in words:
            return words.index(text)
        if folded.count(text.casefold()) == 1:
            return folded.index(text.casefold())
    if isinstance(value, str):
        value = int(text) if text.isdecimal() else None
    if isinstance(value, int) and 0 <= value < len(labels):
        return int(value)
    return None


def to_example(
    row: Mapping[str, Any], reader: RowReader, labels: Sequence[str], where: str
) -> Example:
    """One row as an example whose choices are all the label words.

    Raises:
        ValueError: a field is missing, or the label is none of `labels`.
    """
    config = reader.config
    value = reader.require(row, config.label_field, where, "holds the label")
    answer = label_index(value, labels, config.label_values)
    if answer is None:
        raise ValueError(
            f"task '{config.name}': {where} has the label {value!r}, expected "
            f"0 to {len(labels) - 1} or one of {', '.join(config.label_values or labels)}; "
            "mend the row or task.labels."
        )
    return replace(to_question(row, reader, labels, where), answer=answer)


def to_question(
    row: Mapping[str, Any], reader: RowReader, labels: Sequence[str], where: str
) -> Example:
    """As `to_example`, of a row whose label is not known; its answer is given as 0."""
    choices = tuple(reader.config.delimiter + label for label in labels)
    prompt, cut = reader.render_with_cut(row, where)
    return Example(prompt, choices, 0, cut=cut)


def check_classes(name: str, role: str, examples: Sequence[Example]) -> None:
    """A split whose answers are all the same measures nothing.

    Raises:
        ValueError: it is so.
    """
    answers = {example.answer for example in examples}
    if len(answers) < 2:
        only = examples[0].choices[examples[0].answer].strip()
        raise ValueError(
            f"task '{name}': all {len(examples)} rows of the {role} split have the label '{only}', "
            f"expected at least two classes; use other rows or raise task.max_rows.{role}."
        )
