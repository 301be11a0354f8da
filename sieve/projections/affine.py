"""`affine`: the `output` projection with a bias fitted beside the factors.

min E‖W x − B x − b‖² over maps B of rank r and biases b: B is solved with the covariance
C − μ μᵀ in place of C = E[x xᵀ], where μ = E[x], and b = (W − B) μ. The error is never above that
of `output` at the same rank. The bias costs d_out numbers.
"""

from torch import Tensor

from sieve.projections.factors import Factors, principal_outputs
from sieve.projections.moments import Moment


def affine(weight: Tensor, moment: Moment) -> Factors:
    """Factors and a bias of W (d_out, d_in) with the least E‖W x − U V x − b‖², in float64."""
    u, energy = principal_outputs(weight, moment.covariance, moment.side)
    mean = moment.output_mean(weight)
    return Factors(u, u.T @ weight.double(), energy, mean, offset=u.T @ mean)
