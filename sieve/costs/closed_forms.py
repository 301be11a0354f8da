"""Seconds of closed forms of a run: of solving matrices, and of choosing the rows that stay."""

import torch

from sieve.bank.pivoting import CHOICES
from sieve.bank.solver import at_once
from sieve.costs.plan import TYPICAL, Plan
from sieve.costs.probe import CPU_CLOSED_FORMS
from sieve.costs.solving import QR, Flops
from sieve.model.matrices import Matrix, block_of


def solve_seconds(plan: Plan, flops: list[Flops], together: int = 1) -> float:
    """Seconds of closed forms in float64, which every device computes.

    together: matrices that a CPU solves at the same time, each in one thread.
    """
    products, decompositions = map(sum, zip(*flops, strict=True))
    reached = CPU_CLOSED_FORMS if plan.on_cpu else plan.device.utilization
    solver = plan.device.solver_utilization
    if together > 1:
        reached *= together / torch.get_num_threads()
        solver = together * (plan.device.thread_solver_utilization or solver)
    seconds = products / reached + decompositions / solver
    return float(seconds / (plan.device.tflops["float64"] * 1e12))


def fitted_together(plan: Plan) -> int:
    """Blocks that a fit solves at the same time."""
    if not plan.on_cpu or plan.config.calibration.strategy == "stream":
        return 1
    blocks: dict[str, list[Matrix]] = {}
    for matrix in plan.shape.matrices:
        blocks.setdefault(block_of(matrix.name), []).append(matrix)
    return at_once(blocks, torch.get_num_threads())


def by_lapack(plan: Plan, together: int = 1) -> bool:
    """Whether LAPACK computes closed forms: each in one thread of a CPU."""
    return plan.on_cpu and (together > 1 or torch.get_num_threads() == 1)


def pivot_seconds(plan: Plan, storage: str | None = None) -> float:
    """Seconds to choose the pivot rows of a genome: a QR and two LU of (d_out, r) each.

    storage: another form than the bank's, in which the factors are also needed.
    """
    if "pivoted" not in (plan.sizing.storage, storage):
        return 0.0
    ranks = plan.ranks(TYPICAL)
    products = [2 * r**2 * (m.d_out + m.d_in) for m, r in ranks]
    factors = [r**2 * (QR * m.d_out + 2 * CHOICES * (m.d_out - r / 3)) for m, r in ranks]
    return solve_seconds(plan, list(zip(products, factors, strict=True)))
