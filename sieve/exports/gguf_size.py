"""How large the GGUF file of a model is, beside the dense model's, before it is written."""

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from sieve.exports.gguf_architecture import architecture_of, check_model, entries_of
from sieve.exports.gguf_layers import layers_of
from sieve.factorized.modeling_sieve import native_class

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}  # of GGML
BLOCK = 32  # numbers that share a scale in Q8_0


@dataclass(frozen=True)
class GgufSettings:
    """How to write a file.

    Args:
        dtype: of matrices: "auto", "float32", "float16", "bfloat16" or "q8_0". Vectors are float32.
        allow_larger: write the file even if it is no smaller than the dense model's.
        removed: parameters that the dense model had and this model's architecture has not: the
            rows of tokens that left the vocabulary.
    """

    dtype: str = "auto"
    allow_larger: bool = False
    removed: int = 0

    def type_for(self, dtype: torch.dtype) -> str:
        """GGML's name of the type of matrices; `dtype` is what "auto" means."""
        name = str(dtype).removeprefix("torch.") if self.dtype == "auto" else self.dtype
        if name not in TYPES:
            raise ValueError(
                f"got the GGUF dtype {name!r}, expected one of auto, {', '.join(TYPES)}."
            )
        return TYPES[name]


@dataclass(frozen=True)
class GgufSize:
    """What a file holds, beside the same of the dense model."""

    architecture: str  # llama.cpp's name
    dtype: str  # of matrices, GGML's name
    bytes: int  # of the tensors
    dense_bytes: int  # of the dense model's tensors in the same dtypes
    factored_bytes: int  # of export=factorized
    merged: int  # matrices that are products of factors


def gguf_size(model: PreTrainedModel, settings: GgufSettings, dtype: torch.dtype) -> GgufSize:
    """The size of the file of a model, which is not written; ValueError if it has none."""
    check_model(model)
    layers, kind = layers_of(model), settings.type_for(dtype)
    architecture = architecture_of(model, layers)
    entries = list(entries_of(model, layers, architecture))
    size = sum(stored_bytes(entry.shape, kind) for entry in entries)
    return GgufSize(
        architecture=architecture,
        dtype=kind,
        bytes=size,
        dense_bytes=_dense_bytes(model, settings.removed, kind),
        factored_bytes=_factored_bytes(model, dtype),
        merged=sum(entry.merges for entry in entries),
    )


def check_smaller(size: GgufSize) -> None:
    """Raise ValueError unless a file is smaller than the dense model's."""
    if size.bytes < size.dense_bytes:
        return
    why = "nothing was removed"
    if size.merged:
        why = (
            f"llama.cpp has no factored matrices, so {size.merged} of them would be as large as "
            f"before; use export=factorized ({size.factored_bytes / 1e6:,.1f} MB)"
        )
    raise ValueError(
        f"the GGUF file would have {size.bytes / 1e6:,.1f} MB of weights, and the dense model has "
        f"{size.dense_bytes / 1e6:,.1f} MB: {why}. Files get smaller where attentions, MLPs and "
        "neurons (search.alleles=structural) or tokens (vocabulary=task) are removed; "
        "export.allow_larger=true writes the file all the same, for example to quantize it."
    )


def stored_type(shape: tuple[int, ...], kind: str) -> str:
    """GGML's type of a tensor where matrices are of type `kind`.

    llama.cpp needs vectors in float32, and a row of Q8_0 has whole blocks.
    """
    if len(shape) == 1:
        return "F32"
    return "F16" if kind == "Q8_0" and shape[-1] % BLOCK else kind


def stored_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Bytes of a tensor where matrices are of type `kind`."""
    numbers, stored = math.prod(shape), stored_type(shape, kind)
    if stored == "Q8_0":
        return numbers + 2 * numbers // BLOCK
    return numbers * (4 if stored == "F32" else 2)


def _factored_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Bytes of the weights with their factors; a shared one counts once."""
    return sum(weight.numel() for weight in model.parameters()) * dtype.itemsize


def _dense_bytes(model: PreTrainedModel, removed: int, kind: str) -> int:
    """Bytes of the dense model's tensors, and of as many parameters as were removed before."""
    with torch.device("meta"):
        dense = native_class(model)(model.config)
    shapes = [tuple(parameter.shape) for parameter in dense.parameters()]
    row = model.config.hidden_size
    return sum(stored_bytes(s, kind) for s in shapes) + stored_bytes((removed // row, row), kind)
