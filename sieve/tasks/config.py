"""Settings of a task, mirroring `conf/task/*.yaml`.

Only simple types, so that `OmegaConf.structured(TaskConfig)` can hold and check them.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from sieve.tasks.metrics import UNITS, metric_of

ROLES = ("calibration", "selection", "test")
KINDS = ("classification", "multiple_choice", "ranking", "generation", "perplexity")
TYPICAL = ("rows", "tokens", "answer", "passes")
NORMALIZATIONS = ("none", "tokens", "characters", "bytes")
ANSWER_STYLES = ("letter", "text")
CHAT_MODES = ("auto", "always", "never")


def _default_splits() -> dict[str, str | None]:
    return {"calibration": "train", "selection": "validation", "test": "test"}


@dataclass
class TaskConfig:
    """What a task is: where its rows come from and how a row becomes a prompt and answers.

    Rows come from `data_dir` if it is set, else from `almanac`, else from `hub`.
    """

    name: str
    domain: str = "general"
    kind: str = "classification"  # multiple_choice, ranking, generation, perplexity
    # Accuracy, or what the kind has else: reciprocal_rank, ndcg; exact_match, f1; perplexity, bits.
    # A function of yours: {_target_: my_module.my_function}, called with an answer and a list of
    # those that count as right; `best` is the largest value that it gives, 1 by default.
    metric: Any = None
    # The two characters \n mean a line break; {field} is replaced, {{ and }} are literal braces.
    prompt: str = "{text}\nAnswer:"
    delimiter: str = " "  # stands between prompt and answer; left out after a chat template
    chat: str = "auto"  # the tokenizer's chat template: auto (if it has one), always, never
    normalize: str = "none"  # divide an answer's log-likelihood by its tokens, characters, bytes
    preamble: str = ""  # stands before every prompt
    shots: int = 0  # calibration rows shown with their answers before every prompt
    shot_separator: str = "\n\n"
    truncate: str | None = None  # the field that is shortened where a prompt is too long

    # Classification.
    # Answer words, by integer label; empty: the distinct string labels of the data, sorted.
    labels: list[str] = field(default_factory=list)
    label_values: list[str] = field(default_factory=list)  # the data's names, if not the words
    label_field: str = "label"

    # Multiple choice.
    options_field: str = "options"  # a dict letter -> text, or a list of texts
    option_columns: list[str] = field(default_factory=list)  # used when options_field is absent
    # A letter, an index from 0, or an option's text; of generation a text, or a list of those that
    # count as right, the first one to be learnt. Null: answer_idx, and answer for generation.
    answer_field: str | None = None
    answer_from: int = 0  # what an index counts from
    answer_style: str = "letter"  # what is scored: " A", or with "text" the option itself
    option_template: str = "{letter}. {text}"  # one option within {options} of the prompt
    option_separator: str = "\n"

    # Ranking: as multiple choice, with a grade for every option, or the one that is relevant. A
    # prompt that names {option} is rendered for each, and scored by how likely `positive` follows.
    relevance_field: str | None = None  # a list of grades, 0 for what is not relevant
    positive: str = "yes"

    # Generation.
    max_new_tokens: int = 32
    stop: list[str] = field(default_factory=lambda: ["\n"])  # end an answer and are cut off
    extract: str | None = None  # regular expression whose first group, or match, is the answer
    extract_last: bool = False  # of several matches the last one

    judge: dict[str, Any] | None = None  # of metric: judge; see sieve/tasks/judge.py

    # Perplexity: what it is per; the prompt renders the whole text.
    unit: str = "token"  # word, byte

    # Reading a field: prompt field -> candidate columns, the first present one wins; a dot
    # enters a nested column, and the items of a list are joined by line breaks.
    fields: dict[str, list[str]] = field(default_factory=dict)
    max_words: dict[str, int] = field(default_factory=dict)  # field -> words kept, from the start

    # Where the rows come from.
    hub: dict[str, Any] | None = None  # path, name, revision, splits
    data_dir: str | None = None  # train / validation / test files
    almanac: dict[str, Any] | None = None  # domain, dataset
    # The task of lm-evaluation-harness that `name` names: include_path, num_fewshot, filter.
    lm_eval: dict[str, Any] | None = None
    cache_dir: str | None = None  # for `datasets`; null is its own default

    # What a dry run goes by where there are no rows to count: {rows: {role: rows}, tokens: of a row
    # of prompt and answer, answer: of the answer, passes: rows of tokens that a row is scored by}.
    typical: dict[str, Any] = field(default_factory=dict)

    # role -> split of the data set; null, or a split that is not there: carved from calibration.
    splits: dict[str, str | None] = field(default_factory=_default_splits)
    max_rows: dict[str, int | None] = field(default_factory=dict)  # role -> rows

    def __post_init__(self) -> None:
        if self.answer_field is None:
            self.answer_field = "answer" if self.kind == "generation" else "answer_idx"
        # What it was called when tokens were all there was.
        old = {"true": "tokens", "false": "none"}
        self.normalize = old.get(str(self.normalize).lower(), self.normalize)

    def validate(self) -> None:
        """Check what can be checked without data.

        Raises:
            ValueError: a setting is outside what is known.
        """
        _check_choice(self.name, "kind", self.kind, KINDS)
        _check_choice(self.name, "answer_style", self.answer_style, ANSWER_STYLES)
        _check_choice(self.name, "chat", self.chat, CHAT_MODES)
        _check_choice(self.name, "normalize", self.normalize, NORMALIZATIONS)
        _check_choice(self.name, "unit", self.unit, UNITS)
        if self.lm_eval is None:
            metric_of(self.kind, self.metric)
        self._validate_numbers()
        for key in ("splits", "max_rows"):
            for role in getattr(self, key):
                _check_choice(self.name, f"{key} (a role)", role, ROLES)
        for role, rows in self.max_rows.items():
            if rows is not None and rows < 1:
                raise ValueError(
                    f"task '{self.name}': task.max_rows.{role} is {rows}, expected at least 1 "
                    "or null; set it so."
                )
        self._validate_typical()
        self._validate_labels()

    def _validate_numbers(self) -> None:
        for name, words in self.max_words.items():
            if words < 1:
                raise ValueError(
                    f"task '{self.name}': task.max_words.{name} is {words}, expected at least 1; "
                    "raise it or remove it."
                )
        if self.shots < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"task '{self.name}': task.shots is {self.shots} and task.max_new_tokens "
                f"{self.max_new_tokens}, expected at least 0 and 1."
            )
        if self.shots and self.kind == "perplexity":
            raise ValueError(f"task '{self.name}': text has no answers to show; set task.shots=0.")
        if self.extract is not None:
            try:
                re.compile(self.extract)
            except re.error as error:
                raise ValueError(
                    f"task '{self.name}': task.extract is {self.extract!r}, which is no regular "
                    f"expression ({error}); mend it."
                ) from error

    def _validate_typical(self) -> None:
        rows = self.typical.get("rows") or {}
        for key in self.typical:
            _check_choice(self.name, "typical (a key)", key, TYPICAL)
        for role in rows:
            _check_choice(self.name, "typical.rows (a role)", role, ROLES)
        numbers = [*rows.values(), *(v for k, v in self.typical.items() if k != "rows")]
        if any(not isinstance(number, int | float) or number <= 0 for number in numbers):
            raise ValueError(
                f"task '{self.name}': task.typical is {self.typical}, expected numbers above 0; "
                "set them so."
            )

    def _validate_labels(self) -> None:
        words = [label.strip() for label in self.labels]
        if len(set(words)) < len(words) or "" in words:
            raise ValueError(
                f"task '{self.name}': the labels are {self.labels}, expected distinct words; "
                "mend task.labels."
            )
        if self.kind == "classification" and len(words) == 1:
            raise ValueError(
                f"task '{self.name}': got one label {self.labels}, expected at least two; "
                "mend task.labels."
            )
        if self.label_values and len(self.label_values) != len(self.labels):
            raise ValueError(
                f"task '{self.name}': got {len(self.label_values)} label_values for "
                f"{len(self.labels)} labels, expected as many; mend task.label_values."
            )


def _check_choice(task: str, key: str, got: str, allowed: tuple[str, ...]) -> None:
    if got not in allowed:
        raise ValueError(
            f"task '{task}': task.{key} is '{got}', expected one of {', '.join(allowed)}; "
            "choose one of them."
        )
