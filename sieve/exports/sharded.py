"""Export of a model whose weights are shared out over ranks, which is never whole on one of them.

All ranks go through the weights in one order and put one after the other together; rank 0 collects
a file's worth and writes it. The files hold what those of `sieve.export` do.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from sieve.bank.switch import merged, to_merge
from sieve.distributed.sharding import whole
from sieve.factorized.modeling_experts import Unfolded
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.matrices import dense_like

FILE_BYTES = 5 * 10**9  # of weights that rank 0 holds at a time, at most
Weights = dict[str, Callable[[], Tensor]]  # by name: gives a weight, once all ranks ask for it


def weights_of(model: nn.Module, format: str) -> Weights:
    """How each weight of an export is had, "dense" or "factorized".

    Raises ValueError where a dense matrix would need a bias its architecture has no place for, and
    for experts in "dense", where transformers stacks them.
    """
    found: Weights = {name: partial(whole, t) for name, t in model.state_dict().items()}
    if format != "dense":
        return found
    if any(isinstance(module, Unfolded) for module in model.modules()):
        raise ValueError(
            "got a mixture of experts, which is not stacked again while its weights are shared out "
            "over ranks; use export=factorized, or run again with trainer=cpu, which has but the "
            "export left to do."
        )
    for name, (layer, original) in to_merge(model).items():
        for part in layer.state_dict():
            del found[f"{name}.{part}"]
        for part in ("weight", "bias")[: 1 + (layer.factor_out.bias is not None)]:
            found[f"{name}.{part}"] = partial(_merged, layer, original, part)
    return found


def _merged(layer: FactorizedLinear, original: nn.Module, part: str) -> Tensor:
    """Weight or bias of the dense layer in the place of a factorized one."""
    found: Tensor = getattr(dense_like(original, *merged(layer)), part)
    return found


def write_sharded(
    shell: PreTrainedModel, weights: Weights, path: Path | None, dtype: torch.dtype
) -> None:
    """Write weights, and the configuration of `shell`, to a directory; None on all ranks but 0.

    shell: of the class and configuration that are written, on the meta device. Raises ValueError
    for an architecture whose weights have other names on disk.
    """
    empty = {name: _as_stored(tensor, dtype) for name, tensor in shell.state_dict().items()}
    shell.load_state_dict(empty, assign=True)
    shell.tie_weights()
    skipped = {*shell.all_tied_weights_keys, *(shell._keys_to_ignore_on_save or ())}
    kept = {name: tensor for name, tensor in empty.items() if name not in skipped}
    if revert_weight_conversion(shell, dict(kept)).keys() != kept.keys():
        raise ValueError(
            f"the weights of {type(shell).__name__} have other names on disk, which are not known "
            "while they are shared out over ranks; run again with trainer=cpu, which has but the "
            "export left to do."
        )
    files = _files(kept)
    if path is not None:
        shell.save_pretrained(path, state_dict={})  # The configuration alone.
    for file, names in files.items():
        held: dict[str, Tensor] = {}
        for name in names:
            tensor = weights[name]()  # On every rank, whoever writes.
            if path is not None:
                held[name] = _as_stored(tensor.detach(), dtype).cpu().contiguous()
            del tensor
        if path is not None:
            save_file(held, path / file, metadata={"format": "pt"})
    if path is not None and len(files) > 1:
        size = sum(tensor.nbytes for tensor in kept.values())
        index = {
            "metadata": {"total_parameters": shell.num_parameters(), "total_size": size},
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (path / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _files(weights: dict[str, Tensor]) -> dict[str, list[str]]:
    """Names of weights by the file they go to, in order: as many to a file as it may hold."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in weights.items():
        if groups[-1] and size + tensor.nbytes > FILE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    numbered = enumerate(groups, start=1)
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in numbered}


def _as_stored(tensor: Any, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
