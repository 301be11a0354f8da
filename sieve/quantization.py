"""Weight-only quantization of a pruned model's matrices, through torchao.

`int8` scales each row of a factor by its largest weight, on any device; `int4` packs two weights in
a byte, a scale and an offset for each group, on GPUs. Neither looks at data. What would not get
smaller stays as it is: factors of a few columns, and matrices that are gone. Embeddings, norms and
the head, where it is not pruned, are never touched.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import is_torchao_available

from sieve.config import QuantizationConfig
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.matrices import dense_like
from sieve.model.quantized import bytes_of, is_quantized

ROW_BYTES = 5  # of a row in int8 beside its weights: a scale in float32, an offset in int8
GROUP_BYTES = 4  # of a group in int4 beside its weights: scale and offset in bfloat16


@dataclass(frozen=True)
class Quantized:
    """How many weights were quantized and left, and the bytes of all prunable ones."""

    quantized: int
    left: int
    bytes_before: int
    bytes_after: int


def check_available(
    settings: QuantizationConfig, device: torch.device, dtype: torch.dtype | None = None
) -> None:
    """ValueError in one sentence where a method is not to be had on a device, or in a dtype."""
    if settings.method == "none":
        return
    if not is_torchao_available():
        raise ValueError(
            f"quantization={settings.method} needs torchao; pip install 'sieve-llm[quantization]'."
        )
    if settings.method == "int4" and device.type != "cuda":
        raise ValueError(
            f"quantization=int4 has kernels for GPUs alone, got a {device.type}; set "
            "quantization=int8, or run with trainer=gpu."
        )
    if settings.method == "int4" and dtype not in (None, torch.bfloat16):
        raise ValueError(
            f"quantization=int4 computes in bfloat16, got a model in {dtype}; set "
            "model.dtype=bfloat16."
        )


def quantize(
    model: PreTrainedModel,
    names: Sequence[str],
    settings: QuantizationConfig,
    dtype: torch.dtype,
) -> Quantized:
    """Quantize the named matrices of a model in place, factors or dense.

    dtype: what the weights are stored in when they are not quantized. A dense layer is replaced, so
    that the caller's own stays as it was. Raises ValueError where the method is not to be had.
    """
    check_available(settings, model.device, model.dtype)
    check_not_quantized(model)
    _copy_dense(model, names)
    before, done, left = stored_bytes(model, names, dtype), 0, 0
    for layer in _layers(model, names):
        if _quantize_one(layer, settings, dtype):
            done += 1
        else:
            left += 1
    return Quantized(done, left, before, stored_bytes(model, names, dtype))


def check_not_quantized(model: nn.Module) -> None:
    """ValueError where a model has quantized weights already, which nothing can be made of."""
    if any(is_quantized(parameter) for parameter in model.parameters()):
        raise ValueError(
            "got a model whose weights are quantized, expected one whose are not; load the export "
            "of a run without quantization."
        )


def stored_bytes(model: nn.Module, names: Sequence[str], dtype: torch.dtype) -> int:
    """Bytes on disk of the named matrices: weights, biases and the orders of pivoted ones."""
    modules = {name: model.get_submodule(name) for name in names}
    tensors: dict[int, Tensor] = {}
    for module in modules.values():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensors[id(tensor)] = tensor
    return sum(bytes_of(tensor, dtype) for tensor in tensors.values())


def mark(model: PreTrainedModel) -> None:
    """Let `save_pretrained` write quantized weights, and `from_pretrained` know them again.

    Nothing happens to a model without any.
    """
    if not any(is_quantized(parameter) for parameter in model.parameters()):
        return
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    # What each weight is in stands beside it in the file; the type named here is not looked at.
    config = TorchAoConfig(Int8WeightOnlyConfig())
    model.config.quantization_config = config
    model.__dict__["hf_quantizer"] = TorchAoHfQuantizer(config, pre_quantized=True)


def _copy_dense(model: PreTrainedModel, names: Sequence[str]) -> None:
    for name in names:
        layer = model.get_submodule(name)
        if type(layer) is nn.Linear:
            model.set_submodule(name, dense_like(layer, layer.weight, layer.bias))


def _layers(model: PreTrainedModel, names: Sequence[str]) -> list[nn.Module]:
    """Every layer that the named matrices consist of, shared ones once."""
    found: dict[nn.Module, None] = {}
    for name in names:
        layer: Any = model.get_submodule(name)
        factored = isinstance(layer, FactorizedLinear)
        found |= dict.fromkeys([layer.factor_in, layer.factor_out] if factored else [layer])
    return list(found)


def _quantize_one(layer: nn.Module, settings: QuantizationConfig, dtype: torch.dtype) -> bool:
    """Quantize one layer in place; False where that is not possible or makes it no smaller."""
    if not isinstance(layer, nn.Linear):
        return False
    form = smallest_form(layer.out_features, layer.in_features, settings, dtype)
    if form == "none":
        return False
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    config: Any = Int8WeightOnlyConfig()
    if form == "int4":
        config = Int4WeightOnlyConfig(
            group_size=settings.group_size, int4_packing_format="tile_packed_to_4d"
        )
    quantize_(layer, config, filter_fn=lambda module, _: module is layer)
    return True


def smallest_form(rows: int, columns: int, settings: QuantizationConfig, dtype: torch.dtype) -> str:
    """The form that a weight (rows, columns) takes the fewest bytes in: "none", "int8", "int4".

    int4 is offered where it is asked for and its groups come out even; its kernels fill columns up
    to a multiple of 1,024, so that it does not pay for narrow factors.
    """
    numbers = rows * columns
    sizes = {"none": numbers * dtype.itemsize, "int8": numbers + rows * ROW_BYTES}
    if settings.method == "int4" and columns % settings.group_size == 0:
        filled = math.ceil(rows / 8) * 8 * math.ceil(columns / 1024) * 1024
        sizes["int4"] = filled // 2 + filled // settings.group_size * GROUP_BYTES
    return min(sizes, key=lambda form: sizes[form])
