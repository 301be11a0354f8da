"""What the stages of one run share: settings, task, model, trainer, cache, and their times."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L

from sieve.artifacts import Cache, fingerprint
from sieve.backbone import Backbone, place
from sieve.config import Config
from sieve.datamodule import SieveDataModule
from sieve.tasks import Example, Task
from sieve.tracking import RunLogger

log = logging.getLogger(__name__)


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

    def settle(self) -> None:
        """Bring the model back: Lightning leaves it on the CPU after a loop."""
        place(self.backbone.model, self.device)

    def split_key(self, role: str) -> str:
        """Fingerprint of a split as the model sees it: prompts, choices and answers, in order."""
        examples: list[Example] = self.task.splits[role]
        rendering = [self.task.chat, self.task.delimiter, self.task.normalize]
        return fingerprint([[example.key, example.answer] for example in examples], rendering)
