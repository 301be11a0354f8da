"""Load an exported model in one line: `model, tokenizer = sieve.load("runs/.../export")`."""

from pathlib import Path
from typing import Any

import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from sieve.exports import onnx as onnx_export
from sieve.model.quantized import is_quantized


def load(
    path: str | Path, device: str | torch.device = "cpu", dtype: str = "auto"
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Model, in evaluation mode, and tokenizer of an export, or of any local or Hub model.

    dtype: "auto" is float32 on a CPU and the checkpoint's own on a GPU, else its name. An ONNX
    export is an `OnnxModel`, in float32 on the CPU whatever is said.
    Raises ValueError in one sentence where there is no model, or its files are missing, damaged or
    do not belong together; nothing pickled is loaded.
    """
    if (Path(path).expanduser() / onnx_export.NAME).is_file():
        return onnx_export.load_onnx(path)
    from sieve.config import ModelConfig
    from sieve.model.backbone import load_backbone

    loaded = load_backbone(ModelConfig(path=str(path), dtype=dtype), torch.device(device))
    for parameter in loaded.model.parameters():  # As from_pretrained gives them.
        parameter.requires_grad_(not is_quantized(parameter))
    return loaded.model, loaded.tokenizer
