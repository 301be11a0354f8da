"""`asvd`: activation-aware SVD (Sec. 3.2, arXiv:2312.05821).

Truncates the SVD of W S and divides by S again, where S = diag(E|x|)^½ scales each input; ½ is the
paper's default exponent. The paper's search for a rank per layer is not part of this file.
"""

import torch
from torch import Tensor

from sieve.projections.factors import Factors
from sieve.projections.moments import Moment

ALPHA = 0.5


def asvd(weight: Tensor, moment: Moment) -> Factors:
    """Factors of W (d_out, d_in) with the least ‖(W − U V) S‖ (Frobenius), in float64."""
    if moment.magnitude is None:
        raise ValueError("asvd needs the magnitudes of the inputs; calibrate for it again.")
    magnitude = moment.magnitude.double()
    floor = magnitude.max().clamp_min(torch.finfo(magnitude.dtype).tiny) * 1e-6
    scale = magnitude.clamp_min(floor) ** ALPHA
    u, values, vt = torch.linalg.svd(weight.double() * scale, full_matrices=False)
    return Factors(u, values[:, None] * vt / scale, values**2, moment.output_mean(weight))
