"""How a run trains the factors of a genome: on which rows, for how long, checked on which rows.

Checks are made on calibration rows that the training never reads, so the selection rows stay fresh.
"""

import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning as L
from scipy.special import ndtr, ndtri

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.bank.switch import Switch
from sieve.config import RecoveryConfig
from sieve.data.paired import paired_calibration_batches
from sieve.data.scored import ScoredBatch
from sieve.distributed.trainer import make_trainer
from sieve.evaluation.evaluation import score
from sieve.recovery.keeper import Check, log_check
from sieve.recovery.module import RecoveryModule, teacher_of
from sieve.recovery.recovery import recover
from sieve.recovery.teacher import TrainingBatch
from sieve.search.objective import Objective
from sieve.stages.cached import BANK, GENOME, JSON, FileFormat, Record
from sieve.stages.rows import fresh_rows, objective_on, training_rows
from sieve.stages.run import Run
from sieve.stages.splits import mixed_tasks
from sieve.stages.unlabelled import unlabelled_key, unlabelled_pairs
from sieve.tasks import Example
from sieve.tasks.scores import head_start
from sieve.tasks.splits import Reserved

log = logging.getLogger(__name__)

TIMED = 3  # batches that are timed to find how many steps fit into a time
FILES: dict[str, FileFormat[Any]] = {
    "trained-record": JSON,
    "trained-genome": GENOME,
    "trained": BANK,
}


@dataclass(frozen=True)
class Trained:
    """A trained bank, its genome, and the record of the training, which is remembered by a key."""

    record: Record
    genome: Genome
    bank: Bank

    @property
    def key(self) -> str:
        """Fingerprint of the training, and of the bank."""
        return self.bank.fingerprint

    @property
    def kept_fraction(self) -> float:
        """Kept fraction of the prunable parameters."""
        return self.bank.kept_fraction(self.genome)


class Training:
    """Trains genomes of a run, and keeps what all trainings share: rows and dense answers.

    bank: of the dense model.
    """

    def __init__(self, run: Run, bank: Bank) -> None:
        self.run, self.bank, self.settings = run, bank, run.config.recovery
        self.head_start = 0.0  # of the dense model on the held-out rows, in the tolerance's unit
        self.teacher = teacher_of(run.backbone.model, self.settings)
        self.rates = list[tuple[float, float]]()  # kept fraction and last rate of each training

    @cached_property
    def rows(self) -> Reserved[Example]:
        """Calibration rows to train on, and the ones held out for checks."""
        return training_rows(self.run)

    @cached_property
    def batches(self) -> list[TrainingBatch]:
        """The batches of all ranks."""
        run, settings = self.run, self.settings
        task = replace(run.task, splits=run.task.splits | {"calibration": self.rows.rest})
        mix = partial(mixed_tasks, run.config, task, self.rows.reserved)
        rows = run.data_of(task, settings.tokens, mix)
        dense = rows if run.dense_data is run.data else run.dense_data
        pairs = paired_calibration_batches(rows, dense, batch_tokens(run), settings.tokens)
        unlabelled = unlabelled_pairs(run, batch_tokens(run), settings.tokens)
        return [
            TrainingBatch(own, index, None if long is own else long, index < len(pairs))
            for index, (own, long) in enumerate(pairs + unlabelled)
        ]

    @cached_property
    def check_batches(self) -> Sequence[ScoredBatch]:
        """The held-out rows."""
        return self.run.data.scoring_batches(self.rows.reserved)

    @cached_property
    def fresh(self) -> Objective:
        """The objective on selection rows that have chosen nothing yet."""
        return objective_on(self.run, self.bank, [fresh_rows(self.run)])

    @cached_property
    def objective(self) -> Objective:
        """The objective on the held-out rows.

        Mostly these rows are fewer than the fresh ones that have the last word. A genome is within
        the tolerance here if it more likely than not will be there, with the run's confidence.

        A dense model that was tuned on the task's training rows knows them, and no pruned model
        can equal it there. What it does better than on fresh rows is no drop.
        """
        objective = objective_on(self.run, self.bank, [self.rows.reserved])
        self.head_start = head_start(objective.baseline, self.fresh.baseline)
        if self.head_start and self.run.leads:
            log.info(
                "  the dense model does better on calibration rows than on selection rows, as if "
                "it was trained on them: %.4f of a drop there does not count",
                self.head_start,
            )
        objective.tolerance += self.head_start
        if objective.confidence is not None:
            rows, fresh = (
                len(scores.values) for scores in (objective.baseline, self.fresh.baseline)
            )
            objective.confidence = confidence_on_fewer(objective.confidence, rows, fresh)
        return objective

    def until_accepted(
        self, bank: Bank, genome: Genome, key: str, share: float, parent: Trained | None = None
    ) -> Trained:
        """Train until a check is within the tolerance.

        For `recovery.short_steps` at most, or for a share of `recovery.minutes`.

        parent: the trained genome that this one is pruned from.
        """
        steps = self._steps(bank, genome, key, self.settings.short_steps, share)
        rate = self._rate(bank.kept_fraction(genome), parent)
        return self._train(bank, genome, key, steps, rate, accepted=True)

    def to_the_end(
        self,
        bank: Bank,
        genome: Genome,
        key: str,
        share: float = 1.0,
        parent: Trained | None = None,
    ) -> Trained:
        """Train for `recovery.steps`, or for a share of `recovery.minutes`.

        parent: the same genome after a short training.
        """
        steps = self._steps(bank, genome, key, self.settings.steps, share)
        rate = self._rate(bank.kept_fraction(genome), parent)
        return self._train(bank, genome, key, steps, rate)

    def _train(
        self,
        bank: Bank,
        genome: Genome,
        key: str,
        steps: int,
        rate: float,
        accepted: bool = False,
    ) -> Trained:
        """Train the factors of a genome, or read what an earlier run trained.

        Args:
            key: fingerprint of the training; a killed one resumes from a state under it.
            steps: of the optimizer.
            rate: the peak of the learning rate.
            accepted: end the training at the first check that is within the tolerance.
        """
        settings = replace(self.settings, steps=steps, learning_rate=rate)
        values = self.run.remembered(
            "training", key, FILES, lambda: self._compute(bank, genome, key, settings, accepted)
        )
        if self.run.leads:
            _delete(self._state_path(key))
        trained = Trained(*values)
        self.rates.append((trained.kept_fraction, trained.record["rate"]))
        return trained

    def _rate(self, kept_fraction: float, parent: Trained | None) -> float:
        """The peak of the learning rate: the configured one, or a lower one of a new start.

        A trained model goes on at its rate. Else a rate that did only harm to a smaller model would
        harm this one, which has more to lose.
        """
        if parent is not None:
            rate: float = parent.record["rate"]
            return rate
        rates = [rate for kept, rate in self.rates if kept <= kept_fraction]
        return min([self.settings.learning_rate, *rates])

    def _compute(
        self, bank: Bank, genome: Genome, key: str, settings: RecoveryConfig, accepted: bool
    ) -> tuple[Record, Genome, Bank]:
        run, model = self.run, self.run.backbone.model
        switch = Switch(model, bank, as_stored=False)
        module = RecoveryModule(switch, genome, settings, run.config.seed, self.teacher)
        module.to(model.device)
        margins = list[float]()

        def check() -> tuple[float, float]:
            with module.installed():
                scores = score(model, self.check_batches, "Scoring held-out rows")
            margins.append(self.objective.margin(scores))
            return scores.mean, -scores.loss

        def enough() -> bool:
            return accepted and margins[-1] >= 0

        result = recover(
            module,
            self.batches,
            check,
            self._trainer,
            run.config.seed,
            self._state_path(key),
            note=partial(log_checks, run),
            enough=enough,
        )
        run.settle()
        total = run.task.metric.total  # The checks are means over rows, where larger is better.
        record = {
            "method": settings.method,
            "taken": result.taken,
            "trained_parameters": sum(p.numel() for p in module.trained().values()),
            "steps": settings.steps,
            "rate": result.rate,
            "history": [
                entry | {"accuracy": float(total(entry["accuracy"]))} for entry in result.history
            ],
        }
        bank, genome = replace(result.bank, fingerprint=key), replace(result.genome, bank=key)
        return record, genome, bank.only(genome)

    def _trainer(self, callbacks: list[L.Callback], steps: int) -> L.Trainer:
        limits = {"max_steps": steps, "max_epochs": -1}
        limits["accumulate_grad_batches"] = self.settings.accumulate
        return make_trainer(self.run.config.trainer | limits, callbacks)

    def _state_path(self, key: str) -> Path:
        """Where a killed training resumes from: a file, or a folder with one per rank."""
        return self.run.cache.path("training", key, "parts" if self.run.sharded else "safetensors")

    def _steps(self, bank: Bank, genome: Genome, key: str, steps: int, share: float) -> int:
        """`steps`, or as many as fit into a share of the minutes, measured once and remembered."""
        minutes = self.settings.minutes
        if minutes is None:
            return steps
        files = {"training-steps": JSON}
        [record] = self.run.remembered(
            "timing", key, files, lambda: [self._measure(bank, genome, 60 * share * minutes)]
        )
        return int(self.run.trainer.strategy.broadcast(record["steps"]))

    def _measure(self, bank: Bank, genome: Genome, seconds: float) -> Record:
        model = self.run.backbone.model
        switch = Switch(model, bank, as_stored=False)
        module = RecoveryModule(switch, genome, self.settings, 0, self.teacher).to(model.device)
        times = [_seconds(module, batch) for batch in self.batches[: TIMED + 1]]
        per_step = sum(times[-TIMED:]) / len(times[-TIMED:]) * self.settings.accumulate
        switch.restore()
        return {"steps": max(1, round(seconds / per_step)), "seconds_per_step": per_step}


def confidence_on_fewer(confidence: float, rows: int, of: int) -> float:
    """The confidence on `rows` rows whose bound equals that of `confidence` on `of` similar rows.

    It is no greater than `confidence`. By the normal approximation, in which the distance of a
    bound from the estimate falls with the square root of the rows.
    """
    return float(ndtr(ndtri(confidence) * math.sqrt(min(1.0, rows / of))))


def batch_tokens(run: Run) -> int:
    """Padded tokens of a batch in training."""
    return min(run.config.recovery.batch_tokens, run.batch_tokens)


def training_inputs(run: Run) -> list[object]:
    """Everything that a training depends on beside bank and genome, for fingerprints."""
    splits = [run.split_key("calibration"), run.split_key("selection")]
    if run.config.recovery.unlabelled and run.task.unlabelled:
        splits.append(unlabelled_key(run))
    settings = asdict(run.config.recovery)
    return [splits, settings, batch_tokens(run), run.config.seed, run.trainer.world_size]


def log_checks(run: Run, *checks: Check) -> None:
    """Log checks of a training, and send them to W&B."""
    for check in checks:
        log_check(check)
    run.logger.log_series("recovery", checks, step="step")


def _seconds(module: RecoveryModule, batch: TrainingBatch) -> float:
    """Seconds of one batch, forwards and backwards, once the dense model's answers are known."""
    batch = batch.to(module.switch.model.device)
    if module.taught(batch):
        module.teacher.answer(batch)
    start = time.perf_counter()
    module.loss(batch).backward()
    module.zero_grad()
    return time.perf_counter() - start


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
