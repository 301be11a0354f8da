"""From Hydra's composed configuration to checked dataclasses: the only place that does it."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sieve.checks import check
from sieve.config import Config
from sieve.mistakes import explain_value
from sieve.tasks import TaskConfig
from sieve.tasks.metrics import metric_of
from sieve.tasks.rows import EXPECTED, resolve_split

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).parent
ASSETS = PACKAGE / "assets"
CONF = next(conf for conf in (PACKAGE / "conf", PACKAGE.parent / "conf") if conf.is_dir())
# Share of the rows on which a pruned model differs from the dense one, and rows at most, where
# `search.rows` is null.
PLANNED_DIFFERING, MOST_PLANNED = 0.1, 4_000
# Former settings, and what to write instead.
REMOVED = {
    "guarantee": "write confidence=0.9 instead of guarantee=true, or confidence=0.975, which is "
    "about as strict, and confidence=null instead of guarantee=false"
}


def register_resolvers() -> None:
    """Register the functions that YAML calls.

    `${asset:name}` is the path of a file in `sieve/assets`. `${sweep_unless:a,b}` is Hydra's mode:
    MULTIRUN, or RUN if any argument is true. `${task_name:path}` is the name of a task whose rows
    are there. `${folder_of:name}` is a folder for the runs of a task.
    """
    OmegaConf.register_new_resolver("asset", lambda name: str(ASSETS / name), replace=True)
    OmegaConf.register_new_resolver(
        "sweep_unless", lambda *flags: "RUN" if any(flags) else "MULTIRUN", replace=True
    )
    OmegaConf.register_new_resolver("task_name", _task_name, replace=True)
    OmegaConf.register_new_resolver("folder_of", _as_name, replace=True)


def _as_name(text: str) -> str:
    """A text with dashes in place of what a task's name cannot contain."""
    return re.sub(r"[^\w.+-]+", "-", str(text)).strip(".-") or "own_data"


def _task_name(data_dir: str | None) -> str:
    """The name of a folder with rows, or of a file unless that is the name of a split."""
    if not data_dir:
        return "own_data"
    path = Path(data_dir).expanduser().resolve()
    if path.suffix not in EXPECTED:
        return _as_name(path.name)
    is_split = resolve_split(path.stem, ("train", "validation", "test"))
    return _as_name(path.parent.name if is_split else path.stem)


def check_removed(keys: Iterable[str]) -> None:
    """Raise ValueError if one of the keys of a configuration was removed."""
    for key in keys:
        if key in REMOVED:
            raise ValueError(f"the setting {key} no longer exists; {REMOVED[key]}.")


def to_config(raw: DictConfig) -> Config:
    """Convert and check a configuration.

    Raises:
        ValueError: a key is unknown, of the wrong type, missing, or out of range.
    """
    check_removed(map(str, raw))
    if OmegaConf.is_missing(raw, "task"):
        raise ValueError(
            "no task was chosen; add one, such as +task=almanac_medicine or +task=jsonl."
        )
    if OmegaConf.is_missing(raw.task, "name"):
        raise ValueError(
            "task.name is missing; set it, for example task.name=arc_easy with +task=lm_eval."
        )
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), raw)
        OmegaConf.resolve(merged)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(explain_value(error)) from error
    assert isinstance(config, Config)
    if config.search.alleles == "structural":
        config.projection.narrow = True
        config.projection.refit = False  # There is no matrix with a rank.
    for task in (config.task, *config.also.values(), *config.calibration.mix.values()):
        _mend(task)
    check(config)
    config.task.selection_rows = config.task.selection_rows or _selection_rows(config)
    return config


def _mend(task: TaskConfig) -> None:
    """Put line breaks in the preamble; remove spaces that would separate words twice."""
    task.preamble = task.preamble.replace("\\n", "\n")
    plain, spaced = task.prompt.rstrip(" "), task.delimiter[:1].isspace()
    if spaced and plain != task.prompt and task.kind != "perplexity":
        log.warning(
            "task '%s': the space at the end of task.prompt is removed, because task.delimiter "
            "already puts one before every answer.",
            task.name,
        )
        task.prompt = plain
    words = [label.strip() for label in task.labels]
    if words != task.labels:
        log.warning(
            "task '%s': spaces around the words of task.labels are removed: %s.",
            *(task.name, ", ".join(words)),
        )
        task.labels = words


def _selection_rows(config: Config) -> int:
    """Selection rows at least: `search.rows`, or as many as a confidence needs.

    So many that a model that differs from the dense one on a tenth of the rows may lose half of the
    tolerance. Perplexity is measured on long texts of many tokens, so they stay as they are.
    """
    if config.search.rows is not None:
        return config.search.rows
    task = config.task
    if config.confidence is None or task.kind == "perplexity":
        return 0
    # The metrics of lm-evaluation-harness that are not perplexities are at most 1.
    best = 1.0 if task.lm_eval is not None else metric_of(task.kind, task.metric).best
    if config.tolerance == 0 or best <= 0:
        return MOST_PLANNED
    from sieve.tasks.certifiable import rows_needed

    tolerance = config.tolerance / best  # as a fraction of what a row can lose
    return min(MOST_PLANNED, rows_needed(tolerance / 2, config.confidence, PLANNED_DIFFERING))
