"""Water-filling by what matrices are measured to cost, where energies only estimate it.

Energies are a second-order estimate at the dense model, one matrix at a time. Near the sizes that
matter other matrices are pruned too, and the loss is far from a parabola. So at a genome of the
frontier each matrix alone is moved a step down and a step up, the divergence from the dense model
is measured, and its energies are weighted by what it cost over what they foretold. Half of the way,
on a logarithmic scale, and again: the same idea as damped fixed-point iteration.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sieve.bank.bank import Bank
from sieve.runtime.progress import track
from sieve.search.lines import Scorer
from sieve.search.waterfill import estimated_loss, genome_of_ranks, waterfill, weighted

log = logging.getLogger(__name__)
MIN_ROWS = 64  # of the selection rows
STEP = 1.35  # ratio of sizes of the genomes between which a matrix is moved
DAMPING = 0.5  # part of the way that weights go in a round, on a logarithmic scale
NOISE = 0.1  # of the mean cost of a step: what a measurement may be off by
LARGEST_CHANGE = 8.0  # what a weight changes by in a round before damping, at most


def measured_rows(rows: int) -> int:
    """How many of the selection rows measure the cost of matrices."""
    return max(MIN_ROWS, rows // 4)


def measure_weights(
    bank: Bank,
    objective: Scorer,
    kept_fraction: float,
    normalize: str = "none",
    lowest_rank: int = 0,
    rounds: int = 2,
) -> dict[str, float]:
    """How much more a matrix costs than its energies say, of all matrices near one size.

    objective: its scores have divergences; kept_fraction: of the prunable parameters, the size to
    measure at; rounds: each takes two evaluations per matrix. Siblings are measured apart;
    a group gets the geometric mean of its members.
    Raises ValueError where the objective measures no divergence.
    """
    weights = dict.fromkeys(bank.names, 1.0)
    for turn in range(rounds):
        changes = _measured(bank, weights, objective, kept_fraction, normalize, lowest_rank)
        for name, change in changes.items():
            weights[name] *= change**DAMPING
        for group in bank.groups:
            logs = [math.log(weights[name]) for name in group.members]
            weights[group.name] = math.exp(sum(logs) / len(logs))
        log.info("  measured     round %d of %d", turn + 1, rounds)
    return weights


def _measured(
    bank: Bank,
    weights: Mapping[str, float],
    objective: Scorer,
    kept_fraction: float,
    normalize: str,
    lowest_rank: int,
) -> dict[str, float]:
    """Measured over estimated cost of every matrix that a step moves, 1 on the mean."""
    estimated = weighted(bank, weights, normalize)
    apart = dict.fromkeys(group.name for group in bank.groups)
    frontier = waterfill(replace(estimated, groups=[]), lowest_rank=lowest_rank)
    here, down, up = (
        frontier.ranks(frontier.within(min(1.0, size))) | apart
        for size in (kept_fraction, kept_fraction / STEP, kept_fraction * STEP)
    )
    base = objective.score(genome_of_ranks(bank, here)).divergence
    if not np.isfinite(base):
        raise ValueError("the objective measures no divergence, which search.seeds=measured needs.")
    found: dict[str, tuple[float, float]] = {}
    for name in track([m.name for m in bank.matrices], "Measuring matrices"):
        estimate = cost = 0.0
        for other, sign in ((down, 1), (up, -1)):
            if other[name] != here[name]:
                genome = genome_of_ranks(bank, here | {name: other[name]})
                cost += sign * (objective.score(genome).divergence - base)
                losses = [estimated_loss(estimated, name, r[name]) for r in (other, here)]
                estimate += sign * (losses[0] - losses[1])
        if estimate > 0:
            found[name] = estimate, max(cost, 0.0)
    if not found or (spent := sum(cost for _, cost in found.values())) <= 0:
        return {}
    unit = spent / sum(estimate for estimate, _ in found.values())
    noise = NOISE * spent / len(found)
    return {
        name: float(
            np.clip((cost + noise) / (estimate * unit + noise), 1 / LARGEST_CHANGE, LARGEST_CHANGE)
        )
        for name, (estimate, cost) in found.items()
    }
