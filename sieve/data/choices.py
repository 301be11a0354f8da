"""Answers to choose from as batches of tokens, compared by their log-likelihoods.

All tokens of an answer count, so labels may share their first ones. The fewest rows are run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sieve.data.batches import TensorBatch, as_inputs, bucket, pad_left
from sieve.data.encoding import EncodedExample, Tokens, encode_examples
from sieve.data.prefix import Shared, Sharing
from sieve.model.backbone import pad_token_id
from sieve.tasks.example import Example
from sieve.tasks.metrics import RowMetric
from sieve.tasks.scores import ACCURACY, Metric, Outcome

NOT_FINITE = -1
LARGEST_DIVERGENCE = 100.0  # nats, what a divergence that is not finite counts as


@dataclass
class ScoringBatch(TensorBatch):
    """Left-padded rows, and where in their logits every token of every answer is predicted.

    B rows of T tokens; P distinct positions that predict something; N examples of at most C
    choices of at most L tokens. All integers are int64, masks bool.
    """

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T), int64
    position_ids: Tensor | None  # (B, T); None leaves them to the model
    keep: int  # logits are needed of the last `keep` positions only
    positions: Tensor  # (P,): row * keep + column in logits of shape (B, keep, V)
    slots: Tensor  # (N, C, L): index into positions
    tokens: Tensor  # (N, C, L): token id
    token_mask: Tensor  # (N, C, L): False where a choice has no such token
    lengths: Tensor  # (N, C): tokens of the choice; 0 where the example has no such choice
    examples: Tensor  # (N,): index into the list of examples
    answers: Tensor  # (N,): the right choice
    sizes: Tensor  # (N, C): what a choice's log-likelihood is divided by
    rows: tuple[Example, ...] = ()  # the examples, where a metric asks for more than the answer
    row_metric: RowMetric | None = None  # None is accuracy
    prefix: Tokens = ()  # that all rows begin with and that is run once, see `sieve.data.prefix`

    def _greedy(self, logits: Tensor) -> Tensor:
        """Whether each choice (N, C) is what a model with logits (B, keep, V) would write."""
        best = logits.flatten(0, 1)[self.positions].argmax(-1)[self.slots]  # (N, C, L)
        return ((best == self.tokens) | ~self.token_mask).all(-1)

    @property
    def metric(self) -> Metric:
        """What the values of rows make."""
        return self.row_metric.metric if self.row_metric else ACCURACY

    def outcome(
        self,
        model: PreTrainedModel,
        reference: dict[int, Any] | None = None,
        shared: Shared | None = None,
    ) -> Outcome:
        """Score a model; as `sieve.evaluation.evaluation.Scored`."""
        shared = shared or Shared(lends=False)
        logits = shared.forward(model, as_inputs(self), self.keep, self.prefix)
        logprobs = choice_logprobs(logits, self)
        finite = ~(logprobs.isnan().any(1) | logprobs.isposinf().any(1))
        best = torch.where(finite, logprobs.argmax(1), NOT_FINITE)
        values = (best == self.answers).double()
        if self.row_metric is not None:
            none: list[Any] = [()] * len(self.rows)
            likely = self._greedy(logits).tolist() if self.row_metric.of_pairs else none
            measured = [
                self.row_metric.choice(found[: len(row.choices)], row, said[: len(row.choices)])
                if sound
                else 0.0
                for found, row, sound, said in zip(
                    logprobs.tolist(), self.rows, finite, likely, strict=True
                )
            ]
            values = torch.tensor(measured, device=best.device, dtype=torch.double)
        far = None
        if reference is not None:
            far = choice_divergence(reference.setdefault(int(self.examples[0]), logprobs), logprobs)
        losses = -logprobs.gather(1, self.answers[:, None]).squeeze(1)
        return Outcome(best, values, losses, far)


def choice_divergence(dense: Tensor, pruned: Tensor) -> Tensor:
    """KL(dense ‖ pruned) over the choices of every example (n,), nats, at most 100.

    dense, pruned: log-likelihoods of the choices (n, C), -inf where an example has fewer.
    """
    p, q = torch.log_softmax(dense, 1), torch.log_softmax(pruned, 1)
    terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
    return (
        terms.sum(1)
        .nan_to_num(LARGEST_DIVERGENCE, LARGEST_DIVERGENCE)
        .clamp(0.0, LARGEST_DIVERGENCE)
    )


def choice_logprobs(logits: Tensor, batch: ScoringBatch) -> Tensor:
    """Log-likelihood of every choice, divided by its size.

    Args:
        logits: (B, keep, V), of the last `batch.keep` positions; any float dtype.

    Returns:
        (N, C) float32; -inf where an example has fewer than C choices.

    Raises:
        ValueError: the logits are not of that shape.
    """
    if logits.shape[:2] != (batch.input_ids.shape[0], batch.keep):
        raise ValueError(
            f"got logits of shape {tuple(logits.shape)}, expected "
            f"({batch.input_ids.shape[0]}, {batch.keep}, vocabulary); pass logits_to_keep=keep."
        )
    needed = logits.flatten(0, 1)[batch.positions].float()  # (P, V)
    logprobs = torch.log_softmax(needed, dim=-1)
    per_token = logprobs[batch.slots, batch.tokens]  # (N, C, L)
    total = per_token.masked_fill(~batch.token_mask, 0.0).sum(dim=-1) / batch.sizes
    return total.masked_fill(batch.lengths == 0, float("-inf"))


def scoring_batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    batch_tokens: int = 8192,
    *,
    chat: str = "auto",
    delimiter: str = " ",
    context_length: int | None = None,
    normalize: str = "none",
    row_metric: RowMetric | None = None,
    cut: Callable[[int], None] | None = None,
    harness: bool = False,
    sharing: Sharing | None = None,
) -> list[ScoringBatch]:
    """All examples in batches of at most `batch_tokens` padded tokens, longest first.

    Every example stands in one batch with all its rows; one that is larger than `batch_tokens`
    stands alone. The fewest rows are run: a choice whose tokens but the last begin another row
    needs none of its own, so single-token labels cost one row, the prompt.

    normalize: what an answer's log-likelihood is divided by, its number of "tokens", "characters"
    or "bytes", or "none". row_metric: what a row is worth; None is right or wrong. cut,
    harness: as of `encode_examples`. sharing: when what all rows begin with is run once, which is
    then not counted in `batch_tokens`.

    Raises:
        ValueError: an example is longer than `context_length`, or two of its choices encode alike.
    """
    encoded = encode_examples(
        examples, tokenizer, chat=chat, delimiter=delimiter, context_length=context_length,
        normalize=normalize, cut=cut, harness=harness,
    )  # fmt: skip
    batches = encoded_batches(encoded, pad_token_id(tokenizer), batch_tokens, sharing)
    if row_metric is None:
        return batches
    return [
        replace(b, rows=tuple(examples[i] for i in b.examples.tolist()), row_metric=row_metric)
        for b in batches
    ]


def encoded_batches(
    encoded: Sequence[EncodedExample],
    pad: int,
    batch_tokens: int = 8192,
    sharing: Sharing | None = None,
) -> list[ScoringBatch]:
    """As `scoring_batches`, of examples that are encoded already; pad: a token to pad with."""
    prefix, longest = sharing.prefix(encoded) if sharing else ((), 0)
    rows = [example.rows() for example in encoded]
    widths = [max(map(len, r)) for r in rows]
    batches = []
    # Rows in which the model cannot share stand apart: they are longer than the others.
    for common, asked in ((prefix, True), ((), False)):
        chosen = [i for i, width in enumerate(widths) if (0 < width <= longest) == asked]
        sizes = [(len(rows[i]), widths[i] - len(common)) for i in chosen]
        for group in bucket(sizes, batch_tokens):
            items = [(i, encoded[i], rows[i]) for i in (chosen[place] for place in group)]
            batches.append(replace(one_batch(items, pad), prefix=common))
    return batches


def vocabulary_reach(batches: Sequence[Any]) -> dict[str, int]:
    """How many different tokens the choices are made of (`answers`), and the rows (`prompts`).

    Only the logits of the former tell one answer from another; 0 where answers are written.
    """
    if not batches:
        return {"answers": 0, "prompts": 0}
    chosen = [b.tokens[b.token_mask] for b in batches if isinstance(b, ScoringBatch)]
    prompts = torch.cat([batch.input_ids[batch.attention_mask.bool()] for batch in batches])
    answers = len(torch.cat(chosen).unique()) if chosen else 0
    return {"answers": answers, "prompts": len(prompts.unique())}


def one_batch(
    items: Sequence[tuple[int, EncodedExample, list[tuple[int, ...]]]], pad: int
) -> ScoringBatch:
    """One scoring batch of (index, example, its rows)."""
    flat = [row for _, _, rows in items for row in rows]
    # A row's last token and the ones after the prompt's last each predict one answer token.
    keep = max(len(row) - max(e.start, 1) + 1 for _, e, rows in items for row in rows)
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
            fed = example.prefix + choice[:-1]
            own = next(i for i, row in enumerate(rows) if row[: len(fed)] == fed)
            # Column of the prompt's last token among the last `keep` positions of its row.
            column = keep - 1 - (len(rows[own]) - example.start)
            start = (first_row + own) * keep + column
            places[n, c, : len(choice)] = torch.arange(start, start + len(choice))
            tokens[n, c, : len(choice)] = torch.tensor(choice)
            mask[n, c, len(choice) - len(example.scored(c)) : len(choice)] = True
        sizes[n, : len(example.sizes)] = torch.tensor(example.sizes)
        first_row += len(rows)
    positions, inverse = places[mask].unique(return_inverse=True)
    slots = torch.zeros(shape, dtype=torch.int64)
    slots[mask] = inverse
    return ScoringBatch(
        *pad_left(flat, pad),
        keep=keep,
        positions=positions,
        slots=slots,
        tokens=tokens,
        token_mask=mask,
        lengths=mask.sum(dim=-1),
        examples=torch.tensor([index for index, _, _ in items]),
        answers=torch.tensor([example.answer for _, example, _ in items]),
        sizes=sizes,
    )
