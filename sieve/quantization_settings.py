"""Settings of quantization, with their checks; no more, as every command reads them."""

from dataclasses import dataclass

QUANTIZATIONS = ("none", "int8", "int4")
GROUP_SIZES = (32, 64, 128, 256)  # that torchao's kernels for int4 take


@dataclass
class QuantizationSettings:
    """How weights are stored: as they are, or in 8 or 4 bits."""

    method: str = "none"
    group_size: int = 32  # int4: weights of a row that share a scale
