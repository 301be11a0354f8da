"""Streaming sums of second moments, added up over ranks: what the collector's hooks feed."""

import warnings
from typing import Any

import torch
from torch import Tensor, distributed
from torchmetrics import Metric


class SumMetric(Metric):
    """Sums over vectors z, in float32, added up over ranks.

    second: Σ w z zᵀ (n, n); total: Σ w z (n,); absolute: Σ |z| (n,); mass: Σ w; power: Σ ‖z‖²;
    count: how many z. What is not asked for has no elements.
    """

    full_state_update = False
    second: Tensor
    total: Tensor
    absolute: Tensor
    mass: Tensor
    power: Tensor
    count: Tensor

    def __init__(self, second: int = 0, total: int = 0, absolute: int = 0) -> None:
        super().__init__(dist_sync_fn=_summed)
        zeros = {
            "second": torch.zeros(second, second), "total": torch.zeros(total),
            "absolute": torch.zeros(absolute), "mass": torch.zeros((), dtype=torch.float64),
            "power": torch.zeros((), dtype=torch.float64),
            "count": torch.zeros((), dtype=torch.long),
        }  # fmt: skip
        for name, value in zeros.items():
            self.add_state(name, value, dist_reduce_fx="sum")
        self._slim()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        moved = super()._apply(*args, **kwargs)
        self._slim()
        return moved

    def _slim(self) -> None:
        """Keep what states are reset to, zeros, as one number each: a copy would weigh as much."""
        for name, value in self._defaults.items():
            assert isinstance(value, Tensor)
            self._defaults[name] = value.new_zeros(()).expand(value.shape)

    def release(self) -> None:
        """Let go of the sums of squares; the metric is of no use afterwards."""
        self.second, self._computed = self.second.new_zeros(0, 0), None

    def update(self, z: Tensor, weight: Tensor | None = None) -> None:
        """Add vectors z (tokens, n), each with a weight (tokens,), 1 by default."""
        weighted = z if weight is None else z * weight[:, None]
        if len(self.second):
            self.second.addmm_(weighted.T, z)
        if len(self.total):
            self.total += weighted.sum(0)
        if len(self.absolute):
            self.absolute += z.abs().sum(0)
        self.mass += len(z) if weight is None else weight.sum(dtype=torch.float64)
        self.count += z.shape[0]

    def compute(self) -> dict[str, Tensor]:
        """The sums over every rank."""
        return {name: getattr(self, name) for name in self._defaults}

    def sums(self) -> dict[str, Tensor]:
        """The same, also where this rank had no batch."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*called before the ``update``")
            found: dict[str, Tensor] = self.compute()
        shapes = {name: getattr(self, name).shape for name in found}
        return {name: value.reshape(shapes[name]) for name, value in found.items()}


def _summed(tensor: Tensor, group: Any) -> list[Tensor]:
    """The sum over ranks, as if it were all they gave: to gather theirs takes memory for each."""
    total = tensor.clone()
    distributed.all_reduce(total, group=group)
    return [total]
