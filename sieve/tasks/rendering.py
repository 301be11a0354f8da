"""The rows of a data set as examples.

Large data is read twice. The first pass keeps a digest of each example, from which the splits are
made; the second pass renders only the chosen rows.
"""

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sieve.tasks import classification, free_text, multiple_choice, ranking
from sieve.tasks.config import CHOICE_KINDS, ROLES, TaskConfig
from sieve.tasks.example import Example
from sieve.tasks.labels import find_labels
from sieve.tasks.leaks import AnswerLeaks
from sieve.tasks.metrics import metric_of
from sieve.tasks.prompts import RowReader
from sieve.tasks.rows import SourceSplit
from sieve.tasks.student import ShortPrompt

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Digest:
    """Represents an example of large data, which is too large to be in memory."""

    content: bytes  # 8 bytes: of ten million prompts, two have the same in 1 of 400,000 data sets
    role: str
    number: int  # of its row, counted from 1
    right: int  # hash of the right answer


class RenderedRows:
    """The rows of all roles as examples; rows are counted from 1, like the lines of a file.

    student_prompt: the setting `recovery.student_prompt`, by which examples get twins.
    """

    def __init__(
        self,
        config: TaskConfig,
        source: Mapping[str, SourceSplit],
        student_prompt: str | None = None,
    ) -> None:
        self.source, self.reader = source, RowReader(config)
        self.short = ShortPrompt(self.reader, student_prompt) if student_prompt else None
        self.leaks = AnswerLeaks(self.reader)
        self.labels: tuple[str, ...] = ()
        if config.kind == "classification":
            self.labels = find_labels(config, {name: rows for name, rows in source.values()})
        makers: dict[str, Callable[..., Example | None]] = {
            "classification": partial(classification.to_example, labels=self.labels),
            "multiple_choice": multiple_choice.to_example,
            "ranking": ranking.to_example,
            "generation": free_text.to_generation,
            "perplexity": free_text.to_text,
        }
        self._to_example = makers[config.kind]
        questions: dict[str, Callable[..., Example]] = {
            "classification": partial(classification.to_question, labels=self.labels),
            "multiple_choice": multiple_choice.to_question,
            "ranking": ranking.to_question,
            "generation": free_text.to_question,
        }
        self._to_question = questions.get(config.kind)
        # The dense model's answers count as right; only shots are shown with their labels.
        agreement = metric_of(config.kind, config.metric).agreement
        self.labelled = ("calibration",) * bool(config.shots) if agreement else ROLES
        self.large = any(not isinstance(split.rows, list) for split in source.values())
        self.rows_read = dict.fromkeys(source, 0)  # by role

    def examples(self) -> dict[str, list[Example]]:
        """Role -> all its examples."""
        return {role: [e for _, e in self._render(role)] for role in self.source}

    def questions(self, split: SourceSplit) -> Iterator[Example]:
        """Rows without labels as examples whose `answer` says nothing; none for other kinds."""
        to_question = self._to_question
        if to_question is None or self.reader.config.kind not in CHOICE_KINDS:
            log.warning(
                "task '%s': %s is not read, because the dense model's answers to a task of kind %s "
                "are not one of several choices.",
                *(self.reader.config.name, split.name, self.reader.config.kind),
            )
            return
        for number, row in enumerate(split.rows, start=1):
            where = f"row {number} of {split.name}"
            example = to_question(row, self.reader, where=where)
            if self.short is not None:
                twin = to_question(row, self.short.reader, where=where)
                example = replace(example, twin=twin)
            yield example

    def digests(self) -> dict[str, list[Digest]]:
        """Role -> digests of all its examples."""
        return {
            role: [_digest(example, role, number) for number, example in self._render(role)]
            for role in self.source
        }

    def of_digests(self, splits: Mapping[str, Sequence[Digest]]) -> dict[str, list[Example]]:
        """The examples of these digests, in their order, from a second pass over the rows."""
        self.reader.truncated.clear()
        self.reader.empty.clear()
        numbers: dict[str, set[int]] = {role: set() for role in self.source}
        for digests in splits.values():
            for digest in digests:
                numbers[digest.role].add(digest.number)
        examples = {
            (role, number): example
            for role in self.source
            for number, example in self._render(role, numbers[role])
        }
        return {
            role: [examples[digest.role, digest.number] for digest in digests]
            for role, digests in splits.items()
        }

    def _render(
        self, role: str, numbers: Collection[int] | None = None
    ) -> Iterator[tuple[int, Example]]:
        """The examples of a role with their row numbers: of all rows, or of `numbers` only."""
        name, rows = self.source[role]
        to_example = self._to_example if role in self.labelled else self._to_question
        assert to_example is not None
        for number, row in enumerate(rows, start=1):
            self.rows_read[role] = max(self.rows_read[role], number)
            if numbers is None or number in numbers:
                where = f"row {number} of {name}"
                example = to_example(row, self.reader, where=where)
                if example is None:
                    continue
                answered = role == "calibration" and role in self.labelled
                if answered:
                    self.leaks.look(row, example)
                if self.short is not None:
                    twin = to_example(row, self.short.reader, where=where)
                    example = replace(example, twin=twin)
                    if answered:
                        self.short.look(row, example, where)
                yield number, example


def _digest(example: Example, role: str, number: int) -> Digest:
    content = hashlib.blake2b(example.content.encode(), digest_size=8).digest()
    return Digest(content, role, number, hash(example.right))
