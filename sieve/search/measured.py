"""Water-filling by the measured cost of each matrix, where energies only estimate it.

Energies are a second-order estimate at the dense model, one matrix at a time. At useful sizes other
matrices are pruned too, and the loss is far from a parabola. So each matrix of a frontier genome is
moved one step down and one step up on its own, the divergence from the dense model is measured, and
the matrix's energies are weighted by measured over estimated cost. A round moves the weights half
of the way on a logarithmic scale, as in damped fixed-point iteration.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sieve.bank.bank import Bank
from sieve.bank.genome import unneeded
from sieve.runtime.progress import track
from sieve.search.lines import Scorer, shared_blocks
from sieve.search.waterfill import (
    Ranks,
    estimated_loss,
    genome_of_ranks,
    scale_energies,
    waterfill,
)

log = logging.getLogger(__name__)
MIN_ROWS = 64  # of the selection rows
STEP = 1.35  # ratio of kept fractions of the genomes between which a matrix is moved
DAMPING = 0.5  # share of the way that log weights move in a round
NOISE = 0.1  # assumed error of a measurement, as a share of the mean cost of a step
LARGEST_CHANGE = 8.0  # of a weight in one round, before damping


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
    """For each matrix, its measured cost divided by its estimated cost, near one size.

    Each round takes two evaluations per matrix, which run from the block of the matrix. A group
    gets the geometric mean of its members, which are measured one by one. Raises ValueError if the
    objective measures no divergence.

    Args:
        kept_fraction: the size to measure at, a fraction of the prunable parameters.
    """
    weights = dict.fromkeys(bank.names, 1.0)
    for round_index in range(rounds):
        changes = _measure(bank, weights, objective, kept_fraction, normalize, lowest_rank)
        for name, change in changes.items():
            weights[name] *= change**DAMPING
        for group in bank.groups:
            logs = [math.log(weights[name]) for name in group.members]
            weights[group.name] = math.exp(sum(logs) / len(logs))
        log.info("  measured     round %d of %d", round_index + 1, rounds)
    return weights


def _measure(
    bank: Bank,
    weights: Mapping[str, float],
    objective: Scorer,
    kept_fraction: float,
    normalize: str,
    lowest_rank: int,
) -> dict[str, float]:
    """Measured cost (divergence) divided by estimated cost, scaled to a mean of about 1.

    Only for matrices whose rank differs between the sizes above and below.
    """
    estimated = scale_energies(bank, weights, normalize)
    no_groups = dict.fromkeys(group.name for group in bank.groups)
    frontier = waterfill(replace(estimated, groups=[]), lowest_rank=lowest_rank)
    center, smaller, larger = (
        frontier.ranks(frontier.steps_to(min(1.0, size))) | no_groups
        for size in (kept_fraction, kept_fraction / STEP, kept_fraction * STEP)
    )
    base = objective.score(genome_of_ranks(bank, center)).divergence
    if not np.isfinite(base):
        raise ValueError(
            "search.seeds=measured needs an objective that measures divergences; remove "
            "'measured' from search.seeds."
        )

    def idle(ranks: Ranks) -> set[str]:
        return unneeded(ranks, bank.matrices, bank.groups)

    estimates: dict[str, float] = {}
    costs: dict[str, float] = {}
    with shared_blocks(objective, genome_of_ranks(bank, center)):
        for name in track([m.name for m in bank.matrices], "Measuring matrices", unit="matrices"):
            estimate = cost = 0.0
            for ranks, sign in ((smaller, 1), (larger, -1)):
                if ranks[name] == center[name] or name in idle(ranks) | idle(center):
                    continue
                # A writer that goes, or comes back, takes along what feeds it.
                toggled = 0 in (ranks[name], center[name])
                feeders = [m.name for m in bank.matrices if toggled and m.feeds == name]
                genome = genome_of_ranks(bank, center | {n: ranks[n] for n in (name, *feeders)})
                cost += sign * (objective.score(genome).divergence - base)
                moved, unmoved = (
                    sum(estimated_loss(estimated, n, r[n]) for n in {name, *feeders} - idle(r))
                    for r in (ranks, center)
                )
                estimate += sign * (moved - unmoved)
            if estimate > 0:
                estimates[name], costs[name] = estimate, max(cost, 0.0)
    return _ratios(costs, estimates)


def _ratios(costs: Mapping[str, float], estimates: Mapping[str, float]) -> dict[str, float]:
    """Measured over estimated cost of each matrix, in the unit in which both have the same sum."""
    total = sum(costs.values())
    if total <= 0:
        return {}
    unit = total / sum(estimates.values())
    noise = NOISE * total / len(costs)
    return {
        name: float(
            np.clip(
                (costs[name] + noise) / (estimates[name] * unit + noise),
                1 / LARGEST_CHANGE,
                LARGEST_CHANGE,
            )
        )
        for name in costs
    }
