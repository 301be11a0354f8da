"""Tokenizers of transformers with fewer tokens: saved and loaded like any other."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from models import SPECIALS, tiny_tokenizer
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from vocabulary_tokenizers import TASK, content

from sieve.vocabulary.tokenizer import cut_tokenizer

TEXT = "a good film. the answer: yes"


def _smaller(tokenizer: Any, texts: list[str]) -> tuple[Any, list[int]]:
    used = {index for text in texts for index in tokenizer(text)["input_ids"]}
    return cut_tokenizer(tokenizer, used)


def test_saved_and_loaded_tokenizers_are_equal(tmp_path: Path) -> None:
    template = "{{ messages[0].content }} question:"
    whole = tiny_tokenizer(chat_template=template)
    smaller, stays = _smaller(whole, [TEXT])
    smaller.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = {old: new for new, old in enumerate(stays)}
    assert loaded.get_vocab() == smaller.get_vocab()
    assert loaded(TEXT)["input_ids"] == [ids[old] for old in whole(TEXT)["input_ids"]]
    assert loaded.chat_template == template
    for role in ("pad_token", "bos_token", "eos_token"):
        assert getattr(loaded, role) == getattr(whole, role)
        assert getattr(loaded, f"{role}_id") == ids[getattr(whole, f"{role}_id")]
    settings = ("model_max_length", "padding_side", "clean_up_tokenization_spaces")
    assert all(getattr(loaded, name) == getattr(whole, name) for name in settings)


def test_the_tokens_of_a_chat_template_stay() -> None:
    whole = tiny_tokenizer(chat_template="<|user|>{{ messages[0].content }}")
    whole.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|tool|>"]})
    smaller, _ = _smaller(whole, [TEXT])
    assert {*SPECIALS, "<|user|>"} <= smaller.get_vocab().keys()
    assert "<|tool|>" not in smaller.get_vocab()
    assert len(smaller("<|tool|>")["input_ids"]) > 1


@pytest.mark.parametrize("family", ["llama", "llama3", "qwen", "gemma", "phi", "unigram_bytes"])
def test_tokenizers_of_other_families_survive_saving(family: str, tmp_path: Path) -> None:
    backend = Tokenizer.from_str(content(family))
    whole = PreTrainedTokenizerFast(tokenizer_object=backend)
    smaller, stays = _smaller(whole, list(TASK))
    smaller.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = {old: new for new, old in enumerate(stays)}
    for text in TASK:
        assert loaded(text)["input_ids"] == [ids[old] for old in whole(text)["input_ids"]]


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "LlamaTokenizer"),
        ("gemma", "GemmaTokenizer"),
        ("qwen", "Qwen2Tokenizer"),
        ("gpt2", "GPT2Tokenizer"),
        ("unigram", "T5Tokenizer"),
    ],
)
def test_classes_that_build_their_own_tokenizer_can_be_cut(
    family: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(content(family))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    whole = getattr(transformers, name).from_pretrained(tmp_path)
    smaller, stays = _smaller(whole, list(TASK))
    smaller.save_pretrained(tmp_path / "cut")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "cut")
    ids = {old: new for new, old in enumerate(stays)}
    assert type(loaded).__name__ == name and len(loaded) < len(whole)
    for text in TASK:
        assert loaded(text)["input_ids"] == [ids[old] for old in whole(text)["input_ids"]]


def test_refusals_name_the_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.model.dropout = 0.5
    with pytest.raises(
        ValueError, match=f"cannot cut {type(tokenizer).__name__} exactly: it drops"
    ):
        cut_tokenizer(tokenizer, {1})


def test_tokenizers_without_a_tokenizer_json_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="cannot cut Slow: it has no tokenizer.json"):
        cut_tokenizer(Slow(), {1})  # type: ignore[arg-type]
