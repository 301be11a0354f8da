"""`asvd`: activation-aware SVD (arXiv:2312.05821, Sec. 3.2).

The SVD of W S is cut and S taken off again, with S = diag(E|x|)^½, the paper's default exponent.
Its search of a rank per layer is left to `sieve/search/lines.py`.
"""

import torch
from torch import Tensor

from sieve.projections.factors import Factors
from sieve.projections.moments import Moment

ALPHA = 0.5


def asvd(weight: Tensor, moment: Moment) -> Factors:
    """Factors of W (d_out, d_in) with least ‖(W − U V) S‖ (Frobenius), in float64."""
    if moment.magnitude is None:
        raise ValueError("asvd needs the magnitudes of the inputs; calibrate for it again.")
    magnitude = moment.magnitude.double()
    floor = magnitude.max().clamp_min(torch.finfo(magnitude.dtype).tiny) * 1e-6
    scale = magnitude.clamp_min(floor) ** ALPHA
    u, values, vt = torch.linalg.svd(weight.double() * scale, full_matrices=False)
    return Factors(u, values[:, None] * vt / scale, values**2, moment.output_mean(weight))
