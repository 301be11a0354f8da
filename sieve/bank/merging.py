"""Merge factors into dense weights."""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.bank.narrowing import check_bias, widened
from sieve.factorized.modeling_experts import unfold
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.factorized.modeling_sieve import native_class
from sieve.model.matrices import dense_like


def merge_dense(model: PreTrainedModel) -> None:
    """Replace every FactorizedLinear by one dense layer W = U V of the native class, in place.

    Layers that have lost neurons get zeros in their place.

    Raises ValueError, and changes nothing, where the native layer has no bias but needs one.
    """
    factorized, narrow = to_merge(model), widened(model)
    for name, (layer, original) in factorized.items():
        model.set_submodule(name, merged_like(layer, original))
    for name, dense in narrow.items():
        model.set_submodule(name, dense)


def merged_like(layer: FactorizedLinear, original: nn.Module) -> nn.Module:
    """The dense layer, of the class of `original` and with a bias if that has one."""
    weight, bias = merged(layer)
    if bias is None and getattr(original, "bias", None) is not None:
        bias = weight.new_zeros(len(weight))
    return dense_like(original, weight, bias)


def to_merge(
    model: nn.Module, names: Collection[str] | None = None
) -> dict[str, tuple[FactorizedLinear, nn.Module]]:
    """Every FactorizedLinear by name, with the native layer on the meta device.

    names: only these; None takes all. Raises ValueError where the native layer has no bias but
    needs one.
    """
    with torch.device("meta"):
        native = native_class(model)(model.config)
        unfold(native)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, FactorizedLinear)}
    layers = {n: m for n, m in layers.items() if names is None or n in names}
    originals = {name: native.get_submodule(name) for name in layers}
    for name, layer in layers.items():
        check_bias(name, layer.factor_out.bias, originals[name], type(native))
    return {name: (layer, originals[name]) for name, layer in layers.items()}


def merged(layer: FactorizedLinear) -> tuple[Tensor, Tensor | None]:
    """Weight W (d_out, d_in) and bias (d_out,) of the dense layer with the same outputs."""
    inner, outer = layer.factor_in, layer.factor_out
    weight = outer.weight.double() @ inner.weight.double()
    if layer.order is not None:
        weight = torch.cat([inner.weight.double(), weight])[layer.order]
    return weight.to(outer.weight.dtype), merged_bias(layer)


def merged_bias(layer: FactorizedLinear) -> Tensor | None:
    """The bias (d_out,) of `merged`, without its weight."""
    inner, outer = layer.factor_in, layer.factor_out
    bias: Tensor | None = outer.bias
    if layer.order is None or bias is None:
        return bias
    mixed = bias.double() + outer.weight.double() @ inner.bias.double()
    return torch.cat([inner.bias.double(), mixed])[layer.order].to(bias.dtype)
