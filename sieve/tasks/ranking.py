"""Ranking: options of a row in the order of their likelihood, and how relevant each is."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sieve.tasks import multiple_choice
from sieve.tasks.example import Example
from sieve.tasks.prompts import RowReader


def to_example(row: Mapping[str, Any], reader: RowReader, where: str) -> Example:
    """One row as an example whose choices are its options, graded.

    Where the prompt names {option} every option has a context of its own, and what is scored is the
    word that says it is relevant.

    Raises:
        ValueError: a field is missing, grades are not as many as options, or none is above 0.
    """
    config = reader.config
    options = multiple_choice.read_options(row, reader, where)
    if config.relevance_field is None:
        value = reader.require(row, config.answer_field or "", where, "holds the answer")
        found = [
            multiple_choice.answer_index(one, options, config.answer_from) for one in _listed(value)
        ]
        grades = tuple(float(index in found) for index in range(len(options)))
    else:
        value = reader.require(row, config.relevance_field, where, "holds the grades")
        grades = _grades(value, len(options))
    if len(grades) != len(options) or not any(grade > 0 for grade in grades):
        raise ValueError(
            f"task '{config.name}': {where} has {len(options)} options and {value!r} for what is "
            "relevant, expected a grade for each, one of them above 0, or the option that is; mend "
            "the row, task.relevance_field or task.answer_field."
        )
    answer = grades.index(max(grades))
    texts = list(options.values())
    if "option" not in reader.names:
        question = multiple_choice.to_question(row, reader, where, repeated=True)
        choices = tuple(config.delimiter + text for text in texts)
        return replace(question, choices=choices, answer=answer, relevance=grades)
    listed = multiple_choice.list_options(options, reader)
    contexts = tuple(reader.render({**row, "option": t}, where, listed) for t in texts)
    choice = config.delimiter + config.positive
    shared = reader.render({**row, "option": "\n".join(texts)}, where, listed)
    return Example(shared, (choice,) * len(texts), answer, relevance=grades, contexts=contexts)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _grades(value: Any, count: int) -> tuple[float, ...]:
    """One grade per option; () where they are not numbers."""
    try:
        return tuple(max(0.0, float(grade)) for grade in _listed(value))
    except (TypeError, ValueError):
        return ()
