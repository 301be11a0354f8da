"""Prompts whose answers a tiny model writes, a writer for them, and batches of other kinds."""

from collections.abc import Sequence

from models import tiny_tokenizer

import sieve
from sieve.data.generation import Writer
from sieve.data.scored import ScoredBatch
from sieve.data.text import text_batches
from sieve.tasks.example import Example
from sieve.tasks.metrics import Metric, RowMetric
from sieve.tasks.row_values import exact_match
from sieve.tasks.writing import Writing

MATCH = RowMetric(Metric("exact_match"), from_text=exact_match)
EXAMPLES = [
    Example("a good movie" + " the" * (3 * i) + f" {i}", (" yes",), 0, references=("yes", "no"))
    for i in range(9)
]


def writer(
    stop: tuple[str, ...] = (), max_new_tokens: int = 6, extract: str | None = None
) -> Writer:
    """A writer that stops at one of these texts, or after this many tokens."""
    writing = Writing(stop=stop, max_new_tokens=max_new_tokens, extract=extract)
    return Writer(tiny_tokenizer(), writing, MATCH)


def choices(rows: Sequence[Example]) -> Sequence[ScoredBatch]:
    """Batches of the rows' choices."""
    return sieve.scoring_batches(rows, tiny_tokenizer(), batch_tokens=64)


def texts(rows: Sequence[Example]) -> Sequence[ScoredBatch]:
    """Batches of the rows' prompts as texts."""
    metric = Metric("perplexity", "perplexity", 0.0)
    whole = [Example("", (row.prompt,), 0) for row in rows]
    return text_batches(whole, tiny_tokenizer(), metric, batch_tokens=64)
