"""A tokenizer in GGUF has its tokens in order, and llama.cpp's name for how it splits texts."""

import json

import pytest
from gguf_samples import TOKENIZERS, words
from models import tiny_tokenizer
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from vocabulary_tokenizers import TASK, content

from sieve.exports.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    gguf_tokenizer,
)
from sieve.vocabulary.tokenizer import cut_tokenizer


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_stand_at_their_ids_and_keep_their_name_when_cut(kind):
    tokenizer = words(kind)
    used = {index for text in TASK for index in tokenizer(text).input_ids}
    smaller, stays = cut_tokenizer(tokenizer, used)
    for one in (tokenizer, smaller):
        file = gguf_tokenizer(one)
        assert file.pre == ("default" if kind == "llama" else kind)
        assert file.model == ("llama" if kind == "llama" else "gpt2")
        assert {token: index for index, token in enumerate(file.tokens)} == one.get_vocab()
        assert file.ids["bos"] == one.bos_token_id and file.ids["eos"] == one.eos_token_id
        assert file.flags["add_bos_token"] == (kind in ("llama-bpe", "llama"))
        assert not file.flags["add_eos_token"]
    assert len(smaller) == len(stays) < len(tokenizer)


def test_types_of_tokens():
    file = gguf_tokenizer(words("gpt-2"), 1000)
    types = dict(zip(file.tokens, file.types, strict=True))
    assert types["<s>"] == CONTROL and types["Sentiment"] == USER_DEFINED and types["a"] == NORMAL
    assert len(file.tokens) == 1000 and types[file.tokens[-1]] == UNUSED
    file = gguf_tokenizer(words("llama"))
    types = dict(zip(file.tokens, file.types, strict=True))
    assert types["<unk>"] == UNKNOWN and types["<0x41>"] == BYTE and types["</s>"] == CONTROL
    assert file.flags["add_space_prefix"] and not file.merges


def test_scores_fall_in_the_order_of_the_merges():
    tokenizer = words("llama")
    file = gguf_tokenizer(tokenizer)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    made = [left + right for left, right in merges]
    scores = [file.scores[tokenizer.get_vocab()[token]] for token in made]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(set(made))


def test_the_default_chat_template_is_kept():
    assert gguf_tokenizer(tiny_tokenizer(chat_template="one")).chat_template == "one"
    several = tiny_tokenizer(chat_template={"default": "one", "tool": "two"})
    assert gguf_tokenizer(several).chat_template == "one"


def changed(**parts):
    """A tokenizer with other parts than the tiny one's."""
    tokenizer = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


def trained(family):
    tokenizer = Tokenizer.from_str(content(family))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


PLAIN = pre_tokenizers.ByteLevel(add_prefix_space=False)
PREFIXED = pre_tokenizers.ByteLevel(add_prefix_space=True)
PUNCTUATED = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), PLAIN])
TWICE = processors.TemplateProcessing("<bos> <bos> $A", special_tokens=[("<bos>", 1)])
UNFIT = {
    "a Unigram tokenizer, not a BPE": lambda: trained("unigram"),
    "merges do not follow from scores": lambda: trained("llama"),
    "changes texts by Lowercase": lambda: changed(normalizer=normalizers.Lowercase()),
    "not a BPE of bytes that leaves texts as they": lambda: changed(pre_tokenizer=PREFIXED),
    "no name, that Sieve knows": lambda: changed(pre_tokenizer=PUNCTUATED),
    "sets other tokens around texts": lambda: changed(post_processor=TWICE),
}


@pytest.mark.parametrize("message", UNFIT)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(message):
    with pytest.raises(ValueError, match=f"{message}.*use export=factorized"):
        gguf_tokenizer(UNFIT[message]())


def test_more_tokens_than_embeddings_are_refused():
    count = len(tiny_tokenizer())
    with pytest.raises(ValueError, match=f"has {count} tokens and the model 300 embeddings"):
        gguf_tokenizer(tiny_tokenizer(), 300)
