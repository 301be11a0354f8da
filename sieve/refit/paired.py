"""Moments of a matrix's dense and pruned inputs, and the best map between its inputs and outputs.

min E‖W x − B x̃‖² over maps B of rank r, where the dense matrix W reads x and the pruned model
offers x̃: B is the projection, at the moment E[x̃ x̃ᵀ], of T = W E[x x̃ᵀ] E[x̃ x̃ᵀ]⁻¹. This is
reduced-rank regression of W x on x̃.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sieve.projections import Factors
from sieve.projections.moments import Moment

DAMPING = 1e-3  # of the mean eigenvalue of E[x̃ x̃ᵀ]; keeps T near W in directions x̃ rarely takes
NOISE = 1e-6  # of the second moment; the rounding error in the covariance of a constant


@dataclass
class Paired:
    """Sums over tokens, or averages, of one matrix's dense input x and pruned input x̃.

    w is the weight of a token, and e (d_out,) the loss of the residual stream, dense minus pruned,
    before the matrix writes to it.
    """

    inner: Tensor  # Σ w x̃ x̃ᵀ (d_in, d_in)
    cross: Tensor  # Σ w x x̃ᵀ (d_in, d_in)
    own: Tensor  # Σ w x xᵀ (d_in, d_in), or without elements: only errors need it
    inner_mean: Tensor  # Σ w x̃ (d_in,)
    own_mean: Tensor  # Σ w x (d_in,)
    lost: Tensor  # Σ w e x̃ᵀ (d_out, d_in), or without elements: e is not restored
    lost_mean: Tensor  # Σ w e (d_out,)
    mass: float = 0.0  # Σ w

    @classmethod
    def zeros(cls, size: int, device: torch.device, own: bool = True, d_out: int = 0) -> "Paired":
        """Empty sums; own: sum x xᵀ; d_out: of the matrix, to sum `lost`, or 0."""
        zeros = partial(torch.zeros, device=device)
        return cls(
            inner=zeros(size, size),
            cross=zeros(size, size),
            own=zeros(size * own, size * own),
            inner_mean=zeros(size),
            own_mean=zeros(size),
            lost=zeros(d_out, size),
            lost_mean=zeros(d_out),
        )

    def add(
        self, x: Tensor, pruned: Tensor, weight: Tensor | None, lost: Tensor | None = None
    ) -> None:
        """Add tokens x and x̃ (N, d_in), their weights w (N,) and losses e (N, d_out)."""
        scaled = pruned if weight is None else pruned * weight[:, None]
        own = x if weight is None else x * weight[:, None]
        self.inner.addmm_(scaled.T, pruned)
        self.cross.addmm_(x.T, scaled)
        if len(self.own):
            self.own.addmm_(own.T, x)
        self.inner_mean += scaled.sum(0)
        self.own_mean += own.sum(0)
        if lost is not None:
            self.lost.addmm_(lost.T, scaled)
            self.lost_mean += (lost if weight is None else lost * weight[:, None]).sum(0)
        self.mass += float(len(x) if weight is None else weight.sum())

    def scaled(self) -> "Paired":
        """Averages from the sums, in float64."""
        mass = max(self.mass, torch.finfo(torch.float32).tiny)
        sums = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        averages: dict[str, Any] = {name: value.double() / mass for name, value in sums.items()}
        return replace(self, **averages)


def solve(
    weight: Tensor,
    moment: Moment,
    pair: Paired,
    project: Callable[[Tensor, Moment], Factors],
    centered: bool = False,
) -> Factors:
    """Nested factors of the best map from x̃ to W x, weighted as the projection weights errors.

    T = W K with K = I + (E[x x̃ᵀ] − E[x̃ x̃ᵀ]) (E[x̃ x̃ᵀ] + ridge · I)⁻¹. To restore the loss e of the
    residual stream, T gains E[e x̃ᵀ] (E[x̃ x̃ᵀ] + ridge · I)⁻¹, except where the gradient is of the
    input side, which cannot express it.

    Args:
        weight: W (d_out, d_in) in float64.
        moment: of the dense model; its gradient is used.
        pair: averages over the batches to fit.
        project: the projection.
        centered: whether the projection fits a bias.
    """
    inner, cross = pair.inner, pair.cross
    if centered:
        inner = inner - torch.outer(pair.inner_mean, pair.inner_mean)
        cross = cross - torch.outer(pair.own_mean, pair.inner_mean)
    eye = torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    size = float(inner.diagonal().mean())
    ridge = max(DAMPING * size, torch.finfo(inner.dtype).tiny ** 0.5)
    if centered:
        ridge = max(ridge, NOISE * float(pair.inner.diagonal().mean()))
    mix = eye + torch.linalg.solve(inner + ridge * eye, (cross - inner).T).T
    gradient, target, mean = moment.gradient, weight @ mix, weight @ pair.own_mean
    if gradient is not None and gradient.side == "input":
        gradient = replace(gradient, second=mix.T @ gradient.second.double() @ mix)
    elif len(pair.lost):
        lost = pair.lost
        if centered:
            lost = lost - torch.outer(pair.lost_mean, pair.inner_mean)
        target = target + torch.linalg.solve(inner + ridge * eye, lost.T).T
        mean = mean + pair.lost_mean
    pruned = replace(
        moment, side="input", second=pair.inner, mean=pair.inner_mean, gradient=gradient
    )
    return replace(project(target, pruned), mean=mean)


def held_out_error(
    weight: Tensor, moment: Moment, pair: Paired, factors: Factors, rank: int
) -> float:
    """E‖W x + e − B x̃ − b‖² from averages, up to a constant where the stream's loss e counts.

    The norm is weighted by the second moment H of the moment's gradient, if there is one. A
    gradient of the input side gives WᵀHW: errors are then written as W s, and s is weighted by it.

    Args:
        weight: W (d_out, d_in) in float64.
        moment: of the dense model.
        pair: averages over the held-out batches, with `own`, on the device of `weight`.
        factors: on any device.
        rank: of the map B.
    """
    b = factors.u[:, :rank].to(weight) @ factors.v[:rank].to(weight)
    bias = factors.bias(rank)
    offset = weight.new_zeros(len(weight)) if bias is None else bias.to(weight)
    target, metric = weight, None
    if moment.gradient is not None:
        metric = moment.gradient.second.double()
        if moment.gradient.side == "input":
            solved = torch.linalg.lstsq(weight, torch.cat([b, offset[:, None]], 1)).solution
            b, offset = solved[:, :-1], solved[:, -1]
            target = torch.eye(weight.shape[1], dtype=b.dtype, device=b.device)
    error = target @ pair.own @ target.T + b @ pair.inner @ b.T
    across = target @ pair.cross @ b.T
    mean = target @ pair.own_mean - b @ pair.inner_mean
    error = error - across - across.T + torch.outer(offset, offset)
    error = error - torch.outer(offset, mean) - torch.outer(mean, offset)
    if len(target) == len(pair.lost):
        lost = pair.lost @ b.T + torch.outer(pair.lost_mean, offset)
        error = error - lost - lost.T
    return float(error.trace() if metric is None else (error * metric).sum())
