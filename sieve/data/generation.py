"""Answers that a model writes: greedy, in batches, stopped and cut as the task says.

How far a pruned model is from the dense one is told without writing: by how much less likely it
finds what the dense one wrote.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from sieve.data.batches import TensorBatch, as_inputs, bucket, pad_left
from sieve.data.choices import (
    LARGEST_DIVERGENCE,
    NOT_FINITE,
    ScoringBatch,
    choice_logprobs,
    one_batch,
)
from sieve.data.encoding import EncodedExample, Tokens, encode_examples
from sieve.data.prefix import Shared, Sharing
from sieve.distributed.sharding import without_gradients
from sieve.model.backbone import cache_name, pad_token_id
from sieve.tasks.example import Example
from sieve.tasks.metrics import RowMetric
from sieve.tasks.scores import Metric, Outcome
from sieve.tasks.writing import Writing


@dataclass(frozen=True)
class Writer:
    """How answers are written and read: a tokenizer, what ends them, what is taken from them."""

    tokenizer: PreTrainedTokenizerBase
    writing: Writing
    row_metric: RowMetric

    def write(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        mask: Tensor,
        shared: Shared | None = None,
        prefix: Tokens = (),
    ) -> list[Tokens]:
        """Greedy continuations of left-padded rows (B, T), without what stands after an end.

        prefix: what all rows begin with, to be run once for all that `shared` sees.
        """
        config = GenerationConfig(
            max_new_tokens=self.writing.max_new_tokens, do_sample=False, num_beams=1,
            pad_token_id=pad_token_id(self.tokenizer), eos_token_id=self._ends(model),
            bos_token_id=model.generation_config.bos_token_id,
        )  # fmt: skip
        stopped = StoppingCriteriaList([_Stopped(self, input_ids.shape[1])])
        generate: Any = model.generate
        shared, options = shared or Shared(lends=False), dict[str, Any]()
        cache = shared.growing(model, prefix, len(input_ids))
        if cache is not None:
            input_ids, mask = _after(input_ids, mask, prefix)
            options[cache_name(model)] = cache
        own = model.generation_config
        model.generation_config = config  # Its penalties would stand in for what is not set.
        try:
            with without_gradients(model):
                out = generate(
                    input_ids=input_ids, attention_mask=mask, generation_config=config,
                    stopping_criteria=stopped,
                    synced_gpus=False,  # Ranks that share out a model keep in step by `Turns`.
                    **options,
                )  # fmt: skip
        finally:
            model.generation_config = own
        shared.count(out.numel())
        ends = set(config.eos_token_id or [])
        return [_until(row, ends) for row in out[:, input_ids.shape[1] :].tolist()]

    def read(self, tokens: Sequence[int]) -> str:
        """What was written, up to a stop string."""
        return self.writing.cut(str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)))

    def values(self, texts: Sequence[str | None], examples: Sequence[Example]) -> list[float]:
        """What answers are worth; None is one in which nothing was found."""
        metric, said = self.row_metric, [text or "" for text in texts]
        if metric.of_writings is not None:
            return metric.of_writings(said, examples)
        if metric.of_writing is not None:
            found = [metric.of_writing(t, one) for t, one in zip(said, examples, strict=True)]
            return [metric.checked(value, t) for value, t in zip(found, said, strict=True)]
        right = [self.writing.targets(example.references) for example in examples]
        return [
            0.0 if text is None else metric.text(text, targets)
            for text, targets in zip(texts, right, strict=True)
        ]

    def _ends(self, model: PreTrainedModel) -> list[int] | None:
        """Tokens that end an answer: the tokenizer's, and those that the model was made with."""
        told = model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])}
        return sorted(end for end in ends if end is not None) or None


class _Stopped(StoppingCriteria):
    """Says of every row whether a stop string stands in what was written; looks at the end only."""

    def __init__(self, writer: Writer, start: int) -> None:
        self.writer, self.start = writer, start
        self.done: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        written = input_ids[:, self.start :]
        if self.done is None:
            self.done = torch.zeros(len(written), dtype=torch.bool, device=written.device)
        stops, tokenizer = self.writer.writing.stop, self.writer.tokenizer
        for index in (~self.done).nonzero().flatten().tolist() if stops else ():
            # A stop string of n characters is made of at most n bytes' tokens and one before.
            reach = 1 + max(len(stop.encode()) for stop in stops)
            text = tokenizer.decode(written[index, -reach:], skip_special_tokens=True)
            self.done[index] = any(stop in text for stop in stops)
        return self.done


def _after(input_ids: Tensor, mask: Tensor, prefix: Tokens) -> tuple[Tensor, Tensor]:
    """Rows and mask (B, T) with the prefix first, which stood behind the padding of each."""
    ids = torch.tensor(prefix, device=input_ids.device).expand(len(input_ids), -1)
    return (
        torch.cat([ids, input_ids[:, len(prefix) :]], 1),
        torch.cat([torch.ones_like(ids), mask[:, : mask.shape[1] - len(prefix)]], 1),
    )


def _until(row: list[int], ends: set[int]) -> Tokens:
    first = next((index for index, token in enumerate(row) if token in ends), len(row))
    return tuple(row[:first])


@dataclass
class WritingBatch(TensorBatch):
    """Left-padded prompts of N examples, and their right answers for the loss."""

    input_ids: Tensor  # (N, T)
    attention_mask: Tensor  # (N, T), int64
    examples: Tensor  # (N,): index into the list of examples
    prompts: tuple[Tokens, ...]
    rows: tuple[Example, ...]
    right: ScoringBatch
    writer: Writer
    prefix: Tokens = ()  # that all rows begin with and that is run once, see `sieve.data.prefix`

    @property
    def metric(self) -> Metric:
        """What the values of rows make."""
        return self.writer.row_metric.metric

    def outcome(
        self,
        model: PreTrainedModel,
        reference: dict[int, Any] | None = None,
        shared: Shared | None = None,
    ) -> Outcome:
        """Write the answers and score them; as `sieve.evaluation.evaluation.Scored`.

        `predicted` is 0, or −1 where nothing was taken from what was written.
        """
        shared = shared or Shared(lends=False)
        written = self.writer.write(
            model, self.input_ids, self.attention_mask, shared, self.prefix
        )  # fmt: skip
        writing = self.writer.writing
        found = [writing.extract_from(self.writer.read(tokens)) for tokens in written]
        values = self.writer.values(found, self.rows)
        device = self.input_ids.device
        predicted = torch.tensor([NOT_FINITE if text is None else 0 for text in found])
        return Outcome(
            predicted.to(device),
            torch.tensor(values, dtype=torch.double, device=device),
            -_in_order(model, self.right, shared),
            self._divergence(model, written, reference, shared),
        )

    def _divergence(
        self,
        model: PreTrainedModel,
        written: Sequence[Tokens],
        reference: dict[int, Any] | None,
        shared: Shared,
    ) -> Tensor | None:
        """How much less likely the dense model's answers are (N,), nats; 0 where they are more."""
        if reference is None:
            return None
        key = int(self.examples[0])
        if key not in reference:
            pad = pad_token_id(self.writer.tokenizer)
            batch = _answers(self.prompts, written, pad, self.prefix)
            batch = batch.to(self.input_ids.device)
            reference[key] = batch, _in_order(model, batch, shared)
        batch, dense = reference[key]
        far = dense - _in_order(model, batch, shared)
        return far.nan_to_num(LARGEST_DIVERGENCE, LARGEST_DIVERGENCE).clamp(0.0, LARGEST_DIVERGENCE)


def _in_order(model: PreTrainedModel, batch: ScoringBatch, shared: Shared) -> Tensor:
    """Log-likelihoods of single answers (N,), in the order of the prompts."""
    logits = shared.forward(model, as_inputs(batch), batch.keep, batch.prefix)
    logprobs = choice_logprobs(logits, batch)[:, 0]
    return torch.empty_like(logprobs).index_copy_(0, batch.examples, logprobs)


def _answers(
    prompts: Sequence[Tokens], answers: Sequence[Tokens], pad: int, prefix: Tokens
) -> ScoringBatch:
    """One batch of prompts with an answer each; an empty one is a token to pad with."""
    encoded = [
        EncodedExample(prompt, (answer or (pad,),), 0)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    batch = one_batch([(index, one, one.rows()) for index, one in enumerate(encoded)], pad)
    return replace(batch, prefix=prefix)


def writing_batches(
    examples: Sequence[Example],
    writer: Writer,
    batch_tokens: int = 8192,
    sharing: Sharing | None = None,
    **options: Any,
) -> list[WritingBatch]:
    """All examples in batches of at most `batch_tokens` tokens, those to be written counted.

    sharing: as of `scoring_batches`; options: as of `encode_examples`. Raises ValueError where
    prompt and answer are longer than the context.
    """
    room, limit = writer.writing.max_new_tokens, options.pop("context_length", None)
    if limit is not None and limit <= room:
        raise ValueError(
            f"task.max_new_tokens is {room}, expected less than the model's context of {limit}."
        )
    asked = None if limit is None else limit - room
    left = options.get("harness", False)  # lm-evaluation-harness cuts prompts on their left.
    encoded = encode_examples(
        examples, writer.tokenizer, context_length=None if left else asked, **options
    )
    if left and asked is not None:
        encoded = [replace(one, prefix=one.prefix[-asked:]) for one in encoded]
    pad = pad_token_id(writer.tokenizer)
    widths = [len(e.prefix) + max(room, len(e.choices[0])) for e in encoded]
    prefix, longest = sharing.prefix(encoded, room) if sharing else ((), 0)
    if max(widths) > longest:
        prefix = ()
    batches = []
    for group in bucket([(1, len(e.prefix) - len(prefix) + room) for e in encoded], batch_tokens):
        prompts = tuple(encoded[index].prefix for index in group)
        input_ids, mask, _ = pad_left(prompts, pad)
        answers = [encoded[index].choices[0] for index in group]
        batches.append(
            WritingBatch(
                input_ids,
                mask,
                torch.tensor(group),
                prompts,
                tuple(examples[index] for index in group),
                _answers(prompts, answers, pad, prefix),
                writer,
                prefix,
            )  # fmt: skip
        )
    return batches
