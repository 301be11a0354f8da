"""What the stages of one run share: settings, task, model, trainer, cache, and their times."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning as L

from sieve.config import Config
from sieve.data.classifier import classes_of
from sieve.data.datamodule import SieveDataModule
from sieve.data.prefix import prefix_sharing_of
from sieve.data.token_cache import CachedTokenizer
from sieve.distributed.sharding import is_sharded, shard
from sieve.distributed.strategy import join
from sieve.distributed.trainer import make_trainer
from sieve.exports.export import check_format
from sieve.model.backbone import Backbone, is_classifier, load_backbone, place
from sieve.model.checkpoint_files import find_model
from sieve.model.matrices import check_supported
from sieve.quantization import check_available
from sieve.runtime.artifacts import Cache, fingerprint
from sieve.streaming.streamed_backbone import load_streamed
from sieve.tasks import Example, Task, build_task
from sieve.tracking import labels
from sieve.tracking.logger import RunLogger

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
        self.device = backbone.device
        self.cache = Cache(Path(config.paths.cache_dir))
        self.seconds: dict[str, float] = {}
        self.cached: dict[str, bool] = {}
        self.data = self._data(task, config.calibration.tokens, partial(mixed, config, task))

    @cached_property
    def others(self) -> dict[str, SieveDataModule]:
        """Other tasks that both models are tested on, but the run's own under another name."""
        config, own = self.config, split_key(self.task, "test")
        built = {name: build_task(task, config.seed) for name, task in config.also.items()}
        return {
            name: self._data(task, None)
            for name, task in built.items()
            if split_key(task, "test") != own
        }

    def check_others(self) -> None:
        """ValueError or RuntimeError where another task, or what a classifier is asked, fails."""
        tasks = [self.task, *(t for t, _ in self.data.mix), *(d.task for d in self.others.values())]
        if is_classifier(self.backbone.skeleton):
            for task in tasks:
                classes_of(self.backbone.skeleton, task)
            if self.config.calibration.weighting == "answer":
                raise ValueError(
                    "calibration.weighting=answer is of tokens that predict an answer, of which a "
                    "classifier has none; set calibration.weighting=auto."
                )

    def _data(
        self,
        task: Task,
        tokens: int | None,
        mix: Callable[[], Sequence[tuple[Task, float]]] | None = None,
    ) -> SieveDataModule:
        """The batches of a task as the run's model reads them."""
        backbone, config = self.backbone, self.config
        model = backbone.skeleton
        classes = partial(classes_of, model) if is_classifier(model) else None
        tokenizer: Any = CachedTokenizer(backbone.tokenizer, self.cache, backbone.fingerprint)
        return SieveDataModule(
            task,
            tokenizer,
            batch_tokens=config.batch_tokens,
            calibration_tokens=tokens,
            seed=config.seed,
            context_length=backbone.context_length,
            classes=classes,
            mix=mix,
            sharing=prefix_sharing_of(backbone.model, config.share_prefix),
        )

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.trainer.is_global_zero

    @property
    def sharded(self) -> bool:
        """Whether the model's weights are shared out over ranks, which act together."""
        return is_sharded(self.backbone.model)

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
        if not self.sharded:  # Whose strategy lets it stand.
            place(self.backbone.model, self.device)

    def split_key(self, role: str) -> str:
        """Fingerprint of a split as the model sees it: prompts, choices and answers, in order."""
        if role == "calibration" and [task for task, _ in self.data.mix] != [self.task]:
            return fingerprint([[split_key(task, role), share] for task, share in self.data.mix])
        return split_key(self.task, role)


def split_key(task: Task, role: str) -> str:
    """Fingerprint of a split of a task: prompts, choices and answers, in order."""
    examples: list[Example] = task.splits[role]
    rendering: list[Any] = [task.chat, task.delimiter, task.kind, task.harness]
    if role != "calibration":  # Which takes the right answers as they are.
        writing = asdict(task.writing) if task.writing else None
        rendering += [task.normalize, asdict(task.metric), writing, task.unit, task.scoring]
    rows = [[one.key, one.answer, one.cut, one.size] for one in examples]
    return fingerprint(rows, rendering)


def mixed(config: Config, task: Task) -> list[tuple[Task, float]]:
    """The tasks that calibration rows come from, and their shares of the tokens.

    Rows that stand in the selection or test split of the run's own task are left out.
    """
    weights = config.calibration.weights
    parts = [(task, weights.get("self", 1.0))]
    held = {e.content for role in ("selection", "test") for e in task.splits[role]}
    for name, settings in config.calibration.mix.items():
        other = build_task(settings, config.seed)
        rows = [e for e in other.splits["calibration"] if e.content not in held]
        splits = other.splits | {"calibration": rows}
        parts.append((replace(other, splits=splits), weights.get(name, 1.0)))
    total = sum(weight for _, weight in parts)
    return [(part, weight / total) for part, weight in parts if weight > 0]


@contextmanager
def opened(config: Config, run_dir: Path) -> Iterator[Run]:
    """Load what a run needs, and close its log at the end, whatever happens.

    Raises ValueError or RuntimeError with one sentence when something cannot be loaded.
    """
    L.seed_everything(config.seed, verbose=False)
    find_model(config.model.path)
    Cache(Path(config.paths.cache_dir)).prepare()
    trainer = make_trainer(config.trainer)
    check_available(config.quantization, trainer.strategy.root_device)
    task, backbone = _loaded(config, trainer)
    check_available(config.quantization, backbone.device, backbone.dtype)
    logger = RunLogger(
        run_dir, config.logger, labels.logged_settings(config, backbone.name),
        labels.title(config, backbone.name), labels.tags(config, backbone.name),
        labels.job_type(config),
    )  # fmt: skip
    failed = True
    try:
        if config.export.format != "none":
            check_format(backbone.skeleton, config.export.format)
        run = Run(config, task, backbone, trainer, logger, run_dir)
        if not config.search.job:  # What is wrong with other tasks is better known now than late.
            run.check_others()
        yield run
        failed = False
    finally:
        logger.close(failed)


# The jobs of a genetic search that share a process share its task and model.
_held: dict[str, tuple[Task, Backbone]] = {}


def _loaded(config: Config, trainer: L.Trainer) -> tuple[Task, Backbone]:
    device = trainer.strategy.root_device
    streamed = config.calibration.strategy, config.projection.prune_head
    key = fingerprint(asdict(config.task), asdict(config.model), config.seed, str(device), streamed)
    if key in _held:
        return _held[key]
    _held.clear()
    task = build_task(config.task, config.seed)
    mesh = join(trainer)
    put = None if mesh is None else lambda model, _, dtype: shard(model, mesh, dtype)

    def load() -> Backbone:
        backbone = load_backbone(config.model, device, put)
        check_supported(backbone.model, config.model.allow_partial)
        return backbone

    streams = config.calibration.strategy == "stream"
    head = config.projection.prune_head
    loaded = task, load_streamed(config.model, device, head, load) if streams else load()
    log.debug("loaded %s", config.model.path)
    if config.search.method == "genetic":
        _held[key] = loaded
    return loaded
