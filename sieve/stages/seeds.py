"""The lines of genomes that a search walks, and the seeds that evolution begins with."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.projections import get_projection
from sieve.search.confirmation import divergence_limit
from sieve.search.lines import (
    NEIGHBORS,
    Line,
    last_within,
    neighbors,
    smallest_feasible,
    uniform_line,
    waterfill_line,
)
from sieve.search.measured import measure_weights, measured_rows
from sieve.search.objective import Objective
from sieve.search.score import CostModel, fit_cost_model
from sieve.search.waterfill import scale_energies
from sieve.stages.rows import search_objective
from sieve.stages.run import Run

log = logging.getLogger(__name__)
SMALLEST_KEPT = 1e-6  # stands for a kept fraction of 0 in ratios


def usable_levels(run: Run, bank: Bank) -> list[float]:
    """The levels of the search whose ranks the bank holds and the export can store.

    Raises:
        ValueError: the export can store none of them.
    """
    levels, model = run.config.search.levels, run.backbone.model
    if get_projection(bank.projection).learned:
        levels = [*levels, run.config.projection.learning.level]
    top_ranks = {matrix: bank.factors[matrix.name].rank for matrix in bank.matrices}
    levels = [
        level
        for level in levels
        if all((bank.sizing.rank(m, level) or 0) <= top for m, top in top_ranks.items())
    ]
    if run.config.export.format != "dense" or all(
        getattr(model.get_submodule(m.name), "bias", None) is not None for m in bank.matrices
    ):
        return levels
    if bank.sizing.fits_bias:
        raise ValueError(
            f"projection={bank.projection} fits biases, and the dense weights of "
            f"{type(model).__name__} have no place for them; use export=factorized, or "
            "projection=output."
        )
    storable = [x for x in levels if all(bank.sizing.rank(m, x) != 0 for m in bank.matrices)]
    if run.leads and len(storable) < len(levels):
        log.info("levels of rank 0 are left out: dense weights have no place for their bias")
    return storable


def lowest_rank(run: Run, bank: Bank) -> int:
    """0 if the levels allow a matrix to be removed, else 1."""
    least = min(usable_levels(run, bank))
    return 0 if any(bank.sizing.rank(m, least) == 0 for m in bank.matrices) else 1


def line_of(run: Run, bank: Bank, method: str) -> Line:
    """The line of genomes of a search method, "uniform" or "waterfill"."""
    if method == "uniform":
        return uniform_line(bank, usable_levels(run, bank))
    return waterfill_line(bank, run.config.search.normalize, lowest_rank(run, bank))


def measured_line(run: Run, bank: Bank, objective: Objective, kept_fraction: float) -> Line:
    """The frontier by the cost of each matrix, measured near a kept fraction."""
    search, lowest = run.config.search, lowest_rank(run, bank)
    weights = measure_weights(
        bank,
        objective,
        kept_fraction,
        normalize=search.normalize,
        lowest_rank=lowest,
        rounds=search.rounds,
    )
    return waterfill_line(scale_energies(bank, weights, search.normalize), "none", lowest)


@dataclass(frozen=True)
class Seeds:
    """The genomes that a search begins with, best first."""

    genomes: list[Genome]
    cost_model: CostModel | None = None  # None if genomes are judged by the margin
    order: list[int] | None = None  # rows; the rows that a line of genomes answers worst come first
    evaluations: int = 0  # genomes scored on some rows only, to measure what each matrix costs
    examples: int = 0  # rows scored for these


def find_seeds(run: Run, bank: Bank, objective: Objective) -> Seeds:
    """Genomes of each line that `search.seeds` names, near the size where it leaves the tolerance.

    With `search.judge=margin` they stand around the smallest feasible genome of each line, and the
    ones closest in size to the smallest of all come first. With `divergence` they stand where a
    line reaches the largest divergence that is feasible on average, and the ones that
    cost least come first.
    """
    search = run.config.search
    if bank.structural:  # Uniform levels are of ranks, and so is what is measured.
        search = replace(search, seeds=[seed for seed in search.seeds if seed == "waterfill"])
    if search.judge == "margin":
        methods = [m for m in search.seeds if m != "measured"]  # Margins are too coarse to measure.
        return Seeds(_around_smallest(bank, objective, [line_of(run, bank, m) for m in methods]))
    closed = [line_of(run, bank, m) for m in ("uniform", "waterfill") if m in search.seeds]
    lines = closed or [line_of(run, bank, "waterfill")]
    for line in lines:
        smallest_feasible(objective, line)
    order = _decisive_first(objective, lines[-1])
    decisive = None
    if "measured" in search.seeds:
        decisive = search_objective(run, bank, rows=order[: measured_rows(len(order))])
        size = bank.kept_fraction(lines[-1].genome(_limit_index(objective, lines[-1])))
        lines = [*closed, measured_line(run, bank, decisive, size)]
        smallest_feasible(objective, lines[-1])
        order = _decisive_first(objective, lines[-1])
    genomes = [
        genome
        for line in lines
        for genome in neighbors(line, _limit_index(objective, line), *NEIGHBORS)
    ]
    cost_model = _cost_model(run, objective, genomes)
    genomes.sort(key=lambda genome: cost_model.cost(objective.score(genome)))
    return Seeds(
        genomes if search.seeds else [],
        cost_model=cost_model,
        order=order,
        evaluations=len(decisive.evaluated) if decisive else 0,
        examples=decisive.examples_scored if decisive else 0,
    )


def _cost_model(run: Run, objective: Objective, genomes: Sequence[Genome]) -> CostModel:
    """How size trades for divergence near the smallest genome within the divergence limit."""
    scores = [objective.score(genome) for genome in genomes]
    limit = divergence_limit(objective.evaluated.values())
    reference = min(
        (score for score in scores if score.divergence <= limit),
        key=lambda score: score.kept_fraction,
        default=scores[0],
    )
    return fit_cost_model(reference, scores, run.config.tolerance)


def _decisive_first(objective: Objective, line: Line) -> list[int]:
    """Rows by their divergence at the limit of a line, largest first."""
    divergences = objective.divergences(line.genome(_limit_index(objective, line)))
    return [int(row) for row in np.argsort(-divergences, kind="stable")]


def _limit_index(objective: Objective, line: Line) -> int:
    """Index of the smallest genome on a line whose divergence is within `divergence_limit`."""
    return last_within(objective, line, divergence_limit(objective.evaluated.values()))


def _around_smallest(bank: Bank, objective: Objective, lines: Sequence[Line]) -> list[Genome]:
    """Genomes around the smallest feasible one of each line, closest in size to the least first."""
    seeds: list[Genome] = []
    least = 1.0
    for line in lines:
        best = smallest_feasible(objective, line)
        least = min(least, bank.kept_fraction(best))
        seeds += neighbors(line, line.index(best))
    sizes = {seed: max(bank.kept_fraction(seed), SMALLEST_KEPT) for seed in seeds}
    return sorted(sizes, key=lambda seed: abs(math.log(sizes[seed] / max(least, SMALLEST_KEPT))))
