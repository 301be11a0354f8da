"""`output`: the best map of rank r on the task's activations, by reduced-rank regression.

min E‖W x − B x‖² over maps B of rank r is reached by B = U_r U_rᵀ W, where the columns of U_r are
the leading eigenvectors of W C Wᵀ and C = E[x xᵀ]. Sec. 3 of arXiv:2505.18350 searches for this
optimum by gradient, within a tied family; SVD-LLM (arXiv:2403.07378) reaches it by whitening.
"""

from torch import Tensor

from sieve.projections.factors import Factors, principal_outputs
from sieve.projections.moments import Moment


def output(weight: Tensor, moment: Moment) -> Factors:
    """Factors of W (d_out, d_in) with the least E‖W x − U V x‖² at every rank, in float64."""
    u, energy = principal_outputs(weight, moment.second, moment.side)
    return Factors(u, u.T @ weight.double(), energy, moment.output_mean(weight))
