"""Small models without some parts, and tokenizers in the forms that llama.cpp has names for."""

import json
from collections.abc import Sequence

import torch
from models import tiny_llama, tiny_llama_tied, tiny_mistral, tiny_qwen2, tiny_qwen3
from sieved import banked, tokens
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from vocabulary_tokenizers import OTHER, TASK

import sieve
from sieve.bank.bank import Bank, fit
from sieve.bank.genome import Genome
from sieve.calibration.calibration import calibrate
from sieve.exports.gguf_tokenizer import SPLITS
from sieve.model.matrices import find_matrices
from sieve.vocabulary.tokenizer_json import BYTES

FIVE = {"num_hidden_layers": 5}
# The first attention, the second MLP, the third block and the last attention.
PARTS = (("o", 0), ("down", 1), ("o", 2), ("down", 2), ("o", 4))
BLOCKS = (("o", 1), ("down", 1), ("o", 4), ("down", 4))
FIRST_BLOCK = (("o", 0), ("down", 0))
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def without(
    model: PreTrainedModel,
    removed: Sequence[tuple[str, int]],
    other: float = 1.0,
    **options: object,
) -> PreTrainedModel:
    """The model without parts, given by the kind and the layer of the matrices that write them.

    other: level of all other matrices.
    """
    return _at_levels(model, banked(model, **options), removed, other)


def without_and_factored_ends(
    model: PreTrainedModel, removed: Sequence[tuple[str, int]], other: float
) -> PreTrainedModel:
    """As `without`, and the embedding and the output head are factorized too."""
    ids = tokens(4, 16)
    matrices = find_matrices(model, head=True, embedding=True)
    batch = {"input_ids": ids, "targets": ids}
    moments = calibrate(model, [batch], matrices, projection="loss_aware")
    bank = fit(model, moments, "loss_aware", prune_head=True, prune_embedding=True)
    return _at_levels(model, bank, removed, other)


def _at_levels(
    model: PreTrainedModel, bank: Bank, removed: Sequence[tuple[str, int]], other: float
) -> PreTrainedModel:
    indexes = tuple(int((m.kind, m.layer) in removed) for m in bank.matrices)
    sieve.apply(model, bank, Genome((other, 0.0), indexes, bank.names, bank.fingerprint))
    return model


def narrowed(model: PreTrainedModel, widths: Sequence[int]) -> PreTrainedModel:
    """The model with only the first neurons of each MLP, and a bias for the others."""
    for block, width in zip(model.model.layers, widths, strict=True):
        mlp = block.mlp
        for name in ("gate_proj", "up_proj"):
            dense = nn.Linear(mlp.up_proj.in_features, width, bias=False)
            dense.weight = nn.Parameter(mlp.get_submodule(name).weight[:width].clone())
            setattr(mlp, name, dense)
        down = nn.Linear(width, len(mlp.down_proj.weight))
        down.weight = nn.Parameter(mlp.down_proj.weight[:, :width].clone())
        down.bias = nn.Parameter(torch.linspace(-0.5, 0.5, len(down.weight)))
        mlp.down_proj = down
    return model.requires_grad_(False)


MODELS = {
    "llama, whole": lambda: tiny_llama(),
    "llama, without parts": lambda: without(tiny_llama(**FIVE), PARTS),
    "llama, without blocks": lambda: without(tiny_llama_tied(**FIVE), BLOCKS),
    "llama, without its first block": lambda: without(tiny_llama_tied(**FIVE), FIRST_BLOCK),
    "llama, narrower": lambda: narrowed(tiny_llama(**FIVE), (48, 7, 32, 1, 16)),
    "llama, equally narrower": lambda: narrowed(tiny_llama(**FIVE), (16,) * 5),
    "llama, factors and parts": lambda: without(
        tiny_llama(**FIVE), PARTS, 0.6, projection="affine", storage="pivoted"
    ),
    "llama, factors in the head": lambda: without_and_factored_ends(tiny_llama(**FIVE), PARTS, 0.6),
    "llama, biased": lambda: without(
        tiny_llama(**FIVE, attention_bias=True, mlp_bias=True), PARTS, storage="pivoted"
    ),
    "llama, rotating as llama 3": lambda: without(
        tiny_llama(**FIVE, rope_parameters=LLAMA3), PARTS
    ),
    "mistral, without parts": lambda: without(tiny_mistral(**FIVE, sliding_window=64), PARTS),
    "qwen2, whole": lambda: tiny_qwen2(),
    "qwen2, without parts": lambda: without(tiny_qwen2(**FIVE), PARTS),
    "qwen3, whole": lambda: tiny_qwen3(),
}
ARCHITECTURES = {
    "llama, whole": "llama",
    "llama, without blocks": "llama",
    "llama, equally narrower": "llama",
    "qwen2, whole": "qwen2",
    "qwen3, whole": "qwen3",
}  # of llama.cpp; of all others deci


def words(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer that splits texts as llama.cpp's pre-tokenizer of this name; "llama": SPM."""
    tokenizer = _sentencepiece() if kind == "llama" else _byte_level(kind)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def _byte_level(kind: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    splits = {name: pattern for (pattern, _), name in SPLITS.items()}
    if kind in splits:
        split = pre_tokenizers.Split(Regex(splits[kind]), "isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        plain = pre_tokenizers.Sequence(steps)
    elif kind == "smollm":
        plain = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    tokenizer.pre_tokenizer, tokenizer.decoder = plain, decoders.ByteLevel()
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TASK, *OTHER], trainer)
    tokenizer.add_special_tokens(["<s>", "</s>", "<unused1>"])
    tokenizer.add_tokens([AddedToken("Sentiment", normalized=False)])
    if kind == "llama-bpe":
        begin = ("<s>", tokenizer.token_to_id("<s>"))
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[begin])
    return tokenizer


def _sentencepiece() -> Tokenizer:
    """As Llama 2: all pairs that make a token are merges, in the order of the tokens."""
    model = models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*TASK, *OTHER], trainer)
    content = json.loads(tokenizer.to_str())
    tokens = content["model"]["vocab"]
    content["model"]["merges"] = [
        [token[:cut], token[cut:]]
        for token in sorted(tokens, key=tokens.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in tokens and token[cut:] in tokens
    ]
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in BYTES]
    content["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(content))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    begin = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[begin])
    return tokenizer


TOKENIZERS = ("gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "llama")
