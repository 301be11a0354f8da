"""Weight-only quantization of a pruned model's matrices, through torchao.

`int8` scales each row of a factor by its largest weight, on any device; `int4` packs two weights in
a byte, a scale and an offset for each group, on GPUs. Neither looks at data. What would not get
smaller stays as it is: factors of a few columns, and matrices that are gone. Embeddings, norms and
the head, where it is not pruned, are never touched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import is_torchao_available

from sieve.matrices import dense_like
from sieve.modeling_sieve import FactorizedLinear
from sieve.quantization_settings import QuantizationSettings
from sieve.quantized import bytes_of, is_quantized

ROW_BYTES = 5  # of a row in int8 beside its weights: a scale in float32, an offset in int8


@dataclass(frozen=True)
class Quantized:
    """How many weights were quantized and left, and the bytes of all prunable ones."""

    quantized: int
    left: int
    bytes_before: int
    bytes_after: int


def check_available(settings: QuantizationSettings, device: torch.device) -> None:
    """ValueError in one sentence where a method is not to be had on a device."""
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


def quantize(
    model: PreTrainedModel,
    names: Sequence[str],
    settings: QuantizationSettings,
    dtype: torch.dtype,
) -> Quantized:
    """Quantize the named matrices of a model in place, factors or dense.

    dtype: what the weights are stored in when they are not quantized. A dense layer is replaced, so
    that the caller's own stays as it was. Raises ValueError where the method is not to be had.
    """
    check_available(settings, model.device)
    if settings.method == "int4" and model.dtype != torch.bfloat16:
        raise ValueError(
            f"quantization=int4 computes in bfloat16, got a model in {model.dtype}; set "
            "model.dtype=bfloat16."
        )
    _copy_dense(model, names)
    before, done, left = stored_bytes(model, names, dtype), 0, 0
    for linear in _linears(model, names):
        if _quantize_one(linear, settings, dtype):
            done += 1
        else:
            left += 1
    return Quantized(done, left, before, stored_bytes(model, names, dtype))


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
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    class Quantizer(TorchAoHfQuantizer):
        def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict, dict]:
            """Write a shared factor once: loading cannot compare two that are quantized."""
            tied = model.all_tied_weights_keys
            state = {k: v for k, v in model.state_dict().items() if k not in tied}
            return flatten_tensor_state_dict(state)

    # What each weight is in stands beside it in the file; the type named here is not looked at.
    config = TorchAoConfig(Int8WeightOnlyConfig())
    model.config.quantization_config = config
    model.__dict__["hf_quantizer"] = Quantizer(config, pre_quantized=True)


def _copy_dense(model: PreTrainedModel, names: Sequence[str]) -> None:
    for name in names:
        layer = model.get_submodule(name)
        if type(layer) is nn.Linear:
            model.set_submodule(name, dense_like(layer, layer.weight, layer.bias))


def _linears(model: PreTrainedModel, names: Sequence[str]) -> Iterator[nn.Linear]:
    """Every Linear that the named matrices consist of, shared ones once."""
    seen: set[nn.Module] = set()
    for name in names:
        layer = model.get_submodule(name)
        factors = (
            [layer.factor_in, layer.factor_out] if isinstance(layer, FactorizedLinear) else [layer]
        )
        for linear in factors:
            if isinstance(linear, nn.Linear) and linear not in seen:
                seen.add(linear)
                yield linear


def _quantize_one(linear: nn.Linear, settings: QuantizationSettings, dtype: torch.dtype) -> bool:
    """Quantize one layer in place; False where that would not make it smaller."""
    from torchao.quantization import quantize_

    rows, columns = linear.weight.shape
    if not rows or columns * (dtype.itemsize - 1) <= ROW_BYTES:
        return False
    quantize_(linear, _config(linear, settings), filter_fn=lambda module, _: module is linear)
    return True


def _config(linear: nn.Linear, settings: QuantizationSettings) -> Any:
    """torchao's configuration for one layer: int4 where its groups come out even, else int8."""
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if settings.method == "int4" and linear.in_features % settings.group_size == 0:
        return Int4WeightOnlyConfig(
            group_size=settings.group_size, int4_packing_format="tile_packed_to_4d"
        )
    return Int8WeightOnlyConfig()
