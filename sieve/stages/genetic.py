"""A genetic search, as the jobs of Hydra's genetic sweeper: prepare, shards, and the last job.

The sweeper knows nothing of models. The first job calibrates, fits and writes the space of genomes;
each shard is a file of genomes, evaluated on one loaded model; the last job takes the ledger of
all that were evaluated, confirms a winner on rows the search has not seen, and finishes the run.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.config import Config
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
from sieve.stages.calibrate import calibrate
from sieve.stages.fit import fit
from sieve.stages.rows import search_objective
from sieve.stages.run import Run, opened
from sieve.stages.seeds import find_seeds, usable_levels
from sieve.stages.selecting import (
    JOB_KEYS,
    check_baseline,
    confirmed,
    map_bottlenecks,
    points,
    resize,
    settings_of,
    space_of,
)

log = logging.getLogger(__name__)


def prepare(run: Run, bank: Bank) -> dict[str, Any]:
    """Write the space of genomes and its seeds; returns where, and what finding seeds has cost."""
    search = run.config.search
    objective = search_objective(run, bank, "margin" if search.judge == "margin" else None)
    check_baseline(run, objective.baseline)
    seeds = find_seeds(run, bank, objective)
    key = fingerprint(
        "space", 5, bank.fingerprint, settings_of(run), run.split_key("selection"),
        usable_levels(run, bank), run.config.tolerance, run.config.guarantee, run.config.seed,
    )  # fmt: skip
    path = run.cache.path("space", key, "json")
    known = [
        {"levels": list(genome.levels.values())} | _plain(score)
        for genome, score in objective.evaluated.items()
    ]
    write_json_atomic(path, space_of(run, bank).describe(seeds.genomes) | {"known": known})
    return {
        "space": str(path.absolute()),
        "bank": bank.fingerprint,
        "par": asdict(seeds.par) if seeds.par else None,
        "order": seeds.order,
        "evaluations": len(objective.evaluated) + seeds.evaluations,
        "examples": objective.examples_scored + seeds.examples,
    }


_objectives: dict[str, Objective] = {}  # of this process, by what they score


def run_shard(config: Config, run_dir: Path) -> None:
    """One shard of a generation, on a model that this process has loaded before if it can."""
    assert config.search.shard is not None
    settings = asdict(config)
    settings["search"] |= dict.fromkeys(JOB_KEYS)
    key = fingerprint(settings)
    if key not in _objectives:
        _objectives.clear()
        # A search is one run of W&B; its shards have a log of their own.
        quiet = replace(config, logger=replace(config.logger, wandb=False))
        with opened(quiet, run_dir) as run:
            bank = fit(run, calibrate(run))
            order = read_json(Path(config.search.shard))["prepared"]["order"]
            _objectives[key] = search_objective(run, bank, config.search.judge, order)
    evaluate_shard(_objectives[key], Path(config.search.shard))


def evaluate_shard(objective: Objective, path: Path) -> None:
    """Score the genomes of a shard's file and append a line for each to its results.

    Genomes whose line stands there already are left alone; scoring ends where one cannot cost less
    at par than the limit of the file, what the worst of the population costs.
    Raises ValueError when the names of the file are not those of the bank.
    """
    shard, bank = read_json(path), objective.bank
    if tuple(shard["names"]) != bank.names:
        raise ValueError(f"{path} holds genomes of another model; begin the search anew.")
    par = CostModel(**shard["prepared"]["par"]) if shard["prepared"]["par"] else None
    limit = (shard["limit"] or {}).get("cost")
    results = Path(shard["results"])
    done = {json.loads(line)["index"] for line in whole_lines(results)}
    for index, levels in enumerate(shard["genomes"]):
        if index not in done:
            genome, max_divergence = genome_of_levels(bank, levels), math.inf
            if par is not None and limit is not None:
                max_divergence = par.max_divergence(bank.kept_fraction(genome), limit)
            score = objective.score(genome, max_divergence)
            cost = {"cost": par.cost(score)} if par else {}
            line = json.dumps({"index": index} | _plain(score) | cost)
            append_line(results, line, sync=True)


def search_ledger(run: Run, bank: Bank) -> tuple[Genome, dict[str, Any]]:
    """The winner of all evaluated genomes, and the record of the search."""
    assert run.config.search.ledger is not None
    ledger = Ledger(Path(run.config.search.ledger), bank)
    objective = search_objective(run, bank)
    searched = ledger.found
    known = ledger.known
    # What was scored whole to find the seeds may have been dropped early when it came up again.
    found = known | searched | {g: s for g, s in known.items() if s.whole}
    dense = genome_of_levels(bank, [1.0] * len(bank.names))
    found.setdefault(dense, objective.score(dense))
    prepared, spent = ledger.prepared, sum(s.examples_used for s in searched.values())
    line = None
    if prepared["par"] is not None:
        par = CostModel(**prepared["par"])
        evolved = min(searched or found, key=lambda g: par.cost(found[g]))
        line = resize(run, bank, objective, evolved, divergence_limit(found.values()))
        found |= objective.evaluated
        spent += objective.examples_scored - len(objective.baseline.values)
    genome, confirmation = confirmed(run, bank, found, candidates(found, 1)[0], line)
    record = {
        "method": run.config.search.method,
        "evaluations": prepared["evaluations"] + len(found) - len(known),
        "examples": prepared["examples"] + spent,
        "baseline_accuracy": objective.baseline.accuracy,
        "baseline_loss": objective.baseline.loss,
        "tokens_per_genome": objective.tokens_per_genome,
        "confirmation": confirmation,
        "generations": ledger.generations(),
        "kept_high": ledger.kept_high(),
        "bottlenecks": map_bottlenecks(run, bank) if run.config.search.bottlenecks else None,
        "curve": points(bank, found, genome),
    }
    return genome, record


class Ledger:
    """The sweeper's file of generations, read as genomes and scores."""

    def __init__(self, path: Path, bank: Bank) -> None:
        header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
        self.prepared: Mapping[str, Any] = header["prepared"]
        if self.prepared["bank"] != bank.fingerprint:
            raise ValueError(
                f"{path} belongs to bank {self.prepared['bank']!r}, got {bank.fingerprint!r}; "
                "search again on this bank."
            )
        self.bank = bank
        self.variables = header["settings"]["space"]["variables"]
        self.lines = [line for line in lines if "generation" in line]

    @property
    def known(self) -> dict[Genome, Score]:
        """Every genome that was evaluated to find the seeds."""
        known = read_json(Path(self.prepared["space"]))["known"]
        return {genome_of_levels(self.bank, k["levels"]): _score(k) for k in known}

    @property
    def found(self) -> dict[Genome, Score]:
        """Every evaluated genome that did not fail, in the order of the search."""
        return {
            self._genome(positions): _score(values)
            for line in self.lines
            for positions, values in zip(line["genomes"], line["values"], strict=True)
            if "error" not in values
        }

    def generations(self) -> list[dict[str, Any]]:
        """Best feasible size so far, and the spread of sizes, of every generation."""
        rows, best = [], math.inf
        for line in self.lines:
            scores = [_score(v) for v in line["values"] if "error" not in v]
            sizes = [s.kept_fraction for s in scores]
            feasible = [s.kept_fraction for s in scores if s.feasible]
            best = min([best, *feasible])
            low, median, high = np.percentile(sizes, [10, 50, 90]) if sizes else [math.nan] * 3
            rows.append(
                {
                    "generation": line["generation"],
                    "best": best if math.isfinite(best) else None,
                    "median": float(median),
                    "low": float(low),
                    "high": float(high),
                    "feasible": len(feasible),
                    "evaluated": line["evaluated"],
                    "memo": len(line["genomes"]) - line["evaluated"],
                    "seconds": line["seconds"],
                }
            )
        return rows

    def kept_high(self) -> dict[str, float]:
        """Mean level of every matrix among the smallest tenth of the feasible genomes."""
        feasible = sorted(
            (s.kept_fraction, i) for i, s in enumerate(self.found.values()) if s.feasible
        )
        chosen = {i for _, i in feasible[: max(1, len(feasible) // 10)]}
        levels = [list(g.levels.values()) for i, g in enumerate(self.found) if i in chosen]
        means = np.mean(levels, axis=0) if levels else []
        return dict(zip(self.bank.names, map(float, means), strict=False))

    def _genome(self, positions: list[float]) -> Genome:
        levels = [v["values"][int(x)] for v, x in zip(self.variables, positions, strict=True)]
        return genome_of_levels(self.bank, levels)


def _score(values: Mapping[str, Any]) -> Score:
    return Score(
        values["kept_fraction"], values["accuracy"], values["margin"],
        int(values["examples_used"]), _number(values, "loss"), _number(values, "divergence"),
        bool(values["whole"]),
    )  # fmt: skip


def _number(values: Mapping[str, Any], name: str) -> float:
    return math.nan if values.get(name) is None else float(values[name])


def _plain(score: Score) -> dict[str, Any]:
    """A score for JSON, which has no place for numbers that are not finite."""
    numbers = {k: v if math.isfinite(v) else None for k, v in asdict(score).items()}
    return numbers | {"whole": int(score.whole)}
