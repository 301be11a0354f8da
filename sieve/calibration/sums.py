"""Running sums of second moments, which torchmetrics adds up over ranks."""

import warnings
from typing import Any

import torch
from torch import Tensor, distributed
from torchmetrics import Metric


class SumMetric(Metric):
    """Sums over vectors z with weights w, in float32.

    The arguments are the sizes n of the sums to keep; a sum of size 0 is not kept.
    """

    full_state_update = False
    second: Tensor  # Σ w z zᵀ (n, n)
    total: Tensor  # Σ w z (n,)
    absolute: Tensor  # Σ |z| (n,)
    mass: Tensor  # Σ w
    power: Tensor  # Σ ‖z‖², which the collector adds to
    count: Tensor  # number of z

    def __init__(self, second: int = 0, total: int = 0, absolute: int = 0) -> None:
        super().__init__(dist_sync_fn=_sum_over_ranks)
        zeros = {
            "second": torch.zeros(second, second),
            "total": torch.zeros(total),
            "absolute": torch.zeros(absolute),
            "mass": torch.zeros((), dtype=torch.float64),
            "power": torch.zeros((), dtype=torch.float64),
            "count": torch.zeros((), dtype=torch.long),
        }
        for name, value in zeros.items():
            self.add_state(name, value, dist_reduce_fx="sum")
        self._slim()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        moved = super()._apply(*args, **kwargs)
        self._slim()
        return moved

    def _slim(self) -> None:
        """Store the zeros that states are reset to as one number each, not as full tensors."""
        for name, value in self._defaults.items():
            assert isinstance(value, Tensor)
            self._defaults[name] = value.new_zeros(()).expand(value.shape)

    def release(self) -> None:
        """Free the second moments; the metric cannot be used afterwards."""
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
        """`compute`, also on a rank that had no batch."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*called before the ``update``")
            sums: dict[str, Tensor] = self.compute()
        return {name: value.reshape(getattr(self, name).shape) for name, value in sums.items()}


def _sum_over_ranks(tensor: Tensor, group: object) -> list[Tensor]:
    """The sum over ranks in place of each rank's tensor, which would take memory per rank."""
    total = tensor.clone()
    distributed.all_reduce(total, group=group)
    return [total]
