"""The batches of a task for a model: what each kind of task is scored by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from sieve.data.batches import TokenBatch, calibration_batches
from sieve.data.choices import scoring_batches
from sieve.data.classifier import classifying_batches, learning_batches
from sieve.data.generation import Writer, writing_batches
from sieve.data.prefix import Sharing
from sieve.data.text import text_batches
from sieve.tasks.example import Example
from sieve.tasks.metrics import RowMetric, exact_match
from sieve.tasks.task import Task


@dataclass(frozen=True)
class Reader:
    """How a model reads a task: its tokenizer, its context, and what a classifier's classes are.

    context_length: the longest row that the model takes; None does not check. classes: of a
    classifier, gives those that stand for a task's labels; None is a language model. shortened: is
    told how many prompts were too long and had a field shortened. sharing: when what all rows that
    are scored begin with is run once; None is never.
    """

    tokenizer: PreTrainedTokenizerBase
    context_length: int | None = None
    classes: Callable[[Task], tuple[int, ...]] | None = None
    shortened: Callable[[int], None] | None = None
    sharing: Sharing | None = None

    def scoring(self, task: Task, examples: Sequence[Example], batch_tokens: int) -> list[Any]:
        """Scoring batches of some examples of a task, which are counted from 0."""
        options = self._options(task)
        if self.classes is not None:
            return classifying_batches(
                examples, self.tokenizer, self.classes(task), batch_tokens, self.context_length,
                self.shortened,
            )  # fmt: skip
        if task.kind == "generation":
            assert task.writing is not None
            fallback = RowMetric(task.metric, of_text=exact_match)
            writer = Writer(self.tokenizer, task.writing, task.row_metric or fallback)
            return writing_batches(
                examples, writer, batch_tokens, sharing=self.sharing, **options
            )  # fmt: skip
        if task.kind == "perplexity":
            return text_batches(
                examples, self.tokenizer, task.metric, batch_tokens, task.unit, **options
            )
        return scoring_batches(
            examples, self.tokenizer, batch_tokens, normalize=task.normalize,
            row_metric=task.row_metric, sharing=self.sharing, **options,
        )  # fmt: skip

    def calibration(
        self, task: Task, tokens: int | None, batch_tokens: int, seed: int
    ) -> list[TokenBatch]:
        """Calibration batches of a task: rows in an order drawn, until there are enough tokens."""
        examples = task.splits["calibration"]
        if self.classes is not None:
            return learning_batches(
                examples, self.tokenizer, self.classes(task), tokens, batch_tokens, seed,
                self.context_length, self.shortened,
            )  # fmt: skip
        return calibration_batches(
            examples, self.tokenizer, tokens, batch_tokens, seed,
            rolling=task.kind == "perplexity", **self._options(task),
        )  # fmt: skip

    def _options(self, task: Task) -> dict[str, Any]:
        return {
            "chat": "never" if task.kind == "perplexity" else task.chat,
            "delimiter": "" if task.kind == "perplexity" else task.delimiter,
            "context_length": self.context_length,
            "cut": self.shortened,
            "harness": task.harness,
        }
