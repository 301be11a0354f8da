"""Multiple choice: each row has its own options; their letters or their texts are scored."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from string import ascii_uppercase

from sieve.tasks.example import Example, Row
from sieve.tasks.prompts import RowReader, as_text

_OPTION_PART = re.compile(r"\{letter\}|\{text\}")


def read_options(row: Row, reader: RowReader, where: str) -> dict[str, str]:
    """Letter -> option text, in order.

    The field may be a dict letter -> text, a list of texts, a list of {key, value}, a dict of the
    lists `text` and `label`, or any of these as JSON text. Or each option has its own column.

    Raises:
        ValueError: there are no options, fewer than two, or they have another form.
    """
    config = reader.config
    value = reader.get(row, config.options_field)
    columns = [reader.get(row, column) for column in config.option_columns]
    if value is None and any(column is not None for column in columns):
        value = columns
    if value is None:
        value = reader.require(row, config.options_field, where, "holds the options")
    options = _as_options(value)
    if options is None or len(options) < 2:
        raise ValueError(
            f"task '{config.name}': {where} has the options {value!r}, expected at least two as "
            "a dict letter -> text or a list of texts; correct the row or set task.options_field."
        )
    return options


def _as_options(value: object) -> dict[str, str] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    if isinstance(value, Mapping):
        texts = value.get("text")
        if isinstance(texts, list):
            letters = value.get("label") or ascii_uppercase
            return {str(k): as_text(v) for k, v in zip(letters, texts, strict=False)}
        # In Parquet, letters that a row lacks are null.
        return {str(k): as_text(v) for k, v in value.items() if v is not None}
    if not isinstance(value, list):
        return None
    if all(isinstance(item, Mapping) for item in value):
        return {str(item.get("key")): as_text(item.get("value")) for item in value}
    texts = [as_text(item) for item in value if item is not None]
    if len(value) > len(ascii_uppercase):
        return None
    return dict(zip(ascii_uppercase, texts, strict=False))


def answer_index(value: object, options: Mapping[str, str], first: int = 0) -> int | None:
    """The index of the right option: by its letter, its text, or an index counted from `first`."""
    letters = list(options)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        text = value.strip()
        folded = [letter.casefold() for letter in letters]
        for name, names in (
            (text, letters),
            (text, list(options.values())),
            (text.casefold(), folded),
        ):
            if name in names:
                return names.index(name)
        value = int(text) if text.isdecimal() else None
    if isinstance(value, int) and 0 <= value - first < len(letters):
        return int(value) - first
    return None


def to_example(row: Row, reader: RowReader, where: str) -> Example:
    """An example whose choices are the letters of the options, or their texts.

    Raises:
        ValueError: the row lacks a field, its answer is not an option, or two options are the same.
    """
    config = reader.config
    options = read_options(row, reader, where)
    value = reader.require(row, config.answer_field or "", where, "holds the answer")
    answer = answer_index(value, options, config.answer_from)
    if answer is None:
        last = config.answer_from + len(options) - 1
        raise ValueError(
            f"task '{config.name}': {where} has the answer {value!r}, expected one of "
            f"{', '.join(options)} or {config.answer_from} to {last}; correct the row or set "
            "task.answer_field."
        )
    return replace(to_question(row, reader, where), answer=answer)


def to_question(row: Row, reader: RowReader, where: str, repeated: bool = False) -> Example:
    """As `to_example` for a row without an answer; `answer` is 0.

    repeated: allow that two options are the same.
    """
    config, options = reader.config, read_options(row, reader, where)
    words = list(options) if config.answer_style == "letter" else list(options.values())
    if not repeated and len({word.strip() for word in words}) < len(words):
        raise ValueError(
            f"task '{config.name}': {where} has the same option twice in {words}, expected "
            "distinct options; correct the row or set task.answer_style=letter."
        )
    choices = tuple(config.delimiter + word for word in words)
    prompt, cut = reader.render_with_cut(row, where, list_options(options, reader))
    return Example(prompt, choices, 0, cut=cut)


def list_options(options: Mapping[str, str], reader: RowReader) -> str:
    """The text for `{options}` in a prompt: by default "A. text", one option per line."""
    separator = reader.config.option_separator.replace("\\n", "\n")
    template = reader.config.option_template
    return separator.join(_list_option(template, *option) for option in options.items())


def _list_option(template: str, letter: str, text: str) -> str:
    values = {"{letter}": letter, "{text}": text}
    return _OPTION_PART.sub(lambda part: values[part.group()], template)
