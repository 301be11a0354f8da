"""Columns of a prompt that contain the answer, so that a model need not find it."""

import re
from collections import Counter

from sieve.tasks.example import Example, Row
from sieve.tasks.prompts import RowReader, as_text

LOOKED = 1_000  # rows at most
FEWEST = 10  # rows at least, before a column is blamed
MOST = 0.95  # the largest share of rows in which a column may contain the answer


class AnswerLeaks:
    """Counts the calibration rows in which a column of the prompt contains the answer."""

    def __init__(self, reader: RowReader) -> None:
        self.reader, self.config = reader, reader.config
        skipped = {"options", "option", *self.config.option_columns, self.config.options_field}
        self.names = [name for name in reader.names if name not in skipped]
        self.rows = 0
        self.leaking = Counter[str]()  # by column

    def look(self, row: Row, example: Example) -> None:
        """Count a row."""
        if self.rows == LOOKED or not self.config.answer_columns:
            return
        self.rows += 1
        for name in self.names:
            text = _text(self.reader.get(row, name))
            self.leaking[name] += _tells(text, row, example, self.reader)

    def check(self) -> None:
        """Raise ValueError if a column contains the answer in nearly all rows."""
        for name, rows in self.leaking.items():
            if self.rows >= FEWEST and rows > MOST * self.rows:
                raise ValueError(
                    f"task '{self.config.name}': the column '{name}' of the prompt contains the "
                    f"answer in {rows} of {self.rows} calibration rows, expected a prompt without "
                    f"it; remove {{{name}}} from task.prompt, or the answer from the column."
                )


def _tells(text: str, row: Row, example: Example, reader: RowReader) -> bool:
    """Whether a text is the answer, or for classification contains it and no other label."""
    config = reader.config
    values = [_text(reader.get(row, name)) for name in config.answer_columns]
    choices = [choice.removeprefix(config.delimiter) for choice in example.choices]
    answers = [*values, *example.references, choices[example.answer]]
    if text.strip() and text.strip() in map(str.strip, answers):
        return True
    wrong = [word for index, word in enumerate(choices) if index != example.answer]
    return (
        config.kind == "classification"
        and contains(text, choices[example.answer])
        and not any(contains(text, word) for word in wrong)
    )


def _text(value: object) -> str:
    return "" if value is None else as_text(value)


def contains(text: str, words: str) -> bool:
    """Whether a text contains an answer as whole words, in any case."""
    pattern = rf"(?<!\w){re.escape(words.strip().casefold())}(?!\w)"
    return bool(words.strip()) and re.search(pattern, text.casefold()) is not None
