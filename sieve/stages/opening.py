"""Opening a run: its task, model, trainer and logger."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import lightning as L

from sieve.config import Config
from sieve.distributed.sharding import shard
from sieve.distributed.strategy import join
from sieve.distributed.trainer import make_trainer
from sieve.exports.export import check_format
from sieve.exports.gguf_architecture import check_removals
from sieve.model.backbone import Backbone, load_backbone
from sieve.model.matrices import check_supported
from sieve.model.prepared import check_source, prepare
from sieve.quantization import check_available
from sieve.runtime.artifacts import Cache, fingerprint
from sieve.stages.answers import with_own_answers
from sieve.stages.forecast import forecast as forecast_time
from sieve.stages.outline import Outline, stage_names
from sieve.stages.prompting import with_measured_prompts
from sieve.stages.run import Run
from sieve.stages.student import with_student_prompt
from sieve.stages.vocabulary import with_task_vocabulary
from sieve.streaming.streamed_backbone import load_streamed
from sieve.tasks import Task, task_by_shots
from sieve.tasks.certifiable import forecast
from sieve.tasks.shots import fewest_shots
from sieve.tasks.summary import describe_rows
from sieve.tracking import labels
from sieve.tracking.logger import RunLogger

log = logging.getLogger(__name__)
# The jobs of a genetic search that share a process load the task and the model once.
_loaded: dict[str, tuple[Callable[[int], Task], Backbone]] = {}


@contextmanager
def opened(config: Config, run_dir: Path, searches: bool = False) -> Iterator[Run]:
    """Load what a run needs; its log is closed at the end, also after an error.

    searches: whether a search follows, whose rows must suffice for `config.confidence`.

    Raises:
        ValueError or RuntimeError: something cannot be loaded, said in one sentence.
    """
    L.seed_everything(config.seed, verbose=False)
    check_source(config.model)
    Cache(Path(config.paths.cache_dir)).prepare()
    trainer = make_trainer(config.trainer)
    check_available(config.quantization, trainer.strategy.root_device)
    task_of, backbone = _load_task_and_model(config, trainer, searches)
    check_available(config.quantization, backbone.device, backbone.dtype)
    logger = RunLogger(
        run_dir,
        config.logger,
        settings=labels.logged_settings(config, backbone.name),
        title=labels.title(config, backbone.name),
        tags=labels.tags(config, backbone.name),
        job_type=labels.job_type(config),
    )
    failed, cut, seconds = True, None, dict[str, float]()
    try:
        if config.export.format != "none":
            check_format(backbone.skeleton, config.export.format, backbone.tokenizer)
        if config.export.format == "gguf":
            _check_removals(config, backbone)
        run = Run(
            config=config,
            task=task_of(fewest_shots(config.task)),
            backbone=backbone,
            trainer=trainer,
            logger=logger,
            run_dir=run_dir,
            seconds=seconds,
        )
        run = with_student_prompt(with_own_answers(with_measured_prompts(run, task_of)))
        run = with_task_vocabulary(run)
        cut = run.cut
        run.outline = Outline(stage_names(config), partial(forecast_time, run))
        del task_of  # Tasks with other numbers of shots take memory.
        if not config.sweep.job:
            run.check_tasks()
        yield run
        failed = False
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning exits where it was interrupted.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        finished = ", ".join(seconds) or "no stage"
        raise KeyboardInterrupt(f"Interrupted. Finished: {finished}") from None
    finally:
        if cut is not None:  # Other jobs of this process use the same model.
            cut.vocabulary.restore()
        logger.close(failed)


def _check_removals(config: Config, backbone: Backbone) -> None:
    """Refuse or warn of what a GGUF file cannot hold before the search can remove it."""
    removes = 0 in config.search.levels or config.projection.narrow
    structural = config.search.alleles == "structural"
    problem = check_removals(backbone.skeleton, structural, removes)
    if problem and not config.sweep.job:
        log.warning("%s", problem)


def _load_task_and_model(
    config: Config, trainer: L.Trainer, searches: bool
) -> tuple[Callable[[int], Task], Backbone]:
    """A function that builds the task with a number of shots, and the model."""
    device, head = trainer.strategy.root_device, config.projection.prune_head
    strategy = config.calibration.strategy
    student_prompt, seed = config.recovery.student_prompt, config.seed
    rows = [asdict(config.task), seed, student_prompt]
    key = fingerprint(rows, asdict(config.model), str(device), strategy, head, config.only_runs)
    if key in _loaded:
        return _loaded[key]
    _loaded.clear()
    task_of = task_by_shots(config.task, seed, student_prompt)
    task = task_of(fewest_shots(config.task))
    for line in describe_rows(task):
        log.info(line)
    if searches:  # Too few rows are an error before the model is loaded.
        count, search = len(task.splits["selection"]), config.search
        share = None if search.fits_all_rows else search.confirmation
        promise = config.tolerance, config.confidence
        if said := forecast(task.metric, count, *promise, share, config.tests):
            log.info(said)
    # Before ranks join: in a process group, transformers saves a model on rank 0 alone.
    model = prepare(config.model, Cache(Path(config.paths.cache_dir)))
    mesh = join(trainer)
    put = None if mesh is None else lambda module, _, dtype: shard(module, mesh, dtype)

    def load() -> Backbone:
        backbone = load_backbone(model, device, put)
        check_supported(backbone.model, model.allow_partial)
        return backbone

    streams, runs = strategy == "stream", config.only_runs
    backbone = load_streamed(model, device, head, load, runs) if streams else load()
    log.debug("loaded %s", config.model.path)
    if config.search.method == "genetic":
        _loaded[key] = task_of, backbone
    return task_of, backbone
