"""Pivoted factors: a rank-r matrix in its true number of degrees of freedom, without loss.

Of B = U V r pivot rows B_p are chosen; every other row is a mixture T of them: y_p = B_p x and
y_rest = T y_p, r(d_out + d_in − r) numbers (PIFA, arXiv:2501.19090). Pivots come from a QR of Uᵀ
with column pivoting, and are exchanged until no entry of T exceeds `BOUND` (maxvol, Goreinov et al.
2010), so that neither float16 nor int8 loses more on T than on the dense matrix.
"""

from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

BOUND = 1.5
DEFICIENT = 1e-10  # of the first pivot: below it a row adds nothing


@dataclass(frozen=True)
class Pivoted:
    """rows: B_p (r, d_in); mix: T (d_out − r, r); order: (d_out,) int32, where output i stands in
    [y_p, y_rest]; biases of both, or None."""

    rows: Tensor
    mix: Tensor
    order: Tensor
    row_bias: Tensor | None
    mix_bias: Tensor | None


def pivot(u: Tensor, v: Tensor, bias: Tensor | None = None) -> Pivoted:
    """The pivoted form of x ↦ u v x + bias, in float64 but for the dtype of the result.

    u: (d_out, r), r ≥ 1; v: (r, d_in); bias: (d_out,). All come back in u's dtype.
    """
    exact = u.double()
    basis = torch.linalg.qr(exact).Q.cpu()  # (d_out, r): T depends on the column space alone.
    chosen, mix = _bounded(*_choose(basis))
    rest = torch.tensor(sorted(set(range(len(u))) - set(chosen.tolist())), dtype=torch.long)
    mix = mix[rest].to(u.device)
    chosen, rest = chosen.to(u.device), rest.to(u.device)
    order = torch.argsort(torch.cat([chosen, rest])).int()
    rows = exact[chosen] @ v.double()
    row_bias = mix_bias = None
    if bias is not None:
        row_bias = bias[chosen].to(u.dtype)
        mix_bias = (bias[rest].double() - mix @ row_bias.double()).to(u.dtype)
    return Pivoted(rows.to(u.dtype), mix.to(u.dtype), order, row_bias, mix_bias)


def part_of(pivoted: Pivoted, start: int, end: int) -> Pivoted:
    """Outputs `start` to `end` of the whole: all its pivots, and the mixtures among them."""
    rank = len(pivoted.rows)
    order = pivoted.order[start:end].long()
    own = order[order >= rank].sort().values  # Where their mixtures stand in [y_p, y_rest].
    placed = torch.searchsorted(own, order.contiguous()) + rank
    bias = None if pivoted.mix_bias is None else pivoted.mix_bias[own - rank]
    return Pivoted(
        pivoted.rows, pivoted.mix[own - rank], torch.where(order < rank, order, placed).int(),
        pivoted.row_bias, bias,
    )  # fmt: skip


def _choose(basis: Tensor) -> tuple[Tensor, Tensor]:
    """Pivot rows of an orthonormal basis (d_out, r), and every row as a mixture of them."""
    rank = basis.shape[1]
    triangle, columns = scipy.linalg.qr(basis.T.numpy(), mode="r", pivoting=True)
    order = torch.from_numpy(columns).long()
    triangle = torch.from_numpy(triangle)
    head, tail = triangle[:, :rank], triangle[:, rank:]
    if rank and abs(float(head[-1, -1])) < DEFICIENT * abs(float(head[0, 0])):
        solved = torch.linalg.lstsq(head, tail, driver="gelsd").solution
    else:
        solved = torch.linalg.solve_triangular(head, tail, upper=True)
    mix = torch.empty_like(basis)
    mix[order[:rank]] = torch.eye(rank, dtype=basis.dtype)
    mix[order[rank:]] = solved.T
    return order[:rank].clone(), mix


def _bounded(chosen: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """Exchange pivots until |T| ≤ BOUND; every exchange multiplies the pivots' volume by more."""
    while mix.numel():
        row, column = divmod(int(mix.abs().argmax()), mix.shape[1])
        value = float(mix[row, column])
        if abs(value) <= BOUND:
            break
        step = mix[row].clone()
        step[column] -= 1
        mix = mix - torch.outer(mix[:, column], step / value)
        chosen[column] = row
    return chosen, mix
