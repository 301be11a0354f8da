"""Batches of tokens: padded, of like length, dealt out to ranks; and those of calibration.

Batches are built once and sorted by length, so that no row is counted twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from sieve.data.encoding import EncodedExample, encode_examples
from sieve.model.backbone import pad_token_id
from sieve.tasks.example import Example

_B = TypeVar("_B", bound="TensorBatch")
_T = TypeVar("_T")
IGNORED = -100  # the target of a position where nothing is predicted
HELD_OUT = 4  # one of so many batches
FIRST_ROWS = 256  # that are encoded to see whether they are enough


@dataclass
class TensorBatch:
    """A dataclass of tensors that moves to a device as one."""

    def to(self: _B, device: torch.device | str, **kwargs: Any) -> _B:
        """The same batch with its tensors on `device`."""
        return self._mapped(lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self: _B) -> _B:
        """The same batch in page-locked memory."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self: _B, change: Callable[[Tensor], Tensor]) -> _B:
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {
            name: change(one) if isinstance(one, Tensor) else one._mapped(change)
            for name, one in held.items()
            if isinstance(one, Tensor | TensorBatch)
        }
        return replace(self, **changed)


@dataclass
class TokenBatch(TensorBatch):
    """Left-padded rows of prompt and right answer, without the answer's last token: (B, T) all."""

    input_ids: Tensor  # int64
    attention_mask: Tensor  # int64; padding is 0 and must not be counted
    position_ids: Tensor | None  # int64; None leaves them to the model
    answer_mask: Tensor  # bool: True where an answer token is predicted
    targets: Tensor  # int64: the token to predict where answer_mask, else -100

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.attention_mask.sum())


def as_inputs(batch: Any) -> dict[str, Tensor]:
    """The tensors a model reads, from a mapping or an object with those attributes."""
    return held(batch, ("input_ids", "attention_mask", "position_ids"))


def held(batch: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Those of some tensors that a mapping or an object has."""
    get = batch.get if isinstance(batch, Mapping) else lambda name: getattr(batch, name, None)
    return {name: value for name in names if (value := get(name)) is not None}


def as_targets(batch: Any) -> Tensor:
    """Tokens to predict (B, T), −100 where none is: the batch's `targets`, or every next one."""
    get = batch.get if isinstance(batch, Mapping) else partial(getattr, batch)
    if (targets := get("targets", None)) is not None:
        return targets
    ids, mask = get("input_ids", None), get("attention_mask", None)
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    if mask is not None:
        seen = mask.bool()
        targets[:, :-1].masked_fill_(~(seen[:, :-1] & seen[:, 1:]), IGNORED)
    return targets


def trailing_positions(wanted: Tensor) -> int:
    """How many of the last positions reach back to the first wanted one (B, T); at least 1."""
    found = wanted.any(0).nonzero()
    return wanted.shape[1] - int(found[0]) if len(found) else 1


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
    cut: Callable[[int], None] | None = None,
    rolling: bool = False,
    harness: bool = False,
) -> list[TokenBatch]:
    """Shuffled rows until `max_tokens` tokens are reached, in batches of like length.

    A row is the prompt and the right answer without its last token: the positions that the task
    computes. The row that reaches `max_tokens` (padding not counted) is the last; None takes all.

    rolling: text that is longer than the context becomes several rows. cut: as of
    `encode_examples`.

    Raises:
        ValueError: as `scoring_batches`.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator).tolist()
    chosen, total, begin, step = list[EncodedExample](), 0, 0, FIRST_ROWS
    while begin < len(order) and (max_tokens is None or total < max_tokens):
        drawn_now = [examples[index] for index in order[begin : begin + step]]
        begin, step = begin + step, 2 * step  # No more are encoded than it takes.
        encoded = encode_examples(
            drawn_now, tokenizer, chat=chat, delimiter=delimiter, cut=cut, harness=harness,
            rolling=rolling, context_length=None if rolling else context_length,
        )  # fmt: skip
        for one in encoded:
            for part in one.windows(context_length) if rolling else [one]:
                if max_tokens is None or total < max_tokens:
                    chosen.append(part)
                    total += len(part.answer_row())
    pad = pad_token_id(tokenizer)
    groups = bucket([(1, len(example.answer_row())) for example in chosen], batch_tokens)
    return [_token_batch([chosen[i] for i in group], pad) for group in groups]


def drawn(lengths: Sequence[int], max_tokens: int | None, seed: int) -> list[int]:
    """Indexes of rows in an order drawn from the seed, until `max_tokens` tokens are reached."""
    generator = torch.Generator().manual_seed(seed)
    chosen, total = list[int](), 0
    for index in torch.randperm(len(lengths), generator=generator).tolist():
        if max_tokens is not None and total >= max_tokens:
            break
        chosen.append(index)
        total += lengths[index]
    return chosen


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


def shard(batches: Sequence[_T], rank: int, world_size: int) -> list[_T]:
    """The batches of one rank; over all ranks every batch occurs once."""
    return list(batches[rank::world_size])


def count_rows(batches: Sequence[TokenBatch]) -> int:
    """Rows of all calibration batches."""
    return sum(len(batch.input_ids) for batch in batches)


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input ids, attention mask and position ids of rows, (B, T) each."""
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for index, row in enumerate(rows):
        input_ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return input_ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)


def _token_batch(encoded: Sequence[EncodedExample], pad: int) -> TokenBatch:
    input_ids, mask, position_ids = pad_left([example.answer_row() for example in encoded], pad)
    targets = torch.full_like(input_ids, -100)
    for index, example in enumerate(encoded):
        answer = example.scored(example.answer)
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
