"""Batches of padded tokens: rows of similar length, split over ranks.

Batches are built once and sorted by length, so no row is counted twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Self, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sieve.data.encoding import EncodedExample, Tokens

Batch = TypeVar("Batch")
IGNORED = -100  # target of a position where nothing is predicted
HELD_OUT = 4  # one batch of four is held out


@dataclass
class TensorBatch:
    """A dataclass whose tensors move to a device together."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: value.to(device)
            for name, value in values.items()
            if isinstance(value, Tensor | TensorBatch)
        }
        return replace(self, **moved)


@dataclass
class TokenBatch(TensorBatch):
    """Padded rows (B, T) of prompt and right answer, without the last token of the answer."""

    input_ids: Tensor  # int64
    attention_mask: Tensor  # int64; 0 for padding, which must not be counted
    position_ids: Tensor | None  # int64; None: the model counts positions itself
    answer_mask: Tensor  # bool: True where an answer token is predicted
    targets: Tensor  # int64: the token to predict where answer_mask, else -100
    prefix: Tokens = ()  # the tokens that all rows begin with and that run once, if any

    @property
    def tokens(self) -> int:
        """Number of tokens without padding."""
        return int(self.attention_mask.sum())


def as_inputs(batch: object) -> dict[str, Tensor]:
    """The tensors that a model reads, from a mapping or an object with such attributes."""
    return present_tensors(batch, ("input_ids", "attention_mask", "position_ids"))


def present_tensors(batch: object, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a mapping or an object that have one of the names and are not None."""
    get = batch.get if isinstance(batch, Mapping) else partial(getattr, batch)
    return {name: tensor for name in names if (tensor := get(name, None)) is not None}


def on_device(batch: object, device: torch.device) -> object:
    """A batch with its tensors on a device."""
    if isinstance(batch, TokenBatch):
        return batch.to(device)
    names = ("input_ids", "attention_mask", "position_ids", "targets")
    return {name: t.to(device) for name, t in present_tensors(batch, names).items()}


def count_tokens(batch: object) -> int:
    """Tokens of a batch, a mapping or an object, without padding."""
    tensors = present_tensors(batch, ("input_ids", "attention_mask"))
    mask = tensors.get("attention_mask")
    return tensors["input_ids"].numel() if mask is None else int(mask.sum())


def as_targets(batch: object) -> Tensor:
    """Tokens to predict (B, T), −100 for none: the batch's `targets`, or else every next token."""
    tensors = present_tensors(batch, ("targets", "input_ids", "attention_mask"))
    if "targets" in tensors:
        return tensors["targets"]
    ids = tensors["input_ids"]
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    if "attention_mask" in tensors:
        mask = tensors["attention_mask"].bool()
        targets[:, :-1].masked_fill_(~(mask[:, :-1] & mask[:, 1:]), IGNORED)
    return targets


def trailing_positions(wanted: Tensor) -> int:
    """The fewest last positions that include all wanted ones (B, T) of every row; at least 1."""
    columns = wanted.any(0).nonzero()
    return wanted.shape[1] - int(columns[0]) if len(columns) else 1


def token_batch(
    rows: Sequence[EncodedExample], pad: int, pad_right: bool = False, prefix: Tokens = ()
) -> TokenBatch:
    """One batch of rows, with the targets in the last columns.

    Also with padding on the right: a classifier has one prediction per row, wherever the row ends.
    """
    inputs = pad_rows([row.answer_row() for row in rows], pad, pad_right)
    targets = torch.full_like(inputs[0], IGNORED)
    for index, row in enumerate(rows):
        answer = row.scored(row.answer)
        targets[index, -len(answer) :] = torch.tensor(answer)
    return TokenBatch(*inputs, targets != IGNORED, targets, prefix)


def bucket(sizes: Sequence[tuple[int, int]], batch_tokens: int) -> list[list[int]]:
    """Group items, each given as (number of rows, length of the longest), into batches.

    A batch has at most `batch_tokens` tokens, padding included. The longest items come first, so
    that running out of memory shows at once; ties keep their order. A group that is at least a
    quarter full is closed when more than a fifth of the next item would be padding.
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


def batches_of_rank(batches: Sequence[Batch], rank: int, world_size: int) -> list[Batch]:
    """The batches of one rank; over all ranks every batch occurs once."""
    return list(batches[rank::world_size])


def count_rows(batches: Sequence[TokenBatch]) -> int:
    """Rows of all calibration batches."""
    return sum(len(batch.input_ids) for batch in batches)


def pad_rows(
    rows: Sequence[Sequence[int]], pad: int, right: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input ids, attention mask and position ids (B, T) of rows that are padded on the left.

    right: pad on the right, as encoders are trained, without position ids.
    """
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for index, row in enumerate(rows):
        columns = slice(len(row)) if right else slice(width - len(row), width)
        input_ids[index, columns] = torch.tensor(row)
        mask[index, columns] = 1
    return input_ids, mask, None if right else (mask.cumsum(dim=1) - 1).clamp(min=0)


def held_out_batches(count: int) -> list[bool]:
    """Which of `count` batches are held out from a fit: every fourth, at least one.

    Raises ValueError with fewer than two batches.
    """
    if count < 2:
        raise ValueError(
            f"got {count} calibration batch, expected at least 2, since one is held out to check "
            "the fit; raise calibration.tokens, or set projection.refit=false and "
            "projection.tune_steps=0."
        )
    held_out = [index % HELD_OUT == HELD_OUT - 1 for index in range(count)]
    return held_out if any(held_out) else [False] * (count - 1) + [True]


def split_batches(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Batches to fit on, and held-out batches."""
    pairs = list(zip(batches, held_out_batches(len(batches)), strict=True))
    return [b for b, held_out in pairs if not held_out], [b for b, held_out in pairs if held_out]


def every_batch(batches: Sequence[Batch], seed: int = 0) -> DataLoader[Batch]:
    """All batches on every rank, reshuffled each epoch, in the same order on all ranks."""
    generator = torch.Generator().manual_seed(seed)
    dataset = cast("Dataset[Batch]", batches)  # A loader needs only a sequence.
    return DataLoader(dataset, batch_size=None, shuffle=True, generator=generator)
