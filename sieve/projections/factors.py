"""Factors of one matrix, nested by rank, and the eigenproblem that orders their directions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sieve.projections.linear_algebra import congruence, eigenvectors

RIDGE = 1e-12  # of the mean eigenvalue of C
LEAST = 1e-30  # the mean eigenvalue of a moment of zeros; its root is a number in float32, too
PIVOT = 1e-11  # of the matrix's diagonal; a smaller pivot of a Cholesky factor is a rounding error


@dataclass(frozen=True)
class Factors:
    """W ≈ U_r V_r for every rank r ≤ k: the best factors of rank r are the first r directions."""

    u: Tensor  # (d_out, k); of neurons (n + d_out, k), see `neurons.py`
    v: Tensor  # (k, d_in)
    # (n,), n ≥ k: the error that leaving out each direction adds. It falls, except of neurons.
    energy: Tensor
    mean: Tensor  # (d_out,) mean output, the bias of rank 0
    # (k,) U⁻¹ mean where the projection fits a bias; the bias of rank r is mean − u_r offset_r.
    offset: Tensor | None = None

    @property
    def rank(self) -> int:
        """The largest rank k."""
        return self.v.shape[0]

    @property
    def fits_bias(self) -> bool:
        """Whether every rank has a bias of its own; rank 0 always has one."""
        return self.offset is not None

    def cut(self, rank: int) -> "Factors":
        """The factors of the first `rank` directions, with all energies."""
        offset = None if self.offset is None else self.offset[:rank]
        return Factors(self.u[:, :rank], self.v[:rank], self.energy, self.mean, offset)

    def bias(self, rank: int) -> Tensor | None:
        """The bias (d_out,) to add to U_r V_r x, or None."""
        if rank == 0:
            return self.mean
        if self.offset is None:
            return None
        written = self.u[-len(self.mean) :, :rank]  # Above it neurons have their incoming weights.
        return self.mean - written @ self.offset[:rank].to(self.u.dtype)


def principal_outputs(weight: Tensor, second: Tensor, side: str) -> tuple[Tensor, Tensor]:
    """Directions of y = W x by falling energy: orthonormal U (d_out, k) and energies, float64.

    The columns of U are the k = min(d_out, d_in) leading eigenvectors of E[y yᵀ] = W C Wᵀ. A tall W
    is solved in the smaller space of inputs, C^½ Wᵀ W C^½ (d_in, d_in).

    Args:
        weight: W (d_out, d_in).
        second: C = E[x xᵀ] for side "input", E[y yᵀ] for side "output".
        side: "input" or "output".
    """
    weight, second = weight.double(), _finite(second.double())
    d_out, d_in = weight.shape
    k = min(d_out, d_in)
    if side == "output":
        energy, u = eigh(second)
    elif d_out <= d_in:
        energy, u = eigh(weight @ second @ weight.T)
    else:
        # The ridge gives inputs that never occurred the least energy; QR then completes U.
        root = square_root(second, ridge_of(second, RIDGE)).full()
        root = weight @ root  # W C^½ up to a rotation
        energy, rotation = eigh(root.T @ root)
        u = torch.linalg.qr(root @ rotation).Q
    return u[:, :k], energy[:k]


def ridge_of(second: Tensor, share: float) -> float:
    """A share of the mean eigenvalue of a second moment, above zero."""
    return share * max(float(second.diagonal().mean()), LEAST)


@dataclass(frozen=True)
class Root:
    """R (n, n) with R Rᵀ = S + ridge · I: a lower triangle, or eigenvectors and their lengths."""

    columns: Tensor  # R, or orthonormal eigenvectors
    lengths: Tensor | None = None  # (n,) of the eigenvectors; None: the columns are a triangle

    def full(self) -> Tensor:
        """R itself."""
        return self.columns if self.lengths is None else self.columns * self.lengths

    def around(self, symmetric: Tensor) -> Tensor:
        """The lower triangle of Rᵀ A R (n, n) for a symmetric A; what is above it may be wrong."""
        if self.lengths is None:
            return congruence(self.columns, symmetric)
        root = self.full()
        return root.T @ symmetric @ root

    def times(self, other: Tensor) -> Tensor:
        """R B (n, m)."""
        return self.full() @ other

    def solve(self, other: Tensor) -> Tensor:
        """R⁻ᵀ B (n, m)."""
        if self.lengths is None:
            return torch.linalg.solve_triangular(self.columns.T, other, upper=True)
        return (self.columns / self.lengths) @ other


def square_root(second: Tensor, ridge: float) -> Root:
    """The root R of S + ridge · I (n, n) for S in float64.

    R is a Cholesky factor, which is about twenty times as fast as eigenvectors. Where rounding
    would destroy a pivot of a nearly singular S, R is eigenvectors times roots of eigenvalues.
    """
    raised = second.clone()
    raised.diagonal().add_(ridge)
    root, failed = torch.linalg.cholesky_ex(raised)
    if not failed and (root.diagonal().square() > PIVOT * raised.diagonal()).all():
        return Root(root)
    values, axes = eigh(second)
    return Root(axes, (values + ridge).sqrt())


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, falling and at least 0, and their eigenvectors as columns.

    Only the lower triangle is read. The largest element of each eigenvector is positive, so that
    rounding decides no sign.
    """
    values, vectors = eigenvectors(symmetric)
    largest = vectors.abs().argmax(0, keepdim=True)
    vectors *= vectors.gather(0, largest).sgn()
    return values.flip(0).clamp_min(0), vectors.flip(1)


def finite(tensor: Tensor) -> bool:
    """Whether every number is finite; NaN would be both the least and the largest."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _finite(tensor: Tensor) -> Tensor:
    if not finite(tensor):
        raise ValueError("got moments or weights that are not finite; calibrate again.")
    return tensor
