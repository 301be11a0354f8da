"""The rows that calibration, refit and recovery read: drawn from the calibration split."""

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from transformers import PreTrainedTokenizerBase

from sieve.data.batches import TokenBatch, bucket, token_batch
from sieve.data.encoding import EncodedExample, EncodingOptions, Tokens, encode_examples
from sieve.data.sharing import PrefixSharing
from sieve.model.backbone import pad_token_id
from sieve.tasks.example import Example

FIRST_ROWS = 256  # rows that are encoded before the number of tokens is checked
Encode = Callable[[Sequence[Example]], list[EncodedExample]]


def calibration_batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int | None = None,
    batch_tokens: int = 8192,
    seed: int = 0,
    *,
    max_rows: int | None = None,
    sharing: PrefixSharing | None = None,
    **options: Unpack[EncodingOptions],
) -> list[TokenBatch]:
    """Shuffled rows until `max_tokens` tokens are reached, in batches of similar length.

    A row is the prompt and the right answer without its last token, as in scoring. The row that
    reaches `max_tokens` is the last; padding and a shared prefix do not count. None takes all rows.

    Args:
        max_rows: the most rows.
        sharing: whether the common prefix of all rows runs once per batch; None: never.
        options: as for `encode_examples`; with rolling=True, a text that is longer than the context
            becomes several rows.

    Raises:
        ValueError: as `scoring_batches`.
    """
    window = options.get("context_length") if options.get("rolling") else None
    if options.get("rolling"):
        options["context_length"] = None

    def encode(some: Sequence[Example]) -> list[EncodedExample]:
        encoded = encode_examples(some, tokenizer, **options)
        return [row for example in encoded for row in example.windows(window)]

    rows, prefix, longest = draw_rows(examples, encode, max_tokens, seed, max_rows, sharing)
    pad = pad_token_id(tokenizer)
    alone = [row for row in rows if not shares_prefix(row, longest)]
    together = [row for row in rows if shares_prefix(row, longest)]
    shared = token_batches(together, pad, batch_tokens, prefix=prefix)
    return shared + token_batches(alone, pad, batch_tokens)


def draw_rows(
    examples: Sequence[Example],
    encode: Encode,
    max_tokens: int | None,
    seed: int,
    max_rows: int | None = None,
    sharing: PrefixSharing | None = None,
) -> tuple[list[EncodedExample], Tokens, float]:
    """Encoded rows in an order drawn from the seed, until `max_tokens` own tokens are reached.

    Also returns the prefix that rows share, and the length of the longest row that may share it.
    """
    order = drawn_order(len(examples), seed)
    rows, start, count = list[EncodedExample](), 0, FIRST_ROWS
    prefix, longest, last = Tokens(), 0.0, 0
    while start < len(order) and last == len(rows):
        rows += encode([examples[index] for index in order[start : start + count]])
        start, count = start + count, 2 * count
        prefix, longest = sharing.prefix(rows, hooked=True) if sharing else ((), 0)
        last = _last(rows, prefix, longest, max_tokens, max_rows)
    return rows[:last], prefix, longest


def drawn_order(count: int, seed: int) -> list[int]:
    """The order in which `draw_rows` takes `count` examples."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator).tolist()


def _last(
    rows: Sequence[EncodedExample],
    prefix: Tokens,
    longest: float,
    max_tokens: int | None,
    max_rows: int | None,
) -> int:
    """The number of rows that reach `max_tokens` without the prefix: at most `max_rows` or all."""
    tokens, limit = 0, len(rows) if max_rows is None else min(len(rows), max_rows)
    for index, row in enumerate(rows[:limit]):
        if max_tokens is not None and tokens >= max_tokens:
            return index
        tokens += len(row.answer_row()) - (len(prefix) if shares_prefix(row, longest) else 0)
    return limit


def shares_prefix(row: EncodedExample, longest: float) -> bool:
    """Whether a row is short enough to share the prefix of all rows."""
    return len(row.answer_row()) <= longest


def token_batches(
    rows: Sequence[EncodedExample],
    pad: int,
    batch_tokens: int,
    pad_right: bool = False,
    prefix: Tokens = (),
) -> list[TokenBatch]:
    """Rows in batches of at most `batch_tokens` padded tokens, the prefix not counted."""
    sizes = [(1, len(row.answer_row()) - len(prefix)) for row in rows]
    groups = bucket(sizes, batch_tokens)
    return [token_batch([rows[i] for i in group], pad, pad_right, prefix) for group in groups]
