"""Square roots of second moments: by Cholesky, and where that would be rounding."""

import pytest
import torch
from torch import Tensor

from sieve.projections.factors import ridge_of, square_root

SCALES = torch.logspace(0, -8, 12, dtype=torch.float64)


def seen(tokens: int, scales: Tensor = SCALES) -> Tensor:
    """Second moment of random vectors whose entries have these scales."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(tokens, len(scales), generator=generator, dtype=torch.float64) * scales
    return z.T @ z / tokens


# Enough tokens; fewer than there are entries; none at all; entries that differ 1e8-fold.
CASES = {
    "full": (seen(50, SCALES.clamp_min(0.1)), 0.0),
    "few": (seen(4), 0.0),
    "few, damped": (seen(4), 1e-3),
    "scaled": (seen(50), 0.0),
    "scaled, damped": (seen(50), 1e-8),
    "few, hardly damped": (seen(4, torch.ones_like(SCALES)), 1e-13),
    "nothing": (torch.zeros(12, 12, dtype=torch.float64), 1e-3),
}


@pytest.mark.parametrize("case", CASES)
def test_a_square_root_times_itself_is_the_moment(case: str) -> None:
    second, ridge = CASES[case]
    root = square_root(second, ridge).full()
    raised = second + ridge * torch.eye(12, dtype=second.dtype)
    torch.testing.assert_close(root @ root.T, raised, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("case", ["full", "few, damped", "scaled, damped", "nothing"])
def test_the_inverse_undoes_the_root(case: str) -> None:
    root = square_root(*CASES[case])
    eye = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(root.solve(root.full().T), eye, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "triangular"), [("full", True), ("few", False), ("few, hardly damped", False)]
)
def test_eigenvectors_take_over_where_pivots_are_rounding(case: str, triangular: bool) -> None:
    root = square_root(*CASES[case]).full()
    assert (root.triu(1) == 0).all() == triangular


def test_rounding_below_zero_does_not_stop_it() -> None:
    second = seen(50)
    values, axes = torch.linalg.eigh(second)
    values[0] = -1e-16  # As sums in single precision leave it.
    root = square_root(axes * values @ axes.T, 0.0).full()
    assert root.isfinite().all()
    torch.testing.assert_close(root @ root.T, second, rtol=1e-9, atol=1e-14)


def test_a_ridge_is_a_share_of_the_mean_and_never_nothing() -> None:
    assert ridge_of(torch.diag(torch.tensor([1.0, 3.0])), 0.5) == 1.0
    assert ridge_of(torch.zeros(3, 3), 0.5) > 0
