"""Projections: pure functions from a weight and its moment to factors of every rank.

Each file holds one solver, `(weight, moment) -> Factors`. To add a projection, write its file and
register it in `PROJECTIONS` with the statistics that it needs from calibration.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from sieve.projections.affine import affine
from sieve.projections.asvd import asvd
from sieve.projections.factors import Factors
from sieve.projections.input_pca import input_pca
from sieve.projections.loss_aware import loss_aware
from sieve.projections.moments import PLAIN, Moment, Needs
from sieve.projections.output import output
from sieve.projections.svd import svd
from sieve.projections.whitened import whitened


@dataclass(frozen=True)
class Projection:
    """A solver and the statistics that it needs."""

    solve: Callable[..., Factors]
    needs: Needs = PLAIN
    learned: bool = False  # by gradient: `solve` is the optimum that learning approaches
    cuts: bool = False  # `solve` takes a rank and computes no direction beyond it
    # Raise it when the factors change, here or in `bank.learned`; older banks are fitted again.
    version: int = 1

    def __call__(self, weight: Tensor, moment: Moment, rank: int | None = None) -> Factors:
        """Factors of all ranks, or of those up to `rank`, in float64; energies of all ranks."""
        if rank is None:
            return self.solve(weight, moment)
        if self.cuts:
            return self.solve(weight, moment, rank=rank)
        return self.solve(weight, moment).cut(rank)


PROJECTIONS: dict[str, Projection] = {
    "output": Projection(output),
    "affine": Projection(affine),
    "loss_aware": Projection(loss_aware, Needs(gradient=True), cuts=True, version=2),
    "loss_aware_affine": Projection(
        partial(loss_aware, centered=True), Needs(gradient=True), cuts=True, version=2
    ),
    "asvd": Projection(asvd, Needs(magnitude=True)),
    "input_pca": Projection(input_pca, Needs(input=True)),
    "whitened": Projection(whitened, Needs(input=True)),
    "svd": Projection(svd),
    "learned": Projection(output, Needs(input=True), learned=True),
}

__all__ = ["PROJECTIONS", "Factors", "Projection", "get_projection"]


def get_projection(name: str, damping: float | None = None) -> Projection:
    """Look up a projection by name; ValueError lists the names.

    damping: replaces the default damping of the loss-aware projections; others ignore it.
    """
    if name not in PROJECTIONS:
        raise ValueError(f"got projection {name!r}, expected one of {', '.join(PROJECTIONS)}.")
    projection = PROJECTIONS[name]
    if damping is None or not projection.needs.gradient:
        return projection
    return replace(projection, solve=partial(projection.solve, damping=damping))
