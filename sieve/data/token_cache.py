"""A tokenizer that keeps the tokens of many texts on disk, by their fingerprint.

Fast tokenizers share the work of many texts among all cores; a sweep, or a second run, reads what
the first has found.
"""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from sieve.runtime.artifacts import Cache, fingerprint, written_beside

MANY = 2_000  # texts that are worth a file


class CachedTokenizer:
    """Tokenizes as the tokenizer it stands for; key: a fingerprint of that one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cache: Cache, key: str) -> None:
        self._tokenizer, self._cache, self._key = tokenizer, cache, key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, texts: Any, **options: Any) -> Any:
        """`input_ids` of many texts from the disk, where they are; else as the tokenizer says."""
        if isinstance(texts, str) or len(texts) < MANY:
            return self._tokenizer(texts, **options)
        key = fingerprint("tokens", self._key, list(texts), options)
        path = self._cache.path("tokens", key, "safetensors")
        if path.exists():
            try:
                held = load_file(path)
                rows = held["ids"].split(held["lengths"].tolist())
                return {"input_ids": [row.tolist() for row in rows]}
            except (SafetensorError, KeyError, RuntimeError):
                path.unlink(missing_ok=True)  # Damaged, and soon made again.
        ids: Sequence[Sequence[int]] = self._tokenizer(texts, **options)["input_ids"]
        flat = torch.tensor([token for row in ids for token in row], dtype=torch.int32)
        lengths = torch.tensor([len(row) for row in ids], dtype=torch.int32)
        with written_beside(path) as partial:
            save_file({"ids": flat, "lengths": lengths}, partial)
        return {"input_ids": ids}
