"""Factors of one matrix, nested by rank, and the eigenproblem that orders them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-12  # of the mean eigenvalue of C
PIVOT = 1e-11  # of its diagonal: below that a pivot of a Cholesky factor is rounding


@dataclass(frozen=True)
class Factors:
    """W ≈ U_r V_r for every rank r ≤ k: the best factors of rank r are the first r directions.

    u: (d_out, k); v: (k, d_in); energy: (n,) error left to pay for each direction, falling, of all
    directions (n ≥ k); mean: (d_out,) mean output, the bias of rank 0; offset: (k,) coordinates of
    the mean along u when the projection fits a bias (then bias_r = mean − u_r offset_r), else None.
    """

    u: Tensor
    v: Tensor
    energy: Tensor
    mean: Tensor
    offset: Tensor | None = None

    @property
    def rank(self) -> int:
        """The largest rank k held."""
        return self.v.shape[0]

    @property
    def fits_bias(self) -> bool:
        """Whether every rank carries a bias of its own; rank 0 always does."""
        return self.offset is not None

    def cut(self, rank: int) -> "Factors":
        """The factors of the first `rank` directions; the spectrum stays whole."""
        offset = None if self.offset is None else self.offset[:rank]
        return Factors(self.u[:, :rank], self.v[:rank], self.energy, self.mean, offset)

    def bias(self, rank: int) -> Tensor | None:
        """What to add to U_r V_r x (d_out,), or None when nothing is to be added."""
        if rank == 0:
            return self.mean
        if self.offset is None:
            return None
        return self.mean - self.u[:, :rank] @ self.offset[:rank].to(self.u.dtype)


def principal_outputs(weight: Tensor, second: Tensor, side: str) -> tuple[Tensor, Tensor]:
    """Directions of W x by falling energy: orthonormal U (d_out, k) and energies (k,), float64.

    The columns of U are the eigenvectors of W C Wᵀ with C = E[x xᵀ] = second (side "input"), or of
    second = E[y yᵀ] itself (side "output"); k = min(d_out, d_in). A tall W is solved on its small
    side, C^½ Wᵀ W C^½ (d_in, d_in); QR then completes U where energies vanish.
    """
    weight, second = weight.double(), _finite(second.double())
    d_out, d_in = weight.shape
    k = min(d_out, d_in)
    if side == "output":
        energy, u = eigh(second)
    elif d_out <= d_in:
        energy, u = eigh(weight @ second @ weight.T)
    else:
        # Inputs never seen come last, yet U spans what W makes of them.
        root = weight @ square_root(second, ridge_of(second, RIDGE))[0]  # W C^½ up to a rotation
        energy, rotation = eigh(root.T @ root)
        u = torch.linalg.qr(root @ rotation).Q
    return u[:, :k], energy[:k]


def ridge_of(second: Tensor, share: float) -> float:
    """A share of the mean eigenvalue of a second moment, above zero."""
    mean = float(second.diagonal().mean())
    return share * max(mean, torch.finfo(second.dtype).tiny)


def square_root(second: Tensor, ridge: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """R (n, n) with R Rᵀ = S + ridge · I, and what multiplies by R⁻ᵀ; S in float64.

    R is a Cholesky factor, some twenty times as fast as eigenvectors; where S is so close to
    singular that a pivot is lost to rounding, it is eigenvectors times roots of eigenvalues.
    """
    raised = second + ridge * torch.eye(len(second), dtype=second.dtype, device=second.device)
    root, failed = torch.linalg.cholesky_ex(raised)
    if not failed and (root.diagonal().square() > PIVOT * raised.diagonal()).all():
        return root, lambda q: torch.linalg.solve_triangular(root.T, q, upper=True)
    values, axes = eigh(second)
    spread = (values + ridge).sqrt()
    return axes * spread, lambda q: (axes / spread) @ q


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, falling and not negative, and their eigenvectors as columns."""
    symmetric = symmetric + symmetric.T  # The argument's memory is free where nobody else has it.
    symmetric /= 2
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _finite(tensor: Tensor) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise ValueError("got moments or weights that are not finite; calibrate again.")
    return tensor
