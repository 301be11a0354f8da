"""The short prompt of a pruned model whose dense teacher reads a long one.

With `recovery.student_prompt` every row is rendered twice: as the dense model reads it, with
instruction and examples shown, and as the pruned model reads it. Training bakes the rest of the
long prompt into the weights. It cannot bake in what differs from row to row and decides the answer,
so a short prompt that drops such a field is an error.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from sieve.runtime.progress import is_rank_zero
from sieve.tasks.config import TaskConfig
from sieve.tasks.example import Example, Row
from sieve.tasks.leaks import contains
from sieve.tasks.multiple_choice import read_options
from sieve.tasks.prompts import RowReader, as_text
from sieve.tasks.task import Task

log = logging.getLogger(__name__)
ROW = "row"  # the short prompt that is `task.prompt` alone
MOST = 0.5  # a field that carries the answer in more of the calibration rows is kept
AMBIGUOUS = 0.1  # the largest share of rows whose answer a short prompt may leave open
OPTION_KINDS = ("multiple_choice", "ranking")


def student_config(config: TaskConfig, student_prompt: str) -> TaskConfig:
    """The settings of a task as the pruned model reads it: no preamble, shots, chat template."""
    prompt = config.prompt if student_prompt == ROW else student_prompt
    return replace(config, prompt=prompt, preamble="", shots=0, chat="never")


def student_task(task: Task) -> Task:
    """A dense model's task as the pruned model reads it: the same rows in the same order.

    What tells rows apart is still the long prompt, so rows are drawn and divided as before.
    """
    splits = {role: [_short(e) for e in examples] for role, examples in task.splits.items()}
    unlabelled = [_short(example) for example in task.unlabelled]
    return replace(task, splits=splits, unlabelled=unlabelled, chat="never", preamble="")


def _short(example: Example) -> Example:
    assert example.twin is not None, "the task was built without a short prompt"
    return replace(example.twin, bare=example.content, twin=example)


def with_ending(task: Task, ending: str) -> Task:
    """A task whose prompts end with `ending` in place of the delimiter before the answer."""

    def changed(example: Example) -> Example:
        return replace(
            example,
            prompt=example.prompt + ending,
            contexts=tuple(context + ending for context in example.contexts),
            choices=tuple(choice.removeprefix(task.delimiter) for choice in example.choices),
        )

    splits = {role: [changed(e) for e in examples] for role, examples in task.splits.items()}
    unlabelled = [changed(example) for example in task.unlabelled]
    return replace(task, splits=splits, unlabelled=unlabelled, delimiter="")


class ShortPrompt:
    """The short prompt of a task, and the fields of the long prompt that it drops.

    Args:
        long: of the long prompt.
        student_prompt: the setting `recovery.student_prompt`.

    Raises:
        ValueError: the short prompt drops the options that the answer's letter refers to.
    """

    def __init__(self, long: RowReader, student_prompt: str) -> None:
        settings = student_config(long.config, student_prompt)
        self.long, self.reader = long, RowReader(settings, "recovery.student_prompt")
        self.dropped = [name for name in long.names if name not in self.reader.names]
        self._rows = 0
        self._carrying = Counter[str]()  # rows in which a dropped field carries the answer
        self._texts = {name: set[int]() for name in self.dropped}  # hashes of a field's texts
        for name in set(self.dropped) & self._required():
            raise self._error([name], "holds the options that an answer refers to")

    def look(self, row: Row, example: Example, where: str) -> None:
        """Count the dropped fields that carry the answer of a calibration row."""
        self._rows += 1
        if not self.dropped:
            return
        right, wrong = self._answers(row, example, where)
        for name in self.dropped:
            text = as_text(self.long.get(row, name) or "")
            self._texts[name].add(hash(text))
            # A text with every answer is a list of them, which tells nothing.
            lists = wrong and all(contains(text, answer) for answer in wrong)
            self._carrying[name] += not lists and any(contains(text, one) for one in right)

    def check(self, calibration: Sequence[Example]) -> None:
        """Check the short prompt on the examples of the calibration split.

        Raises:
            ValueError: a dropped field carries the answer in most rows, or rows with different
                answers have the same short prompt.
        """
        for name, rows in self._carrying.items():
            if rows > MOST * self._rows:
                carries = f"carries the answer in {rows} of {self._rows} calibration rows"
                raise self._error([name], carries)
        twins = [example.twin for example in calibration if example.twin is not None]
        wrong = _undecided(twins) - _undecided(calibration)
        if self.dropped and wrong > AMBIGUOUS * len(calibration):
            decides = (
                f"decides the answer: without it {wrong} of {len(calibration)} calibration rows "
                "have the same prompt as a row with another answer"
            )
            raise self._error(self.dropped, decides)
        for name, texts in self._texts.items():
            if len(texts) > MOST * self._rows and is_rank_zero():
                log.warning(
                    "recovery.student_prompt drops the field '%s', which differs from row to row: "
                    "the pruned model must find the answers without it.",
                    name,
                )

    def _required(self) -> set[str]:
        """The fields that a short prompt must name if the long one does."""
        config = self.long.config
        if config.kind == "ranking":
            return {"option"}
        if config.kind == "multiple_choice" and config.answer_style == "letter":
            return {"options", config.options_field, *config.option_columns}
        return set()

    def _answers(self, row: Row, example: Example, where: str) -> tuple[list[str], list[str]]:
        """The right answers of a row as texts, and the wrong ones."""
        if example.references:
            return list(example.references), []
        texts = [choice.removeprefix(self.long.config.delimiter) for choice in example.choices]
        if self.long.config.kind in OPTION_KINDS:
            texts = list(read_options(row, self.long, where).values())
        right = texts.pop(example.answer)
        return [right], texts

    def _error(self, names: Sequence[str], why: str) -> ValueError:
        fields = " or ".join(f"'{name}'" for name in names)
        keep = " or ".join(f"{{{name}}}" for name in names)
        return ValueError(
            f"task '{self.long.config.name}': recovery.student_prompt drops the field {fields}, "
            f"which {why}, so no training can bake it in; name {keep} in recovery.student_prompt, "
            "or set recovery.student_prompt=row."
        )


def _undecided(examples: Iterable[Example]) -> int:
    """Rows that are wrong if equal prompts get the most frequent right answer of their rows."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        answers["\n".join((example.prompt, *example.contexts))][
            example.choices[example.answer]
        ] += 1
    return sum(counts.total() - max(counts.values()) for counts in answers.values())
