"""Batches of text whose every token is predicted, for a perplexity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.data.batches import IGNORED, as_inputs, bucket, token_batch
from sieve.data.encoding import EncodingOptions, encode_examples
from sieve.data.prefix import PrefixCache
from sieve.data.scored import (
    LARGEST_DIVERGENCE,
    Reference,
    ScoredBatch,
    clamped_divergence,
    dense_results,
)
from sieve.model.backbone import pad_token_id
from sieve.tasks.example import Example
from sieve.tasks.metrics import Metric
from sieve.tasks.scores import Outcome


@dataclass(kw_only=True)
class TextBatch(ScoredBatch):
    """Left-padded rows of N texts; the value of a text is its mean log-likelihood per unit."""

    targets: Tensor  # (B, T): the token to predict, −100 for none
    owners: Tensor  # (B,): index of the text that a row is part of
    units: Tensor  # (N,): tokens, words or bytes of a text, which is also its weight
    rows_at_once: int  # rows of one forward pass, since a long text has many rows

    def _outcome(
        self, model: PreTrainedModel, reference: Reference | None, prefix_cache: PrefixCache
    ) -> Outcome:
        """The divergence is the rise of a text's loss per unit, or 0 if the loss fell."""
        row_losses, inputs = list[Tensor](), as_inputs(self)
        for start in range(0, len(self.input_ids), self.rows_at_once):
            rows = slice(start, start + self.rows_at_once)
            part = {name: tensor[rows] for name, tensor in inputs.items()}
            logits = prefix_cache.forward(model, part, self.input_ids.shape[1])
            row_losses += [
                nn.functional.cross_entropy(
                    row.float(), targets, ignore_index=IGNORED, reduction="sum"
                )
                for row, targets in zip(logits, self.targets[rows], strict=True)
            ]
        summed = torch.stack(row_losses)
        losses = summed.new_zeros(len(self.examples)).index_add_(0, self.owners, summed)
        values, divergences = -losses.double() / self.units, None
        if reference is not None:
            dense_values = dense_results(reference, self.examples, values)
            divergences = clamped_divergence(dense_values - values)
        values = values.nan_to_num(-LARGEST_DIVERGENCE, neginf=-LARGEST_DIVERGENCE)
        return Outcome(torch.zeros_like(self.examples), values, losses, divergences, self.units)


def text_batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    metric: Metric,
    batch_tokens: int = 8192,
    unit: str = "token",
    **options: Unpack[EncodingOptions],
) -> list[TextBatch]:
    """All texts in batches of at most `batch_tokens` padded tokens.

    A text that is longer than the context is read in windows that predict each token once.

    Args:
        unit: what the perplexity is per: "token", "word" or "byte".
        options: as for `encode_examples`.
    """
    limit = options.pop("context_length", None)
    options["rolling"] = True
    encoded = encode_examples(examples, tokenizer, **options)
    windows = [one.windows(limit) for one in encoded]
    sizes = [(len(rows), max(row.length for row in rows)) for rows in windows]
    batches = []
    for group in bucket(sizes, batch_tokens):
        rows = [row for index in group for row in windows[index]]
        inputs = token_batch(rows, pad_token_id(tokenizer))
        units = [_count(examples[i], len(encoded[i].choices[0]), unit) for i in group]
        owners = [place for place, index in enumerate(group) for _ in windows[index]]
        batches.append(
            TextBatch(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                position_ids=inputs.position_ids,
                examples=torch.tensor(group),
                targets=inputs.targets,
                owners=torch.tensor(owners),
                units=torch.tensor(units, dtype=torch.double),
                metric=metric,
                rows_at_once=max(1, batch_tokens // inputs.input_ids.shape[1]),
            )
        )
    return batches


def _count(example: Example, tokens: int, unit: str) -> int:
    text = example.choices[0]
    words, size = example.size or (len(text.split()), len(text.encode()))
    return max(1, {"token": tokens, "word": words, "byte": size}[unit])
