"""The labels of a run on Weights & Biases: title, tags, group, job type and settings."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from sieve.config import Config
from sieve.report.genomes import LINES

LONGEST_TAG = 64  # characters, the limit of W&B


def title(config: Config, model: str) -> str:
    """Task, model, projection, search, recovery, quantization and seed."""
    names = [config.task.name, model, config.projection.name, config.search.method]
    return "-".join([*names, *_optional_stages(config), f"seed{config.seed}"])


def tags(config: Config, model: str) -> list[str]:
    """Task, model, search, projection, recovery and quantization, then `logger.tags`."""
    names = [config.task.name, model, config.search.method, config.projection.name]
    names += [*_optional_stages(config), *config.logger.tags]
    return list(dict.fromkeys(tag[:LONGEST_TAG] for tag in names if tag))


def job_type(config: Config) -> str:
    """The costliest part: `recover`, `search` (by scores of many genomes), or `sieve`."""
    if config.recovery.method != "none":
        return "recover"
    return "sieve" if config.search.method in LINES else "search"


def group(config: Config, choices: Mapping[str, str], run_dir: Path, sweep: bool) -> str | None:
    """`logger.group`, else the chosen experiment, else the folder of the sweep.

    A single run has no group, and neither has a genetic search, which is one run.

    Args:
        choices: the option of each Hydra group.
        sweep: whether the run is a job of a sweep.
    """
    if config.logger.group or choices.get("experiment"):
        return config.logger.group or str(choices["experiment"])
    return f"sweep-{run_dir.parent.name}" if sweep and not config.sweep.job else None


def logged_settings(config: Config, model: str) -> dict[str, dict[str, object]]:
    """All settings as plain containers, with the model's name even if only its path is set."""
    settings = asdict(config)
    settings["model"]["name"] = model
    return settings


def _optional_stages(config: Config) -> list[str]:
    return [m for m in (config.recovery.method, config.quantization.method) if m != "none"]
