"""Multiple choice: every row brings its own options; letters or the option texts are scored."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from sieve.tasks.example import Example
from sieve.tasks.prompts import RowReader, as_text

_OPTION_PART = re.compile(r"\{letter\}|\{text\}")


def read_options(row: Mapping[str, Any], reader: RowReader, where: str) -> dict[str, str]:
    """Letter -> option text, in order.

    Understood are a dict letter -> text, a list of texts, a list of {key, value}, a dict of the
    lists text and label, the same as JSON text (CSV), and one column per option.

    Raises:
        ValueError: there are no options, fewer than two, or of another form.
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
            f"task '{config.name}': {where} has the options {value!r}, expected at least two, as "
            "a dict from letter to text or a list of texts; mend the row or task.options_field."
        )
    return options


def _as_options(value: Any) -> dict[str, str] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        letters = value.get("label") or ascii_uppercase
        return {str(k): as_text(v) for k, v in zip(letters, value["text"], strict=False)}
    if isinstance(value, Mapping):
        # A reader of columns fills the letters that a row lacks with nulls.
        return {str(k): as_text(v) for k, v in value.items() if v is not None}
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        return {str(item.get("key")): as_text(item.get("value")) for item in value}
    if isinstance(value, list) and len(value) <= len(ascii_uppercase):
        texts = [item for item in value if item is not None]
        return {letter: as_text(v) for letter, v in zip(ascii_uppercase, texts, strict=False)}
    return None


def answer_index(value: Any, options: Mapping[str, str], first: int = 0) -> int | None:
    """Position of the right option: by its letter, its text, or an index from `first` on."""
    letters = list(options)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        text = value.strip()
        for names in (letters, list(options.values())):
            if text in names:
                return names.index(text)
        folded = [letter.casefold() for letter in letters]
        if text.casefold() in folded:
            return folded.index(text.casefold())
        value = int(text) if text.isdecimal() else None
    if isinstance(value, int) and 0 <= value - first < len(letters):
        return int(value) - first
    return None


def to_example(row: Mapping[str, Any], reader: RowReader, where: str) -> Example:
    """One row as an example whose choices are its letters or its option texts.

    Raises:
        ValueError: a field is missing, the answer is none of the options, or two are the same.
    """
    config = reader.config
    options = read_options(row, reader, where)
    value = reader.require(row, config.answer_field or "", where, "holds the answer")
    answer = answer_index(value, options, config.answer_from)
    if answer is None:
        raise ValueError(
            f"task '{config.name}': {where} has the answer {value!r}, expected one of "
            f"{', '.join(options)} or 0 to {len(options) - 1}; mend the row or task.answer_field."
        )
    return replace(to_question(row, reader, where), answer=answer)


def to_question(
    row: Mapping[str, Any], reader: RowReader, where: str, repeated: bool = False
) -> Example:
    """As `to_example`, of a row whose answer is not known; it is given as 0.

    repeated: whether an option may be there twice.
    """
    config, options = reader.config, read_options(row, reader, where)
    words = list(options) if config.answer_style == "letter" else list(options.values())
    if not repeated and len({word.strip() for word in words}) < len(words):
        raise ValueError(
            f"task '{config.name}': {where} has the same option twice in {words}, expected "
            "distinct options; mend the row or set task.answer_style=letter."
        )
    choices = tuple(config.delimiter + word for word in words)
    prompt, cut = reader.render_with_cut(row, where, list_options(options, reader))
    return Example(prompt, choices, 0, cut=cut)


def list_options(options: Mapping[str, str], reader: RowReader) -> str:
    """The text that stands for `{options}` in a prompt: by default "A. text", one per line."""
    template = reader.config.option_template
    separator = reader.config.option_separator.replace("\\n", "\n")
    return separator.join(_list_option(template, *item) for item in options.items())


def _list_option(template: str, letter: str, text: str) -> str:
    values = {"{letter}": letter, "{text}": text}
    return _OPTION_PART.sub(lambda part: values[part.group()], template)
