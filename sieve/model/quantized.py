"""The parts of a quantized tensor of torchao, without importing torchao."""

import torch
from torch import Tensor


def is_quantized(tensor: Tensor) -> bool:
    """Whether a tensor is quantized by torchao."""
    return hasattr(tensor, "tensor_data_names")


def parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a quantized one consists of, or a plain tensor itself."""
    kinds = ("tensor_data_names", "optional_tensor_data_names")
    names = [name for kind in kinds for name in getattr(tensor, kind, ())]
    if not names:
        return [tensor]
    return [part for name in names if (part := getattr(tensor, name)) is not None]


def bytes_of(tensor: Tensor, dtype: torch.dtype) -> int:
    """Bytes on disk; a plain floating-point tensor is stored in `dtype`."""
    if not is_quantized(tensor) and tensor.is_floating_point():
        return tensor.numel() * dtype.itemsize
    return sum(part.numel() * part.element_size() for part in parts(tensor))
