"""`affine`: as `output`, with a bias fitted beside the factors.

min over rank-r B and b of E‖W x − B x − b‖² takes the covariance C − μμᵀ in place of C and
b = (W − B) μ. Its error is never above that of `output` at equal rank; it costs d_out numbers.
"""

from torch import Tensor

from sieve.projections.factors import Factors, principal_outputs
from sieve.projections.moments import Moment


def affine(weight: Tensor, moment: Moment) -> Factors:
    """Factors and bias of W (d_out, d_in) with least E‖W x − U V x − b‖², in float64."""
    u, energy = principal_outputs(weight, moment.covariance, moment.side)
    mean = moment.output_mean(weight)
    return Factors(u, u.T @ weight.double(), energy, mean, offset=u.T @ mean)
