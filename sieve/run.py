"""Run Sieve: `python -m sieve.run +task=sst2 model.path=my_model tolerance=0.02`.

The stages in order: calibrate, fit, search, curve, refit, recover, evaluate, export, report.
Settings are the files of `conf/`; `--help` lists the groups. A run with `quantization=int8` or
`int4` quantizes the pruned model before it is evaluated and exported.
"""

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from sieve.config import Config
from sieve.conversion import CONF, check_removed, register_resolvers, to_config
from sieve.mistakes import message_of, unknown_command

log = logging.getLogger("sieve")
PLAIN_ERRORS = "SIEVE_PLAIN_ERRORS"  # in the environment, 1: a user's mistake is one sentence


def run(config: Config, run_dir: Path, command: str = "") -> dict[str, Any]:
    """Run all stages; returns the content of `run_dir/result.json`.

    A job of a genetic search runs its part only: the first returns where the space of genomes is,
    the jobs that score genomes return {}.

    Raises:
        ValueError or RuntimeError: the input is faulty, said in one sentence.
    """
    from sieve import stages

    if config.sweep.genomes:
        stages.evaluate_genomes(config, run_dir)
        return {}
    searches = config.until is None and config.sweep.job != "finalize"
    with stages.opened(config, run_dir, searches) as session:
        calibrated = stages.calibrate(session)
        bank = stages.fit(session, calibrated)
        if config.sweep.job == "prepare":
            return stages.prepare(session, bank)
        if config.until == "fit":
            return {}
        genome, search = stages.search(session, bank)
        curve = stages.curve(session, bank, search)
        searched = bank, genome
        bank, genome, refitted = stages.refit(session, calibrated, bank, genome)
        bank, genome, recovered = stages.recover(session, calibrated, searched, (bank, genome))
        evaluation = stages.evaluate(session, bank, genome) | {"recovery": recovered} | curve
        dense_accuracy = evaluation["baseline"]["accuracy"]
        evaluation["certificate"] = stages.certify(session, bank, genome, recovered)
        evaluation["rivals"] = stages.rivals(session, recovered, dense_accuracy)
        evaluation["export"] = stages.export(session, bank, genome, dense_accuracy)
        search = stages.with_refit(search, refitted)
        return stages.report(session, calibrated, bank, genome, search, evaluation, command)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(raw: DictConfig) -> object:
    """One Hydra job; returns the kept fraction, or to the sweeper what `run` returns."""
    from sieve.distributed.ranks import lost_rank

    try:
        return _run_job(raw)
    except (ValueError, RuntimeError, OSError) as error:
        log.debug("failed", exc_info=True)
        if wants_traceback():
            raise
        message = lost_rank(error) or str(error)
        if HydraConfig.get().mode == RunMode.RUN:  # Hydra would repeat the overrides.
            _end(message)
        raise CompactHydraException(message) from None


def _run_job(raw: DictConfig) -> object:
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    overrides, sweep = hydra_config.overrides.task, hydra_config.mode == RunMode.MULTIRUN
    config = to_config(raw)
    check_job(config, overrides, hydra_config.sweeper if sweep else {})
    from sieve.runtime.progress import is_rank_zero
    from sieve.tracking import labels

    if not is_rank_zero():  # Rank 0 speaks for all.
        logging.getLogger("sieve").setLevel(logging.WARNING)
    if config.inspect or config.dry_run:
        _show_forecast(config, run_dir, hydra_config.sweeper)
        return None
    config.logger.group = labels.group(config, hydra_config.runtime.choices, run_dir, sweep)
    result = run(config, run_dir, command_of(overrides))
    if "kept_fraction" not in result:
        return result
    _show_result(result, run_dir)
    return float(result["kept_fraction"]["prunable"])


def command_of(overrides: Sequence[str]) -> str:
    """The command that was typed, without what a sweeper adds to it."""
    typed = [word for word in overrides if not word.lstrip("+").startswith("sweep.")]
    return shlex.join(["python", "-m", "sieve.run", *typed])


def check_job(config: Config, overrides: Sequence[str], sweeper: Mapping[str, Any]) -> None:
    """Check the command line of a job against its settings.

    Args:
        overrides: of the command line.
        sweeper: Hydra's settings of the sweeper; empty outside a sweep.

    Raises:
        ValueError: a sweep on several devices, a judge that does not fit the sweeper's objectives,
            or an Almanac task that would silently set the model.
    """
    devices = config.trainer.get("devices")
    if sweeper and devices != 1 and not (isinstance(devices, list) and len(devices) == 1):
        raise ValueError(
            f"a sweep takes one device per job, got trainer.devices={devices}; set "
            "trainer.devices=1, or run once with trainer=ddp."
        )
    if config.search.judge == "margin" and "cost" in (sweeper.get("objectives") or {}):
        raise ValueError(
            "search=genetic judges by the divergence, got search.judge=margin; choose "
            "search=genetic_margin."
        )
    others = [*config.also.values(), *config.calibration.mix.values()]
    embedded = config.task.almanac is None and any(other.almanac for other in others)
    if embedded and not any(
        override.startswith(("model=", "model.path=", "+experiment=")) for override in overrides
    ):
        raise ValueError(
            "an Almanac task in `also` or `calibration.mix` sets the model to the embedded one, "
            "but the run's own task is not of Almanac; choose the model, as model=embedded or "
            "model.path=my_model."
        )


def _show_forecast(config: Config, run_dir: Path, sweeper: Mapping[str, object]) -> None:
    """Print the table of `inspect=true` or `dry_run=true`, or the text of `inspect=data`."""
    from sieve.costs.dry_run import dry_run
    from sieve.costs.inspection import inspect
    from sieve.costs.rows import inspect_rows
    from sieve.costs.table import dry_run_table
    from sieve.runtime.progress import is_rank_zero, output

    if not is_rank_zero():
        return
    if config.inspect == "data":
        output.print(inspect_rows(config), soft_wrap=True)
    elif config.inspect:
        output.print(inspect(config, run_dir))
    else:
        settings = {k: v for k, v in sweeper.items() if isinstance(v, int | float | None)}
        output.print(dry_run_table(dry_run(config, run_dir, settings)))


def _show_result(result: Mapping[str, Any], run_dir: Path) -> None:
    """Print the closing table and the files of the run."""
    from sieve.report import closing_table
    from sieve.runtime.progress import is_rank_zero, output

    if is_rank_zero():
        names = "report.html result.json flips.jsonl genome.json metrics.jsonl export".split()
        folder = Path(os.path.relpath(run_dir))
        written = {name: folder / name for name in names if (run_dir / name).exists()}
        output.print(closing_table(result, written))


def _show_jobs() -> None:
    """Print the table of the jobs, if the command was a multirun."""
    from sieve.runtime.jobs import take_sweep

    if (sweep := take_sweep()) is None or not sweep.is_dir():
        return
    from sieve.report.jobs import jobs_table
    from sieve.runtime.progress import output

    if (table := jobs_table(Path(os.path.relpath(sweep)))) is not None:
        output.print(table)


def main() -> None:
    """Entry point of `python -m sieve.run` and of the console script `sieve`.

    `sieve data +task=...` is short for `inspect=data`, `sieve predict` for `python -m
    sieve.predict`.
    """
    arguments = sys.argv[1:]
    if arguments[:1] == ["predict"]:
        from sieve.predict.__main__ import main as predict

        return predict(arguments[1:])
    if arguments[:1] == ["data"]:
        arguments[0] = "inspect=data"
    elif arguments and arguments[0].isalpha():
        _end(unknown_command(arguments[0]))
    sweeps = [word for word in arguments if word in ("--multirun", "-m")]  # Hydra wants them last.
    sys.argv[1:] = [word for word in arguments if word not in sweeps] + sweeps[:1]
    # Hydra then raises errors, which it would print with a hint that helps nobody with a typo.
    before = {name: os.environ.get(name) for name in (PLAIN_ERRORS, "HYDRA_FULL_ERROR")}
    os.environ.setdefault(PLAIN_ERRORS, str(int(not wants_traceback())))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_resolvers()
    try:  # Hydra would refuse a removed key without saying what replaced it.
        check_removed(word.lstrip("+~").partition("=")[0] for word in sys.argv[1:])
        with _terminated_like_interrupted():
            _job()
        _show_jobs()
    except (ValueError, CompactHydraException, OSError, KeyboardInterrupt) as error:
        _show_jobs()
        if wants_traceback():
            raise
        _end(message_of(error), 130 if isinstance(error, KeyboardInterrupt) else 1)
    finally:  # For programs that call this function.
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let `kill` end the block as Ctrl-C does; Lightning alone would only note the signal."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    if current_thread() is not main_thread():  # Python takes signals in no other.
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(message: str, status: int = 1) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.exit(status)


def wants_traceback() -> bool:
    """Whether the user has set HYDRA_FULL_ERROR=1, to see where an error came from."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1" and os.environ.get(PLAIN_ERRORS) != "1"


if __name__ == "__main__":
    main()
