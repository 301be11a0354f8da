"""refit: the chosen ranks solved again on the pruned model's own activations.

Refitted factors are better at the same ranks, so smaller genomes are refitted and tried too.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.projections import get_projection
from sieve.projections.moments import BY_GRADIENT, weighting_for
from sieve.recovery.recovery import tune
from sieve.refit.refit import refit as refit_genome
from sieve.refit.token_weights import streamed_token_weights, token_weights
from sieve.runtime.artifacts import fingerprint, temporary_folder
from sieve.search.lines import descend
from sieve.search.score import Score
from sieve.stages.cached import BANK, GENOME, JSON, STREAMED_BANK, Record
from sieve.stages.calibrate import Calibrated
from sieve.stages.rows import confirmation_rows, selection_objective
from sieve.stages.run import Run
from sieve.stages.selecting import line_from, search_inputs
from sieve.streaming.hidden_states import hidden_states
from sieve.streaming.streamed_backbone import StreamedBackbone

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
        {
            "refit-record": JSON,
            "refit-genome": GENOME,
            "refit": STREAMED_BANK if _streams(run) else BANK,
        },
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
    tried: dict[str, Record] = {}

    def score(refitted: Bank, candidate: Genome) -> Score:
        result = objective.on(refitted).score(candidate)
        tried[candidate.bank] = asdict(result) | {"feasible": result.feasible, "refitted": True}
        return result

    # Deleted files stay readable while they are mapped.
    with _temporary_folder(run) as folder:
        improve = _Improvement(run, calibrated, bank, key, folder)
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


def _streams(run: Run) -> bool:
    """Whether the blocks of the model are read while they run."""
    return isinstance(run.backbone, StreamedBackbone) and run.config.only_runs


@contextmanager
def _temporary_folder(run: Run) -> Iterator[Path | None]:
    """A folder for what a refit writes; None if the whole model is in memory."""
    if not _streams(run):
        yield None
        return
    with temporary_folder(run.cache.root, "refit") as folder:
        yield folder


class _Improvement:
    """Refits a genome, tunes its factors, or both, as the configuration says."""

    def __init__(
        self, run: Run, calibrated: Calibrated, bank: Bank, key: str, folder: Path | None
    ) -> None:
        self.run, self.bank, self.key, self.folder = run, bank, key, folder
        self.moments = calibrated.moments()
        self.batches = run.data.calibration_parts(run.config.projection.refit_tokens)
        self.tries = 0
        self.changed: dict[str, int] = {}  # bank's fingerprint -> matrices that refitting changed
        calibration = run.config.calibration
        weighting = weighting_for(calibration.weighting, get_projection(bank.projection).needs)
        self.weights = None
        if run.config.projection.refit and weighting in BY_GRADIENT:
            options: dict[str, Any] = {"answers": calibration.answers, "seed": run.config.seed}
            if folder is not None:
                self.weights = self._streamed_weights(weighting, options)
            else:
                self.weights = token_weights(
                    run.backbone.model, bank.matrices, self.batches, weighting, **options
                )

    def _streamed_weights(self, weighting: str, options: dict[str, Any]) -> dict[str, list[Tensor]]:
        backbone, where = self.run.backbone, self.run.config.calibration.hidden
        assert isinstance(backbone, StreamedBackbone)
        with hidden_states(None if where == "memory" else self.folder) as hidden:
            return streamed_token_weights(
                backbone.blocks, self.batches, hidden, weighting, **options
            )

    def _new_folder(self) -> Path | None:
        """Where the factors of the next refit go, or None for memory."""
        if self.folder is None:
            return None
        for earlier in self.folder.iterdir():  # Genomes that are still tried keep their maps.
            shutil.rmtree(earlier, ignore_errors=True)
        path = self.folder / str(self.tries)
        path.mkdir()
        return path

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
                self._new_folder(),
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
