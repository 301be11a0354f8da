"""The jobs of an experiment, and how to run one in its own process.

A job is a run of `conf/experiment` in the worker process, a genetic search launched from the
command line, or a call of a function that returns a record (a baseline).
"""

import contextlib
import functools
import importlib
import itertools
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sieve.runtime.artifacts import write_json_atomic

if TYPE_CHECKING:
    from sieve.config import Config

RESULT = "result.json"
SHARED = Path(os.environ.get("SIEVE_SHARED", "../shared"))  # models and data beside Sieve
WANDB = "SIEVE_EXPERIMENTS_WANDB"  # "true": runs are logged to Weights & Biases
REAL = "SIEVE_SMOLLM2"  # the folder of SmolLM2-135M-Instruct
# Settings that need files from $SIEVE_SHARED: tasks of reader-6m, and plain text.
BESIDE = ("sst2", "trec", "ag_news", "subj", "sentiment", "text", "reader")


@dataclass(frozen=True)
class Job:
    """One measurement of a claim.

    Args:
        claim: the claim that it belongs to.
        settings: overrides of the experiment, or arguments of the function.
        kind: "run", "sweep" or "call".
        function: "module:name" of a call.
        rows_of: "claim/name" of a job that runs first; this job may score as many rows.
        extra: further overrides.
    """

    claim: str
    settings: tuple[tuple[str, str], ...]
    kind: str = "run"
    function: str = ""
    rows_of: str = ""
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its folder: the settings, such as `trec-svd-0.02`."""
        return "-".join(value.lstrip("+") for _, value in self.settings) or "all"

    @property
    def experiment(self) -> str:
        """The file of `conf/experiment`."""
        return "generalization" if self.claim == "transfer" else self.claim

    @property
    def shared(self) -> bool:
        """Whether it needs models or data that do not come with Sieve."""
        return self.real or any(value in BESIDE for _, value in self.settings)

    @property
    def real(self) -> bool:
        """Whether it needs the language model in the folder that REAL names."""
        return any(value.startswith("smollm2") for _, value in self.settings)

    @property
    def lane(self) -> str:
        """Jobs of one lane share moments and banks, and run one after another."""
        if self.real:  # One task's runs share an adapter, whatever they measure.
            return self.settings[0][1]
        if self.rows_of:
            return self.rows_of.partition("-")[0]
        return f"{self.claim}/{self.settings[0][1] if self.settings else ''}"

    def folder(self, out: Path) -> Path:
        """The folder of its result."""
        return out / self.claim / self.name

    def path(self, out: Path) -> Path:
        """The file of its result; for a search, that of its last run."""
        inside = "sweep/result" if self.kind == "sweep" else ""
        return self.folder(out) / inside / RESULT

    def result(self, out: Path) -> dict[str, Any] | None:
        """Its result; None if it has not finished."""
        path = self.path(out)
        found = json.loads(path.read_text()) if path.exists() else {}
        return found if "job" in found else None  # This file is written last.

    def overrides(self, out: Path) -> list[str]:
        """The overrides of the run, without its output folder."""
        given = [f"{key}={value}" for key, value in self.settings]
        if self.rows_of:
            claim, _, rest = self.rows_of.partition("/")
            first = Job(claim, tuple(("", part) for part in rest.split("-")), "sweep")
            spent = json.loads(first.path(out).read_text())["search"]["examples"]
            given += [f"search.examples={spent}", "search.evaluations=5000"]
        return [f"+experiment={self.experiment}", *given, *self.extra]


def swept(claim: str, **changes: str) -> list[Job]:
    """All combinations of the values in an experiment's file; `changes` replaces lists."""
    lists = [
        [(key, value.strip()) for value in changes.get(key, values).split(",")]
        for key, values in swept_values(claim).items()
    ]
    return [Job(claim, settings) for settings in itertools.product(*lists)]


@functools.cache
def swept_values(experiment: str) -> Mapping[str, str]:
    config = composed_raw([f"+experiment={experiment}"])
    return {key: str(values) for key, values in config.hydra.sweeper.params.items()}


def composed_raw(overrides: Sequence[str]) -> Any:
    """The composed settings of some overrides, Hydra's own settings among them."""
    with _conf() as compose:
        return compose("config", list(overrides), return_hydra_config=True)


def perform(job: Job, out: Path) -> None:
    """Run a job, with output to run.log; RuntimeError with the last lines if it fails."""
    folder, start, used = job.folder(out), time.monotonic(), _cpu_seconds()
    folder.mkdir(parents=True, exist_ok=True)
    _forget_peak()
    with (folder / "run.log").open("w") as log, _output_to(log.fileno()):
        try:
            _PERFORM[job.kind](job, out)
        except Exception as error:
            traceback.print_exc()
            told = f"{job.claim}/{job.name}: {error}; see {folder / 'run.log'}"
            raise RuntimeError(told) from None
    took = {"seconds": time.monotonic() - start, "cpu_seconds": _cpu_seconds() - used}
    path = job.path(out)
    if not path.exists():
        raise RuntimeError(f"{job.claim}/{job.name} left no {RESULT}; see {folder / 'run.log'}")
    result = json.loads(path.read_text()) | {"job": {k: round(v, 1) for k, v in took.items()}}
    write_json_atomic(path, result)


def composed(overrides: Sequence[str], out: Path) -> "Config":
    """The composed settings of a run, with its cache beside the results."""
    from sieve.conversion import to_config

    with _conf() as compose:
        return to_config(compose("config", [*overrides, *_places(out)]))


def run_here(experiment: str, out: Path, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Run an experiment in this process and return its result."""
    from sieve.run import run

    overrides = [f"+experiment={experiment}", *overrides]
    config = composed(overrides, out)
    result = run(config, folder, " ".join(["python -m sieve.run", *overrides]))
    (folder / "report.html").unlink(missing_ok=True)  # 5 MB each.
    return result


def sweep_there(overrides: Sequence[str], out: Path, folder: Path) -> None:
    """Run a genetic search in its own process; its last run writes `folder`/result."""
    command = [
        sys.executable,
        "-m",
        "sieve.run",
        *overrides,
        *_places(out),
        f"hydra.sweep.dir={folder}",
    ]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def _run(job: Job, out: Path) -> None:
    run_here(job.experiment, out, job.folder(out), job.overrides(out)[1:])


def _sweep(job: Job, out: Path) -> None:
    sweep_there(job.overrides(out), out, job.folder(out) / "sweep")


def _call(job: Job, out: Path) -> None:
    module, name = job.function.split(":")
    settings = {key.rpartition(".")[2]: value for key, value in job.settings}
    record = getattr(importlib.import_module(module), name)(out=out, **settings)
    write_json_atomic(job.folder(out) / RESULT, record)


_PERFORM = {"run": _run, "sweep": _sweep, "call": _call}


def _forget_peak() -> None:
    """Reset the peak memory of this process (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _cpu_seconds() -> float:
    """Processor seconds of this process and its finished children."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(who)[:2]) for who in whose)


def _places(out: Path) -> list[str]:
    return [
        f"logger.wandb={os.environ.get(WANDB, 'false')}",
        f"paths.cache_dir={(out / 'cache').absolute()}",
    ]


@contextlib.contextmanager
def _conf() -> Iterator[Any]:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from sieve.conversion import CONF, register_resolvers

    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        yield compose


@contextlib.contextmanager
def _output_to(target: int) -> Iterator[None]:
    """Redirect stdout and stderr of this process and its children to a file."""
    sys.stdout.flush(), sys.stderr.flush()
    held = os.dup(1), os.dup(2)
    os.dup2(target, 1), os.dup2(target, 2)
    try:
        yield
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(held[0], 1), os.dup2(held[1], 2)
        for one in held:
            os.close(one)
