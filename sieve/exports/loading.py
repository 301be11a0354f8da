"""Load an exported model in one line: `model, tokenizer = sieve.load("runs/.../export")`."""

from pathlib import Path
from typing import Any

import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from sieve.config import ModelConfig, PathsConfig
from sieve.exports.gguf_loading import is_gguf_export, load_gguf
from sieve.exports.gguf_writing import NAME as GGUF
from sieve.exports.onnx import NAME
from sieve.exports.onnx_model import load_onnx
from sieve.model.backbone import load_backbone, place
from sieve.model.prepared import prepare
from sieve.model.quantized import is_quantized
from sieve.runtime.artifacts import Cache


def load(
    path: str | Path, device: str | torch.device = "cpu", dtype: str = "auto"
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model, in evaluation mode, and the tokenizer of an export or another model directory.

    Only safetensors, ONNX and GGUF files are read, never pickle.

    Args:
        path: a directory, a GGUF file or a name on the Hub. An ONNX export becomes an `OnnxModel`,
            a GGUF export a model of transformers with the layers of the file.
        device: ignored by ONNX, which runs on the CPU.
        dtype: "auto" is the checkpoint's dtype where the device is fast in it, else float32; or the
            name of a dtype. Of a GGUF export "auto" is the file's. Ignored by ONNX, which computes
            in float32.

    Raises:
        ValueError: there is no model, or its files are missing, damaged or of different models.
    """
    if (Path(path).expanduser() / NAME).is_file():
        return load_onnx(path)
    if is_gguf_export(folder := _folder_of(Path(path).expanduser())):
        wanted = None if dtype == "auto" else getattr(torch, dtype)
        model, tokenizer = load_gguf(folder, wanted)
        place(model, torch.device(device))
        return model, tokenizer
    cache = Cache(Path(PathsConfig().cache_dir))
    config = prepare(ModelConfig(path=str(path), dtype=dtype), cache)
    backbone = load_backbone(config, torch.device(device))
    for parameter in backbone.model.parameters():  # As after `from_pretrained`.
        parameter.requires_grad_(not is_quantized(parameter))
    return backbone.model, backbone.tokenizer


def _folder_of(path: Path) -> Path:
    """The folder of a GGUF export, of which `path` may be the file."""
    return path.parent if path.name == GGUF else path
