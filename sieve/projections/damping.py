"""How much damping a second moment needs that few examples estimate."""

import torch
from torch import Tensor


def shrinkage(second: Tensor, examples: int) -> float:
    """The damping δ, at most 1, of S + δ · tr(S)/p · I by oracle approximating shrinkage.

    Chen, Wiesel, Eldar and Hero 2010 (arXiv:0907.4698), eq. 23, estimate a covariance by
    (1 − ρ) S + ρ · tr(S)/p · I; dividing by 1 − ρ gives δ = ρ / (1 − ρ).

    Args:
        second: S (p, p), estimated from `examples` independent vectors.
        examples: rows, not tokens: the tokens of one row are not independent.
    """
    p = len(second)
    trace = float(second.diagonal().double().sum())
    if trace <= 0 or p < 2:
        return 1.0
    concentration = (
        float(torch.linalg.vector_norm(second, dtype=torch.float64)) ** 2 / trace**2
    )  # from 1/p (even) to 1
    numerator = (1 - 2 / p) * concentration + 1
    denominator = (examples + 1 - 2 / p) * (concentration - 1 / p)
    rho = 1.0 if denominator <= numerator else numerator / denominator
    return min(1.0, rho / (1 - rho)) if rho < 1 else 1.0
