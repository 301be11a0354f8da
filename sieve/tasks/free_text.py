"""Rows without a list of answers: questions with a free answer (`generation`), and plain text."""

from dataclasses import replace

from sieve.tasks.example import NO_ANSWER, Example, Row
from sieve.tasks.prompts import RowReader, as_text


def to_generation(row: Row, reader: RowReader, where: str) -> Example:
    """A prompt and all answers that count as right; calibration uses the first one.

    Raises:
        ValueError: the row lacks a field, or has no answer.
    """
    config = reader.config
    field = config.answer_field or "answer"
    value = reader.require(row, field, where, "holds the answer")
    texts = [as_text(item).strip() for item in (value if isinstance(value, list) else [value])]
    references = tuple(dict.fromkeys(text for text in texts if text))
    if not references:
        raise ValueError(
            f"task '{config.name}': {where} has an empty '{field}', expected an answer as text or "
            "a list of texts; correct the row or set task.answer_field."
        )
    choice = config.delimiter + references[0]
    return replace(to_question(row, reader, where), choices=(choice,), references=references)


def to_question(row: Row, reader: RowReader, where: str) -> Example:
    """As `to_generation` for a row without an answer."""
    prompt, cut = reader.render_with_cut(row, where)
    return Example(prompt, (reader.config.delimiter + NO_ANSWER,), 0, cut=cut)


def to_text(row: Row, reader: RowReader, where: str) -> Example | None:
    """A text whose every token is predicted; None where the row's text is empty."""
    text = reader.render(row, where)
    return Example("", (text,), 0) if text.strip() else None
