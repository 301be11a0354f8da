"""`loss_aware`: output errors weighted by what the task's loss cares for, in closed form.

min over rank-r B of tr((W − B) C (W − B)ᵀ H), with C = E[x xᵀ] and H = Σ E[g gᵀ] of the gradient g
of the task's loss at y = W x: to second order the rise of the loss, Kronecker-factored as in K-FAC
(arXiv:1503.05671). FWSVD (arXiv:2207.00112) takes a diagonal H of the weights' gradients, GFWSVD
(arXiv:2505.17974) Kronecker factors of them; here the gradients are those of the task's answer
alone. Energies are in nats per example, so that all matrices share one unit.
"""

import torch
from torch import Tensor

from sieve.projections.damping import shrinkage
from sieve.projections.factors import Factors, eigh, ridge_of, square_root
from sieve.projections.moments import Gradient, Moment

RIDGE = 1e-8  # of the mean eigenvalue of C: directions never seen come last, yet in order


def loss_aware(
    weight: Tensor, moment: Moment, damping: float | None = None, rank: int | None = None
) -> Factors:
    """Factors of W (d_out, d_in) that keep the estimated rise of the loss least, in float64.

    damping: H + damping · tr(H)/d_out · I takes the place of H; by default as much as the number of
    examples calls for (`projections/damping.py`). rank: directions wanted, by default all. Raises
    ValueError without gradients.
    """
    return _solve(weight, moment, damping, rank, centred=False)


def loss_aware_affine(
    weight: Tensor, moment: Moment, damping: float | None = None, rank: int | None = None
) -> Factors:
    """The same with a bias fitted beside the factors: the covariance takes the place of C."""
    return _solve(weight, moment, damping, rank, centred=True)


def _solve(
    weight: Tensor, moment: Moment, damping: float | None, rank: int | None, centred: bool
) -> Factors:
    gradient, weight = moment.gradient, weight.double()
    if gradient is None:
        raise ValueError("loss_aware needs moments of the gradients; calibrate for it again.")
    ridge = _ridge(gradient, len(weight), damping)
    solve = _from_outputs if gradient.side == "output" else _from_inputs
    u, v, energy, offset = solve(weight, moment, gradient.second.double(), ridge, rank, centred)
    norm = torch.linalg.vector_norm(u, dim=0).clamp_min(torch.finfo(u.dtype).tiny)
    u /= norm  # In place: one of the two weighs as much as the matrix in float64.
    v *= norm[:, None]
    return Factors(
        u, v, energy / 2, moment.output_mean(weight), offset * norm if centred else None
    )  # fmt: skip


def _ridge(gradient: Gradient, d_out: int, damping: float | None) -> float:
    """What to add to the diagonal of H; 1 where no gradient was ever seen."""
    if gradient.power <= 0:
        return 1.0
    if damping is None:
        damping = shrinkage(gradient.second, gradient.examples)
    return damping * gradient.power / d_out


def _from_outputs(
    weight: Tensor, moment: Moment, second: Tensor, ridge: float, rank: int | None, centred: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With H = L Lᵀ: eigenvectors Q of Lᵀ W C Wᵀ L give U = L⁻ᵀ Q and V = Qᵀ Lᵀ W."""
    root, inverse = square_root(second, ridge)
    energy, q = eigh(root.T @ moment.output_second(weight, centred) @ root)
    q = q[:, :rank]
    down = (root @ q).T
    return inverse(q), down @ weight, energy, down @ moment.output_mean(weight)


def _from_inputs(
    weight: Tensor, moment: Moment, second: Tensor, ridge: float, rank: int | None, centred: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for a tall W from G = Wᵀ H W (d_in, d_in), without H itself.

    With C = R Rᵀ: eigenvectors Q of Rᵀ G R with eigenvalues e give U = W R Q and V = e⁻¹ Qᵀ Rᵀ G.
    """
    root = _root_of_inputs(moment, centred)
    g = second + ridge * (weight.T @ weight)
    energy, q = eigh(root.T @ g @ root)
    floor = energy[:1].clamp_min(torch.finfo(g.dtype).tiny) * 1e-15
    up = root @ q[:, :rank]
    v = up.T @ g / energy.clamp_min(floor)[:rank, None]
    return weight @ up, v, energy, v @ moment.mean.double()


def _root_of_inputs(moment: Moment, centred: bool) -> Tensor:
    c = moment.covariance if centred else moment.input_second()
    return square_root(c, ridge_of(c, RIDGE))[0]
