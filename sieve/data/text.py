"""Text whose every token is predicted: batches for a perplexity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.data.batches import IGNORED, TensorBatch, as_inputs, bucket, pad_left
from sieve.data.choices import LARGEST_DIVERGENCE
from sieve.data.encoding import encode_examples
from sieve.data.prefix import Shared
from sieve.model.backbone import pad_token_id
from sieve.tasks.example import Example
from sieve.tasks.scores import Metric, Outcome


@dataclass
class TextBatch(TensorBatch):
    """Left-padded rows of N texts; a text's value is its mean log-likelihood per unit."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T), int64
    position_ids: Tensor  # (B, T)
    targets: Tensor  # (B, T): the token to predict, −100 where none is
    owners: Tensor  # (B,): which of the N texts a row is part of
    units: Tensor  # (N,): tokens, words or bytes of a text, by which it counts
    examples: Tensor  # (N,): index into the list of examples
    metric: Metric
    rows_at_once: int  # of a forward pass: a long text is many rows

    def outcome(
        self,
        model: PreTrainedModel,
        reference: dict[int, Any] | None = None,
        shared: Shared | None = None,
    ) -> Outcome:
        """Score a model; as `sieve.evaluation.evaluation.Scored`.

        The divergence is by how much a text's loss has risen, per unit; 0 where it has fallen.
        """
        summed, shared = list[Tensor](), shared or Shared(lends=False)
        inputs, step = as_inputs(self), max(1, self.rows_at_once)
        for start in range(0, len(self.input_ids), step):
            part = {name: tensor[start : start + step] for name, tensor in inputs.items()}
            logits = shared.forward(model, part, self.input_ids.shape[1])
            summed += [
                nn.functional.cross_entropy(
                    row.float(), wanted, ignore_index=IGNORED, reduction="sum"
                )
                for row, wanted in zip(logits, self.targets[start : start + step], strict=True)
            ]
        losses = torch.stack(summed)
        losses = losses.new_zeros(len(self.examples)).index_add_(0, self.owners, losses)
        values, far = -losses.double() / self.units, None
        if reference is not None:
            dense = reference.setdefault(int(self.examples[0]), values)
            far = (
                (dense - values)
                .nan_to_num(LARGEST_DIVERGENCE, LARGEST_DIVERGENCE)
                .clamp(0.0, LARGEST_DIVERGENCE)
            )
        values = values.nan_to_num(-LARGEST_DIVERGENCE, neginf=-LARGEST_DIVERGENCE)
        return Outcome(torch.zeros_like(self.examples), values, losses, far, self.units)


def text_batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    metric: Metric,
    batch_tokens: int = 8192,
    unit: str = "token",
    **options: Any,
) -> list[TextBatch]:
    """All texts in batches of at most `batch_tokens` padded tokens; options: of `encode_examples`.

    A text that is longer than the context is read in windows, each of its tokens predicted once.
    unit: what a perplexity is per: "token", "word" or "byte".
    """
    limit = options.pop("context_length", None)
    encoded = encode_examples(examples, tokenizer, rolling=True, **options)
    parts = [one.windows(limit) for one in encoded]
    sizes = [(len(rows), max(len(row.answer_row()) for row in rows)) for rows in parts]
    pad, batches = pad_token_id(tokenizer), []
    for group in bucket(sizes, batch_tokens):
        rows = [row for index in group for row in parts[index]]
        input_ids, mask, position_ids = pad_left([row.answer_row() for row in rows], pad)
        targets = torch.full_like(input_ids, IGNORED)
        for index, row in enumerate(rows):
            targets[index, -len(row.choices[0]) :] = torch.tensor(row.choices[0])
        counts = [_count(examples[i], len(encoded[i].choices[0]), unit) for i in group]
        owners = [place for place, index in enumerate(group) for _ in parts[index]]
        batches.append(
            TextBatch(
                input_ids,
                mask,
                position_ids,
                targets,
                torch.tensor(owners),
                torch.tensor(counts, dtype=torch.double),
                torch.tensor(group),
                metric,
                batch_tokens // input_ids.shape[1],
            )
        )
    return batches


def _count(example: Example, tokens: int, unit: str) -> int:
    text = example.choices[0]
    words, size = example.size or (len(text.split()), len(text.encode()))
    return max(1, {"token": tokens, "word": words, "byte": size}[unit])
