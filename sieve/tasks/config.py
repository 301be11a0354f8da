"""Settings of a task; `conf/task/*.yaml` has the same keys.

All types are simple, so that `OmegaConf.structured(TaskConfig)` can check them.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from sieve.tasks.metrics import AGREEMENT, METRICS, UNITS, metric_of
from sieve.tasks.placeholders import fault, names_in

ROLES = ("calibration", "selection", "test")
UNLABELLED = "unlabelled"  # the file of rows without labels, beside the splits
KINDS = tuple(METRICS)
SERVED = ("classification", "multiple_choice", "generation")  # kinds that the server answers
CHOICE_KINDS = ("classification", "multiple_choice")  # tasks with one right choice of several
ANSWER_STYLES = ("letter", "text")
AUTO = "auto"  # of `chat` and `shots`: a run measures prompts and takes the best
CHAT_MODES = (AUTO, "always", "never")
NORMALIZATIONS = ("none", "tokens", "characters", "bytes")
TYPICAL = ("rows", "tokens", "answer", "passes")


def _default_splits() -> dict[str, str | None]:
    return {"calibration": "train", "selection": "validation", "test": "test"}


@dataclass
class TaskConfig:
    """What a task is: where its rows come from, and how a row becomes a prompt and answers.

    Rows come from `data_dir` if it is set, else from `almanac`, else from `hub`.
    """

    name: str
    domain: str = "general"
    kind: str = "classification"  # multiple_choice, ranking, generation, perplexity
    # accuracy, reciprocal_rank, ndcg; for generation exact_match, f1, judge; for perplexity
    # perplexity, bits. agreement: the dense model's own answers are right, no labels are read.
    # Null is the default of the kind. A function of yours:
    # {_target_: my_module.my_function}, called with a predicted answer and the list of right
    # answers; set `best` if it can return more than 1.
    metric: Any = None
    # {field} is replaced, {{ and }} are literal braces, the two characters \n are a line break.
    prompt: str = "{text}\nAnswer:"
    delimiter: str = " "  # between prompt and answer; omitted after a chat template
    # The tokenizer's chat template: always, never, or auto: if the dense model does better with it.
    chat: str = AUTO
    normalize: str = "none"  # divide an answer's log-likelihood by its tokens, characters, bytes
    preamble: str = ""  # precedes every prompt
    # Calibration rows shown with their answers before every prompt; auto: 0, 2, 4 or 8, measured.
    shots: int | str = 0
    shot_separator: str = "\n\n"
    truncate: str | None = None  # field that is shortened where a prompt exceeds the context

    # Classification.
    # The answer of each integer label; empty: the sorted distinct string labels of the data.
    labels: list[str] = field(default_factory=list)
    label_values: list[str] = field(default_factory=list)  # how the data names the labels
    label_field: str = "label"

    # Multiple choice.
    options_field: str = "options"  # a dict letter -> text, or a list of texts
    option_columns: list[str] = field(default_factory=list)  # used if options_field is absent
    # A letter, an index, or an option's text. For generation a text or a list of right answers,
    # of which calibration uses the first. Null: answer_idx, and answer for generation.
    answer_field: str | None = None
    answer_from: int = 0  # the lowest index
    answer_style: str = "letter"  # score " A", or with "text" the option itself
    option_template: str = "{letter}. {text}"  # an option within {options} of the prompt
    option_separator: str = "\n"

    # Ranking: multiple choice with a grade for each option, or one relevant option. A prompt that
    # names {option} is rendered for each, and scored by how likely `positive` is to follow.
    relevance_field: str | None = None  # a list of grades, 0 for irrelevant options
    positive: str = "yes"

    # Generation.
    max_new_tokens: int = 32
    stop: list[str] = field(default_factory=lambda: ["\n"])  # strings that end an answer, cut off
    extract: str | None = None  # regular expression; its first group or its match is the answer
    extract_last: bool = False  # use the last match instead of the first
    judge: dict[str, Any] | None = None  # for metric: judge; see sieve/tasks/judge.py

    # Perplexity. The prompt renders the whole text.
    unit: str = "token"  # perplexity per token, word or byte

    # Field of the prompt -> columns; the first one that the row has is used. A dot enters a nested
    # column; the items of a list are joined by line breaks.
    fields: dict[str, list[str]] = field(default_factory=dict)
    max_words: dict[str, int] = field(default_factory=dict)  # field -> words kept, from the start

    # Where the rows come from.
    hub: dict[str, Any] | None = None  # path, name, revision, splits, streaming, rows
    data_dir: str | None = None  # train / validation / test files
    almanac: dict[str, Any] | None = None  # domain, dataset
    # The task `name` of lm-evaluation-harness: include_path, num_fewshot, filter.
    lm_eval: dict[str, Any] | None = None
    cache_dir: str | None = None  # of the package `datasets`; null is its default

    # For a dry run without rows: {rows: {role: rows}, tokens: of a prompt with its answer, answer:
    # tokens of the answer, passes: sequences that scoring one row takes}.
    typical: dict[str, Any] = field(default_factory=dict)

    # role -> split of the data set; null or a missing split: carved from calibration.
    splits: dict[str, str | None] = field(default_factory=_default_splits)
    max_rows: dict[str, int | None] = field(default_factory=dict)  # role -> rows
    selection_rows: int = 0  # missing ones are taken from calibration; `search.rows` sets this

    def __post_init__(self) -> None:
        if self.answer_field is None:
            self.answer_field = "answer" if self.kind == "generation" else "answer_idx"

    def validate(self) -> None:
        """ValueError for a setting that is wrong whatever the data."""
        self._check_name()
        self._check_choices()
        if self.lm_eval is None:
            metric_of(self.kind, self.metric)
            self._check_prompt()
        self._check_numbers()
        if self.shots and self.kind == "perplexity":
            raise self._error(
                f"task.shots is {self.shots}, expected 0 because texts have no answers to show; "
                "set task.shots=0."
            )
        if self.shots == AUTO and self.lm_eval is not None:
            raise self._error(
                "task.shots is auto, expected a number because lm-evaluation-harness draws the "
                "shots of its tasks; set task.shots=0 and ++task.lm_eval.num_fewshot."
            )
        try:
            re.compile(self.extract or "")
        except re.error as error:
            raise self._error(
                f"task.extract is {self.extract!r}, which is not a regular expression ({error}); "
                "correct it."
            ) from error
        self._check_labels()

    def _check_name(self) -> None:
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise self._error(
                f"task.name is {self.name!r}, expected letters, digits, '_', '-', '+' and '.', "
                "because it names a folder; set task.name=my_task."
            )

    def _check_prompt(self) -> None:
        """The prompt must name columns, and not the column with the answer."""
        if (wrong := fault(self.prompt)) is not None:
            raise self._error(f"task.prompt is {self.prompt!r}, which {wrong}.")
        leaking = [
            name
            for name in names_in(self.prompt)
            if {name, *self.fields.get(name, [])} & self.answer_columns
        ]
        if leaking:
            raise self._error(
                f"task.prompt shows {{{leaking[0]}}}, the column with the answer, expected a "
                f"prompt without it; remove {{{leaking[0]}}}."
            )

    @property
    def answer_columns(self) -> set[str]:
        """The columns with the right answers; none where the dense model's answers are right."""
        if self.metric == AGREEMENT or self.kind == "perplexity":
            return set()
        if self.kind == "classification":
            return {self.label_field}
        answer = self.relevance_field if self.kind == "ranking" else None
        return {answer or self.answer_field or ""}

    def _check_choices(self) -> None:
        for key, allowed in (
            ("kind", KINDS),
            ("answer_style", ANSWER_STYLES),
            ("chat", CHAT_MODES),
            ("normalize", NORMALIZATIONS),
            ("unit", UNITS),
        ):
            self._check_choice(key, getattr(self, key), allowed)
        if isinstance(self.shots, str):
            self._check_choice("shots", self.shots, (AUTO,))
        for key, roles in (
            ("splits", self.splits),
            ("max_rows", self.max_rows),
            ("typical.rows", self.typical.get("rows") or {}),
        ):
            for role in roles:
                self._check_choice(f"{key} (a role)", role, ROLES)
        for key in self.typical:
            self._check_choice("typical (a key)", key, TYPICAL)

    def _check_numbers(self) -> None:
        lowest: dict[str, tuple[int | None, int]] = {
            "selection_rows": (self.selection_rows, 0),
            "shots": (None if isinstance(self.shots, str) else self.shots, 0),
            "max_new_tokens": (self.max_new_tokens, 1),
            **{f"max_words.{name}": (words, 1) for name, words in self.max_words.items()},
            **{f"max_rows.{role}": (rows, 1) for role, rows in self.max_rows.items()},
        }
        for key, (number, low) in lowest.items():
            if number is not None and number < low:
                raise self._error(f"task.{key} is {number}, expected at least {low}; raise it.")
        rows = self.typical.get("rows") or {}
        numbers = [*rows.values(), *(v for k, v in self.typical.items() if k != "rows")]
        if any(not isinstance(number, int | float) or number <= 0 for number in numbers):
            raise self._error(
                f"task.typical is {self.typical}, expected only numbers above 0; correct it."
            )

    def _check_labels(self) -> None:
        words = [label.strip() for label in self.labels]
        if len(set(words)) < len(words) or "" in words:
            raise self._error(
                f"the labels are {self.labels}, expected distinct words; correct task.labels."
            )
        if self.kind == "classification" and len(words) == 1:
            raise self._error(
                f"got one label {self.labels}, expected at least two; correct task.labels."
            )
        if self.label_values and len(self.label_values) != len(self.labels):
            raise self._error(
                f"got {len(self.label_values)} label_values for {len(self.labels)} labels, "
                "expected equally many; correct task.label_values."
            )

    def _check_choice(self, key: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise self._error(
                f"task.{key} is '{value}', expected one of {', '.join(allowed)}; choose one."
            )

    def _error(self, message: str) -> ValueError:
        return ValueError(f"task '{self.name}': {message}")
