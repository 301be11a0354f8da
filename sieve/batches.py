"""Examples as batches of tokens: for scoring answers and for calibration.

Answers are compared by the log-likelihood of all their tokens, so labels may share their first
tokens. Batches are built once, sorted by length, and dealt out to ranks, so that no row is counted
twice. Pure functions: no model, no Lightning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from sieve.encoding import EncodedExample, encode_examples
from sieve.tasks.example import Example

_B = TypeVar("_B", bound="_Batch")
HELD_OUT = 4  # one of so many batches


@dataclass
class _Batch:
    """A dataclass of tensors that moves to a device as one."""

    def to(self: _B, device: torch.device | str, **kwargs: Any) -> _B:
        """The same batch with its tensors on `device`."""
        return self._mapped(lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self: _B) -> _B:
        """The same batch in page-locked memory."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self: _B, change: Callable[[Tensor], Tensor]) -> _B:
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: change(one) for name, one in held.items() if isinstance(one, Tensor)}
        return replace(self, **changed)


@dataclass
class ScoringBatch(_Batch):
    """Left-padded rows, and where in their logits every token of every answer is predicted.

    B rows of T tokens; P distinct positions that predict something; N examples of at most C
    choices of at most L tokens. All integers are int64, masks bool.
    """

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T), int64
    position_ids: Tensor  # (B, T)
    keep: int  # logits are needed of the last `keep` positions only
    positions: Tensor  # (P,): row * keep + column in logits of shape (B, keep, V)
    slots: Tensor  # (N, C, L): index into positions
    tokens: Tensor  # (N, C, L): token id
    token_mask: Tensor  # (N, C, L): False where a choice has no such token
    lengths: Tensor  # (N, C): tokens of the choice; 0 where the example has no such choice
    examples: Tensor  # (N,): index into the list of examples
    answers: Tensor  # (N,): the right choice


@dataclass
class TokenBatch(_Batch):
    """Left-padded rows of prompt and right answer, without the answer's last token: (B, T) all."""

    input_ids: Tensor  # int64
    attention_mask: Tensor  # int64; padding is 0 and must not be counted
    position_ids: Tensor  # int64
    answer_mask: Tensor  # bool: True where an answer token is predicted
    targets: Tensor  # int64: the token to predict where answer_mask, else -100

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.attention_mask.sum())


def choice_logprobs(logits: Tensor, batch: ScoringBatch, normalize: bool = False) -> Tensor:
    """Log-likelihood of every choice.

    Args:
        logits: (B, keep, V), of the last `batch.keep` positions; any float dtype.
        normalize: divide by the number of tokens of the choice.

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
    total = per_token.masked_fill(~batch.token_mask, 0.0).sum(dim=-1)
    if normalize:
        total = total / batch.lengths.clamp(min=1)
    return total.masked_fill(batch.lengths == 0, float("-inf"))


def scoring_batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    batch_tokens: int = 8192,
    *,
    chat: str = "auto",
    delimiter: str = " ",
    context_length: int | None = None,
) -> list[ScoringBatch]:
    """All examples in batches of at most `batch_tokens` padded tokens, longest first.

    Every example stands in one batch with all its rows; one that is larger than `batch_tokens`
    stands alone. The fewest rows are run: a choice whose tokens but the last begin another row
    needs none of its own, so single-token labels cost one row, the prompt.

    Raises:
        ValueError: an example is longer than `context_length`, or two of its choices encode alike.
    """
    encoded = encode_examples(
        examples, tokenizer, chat=chat, delimiter=delimiter, context_length=context_length
    )
    return encoded_batches(encoded, pad_token_id(tokenizer), batch_tokens)


def encoded_batches(
    encoded: Sequence[EncodedExample], pad: int, batch_tokens: int = 8192
) -> list[ScoringBatch]:
    """As `scoring_batches`, of examples that are encoded already; pad: a token to pad with."""
    rows = [example.rows() for example in encoded]
    sizes = [(len(r), max(map(len, r))) for r in rows]
    groups = bucket(sizes, batch_tokens)
    return [_scoring_batch([(i, encoded[i], rows[i]) for i in group], pad) for group in groups]


def vocabulary_reach(batches: Sequence[ScoringBatch]) -> dict[str, int]:
    """How many different tokens the choices are made of (`answers`), and the rows (`prompts`).

    Only the logits of the former tell one answer from another.
    """
    if not batches:
        return {"answers": 0, "prompts": 0}
    answers = torch.cat([batch.tokens[batch.token_mask] for batch in batches])
    prompts = torch.cat([batch.input_ids[batch.attention_mask.bool()] for batch in batches])
    return {"answers": len(answers.unique()), "prompts": len(prompts.unique())}


def calibration_batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int | None = None,
    batch_tokens: int = 8192,
    seed: int = 0,
    *,
    chat: str = "auto",
    delimiter: str = " ",
    context_length: int | None = None,
) -> list[TokenBatch]:
    """Shuffled rows until `max_tokens` tokens are reached, in batches of like length.

    A row is the prompt and the right answer without its last token: the positions that the task
    computes. The row that reaches `max_tokens` (padding not counted) is the last; None takes all.

    Raises:
        ValueError: as `scoring_batches`.
    """
    encoded = encode_examples(
        examples, tokenizer, chat=chat, delimiter=delimiter, context_length=context_length
    )
    generator = torch.Generator().manual_seed(seed)
    chosen: list[EncodedExample] = []
    total = 0
    for index in torch.randperm(len(encoded), generator=generator).tolist():
        if max_tokens is not None and total >= max_tokens:
            break
        chosen.append(encoded[index])
        total += len(encoded[index].answer_row())
    pad = pad_token_id(tokenizer)
    groups = bucket([(1, len(example.answer_row())) for example in chosen], batch_tokens)
    return [_token_batch([chosen[i] for i in group], pad) for group in groups]


def bucket(sizes: Sequence[tuple[int, int]], batch_tokens: int) -> list[list[int]]:
    """Group items of (rows, longest row) so that rows x longest stays within `batch_tokens`.

    Longest first, so that what does not fit in memory shows at once; ties keep their order. A group
    that is a quarter full closes where the next row would be a fifth padding.
    """
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index][1], index))
    groups: list[list[int]] = []
    rows = width = 0
    for index in order:
        more, length = sizes[index]
        fits = (rows + more) * width <= batch_tokens
        padded = length < 0.8 * width and 4 * rows * width >= batch_tokens
        if groups and fits and not padded:
            groups[-1].append(index)
            rows += more
        else:
            groups.append([index])
            rows, width = more, length
    return groups


def shard(batches: Sequence[_B], rank: int, world_size: int) -> list[_B]:
    """The batches of one rank; over all ranks every batch occurs once."""
    return list(batches[rank::world_size])


def count_rows(batches: Sequence[TokenBatch]) -> int:
    """Rows of all calibration batches."""
    return sum(len(batch.input_ids) for batch in batches)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to pad with; it is masked, so any will do."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def _pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input ids, attention mask and position ids of rows, (B, T) each."""
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for index, row in enumerate(rows):
        input_ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return input_ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)


def _scoring_batch(
    items: Sequence[tuple[int, EncodedExample, list[tuple[int, ...]]]], pad: int
) -> ScoringBatch:
    """One batch of (index, example, its rows)."""
    flat = [row for _, _, rows in items for row in rows]
    # A row's last token and the ones after the prompt's last each predict one answer token.
    keep = max(len(row) - e.start + 1 for _, e, rows in items for row in rows)
    shape = (
        len(items),
        max(len(example.choices) for _, example, _ in items),
        max(len(choice) for _, example, _ in items for choice in example.choices),
    )
    places = torch.zeros(shape, dtype=torch.int64)
    tokens = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
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
            mask[n, c, : len(choice)] = True
        first_row += len(rows)
    positions, inverse = places[mask].unique(return_inverse=True)
    slots = torch.zeros(shape, dtype=torch.int64)
    slots[mask] = inverse
    return ScoringBatch(
        *_pad_left(flat, pad),
        keep=keep,
        positions=positions,
        slots=slots,
        tokens=tokens,
        token_mask=mask,
        lengths=mask.sum(dim=-1),
        examples=torch.tensor([index for index, _, _ in items]),
        answers=torch.tensor([example.answer for _, example, _ in items]),
    )


def _token_batch(encoded: Sequence[EncodedExample], pad: int) -> TokenBatch:
    input_ids, mask, position_ids = _pad_left([example.answer_row() for example in encoded], pad)
    targets = torch.full_like(input_ids, -100)
    for index, example in enumerate(encoded):
        answer = example.choices[example.answer]
        targets[index, -len(answer) :] = torch.tensor(answer)
    return TokenBatch(input_ids, mask, position_ids, targets != -100, targets)


def held_out_batches(count: int) -> list[bool]:
    """Which of `count` batches are not fitted on: one of four, at least one.

    Raises ValueError with fewer than two batches.
    """
    if count < 2:
        raise ValueError(
            f"got {count} calibration batch, expected at least 2, since some are held out; raise "
            "calibration.tokens, or set projection.refit=false and projection.tune_steps=0."
        )
    held_out = [index % HELD_OUT == HELD_OUT - 1 for index in range(count)]
    return held_out if any(held_out) else [False] * (count - 1) + [True]


def split_batches(batches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Batches to fit on, and those held out."""
    held_out = held_out_batches(len(batches))
    pairs = list(zip(batches, held_out, strict=True))
    return [b for b, held in pairs if not held], [b for b, held in pairs if held]


def every_batch(batches: Sequence[Any], seed: int = 0) -> DataLoader[Any]:
    """All batches on every rank, in an order drawn anew each epoch, the same on all ranks."""
    generator = torch.Generator().manual_seed(seed)
    held: Any = batches  # A sequence is all the data set that a loader needs.
    return DataLoader(held, batch_size=None, shuffle=True, generator=generator)
