"""Pivoted factors: a rank-r matrix in r(d_out + d_in − r) numbers, its degrees of freedom.

B = U V keeps r of its rows, the pivots B_p; all other rows are mixtures T of them: y_p = B_p x and
y_rest = T y_p (PIFA, arXiv:2501.19090). LU with row pivoting chooses the pivots, on the device of
the factors. They are then exchanged until no entry of T exceeds `BOUND` (maxvol, Goreinov et al.
2010), so that float16 and int8 lose no more on T than on the dense matrix.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sieve.runtime.mapping import Spool

BOUND = 1.5
CHOICES = 2  # by LU; a choice among the mixtures of the one before leaves few exchanges, if any


@dataclass(frozen=True)
class Pivoted:
    """A matrix in pivoted form; the biases are both None or both tensors."""

    rows: Tensor  # B_p (r, d_in)
    mix: Tensor  # T (d_out − r, r)
    order: Tensor  # (d_out,) int32, the position of output i in [y_p, y_rest]
    row_bias: Tensor | None  # (r,)
    mix_bias: Tensor | None  # (d_out − r,)

    def to(self, device: torch.device) -> "Pivoted":
        """The same matrix on a device."""
        biases = [None if b is None else b.to(device) for b in (self.row_bias, self.mix_bias)]
        tensors = (self.rows, self.mix, self.order)
        return Pivoted(*(tensor.to(device) for tensor in tensors), *biases)

    def spooled(self, spool: Spool) -> "Pivoted":
        """The same matrix with its numbers in a file, which is read when they are used."""
        tensors = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: spool.put(value) for name, value in tensors.items()})


def pivot(u: Tensor, v: Tensor, bias: Tensor | None = None) -> Pivoted:
    """The pivoted form of x ↦ u v x + bias, computed in float64 and returned in the dtype of u.

    u: (d_out, r), r ≥ 1; v: (r, d_in); bias: (d_out,). On the meta device the result only has the
    right shapes. Raises ValueError where u is not finite.
    """
    if u.is_meta:
        rank, order = len(v), torch.empty(len(u), dtype=torch.int32, device=u.device)
        biases = (None, None) if bias is None else (bias[:rank], bias[rank:])
        return Pivoted(v, u[rank:], order, *biases)
    exact = u.double()
    if not exact.isfinite().all():
        raise ValueError("got factors with NaN or infinite numbers, expected finite ones.")
    mix = torch.linalg.qr(exact @ _mixed_columns(exact)).Q  # T depends on the column space alone.
    for _ in range(CHOICES):
        chosen, mix = _choose(mix)
    chosen, mix = _bounded(chosen, mix)
    others = torch.ones(len(u), dtype=torch.bool, device=u.device)
    others[chosen] = False
    rest = others.nonzero()[:, 0]
    mix = mix[rest]
    order = torch.argsort(torch.cat([chosen, rest])).int()
    rows = exact[chosen] @ v.double()
    row_bias = mix_bias = None
    if bias is not None:
        row_bias = bias[chosen].to(u.dtype)
        mix_bias = (bias[rest].double() - mix @ row_bias.double()).to(u.dtype)
    return Pivoted(rows.to(u.dtype), mix.to(u.dtype), order, row_bias, mix_bias)


def part_of(pivoted: Pivoted, start: int, end: int) -> Pivoted:
    """Outputs `start` to `end`: all pivots, and the mixtures within that range."""
    rank = len(pivoted.rows)
    order = pivoted.order[start:end].long()
    own = order[order >= rank].sort().values  # The positions of its mixtures.
    moved = torch.searchsorted(own, order.contiguous()) + rank
    bias = None if pivoted.mix_bias is None else pivoted.mix_bias[own - rank]
    order = torch.where(order < rank, order, moved).int()
    return Pivoted(pivoted.rows, pivoted.mix[own - rank], order, pivoted.row_bias, bias)


def _mixed_columns(u: Tensor) -> Tensor:
    """Combinations (r, r) of the columns of u at one length: no order of them can mislead LU."""
    generator = torch.Generator().manual_seed(0)
    rank = u.shape[1]
    random = torch.randn(rank, rank, dtype=u.dtype, generator=generator).to(u.device)
    lengths = u.norm(dim=0)  # A short column would be lost in the rounding of long ones.
    return random / torch.where(lengths > 0, lengths, 1.0)[:, None]


def _choose(basis: Tensor) -> tuple[Tensor, Tensor]:
    """Pivot rows (r,) of a basis (d_out, r), and all rows as mixtures of them (d_out, r)."""
    rank = basis.shape[1]
    packed, swaps, _ = torch.linalg.lu_factor_ex(basis)
    order = _permutation(swaps, len(basis)).to(basis.device)  # Row i of L is row order[i].
    mix = torch.empty_like(basis)
    mix[order[:rank]] = torch.eye(rank, dtype=basis.dtype, device=basis.device)
    head, tail = packed[:rank], packed[rank:]
    mix[order[rank:]] = torch.linalg.solve_triangular(
        head, tail, upper=False, left=False, unitriangular=True
    )
    return order[:rank], mix


def _permutation(swaps: Tensor, rows: int) -> Tensor:
    """The order (rows,) that exchanging rows in turn leaves; torch's own is a (rows, rows) matrix.

    swaps: for each row in turn, the row that it is exchanged with, counted from 1.
    """
    order = list(range(rows))
    for row, other in enumerate(swaps.tolist()):
        order[row], order[other - 1] = order[other - 1], order[row]
    return torch.tensor(order)


def _bounded(chosen: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """Exchange pivots until |T| ≤ BOUND; each exchange multiplies their volume by over BOUND."""
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
