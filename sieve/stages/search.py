"""search: the bank and the selection split to genome.json."""

import logging
from dataclasses import asdict
from typing import Any

from sieve.artifacts import fingerprint, read_json, write_json_atomic
from sieve.bank import Bank
from sieve.evaluation import compare_with_chance
from sieve.genome import Genome
from sieve.objective import Objective
from sieve.projections import get_projection
from sieve.search import Line, smallest, uniform_line, waterfill_line
from sieve.stages.run import Run
from sieve.waterfill import estimated_rise

log = logging.getLogger(__name__)


def search(run: Run, bank: Bank) -> tuple[Genome, dict[str, Any]]:
    """The genome and how it was found, chosen on the selection split alone."""
    config = run.config
    levels = _levels(run, bank)
    key = fingerprint(
        "genome", 3, bank.fingerprint, run.split_key("selection"),
        asdict(config.search), levels, config.tolerance, config.guarantee,
    )  # fmt: skip
    genome_path = run.cache.path("genome", key, "json")
    record_path = run.cache.path("search", key, "json")
    done = genome_path.exists() and record_path.exists()
    with run.stage("search", cached=done):
        if not done:
            genome, record = _search(run, bank)
            if run.leads:
                write_json_atomic(record_path, record)
                genome.save(genome_path)
    genome, record = Genome.load(genome_path), read_json(record_path)
    genome.check_bank(bank.fingerprint, bank.names)
    if run.leads:
        genome.save(run.run_dir / "genome.json")
    for step, point in enumerate(record["curve"]):
        numbers = {f"search/{k}": v for k, v in point.items()}
        run.logger.log_metrics(numbers, step=step)
    return genome, record


def _levels(run: Run, bank: Bank) -> list[float]:
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


def make_objective(run: Run, bank: Bank) -> Objective:
    """The objective of the run on the selection split."""
    config, batches = run.config, run.data.scoring("selection")
    return Objective(
        run.backbone.model, bank, batches, config.tolerance, config.guarantee, run.task.normalize
    )


def line_of(run: Run, bank: Bank) -> Line:
    """The genomes that the run's search chooses from."""
    search, levels = run.config.search, _levels(run, bank)
    if search.method == "uniform":
        return uniform_line(bank, levels)
    gone = any(bank.sizing.rank(m, min(levels)) == 0 for m in bank.matrices)
    return waterfill_line(bank, search.normalize, 0 if gone else 1)


def _search(run: Run, bank: Bank) -> tuple[Genome, dict[str, Any]]:
    config, objective = run.config, make_objective(run, bank)
    chance = compare_with_chance(objective.baseline, run.task.splits["selection"])
    if not chance.beaten and run.leads:
        log.warning(
            "the dense model scores %.3f on the selection split, no better than chance (%.3f): "
            "whatever is kept, nothing follows; check the prompt, the labels and the model.",
            objective.baseline.accuracy, chance.accuracy,
        )  # fmt: skip
    genome = smallest(objective, line_of(run, bank))
    curve = [
        _tried(tried, bank, config.search.method)
        | asdict(score)
        | {"feasible": score.feasible, "chosen": tried == genome}
        for tried, score in objective.evaluated.items()
    ]
    record = {
        "method": config.search.method,
        "evaluations": len(curve),
        "examples": objective.examples_scored,
        "baseline_accuracy": objective.baseline.accuracy,
        "baseline_loss": objective.baseline.loss,
        "curve": sorted(curve, key=lambda point: -point["kept_fraction"]),
    }
    return genome, record


def _tried(genome: Genome, bank: Bank, method: str) -> dict[str, Any]:
    """What is known of a genome before it is scored: its level, or the loss it should cost."""
    if method == "uniform":
        return {"level": next(iter(genome.levels.values()))}
    if not get_projection(bank.projection).in_loss:
        return {}
    return {"predicted_loss": estimated_rise(bank, genome)}
