"""search: the genome, chosen on the selection split alone."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.report.genomes import LINES, front
from sieve.runtime.artifacts import fingerprint
from sieve.search.lines import Line, smallest_feasible
from sieve.search.objective import Objective
from sieve.search.reference import Budget, search_evopress, search_random
from sieve.search.score import Score
from sieve.stages.cached import GENOME, JSON, Record
from sieve.stages.genetic import search_ledger
from sieve.stages.rows import confirmation_rows, search_objective, searched_objective
from sieve.stages.run import Run
from sieve.stages.seeds import find_seeds, line_of
from sieve.stages.selecting import check_baseline, conclude, say_standard, search_inputs, space_of

log = logging.getLogger(__name__)
VERSION = 10  # of the search and its files; part of their fingerprint


def search(run: Run, bank: Bank) -> tuple[Genome, Record]:
    """Choose the genome; returns it and the record of the search."""
    key = fingerprint("genome", VERSION, search_inputs(run, bank))
    genetic = run.config.search.method == "genetic"
    record, genome = run.cached(
        "search",
        key,
        {"search": JSON, "genome": GENOME},
        lambda: search_ledger(run, bank) if genetic else _search(run, bank),
        reuse=not genetic,  # The key does not cover the ledger.
    )
    run.choose(bank, genome)
    _log_curve(run, record)
    return genome, record


def _log_curve(run: Run, record: Record) -> None:
    """Log the genomes of a line, or of other searches the front; smallest first.

    W&B draws them against the kept fraction. The report has a table of every genome.
    """
    shown: Sequence[Mapping[str, Any]] = record["curve"]
    if record["method"] not in LINES:
        shown = front(shown, "accuracy", not run.task.metric.relative)
    rising = sorted(shown, key=lambda point: point["kept_fraction"])
    run.logger.log_series("search", rising, step="kept_fraction")


def _search(run: Run, bank: Bank) -> tuple[Record, Genome]:
    method = run.config.search.method
    objective = searched_objective(run, bank)
    check_baseline(run, objective.baseline)
    say_standard(run, objective.baseline)
    line = None
    if method in LINES:
        line = line_of(run, bank, method)
        if confirmation_rows(run):
            objective.score(line.genome(0))  # The dense model, if no other genome is confirmed.
        genome, scores = _smallest(run, objective, line), objective.evaluated
        spent = {"evaluations": len(scores), "examples": objective.examples_scored}
    else:
        genome, scores, spent = _evolve(run, bank, objective)
    record, genome = conclude(run, bank, objective, scores, genome, line)
    return record | spent, genome


def _smallest(run: Run, objective: Objective, line: Line) -> Genome:
    """The smallest feasible genome of a line, on all rows of the search.

    With a confidence, genomes on the way are scored on as few rows as show whether they are almost
    surely within ε. If the last of them is refused on all rows, all are scored there.
    """
    strict = run.config.confidence is not None
    objective.provisional = strict and not confirmation_rows(run)
    genome = smallest_feasible(objective, line, strict)
    objective.provisional = False
    score = objective.evaluated.get(genome)
    if score is None or score.whole or objective.score(genome).feasible:
        return genome
    return smallest_feasible(objective, line, strict)


def _evolve(
    run: Run, bank: Bank, objective: Objective
) -> tuple[Genome, dict[Genome, Score], dict[str, int]]:
    """Random search or EvoPress: the winner, all scores, and the evaluations and rows spent."""
    search = run.config.search
    seeds = find_seeds(run, bank, objective)
    judge = "margin" if search.method == "random" else search.judge
    staged = search_objective(run, bank, judge, seeds.order if judge == "divergence" else None)
    staged.evaluated = dict(objective.evaluated)
    evaluations = len(objective.evaluated) + seeds.evaluations
    examples = objective.examples_scored + seeds.examples
    budget = Budget(
        search.evaluations - evaluations,
        math.inf if search.examples is None else search.examples - examples,
    )
    if not budget.left and run.leads:
        log.warning(
            "finding seeds took %d evaluations and %d rows, the whole budget of search=%s; raise "
            "search.evaluations or search.examples, or set search.seeds=[waterfill].",
            *(evaluations, examples, search.method),
        )
    find = search_random if search.method == "random" else search_evopress
    space = space_of(run, bank)
    genome = find(space, staged, seeds.genomes, budget, run.config.seed, search.judge)
    spent = {
        "evaluations": seeds.evaluations + len(staged.evaluated),
        "examples": examples + staged.examples_scored,
    }
    return genome, staged.evaluated, spent
