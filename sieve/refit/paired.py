"""Moments of a matrix's dense and pruned inputs, and the best map between its inputs and outputs.

min E‖W x − B x̃‖² over maps B of rank r, where the dense matrix W reads x and the pruned model
offers x̃: B is the projection, at the moment E[x̃ x̃ᵀ], of T = W E[x x̃ᵀ] E[x̃ x̃ᵀ]⁻¹. This is
reduced-rank regression of W x on x̃.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sieve.calibration.sums import add_upper, fill_lower, products
from sieve.projections import Factors
from sieve.projections.factors import finite
from sieve.projections.moments import Moment

DAMPING = 1e-3  # of the mean eigenvalue of E[x̃ x̃ᵀ]; keeps T near W in directions x̃ rarely takes
NOISE = 1e-6  # of the second moment; the rounding error in the covariance of a constant
ROUNDING = 1e-12  # of the mean squared singular value of W
TINY = torch.finfo(torch.float64).tiny ** 0.5  # the ridge of a moment that is zero


@dataclass
class Paired:
    """Sums over tokens, or averages, of one matrix's dense input x and pruned input x̃.

    w is the weight of a token, and e (d_out,) the loss of the residual stream, dense minus pruned,
    before the matrix writes to it.
    """

    inner: Tensor  # Σ w x̃ x̃ᵀ (d_in, d_in); until `scaled`, only its upper part
    change: Tensor  # Σ w (x − x̃) x̃ᵀ (d_in, d_in)
    inner_mean: Tensor  # Σ w x̃ (d_in,)
    change_mean: Tensor  # Σ w (x − x̃) (d_in,)
    lost: Tensor  # Σ w e x̃ᵀ (d_out, d_in); empty if e is not restored
    lost_mean: Tensor  # Σ w e (d_out,)
    mass: float = 0.0  # Σ w

    @classmethod
    def zeros(cls, size: int, device: torch.device, d_out: int = 0) -> "Paired":
        """Sums of zero; d_out: the matrix's, if `lost` is summed, or 0."""
        zeros = partial(torch.zeros, device=device)
        return cls(
            inner=zeros(size, size),
            change=zeros(size, size),
            inner_mean=zeros(size),
            change_mean=zeros(size),
            lost=zeros(d_out, size),
            lost_mean=zeros(d_out),
        )

    def add(
        self, x: Tensor, pruned: Tensor, weight: Tensor | None, lost: Tensor | None = None
    ) -> None:
        """Add tokens x and x̃ (N, d_in), their weights w (N,) and losses e (N, d_out)."""
        exact, dtype = x.dtype != torch.bfloat16, self.inner.dtype
        weights = torch.ones(len(x), dtype=dtype, device=x.device) if weight is None else weight
        root = weights.to(dtype).sqrt()[:, None]
        pruned = pruned.to(dtype) * root
        change = x.to(dtype) * root - pruned
        with products(exact):
            add_upper(self.inner, pruned)
            self.change.addmm_(change.T, pruned)
            if lost is not None:
                self.lost.addmm_((lost * root).T, pruned)
        self.inner_mean += root[:, 0] @ pruned
        self.change_mean += root[:, 0] @ change
        if lost is not None:
            self.lost_mean += weights.to(dtype) @ lost
        self.mass += float(weights.sum())

    @property
    def own_mean(self) -> Tensor:
        """Σ w x (d_in,)."""
        return self.inner_mean + self.change_mean

    def scaled(self) -> "Paired":
        """Turn the sums into averages in float64, one tensor at a time to save memory.

        Of the tensors that held the sums only the lower part of `inner` changes.
        """
        fill_lower(self.inner)
        mass, self.mass = max(self.mass, torch.finfo(torch.float32).tiny), 1.0
        return self._each(lambda sums: sums.to(torch.float64, copy=True).div_(mass))

    def to(self, device: torch.device) -> "Paired":
        """Move the sums to a device."""
        return self._each(lambda sums: sums.to(device))

    def _each(self, convert: Callable[[Tensor], Tensor]) -> "Paired":
        # A list of the tensors would keep each of them in memory.
        for name in [name for name, value in vars(self).items() if isinstance(value, Tensor)]:
            setattr(self, name, convert(getattr(self, name)))
        return self


def solve(
    weight: Tensor,
    moment: Moment,
    pair: Paired,
    project: Callable[[Tensor, Moment], Factors],
    centered: bool = False,
) -> Factors:
    """Nested factors of the best map from x̃ to W x, weighted as the projection weights errors.

    T = W K with K = I + E[(x − x̃) x̃ᵀ] (E[x̃ x̃ᵀ] + ridge · I)⁻¹. To restore the loss e of the
    residual stream, T gains E[e x̃ᵀ] (E[x̃ x̃ᵀ] + ridge · I)⁻¹, except where the gradient is of the
    input side, which cannot express it.

    Args:
        weight: W (d_out, d_in) in float64.
        moment: of the dense model; its gradient is used.
        pair: averages over the batches to fit; `change` is empty afterwards, to save memory.
        project: the projection.
        centered: whether the projection fits a bias.
    """
    inner, change, lost = pair.inner, pair.change, pair.lost
    pair.change = change.new_empty(0)
    if centered:
        change = torch.addr(change, pair.change_mean, pair.inner_mean, alpha=-1)
        lost = torch.addr(lost, pair.lost_mean, pair.inner_mean, alpha=-1) if len(lost) else lost
    gradient, target, mean = moment.gradient, weight @ change, weight @ pair.own_mean
    by_input = gradient is not None and gradient.side == "input"
    change = change if by_input else change.new_empty(0)  # Large and no longer needed.
    if centered:
        inner = torch.addr(inner, pair.inner_mean, pair.inner_mean, alpha=-1)
    root = _cholesky(inner, float(pair.inner.diagonal().mean()) if centered else 0.0)
    if gradient is not None and by_input:
        mix = _solved(root, change.T).T
        mix.diagonal().add_(1.0)
        gradient = replace(gradient, second=mix.T @ gradient.second.double() @ mix)
    elif len(lost):
        target, mean = target + lost, mean + pair.lost_mean
    target = weight + _solved(root, target.T).T
    del root  # as large as the moment
    pruned = replace(
        moment, side="input", second=pair.inner, mean=pair.inner_mean, gradient=gradient
    )
    return replace(project(target, pruned), mean=mean)


def _cholesky(inner: Tensor, scale: float) -> Tensor:
    """The Cholesky factor of E[x̃ x̃ᵀ] + ridge · I; scale: of the moment before centering."""
    ridge = DAMPING * float(inner.diagonal().mean())
    return _root(inner, max(ridge, NOISE * scale, TINY))


def _root(matrix: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of a matrix (n, n) + ridge · I; the ridge grows until it exists.

    Rounding may leave a moment of few tokens a negative eigenvalue. The matrix itself is shifted
    and restored, since a copy may take gigabytes. Raises ValueError if a number is not finite.
    """
    if not finite(matrix):
        raise ValueError(
            "the activations of the pruned model are not finite (NaN or infinity) in the refit; "
            "set model.dtype=float32 or bfloat16, or projection.refit=false."
        )
    diagonal = matrix.diagonal().clone()
    matrix.diagonal().add_(ridge)
    root, failed = torch.linalg.cholesky_ex(matrix)
    matrix.diagonal().copy_(diagonal)
    if not failed:
        return root
    del root  # as large as the matrix
    return _root(matrix, 10 * ridge)


def _solved(root: Tensor, right: Tensor) -> Tensor:
    """(R Rᵀ)⁻¹ B (n, m) for a lower triangle R, without the copy of R that cholesky_solve takes."""
    half = torch.linalg.solve_triangular(root, right, upper=False)
    return torch.linalg.solve_triangular(root.T, half, upper=True)


def held_out_error(
    weight: Tensor, moment: Moment, pair: Paired, factors: Factors, rank: int
) -> float:
    """E‖W x + e − B x̃ − b‖² − E‖W x + e‖² from averages: lower is better, 0 is as bad as B = 0.

    The norm is weighted by the second moment H of the moment's gradient, if there is one. A
    gradient of the input side gives WᵀHW instead. The columns u of B = u v, and b, are then written
    as W s, and WᵀHW weights s.

    Args:
        weight: W (d_out, d_in) in float64.
        moment: of the dense model.
        pair: averages over the held-out batches, on the device of `weight`.
        factors: on any device.
        rank: of the map B.
    """
    u, v, bias = factors.u[:, :rank].to(weight), factors.v[:rank].to(weight), factors.bias(rank)
    offset = weight.new_zeros(len(weight)) if bias is None else bias.to(weight)
    read = pair.inner @ v.T
    across, mean = read + pair.change @ v.T, pair.own_mean
    gradient = moment.gradient
    if gradient is not None and gradient.side == "input":
        solved = _least_squares(weight, torch.cat([u, offset[:, None]], 1))
        u, offset = solved[:, :-1], solved[:, -1]
    else:
        across, mean = weight @ across, weight @ mean
        if len(pair.lost):
            across, mean = across + pair.lost @ v.T, mean + pair.lost_mean
    metric = None if gradient is None else gradient.second.double()
    up, weighted = (u, offset) if metric is None else (metric @ u, metric @ offset)
    error = ((u.T @ up) * (v @ read)).sum() - 2 * (up * across).sum()
    rest = offset - 2 * (mean - u @ (v @ pair.inner_mean))
    return float(error + weighted @ rest)


def _least_squares(weight: Tensor, right: Tensor) -> Tensor:
    """s (d_in, n) with the least ‖W s − right‖², by normal equations in float64."""
    gram = weight.T @ weight
    root = _root(gram, max(ROUNDING * float(gram.diagonal().mean()), TINY))
    return _solved(root, weight.T @ right)
