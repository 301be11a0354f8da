"""Small tokenizers in the forms of well-known ones, and texts of many scripts."""

import json
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from sieve.vocabulary.tokenizer_json import BYTES

FAMILIES = ("llama", "llama3", "gpt2", "qwen", "gemma", "phi", "unigram", "unigram_bytes")
TASK = (
    "The film was a great joy to watch.\nSentiment: positive",
    "A dull, joyless and much too long film; nobody laughed.\nSentiment: negative",
    "  Two spaces, a tab\t and «größere Wörter» — voilà: 3.14159!",
)
OTHER = [
    "Every quick brown fox jumps over lazy dogs, reading joylessly, watching greatness.",
    "def encode(text):\n    return [token for token in text.split() if token]\n",
    "Съешь же ещё этих мягких французских булок да выпей чаю.",
    "いろはにほへと ちりぬるを 漢字 かな交じり文",
    "नमस्ते दुनिया! مرحبا بالعالم שלום עולם 안녕하세요 สวัสดี",
    "a an and ant anther thee there these other others another",
]
SCRIPTS = [
    *("Ελληνικά", "ქართული", "Հայերեն", "தமிழ்", "ಕನ್ನಡ", "ᏣᎳᎩ", "ខ្មែរ", "አማርኛ", "བོད་ཡིག", "ᠮᠣᠩᠭᠣᠯ"),
    *(
        "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
        "\x00\x01\x7f\u200b\ufeff\u2028",
        "e\u0301 é",
        "𝕌𝕟𝕚𝕔𝕠𝕕𝕖",
        "<0x41> <s> <unused1>",
    ),
    "<0x41> <s> <unused1>",
    *("", " ", "   ", "\n\n\t ", "▁▁a", "a" * 70, "💩" * 5, "if(x<=0){return;}"),
]
RESERVED = ["<unused0>", "<unused1>", "<unused2>"]


@cache
def content(family: str) -> str:
    """The tokenizer.json of a family, as text."""
    return _build(family).to_str()


def load(family: str) -> dict[str, Any]:
    """The parsed tokenizer.json of a family."""
    return json.loads(content(family))


def _build(family: str) -> Tokenizer:
    if family.startswith("unigram"):
        return _unigram(family == "unigram_bytes")
    return _sentencepiece(family) if family in ("llama", "gemma", "phi") else _byte_level(family)


def _byte_level(family: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=family == "llama3"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if family == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    begin = "<|begin_of_text|>"
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[begin] if family == "gpt2" else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TASK, *OTHER], trainer)
    # As in Qwen and Llama 3, added tokens have the highest ids.
    tokenizer.add_special_tokens([begin, "<|end|>", *RESERVED])
    template = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    if family == "llama3":
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
        # A word that no merges make: only the whole word has a token.
        return _with_whole_word(tokenizer, "Ġwatching")
    if family == "gpt2":
        tokenizer.post_processor = processors.RobertaProcessing(
            ("<|end|>", tokenizer.token_to_id("<|end|>")), (begin, tokenizer.token_to_id(begin))
        )
    return tokenizer


def _with_whole_word(tokenizer: Tokenizer, word: str) -> Tokenizer:
    parsed = json.loads(tokenizer.to_str())
    model = parsed["model"]
    if word in model["vocab"]:
        model["merges"] = [pair for pair in model["merges"] if "".join(pair) != word]
    else:  # It takes the id of the last token, which no merge needs.
        last = model["merges"].pop()
        model["vocab"][word] = model["vocab"].pop("".join(last))
    return Tokenizer.from_str(json.dumps(parsed))


def _sentencepiece(family: str) -> Tokenizer:
    """BPE over whole texts with ▁ for spaces, and bytes for characters without a token."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *RESERVED, *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=1100, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*TASK, *OTHER], trainer)
    parsed = json.loads(tokenizer.to_str())
    bytes_ = set(BYTES)
    parsed["added_tokens"] = [t for t in parsed["added_tokens"] if t["content"] not in bytes_]
    tokenizer = Tokenizer.from_str(json.dumps(parsed))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = None
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if family == "gemma":
        tokenizer.normalizer = replace
        tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("▁▁")])
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        steps.append(decoders.Strip(" ", 1, 0))
    if family == "phi":
        tokenizer.add_special_tokens([f"<|placeholder{i}|>" for i in range(3)])
        tokenizer.enable_padding(pad_id=2, pad_token="</s>", direction="left")
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def _unigram(byte_fallback: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", *RESERVED]
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*TASK, *OTHER], trainer)
    if not byte_fallback:
        return tokenizer
    parsed = json.loads(tokenizer.to_str())
    parsed["model"]["vocab"] += [[token, -40.0] for token in BYTES]
    parsed["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(parsed))
    steps = [decoders.ByteFallback(), decoders.Metaspace()]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer
