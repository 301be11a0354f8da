"""Ranking: the options of a row are ordered by likelihood, and each has a grade of relevance."""

from dataclasses import replace
from typing import cast

from sieve.tasks import multiple_choice
from sieve.tasks.example import Example, Row
from sieve.tasks.prompts import RowReader


def to_example(row: Row, reader: RowReader, where: str) -> Example:
    """An example whose choices are the row's options, with their grades.

    If the prompt names {option}, each option gets its own prompt, and its score is the likelihood
    of the word `task.positive`.

    Raises:
        ValueError: the row lacks a field, or does not have a grade for each option and one above 0.
    """
    config = reader.config
    options = multiple_choice.read_options(row, reader, where)
    if config.relevance_field is None:
        value = reader.require(row, config.answer_field or "", where, "holds the answer")
        right = [
            multiple_choice.answer_index(one, options, config.answer_from)
            for one in _as_list(value)
        ]
        grades = tuple(float(index in right) for index in range(len(options)))
    else:
        value = reader.require(row, config.relevance_field, where, "holds the grades")
        grades = _as_grades(value)
    if len(grades) != len(options) or max(grades) <= 0:
        raise ValueError(
            f"task '{config.name}': {where} has {len(options)} options, graded {value!r}, "
            "expected a grade for each option, at least one above 0, or the relevant option; "
            "correct the row, task.relevance_field or task.answer_field."
        )
    question = to_question(row, reader, where)
    return replace(question, answer=grades.index(max(grades)), relevance=grades)


def to_question(row: Row, reader: RowReader, where: str) -> Example:
    """As `to_example` for a row without grades; `answer` is 0."""
    config, options = reader.config, multiple_choice.read_options(row, reader, where)
    texts = list(options.values())
    if "option" not in reader.names:
        question = multiple_choice.to_question(row, reader, where, repeated=True)
        return replace(question, choices=tuple(config.delimiter + text for text in texts))
    listed = multiple_choice.list_options(options, reader)
    contexts = tuple(reader.render({**row, "option": t}, where, listed) for t in texts)
    choices = (config.delimiter + config.positive,) * len(texts)
    prompt = reader.render({**row, "option": "\n".join(texts)}, where, listed)
    return Example(prompt, choices, 0, contexts=contexts)


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _as_grades(value: object) -> tuple[float, ...]:
    """The grades as numbers of at least 0; () where they are not numbers."""
    try:
        return tuple(max(0.0, float(cast(str, grade))) for grade in _as_list(value))
    except (TypeError, ValueError):
        return ()
