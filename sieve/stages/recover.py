"""recover: the pruned model trained on its task, if that helps on the selection split."""

import logging
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

import lightning as L

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.distributed.trainer import make_trainer
from sieve.evaluation.evaluation import score
from sieve.recovery.keeper import Check, log_check
from sieve.recovery.module import RecoveryModule
from sieve.recovery.recovery import recover as train
from sieve.runtime.artifacts import fingerprint
from sieve.stages.cached import BANK, GENOME, JSON, Record
from sieve.stages.run import Run

log = logging.getLogger(__name__)
VERSION = 1  # of the files; part of their fingerprint


def recover(run: Run, bank: Bank, genome: Genome) -> tuple[Bank, Genome, Record | None]:
    """Train the factors; returns a bank of the same ranks, its genome and the record.

    Bank and genome stay as they are if no state of the training does better on the selection split.
    The record is None if the configuration asks for no recovery, or nothing can be trained.
    """
    settings = run.config.recovery
    if settings.method == "none":
        return bank, genome, None
    if not any(bank.ranks(genome).values()):
        if run.leads:
            log.warning("recover: no matrix has factors to train, so the model stays as it is.")
        return bank, genome, None
    splits = [run.split_key("calibration"), run.split_key("selection")]
    training = [asdict(settings), run.config.seed, run.trainer.world_size]
    key = fingerprint("recovery", VERSION, bank.fingerprint, genome.levels, splits, training)
    record, genome, bank = run.cached(
        "recover",
        key,
        {"recovered-record": JSON, "recovered-genome": GENOME, "recovered": BANK},
        lambda: _recover(run, bank, genome, key),
    )
    run.choose(bank, genome)
    if run.leads:
        _delete(_training_path(run, key))
    if run.from_cache["recover"]:
        _log_checks(run, *record["history"])
    return bank, genome, record


def _training_path(run: Run, key: str) -> Path:
    """The state from which a killed training resumes: a file, or a folder with one per rank."""
    return run.cache.path("training", key, "parts" if run.sharded else "safetensors")


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _log_checks(run: Run, *checks: Check) -> None:
    for check in checks:
        log_check(check)
    run.logger.log_series("recovery", checks, step="step")


def _recover(run: Run, bank: Bank, genome: Genome, key: str) -> tuple[Record, Genome, Bank]:
    settings, model = run.config.recovery, run.backbone.model
    module = RecoveryModule(Switch(model, bank, as_stored=False), genome, settings, run.config.seed)
    module.to(model.device)
    rows = run.data.scoring("selection")

    def check() -> tuple[float, float]:
        with module.installed():
            scores = score(model, rows, "Scoring selection rows")
        return scores.mean, -scores.loss

    def trainer(callbacks: list[L.Callback], steps: int) -> L.Trainer:
        limits = {"max_steps": steps, "max_epochs": -1}
        limits["accumulate_grad_batches"] = settings.accumulate
        return make_trainer(run.config.trainer | limits, callbacks)

    batch_tokens = min(settings.batch_tokens, run.batch_tokens)
    batches = run.data.calibration_batches(batch_tokens, settings.tokens)
    path, log_checks = _training_path(run, key), partial(_log_checks, run)
    result = train(module, batches, check, trainer, run.config.seed, path, log_checks)
    run.settle()
    total = run.task.metric.total  # The checks are means over rows, where larger is better.
    record = {
        "method": settings.method,
        "taken": result.taken,
        "trained_parameters": sum(p.numel() for p in module.trained().values()),
        "history": [
            entry | {"accuracy": float(total(entry["accuracy"]))} for entry in result.history
        ],
    }
    return record, result.genome, result.bank.only(result.genome)
