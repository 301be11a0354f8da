"""The weight and the moment of sibling matrices that share one V.

q, k, v (and gate, up) read the same input x, so they are rows of one taller matrix
W = [W₁; W₂; …]. A map of rank r for it has one V (r, d_in) for all siblings. Stored pivoted it
takes r(d_in + Σ d_out − r) numbers.

Two approximations: H of the stack, the second moment of the loss's gradients, is block-diagonal,
so on the input side it is Σ WᵢᵀHᵢWᵢ; and C = E[x xᵀ] is the mean of the siblings' Cᵢ weighted by
the power of their gradients, since each weights the tokens in its own way.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sieve.projections.moments import Gradient, Moment


def stacked(weights: Sequence[Tensor], moments: Sequence[Moment]) -> tuple[Tensor, Moment]:
    """W (Σ d_out, d_in) and its moment, from the weights and moments of siblings.

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
        pairs = [(w.double(), g) for w, g in zip(weights, gradients, strict=True)]
        inner = [  # WᵀHW (d_in, d_in)
            w.T @ g.second.double() @ w if g.side == "output" else g.second.double()
            for w, g in pairs
        ]
        gradient = Gradient("input", torch.stack(inner).sum(0), total, gradients[0].examples)
    moment = replace(moments[0], second=second, mean=torch.stack(means).sum(0), gradient=gradient)
    return torch.cat([weight.double() for weight in weights]), moment
