"""A genetic search, as the jobs that Hydra's genetic sweeper launches.

The sweeper knows nothing of models. Its first job (`prepare`) calibrates, fits, and writes the
space of genomes and the seeds. The next jobs (`evaluate_genomes`) score files of genomes. The last
job reads the ledger, the sweeper's file of all scored genomes; it confirms a winner
(`search_ledger`) and finishes the run.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.config import Config, SweepConfig
from sieve.runtime.artifacts import (
    append_line,
    fingerprint,
    read_json,
    whole_lines,
    write_json_atomic,
)
from sieve.search.confirmation import candidates, divergence_limit
from sieve.search.objective import Objective
from sieve.search.score import CostModel, Score
from sieve.search.space import genome_of_levels
from sieve.stages.cached import Record
from sieve.stages.calibrate import calibrate
from sieve.stages.fit import fit
from sieve.stages.ledger import Ledger, score_record
from sieve.stages.opening import opened
from sieve.stages.rows import search_objective
from sieve.stages.run import Run
from sieve.stages.seeds import find_seeds
from sieve.stages.selecting import (
    check_baseline,
    conclude,
    say_standard,
    score_frontier,
    search_inputs,
    space_of,
)

log = logging.getLogger(__name__)
SPACE_VERSION = 6  # of the file of the space; part of its fingerprint


def prepare(run: Run, bank: Bank) -> Record:
    """Write the space of genomes and the seeds; returns the path, and what finding seeds took."""
    search = run.config.search
    objective = search_objective(run, bank, "margin" if search.judge == "margin" else None)
    check_baseline(run, objective.baseline)
    say_standard(run, objective.baseline)
    seeds = find_seeds(run, bank, objective)
    key = fingerprint("space", SPACE_VERSION, search_inputs(run, bank))
    path = run.cache.path("space", key, "json")
    scored = [
        {"levels": list(genome.levels.values())} | score_record(score)
        for genome, score in objective.evaluated.items()
    ]
    write_json_atomic(path, space_of(run, bank).describe(seeds.genomes) | {"scored": scored})
    return {
        "space": str(path.absolute()),
        "bank": bank.fingerprint,
        "cost_model": asdict(seeds.cost_model) if seeds.cost_model else None,
        "order": seeds.order,
        "evaluations": len(objective.evaluated) + seeds.evaluations,
        "examples": objective.examples_scored + seeds.examples,
    }


_objectives: dict[str, Objective] = {}  # the last objective of this process, by its settings


def evaluate_genomes(config: Config, run_dir: Path) -> None:
    """Score the file `config.sweep.genomes`; the model stays loaded for the next job."""
    assert config.sweep.genomes is not None
    path = Path(config.sweep.genomes)
    key = fingerprint(asdict(replace(config, sweep=SweepConfig())))
    if key not in _objectives:
        _objectives.clear()
        # A search is one run of W&B, so its jobs log to their own metrics.jsonl only.
        quiet = replace(config, logger=replace(config.logger, wandb=False))
        with opened(quiet, run_dir) as run:
            bank = fit(run, calibrate(run))
            order = read_json(path)["prepared"]["order"]
            _objectives[key] = search_objective(run, bank, config.search.judge, order)
    score_file(_objectives[key], path)


def score_file(objective: Objective, path: Path) -> None:
    """Score the genomes of a file and append a line for each to the file of results.

    Genomes with a line there are skipped. The scoring of a genome ends early once it must cost more
    than the file's limit, the cost of the worst genome in the population.

    Raises:
        ValueError: the file names other matrices than the bank.
    """
    request, bank = read_json(path), objective.bank
    if tuple(request["names"]) != bank.names:
        raise ValueError(
            f"{path} holds genomes of another model; set another hydra.sweep.dir, or delete it."
        )
    fitted = request["prepared"]["cost_model"]
    cost_model = CostModel(**fitted) if fitted else None
    limit = (request["limit"] or {}).get("cost")
    results = Path(request["results"])
    done = {json.loads(line)["index"] for line in whole_lines(results)}
    for index, levels in enumerate(request["genomes"]):
        if index in done:
            continue
        genome, max_divergence = genome_of_levels(bank, levels), math.inf
        if cost_model and limit is not None:
            max_divergence = cost_model.max_divergence(bank.kept_fraction(genome), limit)
        score = objective.score(genome, max_divergence)
        cost = {"cost": cost_model.cost(score)} if cost_model else {}
        append_line(results, json.dumps({"index": index} | score_record(score) | cost), sync=True)


def search_ledger(run: Run, bank: Bank) -> tuple[Record, Genome]:
    """Choose the winner of all scored genomes; returns the record of the search and the genome."""
    assert run.config.sweep.ledger is not None
    ledger = Ledger(Path(run.config.sweep.ledger), bank)
    objective = search_objective(run, bank)
    seeding, evolved = ledger.seeding, ledger.evolved
    scores = _merged(seeding, evolved)
    dense = genome_of_levels(bank, [1.0] * len(bank.names))
    scores.setdefault(dense, objective.score(dense))
    examples = sum(score.examples_used for score in evolved.values())
    line = None
    if ledger.prepared["cost_model"] is not None:
        cost_model = CostModel(**ledger.prepared["cost_model"])
        best = min(evolved or scores, key=lambda genome: cost_model.cost(scores[genome]))
        line = score_frontier(run, bank, objective, best, divergence_limit(scores.values()))
        scores |= objective.evaluated
        examples += objective.examples_scored - len(objective.baseline.values)
    record, genome = conclude(run, bank, objective, scores, candidates(scores, 1)[0], line)
    return record | {
        "evaluations": ledger.prepared["evaluations"] + len(scores) - len(seeding),
        "examples": ledger.prepared["examples"] + examples,
        "generations": ledger.generations(),
        "kept_high": ledger.mean_levels(),
    }, genome


def _merged(
    seeding: Mapping[Genome, Score], evolved: Mapping[Genome, Score]
) -> dict[Genome, Score]:
    """All scores; a score on all rows goes before a score of the same genome on some rows."""
    whole = {genome: score for genome, score in seeding.items() if score.whole}
    return {**seeding, **evolved, **whole}
