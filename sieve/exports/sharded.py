"""Export a model that no process has whole: sharded over ranks, or read from disk block by block.

All ranks gather the weights one by one, in the same order. Rank 0 collects the weights of one file,
writes it, and goes on. A small model's files equal the files of `sieve.export`.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from sieve.bank.merging import merged_like, to_merge
from sieve.distributed.sharding import whole
from sieve.factorized.modeling_experts import Unfolded
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.model.quantized import is_quantized
from sieve.runtime.mapping import drop_pages
from sieve.runtime.memory import lean

FILE_BYTES = 5 * 10**9  # of weights in one file, and on rank 0 at a time
STREAMED_FILE_BYTES = 5 * 10**8  # of a model that is read block by block to save memory
Weights = dict[str, Callable[[], Tensor]]  # name -> gathers the weight; every rank must call it


def weights_of(model: nn.Module, format: str) -> Weights:
    """How to gather each weight of a "dense" or "factorized" export.

    Raises ValueError if a dense matrix needs a bias that its architecture lacks, and for experts in
    a dense export, which transformers stacks.
    """
    weights: Weights = {
        name: partial(whole, t) for name, t in model.state_dict(keep_vars=True).items()
    }
    if format != "dense":
        return weights
    if any(isinstance(module, Unfolded) for module in model.modules()):
        raise ValueError(
            "got a mixture of experts, whose experts cannot be stacked while its weights are "
            "sharded over ranks; use export=factorized, or run the same command again with "
            "trainer=cpu, which only exports."
        )
    for name, (layer, original) in to_merge(model).items():
        for key in layer.state_dict():
            del weights[f"{name}.{key}"]
        weights[f"{name}.weight"] = partial(_merged, layer, original, "weight")
        if getattr(original, "bias", None) is not None:
            weights[f"{name}.bias"] = partial(_merged, layer, original, "bias")
    return weights


def _merged(layer: FactorizedLinear, original: nn.Module, key: str) -> Tensor:
    """The weight or the bias of the dense layer that replaces a factorized one."""
    return merged_like(layer, original).get_parameter(key)


def write_sharded(
    shell: PreTrainedModel,
    weights: Weights,
    path: Path | None,
    dtype: torch.dtype,
    streamed: bool = False,
) -> None:
    """Gather the weights, and write them and the configuration to a directory.

    Args:
        shell: a model on the meta device, of the class and configuration to write.
        path: None on every rank but 0.
        streamed: whether the weights are read block by block, to save memory: then files are
            smaller, and pages that were read are dropped.

    Raises:
        ValueError: the architecture stores its weights under other names.
    """
    empty = {name: as_stored(tensor, dtype) for name, tensor in shell.state_dict().items()}
    shell.load_state_dict(empty, assign=True)
    shell.tie_weights()
    skipped = {*shell.all_tied_weights_keys, *(shell._keys_to_ignore_on_save or ())}
    stored = {name: tensor for name, tensor in empty.items() if name not in skipped}
    if revert_weight_conversion(shell, dict(stored)).keys() != stored.keys():
        raise ValueError(
            f"{type(shell).__name__} stores its weights under other names, which Sieve cannot "
            "write while they are sharded over ranks; run the same command again with "
            "trainer=cpu, which only exports."
        )
    most = STREAMED_FILE_BYTES if streamed else FILE_BYTES
    split = split_torch_state_dict_into_shards(stored, max_shard_size=most)
    if path is not None:
        shell.save_pretrained(path, state_dict={})  # only the configuration
    for file, names in split.filename_to_tensors.items():
        tensors: dict[str, Tensor] = {}
        with lean():
            for name in names:
                tensor = weights[name]()  # Every rank gathers, rank 0 keeps.
                if path is not None:
                    tensors[name] = as_stored(tensor, dtype).cpu().contiguous()
                del tensor
            if path is not None:
                save_file(tensors, path / file, metadata={"format": "pt"})
            tensors.clear()
            if streamed:  # Nothing has trained its factors; writes would be lost with the pages.
                drop_pages()
    if path is not None and split.is_sharded:
        index = {
            "metadata": split.metadata | {"total_parameters": shell.num_parameters()},
            "weight_map": split.tensor_to_filename,
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (path / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def as_stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as an export stores it: floating-point numbers in `dtype`, unless quantized."""
    convert = tensor.is_floating_point() and not is_quantized(tensor)
    return tensor.detach().to(dtype) if convert else tensor.detach()
