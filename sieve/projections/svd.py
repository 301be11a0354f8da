"""`svd`: truncated singular value decomposition of the weights, which ignores the task.

The baseline of LASER (arXiv:2312.13558). The moment gives only the mean output, for rank 0.
"""

import torch
from torch import Tensor

from sieve.projections.factors import Factors
from sieve.projections.moments import Moment


def svd(weight: Tensor, moment: Moment) -> Factors:
    """Factors of W (d_out, d_in) with the least ‖W − U V‖ (Frobenius) at every rank, in float64."""
    u, values, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    return Factors(u, values[:, None] * vt, values**2, moment.output_mean(weight))
