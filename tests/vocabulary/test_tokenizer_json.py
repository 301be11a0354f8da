"""Tokenizers with fewer tokens: the same tokens of a task's texts, and every text encodes."""

import json
import random
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from vocabulary_tokenizers import FAMILIES, OTHER, RESERVED, SCRIPTS, TASK, load

from sieve.vocabulary.tokenizer_json import BYTES, cut, merged, vocabulary

Json = dict[str, Any]


@cache
def _both(family: str, texts: tuple[str, ...] = TASK) -> tuple[Tokenizer, Tokenizer, list[int]]:
    """A tokenizer, the same without the tokens that the texts do not use, and the old ids."""
    whole = load(family)
    old = Tokenizer.from_str(json.dumps(whole))
    used = {index for text in texts for index in old.encode(text).ids}
    content, stays = cut(whole, used, [])
    return old, Tokenizer.from_str(json.dumps(content)), stays


def _same(old: Tokenizer, new: Tokenizer, stays: list[int], texts: list[str]) -> int:
    """Assert that texts whose tokens all stay keep them; returns how many texts these are."""
    ids, compared = {index: new for new, index in enumerate(stays)}, 0
    for text in texts:
        before, after = old.encode(text), new.encode(text)
        if ids.keys() >= set(before.ids):
            assert [ids[index] for index in before.ids] == after.ids
            assert before.tokens == after.tokens
            compared += 1
    return compared


def _decoded(tokenizer: Tokenizer, text: str) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_whose_tokens_all_stay_keep_them(family: str) -> None:
    old, new, stays = _both(family)
    assert new.get_vocab_size() == len(stays) < old.get_vocab_size()
    words = sorted({word for text in TASK for word in text.split()})
    rng = random.Random(0)
    mixed = [" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(300)]
    parts = [text[rng.randrange(len(text)) :][: rng.randint(1, 12)] for text in TASK * 100]
    assert _same(old, new, stays, TASK) == len(TASK)
    assert _same(old, new, stays, mixed + parts) > 50


@pytest.mark.parametrize("family", FAMILIES)
def test_other_texts_decode_to_what_they_decode_to_with_all_tokens(family: str) -> None:
    old, new, _ = _both(family)
    for text in [*TASK, *OTHER, *SCRIPTS]:
        assert _decoded(new, text) == _decoded(old, text)
    longer = [len(new.encode(text)) - len(old.encode(text)) for text in OTHER]
    assert min(longer) >= 0 and max(longer) > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama3", "gemma"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_decodes_to_itself(family: str, text: str) -> None:
    _, new, _ = _both(family)
    assert _decoded(new, text) == (text.replace("▁", " ") if family == "gemma" else text)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_encodes_as_well_as_with_all_tokens(family: str, text: str) -> None:
    old, new, stays = _both(family)
    assert _decoded(new, text) == _decoded(old, text)
    _same(old, new, stays, [text])


@pytest.mark.parametrize("family", FAMILIES)
def test_random_texts_of_many_scripts_encode_as_well_as_with_all_tokens(family: str) -> None:
    old, new, stays = _both(family)
    rng = random.Random(1)
    pieces = [*TASK, *OTHER, *SCRIPTS]
    for _ in range(10_000 // len(FAMILIES)):
        characters = [chr(rng.choice((rng.randrange(0x250), rng.randrange(0xD800)))) for _ in "abc"]
        piece = rng.choice(pieces)
        start = rng.randrange(len(piece) + 1)
        text = "".join(characters) + piece[start : start + rng.randrange(20)]
        assert _decoded(new, text) == _decoded(old, text)
        _same(old, new, stays, [text])


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "unigram"])
def test_reserved_tokens_leave_unless_they_are_used_or_named(family: str) -> None:
    whole = load(family)
    unused, used, named = (vocabulary(whole)[token] for token in RESERVED)
    _, stays = cut(whole, {used}, [RESERVED[2], "<no such token>"])
    assert unused not in stays and {used, named} <= set(stays)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_most_common_tokens_fill_a_vocabulary(family: str) -> None:
    whole, (_, _, few) = load(family), _both(family, ("",))
    content, stays = cut(whole, set(few), [], least=len(few) + 9)
    names = {index: token for token, index in vocabulary(whole).items()}
    extra = {names[index] for index in set(stays) - set(few)}
    if family.startswith("unigram"):
        order = [piece for piece, _ in sorted(whole["model"]["vocab"], key=lambda entry: -entry[1])]
    else:
        order = ["".join(pair) for pair in whole["model"]["merges"]]
    ids, added = vocabulary(whole), {token["content"] for token in whole["added_tokens"]}
    first = [token for token in order if token not in added and ids[token] not in few][:9]
    # With a byte fallback, a character has a token only if another token needs it.
    assert extra >= set(first) and all(len(token) == 1 for token in extra - set(first))
    old, new = (Tokenizer.from_str(json.dumps(one)) for one in (whole, content))
    _same(old, new, stays, [*TASK, *OTHER])


@pytest.mark.parametrize("family", ["llama", "gemma", "phi", "unigram_bytes"])
def test_all_bytes_stay(family: str) -> None:
    _, new, _ = _both(family, ("",))
    assert set(BYTES) <= new.get_vocab().keys()
    assert new.get_vocab_size() < 300


def test_ids_of_post_processor_and_padding_follow() -> None:
    _, new, _ = _both("gpt2")
    begin, end = (new.token_to_id(token) for token in ("<|begin_of_text|>", "<|end|>"))
    ids = new.encode("great").ids
    assert (ids[0], ids[-1]) == (begin, end)
    _, new, _ = _both("phi")
    assert new.padding["pad_id"] == new.token_to_id("</s>")
    short, _ = new.encode_batch(["a", "a great film"])
    assert short.ids[0] == new.token_to_id("</s>")


def test_only_the_merges_that_make_a_token_keep_their_parts() -> None:
    # "abc" is made as ab + c, because (a, b) has the lowest rank; "bc" is not needed for it.
    merges = [["a", "b"], ["b", "c"], ["a", "bc"], ["ab", "c"]]
    ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
    assert merged("abc", ranks) == (["abc"], {"a", "b", "c", "ab", "abc"})
    tokens = ["a", "b", "c", "ab", "bc", "abc"]
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}
    content, stays = cut(_content(model), {tokens.index("abc")}, [])
    assert [tokens[index] for index in stays] == ["a", "b", "c", "ab", "abc"]
    assert content["model"]["merges"] == [["a", "b"], ["ab", "c"]]


def test_the_score_of_unknown_characters_stays() -> None:
    # With a lowest score of −7, a | unknown b (−17) | cdefg would beat abc | de | fg.
    scores = {"<unk>": 0, "a": -1, "cdefg": -1, "abc": -7, "de": -7, "fg": -7, "b": -30}
    scores |= {token: 0 for token in BYTES}
    model = {"type": "Unigram", "unk_id": 0, "vocab": [list(p) for p in scores.items()]}
    model["byte_fallback"] = True
    old = Tokenizer.from_str(json.dumps(_content(model)))
    assert old.encode("abcdefg").tokens == ["abc", "de", "fg"]
    used = {*old.encode("abcdefg").ids, *old.encode("acdefg").ids}
    content, _ = cut(_content(model), used, [])
    assert Tokenizer.from_str(json.dumps(content)).encode("abcdefg").tokens == ["abc", "de", "fg"]


def _content(model: Json) -> Json:
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    return {"version": "1.0", "added_tokens": [], "model": model} | dict.fromkeys(parts)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"type": "WordPiece"}, "WordPiece tokenizer, which reads words"),
        ({"type": "WordLevel"}, "WordLevel tokenizer, which reads words"),
        ({"dropout": 0.1}, "drops merges at random"),
        ({"end_of_word_suffix": "</w>"}, "marks the tokens inside words"),
        ({"byte_fallback": True}, "no tokens for some of them"),
    ],
)
def test_tokenizers_that_cannot_be_cut_exactly_are_refused(change: Json, reason: str) -> None:
    whole = load("gpt2")
    with pytest.raises(ValueError, match=f"{reason}.*set vocabulary=none"):
        cut(whole | {"model": whole["model"] | change}, {1}, [])


def test_unknown_post_processors_are_refused() -> None:
    whole = load("gpt2") | {"post_processor": {"type": "Novel"}}
    with pytest.raises(ValueError, match="ids in a post-processor Novel"):
        cut(whole, {1}, [])
