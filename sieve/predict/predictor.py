"""A model's answers to rows of a task, in batches of rows of similar length.

Rows are read, encoded and scored by the code that evaluates a run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from sieve.data.choices import ScoringBatch
from sieve.data.classifier import classes_of
from sieve.data.generation import WritingBatch
from sieve.data.prefix import PrefixCache
from sieve.data.reader import Reader
from sieve.data.scored import ScoredBatch
from sieve.data.sharing import prefix_sharing_of
from sieve.data.text import TextBatch
from sieve.exports.loading import load
from sieve.exports.onnx_model import OnnxGraph
from sieve.exports.task_file import TaskFile
from sieve.model.backbone import is_classifier, usable_length
from sieve.predict.tables import NATS, PREDICTED, PROBABILITIES, SCORED, WRITTEN, Answer
from sieve.serve.engine import check_finite, probabilities
from sieve.tasks.example import Example, Row

MOST_NAMED = 5  # rows in a message


class Predictor:
    """Answers rows of a task.

    Args:
        folder: a model, as for `load`.
        batch_tokens: the most tokens of a forward pass, with padding.

    Raises:
        ValueError: there is no model, or it cannot do the task.
    """

    def __init__(
        self, task: TaskFile, folder: str | Path, device: str, dtype: str, batch_tokens: int
    ) -> None:
        self.file, self.task = task, task.task()
        self.model, tokenizer = load(folder, device, dtype)
        is_graph = isinstance(self.model, OnnxGraph)
        # An 8-bit graph scales activations by the whole batch, so rows would change one another.
        self.batch_tokens = 1 if is_graph else batch_tokens
        classifies = is_classifier(self.model)
        self.reader = Reader(
            tokenizer,
            usable_length(self.model, tokenizer),
            classes=partial(classes_of, self.model) if classifies else None,
            sharing=None if is_graph else prefix_sharing_of(self.model),
        )

    def questions(self, rows: Sequence[Row], source: str) -> dict[int, Example]:
        """The examples of rows that have text, by their numbers, which begin with 0.

        source: the name of the file, for messages.
        Raises ValueError if a row lacks a column or is longer than the model's context.
        """
        examples = dict[int, Example]()
        for number, row in enumerate(rows):
            try:
                example = self.file.question(row, f"row {number + 1} of {source}")
            except ValueError as error:  # The advice behind the semicolon is for the task's author.
                fault = str(error).rpartition("; ")[0].removesuffix(",")
                raise ValueError(f"{fault}; correct the file.") from error
            if example.choices:
                examples[number] = example
        self._check_lengths(examples, source)
        return examples

    def _check_lengths(self, examples: dict[int, Example], source: str) -> None:
        """Raise ValueError if rows are too long, also where a field of theirs is shortened."""
        limit, written = self.reader.context_length, 0
        if self.task.writing is not None:
            written = self.task.writing.max_new_tokens
        if limit is None or self.task.kind == "perplexity" or not examples:
            return  # Long texts are read in windows.
        encoded = replace(self.reader, context_length=None).encode(
            self.task, list(examples.values())
        )
        lengths = {n: one.length + written for n, one in zip(examples, encoded, strict=True)}
        long = {number: length for number, length in lengths.items() if length > limit}
        long = {n: length for n, length in long.items() if not self._can_shorten(examples[n])}
        if long:
            raise ValueError(_too_long(long, source, limit))

    def _can_shorten(self, example: Example) -> bool:
        try:
            return bool(self.reader.longest(self.task, [example]))
        except ValueError:
            return False

    @torch.inference_mode()
    def answers(
        self, rows: Sequence[Row], examples: dict[int, Example]
    ) -> Iterator[dict[int, Answer]]:
        """The answers of each batch by the number of the row, longest rows first.

        Raises NotFinite if the model computes NaN or infinity.
        """
        numbers, cache = list(examples), PrefixCache()
        batches = self.reader.scoring(self.task, list(examples.values()), self.batch_tokens)
        for batch in batches:
            own = [numbers[index] for index in batch.examples.tolist()]
            words = [self.file.options(rows[number], examples[number]) for number in own]
            answers = self._answer(batch.to(self.model.device), words, cache)
            yield dict(zip(own, answers, strict=True))

    def _answer(
        self, batch: ScoredBatch, words: Sequence[list[str]], cache: PrefixCache
    ) -> list[Answer]:
        if isinstance(batch, WritingBatch):
            written = [batch.writer.read(t) for t in batch.write(self.model, cache)]
            return [self._written(text) for text in written]
        if isinstance(batch, TextBatch):
            outcome = batch.outcome(self.model, prefix_cache=cache)
            pairs = zip(outcome.values.tolist(), batch.units.tolist(), strict=True)
            return [self._text(-value, round(units)) for value, units in pairs]
        assert isinstance(batch, ScoringBatch)
        logprobs = [
            row[: len(own)]
            for row, own in zip(batch.logprobs(self.model, cache).tolist(), words, strict=True)
        ]
        check_finite(logprobs, "use")
        return [_chosen(own, row) for own, row in zip(words, logprobs, strict=True)]

    def no_answer(self) -> Answer:
        """What a row without text gets."""
        return self._text(None, 0)

    def _text(self, nats: float | None, units: int) -> Answer:
        unit = self.task.unit
        return {NATS + unit: nats, f"{SCORED}{unit}s": units}

    def _written(self, text: str) -> Answer:
        assert self.task.writing is not None
        answer: Answer = {PREDICTED: self.task.writing.extract_from(text)}
        return answer | ({WRITTEN: text} if self.task.writing.extract else {})


def _chosen(words: Sequence[str], logprobs: Sequence[float]) -> Answer:
    """The likeliest of a row's choices, and the probability of each."""
    best = words[logprobs.index(max(logprobs))]
    return {PREDICTED: best, PROBABILITIES: dict(zip(words, probabilities(logprobs), strict=True))}


def _too_long(lengths: dict[int, int], source: str, limit: int) -> str:
    """The message on rows that are longer than the model's context.

    lengths: their tokens by the number of the row, which begins with 0.
    """
    numbers, longest = [number + 1 for number in lengths], max(lengths, key=lengths.__getitem__)
    tokens = f"has {lengths[longest]:,} tokens within its prompt, expected at most {limit:,}"
    if len(numbers) == 1:
        return (
            f"row {numbers[0]} of {source} is longer than the model's context: it {tokens}; "
            "shorten or remove it."
        )
    named = [f"{number}" for number in numbers[:MOST_NAMED]]
    if (more := len(numbers) - MOST_NAMED) > 0:
        named.append(f"{more:,} more")
    rows = f"rows {', '.join(named[:-1])} and {named[-1]}"
    return (
        f"{rows} of {source} are longer than the model's context: the longest, row {longest + 1}, "
        f"{tokens}; shorten or remove them."
    )
