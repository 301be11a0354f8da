"""`loss_aware`: output errors weighted by their effect on the task's loss, in closed form.

min tr((W − B) C (W − B)ᵀ H) over maps B of rank r, where C = E[x xᵀ], H = Σ E[g gᵀ], and g is the
gradient of the task's loss at y = W x. To second order this is the rise of the loss,
Kronecker-factored as in K-FAC (arXiv:1503.05671). FWSVD (arXiv:2207.00112) uses a diagonal H of the
weights' gradients and GFWSVD (arXiv:2505.17974) Kronecker factors of them; here the gradients come
from the loss of the task's answers. Energies are in nats per example, one unit for all matrices.
"""

import torch
from torch import Tensor

from sieve.projections.damping import shrinkage
from sieve.projections.factors import Factors, eigh, ridge_of, square_root
from sieve.projections.linear_algebra import product
from sieve.projections.moments import Gradient, Moment

RIDGE = 1e-8  # of the mean eigenvalue of C; orders the directions that never occurred, last


def loss_aware(
    weight: Tensor,
    moment: Moment,
    damping: float | None = None,
    rank: int | None = None,
    centered: bool = False,
) -> Factors:
    """Factors of W (d_out, d_in) with the least estimated rise of the loss, solved in float64.

    If W is not float64, a CPU computes products with it in float32, as exactly as it would round U
    and V.

    Args:
        weight: W.
        moment: with `gradient`; ValueError without it.
        damping: H + damping · tr(H)/d_out · I replaces H. None derives it from the number of
            examples (`projections/damping.py`).
        rank: compute only so many directions. None computes all.
        centered: fit a bias beside the factors (`loss_aware_affine`): the covariance replaces C.
    """
    gradient = moment.gradient
    if gradient is None:
        raise ValueError("loss_aware needs moments of the gradients; calibrate for it again.")
    ridge = _ridge(gradient, len(weight), damping)
    solve = _from_outputs if gradient.side == "output" else _from_inputs
    u, v, energy, offset = solve(weight, moment, gradient.second.double(), ridge, rank, centered)
    norm = torch.linalg.vector_norm(u, dim=0).clamp_min(torch.finfo(u.dtype).tiny)
    u /= norm  # In place: each of the two is as large as the matrix in float64.
    v *= norm[:, None]
    mean = moment.output_mean(weight)
    return Factors(u, v, energy / 2, mean, offset * norm if centered else None)


def _ridge(gradient: Gradient, d_out: int, damping: float | None) -> float:
    """The number to add to the diagonal of H; 1 where no gradient ever occurred."""
    if gradient.power <= 0:
        return 1.0
    if damping is None:
        damping = shrinkage(gradient.second, gradient.examples)
    return damping * gradient.power / d_out


def _from_outputs(
    weight: Tensor, moment: Moment, second: Tensor, ridge: float, rank: int | None, centered: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U, V, energies and offsets from H (d_out, d_out) = `second`.

    With H = L Lᵀ and the eigenvectors Q of Lᵀ W C Wᵀ L: U = L⁻ᵀ Q, V = Qᵀ Lᵀ W.
    """
    root = square_root(second, ridge)
    outputs = moment.covariance if centered else moment.second.double()
    if moment.side == "input":
        weight = weight.double()
        outputs = weight @ outputs @ weight.T
    energy, q = eigh(root.around(outputs))
    q = q[:, :rank]
    down = root.times(q).T
    return root.solve(q), product(down, weight), energy, down @ moment.output_mean(weight)


def _from_inputs(
    weight: Tensor, moment: Moment, second: Tensor, ridge: float, rank: int | None, centered: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for a tall W from G = Wᵀ H W (d_in, d_in) = `second`, without H itself.

    With C = R Rᵀ and the eigenvectors Q of Rᵀ G R: U = W R Q, V = Qᵀ R⁻¹.
    """
    c = moment.covariance if centered else moment.input_second()
    root = square_root(c, ridge_of(c, RIDGE))
    g = second + ridge * product(weight.T, weight)
    energy, q = eigh(root.around(g))
    q = q[:, :rank]
    v = root.solve(q).T
    return product(weight, root.times(q)), v, energy, v @ moment.mean.double()
