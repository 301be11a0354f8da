"""search: the bank and the selection split to genome.json."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.report.genomes import front
from sieve.runtime.artifacts import fingerprint, read_json, write_json_atomic
from sieve.search.lines import smallest_feasible
from sieve.search.objective import Objective
from sieve.search.reference import Budget, search_evopress, search_random
from sieve.search.score import Score
from sieve.stages.genetic import search_ledger
from sieve.stages.rows import (
    LINES,
    confirmation_rows,
    search_objective,
)
from sieve.stages.run import Run
from sieve.stages.seeds import find_seeds, line_of, usable_levels
from sieve.stages.selecting import (
    check_baseline,
    confirmed,
    map_bottlenecks,
    points,
    settings_of,
    space_of,
)

log = logging.getLogger(__name__)


def search(run: Run, bank: Bank) -> tuple[Genome, dict[str, Any]]:
    """The genome and how it was found, chosen on the selection split alone."""
    key = fingerprint(
        "genome", 7, bank.fingerprint, run.split_key("selection"), settings_of(run),
        usable_levels(run, bank), run.config.tolerance, run.config.guarantee, run.config.seed,
    )  # fmt: skip
    genome_path = run.cache.path("genome", key, "json")
    record_path = run.cache.path("search", key, "json")
    genetic = run.config.search.method == "genetic"
    done = genome_path.exists() and record_path.exists() and not genetic
    with run.stage("search", cached=done):
        if not done:
            genome, record = search_ledger(run, bank) if genetic else _search(run, bank)
            if run.leads:
                write_json_atomic(record_path, record)
                genome.save(genome_path)
    genome, record = Genome.load(genome_path), read_json(record_path)
    genome.check_bank(bank.fingerprint, bank.names)
    if run.leads:
        genome.save(run.run_dir / "genome.json")
    _log_curve(run, record)
    return genome, record


def _log_curve(run: Run, record: dict[str, Any]) -> None:
    """The genomes of a line, of other searches those that no other one beats: smallest first.

    W&B draws them against their kept fraction. A table of the report has all.
    """
    shown: Sequence[Mapping[str, Any]] = record["curve"]
    if record["method"] not in LINES:
        shown = front(shown, "accuracy", not run.task.metric.relative)
    rising = sorted(shown, key=lambda point: point["kept_fraction"])
    run.logger.log_series("search", rising, step="kept_fraction")


def _search(run: Run, bank: Bank) -> tuple[Genome, dict[str, Any]]:
    search = run.config.search
    objective = search_objective(run, bank)
    check_baseline(run, objective.baseline)
    line = None
    if search.method in LINES:
        line = line_of(run, bank, search.method)
        if confirmation_rows(run):
            objective.score(line.genome(0))  # The dense model, the last resort.
        genome, found = smallest_feasible(objective, line), objective.evaluated
        spent = {"evaluations": len(found), "examples": objective.examples_scored}
    else:
        genome, found, spent = _reference(run, bank, objective)
    genome, confirmation = confirmed(run, bank, found, genome, line)
    record = {
        "method": search.method,
        **spent,
        "baseline_accuracy": objective.baseline.accuracy,
        "baseline_loss": objective.baseline.loss,
        "tokens_per_genome": objective.tokens_per_genome,
        "confirmation": confirmation,
        "bottlenecks": map_bottlenecks(run, bank) if search.bottlenecks else None,
        "curve": points(bank, found, genome, search.method),
    }
    return genome, record


def _reference(
    run: Run, bank: Bank, objective: Objective
) -> tuple[Genome, dict[Genome, Score], dict[str, int]]:
    """Random search or EvoPress: what it found, all that was scored, and what that has taken."""
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
            "finding seeds took %d evaluations and %d rows, all that search=%s may spend; raise "
            "search.evaluations or search.examples, or set search.seeds=[waterfill].",
            evaluations, examples, search.method,
        )  # fmt: skip
    find = search_random if search.method == "random" else search_evopress
    genome = find(
        space_of(run, bank), staged, seeds.genomes, budget, run.config.seed, search.judge
    )  # fmt: skip
    spent = {
        "evaluations": seeds.evaluations + len(staged.evaluated),
        "examples": examples + staged.examples_scored,
    }
    return genome, staged.evaluated, spent
