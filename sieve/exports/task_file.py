"""task.json in an export: how a row becomes a prompt and answers, but not where the rows are.

With it an exported model can answer its task; `sieve.serve` and `sieve.predict` read it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from sieve.runtime.artifacts import write_json_atomic
from sieve.tasks import classification, free_text, multiple_choice, ranking
from sieve.tasks.build import writing_of
from sieve.tasks.config import TaskConfig
from sieve.tasks.example import Example, Row
from sieve.tasks.metrics import metric_of
from sieve.tasks.prompts import RowReader
from sieve.tasks.task import Task

NAME = "task.json"
FORMAT = 1
# Settings that say where rows come from or how answers are scored.
OMITTED = ("hub data_dir almanac cache_dir splits max_rows metric judge lm_eval typical").split()


@dataclass(frozen=True)
class TaskFile:
    """A task without its data: its settings, with the labels that were in the data."""

    config: TaskConfig

    def question(self, row: Row, where: str = "the row") -> Example:
        """The example of a row without an answer; its `answer` is 0.

        A text of a perplexity task that is empty has no choices. Raises ValueError if a field is
        missing or the options are invalid.
        """
        reader, kind = RowReader(self.config), self.config.kind
        if kind == "classification":
            return classification.to_question(row, reader, self.config.labels, where)
        if kind == "ranking":
            return ranking.to_question(row, reader, where)
        if kind == "generation":
            return free_text.to_question(row, reader, where)
        if kind == "perplexity":
            return free_text.to_text(row, reader, where) or Example("", (), 0)
        example = multiple_choice.to_question(row, reader, where, repeated=True)
        # An option that occurs twice counts once.
        return replace(example, choices=tuple({c.strip(): c for c in example.choices}.values()))

    def labelled(self, row: Row) -> Example | None:
        """The example of a row with its right answer; None if the row has no valid answer."""
        reader, kind = RowReader(self.config), self.config.kind
        try:
            if kind == "classification":
                return classification.to_example(row, reader, self.config.labels, "")
            if kind == "ranking":
                return ranking.to_example(row, reader, "")
            if kind == "generation":
                return free_text.to_generation(row, reader, "")
            return multiple_choice.to_example(row, reader, "")
        except ValueError:
            return None

    def words(self, example: Example) -> list[str]:
        """The answers of an example without the delimiter."""
        return [choice.removeprefix(self.config.delimiter) for choice in example.choices]

    def options(self, row: Row, example: Example) -> list[str]:
        """As `words`; for a ranking the texts of a row's options."""
        if self.config.kind != "ranking":
            return self.words(example)
        return list(multiple_choice.read_options(row, RowReader(self.config), "").values())

    def task(self) -> Task:
        """The task without rows, as a model reads it."""
        config, writes = self.config, self.config.kind == "generation"
        return Task(
            name=config.name,
            domain=config.domain,
            metric=metric_of(config.kind, None),
            splits={},
            report={},
            chat=config.chat,
            delimiter=config.delimiter,
            normalize=config.normalize,
            labels=tuple(config.labels),
            kind=config.kind,
            writing=writing_of(config) if writes else None,
            unit=config.unit,
            preamble=config.preamble,
        )

    def columns(self) -> dict[str, list[str]]:
        """The fields that a row needs; for each the columns that may contain it."""
        config, names = self.config, RowReader(self.config).names
        if config.kind != "multiple_choice":
            return {name: self.paths(name) for name in names}
        options = config.options_field  # {options} in a prompt is rendered from this field.
        names = [name for name in names if name != "options" or options == "options"]
        paths = {name: self.paths(name) for name in (*names, options)}
        paths[options] += self.option_columns()
        return paths

    def option_columns(self) -> list[str]:
        """The columns with one option each, which a row may have instead of the options field."""
        return [path for column in self.config.option_columns for path in self.paths(column)]

    def paths(self, name: str) -> list[str]:
        """The columns that may contain a field of a row."""
        return list(self.config.fields.get(name, [name]))


def write_task(
    config: TaskConfig,
    labels: tuple[str, ...],
    folder: Path,
    preamble: str | None = None,
    storage: Mapping[str, object] | None = None,
) -> None:
    """Write `task.json` into an export.

    Args:
        labels: the labels of the task; empty if it has none.
        preamble: the text before every prompt, with shots; None uses the settings' own.
        storage: the form of the factors and the bytes of both forms, for readers; loading does
            not use it.
    """
    task = {k: v for k, v in asdict(config).items() if k not in OMITTED} | {"labels": list(labels)}
    if preamble is not None:
        task |= {"preamble": preamble, "shots": 0}
    note = {} if storage is None else {"storage": storage}
    write_json_atomic(folder / NAME, {"format": FORMAT, "task": task} | note)


def find_export(folder: str | Path) -> Path:
    """A folder itself, or the export in it if it is a run's; a task's runs are suggested.

    Raises:
        ValueError: there is no such folder, or it has the exports of several runs.
    """
    path = Path(folder).expanduser()
    if not path.exists():
        raise ValueError(
            f"there is no {folder}, expected the folder of a run or its export, such as "
            "runs/medqa/<date>_<time>; check the path."
        )
    if (path / NAME).is_file():
        return path
    if (path / "export" / NAME).is_file():
        return path / "export"
    if exports := sorted(path.glob(f"*/export/{NAME}")):
        raise ValueError(
            f"{folder} has the exports of {len(exports)} runs, expected one export; the newest is "
            f"{exports[-1].parent}."
        )
    return path


def read_task(folder: str | Path) -> TaskFile:
    """The task of an export, or of a task.json; ValueError if it is missing or invalid."""
    path = Path(folder).expanduser()
    path = path if path.is_file() else path / NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {NAME}, expected an export that a run has written; run "
            "python -m sieve.run again, or copy the file from another export of the task."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        task = {k: v for k, v in content["task"].items() if k not in ("metric", "judge")}
        if content["format"] != FORMAT or not task.keys() <= {f.name for f in fields(TaskConfig)}:
            raise ValueError("it is of another version")
        config = TaskConfig(**task)
        _check_types(config)
        config.validate()
        # Rows may also name a field as the prompt does; the columns of the data come first.
        config.fields = {k: list(dict.fromkeys([*v, k])) for k, v in config.fields.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is invalid ({error}); export the model again.") from error
    return TaskFile(config)


def _check_types(config: TaskConfig) -> None:
    """Raise ValueError if a setting does not have the type that rendering a row needs."""
    for key, default in asdict(TaskConfig("")).items():
        value = getattr(config, key)
        if default is not None and type(value) is not type(default):
            raise ValueError(f"{key} is {value!r}, expected a {type(default).__name__}")
    lists = [config.labels, config.label_values, config.option_columns, *config.fields.values()]
    if not all(isinstance(v, list) and all(isinstance(text, str) for text in v) for v in lists):
        raise ValueError("labels and fields must be lists of texts")
    if not all(type(words) is int for words in config.max_words.values()):
        raise ValueError(f"max_words is {config.max_words}, expected whole numbers")
    if config.kind == "classification" and len(config.labels) < 2:
        raise ValueError(f"labels is {config.labels}, expected at least two")
