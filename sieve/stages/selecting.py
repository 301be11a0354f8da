"""Choosing a genome: the frontier near it, the confirmation of winners, the record of a search."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.evaluation.evaluation import Chance, Scores, compare_with_chance
from sieve.projections import get_projection
from sieve.report.genomes import LINES
from sieve.search.bottlenecks import Bottleneck, find_bottlenecks
from sieve.search.confirmation import candidates, confirm, narrow
from sieve.search.joint_objective import JointObjective
from sieve.search.lines import (
    FALLBACKS,
    RESIZE_NEIGHBORS,
    Line,
    last_within,
    neighbors,
    waterfill_line,
)
from sieve.search.objective import Objective
from sieve.search.score import Score
from sieve.search.space import GenomeSpace, make_space
from sieve.search.waterfill import estimated_rise, scale_energies, weights_toward
from sieve.stages.cached import Record
from sieve.stages.rows import (
    confirmation_objective,
    confirmation_rows,
    overfits,
    search_objective,
    search_rows,
)
from sieve.stages.run import Run
from sieve.stages.seeds import line_of, lowest_rank, usable_levels

log = logging.getLogger(__name__)


def search_inputs(run: Run, bank: Bank) -> list[object]:
    """Everything that the choice of a genome depends on, for fingerprints."""
    config = run.config
    settings = [asdict(config.search), config.tolerance, config.test_confidence, config.seed]
    return [bank.fingerprint, run.split_key("selection"), usable_levels(run, bank), settings]


def line_from(run: Run, bank: Bank, genome: Genome) -> tuple[Line, int]:
    """A line of genomes that contains `genome`, and the index of `genome` on it."""
    search = run.config.search
    if search.method in LINES:
        line = line_of(run, bank, search.method)
        return line, line.index(genome)
    steered = _steered(run, bank, genome)
    return waterfill_line(steered, "none", lowest_rank(run, bank), genome), 0


def line_through(run: Run, bank: Bank, genome: Genome) -> Line:
    """Genomes from the dense model down, on the line of the search or on one near its winner."""
    if run.config.search.method in LINES:
        return line_of(run, bank, run.config.search.method)
    return waterfill_line(_steered(run, bank, genome), "none", lowest_rank(run, bank))


def line_down(run: Run, bank: Bank, genome: Genome) -> Line:
    """Genomes from a genome down, whose bank may have no more than the genome's ranks."""
    search, lowest = run.config.search, lowest_rank(run, bank)
    if search.method == "uniform":
        return line_of(run, bank, search.method)
    if search.method in LINES:
        return waterfill_line(bank, search.normalize, lowest, genome)
    return waterfill_line(_steered(run, bank, genome), "none", lowest, genome)


def _steered(run: Run, bank: Bank, genome: Genome) -> Bank:
    """The bank with its energies scaled so that the frontier passes near a genome."""
    normalized = scale_energies(bank, {}, run.config.search.normalize)
    return scale_energies(normalized, weights_toward(normalized, genome))


def space_of(run: Run, bank: Bank) -> GenomeSpace:
    """The genomes that random, evopress and genetic searches choose from."""
    by_level = run.config.search.alleles == "levels"
    return make_space(bank, usable_levels(run, bank) if by_level else None, lowest_rank(run, bank))


def check_baseline(run: Run, baseline: Scores) -> None:
    """Warn if the dense model is no better than chance, or worse.

    Raises:
        ValueError: no answer can be read from the texts that the dense model writes, or a model
            that guesses would be within the tolerance.
    """
    if run.task.writing and run.task.writing.extract and (baseline.predicted < 0).all():
        raise ValueError(
            f"task '{run.task.name}': task.extract {run.task.writing.extract!r} matches none of "
            f"the {len(baseline.predicted)} answers that the dense model wrote; change "
            "task.extract, or raise task.max_new_tokens."
        )
    if chance := compare_with_chance(baseline, search_rows(run)):
        _check_against_chance(run, baseline, chance)


def say_standard(run: Run, baseline: Scores) -> None:
    """Log what the search's lines compare with: the dense model's score and the tolerance."""
    if run.leads:
        log.info(
            "  %-12s kept 100.0 %%  score %.4f  tolerance %.4f",
            *("dense", baseline.accuracy, run.config.tolerance),
        )


def _check_against_chance(run: Run, baseline: Scores, chance: Chance) -> None:
    tolerance = run.config.tolerance
    margin = round(baseline.accuracy - chance.accuracy, 9)
    below = f"set tolerance below {math.floor(1000 * margin) / 1000:g}"
    if baseline.metric.agreement:
        _check_variety(run, chance.accuracy, margin <= tolerance, below)
        return
    if chance.beaten and margin <= tolerance:
        raise ValueError(
            f"tolerance={tolerance:g} is too large: a model at chance would pass, because on the "
            f"selection split chance is {chance.accuracy:.3f} and the dense model scores "
            f"{baseline.accuracy:.3f}; {below}, or choose a prompt or a model that does the task "
            "better."
        )
    if run.leads and chance.inverted:
        log.warning(
            "the dense model scores %.3f on the selection split, significantly worse than chance, "
            "so labels may be swapped; check %s.",
            baseline.accuracy,
            "the order of task.labels, and task.label_values"
            if run.task.kind == "classification"
            else "which answers the rows call right",
        )
    elif run.leads and not chance.beaten:
        log.warning(
            "the dense model scores %.3f on the selection split, no better than chance (%.3f), so "
            "the search cannot tell genomes apart; check the prompt and the labels, tune the model "
            "first with python -m sieve.tune, or use another model.",
            *(baseline.accuracy, chance.accuracy),
        )


def _check_variety(run: Run, most_common: float, passes: bool, below: str) -> None:
    """Check the dense model's own answers, which are the right ones and need no test of chance.

    Args:
        most_common: share of the rows with the most common answer.
        passes: whether a model that always gives this answer is within the tolerance.
        below: how to lower the tolerance.
    """
    rows = f"the dense model gives one answer to {most_common:.1%} of the selection rows"
    if passes and most_common < 1:
        raise ValueError(
            f"tolerance={run.config.tolerance:g} is too large: a model that always gives the same "
            f"answer would pass, because {rows}; {below}, or provide rows that it answers "
            "differently."
        )
    if passes and run.leads:
        log.warning(
            "%s, so the search cannot tell genomes apart; check the prompt, or provide rows that "
            "it answers differently.",
            rows,
        )


def confirmed(
    run: Run, bank: Bank, scores: dict[Genome, Score], genome: Genome, line: Line | None = None
) -> tuple[Genome, Record | None]:
    """The smallest genome that unseen rows find feasible too, and the record of the confirmation.

    Without confirmation rows it is `genome`, and the record is None. If the search does not overfit
    its rows, they count together with the unseen ones.

    Args:
        scores: every genome that the search scored; the winner is added.
        line: genomes of all sizes, to look for a smaller winner between two candidates.
    """
    config = run.config
    if not confirmation_rows(run):
        return genome, None
    unseen = confirmation_objective(run, bank)
    objective: Objective | JointObjective = unseen
    repeated = 0  # rows of the search that are scored again
    if together := not overfits(run):
        searched = search_objective(run, bank)
        searched.evaluated = dict(scores)
        before = searched.examples_scored
        objective = JointObjective([searched, unseen], together=True)
    ladder, certain = candidates(scores, config.search.candidates), config.confidence is not None
    result = confirm(objective, ladder, from_largest=certain)
    if line is not None and not certain:
        floor = min((s.kept_fraction for s in scores.values() if s.feasible), default=1.0)
        result = narrow(objective, result, line, bank.kept_fraction, floor)
    if together:
        scores[result.genome] = searched.evaluated[result.genome]
        repeated = searched.examples_scored - before
    kept = bank.kept_fraction(result.genome)
    log.info("confirmed    kept %5.2f %%  (%d genomes tried)", 100 * kept, len(result.tried))
    return result.genome, {
        "rows": len(unseen.baseline.values),
        "together": together,  # with the rows of the search
        "baseline_accuracy": objective.baseline.accuracy,
        "kept_before": bank.kept_fraction(genome),
        "kept": kept,
        "examples": unseen.examples_scored + repeated,
        "tried": [
            asdict(score)
            | {"feasible": score.feasible, "unseen_margin": unseen.evaluated[candidate].margin}
            for candidate, score in result.tried.items()
        ],
    }


def conclude(
    run: Run,
    bank: Bank,
    objective: Objective,
    scores: dict[Genome, Score],
    genome: Genome,
    line: Line | None,
) -> tuple[Record, Genome]:
    """Confirm the winner of a search; returns the record, without what was spent, and the genome.

    Args:
        objective: on the rows of the search.
        scores, genome, line: as for `confirmed`.
    """
    genome, confirmation = confirmed(run, bank, scores, genome, line)
    method = run.config.search.method
    return {
        "method": method,
        "baseline_accuracy": objective.baseline.accuracy,
        "baseline_loss": objective.baseline.loss,
        "tokens_per_genome": objective.tokens_per_genome,
        "confirmation": confirmation,
        "bottlenecks": map_bottlenecks(run, bank),
        "curve": points(bank, scores, genome, method),
    }, genome


def points(bank: Bank, scores: Mapping[Genome, Score], chosen: Genome, method: str) -> list[Record]:
    """A record of every scored genome, largest first; genomes of equal ranks have one."""
    by_ranks: dict[tuple[int | None, ...], Record] = {}
    chosen_ranks = tuple(bank.ranks(chosen).values())
    for genome, score in scores.items():
        ranks = tuple(bank.ranks(genome).values())
        if ranks not in by_ranks:
            status = {"feasible": score.feasible, "chosen": ranks == chosen_ranks}
            by_ranks[ranks] = _predicted(genome, bank, method) | asdict(score) | status
    return sorted(by_ranks.values(), key=lambda point: -point["kept_fraction"])


def _predicted(genome: Genome, bank: Bank, method: str) -> Record:
    """What is known of a genome without scoring it: its level, or the predicted rise in loss."""
    if method == "uniform":
        return {"level": next(iter(genome.levels.values()))}
    if not get_projection(bank.projection).needs.gradient:
        return {}
    return {"predicted_loss": estimated_rise(bank, genome)}


def score_frontier(
    run: Run, bank: Bank, objective: Objective, genome: Genome, divergence: float
) -> Line:
    """Score genomes on the frontier near a genome, around the given divergence, in nats.

    Some are much larger, as fallbacks for the confirmation. Returns the frontier.
    """
    line = waterfill_line(_steered(run, bank, genome), "none", lowest_rank(run, bank))
    index = last_within(objective, line, divergence)
    larger = [line.genome(max(0, index - steps)) for steps in FALLBACKS]
    for neighbor in [*neighbors(line, index, *RESIZE_NEIGHBORS), *larger]:
        objective.score(neighbor)
    return line


def map_bottlenecks(run: Run, bank: Bank) -> list[Bottleneck] | None:
    """How far each matrix alone can be pruned, if `search.bottlenecks` asks for it."""
    if not run.config.search.bottlenecks:
        return None
    staged = search_objective(run, bank, "margin")
    return find_bottlenecks(bank, staged, lowest_rank=lowest_rank(run, bank))
