"""Trained matrices factorized again, so that they can be pruned further.

Training mixes the directions of a matrix: the first ones are no longer the best. So each trained
matrix, the product of its factors, is solved like a dense one, with the moments of the dense model.
"""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from sieve.bank.bank import Bank, BankFactors
from sieve.bank.genome import Genome
from sieve.bank.solver import Solver
from sieve.projections import get_projection
from sieve.projections.moments import MomentSource
from sieve.runtime.progress import track


@torch.no_grad()
def factorize_again(
    model: PreTrainedModel,
    moments: MomentSource,
    dense: Bank,
    trained: tuple[Bank, Genome],
    damping: float | None = None,
) -> Bank:
    """A bank of the trained matrices up to the ranks of their genome.

    A matrix that the genome leaves dense keeps the factors of the dense model. If a projection
    learns its factors or fits biases, which moments do not know, all factors stay in their order.

    Args:
        model: the dense model.
        moments: what `dense` was fitted on.
        dense: the bank of the dense model, with all ranks.
        trained: the bank of a training, and its genome.
        damping: of the projection.
    """
    bank, genome = trained
    sizing, ranks = bank.sizing, bank.ranks(genome)
    solver = None
    if not (sizing.fits_bias or get_projection(bank.projection).learned):
        solver = Solver(
            model,
            moments,
            bank.projection,
            sizing.storage,
            sizing.rank_multiple,
            dense.dtype,
            damping,
            narrow=any(group.neurons for group in bank.groups),
            matrix_list=bank.matrices,
        )
    factors: dict[str, BankFactors] = dict(bank.factors)
    for matrix in track(bank.matrices, "Factorizing", unit="matrices"):
        rank = ranks[matrix.name]
        if rank is None:
            factors[matrix.name] = dense.factors[matrix.name]
        elif rank and solver is not None:
            pair = bank.factors[matrix.name].cut(rank)
            weight = pair.u.float() @ pair.v.float()
            factors[matrix.name] = solver.solve(matrix, [weight]).cut(rank)
    for group in bank.groups:
        if all(ranks[name] is None for name in (group.name, *group.members)):
            factors[group.name] = dense.factors[group.name]
        if (count := ranks[group.name]) and group.neurons and solver is not None:
            pair = bank.factors[group.name].cut(count)
            factors[group.name] = solver.solve_again(group, pair).cut(count)
    return replace(bank, factors=factors)
