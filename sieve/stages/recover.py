"""recover: the pruned model trained on its task, where that helps on the selection split."""

import logging
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.distributed.trainer import make_trainer
from sieve.evaluation.evaluation import score
from sieve.recovery.keeper import Check, log_check
from sieve.recovery.module import RecoveryModule
from sieve.recovery.recovery import recover as train
from sieve.runtime.artifacts import fingerprint, read_json, write_json_atomic
from sieve.stages.run import Run

log = logging.getLogger(__name__)


def recover(run: Run, bank: Bank, genome: Genome) -> tuple[Bank, Genome, dict[str, Any] | None]:
    """A bank of the same ranks after training, and how it went; None where nothing is asked.

    Bank and genome are the given ones where no state did better on the selection split.
    """
    settings = run.config.recovery
    if settings.method == "none":
        return bank, genome, None
    if not any(bank.ranks(genome).values()):
        if run.leads:
            log.warning("recover: no matrix has factors to train, the model stays as it is.")
        return bank, genome, None
    key = fingerprint(
        "recovery", 1, bank.fingerprint, genome.levels, asdict(settings),
        run.split_key("calibration"), run.split_key("selection"), run.config.seed,
        run.trainer.world_size,  # so many batches a step
    )  # fmt: skip
    names = ("recovered", "safetensors"), ("recovered-genome", "json"), ("recovered", "json")
    bank_path, genome_path, record_path = (run.cache.path(n, key, kind) for n, kind in names)
    done = all(path.exists() for path in (bank_path, genome_path, record_path))
    with run.stage("recover", cached=done):
        if not done:
            found, chosen, record = _recover(run, bank, genome, key)
            if run.leads:
                write_json_atomic(record_path, record)
                chosen.save(genome_path)
                found.only(chosen).save(bank_path)
                _forget(_training_path(run, key))
    found, chosen = Bank.load(bank_path), Genome.load(genome_path)
    chosen.check_bank(found.fingerprint, found.names)
    record = read_json(record_path)
    if done:
        _note(run, *record["history"])
    if run.leads:
        chosen.save(run.run_dir / "genome.json")
    return found, chosen, record


def _training_path(run: Run, key: str) -> Path:
    """What a killed training goes on from: a file, or a folder with one of each rank."""
    return run.cache.path("training", key, "parts" if run.sharded else "safetensors")


def _forget(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _note(run: Run, *checks: Check) -> None:
    for check in checks:
        log_check(check)
    run.logger.log_series("recovery", checks, step="step")


def _recover(run: Run, bank: Bank, genome: Genome, key: str) -> tuple[Bank, Genome, dict[str, Any]]:
    settings, model = run.config.recovery, run.backbone.model
    module = RecoveryModule(Switch(model, bank, as_stored=False), genome, settings, run.config.seed)
    module.to(model.device)
    rows = run.data.scoring("selection")

    def look() -> tuple[float, float]:
        with module.installed():
            found = score(model, rows, "Looking at selection rows")
        return found.mean, -found.loss

    def trainer(callbacks: list[L.Callback], steps: int) -> L.Trainer:
        limits = {"max_steps": steps, "max_epochs": -1}
        more = {"accumulate_grad_batches": settings.accumulate}
        return make_trainer(run.config.trainer | limits | more, callbacks)

    batches = run.data.calibration_batches(settings.batch_tokens, settings.tokens)
    path = _training_path(run, key)
    result = train(module, batches, look, trainer, run.config.seed, path, partial(_note, run))
    run.settle()
    total = run.task.metric.total  # What was looked at are means of values, the larger the better.
    record = {
        "method": settings.method,
        "taken": result.taken,
        "trained_parameters": sum(p.numel() for p in module.trained().values()),
        "history": [h | {"accuracy": float(total(h["accuracy"]))} for h in result.history],
    }
    return result.bank, result.genome, record
