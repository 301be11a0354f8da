"""Batches of choices, which a model compares by their log-likelihoods.

All tokens of a choice count, so choices may begin with the same tokens. The fewest rows are run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.data.batches import as_inputs, bucket, pad_rows
from sieve.data.encoding import EncodedExample, EncodingOptions, Tokens, encode_examples
from sieve.data.prefix import PrefixCache
from sieve.data.scored import (
    NOT_FINITE,
    Reference,
    ScoredBatch,
    clamped_divergence,
    dense_results,
)
from sieve.data.sharing import PrefixSharing
from sieve.model.backbone import pad_token_id
from sieve.tasks.example import Example
from sieve.tasks.metrics import RowMetric
from sieve.tasks.scores import Outcome


@dataclass(kw_only=True)
class ScoringBatch(ScoredBatch):
    """Padded rows, and where their logits predict each token of each choice.

    B rows of T tokens; P distinct positions that predict a token; N examples of at most C choices
    of at most L tokens. All integers are int64, masks bool.
    """

    keep: int  # only the logits of the last `keep` positions are needed
    positions: Tensor  # (P,): row * keep + column in logits of shape (B, keep, V)
    slots: Tensor  # (N, C, L): index into positions
    tokens: Tensor  # (N, C, L): token id
    token_mask: Tensor  # (N, C, L): False where a choice has no such token
    answers: Tensor  # (N,): the right choice
    sizes: Tensor  # (N, C): divisor of the log-likelihood of a choice
    rows: tuple[Example, ...] = ()  # the examples, if the metric needs them
    row_metric: RowMetric | None = None  # the value of an example; None: 1 for right, 0 for wrong
    prefix: Tokens = ()  # the tokens that all rows share and that run once, see `sieve.data.prefix`

    @property
    def lengths(self) -> Tensor:
        """Scored tokens of the choices (N, C); 0 where an example has fewer choices."""
        return self.token_mask.sum(-1)

    def logprobs(self, model: PreTrainedModel, prefix_cache: PrefixCache | None = None) -> Tensor:
        """Log-likelihoods of the choices (N, C), see `choice_logprobs`."""
        prefix_cache = prefix_cache or PrefixCache(lends=False)
        return choice_logprobs(self._logits(model, prefix_cache), self)

    def _logits(self, model: PreTrainedModel, prefix_cache: PrefixCache) -> Tensor:
        return prefix_cache.forward(model, as_inputs(self), self.keep, self.prefix)

    def _outcome(
        self, model: PreTrainedModel, reference: Reference | None, prefix_cache: PrefixCache
    ) -> Outcome:
        logits = self._logits(model, prefix_cache)
        logprobs = choice_logprobs(logits, self)
        finite = logprobs.amax(1).isfinite()  # False also if a single choice is NaN.
        best = torch.where(finite, logprobs.argmax(1), NOT_FINITE)
        values = (best == self.answers).double()
        if self.row_metric is not None:
            values = torch.tensor(
                self._row_values(self.row_metric, logits, logprobs, finite.tolist()),
                device=best.device,
                dtype=torch.double,
            )
        divergences = None
        if reference is not None:
            dense_logprobs = dense_results(reference, self.examples, logprobs)
            divergences = choice_divergence(dense_logprobs, logprobs)
        losses = -logprobs.gather(1, self.answers[:, None]).squeeze(1)
        return Outcome(best, values, losses.where(finite, torch.nan), divergences)

    def _row_values(
        self, metric: RowMetric, logits: Tensor, logprobs: Tensor, finite: list[bool]
    ) -> list[float]:
        """The value of each example; 0 where its log-likelihoods are not finite."""
        greedy: list[list[bool]] = [[]] * len(self.rows)
        if metric.from_pairs:
            greedy = self._greedy(logits).tolist()
        values = []
        for index, (example, row) in enumerate(zip(self.rows, logprobs.tolist(), strict=True)):
            count = len(example.choices)
            is_greedy = greedy[index][:count]
            values.append(metric.choice(row[:count], example, is_greedy) if finite[index] else 0.0)
        return values

    def _greedy(self, logits: Tensor) -> Tensor:
        """Whether greedy decoding with logits (B, keep, V) would write each choice (N, C)."""
        best = logits.flatten(0, 1)[self.positions].argmax(-1)[self.slots]  # (N, C, L)
        return ((best == self.tokens) | ~self.token_mask).all(-1)


def choice_divergence(dense: Tensor, pruned: Tensor) -> Tensor:
    """KL(dense ‖ pruned) over the choices of every example (N,), nats, at most 100.

    dense, pruned: log-likelihoods of the choices (N, C), -inf where an example has fewer.
    """
    p, q = torch.log_softmax(dense, 1), torch.log_softmax(pruned, 1)
    terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
    return clamped_divergence(terms.sum(1))


def choice_logprobs(logits: Tensor, batch: ScoringBatch) -> Tensor:
    """Log-likelihood of every choice, divided by its size.

    Args:
        logits: (B, keep, V), of the last `batch.keep` positions; any float dtype.

    Returns:
        (N, C) float32; -inf where an example has fewer than C choices.

    Raises:
        ValueError: the logits have another shape.
    """
    if logits.shape[:2] != (batch.input_ids.shape[0], batch.keep):
        raise ValueError(
            f"got logits of shape {tuple(logits.shape)}, expected "
            f"({batch.input_ids.shape[0]}, {batch.keep}, vocabulary); pass logits_to_keep=keep."
        )
    logprobs = torch.log_softmax(logits.flatten(0, 1)[batch.positions].float(), dim=-1)  # (P, V)
    per_token = logprobs[batch.slots, batch.tokens]  # (N, C, L)
    total = per_token.masked_fill(~batch.token_mask, 0.0).sum(dim=-1) / batch.sizes
    return total.masked_fill(batch.lengths == 0, float("-inf"))


def scoring_batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    batch_tokens: int = 8192,
    *,
    row_metric: RowMetric | None = None,
    sharing: PrefixSharing | None = None,
    **options: Unpack[EncodingOptions],
) -> list[ScoringBatch]:
    """All examples in batches of at most `batch_tokens` padded tokens, longest first.

    An example is in one batch with all its rows; if it is larger than `batch_tokens` it has a batch
    of its own. The fewest rows are run: a choice whose tokens except the last begin another row
    needs no row, so single-token labels cost one row, the prompt.

    Args:
        row_metric: the value of an example; None: 1 for right and 0 for wrong.
        sharing: when to run the common prefix of all rows once; `batch_tokens` does not count it.
        options: as for `encode_examples`.

    Raises:
        ValueError: an example is longer than `context_length`, or two of its choices have the same
            tokens.
    """
    encoded = encode_examples(examples, tokenizer, **options)
    batches = encoded_batches(encoded, pad_token_id(tokenizer), batch_tokens, sharing)
    if row_metric is None:
        return batches
    return [
        replace(
            batch,
            rows=tuple(examples[index] for index in batch.examples.tolist()),
            row_metric=row_metric,
            metric=row_metric.metric,
        )
        for batch in batches
    ]


def encoded_batches(
    encoded: Sequence[EncodedExample],
    pad: int,
    batch_tokens: int = 8192,
    sharing: PrefixSharing | None = None,
    pad_right: bool = False,
) -> list[ScoringBatch]:
    """As `scoring_batches`, for encoded examples; pad: the padding token."""
    prefix, longest = sharing.prefix(encoded) if sharing else ((), 0)
    rows = [example.rows() for example in encoded]
    widths = [max(map(len, r)) for r in rows]
    batches = []
    # Rows that are too long to share the prefix get batches of their own.
    for common, shares in ((prefix, True), ((), False)):
        chosen = [i for i, width in enumerate(widths) if (0 < width <= longest) == shares]
        sizes = [(len(rows[i]), widths[i] - len(common)) for i in chosen]
        for group in bucket(sizes, batch_tokens):
            items = [(i, encoded[i], rows[i]) for i in (chosen[place] for place in group)]
            batches.append(replace(one_batch(items, pad, pad_right), prefix=common))
    return batches


def one_batch(
    items: Sequence[tuple[int, EncodedExample, list[Tokens]]], pad: int, pad_right: bool = False
) -> ScoringBatch:
    """One scoring batch of (index, example, rows of the example).

    pad_right: pad on the right, for a classifier, which has one prediction per row.
    """
    all_rows = [row for _, _, rows in items for row in rows]
    # Answer tokens are predicted by the last token of the prompt and by all later tokens.
    keep = max(len(row) - max(len(e.prefix), 1) + 1 for _, e, rows in items for row in rows)
    shape = (
        len(items),
        max(len(example.choices) for _, example, _ in items),
        max(len(choice) for _, example, _ in items for choice in example.choices),
    )
    places = torch.zeros(shape, dtype=torch.int64)
    tokens = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    sizes = torch.ones(shape[:2])
    first_row = 0
    for n, (_, example, rows) in enumerate(items):
        for c, choice in enumerate(example.choices):
            read = example.prefix + choice[:-1]
            row = next(i for i, other in enumerate(rows) if other[: len(read)] == read)
            # Column of the prompt's last token among the last `keep` positions of its row.
            column = keep - 1 - (len(rows[row]) - len(example.prefix))
            start = (first_row + row) * keep + column
            places[n, c, : len(choice)] = torch.arange(start, start + len(choice))
            tokens[n, c, : len(choice)] = torch.tensor(choice)
            mask[n, c, len(choice) - len(example.scored(c)) : len(choice)] = True
        sizes[n, : len(example.sizes)] = torch.tensor(example.sizes)
        first_row += len(rows)
    positions, inverse = places[mask].unique(return_inverse=True)
    slots = torch.zeros(shape, dtype=torch.int64)
    slots[mask] = inverse
    input_ids, attention_mask, position_ids = pad_rows(all_rows, pad, pad_right)
    return ScoringBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        examples=torch.tensor([index for index, _, _ in items]),
        keep=keep,
        positions=positions,
        slots=slots,
        tokens=tokens,
        token_mask=mask,
        answers=torch.tensor([example.answer for _, example, _ in items]),
        sizes=sizes,
    )


def count_vocabulary(batches: Sequence[ScoredBatch]) -> dict[str, int]:
    """Number of different tokens in the choices (`answers`) and in the rows (`prompts`).

    Only the logits of the choices' tokens tell answers apart. 0 if no batch has choices.
    """
    if not batches:
        return {"answers": 0, "prompts": 0}
    choices = [b.tokens[b.token_mask] for b in batches if isinstance(b, ScoringBatch)]
    rows = torch.cat([batch.input_ids[batch.attention_mask.bool()] for batch in batches])
    answers = len(torch.cat(choices).unique()) if choices else 0
    return {"answers": answers, "prompts": len(rows.unique())}
