"""Operations and memory of the closed forms, counted by running each on a small matrix.

The time of a closed form grows with the cube of the matrix. So the projection itself solves a
matrix of the same proportions, torch counts its operations, and the counts are scaled up.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sieve.bank.solver import FLOAT64
from sieve.model.matrices import Matrix
from sieve.projections import get_projection
from sieve.projections.moments import Gradient, Moment, Side, gradient_side
from sieve.refit.paired import Paired, held_out_error, solve

SIDE = 48  # the smaller side of the matrix that is solved
EIGH, SVD, QR = 9.0, 20.0, 4.0  # operations as multiples of n³ (symmetric), m n² and m n²
aten, closed = torch.ops.aten, torch.ops.sieve
# Operations that torch does not count, by the shapes of the arguments.
DECOMPOSITIONS: dict[object, Callable[..., float]] = {
    aten._linalg_eigh: lambda a, *_, **__: EIGH * a[0] ** 3,
    aten._linalg_svd: lambda a, *_, **__: SVD * max(a) * min(a) ** 2,
    aten.linalg_qr: lambda a, *_, **__: QR * max(a) * min(a) ** 2,
    closed.eigenvectors: lambda a, *_, **__: EIGH * a[0] ** 3,
}
SOLVES: dict[object, Callable[..., float]] = {
    aten.linalg_cholesky_ex: lambda a, *_, **__: a[0] ** 3 / 3,
    aten.cholesky_solve: lambda b, a, *_, **__: 2 * a[0] ** 2 * b[1],
    aten.linalg_solve_triangular: lambda a, b, *_, **__: a[0] ** 2 * b[1],
    closed.float32_product: lambda a, b, *_, **__: a[0] * a[1] * b[1],  # takes half of the time
}
# Rᵀ A R by torch, and by LAPACK on one thread of a CPU.
BY_TORCH: dict[object, Callable[..., float]] = {
    closed.congruence: lambda a, *_, **__: 4 * a[0] ** 3
}
BY_LAPACK: dict[object, Callable[..., float]] = {closed.congruence: lambda a, *_, **__: a[0] ** 3}
Flops = tuple[float, float]  # in float64: products and solves, and decompositions


@cache
def fit_flops(
    projection: str, d_out: int, d_in: int, side: Side, rank: int, lapack: bool = False
) -> Flops:
    """Operations to solve one matrix up to a rank, from a moment of its inputs or outputs.

    lapack: by LAPACK on one thread of a CPU, see `sieve/projections/linear_algebra.py`.
    """
    weight, moment, scale = _small(d_out, d_in, side)
    project = get_projection(projection)
    return _counted(lambda: project(weight, moment, round(rank / scale)), scale, lapack)


@cache
def refit_flops(projection: str, d_out: int, d_in: int, rank: int, lapack: bool = False) -> Flops:
    """Operations to solve one matrix on paired inputs, and to compare two maps of a rank."""
    project = get_projection(projection)
    weight, moment, scale = _small(d_out, d_in, "input")
    weight, (height, width) = weight.double(), weight.shape
    if not project.needs.gradient:
        moment = replace(moment, gradient=None)
    eye, zeros = torch.eye(width, dtype=torch.double), torch.zeros(width, dtype=torch.double)
    lost, lost_mean = weight.new_zeros(0, width), weight.new_zeros(height)
    pair = Paired(eye, eye, zeros, zeros, lost, lost_mean, mass=1.0)

    def work() -> None:
        fitted = replace(pair)
        factors = solve(weight, moment, fitted, project, projection.endswith("affine"))
        for _ in range(2):
            held_out_error(weight, moment, pair, factors, round(rank / scale))

    return _counted(work, scale, lapack)


def _small(d_out: int, d_in: int, side: Side) -> tuple[Tensor, Moment, float]:
    """A small weight of the same proportions, its moment, and how many times smaller it is."""
    scale = max(1.0, min(d_out, d_in) / SIDE)
    shape = round(d_out / scale), round(d_in / scale)
    gradient_of, n = gradient_side(Matrix("", *shape, "", None, False, ""))
    gradient = Gradient(gradient_of, torch.eye(n), float(n), examples=100)
    width = shape[1] if side == "input" else shape[0]
    mean, magnitude = torch.zeros(width), torch.ones(shape[1])
    moment = Moment(side, torch.eye(width), mean, 100, magnitude, gradient)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)), moment, scale


def _counted(work: Callable[[], object], scale: float, lapack: bool) -> Flops:
    """The operations of some work on a matrix that is so many times larger on either side."""
    counted = DECOMPOSITIONS | SOLVES | (BY_LAPACK if lapack else BY_TORCH)
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        work()
    counts = counter.get_flop_counts()["Global"]
    decompositions = sum(counts.get(operation, 0) for operation in DECOMPOSITIONS)
    return (sum(counts.values()) - decompositions) * scale**3, decompositions * scale**3


def solve_bytes(projection: str, matrix: Matrix, width: int) -> float:
    """Bytes of one solve: weight and factors, the moment of `width`, and eigenvectors."""
    of_inputs = projection in ("input_pca", "whitened")
    side = matrix.d_in if of_inputs else min(matrix.d_out, matrix.d_in)
    return FLOAT64 * (4.0 * matrix.size + 1.5 * width**2 + 6 * side**2)
