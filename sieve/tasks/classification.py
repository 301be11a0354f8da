"""Classification: the answer to every row is one of the same few label words."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sieve.tasks.config import TaskConfig
from sieve.tasks.example import Example, Row
from sieve.tasks.prompts import RowReader


def find_labels(config: TaskConfig, rows: Iterable[Row]) -> tuple[str, ...]:
    """The label words: `task.labels`, or else the sorted distinct string labels of `rows`.

    Raises:
        ValueError: `task.labels` is empty and the labels in the rows are not strings, or fewer
            than two.
    """
    if config.labels:
        return tuple(config.labels)
    reader = RowReader(config)
    labels = {reader.get(row, config.label_field) for row in rows} - {None}
    other = next((label for label in labels if not isinstance(label, str)), None)
    if other is not None:
        raise ValueError(
            f"task '{config.name}': the data has labels such as {other!r} and task.labels is "
            "empty, expected a word for each label; set task.labels, for example to [no,yes]."
        )
    if len(labels) < 2:
        raise ValueError(
            f"task '{config.name}': the data has {len(labels)} distinct labels in the field "
            f"'{config.label_field}', expected at least two; set task.label_field, or task.labels, "
            "for example to [no,yes]."
        )
    return tuple(sorted(str(label).strip() for label in labels))


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
            "correct the row or task.labels."
        )
    return replace(to_question(row, reader, labels, where), answer=answer)


def to_question(row: Row, reader: RowReader, labels: Sequence[str], where: str) -> Example:
    """As `to_example` for a row without a label; `answer` is 0."""
    choices = tuple(reader.config.delimiter + label for label in labels)
    prompt, cut = reader.render_with_cut(row, where)
    return Example(prompt, choices, 0, cut=cut)


def check_classes(name: str, role: str, examples: Sequence[Example]) -> None:
    """ValueError where all answers of a split are the same, so that it measures nothing."""
    if (only := only_answer(examples)) is not None:
        raise ValueError(
            f"task '{name}': all {len(examples)} rows of the {role} split have the label '{only}', "
            f"expected at least two classes; use other rows or raise task.max_rows.{role}."
        )


def only_answer(examples: Sequence[Example]) -> str | None:
    """The right answer of all examples; None if they have several."""
    if len({example.answer for example in examples}) > 1:
        return None
    return examples[0].choices[examples[0].answer].strip()
