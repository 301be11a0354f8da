"""The minimum of a smooth function of tensors, by brute force."""

from collections.abc import Callable

import torch
from torch import Tensor


def least(loss: Callable[..., Tensor], *shapes: tuple[int, ...], starts: int = 3) -> float:
    """The least `loss(*tensors)` over float64 tensors of these shapes, by LBFGS."""
    return min(_descend(loss, shapes, seed) for seed in range(starts))


def _descend(loss: Callable[..., Tensor], shapes: tuple[tuple[int, ...], ...], seed: int) -> float:
    g = torch.Generator().manual_seed(50 + seed)
    free = [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes]
    optimizer = torch.optim.LBFGS(
        free,
        max_iter=4000,
        max_eval=9000,
        tolerance_grad=1e-13,
        tolerance_change=1e-18,
        history_size=60,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(*free)
        value.backward()
        return value

    optimizer.step(closure)
    return float(loss(*free).detach())
