"""Export: a directory that transformers loads, with or without Sieve installed.

`factorized` keeps the factors and carries the modeling file beside the weights; `dense` merges
them into plain matrices of the native architecture. Weights are safetensors.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, distributed, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from sieve.bank.switch import merge_dense
from sieve.config import FORMATS
from sieve.distributed.sharding import is_sharded
from sieve.exports.onnx import check_packages, write_onnx
from sieve.exports.sharded import weights_of, write_sharded
from sieve.factorized.modeling_experts import Unfolded, fold, unfold
from sieve.factorized.modeling_layers import FactorizedLinear
from sieve.factorized.modeling_sieve import classes_for, native_class
from sieve.model.matrices import shares_embedding
from sieve.model.quantized import is_quantized
from sieve.quantization import check_not_quantized, mark
from sieve.runtime.artifacts import written_beside


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    format: str = "factorized",
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the model as it stands in memory, its factors included, to a directory.

    format: "factorized", "dense", "onnx" or "onnx_int8". dtype: of the weights on disk, by default
    the model's own; float32 in ONNX, whatever is said.
    All ranks export a model that is shared out over them, and rank 0 writes.
    The directory appears whole or not at all; an older export is replaced. Raises ValueError for
    an unknown format, for a path that cannot be written or holds anything else, or where a dense
    matrix would need a bias its architecture has no place for.
    """
    check_format(model, format)
    path, dtype = Path(path).expanduser(), dtype or model.dtype
    if is_sharded(model) and distributed.get_rank():
        _write_weights(model, None, format, dtype)
        return path
    _check_free(path.resolve())
    with written_beside(path.resolve()) as partial:
        if format.startswith("onnx"):
            write_onnx(model, partial, int8=format == "onnx_int8")
            _native_config(model).save_pretrained(partial)
            if model.can_generate():
                model.generation_config.save_pretrained(partial)
        else:
            _write_weights(model, partial, format, dtype)
        tokenizer.save_pretrained(partial)
    return path


def check_format(model: PreTrainedModel, format: str) -> None:
    """ValueError unless `model` can be written in a format, as far as its class says."""
    if format not in FORMATS:
        raise ValueError(f"got export format {format!r}, expected one of {', '.join(FORMATS)}.")
    if format.startswith("onnx"):
        if is_sharded(model):
            raise ValueError(
                "a graph is made of a model on one device; use export=factorized or export=dense."
            )
        check_packages()
        classifies = native_class(model).__name__.endswith("ForSequenceClassification")
        if classifies or any(isinstance(m, Unfolded) for m in model.modules()):
            kind = "classifier" if classifies else "mixture of experts"
            raise ValueError(
                f"got a {kind}, of which Sieve makes no graph; use export=factorized or "
                "export=dense."
            )
    if format != "factorized":
        check_not_quantized(model)
    native = native_class(model)
    if format == "factorized" and getattr(transformers, native.__name__, None) is not native:
        raise ValueError(
            f"got a {native.__name__}, a class that transformers does not have, so its factors "
            "could not be loaded again; use export=dense."
        )


def _check_free(path: Path) -> None:
    """ValueError unless `path` can be made, or is empty or an older export that may be replaced."""
    held = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    if held and "config.json" not in held:
        raise ValueError(
            f"{path} holds {held[0]} and no config.json, expected a new directory or an older "
            "export to replace; choose another path."
        )
    parent = next(folder for folder in path.parents if folder.exists())
    for folder in (path, parent):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file, expected a directory; choose another path.")
    if not os.access(parent, os.W_OK):
        raise ValueError(f"{parent} cannot be written; choose another path, or change its rights.")


def _native_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the architecture without factors."""
    held = {k: v for k, v in model.config.to_dict().items() if k not in ("sieve", "auto_map")}
    config_class: Any = native_class(model)
    return config_class.config_class.from_dict(held)


def _write_weights(
    model: PreTrainedModel, path: Path | None, format: str, dtype: torch.dtype
) -> None:
    """Write a model "factorized" or "dense"; path: None on the ranks that do not write."""
    if format == "factorized":
        model_class, config = _factorized_config(model)
    else:
        model_class, config = native_class(model), _native_config(model).to_dict()
    if is_sharded(model):
        shell = _shell(model_class, config, model)
        write_sharded(shell, weights_of(model, format), path, dtype)
        return
    assert path is not None
    with nullcontext() if format == "factorized" else _merged(model):
        _write(_shell(model_class, config, model), model, path, dtype)


def _factorized_config(model: PreTrainedModel) -> tuple[Any, dict[str, Any]]:
    """Class and configuration of a model with factors."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, FactorizedLinear)}
    architecture = native_class(model).__name__
    model_class, _ = classes_for(architecture)
    entry: dict[str, Any] = {
        "architecture": architecture,
        "ranks": {name: layer.factor_in.out_features for name, layer in layers.items()},
        "biases": [name for name, layer in layers.items() if layer.factor_out.bias is not None],
        "pivoted": [name for name, layer in layers.items() if layer.order is not None],
    }
    if any(isinstance(module, Unfolded) for module in model.modules()):
        entry["experts"] = True
    first: dict[nn.Module, str] = {}
    shared = {
        name: source
        for name, layer in layers.items()
        if (source := first.setdefault(layer.factor_in, name)) != name
    }
    if shared:
        entry["shared"] = shared
        siblings = {*shared, *shared.values()}
        entry["mixed"] = {name: layers[name].factor_out.out_features for name in siblings}
    return model_class, model.config.to_dict() | {"sieve": entry, "model_type": "sieve"}


def _shell(model_class: Any, config: dict[str, Any], model: PreTrainedModel) -> Any:
    """A model of another class and configuration, without numbers."""
    config = {key: value for key, value in config.items() if key != "auto_map"}
    if config.get("tie_word_embeddings") and not shares_embedding(model):
        config["tie_word_embeddings"] = False  # The head was factorized, the embedding was not.
    with torch.device("meta"):
        shell = model_class(model_class.config_class.from_dict(config))
    if model.can_generate():
        shell.generation_config = model.generation_config
    return shell


def _write(shell: Any, model: PreTrainedModel, path: Path, dtype: torch.dtype) -> None:
    """Save the weights of `model` as the shell's."""
    state = {name: _stored(tensor, dtype) for name, tensor in model.state_dict().items()}
    shell.load_state_dict(state, assign=True)
    shell.tie_weights()
    mark(shell)
    shell.save_pretrained(path)


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    if is_quantized(tensor):
        return tensor
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).clone().contiguous()


@contextmanager
def _merged(model: PreTrainedModel) -> Iterator[None]:
    """Merge the factors, and stack experts, for the duration of the block."""
    layers: dict[str, nn.Module] = {
        n: m for n, m in model.named_modules() if isinstance(m, FactorizedLinear)
    }
    try:
        merge_dense(model)
        fold(model)
        yield
    finally:
        unfold(model)
        for name, layer in layers.items():
            model.set_submodule(name, layer)
