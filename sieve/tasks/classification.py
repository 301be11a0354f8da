"""Classification: the answer to every row is one of the same few label words."""

from collections.abc import Sequence
from dataclasses import replace

from sieve.tasks.config import TaskConfig
from sieve.tasks.example import Example, Row
from sieve.tasks.prompts import RowReader


def label_index(value: object, labels: Sequence[str], values: Sequence[str] = ()) -> int | None:
    """The index of a label: by its name in the data, by its word in any case, or by its number."""
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
    return int(value) if isinstance(value, int) and 0 <= value < len(labels) else None


def to_example(row: Row, reader: RowReader, labels: Sequence[str], where: str) -> Example:
    """An example whose choices are all label words.

    Raises:
        ValueError: the row lacks a field, or its label is not one of `labels`.
    """
    config = reader.config
    value = reader.require(row, config.label_field, where, "holds the label")
    answer = label_index(value, labels, config.label_values)
    if answer is None:
        raise ValueError(
            f"task '{config.name}': {where} has the label {value!r}, expected "
            f"0 to {len(labels) - 1} or one of {', '.join(config.label_values or labels)}; "
            f"correct the row or task.labels{_counted(value, labels) or _named(config, labels)}."
        )
    return replace(to_question(row, reader, labels, where), answer=answer)


def _named(config: TaskConfig, labels: Sequence[str]) -> str:
    """What to set if the data names the labels by other words, as a clause."""
    if config.label_values:
        return ""
    return (
        ", or set task.label_values to the names that the data has for "
        f"{', '.join(labels)}, in this order"
    )


def _counted(value: object, labels: Sequence[str]) -> str:
    """What to set if labels are numbers that do not count from 0, as a clause."""
    if str(value).strip() != str(len(labels)):
        return ""
    values = ",".join(f"'{number}'" for number in range(1, len(labels) + 1))
    return f', or set "task.label_values=[{values}]" if the labels count from 1'


def to_question(row: Row, reader: RowReader, labels: Sequence[str], where: str) -> Example:
    """As `to_example` for a row without a label; `answer` is 0."""
    choices = tuple(reader.config.delimiter + label for label in labels)
    prompt, cut = reader.render_with_cut(row, where)
    return Example(prompt, choices, 0, cut=cut)


def check_classes(config: TaskConfig, role: str, examples: Sequence[Example]) -> None:
    """ValueError where all answers of a split are the same, so that it measures nothing."""
    if (only := only_answer(examples)) is not None:
        limited = config.max_rows.get(role) is not None
        advice = f"raise task.max_rows.{role}" if limited else "add rows with other labels"
        raise ValueError(
            f"task '{config.name}': all {len(examples)} rows of the {role} split have the label "
            f"'{only}', expected at least two classes; {advice}."
        )


def only_answer(examples: Sequence[Example]) -> str | None:
    """The right answer of all examples; None if they have several."""
    if len({example.answer for example in examples}) > 1:
        return None
    return examples[0].choices[examples[0].answer].strip()
