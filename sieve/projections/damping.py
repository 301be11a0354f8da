"""How far to trust a second moment that was estimated from few examples."""

from torch import Tensor


def shrinkage(second: Tensor, examples: int) -> float:
    """Damping δ of S + δ · tr(S)/p · I by oracle approximating shrinkage.

    second: S (p, p), estimated from `examples` independent vectors. Chen, Wiesel, Eldar and Hero
    2010 (arXiv:0907.4698), eq. 23, give the weight ρ of the scaled identity beside 1 − ρ of S;
    here δ = ρ / (1 − ρ), at most 1. An example's tokens are not independent: examples are counted.
    """
    p = len(second)
    trace = float(second.diagonal().double().sum())
    if trace <= 0 or p < 2:
        return 1.0
    concentration = float(second.double().square().sum()) / trace**2  # 1/p (even) to 1
    numerator = (1 - 2 / p) * concentration + 1
    denominator = (examples + 1 - 2 / p) * (concentration - 1 / p)
    rho = 1.0 if denominator <= numerator else numerator / denominator
    return min(1.0, rho / (1 - rho)) if rho < 1 else 1.0
