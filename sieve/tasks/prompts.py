"""From a row to a prompt: field aliases, truncation, templates, chat templates."""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from sieve.tasks.config import TaskConfig

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z_][\w.\-]*)\}")


class RowReader:
    """Reads fields of the rows of one task, counting the texts that it truncates."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config
        self.template = config.prompt.replace("\\n", "\n")
        self.truncated: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """The fields that the prompt names, in order, each once."""
        found = (match.group(1) for match in _PLACEHOLDER.finditer(self.template))
        return list(dict.fromkeys(name for name in found if name is not None))

    def get(self, row: Mapping[str, Any], name: str) -> Any:
        """The value of a field, or None: the first candidate column that is present."""
        for path in self.config.fields.get(name, [name]):
            value = lookup(row, path)
            if value is not None:
                return value
        return None

    def require(self, row: Mapping[str, Any], name: str, where: str, purpose: str) -> Any:
        """As `get`, but a missing field is a ValueError that says where and what there is.

        `purpose` completes "no field 'x' that ...", `where` is like "row 3 of train".
        """
        value = self.get(row, name)
        if value is None:
            present = ", ".join(k for k, v in row.items() if v is not None) or "nothing"
            tried = self.config.fields.get(name, [name])
            also = f" (tried {', '.join(tried)})" if tried != [name] else ""
            raise ValueError(
                f"task '{self.config.name}': {where} has no field '{name}'{also} that {purpose}; "
                f"it has {present}; set {_remedy(self.config, name)} or "
                f"++task.fields.{name}=[column]."
            )
        return value

    def render(self, row: Mapping[str, Any], where: str, options: str | None = None) -> str:
        """The prompt of one row.

        Args:
            options: text for `{options}`; None where the task has no option list.

        Raises:
            ValueError: the row lacks a field that the prompt names.
        """
        return self.render_with_cut(row, where, options)[0]

    def render_with_cut(
        self, row: Mapping[str, Any], where: str, options: str | None = None
    ) -> tuple[str, tuple[int, int] | None]:
        """As `render`, and where the field stands that may be shortened (`task.truncate`)."""
        parts, end = [self.config.preamble], 0
        cut: tuple[int, int] | None = None
        for match in _PLACEHOLDER.finditer(self.template):
            parts.append(self.template[end : match.start()])
            start = sum(map(len, parts))
            parts.append(self._replace(match, row, where, options))
            if match.group(1) is not None and match.group(1) == self.config.truncate:
                cut = start, start + len(parts[-1])
            end = match.end()
        return "".join([*parts, self.template[end:]]), cut

    def _replace(
        self, match: re.Match[str], row: Mapping[str, Any], where: str, options: str | None
    ) -> str:
        """What stands in the place of {field}, {{ or }}."""
        name = match.group(1)
        if name is None:
            return match.group(0)[0]
        if name == "options" and options is not None:
            return options
        value = self.require(row, name, where, "the prompt names")
        if isinstance(value, Mapping):
            raise ValueError(
                f"task '{self.config.name}': the field '{name}' of {where} is a struct of "
                f"{', '.join(value)}, expected text; name a part of it, "
                f"as ++task.fields.{name}=[{name}.{next(iter(value), 'text')}]."
            )
        return self._truncate(name, as_text(value))

    def _truncate(self, name: str, text: str) -> str:
        limit = self.config.max_words.get(name)
        if limit is None:
            return text
        words = text.split()
        if len(words) <= limit:
            return text
        self.truncated[name] = self.truncated.get(name, 0) + 1
        return " ".join(words[:limit])


def _remedy(config: TaskConfig, name: str) -> str:
    for key in ("label_field", "options_field", "answer_field"):
        if getattr(config, key) == name:
            return f"task.{key}"
    return "task.prompt"


def lookup(row: Any, path: str) -> Any:
    """The value at a column name or dotted path, or None; a list of structs maps over its items."""
    if isinstance(row, Mapping) and path in row:
        return row[path]
    head, dot, rest = path.partition(".")
    if not dot:
        return None
    inner = row.get(head) if isinstance(row, Mapping) else None
    if isinstance(inner, list):
        found = [lookup(item, rest) for item in inner]
        return None if any(value is None for value in found) else found
    return lookup(inner, rest)


def as_text(value: Any) -> str:
    """A field's value as text; the items of a list are joined by line breaks."""
    if isinstance(value, list | tuple):
        return "\n".join(as_text(item) for item in value)
    return str(value)


def apply_chat(
    prompt: str, tokenizer: PreTrainedTokenizerBase, chat: str = "auto"
) -> tuple[str, bool]:
    """The prompt as one user message of the tokenizer's chat template, and whether it was applied.

    Where it was applied the text already holds the special tokens, and a continuation loses its
    leading delimiter.

    Raises:
        ValueError: `chat` is "always" and the tokenizer has no chat template.
    """
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if chat == "never" or (chat == "auto" and not has_template):
        return prompt, False
    if not has_template:
        raise ValueError(
            "task.chat is 'always' but the tokenizer has no chat template, expected one; "
            "set task.chat=never or use an instruction-tuned model."
        )
    message = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return str(text), True
