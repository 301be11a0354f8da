"""Seconds of closed forms of a run: of solving matrices, and of choosing the rows that stay."""

import torch

from sieve.bank.pivoting import CHOICES
from sieve.bank.solver import at_once
from sieve.costs.plan import Plan
from sieve.costs.probe import CPU_CLOSED_FORMS
from sieve.costs.solving import QR, Flops
from sieve.model.groups import siblings
from sieve.model.matrices import Matrix, block_of


def solve_seconds(plan: Plan, flops: list[Flops], threads: int = 0) -> float:
    """Seconds of closed forms in float64, which every device computes.

    threads: of a CPU that solve, each another matrix; 0: all of them solve one matrix.
    """
    products, decompositions = map(sum, zip(*flops, strict=True))
    reached = CPU_CLOSED_FORMS if plan.on_cpu else plan.device.utilization
    solver = plan.device.solver_utilization
    if threads:
        every = torch.get_num_threads()
        reached *= threads / every
        solver = threads * (plan.device.thread_solver_utilization or solver / every)
    seconds = products / reached + decompositions / solver
    return float(seconds / (plan.device.tflops["float64"] * 1e12))


def fit_threads(plan: Plan) -> int:
    """Threads of a CPU that solve a block each in a fit; 0: one matrix after another by all."""
    threads = torch.get_num_threads()
    blocks: dict[str, list[Matrix]] = {}
    joint = siblings(plan.shape.blocks) if plan.config.projection.joint else []
    for gene in [*plan.shape.matrices, *joint, *plan.neurons]:
        blocks.setdefault(block_of((gene.members or (gene.name,))[0]), []).append(gene)
    workers = at_once(blocks, threads)
    if not plan.on_cpu or workers == 1 < threads:
        return 0
    return 1 if plan.config.calibration.strategy == "stream" else workers


def by_lapack(plan: Plan) -> bool:
    """Whether closed forms outside a fit are computed by LAPACK: in one thread of a CPU."""
    return plan.on_cpu and torch.get_num_threads() == 1


def pivot_seconds(plan: Plan, storage: str | None = None) -> float:
    """Seconds to choose the pivot rows of a genome: a QR and two LU of (d_out, r) each.

    storage: another form than the bank's, in which the factors are also needed.
    """
    if "pivoted" not in (plan.sizing.storage, storage):
        return 0.0
    ranks = plan.ranks(plan.typical)
    products = [2 * r**2 * (m.d_out + m.d_in) for m, r in ranks]
    factors = [r**2 * (QR * m.d_out + 2 * CHOICES * (m.d_out - r / 3)) for m, r in ranks]
    return solve_seconds(plan, list(zip(products, factors, strict=True)))
