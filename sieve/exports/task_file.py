"""task.json of an export: how a row becomes a prompt and answers, without the rows themselves.

With it an exported model answers its task: `python -m sieve.serve` reads it. Where the data came
from is not in it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from sieve.runtime.artifacts import write_json_atomic
from sieve.tasks import classification, multiple_choice
from sieve.tasks.config import TaskConfig
from sieve.tasks.example import Example
from sieve.tasks.prompts import RowReader

NAME = "task.json"
FORMAT = 1
# Of rows, and of what they are worth, which answering takes no account of.
SOURCES = (
    "hub", "data_dir", "almanac", "cache_dir", "splits", "max_rows", "metric", "judge", "lm_eval",
    "typical",
)  # fmt: skip


@dataclass(frozen=True)
class TaskFile:
    """A task without its data: settings, whose labels are those that were found in the data."""

    config: TaskConfig

    def question(self, row: Mapping[str, Any], where: str = "the row") -> Example:
        """A row as the task renders it, its answer unknown and given as 0.

        Raises ValueError in one sentence where a field is missing or options do not hold.
        """
        reader = RowReader(self.config)
        if self.config.kind == "classification":
            return classification.to_question(row, reader, self.config.labels, where)
        example = multiple_choice.to_question(row, reader, where, repeated=True)
        # An option that is given twice is one.
        return replace(example, choices=tuple({c.strip(): c for c in example.choices}.values()))

    def words(self, example: Example) -> list[str]:
        """The answers of an example as a person reads them."""
        return [choice.removeprefix(self.config.delimiter) for choice in example.choices]

    def columns(self) -> dict[str, list[str]]:
        """The fields that a row must have, each with the columns that it may stand in."""
        config, names = self.config, RowReader(self.config).names
        if config.kind == "multiple_choice":
            # What the prompt calls {options} is made of these.
            names = [n for n in names if n != "options" or config.options_field == "options"]
            names += [name for name in [config.options_field] if name not in names]
        found = {name: self._paths(name) for name in names}
        if config.kind == "multiple_choice":
            found[config.options_field] += self.option_columns()
        return found

    def option_columns(self) -> list[str]:
        """The columns that hold an option each, where a row has no options as one."""
        return [path for column in self.config.option_columns for path in self._paths(column)]

    def _paths(self, name: str) -> list[str]:
        return list(self.config.fields.get(name, [name]))


def write_task(
    config: TaskConfig, labels: tuple[str, ...], folder: Path, preamble: str | None = None
) -> None:
    """Write `task.json` into an export.

    labels: those of the task, empty where it has none; preamble: what stands before every prompt,
    shots included, by default the settings' own.
    """
    held = {k: v for k, v in asdict(config).items() if k not in SOURCES} | {"labels": list(labels)}
    if preamble is not None:
        held |= {"preamble": preamble, "shots": 0}
    write_json_atomic(folder / NAME, {"format": FORMAT, "task": held})


def read_task(folder: str | Path) -> TaskFile:
    """The task of an export; ValueError in one sentence where it has none or it does not hold."""
    path = Path(folder).expanduser() / NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {NAME}, expected an export that a run has written; run "
            "python -m sieve.run again, or copy the file from another export of the task."
        )
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(TaskConfig)}
        held["task"] = {k: v for k, v in held["task"].items() if k not in ("metric", "judge")}
        if held["format"] != FORMAT or not set(held["task"]) <= known:
            raise ValueError("it is of another version")
        config = TaskConfig(**held["task"])
        _check_types(config)
        config.validate()
        # A field may also stand under its own name, after those that the data's rows have.
        config.fields = {k: list(dict.fromkeys([*v, k])) for k, v in config.fields.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold ({error}); export the model again.") from error
    return TaskFile(config)


def _check_types(config: TaskConfig) -> None:
    """ValueError where a setting is not of the type that rendering a row relies upon."""
    for key, default in asdict(TaskConfig("")).items():
        value = getattr(config, key)
        if default is not None and type(value) is not type(default):
            raise ValueError(f"{key} is {value!r}, expected a {type(default).__name__}")
    texts = [config.labels, config.label_values, config.option_columns, *config.fields.values()]
    if not all(isinstance(held, list) and all(isinstance(t, str) for t in held) for held in texts):
        raise ValueError("labels and fields are lists of texts")
    if not all(type(words) is int for words in config.max_words.values()):
        raise ValueError(f"max_words is {config.max_words}, expected whole numbers")
    if config.kind == "classification" and len(config.labels) < 2:
        raise ValueError(f"labels is {config.labels}, expected at least two")
