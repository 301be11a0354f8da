"""Matrices that read one input, stacked into one: the statistics of a shared V.

q, k, v (and gate, up) are rows of one taller matrix W = [W₁; W₂; …]. A rank-r map of it has one V
(r, d_in) for all, r(d_in + Σ d_out − r) numbers pivoted in place of each matrix's own. H of the
stack is taken block by block, so that its input side is the sum Σ WᵢᵀHᵢWᵢ; where each weights the
tokens its own way, C is their mean weighted by what the loss cares for each.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sieve.projections.moments import Gradient, Moment


def stacked(weights: Sequence[Tensor], moments: Sequence[Moment]) -> tuple[Tensor, Moment]:
    """W (Σ d_out, d_in) and the moment that serves it, from those of its parts.

    Raises ValueError where a moment is of the outputs: a shared V needs E[x xᵀ].
    """
    seconds = [moment.input_second() for moment in moments]
    gradients = [moment.gradient for moment in moments if moment.gradient is not None]
    powers = [gradient.power for gradient in gradients] or [1.0] * len(moments)
    total = sum(powers)
    shares = [power / total if total > 0 else 1 / len(powers) for power in powers]
    second = sum((s * share for s, share in zip(seconds, shares, strict=True)), torch.zeros(()))
    means = [moment.mean.double() * share for moment, share in zip(moments, shares, strict=True)]
    gradient = None
    if gradients:
        inner = [_inner(w.double(), g) for w, g in zip(weights, gradients, strict=True)]
        gradient = Gradient("input", torch.stack(inner).sum(0), total, gradients[0].examples)
    moment = replace(moments[0], second=second, mean=torch.stack(means).sum(0), gradient=gradient)
    return torch.cat([weight.double() for weight in weights]), moment


def _inner(weight: Tensor, gradient: Gradient) -> Tensor:
    """WᵀHW (d_in, d_in)."""
    second = gradient.second.double()
    return weight.T @ second @ weight if gradient.side == "output" else second
