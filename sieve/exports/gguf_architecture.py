"""The architecture and the tensors of a GGUF file: what llama.cpp calls the parts of a model.

A model whose layers have one shape gets its own architecture, another gets `deci`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.bank.merging import merged
from sieve.exports.gguf_layers import Affine, Layer, affine_of
from sieve.factorized.modeling_layers import FactorizedEmbedding
from sieve.factorized.modeling_sieve import native_class
from sieve.model.backbone import context_length
from sieve.model.matrices import shares_embedding

# The class of a model -> llama.cpp's architecture where all layers have the same shape.
OWN = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
DECI = "deci"
PAIRED = ("llama", DECI)  # They rotate neighbours, where transformers rotates halves of a head.
BIASES = {"llama": "qkvogud", DECI: "qkvogud", "qwen2": "qkv", "qwen3": "qkv"}  # first letters
UNLIMITED = 2**20  # tokens, of a model that sets no limit
ROPES = ("default", "linear", "llama3")
NAMES = {  # of a part of a layer: in a file
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file, whose numbers are computed when it is written."""

    name: str
    shape: tuple[int, ...]
    numbers: Callable[[], Tensor]
    merges: bool = False  # whether it is the product of two factors


def check_model(model: PreTrainedModel) -> None:
    """Raise ValueError if llama.cpp has no architecture in which Sieve can write a model."""
    native, config = native_class(model).__name__, model.config
    reason = ""
    if native not in OWN:
        reason = f"a {native}, expected one of {', '.join(OWN)}"
    elif config.hidden_act != "silu":
        reason = f"an MLP with the activation {config.hidden_act}, expected silu"
    elif (rope := rope_type(config)) not in ROPES[: 3 if OWN[native] in PAIRED else 1]:
        reason = f"rotary positions of type {rope!r}, which Sieve does not write for {native}"
    elif getattr(model.get_output_embeddings(), "bias", None) is not None:
        reason = "an output head with a bias"
    if reason:
        raise ValueError(
            f"export=gguf cannot write this model: got {reason}; use export=factorized, or "
            "export=dense and llama.cpp's convert_hf_to_gguf.py."
        )


def check_removals(model: PreTrainedModel, structural: bool, removes: bool) -> str:
    """What the search must not remove from a dense model, said before the search; "" if nothing.

    Qwen3's own architecture has neither layers of different shapes nor biases, and `deci` has no
    norms of queries and keys. Raises ValueError if the search does nothing else.

    Args:
        structural: whether the search only removes attentions, MLPs and neurons.
        removes: whether it may remove them.
    """
    if OWN.get(native_class(model).__name__) != "qwen3":
        return ""
    holds = (
        "export=gguf: llama.cpp holds a Qwen3 only while all of its layers have one shape and no "
        "biases, and removed attentions, MLPs and neurons leave others"
    )
    if structural:
        raise ValueError(
            f"{holds}. search.alleles=structural removes nothing else; set export=factorized."
        )
    why = f"{holds}. If the search removes one, the run ends without an export; export=factorized"
    return f"{why} holds all of it." if removes else ""


def rope_type(config: Any) -> str:
    """The type of rotary positions, such as "default" or "llama3"."""
    return str((config.rope_parameters or {}).get("rope_type", "default"))


def architecture_of(model: PreTrainedModel, layers: list[Layer]) -> str:
    """The architecture of llama.cpp that can hold these layers; ValueError if there is none."""
    own = OWN[native_class(model).__name__]
    shapes = {(layer.heads, layer.kv_heads, layer.width) for layer in layers}
    biased = {name[0] for layer in layers for name in layer.biased}
    [first, *_] = layers
    d = model.config.hidden_size
    # llama.cpp takes the width of qwen2's queries from the width of its hidden states.
    square = own != "qwen2" or first.heads * first.head_size == d
    if len(shapes) == 1 and biased <= set(BIASES[own]) and square:
        return own
    if own != "qwen3":
        return DECI
    what = "layers of different shapes" if len(shapes) > 1 else "biases that removed parts left"
    raise ValueError(
        f"export=gguf: the pruned {native_class(model).__name__} has {what}, and llama.cpp's "
        "architecture qwen3 holds none; its architecture deci, which does, has no norms of "
        "queries and keys. Use export=factorized."
    )


def entries_of(model: PreTrainedModel, layers: list[Layer], architecture: str) -> Iterator[Entry]:
    """Every tensor of the file, in order."""
    yield _embedding(model)
    for index, layer in enumerate(layers):
        prefix = f"blk.{index}."
        for name, weight in layer.norms.items():
            yield _vector(f"{prefix}{name}.weight", weight)
        for part, map_ in (layer.attention | layer.mlp).items():
            heads = {"q": layer.heads, "k": layer.kv_heads}.get(part, 0)
            yield from _map_entries(
                f"{prefix}{NAMES[part]}", map_, heads if architecture in PAIRED else 0
            )
    yield _vector("output_norm.weight", model.get_decoder().norm.weight)
    if (factors := _rope_factors(model)) is not None:
        yield _vector("rope_freqs.weight", factors)
    if not shares_embedding(model):
        head = affine_of(model.get_output_embeddings())
        if head.bias is not None:
            raise ValueError(
                "export=gguf: the factors of the output head have a bias, and llama.cpp's head "
                "has none; set projection.prune_head=false, or use export=factorized."
            )
        yield from _map_entries("output", head, 0)


def _embedding(model: PreTrainedModel) -> Entry:
    table = model.get_input_embeddings()
    if not isinstance(table, FactorizedEmbedding):
        weight = cast(nn.Embedding, table).weight
        return Entry("token_embd.weight", tuple(weight.shape), lambda: weight)
    d, tokens = affine_of(table).shape

    def numbers() -> Tensor:
        weight, bias = merged(table)
        return weight.T if bias is None else weight.T + bias

    return Entry("token_embd.weight", (tokens, d), numbers, merges=True)


def _map_entries(name: str, map_: Affine, heads: int) -> Iterator[Entry]:
    """Weight and bias of a map; the rows of each of its heads become pairs."""

    def paired(tensor: Tensor) -> Tensor:
        if not heads:
            return tensor
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)

    yield Entry(f"{name}.weight", map_.shape, lambda: paired(map_.weight()), map_.merges)
    if (bias := map_.bias) is not None:
        yield _vector(f"{name}.bias", paired(bias))


def _vector(name: str, tensor: Tensor) -> Entry:
    return Entry(name, tuple(tensor.shape), lambda: tensor)


def _rope_factors(model: PreTrainedModel) -> Tensor | None:
    """By how much each pair rotates more slowly than `rope_theta` says; None if by 1."""
    config = model.config
    if rope_type(config) == "default":
        return None
    frequencies = model.get_decoder().rotary_emb.inv_freq.float().cpu()
    size = 2 * len(frequencies)
    theta = float(config.rope_parameters["rope_theta"])
    plain = theta ** -(torch.arange(0, size, 2).float() / size)
    return plain / frequencies


def metadata_of(model: PreTrainedModel, layers: list[Layer]) -> dict[str, int | float | list[int]]:
    """The settings of the architecture by their names in the file, without its prefix."""
    config = model.config
    [first, *_] = layers
    heads = [layer.heads for layer in layers]
    kv_heads = [layer.kv_heads for layer in layers]
    widths = [layer.width for layer in layers]
    return {
        "block_count": len(layers),
        "context_length": _context(model),
        "embedding_length": config.hidden_size,
        "feed_forward_length": _one(widths),
        "attention.head_count": _one(heads),
        "attention.head_count_kv": _one(kv_heads),
        "attention.key_length": first.head_size,
        "attention.value_length": first.head_size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": first.head_size,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "vocab_size": _embedding(model).shape[0],
    }


def _context(model: PreTrainedModel) -> int:
    """The longest text in which every token reads all before it."""
    window = getattr(model.config, "sliding_window", None)
    limits = [limit for limit in (context_length(model), window) if limit]
    return min(limits, default=UNLIMITED)


def _one(values: list[int]) -> int | list[int]:
    """The value of all layers if it is the same, else a list."""
    return values[0] if len(set(values)) == 1 else values
