"""Settings of the device that a dry run reckons with, mirroring `conf/device`; no more."""

from dataclasses import dataclass, field


@dataclass
class DeviceSettings:
    """What one device can do. What is null is measured on the machine at hand.

    tflops: per dtype, at its best; utilization: the share of it that a model's passes reach, and
    solver_utilization that of float64 which eigenvectors reach.
    """

    name: str = "auto"  # what the table calls it
    accelerator: str | None = None  # cpu, gpu; null: that of the trainer
    memory_gib: float | None = None  # null: measured on the machine at hand
    tflops: dict[str, float] = field(default_factory=dict)  # float64, float32, bfloat16, float16
    bandwidth_gb: float | None = None  # of its memory, a second
    utilization: float = 0.4
    solver_utilization: float = 0.02
    layer_ms: float = 0.8  # of a decoder block at least, however few the tokens
    overhead_gib: float = 0.6  # what is taken before the first tensor
    disk_gb: float = 0.5  # written a second
    host_gflops: float = 20.0  # of the processor beside it, float64, in pivoted QR
