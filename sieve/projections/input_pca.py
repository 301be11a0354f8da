"""`input_pca`: keep the principal directions of the input, whatever the matrix does with them.

SliceGPT (arXiv:2401.15024) rotates whole residual streams by this statistic. Here each matrix is
projected by itself: B = W P_r P_rᵀ, where the columns of P are the eigenvectors of E[x xᵀ].
"""

from torch import Tensor

from sieve.projections.factors import Factors, eigh
from sieve.projections.moments import Moment


def input_pca(weight: Tensor, moment: Moment) -> Factors:
    """Factors of W (d_out, d_in) with the least input error E‖x − P Pᵀ x‖², in float64."""
    energy, axes = eigh(moment.input_second())
    k = min(weight.shape)
    u = weight.double() @ axes[:, :k]
    return Factors(u, axes[:, :k].T, energy, moment.output_mean(weight))
