"""Operations and workspace of the closed forms, in float64; eigenvectors run far below peak.

Counts follow `projections/*.py`, `refit/paired.py` and `bank/pivoting.py` product by product.
Cholesky factors and triangular solves are left out: they are less than a tenth of those.
"""

from dataclasses import dataclass

from sieve.bank.genome import Sizing
from sieve.costs.shape import FLOAT32, FLOAT64, Shape
from sieve.model.matrices import Matrix, siblings
from sieve.projections.moments import Needs, Side, gradient_side, plan_streams

EIGH, SVD, QR = 9.0, 20.0, 4.0  # times n³ (of a symmetric matrix), m n², m n²


@dataclass(frozen=True)
class Work:
    """products: operations of matrix products; spectral: of eigenvectors, SVD and QR."""

    products: float = 0.0
    spectral: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.products + other.products, self.spectral + other.spectral)

    def __mul__(self, times: float) -> "Work":
        return Work(times * self.products, times * self.spectral)

    @property
    def flops(self) -> float:
        """All of them."""
        return self.products + self.spectral


def solve_work(projection: str, d_out: int, d_in: int, side: Side) -> Work:
    """One matrix for every rank at once; side: of its moment."""
    small, large = min(d_out, d_in), max(d_out, d_in)
    if projection in ("svd", "asvd", "whitened"):
        work = Work(0, SVD * large * small**2)
        if projection == "whitened":
            work += Work(2 * (d_out + small) * d_in**2, EIGH * d_in**3)
        return work
    if projection == "input_pca":
        return Work(2 * d_out * d_in * small, EIGH * d_in**3)
    if projection.startswith("loss_aware"):
        return _loss_aware(d_out, d_in, side)
    back = Work(2 * d_out * small * d_in)  # Uᵀ W
    if side == "output":
        return back + Work(0, EIGH * d_out**3)
    if d_out <= d_in:
        return back + Work(_conjugated(d_out, d_in), EIGH * d_out**3)
    return back + Work(6 * d_out * d_in**2, EIGH * d_in**3 + QR * d_out * d_in**2)


def _loss_aware(d_out: int, d_in: int, side: Side) -> Work:
    if d_out <= d_in:  # By H of the outputs.
        seen = _conjugated(d_out, d_in) if side == "input" else 0
        return Work(seen + 6 * d_out**3 + 2 * d_out**2 * d_in, EIGH * d_out**3)
    return Work(4 * d_out * d_in**2 + 8 * d_in**3, EIGH * d_in**3)


def _conjugated(d_out: int, d_in: int) -> float:
    """W C Wᵀ."""
    return 2.0 * d_out * d_in * (d_in + d_out)


def fit_work(shape: Shape, projection: str, needs: Needs, by_gradient: bool, joint: bool) -> Work:
    """All matrices, and groups of siblings where they may share factors."""
    streams = plan_streams(list(shape.matrices), needs, shared=not by_gradient)
    total = Work()
    for matrix in shape.matrices:
        side = streams.get(matrix.name) or streams[matrix.source]
        total += solve_work(projection, matrix.d_out, matrix.d_in, side[0])
    for group in siblings(list(shape.blocks)) if joint else []:
        total += solve_work(projection, group.d_out, group.d_in, "input")
    return total


def solve_bytes(projection: str, d_out: int, d_in: int, side: Side) -> float:
    """What one solve holds: the weight and factors, the moment, and squares of the solved side."""
    small, weight = min(d_out, d_in), 4.0 * d_out * d_in
    if projection in ("input_pca", "whitened"):
        small = d_in
    moment = (d_in if side == "input" else d_out) ** 2 * 1.5  # in float32 and in float64
    eigen = 8.0 if projection.startswith("loss_aware") else 5.0
    return FLOAT64 * (weight + moment + eigen * small**2)


def fit_workspace(shape: Shape, projection: str, needs: Needs, by_gradient: bool) -> float:
    """Bytes of the solve that holds most."""
    streams = plan_streams(list(shape.matrices), needs, shared=not by_gradient)
    sides = [(m, streams.get(m.name) or streams[m.source]) for m in shape.matrices]
    return max(solve_bytes(projection, m.d_out, m.d_in, stream[0]) for m, stream in sides)


def refit_work(matrix: Matrix, projection: str, rank: int) -> Work:
    """One matrix solved on what the pruned model reads, and its error before and after."""
    d_out, d_in = matrix.d_out, matrix.d_in
    mix = Work((2 / 3 + 2) * d_in**3 + 2 * d_out * d_in**2)
    error = Work(2 * d_out * d_in * rank + 3 * _conjugated(d_out, d_in))
    if projection.startswith("loss_aware") and gradient_side(matrix)[0] == "input":
        mix += Work(4 * d_in**3)
        error = Work(2 * d_out * d_in * rank + 12 * d_in**3, 2 * QR * d_out * d_in**2)
    return mix + solve_work(projection, d_out, d_in, "input") + error * 2


def refit_workspace(matrix: Matrix, projection: str) -> float:
    """Bytes of sums over pairs of inputs, in float32 and averaged in float64, and of the solve."""
    solve = solve_bytes(projection, matrix.d_out, matrix.d_in, "input")
    return 5 * matrix.d_in**2 * (FLOAT32 + FLOAT64) + solve


def pivot_flops(matrices: tuple[Matrix, ...], sizing: Sizing, level: float) -> float:
    """Pivot rows of all matrices at a level, chosen on the processor: pivoted QR of (r, d_out)."""
    if sizing.storage != "pivoted":
        return 0.0
    total = 0.0
    for m in matrices:
        rank = sizing.rank(m, level) or 0
        total += (QR + 2) * m.d_out * rank**2 + 2.0 * rank**2 * m.d_in
    return total
