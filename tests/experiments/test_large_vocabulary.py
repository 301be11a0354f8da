"""The experiment on large vocabularies, with a small tokenizer of Gemma's form."""

import pytest
from models import tiny_gemma3
from vocabulary_tokenizers import OTHER, TASK

from experiments.large_vocabulary import SPECIAL, gemma_tokenizer, measure
from sieve.vocabulary.tokenizer_json import BYTES


@pytest.mark.parametrize("size", [600, 3_000])
def test_a_tokenizer_of_any_size_decodes_texts_to_themselves(size: int) -> None:
    tokenizer = gemma_tokenizer([*TASK, *OTHER], size)
    assert len(tokenizer) == size and {*SPECIAL, *BYTES} <= tokenizer.get_vocab().keys()
    for text in [*TASK, *OTHER, "  two  spaces\n\n\x00🙂"]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids[1:]) == text


def test_a_cut_is_measured_and_exact() -> None:
    tokenizer = gemma_tokenizer([*TASK, *OTHER], 3_000)
    model = tiny_gemma3(vocab_size=3_000, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    record = measure(model, tokenizer, TASK)
    assert record["dense_tokens"] == 3_000 > record["tokens"] >= record["used_tokens"]
    share = 1 - record["parameters"] / record["dense_parameters"]
    assert record["points_smaller"] == pytest.approx(100 * share) and share > 0.5
    exact = record["exact"]
    assert exact["same_tokens"] == exact["rows"] and exact["decode_to_themselves"] == exact["texts"]
    assert record["milliseconds_per_token"]["ratio"] > 0
