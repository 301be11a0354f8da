"""Write a model to a directory that transformers loads, with or without Sieve.

"factorized" keeps the factors and puts the modeling files beside the weights. "dense" multiplies
the factors and writes the native architecture. "onnx" and "onnx_int8" are in `sieve.exports.onnx`,
"gguf" is in `sieve.exports.gguf_writing`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, distributed
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from sieve.bank.merging import merge_dense
from sieve.bank.narrowing import narrow_layers_of
from sieve.config import FORMATS
from sieve.distributed.sharding import is_sharded
from sieve.exports.ends import ends_merged
from sieve.exports.gguf_size import GgufSettings
from sieve.exports.gguf_writing import check_gguf, write_gguf
from sieve.exports.onnx import check_packages, replaced_layers, write_onnx
from sieve.exports.sharded import as_stored, weights_of, write_sharded
from sieve.exports.storage import check_storage, stored_as
from sieve.factorized.modeling_experts import Unfolded, fold, unfold
from sieve.factorized.modeling_layers import FactorizedLinear, skipped
from sieve.factorized.modeling_sieve import blocks_class, classes_for, native_class
from sieve.model.matrices import dense_weight, shares_embedding
from sieve.model.quantized import is_quantized
from sieve.quantization import check_not_quantized, mark
from sieve.runtime.artifacts import written_beside
from sieve.streaming.offloaded import is_offloaded


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    format: str = "factorized",
    dtype: torch.dtype | None = None,
    check: Callable[[Path], None] | None = None,
    gguf: GgufSettings | None = None,
    storage: str | None = None,
    merge_head: bool = False,
) -> Path:
    """Write a model as it is in memory, with its factors, to a directory.

    The directory appears complete or not at all; an older export is replaced. If the weights are
    sharded over ranks, every rank must call this, and rank 0 writes.

    Args:
        format: "factorized", "dense", "onnx", "onnx_int8" or "gguf".
        dtype: of the weights on disk; None keeps the model's dtype. ONNX ignores it.
        check: called with the written directory under a temporary name. What it raises leaves no
            new directory and an older export as it was.
        gguf: how to write a GGUF file.
        storage: the form of factors on disk, "plain" or "pivoted" (where that takes fewer bytes);
            None keeps the model's.
        merge_head: write output head and embedding as dense matrices, which vLLM needs.

    Raises:
        ValueError: the format is unknown or cannot store this model, `path` cannot be written or
            contains other files, a dense matrix needs a bias that its architecture lacks, or a
            GGUF file would be no smaller than the dense model's.
    """
    check_format(model, format, tokenizer)
    check_storage(model, format, storage)
    path, dtype = Path(path).expanduser(), dtype or model.dtype
    if is_sharded(model) and distributed.get_rank():
        _write_weights(model, None, format, dtype)
        return path
    _check_path(path.resolve())
    with written_beside(path.resolve()) as partial:
        if format.startswith("onnx") or format == "gguf":
            if format == "gguf":
                write_gguf(model, tokenizer, partial, gguf or GgufSettings(), dtype)
            else:
                write_onnx(model, partial, int8=format == "onnx_int8")
            config = _native_config(model)
            config.save_pretrained(partial)
            if model.can_generate():
                model.generation_config.save_pretrained(partial)
        else:
            with ends_merged(model, merge_head), stored_as(model, storage, dtype):
                _write_weights(model, partial, format, dtype)
        tokenizer.save_pretrained(partial)
        if check is not None:
            check(partial)
    return path


def check_format(
    model: PreTrainedModel, format: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Raise ValueError if the format is unknown or cannot store such a model and tokenizer."""
    if format not in FORMATS:
        raise ValueError(f"got export format {format!r}, expected one of {', '.join(FORMATS)}.")
    if format == "gguf":
        if is_sharded(model):
            raise ValueError(
                "got a model sharded over ranks, but GGUF needs the whole model on one device; use "
                "export=factorized or export=dense."
            )
        check_gguf(model, tokenizer)
    if format.startswith("onnx"):
        if is_sharded(model):
            raise ValueError(
                "got a model sharded over ranks, but ONNX needs the whole model on one device; use "
                "export=factorized or export=dense."
            )
        check_packages()
        if _has_experts(model):
            raise ValueError(
                "got a mixture of experts, which Sieve cannot export to ONNX; use "
                "export=factorized or export=dense."
            )
    if format != "factorized":
        check_not_quantized(model)
    native = native_class(model)
    if format == "factorized" and getattr(transformers, native.__name__, None) is not native:
        raise ValueError(
            f"got a {native.__name__}, a class that transformers does not have, so its factors "
            "could not be loaded again; use export=dense."
        )


def _has_experts(model: PreTrainedModel) -> bool:
    return any(isinstance(module, Unfolded) for module in model.modules())


def _check_path(path: Path) -> None:
    """Raise ValueError unless `path` can be created, is empty, or is an older export."""
    names = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    if names and "config.json" not in names:
        raise ValueError(
            f"{path} contains {names[0]} and no config.json, expected a new directory or an older "
            "export to replace; choose another path."
        )
    parent = next(folder for folder in path.parents if folder.exists())
    for folder in (path, parent):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file, expected a directory; choose another path.")
    if not os.access(parent, os.W_OK):
        raise ValueError(
            f"{parent} is not writable; choose another path, or change its permissions."
        )


def _native_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the architecture without factors."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("sieve", "auto_map")}
    native: Any = native_class(model)
    return native.config_class.from_dict(config | {"architectures": [native.__name__]})


def _write_weights(
    model: PreTrainedModel, path: Path | None, format: str, dtype: torch.dtype
) -> None:
    """Write a "factorized" or "dense" export; `path` is None on ranks that do not write."""
    if format == "factorized":
        shell = _factorized_shell(model)
    else:
        shell = _shell(native_class(model), _native_config(model).to_dict(), model)
    if is_sharded(model) or is_offloaded(model):
        write_sharded(shell, weights_of(model, format), path, dtype, is_offloaded(model))
    elif path is not None:
        with nullcontext() if format == "factorized" else _merged(model):
            state = {name: _stored(tensor, dtype) for name, tensor in model.state_dict().items()}
        shell.load_state_dict(state, assign=True)
        shell.tie_weights()
        mark(shell)
        shell.save_pretrained(path)


def _factorized_shell(model: PreTrainedModel) -> PreTrainedModel:
    """An empty model with factors, whose configuration has the entry "sieve"."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, FactorizedLinear)}
    architecture = native_class(model).__name__
    entry: dict[str, object] = {
        "architecture": architecture,
        "ranks": {name: layer.factor_in.out_features for name, layer in layers.items()},
        "biases": [name for name, layer in layers.items() if layer.factor_out.bias is not None],
        "pivoted": [name for name, layer in layers.items() if layer.order is not None],
    }
    if _has_experts(model):
        entry["experts"] = True
    owners: dict[int, str] = {}  # id of a factor_in -> the first layer that uses it
    shared = {
        name: owner
        for name, layer in layers.items()
        if (owner := owners.setdefault(id(layer.factor_in), name)) != name
    }
    if shared:
        entry["shared"] = shared
        siblings = {*shared, *shared.values()}
        entry["mixed"] = {name: layers[name].factor_out.out_features for name in siblings}
    if narrow := narrow_layers_of(model):
        shapes = {name: dense_weight(layer).shape for name, (layer, _) in narrow.items()}
        entry["narrow"] = {
            name: [*shapes[name], getattr(layer, "bias", None) is not None]
            for name, (layer, _) in narrow.items()
        }
    if modules := skipped(model):
        entry["skipped"] = {path: (done.writer, done.results) for path, done in modules.items()}
    config = model.config.to_dict() | {"sieve": entry, "model_type": "sieve"}
    shell = _shell(classes_for(architecture)[0], config, model)
    if blocks := blocks_class(type(shell)):
        shell.config.auto_map = {"AutoModel": f"modeling_sieve.{blocks.__name__}"}
    return shell


def _shell(model_class: Any, config: dict[str, object], model: PreTrainedModel) -> PreTrainedModel:
    """A model of another class and configuration on the meta device, without weights."""
    config = {key: value for key, value in config.items() if key != "auto_map"}
    if config.get("tie_word_embeddings") and not shares_embedding(model):
        config["tie_word_embeddings"] = False  # Only the head was factorized.
    with torch.device("meta"):
        shell: PreTrainedModel = model_class(model_class.config_class.from_dict(config))
    if model.can_generate():
        shell.generation_config = model.generation_config
    return shell


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy on the CPU: factors may be views of a larger tensor."""
    stored = as_stored(tensor, dtype).cpu()
    return stored if is_quantized(stored) else stored.clone().contiguous()


@contextmanager
def _merged(model: PreTrainedModel) -> Iterator[None]:
    """Multiply the factors and stack the experts for the duration of the block."""
    narrow = narrow_layers_of(model)
    with replaced_layers(model):
        try:
            merge_dense(model)
            fold(model)
            yield
        finally:
            unfold(model)
            for name, (layer, _) in narrow.items():
                model.set_submodule(name, layer)
