"""Neurons of an MLP in the order in which they are worth keeping, in closed form.

The number h_i that neuron i passes to the writer W (d_out, d_ff) is lost with it. The rest of the
neurons makes up for it as well as a linear map can: W h is replaced by the least squares estimate
from the kept h. Neurons are removed from the back, always the ones whose loss costs least (Optimal
Brain Surgeon, Hassibi et al. 1993; in rows and columns ZipLM, arXiv:2302.04089). With the order and
C = E[h hᵀ] = L Lᵀ the estimate from the first w neurons is U_w V_w for U = W L and V = L⁻¹: nested
factors like all others, where V_w reads w neurons only.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from sieve.projections.damping import shrinkage
from sieve.projections.factors import Factors, ridge_of, square_root
from sieve.projections.moments import Moment

RIDGE = 1e-5  # of the mean eigenvalue of C
SHARE = 0.02  # of the neurons left whose costs are computed anew together


@torch.no_grad()
def neurons(
    incoming: Tensor,
    weight: Tensor,
    moment: Moment,
    damping: float | None = None,
    centered: bool = False,
) -> Factors:
    """Factors whose first w directions are the w neurons to keep, in float64.

    Args:
        incoming: what each neuron reads with, (n, d_ff): the rows of all feeders, as columns.
        weight: W of the writer.
        moment: of the writer's inputs. Its gradient puts energies in the unit of the loss-aware
            projections; without it they are squared errors of the outputs.
        damping: of the gradient's moment, as in `loss_aware`.
        centered: fit a bias beside the factors.

    Returns:
        u (n + d_out, d_ff): the incoming weights above U. v (d_ff, d_ff): V. mean (d_out,), and
        offset (d_ff,) for U alone. Energies need not fall, but their sums from w on are what
        keeping w neurons costs.
    """
    weight = weight.double()
    second = moment.covariance if centered else moment.input_second()
    eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
    second = second + ridge_of(second, RIDGE) * eye
    scale, half = _sensitivity(weight, moment, damping)
    order = _order(scale, second)
    root = torch.linalg.cholesky(second[order][:, order])
    v = torch.zeros_like(eye)
    v[:, order] = torch.linalg.solve_triangular(root, eye, upper=False)
    energy = (scale[:, order] @ root).square().sum(0) * half
    u = torch.cat([incoming.double()[:, order], weight[:, order] @ root])
    mean = moment.output_mean(weight)
    return Factors(u, v, energy, mean, v @ moment.mean.double() if centered else None)


def kept_neurons(v: Tensor) -> Tensor:
    """The neurons (w,) that w directions V (w, d_ff) of `neurons` read, in order."""
    read = v != 0
    first = torch.where(read.any(0), read.int().argmax(0), len(v))
    return first.argsort(stable=True)[: len(v)]


def by_neuron(weight: Tensor, count: int) -> Tensor:
    """What `count` neurons read with, (parts · d_in, count), from a feeder (parts · count, d_in).

    The rows i, i + count, … of a fused feeder belong to neuron i.
    """
    parts = weight.view(-1, count, weight.shape[1])
    return parts.transpose(1, 2).reshape(-1, count)


def unfolded(factors: Factors, order: Tensor, d_ff: int) -> Factors:
    """Factors that were solved for the neurons `order` (w,) alone, reading all d_ff of them."""
    v = factors.v.new_zeros(len(factors.v), d_ff)
    v[:, order] = factors.v
    return replace(factors, v=v)


def _sensitivity(weight: Tensor, moment: Moment, damping: float | None) -> tuple[Tensor, float]:
    """S (m, d_ff), where ‖S e‖² times the second number is what an error e of h costs."""
    gradient = moment.gradient
    if gradient is None:
        return weight, 1.0
    if gradient.power <= 0:
        return weight, 0.5
    if damping is None:
        damping = shrinkage(gradient.second, gradient.examples)
    ridge = damping * gradient.power / len(weight)
    second = gradient.second.double()
    if gradient.side == "output":
        return square_root(second, ridge).full().T @ weight, 0.5
    inner = second + ridge * (weight.T @ weight)
    return square_root(inner, ridge_of(inner, 1e-12)).full().T, 0.5


def _order(scale: Tensor, second: Tensor) -> Tensor:
    """The neurons (d_ff,), the last removed first.

    Args:
        scale: S of `_sensitivity`.
        second: E[h hᵀ] (d_ff, d_ff), positive definite.
    """
    left = torch.arange(len(second), device=second.device)
    inverse, effect = torch.linalg.inv(second), scale
    removed = []
    while len(left):
        cost = _costs(effect, inverse)
        ranked = cost.argsort(stable=True)
        count = max(1, int(SHARE * len(left)))
        limit = float(cost[ranked[count]]) if count < len(left) else math.inf
        gone = ranked[
            _cheapest(effect[:, ranked[:count]], inverse[ranked[:count]][:, ranked[:count]], limit)
        ]
        stay = torch.ones(len(left), dtype=torch.bool, device=left.device)
        stay[gone] = False
        removed.append(left[gone])
        spread = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, stay])
        effect = effect[:, stay] - effect[:, gone] @ spread
        inverse = inverse[stay][:, stay] - inverse[stay][:, gone] @ spread
        left = left[stay]
    return torch.cat(removed).flip(0)


def _costs(effect: Tensor, inverse: Tensor) -> Tensor:
    """What it costs to remove each neuron, if the rest makes up for it."""
    return effect.square().sum(0) / inverse.diagonal().clamp_min(1e-300)


def _cheapest(effect: Tensor, inverse: Tensor, limit: float) -> Tensor:
    """The positions of neurons to remove one after another, until all cost more than `limit`.

    A neuron costs more once another one that could make up for it is gone. The first always goes.
    """
    effect, inverse, gone = effect.clone(), inverse.clone(), list[int]()
    for _ in range(len(inverse)):
        cost = _costs(effect, inverse)
        cost[gone] = math.inf
        best = int(cost.argmin())
        if gone and cost[best] > limit:
            break
        gone.append(best)
        spread = inverse[best] / inverse[best, best]
        effect -= torch.outer(effect[:, best], spread)
        inverse -= torch.outer(inverse[:, best], spread)
    return torch.tensor(gone, device=effect.device)
