"""A tokenizer that caches the tokens of many texts on disk, by the fingerprint of the texts.

A sweep or a second run reads the tokens that the first run computed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from sieve.runtime.artifacts import Cache, fingerprint, written_beside

MANY = 2_000  # the fewest texts that are cached


class CachedTokenizer:
    """Behaves as `tokenizer`, whose fingerprint is `key`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cache: Cache, key: str) -> None:
        self._tokenizer, self._cache, self._key = tokenizer, cache, key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, texts: str | Sequence[str], **options: Any) -> Any:
        """`input_ids` of many texts from the disk if they are there, else from the tokenizer."""
        if isinstance(texts, str) or len(texts) < MANY:
            return self._tokenizer(texts, **options)
        key = fingerprint("tokens", self._key, list(texts), options)
        path = self._cache.path("tokens", key, "safetensors")
        if path.exists():
            try:
                tensors = load_file(path)
                rows = tensors["ids"].split(tensors["lengths"].tolist())
                return {"input_ids": [row.tolist() for row in rows]}
            except (SafetensorError, KeyError, RuntimeError):
                path.unlink(missing_ok=True)  # The file is damaged; write it again.
        ids: Sequence[Sequence[int]] = self._tokenizer(texts, **options)["input_ids"]
        flat = torch.tensor([token for row in ids for token in row], dtype=torch.int32)
        lengths = torch.tensor([len(row) for row in ids], dtype=torch.int32)
        with written_beside(path) as partial:
            save_file({"ids": flat, "lengths": lengths}, partial)
        return {"input_ids": ids}
