"""Genomes to jobs and back: shards, files, the launcher, and what a killed search had finished.

A shard's file is JSON: {"format": 1, "generation", "shard", "worker", "names": [...], "genomes":
[[value, ...], ...], "results": path, "prepared": what the first job returned, "limit": {objective:
number} or null}. The application evaluates the genomes and either returns what it found, in their
order, as a list, or appends a line {"index": i, key: number, ...} to `results` as each is done
({"index": i, "error": text} for one that failed). Lines survive a kill: those that stand there when
the job begins are of genomes that need not be evaluated again. What is sure to be worse than the
limit cannot live on: any number that is worse will do for it, and its evaluation can end there.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from ._objectives import Evaluation, Objectives
from ._space import Genome, Space
from .config import GeneticSweeperConf

log = logging.getLogger(__name__)
FORMAT = 1


class Recorder:
    """The application's function, whose results outlive the sweeper: a file for each job."""

    def __init__(self, function: Callable[[Any], Any], folder: Path) -> None:
        self.function, self.folder = function, folder.absolute()

    def __call__(self, config: DictConfig) -> Any:
        returned = self.function(config)
        job = HydraConfig.get()
        try:
            text = json.dumps({"overrides": list(job.overrides.task), "returned": plain(returned)})
        except (TypeError, ValueError):
            return returned  # Only what is JSON can be found again.
        write(record_path(self.folder, job.job.num), text)
        return returned


@dataclass(frozen=True)
class Shard:
    """Genomes of one job, and its number among all jobs and among those of its generation."""

    genomes: list[Genome]
    index: int
    job: int
    worker: int


class Evaluator:
    """Evaluates the genomes of a generation through the launcher."""

    def __init__(
        self,
        settings: GeneticSweeperConf,
        space: Space,
        objectives: Objectives,
        launcher: Launcher,
        folder: Path,
        arguments: Sequence[str],
        prepared: Any = None,
    ) -> None:
        self.prepared = prepared
        self.settings, self.space, self.objectives = settings, space, objectives
        self.launcher, self.folder = launcher, folder.absolute()
        self.arguments = list(arguments)
        self.found: dict[Genome, Evaluation] = {}  # of the generation at hand
        self.limit: dict[str, float] | None = None  # that its genomes must be better than

    def evaluate(self, generation: int, genomes: Sequence[Genome], first_job: int) -> int:
        """Evaluate genomes of a generation into `found`; returns the number of jobs it takes.

        Raises ValueError when more of them fail than `max_failure_rate` allows, or when a job
        returned what cannot be read.
        """
        self.found = {}
        shards = self._shards(genomes, first_job)
        self._recover(generation, shards)
        for attempt in range(1 + self.settings.retries):
            missing = [s for s in shards if any(g not in self.found for g in s.genomes)]
            if not missing:
                break
            if attempt:
                log.warning("generation %d: %d jobs are launched again", generation, len(missing))
            for batch in self._batches(missing):
                self._launch(generation, batch)
        for genome in genomes:
            self.found.setdefault(genome, Evaluation({}, "its job ended without a result"))
        self._check_failures([self.found[genome] for genome in genomes])
        return len(shards)

    def progress(self, generation: int) -> int:
        """Genomes of a generation with a result on disk, as far as their files tell."""
        files = self._folder.glob(f"{generation:04d}-*.jsonl")
        return max(len(self.found), sum(path.read_bytes().count(b"\n") for path in files))

    @property
    def _folder(self) -> Path:
        return self.folder / "shards"

    def _shards(self, genomes: Sequence[Genome], first_job: int) -> list[Shard]:
        workers = self.settings.n_workers
        size = self.settings.shard_size or -(-len(genomes) // workers)
        count = -(-len(genomes) // size)
        return [Shard(list(genomes[i::count]), i, first_job + i, i % workers) for i in range(count)]

    def _batches(self, shards: list[Shard]) -> Iterator[list[Shard]]:
        """What one call of the launcher can take: jobs with numbers in a row.

        Where workers have settings of their own, a device say, no two jobs of one run at a time.
        """
        runs = groupby(enumerate(shards), key=lambda pair: pair[1].job - pair[0])
        for _, pairs in runs:
            run = [shard for _, shard in pairs]
            width = self.settings.n_workers if self.settings.worker_overrides else len(run)
            yield from (run[i : i + width] for i in range(0, len(run), width))

    def _launch(self, generation: int, shards: list[Shard]) -> None:
        jobs = [self._overrides(generation, shard) for shard in shards]
        if self.settings.shard_key:
            for shard in shards:
                self._write(generation, shard)
        try:
            returns = self.launcher.launch(jobs, initial_job_idx=shards[0].job)
        except Exception as error:  # noqa: BLE001 - a dead worker is whatever the launcher makes of it
            log.warning("the launcher failed: %s: %s", type(error).__name__, error)
            log.debug("launcher", exc_info=True)
            self._recover(generation, shards)
            return
        for shard, returned in zip(shards, returns, strict=True):
            self._take(generation, shard, returned)

    def _take(self, generation: int, shard: Shard, job: JobReturn) -> None:
        """What a job that came back has found, and why where it has not."""
        self._read_lines(generation)
        try:
            value = job.return_value
        except Exception as error:  # noqa: BLE001 - whatever the application raised
            failed = [f"{type(error).__name__}: {error}"] * len(shard.genomes)
        else:
            assert job.status == JobStatus.COMPLETED
            failed = self._errors(generation, shard)
            self._take_value(shard, plain(value), failed)
        for genome, why in zip(shard.genomes, failed, strict=True):
            if why and genome not in self.found:
                self.found[genome] = Evaluation({}, why)

    def _take_value(self, shard: Shard, value: Any, errors: Sequence[str] = ()) -> None:
        """Read what a job returned: one result, or a list for a shard that wrote no lines."""
        if not self.settings.shard_key:
            value = [value]
        if isinstance(value, list) and len(value) == len(shard.genomes):
            for genome, one in zip(shard.genomes, value, strict=True):
                if genome not in self.found:
                    self.found[genome] = self.objectives.read(one)
            return
        without = [e for g, e in zip(shard.genomes, errors, strict=False) if g not in self.found]
        if not all(without):
            raise ValueError(
                f"the job of a shard with {len(shard.genomes)} genomes returned "
                f"{type(value).__name__}, expected a list with as many results, or a line for "
                'each in its "results" file.'
            )

    def _path(self, generation: int, shard: Shard) -> Path:
        """A shard's file; another division of the generation has other names."""
        digest = hashlib.sha256(json.dumps(shard.genomes).encode()).hexdigest()[:8]
        return self._folder / f"{generation:04d}-{shard.index:03d}-{digest}.json"

    def _overrides(self, generation: int, shard: Shard) -> list[str]:
        """All overrides of a job."""
        own = [text.format(worker=shard.worker) for text in self.settings.worker_overrides]
        if self.settings.shard_key:
            values = [f"{self.settings.shard_key}={quoted(self._path(generation, shard))}"]
        else:
            values = self.space.overrides(shard.genomes[0])
        return [*self.arguments, *values, *own]

    def _write(self, generation: int, shard: Shard) -> None:
        """The file of a shard, and in its results what is known already."""
        path = self._path(generation, shard)
        body = {
            "format": FORMAT,
            "generation": generation,
            "shard": shard.index,
            "worker": shard.worker,
            "names": [v.name for v in self.space.variables],
            "genomes": [list(self.space.values(g).values()) for g in shard.genomes],
            "results": str(path.with_suffix(".jsonl")),
            "prepared": self.prepared,
            "limit": self.limit,
        }
        known = [
            json.dumps({"index": i} | self.found[g].values) + "\n"
            for i, g in enumerate(shard.genomes)
            if g in self.found
        ]
        write(path.with_suffix(".jsonl"), "".join(known))
        write(path, json.dumps(body))

    def _recover(self, generation: int, shards: list[Shard]) -> None:
        """What jobs that were cut short, in this process or an earlier one, had finished."""
        self._read_lines(generation)
        for shard in shards:
            path = record_path(self.folder, shard.job)
            if path.exists():
                record = json.loads(path.read_text())
                if record["overrides"] == self._overrides(generation, shard):
                    errors = self._errors(generation, shard)
                    self._take_value(shard, record["returned"], errors)

    def _read_lines(self, generation: int) -> None:
        """Results that stand in the files of a generation's shards."""
        for path in sorted(self._folder.glob(f"{generation:04d}-*.json")):
            genomes = json.loads(path.read_text())["genomes"]
            for index, found in self._lines(path):
                if not found.failed:
                    self.found.setdefault(self.space.encode(genomes[index]), found)

    def _errors(self, generation: int, shard: Shard) -> list[str]:
        """Why genomes of a shard failed, as its lines tell; empty where they do not."""
        errors = [""] * len(shard.genomes)
        if self.settings.shard_key:
            for index, found in self._lines(self._path(generation, shard)):
                errors[index] = found.error
        return errors

    def _lines(self, path: Path) -> list[tuple[int, Evaluation]]:
        """Results of a shard's file so far; a line that was cut short is none."""
        results = path.with_suffix(".jsonl")
        text = results.read_text() if results.exists() else ""
        lines = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
        return [(line.pop("index"), self.objectives.read(line)) for line in lines]

    def _check_failures(self, evaluations: list[Evaluation]) -> None:
        errors = [e.error for e in evaluations if e.failed]
        if len(errors) > self.settings.max_failure_rate * len(evaluations):
            raise ValueError(
                f"{len(errors)} of {len(evaluations)} genomes failed, more than "
                f"hydra.sweeper.max_failure_rate={self.settings.max_failure_rate} allows; "
                f"the first: {errors[0]}"
            )


def quoted(path: Path) -> str:
    """A path as a value in the grammar of overrides."""
    return "'" + str(path).replace("'", "\\'") + "'"


def record_path(folder: Path, job: int) -> Path:
    """Where what a job returned is kept."""
    return folder / "returned" / f"{job}.json"


def write(path: Path, text: str) -> None:
    """Write a file that is whole or absent, through to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def plain(value: Any) -> Any:
    """A result as plain containers and numbers; NumPy's and OmegaConf's are converted."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.item() if hasattr(value, "item") and callable(value.item) else value
