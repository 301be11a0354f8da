"""refit: the chosen ranks solved again on the pruned model's own activations.

Refitted factors are better at the same ranks, so smaller genomes are refitted and tried too.
"""

from dataclasses import asdict, replace

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.projections import get_projection
from sieve.projections.moments import BY_GRADIENT, weighting_for
from sieve.recovery.recovery import tune
from sieve.refit.refit import refit as refit_genome
from sieve.refit.refit import token_weights
from sieve.runtime.artifacts import fingerprint
from sieve.search.lines import descend
from sieve.search.score import Score
from sieve.stages.cached import BANK, GENOME, JSON, Record
from sieve.stages.calibrate import Calibrated
from sieve.stages.rows import confirmation_rows, selection_objective
from sieve.stages.run import Run
from sieve.stages.selecting import line_from, search_inputs

VERSION = 3  # of the files; part of their fingerprint


def refit(
    run: Run, calibrated: Calibrated, bank: Bank, genome: Genome
) -> tuple[Bank, Genome, Record | None]:
    """Refit a genome; returns a bank, a genome at most as large, and the record of the stage.

    Bank and genome stay as they are if refitted factors do worse on the selection split. The record
    is None if the configuration asks for no refit, or the genome is dense.
    """
    settings = run.config.projection
    dense = all(rank is None for rank in bank.ranks(genome).values())
    if dense or not (settings.refit or settings.tune_steps):
        return bank, genome, None
    key = fingerprint("refit", VERSION, genome.levels, asdict(settings), search_inputs(run, bank))
    record, genome, bank = run.cached(
        "refit",
        key,
        {"refit-record": JSON, "refit-genome": GENOME, "refit": BANK},
        lambda: _refit(run, calibrated, bank, genome, key),
    )
    run.choose(bank, genome)
    return bank, genome, record


def _refit(
    run: Run, calibrated: Calibrated, bank: Bank, genome: Genome, key: str
) -> tuple[Record, Genome, Bank]:
    searched = None if confirmation_rows(run) else run.objectives.get(bank.fingerprint)
    scored_before = searched.examples_scored if searched else 0
    objective = selection_objective(run, bank)
    line, start = line_from(run, bank, genome)
    before = objective.score(genome)
    improve = _Improvement(run, calibrated, bank, key)
    tried: dict[str, Record] = {}

    def score(refitted: Bank, candidate: Genome) -> Score:
        result = objective.on(refitted).score(candidate)
        tried[candidate.bank] = asdict(result) | {"feasible": result.feasible, "refitted": True}
        return result

    best = descend(line, start, improve, score, before, run.config.projection.refit_tries)
    chosen, first = best[1].bank if best else "", next(iter(tried.values()))
    record = {
        "taken": best is not None,
        "kept_before": before.kept_fraction,
        "margin_before": before.margin,
        "margin_after": first["margin"],
        "matrices_changed": improve.changed.get(chosen, 0),
        "examples": objective.examples_scored
        - scored_before
        + sum(t["examples_used"] for t in tried.values()),
        "curve": [point | {"chosen": name == chosen} for name, point in tried.items()],
    }
    if best is not None:
        bank, genome = best
    bank, genome = replace(bank, fingerprint=key), replace(genome, bank=key)
    return record, genome, bank.only(genome)


def with_refit(search: Record, refitted: Record | None) -> Record:
    """The record of the search and of the refit in one: one curve, one count of examples."""
    if refitted is None:
        return search | {"refit": None}
    curve = [
        point | {"chosen": point["chosen"] and not refitted["taken"]} for point in search["curve"]
    ]
    return search | {
        "refit": {k: v for k, v in refitted.items() if k not in ("curve", "examples")},
        "evaluations": search["evaluations"] + len(refitted["curve"]),
        "examples": search["examples"] + refitted["examples"],
        "curve": sorted([*curve, *refitted["curve"]], key=lambda p: -p["kept_fraction"]),
    }


class _Improvement:
    """Refits a genome, tunes its factors, or both, as the configuration says."""

    def __init__(self, run: Run, calibrated: Calibrated, bank: Bank, key: str) -> None:
        self.run, self.bank, self.key = run, bank, key
        self.moments = calibrated.moments()
        self.batches = run.data.calibration_parts(run.config.projection.refit_tokens)
        self.tries = 0
        self.changed: dict[str, int] = {}  # bank's fingerprint -> matrices that refitting changed
        calibration = run.config.calibration
        weighting = weighting_for(calibration.weighting, get_projection(bank.projection).needs)
        self.weights = None
        if run.config.projection.refit and weighting in BY_GRADIENT:
            self.weights = token_weights(
                run.backbone.model,
                bank.matrices,
                self.batches,
                weighting,
                answers=calibration.answers,
                seed=run.config.seed,
            )

    def __call__(self, genome: Genome) -> tuple[Bank, Genome]:
        run, bank, settings = self.run, self.bank, self.run.config.projection
        self.tries += 1
        changed = 0
        if settings.refit:
            result = refit_genome(
                run.backbone.model,
                bank,
                genome,
                self.moments,
                self.batches,
                self.weights,
                settings.refit_target == "residual",
            )
            bank, genome, changed = result.bank, result.genome, len(result.kept)
        if settings.tune_steps:
            bank, genome = tune(
                run.backbone.model,
                bank,
                genome,
                self.batches,
                steps=settings.tune_steps,
                learning_rate=settings.learning_rate,
                seed=run.config.seed,
            )
        key = f"{self.key}.{self.tries}"
        self.changed[key] = changed
        return replace(bank, fingerprint=key), replace(genome, bank=key)
