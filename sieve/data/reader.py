"""The batches of a task for a model, by the kind of the task."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

from sieve.data.batches import TokenBatch
from sieve.data.calibration_rows import calibration_batches, draw_rows, token_batches
from sieve.data.choices import encoded_batches, scoring_batches
from sieve.data.classifier import ClassifierEncoder
from sieve.data.encoding import EncodedExample, EncodingOptions, encode_examples
from sieve.data.generation import Writer, writing_batches
from sieve.data.scored import ScoredBatch
from sieve.data.sharing import PrefixSharing
from sieve.data.text import text_batches
from sieve.model.backbone import pad_token_id
from sieve.tasks.example import Example
from sieve.tasks.metrics import RowMetric
from sieve.tasks.row_values import exact_match
from sieve.tasks.task import Task


@dataclass(frozen=True)
class Reader:
    """How a model reads a task.

    Args:
        context_length: maximum number of tokens in a row; None: no limit.
        classes: returns the classes of a classifier for a task's labels; None for language models.
        cut: callback that gets the number of prompts whose field was shortened.
        sharing: when to run the common prefix of rows once; None: never.
        apart: returns for each example whether its batches are apart from other examples', so that
            the others do not change its rounding; None: all may share batches.
    """

    tokenizer: PreTrainedTokenizerBase
    context_length: int | None = None
    classes: Callable[[Task], tuple[int, ...]] | None = None
    cut: Callable[[int], None] | None = None
    sharing: PrefixSharing | None = None
    apart: Callable[[Task, Sequence[Example]], Sequence[bool]] | None = None

    def scoring(
        self, task: Task, examples: Sequence[Example], batch_tokens: int
    ) -> Sequence[ScoredBatch]:
        """Scoring batches of some examples of a task, which are counted from 0."""
        if self.apart is None:
            return self._scoring(task, examples, batch_tokens)
        batches, apart = list[ScoredBatch](), self.apart(task, examples)
        for group in (True, False):
            indexes = [index for index, value in enumerate(apart) if value == group]
            rows = [examples[index] for index in indexes]
            batches += [
                replace(batch, examples=torch.tensor(indexes)[batch.examples])
                for batch in (self._scoring(task, rows, batch_tokens) if rows else ())
            ]
        return batches

    def _scoring(
        self, task: Task, examples: Sequence[Example], batch_tokens: int
    ) -> Sequence[ScoredBatch]:
        tokenizer, options = self.tokenizer, self._options(task)
        if self.classes is not None:
            encoded = self.encode(task, examples)
            batches = encoded_batches(
                encoded, pad_token_id(tokenizer), batch_tokens, pad_right=True
            )
            return [replace(batch, metric=task.metric) for batch in batches]
        if (writer := self.writer(task, tokenizer)) is not None:
            return writing_batches(examples, writer, batch_tokens, self.sharing, **options)
        if task.kind == "perplexity":
            return text_batches(
                examples, tokenizer, task.metric, batch_tokens, task.unit, **options
            )
        options["normalize"], metric, sharing = task.normalize, task.row_metric, self.sharing
        return scoring_batches(
            examples, tokenizer, batch_tokens, row_metric=metric, sharing=sharing, **options
        )

    def writer(self, task: Task, tokenizer: PreTrainedTokenizerBase) -> Writer | None:
        """How answers to a task are written; None if they are chosen."""
        if task.writing is None:
            return None
        row_metric = task.row_metric or RowMetric(task.metric, from_text=exact_match)
        return Writer(tokenizer, task.writing, row_metric)

    def calibration(
        self,
        task: Task,
        tokens: int | None,
        batch_tokens: int,
        seed: int,
        rows: int | None = None,
        share: bool = False,
    ) -> list[TokenBatch]:
        """Calibration batches of a task: shuffled rows until `tokens` tokens are reached.

        Args:
            rows: the most rows; None: all.
            share: run the common prefix of the rows once per batch, and do not count its tokens.
        """
        tokenizer, examples = self.tokenizer, task.splits["calibration"]
        if self.classes is not None:
            encode = partial(self.encode, task)
            chosen, _, _ = draw_rows(examples, encode, tokens, seed, rows)
            return token_batches(chosen, pad_token_id(tokenizer), batch_tokens, pad_right=True)
        options = self._options(task)
        options["rolling"] = task.kind == "perplexity"
        return calibration_batches(
            examples,
            tokenizer,
            tokens,
            batch_tokens,
            seed,
            max_rows=rows,
            sharing=self.sharing if share else None,
            **options,
        )

    def encode(self, task: Task, examples: Sequence[Example]) -> list[EncodedExample]:
        """Examples of a task with choices or written answers as tokens."""
        if self.classes is None:
            return encode_examples(examples, self.tokenizer, **self._options(task))
        classes, limit = self.classes(task), self.context_length
        return ClassifierEncoder(self.tokenizer, classes, limit, self.cut).encode(examples)

    def vocabulary(self, task: Task, examples: Sequence[Example], min_rows: int = 1) -> set[int]:
        """The tokens of all answers to choose from, and of at least `min_rows` prompts."""
        # Long texts are read in windows, which have all their tokens.
        limit = None if task.kind == "perplexity" else self.context_length
        encoded = replace(self, context_length=limit, cut=None).encode(task, examples)
        rows = Counter(token for one in encoded for token in set(one.prefix))
        answers = {token for one in encoded for choice in one.choices for token in choice}
        return answers | {token for token, count in rows.items() if count >= min_rows}

    def longest(self, task: Task, examples: Sequence[Example]) -> int:
        """Tokens of the longest row that scoring reads, with the tokens that the model may write.

        Raises:
            ValueError: a row is longer than the context. Texts are not: they are read in windows.
        """
        written = task.writing.max_new_tokens if task.writing else 0
        limit = None if task.kind == "perplexity" else self.context_length
        limit = None if limit is None else max(1, limit - written)
        encoded = replace(self, context_length=limit, cut=None).encode(task, examples)
        return max(one.length for one in encoded) + written

    def _options(self, task: Task) -> EncodingOptions:
        is_text = task.kind == "perplexity"
        return {
            "chat": "never" if is_text else task.chat,
            "delimiter": "" if is_text else task.delimiter,
            "context_length": self.context_length,
            "cut": self.cut,
            "harness": task.harness,
        }
