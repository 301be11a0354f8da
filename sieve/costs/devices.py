"""Seconds of work on a device: by its arithmetic, or by its memory and what a block takes least."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Device:
    """What one device can do: bytes, operations a second by dtype, bytes a second, seconds.

    utilization: the share of `flops` that passes reach; layer_seconds: of a block at least; host:
    operations a second of pivoted QR on the processor; local: whether host and device share memory.
    """

    name: str
    memory: float
    flops: dict[str, float]
    bandwidth: float
    utilization: float
    solver_utilization: float
    layer_seconds: float
    overhead: float
    disk: float
    host: float
    local: bool = False  # a CPU, whose memory holds all that is said to be the host's
    notes: tuple[str, ...] = field(default=())

    def rate(self, dtype: str) -> float:
        """Operations a second that passes through a model reach."""
        return self.flops[dtype] * self.utilization

    def passes(
        self, flops: float, dtype: str, batches: float, layers: int, weights: float
    ) -> float:
        """Seconds of a pass over batches; weights: bytes that each reads."""
        least = batches * max(weights / self.bandwidth, layers * self.layer_seconds)
        return max(flops / self.rate(dtype), least)

    def sums(self, flops: float) -> float:
        """Seconds of products in float32 of many tokens."""
        return flops / self.rate("float32")

    def solves(self, products: float, spectral: float) -> float:
        """Seconds of work in float64."""
        peak = self.flops["float64"]
        return products / (peak * self.utilization) + spectral / (peak * self.solver_utilization)

    def writes(self, size: float) -> float:
        """Seconds to write bytes."""
        return size / self.disk
