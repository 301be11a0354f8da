"""Answers in words (`generation`) and plain text (`perplexity`) as examples."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sieve.tasks.example import Example
from sieve.tasks.prompts import RowReader, as_text


def to_answer(row: Mapping[str, Any], reader: RowReader, where: str) -> Example:
    """One row as a prompt and the answers that count as right, the first one to be learnt.

    Raises:
        ValueError: a field is missing, or there is no answer in it.
    """
    config = reader.config
    field = config.answer_field or "answer"
    value = reader.require(row, field, where, "holds the answer")
    texts = [as_text(item).strip() for item in (value if isinstance(value, list) else [value])]
    references = tuple(text for text in texts if text)
    if not references:
        raise ValueError(
            f"task '{config.name}': {where} has no answer in '{field}', expected a text or a list "
            "of texts; mend the row or task.answer_field."
        )
    example = to_question(row, reader, where)
    choice = config.delimiter + references[0]
    return replace(example, choices=(choice,), references=tuple(dict.fromkeys(references)))


def to_question(row: Mapping[str, Any], reader: RowReader, where: str) -> Example:
    """As `to_answer`, of a row whose answer is not known."""
    prompt, cut = reader.render_with_cut(row, where)
    return Example(prompt, (reader.config.delimiter,), 0, cut=cut)


def to_text(row: Mapping[str, Any], reader: RowReader, where: str) -> Example | None:
    """One row as text, all of which is predicted; None where there is none in it."""
    text = reader.render(row, where)
    return Example("", (text,), 0) if text.strip() else None
