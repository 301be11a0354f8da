"""From a row to a prompt: columns of a field, truncation, templates, chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sieve.tasks.config import TaskConfig
from sieve.tasks.example import Row
from sieve.tasks.placeholders import PLACEHOLDER, names_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RowReader:
    """Reads the fields of a task's rows, and counts texts that are empty or truncated.

    In all methods `where` names the row in messages, as "row 3 of train".

    setting: the setting that holds the prompt, for messages.
    """

    def __init__(self, config: TaskConfig, setting: str = "task.prompt") -> None:
        self.config, self.setting = config, setting
        self.template = config.prompt.replace("\\n", "\n")
        self.truncated: dict[str, int] = {}  # by `max_words`
        self.empty: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """The fields that the prompt names, each once, in order."""
        return names_in(self.template)

    def get(self, row: Row, name: str) -> object:
        """The value of a field from the first of its columns that the row has, or None."""
        values = (lookup(row, path) for path in self.config.fields.get(name, [name]))
        return next((value for value in values if value is not None), None)

    def require(self, row: Row, name: str, where: str, purpose: str) -> object:
        """The value of a field.

        Args:
            purpose: completes the message "no field 'x' that ...".

        Raises:
            ValueError: the row does not have the field.
        """
        value = self.get(row, name)
        if value is None:
            present = ", ".join(repr(k) for k, v in row.items() if v is not None) or "no field"
            tried = self.config.fields.get(name, [name])
            also = f" (tried {', '.join(tried)})" if tried != [name] else ""
            keys = ("label_field", "options_field", "answer_field")
            holders = (f"task.{key}" for key in keys if getattr(self.config, key) == name)
            setting = next(holders, self.setting)
            answers = setting in ("task.label_field", "task.answer_field")
            hint = " For rows without labels set task.metric=agreement." if answers else ""
            if not answers and not name.isidentifier():
                hint = " For braces in a prompt write {{ and }}."
            raise ValueError(
                f"task '{self.config.name}': {where} has no field '{name}'{also} that {purpose}; "
                f"it has {present}; set {setting} or ++task.fields.{name}=[column].{hint}"
            )
        return value

    def render(self, row: Row, where: str, options: str | None = None) -> str:
        """The prompt of a row, see `render_with_cut`."""
        return self.render_with_cut(row, where, options)[0]

    def render_with_cut(
        self, row: Row, where: str, options: str | None = None
    ) -> tuple[str, tuple[int, int] | None]:
        """A row's prompt, and where the text to shorten (`task.truncate`) begins and ends in it.

        Args:
            options: the text for `{options}`; None if the task has no list of options.

        Raises:
            ValueError: the row lacks a field that the prompt names.
        """
        prompt, end, cut = self.config.preamble, 0, None
        for match in PLACEHOLDER.finditer(self.template):
            prompt += self.template[end : match.start()]
            start, name = len(prompt), match.group(1)
            if name is None:  # {{ or }}
                prompt += match.group()[0]
            else:
                prompt += self._text(row, name, where, options)
                if name == self.config.truncate:
                    cut = start, len(prompt)
            end = match.end()
        return prompt + self.template[end:], cut

    def _text(self, row: Row, name: str, where: str, options: str | None) -> str:
        """The text that replaces {name} in a prompt."""
        if name == "options" and options is not None:
            return options
        value = self.require(row, name, where, "the prompt names")
        if isinstance(value, Mapping):
            raise ValueError(
                f"task '{self.config.name}': the field '{name}' of {where} is a struct of "
                f"{', '.join(value)}, expected text; select a part of it with "
                f"++task.fields.{name}=[{name}.{next(iter(value), 'text')}]."
            )
        text, limit = as_text(value), self.config.max_words.get(name)
        if not text.strip():
            self.empty[name] = self.empty.get(name, 0) + 1
        words = text.split() if limit is not None else []
        if limit is None or len(words) <= limit:
            return text
        self.truncated[name] = self.truncated.get(name, 0) + 1
        return " ".join(words[:limit])


def lookup(row: object, path: str) -> object:
    """The value at a column name or dotted path, or None; a list of structs gives a list."""
    if isinstance(row, Mapping) and path in row:
        return row[path]
    head, dot, rest = path.partition(".")
    if not dot:
        return None
    inner = row.get(head) if isinstance(row, Mapping) else None
    if isinstance(inner, list):
        values = [lookup(item, rest) for item in inner]
        return None if any(value is None for value in values) else values
    return lookup(inner, rest)


def as_text(value: object) -> str:
    """A field's value as text; the items of a list are joined by line breaks."""
    if isinstance(value, list | tuple):
        return "\n".join(as_text(item) for item in value)
    return str(value)


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has a chat template."""
    return getattr(tokenizer, "chat_template", None) is not None


def apply_chat(
    prompt: str, tokenizer: PreTrainedTokenizerBase, chat: str = "auto"
) -> tuple[str, bool]:
    """The prompt as one user message of the chat template, and whether a template was applied.

    If it was, the text already contains the special tokens, and an answer follows without its
    leading delimiter.

    Raises:
        ValueError: `chat` is "always" and the tokenizer has no chat template.
    """
    if chat == "never" or (chat == "auto" and not has_template(tokenizer)):
        return prompt, False
    if not has_template(tokenizer):
        raise ValueError(
            "task.chat is 'always' but the tokenizer has no chat template, expected one; "
            "set task.chat=never or use an instruction-tuned model."
        )
    message = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return str(text), True
