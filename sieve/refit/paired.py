"""What a refit knows of a matrix: moments of dense and pruned inputs, and the best map between.

min E‖W x − B x̃‖² over rank r (weighted as the projection weights it) is the projection of
T = W E[x x̃ᵀ] E[x̃ x̃ᵀ]⁻¹ at the moment E[x̃ x̃ᵀ]: reduced-rank regression with errors in the inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sieve.projections import Factors
from sieve.projections.moments import Moment

DAMPING = 1e-3  # of the mean eigenvalue of E[x̃ x̃ᵀ]: T stays at W where x̃ says little
NOISE = 1e-6  # of the second moment: what rounding leaves of the covariance of a constant


@dataclass
class Paired:
    """Sums over tokens of one matrix's dense input x and pruned input x̃, weighted by w.

    inner: Σ w x̃ x̃ᵀ; cross: Σ w x x̃ᵀ; own: Σ w x xᵀ, (d_in, d_in) each; means likewise. Only an
    error asks for `own`: without it, it has no elements. lost: Σ w e x̃ᵀ (d_out, d_in) of what the
    residual stream has lost before the matrix writes to it, e (d_out,); None where it is left out.
    """

    inner: Tensor
    cross: Tensor
    own: Tensor
    inner_mean: Tensor
    own_mean: Tensor
    mass: float = 0.0
    lost: Tensor | None = None
    lost_mean: Tensor | None = None

    @classmethod
    def zeros(cls, size: int, device: torch.device, own: bool = True, d_out: int = 0) -> "Paired":
        """Nothing summed yet; d_out: of the matrix, where `lost` is to be summed."""
        shapes = ((size, size), (size, size), (size * own, size * own), (size,), (size,))
        a, b, c, d, e = (torch.zeros(shape, device=device) for shape in shapes)
        if not d_out:
            return cls(a, b, c, d, e)
        lost, lost_mean = torch.zeros(d_out, size, device=device), torch.zeros(d_out, device=device)
        return cls(a, b, c, d, e, 0.0, lost, lost_mean)

    def add(
        self, x: Tensor, pruned: Tensor, weight: Tensor | None, lost: Tensor | None = None
    ) -> None:
        """Add tokens x and x̃ (N, d_in), weights (N,) and what the stream lost (N, d_out)."""
        scaled = pruned if weight is None else pruned * weight[:, None]
        own = x if weight is None else x * weight[:, None]
        self.inner.addmm_(scaled.T, pruned)
        self.cross.addmm_(x.T, scaled)
        if len(self.own):
            self.own.addmm_(own.T, x)
        self.inner_mean += scaled.sum(0)
        self.own_mean += own.sum(0)
        if self.lost is not None and self.lost_mean is not None and lost is not None:
            self.lost.addmm_(lost.T, scaled)
            self.lost_mean += (lost if weight is None else lost * weight[:, None]).sum(0)
        self.mass += float(len(x) if weight is None else weight.sum())

    def scaled(self) -> "Paired":
        """Averages in place of sums, in float64."""
        mass = max(self.mass, torch.finfo(torch.float32).tiny)
        parts = (self.inner, self.cross, self.own, self.inner_mean, self.own_mean)
        a, b, c, d, e = (part.double() / mass for part in parts)
        lost, mean = (
            None if part is None else part.double() / mass for part in (self.lost, self.lost_mean)
        )
        return Paired(a, b, c, d, e, self.mass, lost, mean)


def solve(
    weight: Tensor,
    moment: Moment,
    pair: Paired,
    project: Callable[[Tensor, Moment], Factors],
    centered: bool = False,
) -> Factors:
    """Factors, nested, of the best map from x̃ to W x under a projection's own weighting.

    weight: W (d_out, d_in) in float64; moment: of the dense model, for its gradient; pair: averages
    over the tokens to fit; centered: whether the projection fits a bias.
    T = W K with K = I + (E[x x̃ᵀ] − E[x̃ x̃ᵀ]) E[x̃ x̃ᵀ]⁻¹, damped; with e lost by the residual stream
    T + E[e x̃ᵀ] E[x̃ x̃ᵀ]⁻¹, but for matrices whose gradients are of the input side.
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
    elif pair.lost is not None and pair.lost_mean is not None:
        lost = pair.lost
        if centered:
            lost = lost - torch.outer(pair.lost_mean, pair.inner_mean)
        target = target + torch.linalg.solve(inner + ridge * eye, lost.T).T
        mean = mean + pair.lost_mean
    seen = replace(moment, side="input", second=pair.inner, mean=pair.inner_mean, gradient=gradient)
    return replace(project(target, seen), mean=mean)


def held_error(weight: Tensor, moment: Moment, pair: Paired, factors: Factors, rank: int) -> float:
    """E‖W x − B x̃ − b‖² in the metric of the moment's gradient, if it has one.

    factors: on any device; all else on one. From averages alone. With gradients of the input side,
    WᵀHW, errors are W s and s is taken; else what the residual stream has lost is a part of the
    target, up to a constant of the error.
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
    if pair.lost is not None and pair.lost_mean is not None and len(target) == len(pair.lost):
        lost = pair.lost @ b.T + torch.outer(pair.lost_mean, offset)
        error = error - lost - lost.T
    return float(error.trace() if metric is None else (error * metric).sum())
