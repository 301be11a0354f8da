"""GGUF: a pruned model in one file that llama.cpp loads, with its tokenizer.

Removed attentions, MLPs, decoder blocks and neurons are absent from the file. llama.cpp has no
factored form of a matrix, so factors are multiplied, and a model with factors alone is refused: its
file would be no smaller than the dense model's.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from sieve.exports.gguf_architecture import (
    Entry,
    architecture_of,
    check_model,
    entries_of,
    metadata_of,
)
from sieve.exports.gguf_layers import layers_of
from sieve.exports.gguf_size import (
    GgufSettings,
    check_smaller,
    gguf_size,
    stored_bytes,
    stored_type,
)
from sieve.exports.gguf_tokenizer import GgufTokenizer, gguf_tokenizer
from sieve.model.gguf_files import check_installed

NAME = "model.gguf"
FORMAT_KEY, FORMAT = "sieve.format", 1  # llama.cpp ignores keys that it does not know.
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}  # llama.cpp's numbers of them
QUANTIZATION_VERSION = 2


def check_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Raise ValueError if the package is missing, or llama.cpp has no such model or tokenizer."""
    try:
        check_installed("gguf")
    except RuntimeError as error:
        raise ValueError(f"export=gguf: {error}") from None
    check_model(model)
    if tokenizer is not None:
        gguf_tokenizer(tokenizer)


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    settings: GgufSettings,
    dtype: torch.dtype,
) -> None:
    """Write `model.gguf` into a folder, with one tensor in memory at a time.

    Raises ValueError if llama.cpp has no such model or tokenizer, if the file would be no smaller
    than the dense model's, or if a number is too large for its dtype.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    check_gguf(model)
    if not settings.allow_larger:
        check_smaller(gguf_size(model, settings, dtype))
    layers, kind = layers_of(model), settings.type_for(dtype)
    architecture = architecture_of(model, layers)
    entries = list(entries_of(model, layers, architecture))
    words = gguf_tokenizer(tokenizer, entries[0].shape[0])
    folder.mkdir(exist_ok=True)
    logging.getLogger("gguf").setLevel(logging.WARNING)  # It logs every file that it writes.
    writer = GGUFWriter(folder / NAME, architecture)
    try:
        _add_settings(writer, kind, metadata_of(model, layers))
        _add_tokenizer(writer, words)
        _add_end_of_turn(writer, model, words)
        for entry in entries:
            type_ = GGMLQuantizationType[stored_type(entry.shape, kind)]
            size, numbers = stored_bytes(entry.shape, kind), np.dtype(np.float32)
            writer.add_tensor_info(entry.name, entry.shape, numbers, size, type_)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            writer.write_tensor_data(_stored(entry, stored_type(entry.shape, kind)))
    finally:
        writer.close()


def _add_settings(writer: Any, kind: str, settings: dict[str, int | float | list[int]]) -> None:
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_uint32(FORMAT_KEY, FORMAT)
    for name, value in settings.items():
        key = f"{writer.arch}.{name}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)


def _add_tokenizer(writer: Any, words: GgufTokenizer) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.model == "gpt2":
        writer.add_token_merges(words.merges)
    else:
        writer.add_token_scores(words.scores)
    for role, index in words.ids.items():
        getattr(writer, f"add_{role}_token_id")(index)
    for flag, value in words.flags.items():
        getattr(writer, f"add_{flag}")(value)
    if words.chat_template:
        writer.add_chat_template(words.chat_template)


def _add_end_of_turn(writer: Any, model: PreTrainedModel, words: GgufTokenizer) -> None:
    """A second token that ends an answer, if generation stops at one."""
    ends = model.generation_config.eos_token_id if model.can_generate() else None
    others = [i for i in (ends if isinstance(ends, list) else [ends]) if i != words.ids.get("eos")]
    if others and others[0] is not None:
        writer.add_eot_token_id(others[0])


def _stored(entry: Entry, stored: str) -> np.ndarray:
    """The numbers of a tensor as the file has them."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    tensor = entry.numbers().detach().float().cpu().contiguous()
    if stored == "F16" and not bool(tensor.half().isfinite().all()):
        raise ValueError(
            f"{entry.name} has numbers that float16 cannot hold; set export.gguf_dtype=bfloat16 or "
            "float32."
        )
    numbers: np.ndarray = quantize(tensor.numpy(), GGMLQuantizationType[stored])
    return numbers
