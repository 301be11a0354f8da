"""Batches of prompts that a model answers in writing: greedily, stopped and cut as the task says.

The divergence of a pruned model needs no writing: it is by how much less likely the pruned model
finds the answers of the dense model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from sieve.data.batches import as_inputs, bucket, pad_rows
from sieve.data.choices import ScoringBatch, choice_logprobs, one_batch
from sieve.data.encoding import EncodedExample, EncodingOptions, Tokens, encode_examples
from sieve.data.prefix import PrefixCache, prefix_first
from sieve.data.scored import NOT_FINITE, Reference, ScoredBatch, clamped_divergence
from sieve.data.sharing import PrefixSharing
from sieve.distributed.sharding import without_gradients
from sieve.model.backbone import cache_name, contiguous_head_input, pad_token_id
from sieve.tasks.example import Example
from sieve.tasks.metrics import RowMetric
from sieve.tasks.scores import Outcome
from sieve.tasks.writing import Writing


@dataclass(frozen=True)
class Writer:
    """How answers are written and read: the tokenizer, what ends an answer, and its value."""

    tokenizer: PreTrainedTokenizerBase
    writing: Writing
    row_metric: RowMetric

    @property
    def pad(self) -> int:
        """The padding token."""
        return pad_token_id(self.tokenizer)

    def write(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        mask: Tensor,
        prefix_cache: PrefixCache | None = None,
        prefix: Tokens = (),
    ) -> list[Tokens]:
        """Greedy continuations of left-padded rows (B, T), without end tokens and what follows.

        prefix: the tokens that all rows begin with, which `prefix_cache` runs once.
        """
        own_config = model.generation_config
        config = GenerationConfig(
            max_new_tokens=self.writing.max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.pad,
            eos_token_id=self._end_tokens(own_config),
            bos_token_id=own_config.bos_token_id,
        )
        prefix_cache = prefix_cache or PrefixCache(lends=False)
        cache = prefix_cache.growing(model, prefix, len(input_ids))
        if cache is not None:
            input_ids, mask = prefix_first(input_ids, mask, prefix)
        prompt_tokens = input_ids.shape[1]
        # Otherwise the model's own penalties would fill in for settings that are not given.
        model.generation_config = config
        try:
            with without_gradients(model), contiguous_head_input(model):
                rows = cast("GenerationMixin", model).generate(
                    input_ids=input_ids,
                    attention_mask=mask,
                    generation_config=config,
                    stopping_criteria=StoppingCriteriaList([_StopStrings(self, prompt_tokens)]),
                    synced_gpus=False,  # Ranks that split a model keep in step by `Turns`.
                    **({} if cache is None else {cache_name(model): cache}),
                )
        finally:
            model.generation_config = own_config
        prefix_cache.count(rows.numel())
        ends = set(config.eos_token_id or [])
        return [_before_end(row, ends) for row in rows[:, prompt_tokens:].tolist()]

    def read(self, tokens: Sequence[int]) -> str:
        """The text of written tokens, up to a stop string."""
        return self.writing.cut(str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)))

    def values(self, answers: Sequence[str | None], examples: Sequence[Example]) -> list[float]:
        """The values of answers; None is a text in which no answer was found."""
        metric, texts = self.row_metric, [answer or "" for answer in answers]
        if metric.from_outputs is not None:
            return metric.outputs(texts, examples)
        return [
            0.0 if answer is None else metric.text(answer, self.writing.targets(example.references))
            for answer, example in zip(answers, examples, strict=True)
        ]

    def _end_tokens(self, config: GenerationConfig) -> list[int] | None:
        """Tokens that end an answer: the tokenizer's and the model's own."""
        own = config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
        return sorted(end for end in ends if end is not None) or None


class _StopStrings(StoppingCriteria):
    """Tells which rows have a stop string in their last tokens."""

    def __init__(self, writer: Writer, prompt_tokens: int) -> None:
        self.tokenizer, self.stops = writer.tokenizer, writer.writing.stop
        self.prompt_tokens = prompt_tokens
        self.done: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        written = input_ids[:, self.prompt_tokens :]
        if self.done is None:
            self.done = torch.zeros(len(written), dtype=torch.bool, device=written.device)
        for index in (~self.done).nonzero().flatten().tolist() if self.stops else ():
            # A stop string of n bytes is within the last n tokens and the one before.
            count = 1 + max(len(stop.encode()) for stop in self.stops)
            text = self.tokenizer.decode(written[index, -count:], skip_special_tokens=True)
            self.done[index] = any(stop in text for stop in self.stops)
        return self.done


def _before_end(row: list[int], ends: set[int]) -> Tokens:
    first = next((index for index, token in enumerate(row) if token in ends), len(row))
    return tuple(row[:first])


@dataclass(kw_only=True)
class WritingBatch(ScoredBatch):
    """Left-padded prompts of N examples, one row each, and the right answers for the loss."""

    prompts: tuple[Tokens, ...]
    rows: tuple[Example, ...]
    right: ScoringBatch
    writer: Writer
    prefix: Tokens = ()  # the tokens that all rows share and that run once, see `sieve.data.prefix`

    def _outcome(
        self, model: PreTrainedModel, reference: Reference | None, prefix_cache: PrefixCache
    ) -> Outcome:
        """`predicted` is 0, or −1 where no answer was found in the written text."""
        written = self.write(model, prefix_cache)
        extract = self.writer.writing.extract_from
        answers = [extract(self.writer.read(tokens)) for tokens in written]
        values = self.writer.values(answers, self.rows)
        device = self.input_ids.device
        predicted = torch.tensor([NOT_FINITE if answer is None else 0 for answer in answers])
        return Outcome(
            predicted.to(device),
            torch.tensor(values, dtype=torch.double, device=device),
            -_answer_logprobs(model, self.right, prefix_cache),
            self._divergence(model, written, reference, prefix_cache),
        )

    def write(self, model: PreTrainedModel, prefix_cache: PrefixCache) -> list[Tokens]:
        """What a model writes after each prompt, without what follows an end token."""
        inputs = self.input_ids, self.attention_mask
        return self.writer.write(model, *inputs, prefix_cache, self.prefix)

    def _divergence(
        self,
        model: PreTrainedModel,
        written: Sequence[Tokens],
        reference: Reference | None,
        prefix_cache: PrefixCache,
    ) -> Tensor | None:
        """How much less likely the dense model's answers are (N,), nats; 0 if more likely."""
        if reference is None:
            return None
        indexes, pad = self.examples.tolist(), self.writer.pad
        pairs = zip(indexes, written, strict=True)
        answers = [reference[i][0] if i in reference else own for i, own in pairs]
        batch = _answer_batch(self.prompts, answers, pad, self.prefix).to(self.input_ids.device)
        logprobs = _answer_logprobs(model, batch, prefix_cache)
        for index, answer, logprob in zip(indexes, answers, logprobs, strict=True):
            reference.setdefault(index, (answer, logprob))
        return clamped_divergence(torch.stack([reference[i][1] for i in indexes]) - logprobs)


def _answer_logprobs(
    model: PreTrainedModel, batch: ScoringBatch, prefix_cache: PrefixCache
) -> Tensor:
    """Log-likelihoods of one answer per prompt (N,), in the order of the prompts."""
    logits = prefix_cache.forward(model, as_inputs(batch), batch.keep, batch.prefix)
    logprobs = choice_logprobs(logits, batch)[:, 0]
    return torch.empty_like(logprobs).index_copy_(0, batch.examples, logprobs)


def _answer_batch(
    prompts: Sequence[Tokens], answers: Sequence[Tokens], pad: int, prefix: Tokens
) -> ScoringBatch:
    """One batch of prompts with an answer each; an empty answer becomes one padding token."""
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
    sharing: PrefixSharing | None = None,
    **options: Unpack[EncodingOptions],
) -> list[WritingBatch]:
    """All examples in batches of at most `batch_tokens` tokens, counting the tokens to write.

    Args:
        sharing: as for `scoring_batches`.
        options: as for `encode_examples`.

    Raises:
        ValueError: prompt and answer are longer than the context.
    """
    new_tokens = writer.writing.max_new_tokens
    encoded = _encode_prompts(examples, writer, options)
    widths = [len(one.prefix) + max(new_tokens, len(one.choices[0])) for one in encoded]
    prefix, longest = sharing.prefix(encoded, new_tokens) if sharing else ((), 0)
    if max(widths) > longest:
        prefix = ()
    sizes = [(1, len(one.prefix) - len(prefix) + new_tokens) for one in encoded]
    batches = []
    for group in bucket(sizes, batch_tokens):
        prompts = tuple(encoded[index].prefix for index in group)
        answers = [encoded[index].choices[0] for index in group]
        input_ids, mask, _ = pad_rows(prompts, writer.pad)
        batches.append(
            WritingBatch(
                input_ids=input_ids,
                attention_mask=mask,
                examples=torch.tensor(group),
                metric=writer.row_metric.metric,
                prompts=prompts,
                rows=tuple(examples[index] for index in group),
                right=_answer_batch(prompts, answers, writer.pad, prefix),
                writer=writer,
                prefix=prefix,
            )
        )
    return batches


def _encode_prompts(
    examples: Sequence[Example], writer: Writer, options: EncodingOptions
) -> list[EncodedExample]:
    """Encoded examples whose prompts leave room for the answer in the context."""
    new_tokens, limit = writer.writing.max_new_tokens, options.get("context_length")
    if limit is None:
        return encode_examples(examples, writer.tokenizer, **options)
    if limit <= new_tokens:
        raise ValueError(
            f"task.max_new_tokens is {new_tokens}, expected less than the model's context of "
            f"{limit}."
        )
    if not options.get("harness"):
        options["context_length"] = limit - new_tokens
        return encode_examples(examples, writer.tokenizer, **options)
    # lm-evaluation-harness cuts the first tokens of a prompt.
    options["context_length"] = None
    encoded = encode_examples(examples, writer.tokenizer, **options)
    return [replace(one, prefix=one.prefix[new_tokens - limit :]) for one in encoded]
