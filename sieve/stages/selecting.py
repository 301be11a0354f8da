"""What the stages that choose a genome share: lines, the confirmation, and the record."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.evaluation.evaluation import Scores, compare_with_chance
from sieve.projections import get_projection
from sieve.search.bottlenecks import Bottleneck, find_bottlenecks
from sieve.search.confirmation import candidates, confirm, narrow
from sieve.search.lines import Line, last_within, neighbors, waterfill_line
from sieve.search.objective import JointObjective, Objective
from sieve.search.score import Score
from sieve.search.space import GenomeSpace, make_space
from sieve.search.waterfill import estimated_rise, scale_energies, weights_toward
from sieve.stages.rows import (
    LINES,
    confirmation_objective,
    confirmation_rows,
    fitted,
    search_objective,
    search_rows,
)
from sieve.stages.run import Run
from sieve.stages.seeds import AFTER, BEFORE, line_of, lowest_rank, usable_levels

log = logging.getLogger(__name__)
LARGER = (8, 12, 17, 24, 33, 45)  # places up a line, 3 % apart, for the confirmation
JOB_KEYS = ("job", "shard", "ledger")  # which part of a search a job is, not what is searched


def settings_of(run: Run) -> dict[str, Any]:
    """The settings of a search, whichever of its jobs asks."""
    return {k: v for k, v in asdict(run.config.search).items() if k not in JOB_KEYS}


def line_from(run: Run, bank: Bank, genome: Genome) -> tuple[Line, int]:
    """A line of genomes that goes down from a genome, and where on it that stands."""
    search = run.config.search
    if search.method in LINES:
        line = line_of(run, bank, search.method)
        return line, line.index(genome)
    held = _led_through(run, bank, genome)
    return waterfill_line(held, "none", lowest_rank(run, bank), genome), 0


def _led_through(run: Run, bank: Bank, genome: Genome) -> Bank:
    """The bank with energies whose frontier passes near a genome."""
    alike = scale_energies(bank, {}, run.config.search.normalize)
    return scale_energies(alike, weights_toward(alike, genome))


def space_of(run: Run, bank: Bank) -> GenomeSpace:
    """The genomes that a search on the end metric chooses from."""
    by_level = run.config.search.alleles == "levels"
    return make_space(bank, usable_levels(run, bank) if by_level else None, lowest_rank(run, bank))


def check_baseline(run: Run, baseline: Scores) -> None:
    """Say so where the dense model knows nothing of the task.

    Raises ValueError where no answer could be read from what it wrote.
    """
    if run.task.writing and run.task.writing.extract and (baseline.predicted < 0).all():
        raise ValueError(
            f"task '{run.task.name}': task.extract {run.task.writing.extract!r} is found in none "
            f"of the {len(baseline.predicted)} answers that the dense model wrote; mend it, or "
            "raise task.max_new_tokens."
        )
    chance = compare_with_chance(baseline, search_rows(run))
    if chance and not chance.beaten and run.leads:
        log.warning(
            "the dense model scores %.3f on the selection split, no better than chance (%.3f): "
            "whatever is kept, nothing follows; check the prompt, the labels and the model.",
            baseline.accuracy, chance.accuracy,
        )  # fmt: skip


def confirmed(
    run: Run, bank: Bank, found: dict[Genome, Score], genome: Genome, line: Line | None = None
) -> tuple[Genome, dict[str, Any] | None]:
    """The genome that unseen rows find feasible too; the one at hand where there are none.

    They are taken alone, or together with the rows of the search, where these are not fitted.
    line: genomes of all sizes, to find one between two candidates; `found` gets it, if it wins.
    """
    config = run.config
    if not confirmation_rows(run):
        return genome, None
    unseen = confirmation_objective(run, bank)
    objective: Objective | JointObjective = unseen
    again = 0
    if together := not fitted(run):
        seen = search_objective(run, bank)
        seen.evaluated = dict(found)
        again = seen.examples_scored
        objective = JointObjective([seen, unseen], together=True)
    result = confirm(objective, candidates(found, config.search.candidates), config.guarantee)
    if line is not None and not config.guarantee:
        floor = min(s.kept_fraction for s in found.values() if s.feasible)
        result = narrow(objective, result, line, bank.kept_fraction, floor)
    if together:
        found[result.genome] = seen.evaluated[result.genome]
        again = seen.examples_scored - again
    kept = [bank.kept_fraction(g) for g in (genome, result.genome)]
    log.info("confirmed    kept %5.2f %%  (%d genomes tried)", 100 * kept[1], len(result.tried))
    return result.genome, {
        "rows": len(unseen.baseline.values),
        "together": together,  # with the rows of the search
        "baseline_accuracy": objective.baseline.accuracy,
        "kept_before": kept[0],
        "kept": kept[1],
        "examples": unseen.examples_scored + again,
        "tried": [
            asdict(score)
            | {"feasible": score.feasible, "unseen_margin": unseen.evaluated[genome].margin}
            for genome, score in result.tried.items()
        ],
    }


def points(
    bank: Bank, found: Mapping[Genome, Score], chosen: Genome, method: str = ""
) -> list[dict[str, Any]]:
    """Every evaluated genome for the record, the largest first; equal ranks stand there once."""
    curve, taken = [], set[tuple[int | None, ...]]()
    for tried, score in found.items():
        if (ranks := tuple(bank.ranks(tried).values())) not in taken:
            taken.add(ranks)
            is_chosen = ranks == tuple(bank.ranks(chosen).values())
            known = {"feasible": score.feasible, "chosen": is_chosen}
            curve.append(_tried(tried, bank, method) | asdict(score) | known)
    return sorted(curve, key=lambda point: -point["kept_fraction"])


def resize(run: Run, bank: Bank, objective: Objective, genome: Genome, far: float) -> Line:
    """Score genomes of the frontier that passes near one, about where it is `far` (nats).

    And some that are larger, for the confirmation to fall back upon. Returns the frontier.
    """
    line = waterfill_line(_led_through(run, bank, genome), "none", lowest_rank(run, bank))
    place = last_within(objective, line, far)
    larger = [line.genome(max(0, place - step)) for step in LARGER]
    for genome in [*neighbors(line, place, 2 * BEFORE, AFTER), *larger]:
        objective.score(genome)
    return line


def map_bottlenecks(run: Run, bank: Bank) -> list[Bottleneck]:
    """How far each matrix alone can be pruned, on the rows that the search sees."""
    staged = search_objective(run, bank, "margin")
    return find_bottlenecks(bank, staged, lowest_rank=lowest_rank(run, bank))


def _tried(genome: Genome, bank: Bank, method: str) -> dict[str, Any]:
    """What is known of a genome before it is scored: its level, or the loss it should cost."""
    if method == "uniform":
        return {"level": next(iter(genome.levels.values()))}
    if not get_projection(bank.projection).in_loss:
        return {}
    return {"predicted_loss": estimated_rise(bank, genome)}
