"""Run Sieve: `python -m sieve.run +task=sst2 model.path=my_model tolerance=0.02`.

The stages in order: calibrate, fit, search, refit, recover, evaluate, export, report. Everything is
set under `conf/`; `--help` lists the groups.
"""

import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from sieve.config import Config
from sieve.conversion import CONF, register_resolvers, to_config

log = logging.getLogger("sieve")


def run(config: Config, run_dir: Path, command: str = "") -> dict[str, Any]:
    """One whole run; returns what it writes to `run_dir/result.json`.

    A job of a genetic search does its part of it: the first returns where the space of genomes is,
    a shard nothing, as its results are in files.
    Raises ValueError or RuntimeError with one sentence when the input does not hold.
    """
    from sieve import stages

    if config.search.shard:
        stages.run_shard(config, run_dir)
        return {}
    with stages.opened(config, run_dir) as this:
        calibrated = stages.calibrate(this)
        bank = stages.fit(this, calibrated)
        if config.search.job == "prepare":
            return stages.prepare(this, bank)
        if config.until == "fit":
            return {}
        genome, record = stages.search(this, bank)
        beside = stages.curve(this, bank, record)
        bank, genome, refitted = stages.refit(this, calibrated, bank, genome)
        bank, genome, recovered = stages.recover(this, bank, genome)
        evaluation = stages.evaluate(this, bank, genome) | {"recovery": recovered} | beside
        dense_accuracy = evaluation["baseline"]["accuracy"]
        evaluation["export"] = stages.export(this, bank, genome, dense_accuracy)
        record = stages.with_refit(record, refitted)
        return stages.report(this, calibrated, bank, genome, record, evaluation, command)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(raw: DictConfig) -> Any:
    """One Hydra job; returns the kept fraction, or what the first job of a search found."""
    from sieve.distributed.ranks import lost_rank
    from sieve.report import closing_table
    from sieve.runtime.progress import is_rank_zero
    from sieve.tracking import labels

    if not is_rank_zero():  # One voice, however many processes.
        logging.getLogger("sieve").setLevel(logging.WARNING)
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    try:
        config = to_config(raw)
        if hydra_config.mode == RunMode.MULTIRUN and not _takes_one(config.trainer.get("devices")):
            raise ValueError(
                "a sweep takes one device per job, got trainer.devices="
                f"{config.trainer.get('devices')}; set trainer.devices=1, or run once with ddp."
            )
        objectives = getattr(hydra_config.sweeper, "objectives", None) or {}
        if config.search.judge == "margin" and "cost" in objectives:
            raise ValueError(
                "search=genetic goes by the divergence, got search.judge=margin; choose "
                "search=genetic_margin."
            )
        _check_model_is_asked_for(config, hydra_config.overrides.task)
        if config.inspect:
            _show_matrices(config, run_dir)
            return None
        if config.dry_run:
            _show_costs(config, run_dir, hydra_config.sweeper)
            return None
        config.logger.group = labels.group(
            config, hydra_config.runtime.choices, run_dir, hydra_config.mode == RunMode.MULTIRUN
        )
        command = shlex.join(["python", "-m", "sieve.run", *hydra_config.overrides.task])
        result = run(config, run_dir, command)
    except (ValueError, RuntimeError, OSError) as error:
        log.debug("failed", exc_info=True)
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        raise CompactHydraException(lost_rank(error) or str(error)) from None
    if "kept_fraction" not in result:
        return result  # A part of a search, which has nothing to show yet.
    if is_rank_zero():
        from sieve.runtime.progress import output

        names = ("report.html", "result.json", "genome.json", "metrics.jsonl", "export")
        folder = Path(os.path.relpath(run_dir))
        written = {name: folder / name for name in names if (run_dir / name).exists()}
        output.print(closing_table(result, written))
    return float(result["kept_fraction"]["prunable"])


def _check_model_is_asked_for(config: Config, overrides: Sequence[str]) -> None:
    """ValueError where another task than the run's own has brought the embedded model with it."""
    others = [*config.also.values(), *config.calibration.mix.values()]
    brought = config.task.almanac is None and any(other.almanac for other in others)
    asked = any(o.startswith(("model=", "model.path=", "+experiment=")) for o in overrides)
    if brought and not asked:
        raise ValueError(
            "the tasks of Almanac bring the embedded model with them, and the run's own task is "
            "none of them; say which model is meant, as model=embedded or model.path=my_model."
        )


def _show_matrices(config: Config, run_dir: Path) -> None:
    from sieve.costs.inspection import inspect
    from sieve.runtime.progress import is_rank_zero, output

    if is_rank_zero():
        output.print(inspect(config, run_dir))


def _show_costs(config: Config, run_dir: Path, sweeper: Any) -> None:
    from sieve.costs.dry_run import dry_run
    from sieve.costs.table import dry_run_table
    from sieve.runtime.progress import is_rank_zero, output

    if is_rank_zero():
        settings = {k: v for k, v in sweeper.items() if isinstance(v, int | float | None)}
        output.print(dry_run_table(dry_run(config, run_dir, settings)))


def _takes_one(devices: Any) -> bool:
    """Whether a trainer takes one device: 1, or the number of one in a list."""
    return devices == 1 or (isinstance(devices, list) and len(devices) == 1)


def main() -> None:
    """Entry point of `python -m sieve.run` and of the console script `sieve`."""
    register_resolvers()
    _job()


if __name__ == "__main__":
    main()
