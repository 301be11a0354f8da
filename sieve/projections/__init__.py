"""Projections: from a weight and its moment to factors of every rank, one file each.

A projection is a pure function `(weight, moment) -> Factors`. To add one, write its file and name
it in `PROJECTIONS`, with what it needs of calibration.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from sieve.projections.affine import affine
from sieve.projections.asvd import asvd
from sieve.projections.factors import Factors
from sieve.projections.input_pca import input_pca
from sieve.projections.loss_aware import loss_aware, loss_aware_affine
from sieve.projections.moments import PLAIN, Moment, Needs
from sieve.projections.output import output
from sieve.projections.svd import svd
from sieve.projections.whitened import whitened


@dataclass(frozen=True)
class Projection:
    """A solver and the statistics it asks for."""

    solve: Callable[..., Factors]
    needs: Needs = PLAIN
    learned: bool = False  # by gradient: `solve` is the optimum that learning looks for
    cuts: bool = False  # whether `solve` takes a rank, and spares what is beyond it

    def __call__(self, weight: Tensor, moment: Moment, rank: int | None = None) -> Factors:
        """Factors of every rank, or of those up to `rank`, in float64; energies of all."""
        if rank is None:
            return self.solve(weight, moment)
        if self.cuts:
            return self.solve(weight, moment, rank=rank)
        return self.solve(weight, moment).cut(rank)

    @property
    def in_loss(self) -> bool:
        """Whether energies are in units of the loss, the same for all matrices."""
        return self.needs.gradient


PROJECTIONS: dict[str, Projection] = {
    "output": Projection(output),
    "affine": Projection(affine),
    "loss_aware": Projection(loss_aware, Needs(gradient=True), cuts=True),
    "loss_aware_affine": Projection(loss_aware_affine, Needs(gradient=True), cuts=True),
    "asvd": Projection(asvd, Needs(magnitude=True)),
    "input_pca": Projection(input_pca, Needs(input=True)),
    "whitened": Projection(whitened, Needs(input=True)),
    "svd": Projection(svd),
    "learned": Projection(output, Needs(input=True), learned=True),
}

__all__ = ["PROJECTIONS", "Factors", "Projection", "get_projection"]


def get_projection(name: str, damping: float | None = None) -> Projection:
    """Look a projection up by name; ValueError lists the known ones.

    damping: of the loss-aware ones, in place of the rule they follow.
    """
    if name not in PROJECTIONS:
        raise ValueError(f"got projection {name!r}, expected one of {', '.join(PROJECTIONS)}.")
    found = PROJECTIONS[name]
    if damping is None or not found.needs.gradient:
        return found
    return replace(found, solve=partial(found.solve, damping=damping))
