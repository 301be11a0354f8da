"""Running sums of second moments, which torchmetrics adds up over ranks."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed
from torchmetrics import Metric

STRIPS, NARROWEST = 4, 64  # strips of a second moment, and their fewest rows


class SumMetric(Metric):
    """Sums over vectors z with weights w, in float32.

    The arguments are the sizes n of the sums to keep; a sum of size 0 is not kept. Of a second
    moment, which is symmetric, only the upper part is summed; `compute` fills in the lower one.
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
        """Store the zeros of a reset as one number for each state, not as full tensors."""
        for name, value in self._defaults.items():
            assert isinstance(value, Tensor)
            self._defaults[name] = value.new_zeros(()).expand(value.shape)

    def release(self) -> None:
        """Free the second moments; the metric cannot be used afterwards."""
        self.second, self._computed = self.second.new_zeros(0, 0), None

    def update(self, z: Tensor, weight: Tensor | float | None = None) -> None:
        """Add vectors z (tokens, n).

        Args:
            weight: of each vector (tokens,), or of all; 1 by default.
        """
        exact, z = z.dtype != torch.bfloat16, z.float()
        weights = z.new_ones(len(z)) if weight is None else weight * z.new_ones(len(z))
        if len(self.second):
            with products(exact):
                add_upper(self.second, z if weight is None else z * weights.sqrt()[:, None])
        if len(self.total):
            self.total += weights @ z
        if len(self.absolute):
            self.absolute += weights @ z.abs()
        self.mass += weights.sum(dtype=torch.float64)
        self.count += z.shape[0]

    def compute(self) -> dict[str, Tensor]:
        """All sums by name; torchmetrics has added up the ranks."""
        fill_lower(self.second)
        return {name: getattr(self, name) for name in self._defaults}

    def sums(self) -> dict[str, Tensor]:
        """`compute`, also on a rank that had no batch."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*called before the ``update``")
            sums: dict[str, Tensor] = self.compute()
        return {name: value.reshape(getattr(self, name).shape) for name, value in sums.items()}


def summed_entries(size: int) -> int:
    """How many entries of a second moment (size, size) are summed."""
    return sum((min(r.stop, size) - r.start) * (c.stop - c.start) for r, c in _strips(size))


def add_upper(second: Tensor, z: Tensor) -> None:
    """Add zᵀz of vectors z (tokens, n) to the upper part of a second moment (n, n)."""
    for rows, columns in _strips(len(second)):
        second[rows, columns].addmm_(z[:, rows].T, z[:, columns])


def fill_lower(second: Tensor) -> None:
    """Copy the upper part of a second moment to the lower one."""
    for rows, _ in _strips(len(second)):
        if rows.stop < len(second):
            second[rows.stop :, rows].copy_(second[rows, rows.stop :].T)


def _strips(size: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of strips that cover the upper part of a square matrix."""
    height = max(NARROWEST, -(-size // STRIPS))
    for start in range(0, size, height):
        yield slice(start, start + height), slice(start, size)


@contextmanager
def products(exact: bool) -> Iterator[None]:
    """How a CPU multiplies float32 matrices in the block: exactly, or in bfloat16.

    Sums stay in float32. Vectors of a bfloat16 model lose little by bfloat16 products.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = before if exact else "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _sum_over_ranks(tensor: Tensor, group: object) -> list[Tensor]:
    """The sum over ranks. Gathering each rank's tensor would take memory for every rank."""
    total = tensor.clone()
    distributed.all_reduce(total, group=group)
    return [total]
