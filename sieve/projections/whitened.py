"""`whitened`: truncation-aware data whitening, SVD-LLM (arXiv:2403.07378, Sec. 3.1).

With C = E[x xᵀ] = S Sᵀ, the SVD of W S is cut and S taken off again. It minimises the objective of
`output` and must reach the same error. SVD-LLM takes the Cholesky factor for S and calibrates on
generic text; here S comes from eigenvectors, which also stand a C without full rank, and the
update of the parameters that follows there is left out.
"""

import torch
from torch import Tensor

from sieve.projections.factors import Factors, eigh
from sieve.projections.moments import Moment

FLOOR = 1e-10  # of the largest eigenvalue of C: what lies below it is rounding


def whitened(weight: Tensor, moment: Moment) -> Factors:
    """Factors of W (d_out, d_in) with least E‖W x − U V x‖², by whitening, in float64."""
    variance, axes = eigh(moment.input_second())
    floor = FLOOR * variance[0].clamp_min(torch.finfo(variance.dtype).tiny / FLOOR)
    spread = variance.clamp_min(floor).sqrt()
    u, values, vt = torch.linalg.svd(weight.double() @ (axes * spread), full_matrices=False)
    return Factors(
        u, (values[:, None] * vt / spread) @ axes.T, values**2, moment.output_mean(weight)
    )
