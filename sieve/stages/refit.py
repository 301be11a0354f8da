"""refit: the chosen ranks solved again on what the pruned model sees, and smaller ones tried."""

from dataclasses import asdict, replace
from typing import Any

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.projections import get_projection
from sieve.projections.moments import BY_GRADIENT, weighting_for
from sieve.recovery.recovery import tune
from sieve.refit.refit import refit as refit_genome
from sieve.refit.refit import token_weights
from sieve.runtime.artifacts import fingerprint, read_json, write_json_atomic
from sieve.search.lines import descend
from sieve.search.score import Score
from sieve.stages.calibrate import Calibrated
from sieve.stages.rows import whole_objective
from sieve.stages.run import Run
from sieve.stages.selecting import line_from, settings_of


def refit(
    run: Run, calibrated: Calibrated, bank: Bank, genome: Genome
) -> tuple[Bank, Genome, dict[str, Any] | None]:
    """A bank and a genome at most as large, and how they came about; None where nothing is asked.

    Both are the given ones where refitted factors do worse on the selection split.
    """
    settings = run.config.projection
    dense = all(rank is None for rank in bank.ranks(genome).values())
    if dense or not (settings.refit or settings.tune_steps):
        return bank, genome, None
    key = fingerprint(
        "refit", 2, bank.fingerprint, genome.levels, settings.refit, settings.refit_tries,
        settings.refit_tokens, settings.refit_target,
        settings.tune_steps, settings.learning_rate, run.split_key("selection"),
        run.config.tolerance, run.config.guarantee, settings_of(run), run.config.seed,
    )  # fmt: skip
    bank_path = run.cache.path("refit", key, "safetensors")
    genome_path = run.cache.path("refit-genome", key, "json")
    record_path = run.cache.path("refit", key, "json")
    done = all(path.exists() for path in (bank_path, genome_path, record_path))
    with run.stage("refit", cached=done):
        if not done:
            found, chosen, record = _refit(run, calibrated, bank, genome, key)
            if run.leads:
                write_json_atomic(record_path, record)
                chosen.save(genome_path)
                found.only(chosen).save(bank_path)
    found, chosen = Bank.load(bank_path), Genome.load(genome_path)
    chosen.check_bank(found.fingerprint, found.names)
    if run.leads:
        chosen.save(run.run_dir / "genome.json")
    return found, chosen, read_json(record_path)


def _refit(
    run: Run, calibrated: Calibrated, bank: Bank, genome: Genome, key: str
) -> tuple[Bank, Genome, dict[str, Any]]:
    settings, objective = run.config.projection, whole_objective(run, bank)
    line, start = line_from(run, bank, genome)
    before = objective.score(genome)
    improve = _Improvement(run, calibrated, bank, key)
    tried: dict[str, dict[str, Any]] = {}

    def score(new: Bank, candidate: Genome) -> Score:
        result = objective.on(new).score(candidate)
        tried[candidate.bank] = asdict(result) | {"feasible": result.feasible, "refitted": True}
        return result

    best = descend(line, start, improve, score, before, settings.refit_tries)
    chosen = best.genome.bank if best else ""
    record = {
        "taken": best is not None,
        "kept_before": before.kept_fraction,
        "matrices_changed": improve.changed.get(chosen, 0),
        "examples": objective.examples_scored + sum(t["examples_used"] for t in tried.values()),
        "curve": [point | {"chosen": name == chosen} for name, point in tried.items()],
    }
    if best is None:
        return replace(bank, fingerprint=key), replace(genome, bank=key), record
    return replace(best.bank, fingerprint=key), replace(best.genome, bank=key), record


def with_refit(search: dict[str, Any], refitted: dict[str, Any] | None) -> dict[str, Any]:
    """The record of the search with that of the refit: one curve, one count of what was spent."""
    if refitted is None:
        return search | {"refit": None}
    curve = [
        point | {"chosen": point["chosen"] and not refitted["taken"]} for point in search["curve"]
    ]
    summary = {k: v for k, v in refitted.items() if k not in ("curve", "examples")}
    return search | {
        "refit": summary,
        "evaluations": search["evaluations"] + len(refitted["curve"]),
        "examples": search["examples"] + refitted["examples"],
        "curve": sorted([*curve, *refitted["curve"]], key=lambda p: -p["kept_fraction"]),
    }


class _Improvement:
    """Gives a genome refitted, or tuned, or both kinds of factors."""

    def __init__(self, run: Run, calibrated: Calibrated, bank: Bank, key: str) -> None:
        self.run, self.bank, self.key = run, bank, key
        self.moments = calibrated.moments()
        self.batches = run.data.calibration_parts(run.config.projection.refit_tokens)
        self.tries = 0
        self.changed: dict[str, int] = {}
        settings = run.config.calibration
        needs = get_projection(bank.projection).needs
        self.weights = None
        weighting = weighting_for(settings.weighting, needs)
        if run.config.projection.refit and weighting in BY_GRADIENT:
            self.weights = token_weights(
                run.backbone.model, bank.matrices, self.batches, weighting,
                answers=settings.answers, seed=run.config.seed,
            )  # fmt: skip

    def __call__(self, genome: Genome) -> tuple[Bank, Genome]:
        run, bank = self.run, self.bank
        self.tries += 1
        changed = 0
        if run.config.projection.refit:
            result = refit_genome(
                run.backbone.model,
                bank,
                genome,
                self.moments,
                self.batches,
                self.weights,
                run.config.projection.refit_target == "residual",
            )
            bank, genome, changed = result.bank, result.genome, len(result.kept)
        if steps := run.config.projection.tune_steps:
            bank, genome = tune(
                run.backbone.model, bank, genome, self.batches, steps,
                run.config.projection.learning_rate, run.config.seed,
            )  # fmt: skip
        key = f"{self.key}.{self.tries}"
        self.changed[key] = changed
        return replace(bank, fingerprint=key), replace(genome, bank=key)
