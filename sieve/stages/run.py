"""What the stages of one run share: settings, task, model, trainer, cache, logger and timings."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from transformers import PreTrainedTokenizerBase

from sieve.bank.bank import Bank
from sieve.bank.genome import Genome
from sieve.config import Config
from sieve.data.classifier import classes_of
from sieve.data.datamodule import SieveDataModule
from sieve.data.sharing import prefix_sharing_of
from sieve.data.token_cache import CachedTokenizer
from sieve.distributed.sharding import is_sharded
from sieve.model.backbone import Backbone, is_classifier, place
from sieve.runtime.artifacts import Cache, fingerprint
from sieve.search.objective import Objective
from sieve.stages.batch_size import batch_tokens
from sieve.stages.cached import FileFormat
from sieve.stages.outline import Outline
from sieve.stages.splits import mixed_tasks, split_key
from sieve.streaming.offloaded import is_offloaded
from sieve.tasks import Example, Task, build_task
from sieve.tasks.summary import describe_rows
from sieve.tracking.logger import RunLogger
from sieve.vocabulary.backbone import CutBackbone

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What the stages of one run share, and how long each stage took."""

    config: Config
    task: Task
    backbone: Backbone
    trainer: L.Trainer
    logger: RunLogger
    run_dir: Path
    # The task as the dense model reads it; None: as `task`, which the pruned model reads.
    dense_task: Task | None = None
    # Objectives of searches, by the fingerprint of the bank.
    objectives: dict[str, Objective] = field(default_factory=dict)
    # The backbone with and without all tokens, if `backbone` has only the task's.
    cut: CutBackbone | None = None
    outline: Outline = field(default_factory=lambda: Outline(()))  # the stages that are numbered
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    from_cache: dict[str, bool] = field(default_factory=dict)  # by stage

    @cached_property
    def cache(self) -> Cache:
        """The folder of finished stages."""
        return Cache(Path(self.config.paths.cache_dir))

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.backbone.device

    @property
    def model_key(self) -> list[object]:
        """What the numbers of the dense model depend on, beside its rows."""
        attention = self.config.model.attn_implementation
        return [self.backbone.fingerprint, str(self.backbone.dtype), attention]

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.trainer.is_global_zero

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a shard of the model's weights, so that all ranks must act."""
        return is_sharded(self.backbone.model)

    @property
    def in_parts(self) -> bool:
        """Whether other processes or files hold parts of the model."""
        return self.sharded or is_offloaded(self.backbone.model)

    @property
    def recovers(self) -> bool:
        """Whether sizes are tried by what they are after training."""
        return self.config.recovers

    @cached_property
    def data(self) -> SieveDataModule:
        """The batches of the run's task as the pruned model reads it."""
        mix = partial(mixed_tasks, self.config, self.task)
        return self.data_of(self.task, self.config.calibration.tokens, mix)

    @cached_property
    def dense_data(self) -> SieveDataModule:
        """The batches of the run's task as the dense model reads it; `data` if it reads the same.

        Its splits have the same rows in the same order.
        """
        return self.data if self.dense_task is None else self.data_of(self.dense_task)

    @cached_property
    def original_data(self) -> SieveDataModule:
        """As `dense_data`, with all tokens of the original tokenizer."""
        if self.cut is None:
            return self.dense_data
        return self.data_of(self.dense_task or self.task, backbone=self.cut.original)

    def original_model(self) -> AbstractContextManager[None]:
        """The dense model that results compare with, in the block; `original_data` is for it.

        Outside the block the dense model has the tokens of `vocabulary` alone.
        """
        return nullcontext() if self.cut is None else self.cut.vocabulary.whole()

    def familiar(self, task: Task, examples: Sequence[Example]) -> list[bool]:
        """Whether the original tokenizer encodes each example with tokens that stay alone.

        These examples have batches apart in both models, so their logits are the same numbers.
        """
        assert self.cut is not None
        reader = replace(self.original_data.reader, cut=None)
        return [self.cut.stays >= one.vocabulary for one in reader.encode(task, examples)]

    @cached_property
    def original_others(self) -> dict[str, SieveDataModule]:
        """As `others`, with all tokens of the original tokenizer."""
        if (cut := self.cut) is None:
            return self.others
        return {n: self.data_of(d.task, backbone=cut.original) for n, d in self.others.items()}

    @cached_property
    def others(self) -> dict[str, SieveDataModule]:
        """The tasks of `also`, except those with the same test split as the run's own task."""
        own = split_key(self.dense_task or self.task, "test")
        tasks = {name: build_task(t, self.config.seed) for name, t in self.config.also.items()}
        return {n: self.data_of(t) for n, t in tasks.items() if split_key(t, "test") != own}

    @cached_property
    def batch_tokens(self) -> int:
        """Tokens of a pass, the same on every rank."""
        tokens = batch_tokens(self.config, self.task, self.backbone)
        return int(self.trainer.strategy.broadcast(tokens))

    def data_of(
        self,
        task: Task,
        tokens: int | None = None,
        mix: Callable[[], Sequence[tuple[Task, float]]] | None = None,
        backbone: Backbone | None = None,
    ) -> SieveDataModule:
        """The batches of a task for the run's model; arguments as for `SieveDataModule`.

        backbone: whose tokenizer encodes; by default the run's.
        """
        backbone, config = backbone or self.backbone, self.config
        model = backbone.skeleton
        tokenizer = CachedTokenizer(backbone.tokenizer, self.cache, backbone.fingerprint)
        return SieveDataModule(
            task,
            cast(PreTrainedTokenizerBase, tokenizer),
            batch_tokens=self.batch_tokens,
            calibration_tokens=None if config.calibration.rows else tokens,
            calibration_rows=config.calibration.rows,
            seed=config.seed,
            context_length=backbone.context_length,
            classes=partial(classes_of, model) if is_classifier(model) else None,
            mix=mix,
            sharing=prefix_sharing_of(model, config.share_prefix, lambda: backbone.model),
            share_calibration=config.calibration.strategy == "whole",
            apart=self.familiar if self.cut else None,
        )

    def check_tasks(self) -> None:
        """Build every task of the run, so that a faulty one fails before anything is computed.

        Raises:
            ValueError or RuntimeError: a task is faulty, a row is longer than the context, or a
                classifier cannot do the task.
        """
        tasks = [self.task, *(t for t, _ in self.data.mix), *(d.task for d in self.others.values())]
        if is_classifier(self.backbone.skeleton):
            for task in tasks:
                classes_of(self.backbone.skeleton, task)
            if self.config.calibration.weighting == "answer":
                raise ValueError(
                    "calibration.weighting=answer weights tokens that predict an answer, and a "
                    "classifier has none; set calibration.weighting=auto."
                )
        self._check_lengths()
        if self.leads:
            for name, data in self.others.items():
                for line in describe_rows(data.task):
                    log.info("also.%s: %s", name, line)

    def _check_lengths(self) -> None:
        """Say how long the longest scored row is; ValueError if it does not fit in the context."""
        models = {id(data): data for data in (self.data, self.original_data)}
        tokens = [self._longest(data) for data in (*models.values(), *self.others.values())][0]
        if self.leads:
            limit = self.backbone.context_length
            most = "" if limit is None else f" of at most {limit:,}"
            log.info("The longest selection or test row has %s%s tokens.", f"{tokens:,}", most)

    def _longest(self, data: SieveDataModule) -> int:
        splits = data.task.splits
        return data.reader.longest(data.task, [*splits["selection"], *splits["test"]])

    @contextmanager
    def stage(self, name: str, cached: bool = False) -> Iterator[None]:
        """Time a stage, log its start and end, and let every rank wait at its end."""
        start = time.perf_counter()
        self.from_cache[name] = cached
        if self.leads:
            log.info(self.outline.line(name, cached))
        yield
        self.trainer.strategy.barrier(name)
        self.seconds[name] = round(time.perf_counter() - start, 3)
        if not cached:
            self.outline.finish(name, self.seconds[name])
        if self.leads and not cached:
            log.info("%s: done in %.1f s", name, self.seconds[name])
        self.logger.log_metrics({f"{name}/seconds": self.seconds[name], f"{name}/cached": cached})

    def cached(
        self,
        stage: str,
        key: str,
        files: Mapping[str, FileFormat[Any]],
        compute: Callable[[], Sequence[object]],
        *,
        beside: Sequence[Path] = (),
        reuse: bool = True,
    ) -> list[Any]:
        """The values of a stage: read from the cache if all of its files exist, else computed.

        Every rank computes, the leading rank writes the files, and every rank reads them.

        Args:
            key: fingerprint of everything that the values depend on.
            files: for each value the name of its file in the cache and the format.
            compute: returns the values, in the order of `files`.
            beside: files that `compute` writes itself; they must exist too.
            reuse: False computes the values even if their files exist.
        """
        done = reuse and self.has(key, files) and all(path.exists() for path in beside)
        with self.stage(stage, cached=done):
            return self.remembered(stage, key, files, compute, reuse=done)

    def has(self, key: str, files: Mapping[str, FileFormat[Any]]) -> bool:
        """Whether all files of a value are in the cache."""
        return all(self.cache.path(n, key, form.suffix).exists() for n, form in files.items())

    def remembered(
        self,
        what: str,
        key: str,
        files: Mapping[str, FileFormat[Any]],
        compute: Callable[[], Sequence[object]],
        *,
        reuse: bool = True,
    ) -> list[Any]:
        """As `cached`, for a part of a stage.

        what: name of the part, for the barrier between the ranks.
        """
        paths = [self.cache.path(name, key, form.suffix) for name, form in files.items()]
        if not (reuse and self.has(key, files)):
            values = compute()
            if values and self.leads:
                for form, value, path in zip(files.values(), values, paths, strict=True):
                    form.write(value, path)
        self.trainer.strategy.barrier(what)
        return [form.read(path) for form, path in zip(files.values(), paths, strict=True)]

    def choose(self, bank: Bank, genome: Genome) -> None:
        """Write the genome to the run directory; ValueError if it belongs to another bank."""
        genome.check_bank(bank.fingerprint, bank.names)
        if self.leads:
            genome.save(self.run_dir / "genome.json")

    def settle(self) -> None:
        """Move the model back to its device: Lightning leaves it on the CPU after a loop."""
        if not self.sharded:  # The strategy of a sharded model does not move it.
            place(self.backbone.model, self.device)

    def split_key(self, role: str) -> str:
        """Fingerprint of a split as both models see it: prompts, choices and answers, in order."""
        key = self._split_key(role)
        if self.dense_task is None:
            return key
        return fingerprint(key, split_key(self.dense_task, role))

    def _split_key(self, role: str) -> str:
        if role == "calibration" and [task for task, _ in self.data.mix] != [self.task]:
            return fingerprint([[split_key(task, role), share] for task, share in self.data.mix])
        return split_key(self.task, role)
