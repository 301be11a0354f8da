"""Tokens read from the disk equal the tokenizer's, and are found by the texts alone."""

from pathlib import Path

import pytest
from models import tiny_tokenizer

from sieve.data import token_cache
from sieve.data.choices import scoring_batches
from sieve.data.token_cache import CachedTokenizer
from sieve.runtime.artifacts import Cache
from sieve.tasks.example import Example

TEXTS = ["a good movie", "", "naïve — yes", "no"] * 3


class Counted:
    """A tokenizer that counts its calls."""

    def __init__(self) -> None:
        self.inner, self.calls = tiny_tokenizer(), 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, texts, **options):
        self.calls += 1
        return self.inner(texts, **options)


@pytest.fixture(autouse=True)
def cache_four_texts(monkeypatch):
    monkeypatch.setattr(token_cache, "MANY", 4)


def cached(tmp_path: Path, key: str = "key") -> tuple[Counted, CachedTokenizer]:
    cache = Cache(tmp_path)
    cache.prepare()
    counted = Counted()
    return counted, CachedTokenizer(counted, cache, key)


def test_the_second_call_reads_the_same_tokens_from_the_disk(tmp_path):
    counted, tokenizer = cached(tmp_path)
    first = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    again, other = cached(tmp_path)
    second = other(TEXTS, add_special_tokens=False)["input_ids"]
    assert (counted.calls, again.calls) == (1, 0)
    assert [list(row) for row in first] == second == tiny_tokenizer()(TEXTS).input_ids
    other(TEXTS[:-1])
    other(TEXTS, add_special_tokens=True)
    assert again.calls == 2
    another, third = cached(tmp_path, "another tokenizer")
    third(TEXTS, add_special_tokens=False)
    assert another.calls == 1


def test_few_texts_are_not_cached(tmp_path):
    counted, tokenizer = cached(tmp_path)
    assert tokenizer(TEXTS[:3]).input_ids == tiny_tokenizer()(TEXTS[:3]).input_ids
    assert tokenizer("no").input_ids == tiny_tokenizer()("no").input_ids
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_damaged_file_is_written_again(tmp_path):
    tokenizer = cached(tmp_path)[1]
    tokenizer(TEXTS)
    [path] = tmp_path.rglob("*.safetensors")
    path.write_bytes(b"broken")
    counted, again = cached(tmp_path)
    assert [list(row) for row in again(TEXTS)["input_ids"]] == tiny_tokenizer()(TEXTS).input_ids
    assert counted.calls == 1


def test_batches_are_the_same_with_a_cached_tokenizer(tmp_path):
    examples = [Example(f"movie {i}", (" yes", " no"), i % 2) for i in range(12)]
    plain = scoring_batches(examples, tiny_tokenizer(), 40)
    for _ in range(2):
        found = scoring_batches(examples, cached(tmp_path)[1], 40)
        assert all((a.input_ids == b.input_ids).all() for a, b in zip(plain, found, strict=True))
