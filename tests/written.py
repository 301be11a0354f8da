"""Prompts whose answers a tiny model writes, and a writer for them."""

from models import tiny_tokenizer

from sieve.data.generation import Writer
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
