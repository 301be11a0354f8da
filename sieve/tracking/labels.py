"""What a run goes by on Weights & Biases: title, tags, group, kind of job, and its settings."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sieve.config import Config
from sieve.report.genomes import LINES

LONGEST = 64  # characters of a tag


def title(config: Config, model: str) -> str:
    """Task, model, projection and search, what else is done, and the seed."""
    names = [config.task.name, model, config.projection.name, config.search.method]
    return "-".join([*names, *_beside(config), f"seed{config.seed}"])


def tags(config: Config, model: str) -> list[str]:
    """Task, model, search, projection and what else is done; then those of `logger.tags`."""
    names = [config.task.name, model, config.search.method, config.projection.name]
    found = [*names, *_beside(config), *config.logger.tags]
    return list(dict.fromkeys(tag[:LONGEST] for tag in found if tag))


def job_type(config: Config) -> str:
    """`recover` where the pruned model is trained, `search` on the end metric, else `sieve`."""
    if config.recovery.method != "none":
        return "recover"
    return "sieve" if config.search.method in LINES else "search"


def group(config: Config, choices: Mapping[str, Any], run_dir: Path, swept: bool) -> str | None:
    """`logger.group`, else the experiment that was chosen, else the folder of the sweep.

    choices: of Hydra's groups. A run that is not one of many has none, and a search is one run.
    """
    if config.logger.group or choices.get("experiment"):
        return config.logger.group or str(choices["experiment"])
    return f"sweep-{run_dir.parent.name}" if swept and not config.search.job else None


def logged_settings(config: Config, model: str) -> dict[str, Any]:
    """The settings as plain containers, with the model's name where none was given."""
    settings = asdict(config)
    settings["model"]["name"] = model
    return settings


def _beside(config: Config) -> list[str]:
    return [m for m in (config.recovery.method, config.quantization.method) if m != "none"]
