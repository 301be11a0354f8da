"""`whitened`: truncation-aware data whitening, SVD-LLM (arXiv:2403.07378, Sec. 3.1).

With C = E[x xᵀ] = S Sᵀ (Cholesky), the SVD of W S is cut and S taken off again. It minimises the
objective of `output` and must reach the same error; SVD-LLM calibrates on generic text, and the
update of the parameters that follows it there is left out.
"""

import torch
from torch import Tensor

from sieve.moments import Moment
from sieve.projections.factors import Factors

RIDGE = 1e-8  # of the mean eigenvalue, where C has no Cholesky factor of its own


def whitened(weight: Tensor, moment: Moment) -> Factors:
    """Factors of W (d_out, d_in) with least E‖W x − U V x‖², by whitening, in float64."""
    second = moment.input_second()
    scale = second.diagonal().mean().clamp_min(torch.finfo(second.dtype).tiny)
    eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
    root = torch.linalg.cholesky(second + RIDGE * scale * eye)
    u, values, vt = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    v = torch.linalg.solve_triangular(root, values[:, None] * vt, upper=False, left=False)
    return Factors(u, v, values**2, moment.output_mean(weight))
