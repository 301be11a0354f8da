"""What a run's searches walk and begin with: lines of genomes, and the seeds around their ends."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.projections import get_projection
from sieve.search.confirmation import divergence_limit
from sieve.search.lines import (
    Line,
    last_within,
    neighbors,
    smallest_feasible,
    uniform_line,
    waterfill_line,
)
from sieve.search.measured import measure_weights
from sieve.search.objective import Objective
from sieve.search.score import CostModel, fit_cost_model
from sieve.search.waterfill import scale_energies
from sieve.stages.rows import search_objective
from sieve.stages.run import Run

log = logging.getLogger(__name__)
FEWEST = 64  # rows on which the cost of matrices is measured
TINY = 1e-6  # kept fraction that counts as nothing
BEFORE, AFTER = 3, 4  # genomes of a line about a place on it


def usable_levels(run: Run, bank: Bank) -> list[float]:
    """The levels to choose from: all that the bank holds, or that can be exported as asked for.

    Raises ValueError where none can be.
    """
    levels, model = run.config.search.levels, run.backbone.model
    if get_projection(bank.projection).learned:
        levels = [*levels, run.config.projection.learning.level]
    held = {m.name: bank.factors[m.name].rank for m in bank.matrices}
    levels = [
        x
        for x in levels
        if all((bank.sizing.rank(m, x) or 0) <= held[m.name] for m in bank.matrices)
    ]
    if run.config.export.format != "dense" or all(
        getattr(model.get_submodule(name), "bias", None) is not None for name in bank.names
    ):
        return levels
    if bank.sizing.fits_bias:
        raise ValueError(
            f"projection={bank.projection} fits biases, and {type(model).__name__} has no "
            "place for them in dense weights; use export=factorized, or projection=output."
        )
    able = [x for x in levels if all(bank.sizing.rank(m, x) != 0 for m in bank.matrices)]
    if run.leads and len(able) < len(levels):
        log.info("levels of rank 0 are left out: dense weights have no place for their bias")
    return able


def lowest_rank(run: Run, bank: Bank) -> int:
    """0 where a matrix may go altogether, else 1."""
    least = min(usable_levels(run, bank))
    return 0 if any(bank.sizing.rank(m, least) == 0 for m in bank.matrices) else 1


def line_of(run: Run, bank: Bank, method: str) -> Line:
    """The line of genomes that a search along one walks: "uniform" or "waterfill"."""
    search = run.config.search
    if method == "uniform":
        return uniform_line(bank, usable_levels(run, bank))
    return waterfill_line(bank, search.normalize, lowest_rank(run, bank))


def measured_line(run: Run, bank: Bank, objective: Objective, kept_fraction: float) -> Line:
    """The frontier by what matrices are measured to cost near a size."""
    search, lowest = run.config.search, lowest_rank(run, bank)
    weights = measure_weights(
        bank, objective, kept_fraction, search.normalize, lowest, search.rounds
    )
    return waterfill_line(scale_energies(bank, weights, search.normalize), "none", lowest)


@dataclass(frozen=True)
class Seeds:
    """Genomes to begin with, the best first, and what others are compared at, where known."""

    genomes: list[Genome]
    par: CostModel | None = None
    order: list[int] | None = None  # of the rows, the decisive first: those answered worst
    evaluations: int = 0  # of genomes on decisive rows alone, to measure what matrices cost
    examples: int = 0  # rows scored for those


def find_seeds(run: Run, bank: Bank, objective: Objective) -> Seeds:
    """Genomes of each line that `search.seeds` names, about where it leaves the tolerance.

    With `search.judge=margin` that is around the smallest feasible genome of a line, and those
    nearest in size to the smallest of all come first. With "divergence" it is where a line is as
    far from the dense model as genomes may be on the mean, and the smallest at par come first.
    """
    search = run.config.search
    if search.judge == "margin":
        named = [m for m in search.seeds if m != "measured"]  # Margins are too coarse for that.
        return Seeds(_nearest(bank, objective, [line_of(run, bank, m) for m in named]))
    closed = [line_of(run, bank, m) for m in ("uniform", "waterfill") if m in search.seeds]
    lines = closed or [line_of(run, bank, "waterfill")]
    for line in lines:
        smallest_feasible(objective, line)
    order = _decisive_first(objective, lines[-1])
    part = None
    if "measured" in search.seeds:
        part = search_objective(run, bank, rows=order[: max(FEWEST, len(order) // 4)])
        here = lines[-1].genome(_reached(objective, lines[-1]))
        lines = [*closed, measured_line(run, bank, part, bank.kept_fraction(here))]
        smallest_feasible(objective, lines[-1])
        order = _decisive_first(objective, lines[-1])
    near = [neighbors(line, _reached(objective, line), BEFORE, AFTER) for line in lines]
    scored = [(objective.score(genome), genome) for genomes in near for genome in genomes]
    limit = divergence_limit(objective.evaluated.values())
    reached = min(
        (score for score, _ in scored if score.divergence <= limit),
        key=lambda score: score.kept_fraction,
        default=scored[0][0],
    )
    par = fit_cost_model(reached, [score for score, _ in scored], run.config.tolerance)
    scored.sort(key=lambda pair: par.cost(pair[0]))
    return Seeds(
        [genome for _, genome in scored] if search.seeds else [], par, order,
        len(part.evaluated) if part else 0, part.examples_scored if part else 0,
    )  # fmt: skip


def _decisive_first(objective: Objective, line: Line) -> list[int]:
    """Row indexes: first the rows on which the end of a line is farthest from the dense model."""
    far = objective.divergences(line.genome(_reached(objective, line)))
    return [int(row) for row in np.argsort(-far, kind="stable")]


def _reached(objective: Objective, line: Line) -> int:
    """Where a line is as far from the dense model as genomes may be on the mean."""
    return last_within(objective, line, divergence_limit(objective.evaluated.values()))


def _nearest(bank: Bank, objective: Objective, lines: Sequence[Line]) -> list[Genome]:
    """Genomes around the smallest feasible one of each line, those nearest to the least first."""
    seeds: list[Genome] = []
    least = 1.0
    for line in lines:
        best = smallest_feasible(objective, line)
        least = min(least, bank.kept_fraction(best))
        seeds += neighbors(line, line.index(best))
    sizes = {seed: max(bank.kept_fraction(seed), TINY) for seed in seeds}
    return sorted(sizes, key=lambda seed: abs(math.log(sizes[seed] / max(least, TINY))))
