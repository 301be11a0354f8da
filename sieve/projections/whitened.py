"""`whitened`: truncation-aware data whitening of SVD-LLM (Sec. 3.1, arXiv:2403.07378).

With C = E[x xᵀ] = S Sᵀ, it truncates the SVD of W S and multiplies by S⁻¹. This minimizes the
objective of `output` and must reach the same error. SVD-LLM uses a Cholesky factor S, calibrates on
generic text and then updates the weights. Here S comes from eigenvectors, which also work where C
lacks full rank, and there is no update.
"""

import torch
from torch import Tensor

from sieve.projections.factors import Factors, eigh
from sieve.projections.moments import Moment

FLOOR = 1e-10  # of the largest eigenvalue of C; smaller ones are rounding errors


def whitened(weight: Tensor, moment: Moment) -> Factors:
    """Factors of W (d_out, d_in) with the least E‖W x − U V x‖², by whitening, in float64."""
    variance, axes = eigh(moment.input_second())
    floor = FLOOR * variance[0].clamp_min(torch.finfo(variance.dtype).tiny / FLOOR)
    spread = variance.clamp_min(floor).sqrt()
    u, values, vt = torch.linalg.svd(weight.double() @ (axes * spread), full_matrices=False)
    v = (values[:, None] * vt / spread) @ axes.T
    return Factors(u, v, values**2, moment.output_mean(weight))
