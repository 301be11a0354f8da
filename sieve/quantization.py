"""Weight-only quantization of a pruned model's matrices, through torchao.

`int8` scales each row of a factor by its largest weight, on any device. `int4` packs two weights
into a byte, with a scale and an offset for each group, on GPUs. Neither needs data. A weight that
would not get smaller stays as it is, such as a factor with few columns. Embeddings, norms and an
unpruned head are never quantized.
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
from sieve.factorized.modeling_layers import FactorizedLinear, Lookup
from sieve.model.matrices import dense_like
from sieve.model.quantized import bytes_of, is_quantized

ROW_BYTES = 5  # in int8 each row has a scale in float32 and an offset in int8
GROUP_BYTES = 4  # in int4 each group has a scale and an offset in bfloat16


@dataclass(frozen=True)
class Quantized:
    """How many weights were quantized, how many were not, and the bytes of all prunable weights."""

    quantized: int
    left: int
    bytes_before: int
    bytes_after: int


def check_available(
    settings: QuantizationConfig, device: torch.device, dtype: torch.dtype | None = None
) -> None:
    """ValueError where a method does not work on a device or in a dtype."""
    if settings.method == "none":
        return
    if not is_torchao_available():
        raise ValueError(
            f"quantization={settings.method} needs torchao; pip install 'sieve-llm[quantization]'."
        )
    if settings.method == "int4" and device.type != "cuda":
        raise ValueError(
            f"quantization=int4 needs a GPU, got a {device.type}; set quantization=int8, or "
            "run with trainer=gpu."
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

    Dense layers are replaced by copies, so the caller's layers stay as they are. Raises ValueError
    as `check_available`.

    Args:
        dtype: the storage dtype of the weights that are not quantized.
    """
    check_available(settings, model.device, model.dtype)
    check_not_quantized(model)
    _copy_dense(model, names)
    before = stored_bytes(model, names, dtype)
    done = [_quantize_one(layer, settings, dtype) for layer in _layers(model, names)]
    after = stored_bytes(model, names, dtype)
    return Quantized(sum(done), len(done) - sum(done), before, after)


def check_not_quantized(model: nn.Module) -> None:
    """ValueError where a model has quantized weights."""
    if any(is_quantized(parameter) for parameter in model.parameters()):
        raise ValueError(
            "got a model whose weights are quantized, expected an unquantized model; load the "
            "export of a run without quantization."
        )


def stored_bytes(model: nn.Module, names: Sequence[str], dtype: torch.dtype) -> int:
    """Bytes on disk of the named matrices: weights, biases and the indices of pivoted storage."""
    tensors: dict[int, Tensor] = {}  # by id, to count a shared factor once
    for module in (model.get_submodule(name) for name in names):
        tensors |= {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return sum(bytes_of(tensor, dtype) for tensor in tensors.values())


def mark(model: PreTrainedModel) -> None:
    """Let `save_pretrained` and `from_pretrained` handle quantized weights, if a model has any."""
    if not any(is_quantized(parameter) for parameter in model.parameters()):
        return
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    # transformers reads from the file how each weight is quantized. vLLM takes every Linear that is
    # not named here to be in int8.
    plain = [name for name, module in model.named_modules() if _is_plain(module)]
    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=plain)
    model.config.quantization_config = config
    model.__dict__["hf_quantizer"] = TorchAoHfQuantizer(config, pre_quantized=True)


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a Linear with weights, none of them quantized."""
    if not isinstance(module, nn.Linear):
        return False
    return module.weight.numel() > 0 and not is_quantized(module.weight)


def _copy_dense(model: PreTrainedModel, names: Sequence[str]) -> None:
    for name in names:
        layer = model.get_submodule(name)
        if type(layer) is nn.Linear:
            model.set_submodule(name, dense_like(layer, layer.weight, layer.bias))


def _layers(model: PreTrainedModel, names: Sequence[str]) -> list[nn.Module]:
    """Every layer of the named matrices, a shared factor once."""
    layers: dict[nn.Module, None] = {}
    for name in names:
        layer = model.get_submodule(name)
        if isinstance(layer, FactorizedLinear):
            layers |= {layer.factor_in: None, layer.factor_out: None}
        else:
            layers[layer] = None
    return list(layers)


def _quantize_one(layer: nn.Module, settings: QuantizationConfig, dtype: torch.dtype) -> bool:
    """Quantize one layer in place; False where that is impossible or makes it no smaller."""
    if not isinstance(layer, nn.Linear) or isinstance(layer, Lookup):
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
    """The form of a weight (rows, columns) with the fewest bytes: "none", "int8" or "int4".

    int4 must be the method, and the group size must divide the columns. Its kernels pad columns to
    a multiple of 1,024, so it does not pay for narrow factors.
    """
    numbers = rows * columns
    sizes = {"none": numbers * dtype.itemsize, "int8": numbers + rows * ROW_BYTES}
    if settings.method == "int4" and columns % settings.group_size == 0:
        filled = math.ceil(rows / 8) * 8 * math.ceil(columns / 1024) * 1024
        sizes["int4"] = filled // 2 + filled // settings.group_size * GROUP_BYTES
    return min(sizes, key=lambda form: sizes[form])
