"""The stages of one run. Each takes what the one before it wrote and writes one artifact.

A finished stage is found again by the fingerprint of everything it depends on, and is not redone:
not by a second run, not by another ε, not after a kill.
"""

import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch

import sieve.projections
from sieve.artifacts import Cache, fingerprint, hash_files, read_json, write_json_atomic
from sieve.backbone import Backbone, place
from sieve.bank import FORMAT as BANK_FORMAT
from sieve.bank import Bank, fit
from sieve.batches import count_rows
from sieve.calibration import CalibrationModule
from sieve.config import Config
from sieve.datamodule import SieveDataModule
from sieve.evaluation import Scores, ScoringModule, compare_with_chance, paired_drop
from sieve.export import export
from sieve.factorized import Switch
from sieve.genome import Genome
from sieve.memory import peak_memory_mib
from sieve.moments import FORMAT as MOMENTS_FORMAT
from sieve.moments import Moments
from sieve.objective import Objective
from sieve.report import figures, write_report
from sieve.result import flatten, matrix_table, provenance, sizes, spectrum
from sieve.search import search_uniform
from sieve.speed import compare_speed, describe_machine
from sieve.tasks import Example, Task
from sieve.tracking import RunLogger

log = logging.getLogger(__name__)
STAGES = ("calibrate", "fit", "search", "evaluate", "export", "report")


class Run:
    """What the stages of one run share, and how long each took."""

    def __init__(
        self,
        config: Config,
        task: Task,
        backbone: Backbone,
        trainer: L.Trainer,
        logger: RunLogger,
        run_dir: Path,
    ) -> None:
        self.config, self.task, self.backbone = config, task, backbone
        self.trainer, self.logger, self.run_dir = trainer, logger, run_dir
        self.device = backbone.model.device
        self.cache = Cache(Path(config.paths.cache_dir))
        self.seconds: dict[str, float] = {}
        self.cached: dict[str, bool] = {}
        self.calibration: dict[str, Any] = {}
        self.data = SieveDataModule(
            task,
            backbone.tokenizer,
            config.batch_tokens,
            config.calibration.tokens,
            config.seed,
            backbone.context_length,
        )

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.trainer.is_global_zero

    @contextmanager
    def stage(self, name: str, cached: bool = False) -> Iterator[None]:
        """Time a stage and say that it begins; every rank waits at its end."""
        start = time.perf_counter()
        self.cached[name] = cached
        if self.leads:
            log.info("%s%s", name, ": finished before" if cached else "")
        yield
        self.trainer.strategy.barrier(name)
        self.seconds[name] = round(time.perf_counter() - start, 3)
        if self.leads and not cached:
            log.info("%s: done in %.1f s", name, self.seconds[name])
        self.logger.log_metrics({f"{name}/seconds": self.seconds[name], f"{name}/cached": cached})

    def calibrate(self) -> tuple[str, Path]:
        """Moments of the task's prompts; returns their fingerprint and file."""
        settings = asdict(self.config.calibration)
        key = fingerprint(
            "moments", MOMENTS_FORMAT, self.backbone.fingerprint, str(self.backbone.model.dtype),
            self.config.model.attn_implementation, settings, self.config.seed,
            digest(self.task.splits["calibration"]), self._rendering(),
        )  # fmt: skip
        path = self.cache.path("moments", key, "safetensors")
        record_path = self.cache.path("calibration", key, "json")
        done = path.exists() and record_path.exists()
        with self.stage("calibrate", cached=done):
            if not done:
                module = CalibrationModule(self.backbone.model)
                self.trainer.predict(module, datamodule=self.data, return_predictions=False)
                assert module.moments is not None
                tokens, rows = module.moments.tokens, count_rows(self.data.calibration())
                record = {"tokens": tokens, "tokens_asked": settings["tokens"], "rows": rows}
                if self.leads:
                    write_json_atomic(record_path, record)
                    Moments(module.moments.entries, key).save(path)
                self.logger.log_metrics({f"calibrate/{name}": n for name, n in record.items()})
                self._settle()
        self.calibration = read_json(record_path)
        return key, path

    def fit(self, moments_key: str, moments_path: Path) -> Bank:
        """Nested factors of every matrix."""
        projections = hash_files(list(Path(sieve.projections.__file__).parent.glob("*.py")))
        key = fingerprint(
            "bank", BANK_FORMAT, moments_key, asdict(self.config.projection), projections,
            str(self.backbone.storage_dtype),
        )  # fmt: skip
        path = self.cache.path("bank", key, "safetensors")
        with self.stage("fit", cached=path.exists()):
            if not path.exists() and self.leads:
                moments = Moments.load(moments_path)
                projection = self.config.projection
                fit(
                    self.backbone.model, moments, projection.name, projection.storage,
                    projection.rank_multiple, self._bank_dtype(), key,
                ).save(path)  # fmt: skip
        return Bank.load(path)

    def search(self, bank: Bank) -> tuple[Genome, dict[str, Any]]:
        """The genome and how it was found, chosen on the selection split alone."""
        config = self.config
        levels = self._levels(bank)
        key = fingerprint(
            "genome", 2, bank.fingerprint, digest(self.task.splits["selection"]),
            asdict(config.search), levels, config.tolerance, config.guarantee, self._rendering(),
        )  # fmt: skip
        genome_path = self.cache.path("genome", key, "json")
        record_path = self.cache.path("search", key, "json")
        done = genome_path.exists() and record_path.exists()
        with self.stage("search", cached=done):
            if not done:
                genome, record = self._search(bank, levels)
                if self.leads:
                    write_json_atomic(record_path, record)
                    genome.save(genome_path)
        genome, record = Genome.load(genome_path), read_json(record_path)
        genome.check_bank(bank.fingerprint, bank.names)
        if self.leads:
            genome.save(self.run_dir / "genome.json")
        for step, point in enumerate(record["curve"]):
            numbers = {f"search/{k}": v for k, v in point.items()}
            self.logger.log_metrics(numbers, step=step)
        return genome, record

    def evaluate(self, bank: Bank, genome: Genome) -> dict[str, Any]:
        """Dense and pruned model on the test split, once: scores, interval, size, speed."""
        key = fingerprint(
            "evaluation", 1, bank.fingerprint, genome.levels, asdict(self.config.speed),
            digest(self.task.splits["test"]), self.config.seed, self._rendering(),
            platform.node(), describe_machine(self.device),
        )  # fmt: skip
        path = self.cache.path("evaluation", key, "json")
        with self.stage("evaluate", cached=path.exists()):
            if not path.exists():
                figures = self._evaluate(bank, genome)
                if self.leads:
                    write_json_atomic(path, figures)
        return read_json(path)

    def export(self, bank: Bank, genome: Genome) -> Path | None:
        """The model directory."""
        if self.config.export.format == "none":
            return None
        with self.stage("export"):
            if self.leads:
                with Switch(self.backbone.model, bank).to(genome):
                    export(
                        self.backbone.model, self.backbone.tokenizer, self.run_dir / "export",
                        self.config.export.format, bank.dtype,
                    )  # fmt: skip
        return self.run_dir / "export"

    def report(
        self,
        bank: Bank,
        genome: Genome,
        search: dict[str, Any],
        evaluation: dict[str, Any],
        command: str,
    ) -> dict[str, Any]:
        """result.json, report.html, and the same in the run's log."""
        with self.stage("report"):
            result = self._result(bank, genome, search, evaluation, command)
            if self.leads:
                write_json_atomic(self.run_dir / "result.json", result)
                write_report(result, self.run_dir / "report.html")
                self.logger.log_figures(figures(result))
                self.logger.log_table("genome", result["matrices"])
                self.logger.log_table("curve", search["curve"])
                self.logger.log_summary(flatten(result))
        result["seconds"]["report"] = self.seconds["report"]
        result["cached"]["report"] = False
        if self.leads:
            write_json_atomic(self.run_dir / "result.json", result)
        return result

    def _result(
        self,
        bank: Bank,
        genome: Genome,
        search: dict[str, Any],
        evaluation: dict[str, Any],
        command: str,
    ) -> dict[str, Any]:
        config = self.config
        return (
            provenance(command, self.device)
            | {
                "task": self.task.name,
                "domain": self.task.domain,
                "model": self.backbone.name,
                "seed": config.seed,
                "tolerance": config.tolerance,
                "guarantee": config.guarantee,
                "metric": self.task.metric,
                "projection": bank.projection,
                "storage": bank.sizing.storage,
            }
            | evaluation
            | sizes(
                bank,
                genome,
                self.backbone.parameters,
                self.backbone.storage_dtype,
                merged=config.export.format == "dense",
            )
            | {
                "search": search,
                "data": self.task.report,
                "calibration": self.calibration,
                "seconds": dict(self.seconds),
                "cached": dict(self.cached),
                "matrices": matrix_table(bank, genome),
                "spectrum": spectrum(bank),
            }
        )

    def _levels(self, bank: Bank) -> list[float]:
        """The levels to choose from: all, or those that can be exported as asked for.

        Raises ValueError where none can be.
        """
        levels, model = self.config.search.levels, self.backbone.model
        if self.config.export.format != "dense" or all(
            getattr(model.get_submodule(name), "bias", None) is not None for name in bank.names
        ):
            return levels
        if bank.sizing.fits_bias:
            raise ValueError(
                f"projection={bank.projection} fits biases, and {type(model).__name__} has no "
                "place for them in dense weights; use export=factorized, or projection=output."
            )
        able = [x for x in levels if all(bank.sizing.rank(m, x) != 0 for m in bank.matrices)]
        if self.leads and len(able) < len(levels):
            log.info("levels of rank 0 are left out: dense weights have no place for their bias")
        return able

    def _search(self, bank: Bank, levels: list[float]) -> tuple[Genome, dict[str, Any]]:
        config, batches = self.config, self.data.scoring("selection")
        objective = Objective(
            self.backbone.model, bank, batches, config.tolerance, config.guarantee,
            self.task.normalize,
        )  # fmt: skip
        chance = compare_with_chance(objective.baseline, self.task.splits["selection"])
        if not chance.beaten and self.leads:
            log.warning(
                "the dense model scores %.3f on the selection split, no better than chance (%.3f): "
                "whatever is kept, nothing follows; check the prompt, the labels and the model.",
                objective.baseline.accuracy, chance.accuracy,
            )  # fmt: skip
        genome = search_uniform(bank, objective, levels)
        curve = [
            {"level": next(iter(tried.levels.values())), **asdict(score),
             "feasible": score.feasible, "chosen": tried == genome}
            for tried, score in objective.evaluated.items()
        ]  # fmt: skip
        record = {
            "method": config.search.method,
            "evaluations": len(curve),
            "examples": objective.examples_scored,
            "baseline_accuracy": objective.baseline.accuracy,
            "curve": sorted(curve, key=lambda point: -point["kept_fraction"]),
        }
        return genome, record

    def _evaluate(self, bank: Bank, genome: Genome) -> dict[str, Any]:
        speed = self.config.speed
        with Switch(self.backbone.model, bank) as switch:
            baseline = self._test()
            switch.to(genome)
            pruned = self._test()
            timed = None
            if speed.enabled and self.leads:
                options = {k: v for k, v in asdict(speed).items() if k != "enabled"}
                timed = asdict(compare_speed(switch, genome, **options))
        drop = paired_drop(baseline.correct, pruned.correct, self.config.seed)
        chance = compare_with_chance(baseline, self.task.splits["test"])
        self.logger.log_metrics(
            {"evaluate/baseline_accuracy": baseline.accuracy,
             "evaluate/pruned_accuracy": pruned.accuracy, "evaluate/drop": drop.point}
        )  # fmt: skip
        return {
            "baseline": {
                "accuracy": baseline.accuracy,
                "chance": chance.accuracy,
                "beats_chance": chance.beaten,
            },
            "pruned": {"accuracy": pruned.accuracy},
            "examples": len(baseline.correct),
            "drop": asdict(drop),
            "memory": {"peak_mib": peak_memory_mib(self.device)},
            "speed": timed,
        }

    def _test(self) -> Scores:
        """Score the model as it stands on the test split, under the trainer."""
        examples = len(self.task.splits["test"])
        module = ScoringModule(self.backbone.model, examples, self.task.normalize)
        self.trainer.test(module, datamodule=self.data, verbose=False)
        self._settle()
        assert module.scores is not None
        return module.scores

    def _settle(self) -> None:
        """Bring the model back: Lightning leaves it on the CPU after a loop."""
        place(self.backbone.model, self.device)

    def _rendering(self) -> list[Any]:
        return [self.task.chat, self.task.delimiter, self.task.normalize]

    def _bank_dtype(self) -> torch.dtype:
        name = self.config.projection.dtype
        return self.backbone.storage_dtype if name == "auto" else getattr(torch, name)


def digest(examples: list[Example]) -> str:
    """Fingerprint of a split: its prompts, choices and answers, in order."""
    return fingerprint([[example.key, example.answer] for example in examples])
