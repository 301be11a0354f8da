"""`output`: the best rank-r map on the task's activations, by reduced-rank regression.

min over rank-r B of E‖W x − B x‖² is B = U_r U_rᵀ W with U_r the leading eigenvectors of W C Wᵀ,
C = E[x xᵀ]. This is the optimum of the objective of Sec. 3, arXiv:2505.18350, which searches it by
gradient in a tied family; SVD-LLM (arXiv:2403.07378) solves the same problem by whitening.
"""

from torch import Tensor

from sieve.projections.factors import Factors, principal_outputs
from sieve.projections.moments import Moment


def output(weight: Tensor, moment: Moment) -> Factors:
    """Factors of W (d_out, d_in) that keep E‖W x − U V x‖² least at every rank, in float64."""
    u, energy = principal_outputs(weight, moment.second, moment.side)
    return Factors(u, u.T @ weight.double(), energy, moment.output_mean(weight))
