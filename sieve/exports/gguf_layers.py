"""The layers of a model as llama.cpp computes them, from the decoder blocks that pruning left.

llama.cpp's architecture `deci` has layers of different shapes, with these limits:

- A layer with 0 heads has no attention, and llama.cpp ignores a bias of it. So the constant that a
  removed attention leaves is added to the output of the layer before, which nothing reads between.
- The first layer must have a head, because llama.cpp takes the size of a head from there. So one
  head of zeros takes the place of a removed attention, with the constant as its bias.
- A layer of width 0 loses its attention too. So one neuron of zeros takes the place of a removed
  MLP, with the constant as its bias.

A decoder block without attention and MLP leaves nothing but its constants.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.bank.merging import merged, merged_bias
from sieve.factorized.modeling_layers import FactorizedLinear

NEURONS = 1  # of an MLP that only adds a constant
ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


@dataclass(frozen=True)
class Affine:
    """y = W x + b, with W of shape (d_out, d_in)."""

    shape: tuple[int, int]
    weight: Callable[[], Tensor]
    bias: Tensor | None = None
    merges: bool = False

    def plus(self, constant: Tensor | None) -> "Affine":
        """The map that adds a constant (d_out,) too."""
        if constant is None:
            return self
        bias = constant.float()
        return replace(self, bias=bias if self.bias is None else self.bias.float() + bias)


@dataclass
class Layer:
    """A layer of the file; an empty part is absent."""

    norms: dict[str, Tensor]
    attention: dict[str, Affine] = field(default_factory=dict)
    mlp: dict[str, Affine] = field(default_factory=dict)
    head_size: int = 0

    @property
    def heads(self) -> int:
        """Number of query heads; 0 without attention."""
        return self.attention["q"].shape[0] // self.head_size if self.attention else 0

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads; 0 without attention."""
        return self.attention["k"].shape[0] // self.head_size if self.attention else 0

    @property
    def width(self) -> int:
        """Number of neurons of the MLP."""
        return self.mlp["up"].shape[0]

    @property
    def biased(self) -> set[str]:
        """The parts that have a bias."""
        return {name for name, map_ in (self.attention | self.mlp).items() if map_.bias is not None}


def layers_of(model: PreTrainedModel) -> list[Layer]:
    """The layers of the file, in order.

    Constants that removed parts left are in the biases of the layers that stay.
    """
    layers = list[Layer]()
    for block in model.get_decoder().layers:
        before = layers[-1] if layers else None
        attention, after_attention = _maps(block.self_attn, ATTENTION, "o")
        mlp, after_mlp = _maps(block.mlp, MLP, "down")
        norms = {"attn_norm": block.input_layernorm, "ffn_norm": block.post_attention_layernorm}
        layer = Layer(
            {name: norm.weight for name, norm in norms.items()},
            attention,
            mlp,
            block.self_attn.head_dim,
        )
        if not attention and before is None:
            layer.attention = _silent_attention(layer, after_attention)
        elif not attention:
            assert before is not None
            before.mlp["down"] = before.mlp["down"].plus(after_attention)
            if not mlp:
                before.mlp["down"] = before.mlp["down"].plus(after_mlp)
                continue
            del layer.norms["attn_norm"]
        elif isinstance(getattr(block.self_attn, "q_norm", None), nn.Module):
            norms = {"attn_q_norm": block.self_attn.q_norm, "attn_k_norm": block.self_attn.k_norm}
            layer.norms |= {name: norm.weight for name, norm in norms.items()}
        if not mlp:
            layer.mlp = _silent_mlp(layer, after_mlp)
        layers.append(layer)
    return layers


def _maps(
    module: nn.Module, names: dict[str, str], writer: str
) -> tuple[dict[str, Affine], Tensor | None]:
    """The maps of an attention or MLP by their parts, or none and the constant that replaces it."""
    reads, constant = _reads(module.get_submodule(names[writer]))
    if not reads:
        return {}, constant
    return {part: affine_of(module.get_submodule(name)) for part, name in names.items()}, None


def _reads(writer: nn.Module) -> tuple[int, Tensor | None]:
    """How many numbers a layer reads of its input, and its bias."""
    if isinstance(writer, FactorizedLinear):
        return writer.factor_in.out_features, merged_bias(writer)
    return cast(nn.Linear, writer).weight.shape[1], cast(nn.Linear, writer).bias


def affine_of(layer: nn.Module) -> Affine:
    """The map of a layer, factorized or not; ValueError if it is not linear."""
    if isinstance(layer, FactorizedLinear):
        d_out = layer.factor_out.out_features if layer.order is None else len(layer.order)
        shape = d_out, layer.factor_in.in_features
        return Affine(shape, lambda: merged(layer)[0], merged_bias(layer), merges=True)
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"export=gguf: got a {type(layer).__name__} in the model, expected plain Linear "
            "layers; use export=factorized."
        )
    d_out, d_in = layer.weight.shape
    return Affine((d_out, d_in), lambda: layer.weight, layer.bias)


def _silent_attention(layer: Layer, constant: Tensor | None) -> dict[str, Affine]:
    """One head of zeros, whose output is a constant."""
    d = len(layer.norms["attn_norm"])
    shapes = dict.fromkeys("qkv", (layer.head_size, d)) | {"o": (d, layer.head_size)}
    maps = {part: _zeros(shape) for part, shape in shapes.items()}
    return maps | {"o": maps["o"].plus(constant)}


def _silent_mlp(layer: Layer, constant: Tensor | None) -> dict[str, Affine]:
    """One neuron of zeros, whose output is a constant."""
    d = len(layer.norms["ffn_norm"])
    narrow, wide = _zeros((NEURONS, d)), _zeros((d, NEURONS))
    return {"gate": narrow, "up": narrow, "down": wide.plus(constant)}


def _zeros(shape: tuple[int, int]) -> Affine:
    return Affine(shape, lambda: torch.zeros(shape))
