"""Evaluate genomes in jobs: launch, retry, and recover the results of a killed search."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from ._chunks import Chunk, ChunkFiles
from ._launching import launch_one, launched
from ._objectives import Evaluation, Objectives
from ._records import failure, is_recorded, outcome, reason, recorded
from ._space import Genome, Space
from .config import GeneticSweeperConf

log = logging.getLogger(__name__)


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
        self.evaluations: dict[Genome, Evaluation] = {}  # of the current generation
        self.limit: dict[str, float] | None = None  # objective that a genome must beat to survive
        self.files = ChunkFiles(self.folder, 0, space, objectives)
        self._chunks: list[Chunk] = []
        self._launcher_error = ""  # last error of the launcher

    def evaluate(self, generation: int, genomes: Sequence[Genome], first_job: int) -> int:
        """Evaluate the genomes of a generation into `evaluations`; return the number of jobs.

        Raises ValueError if more genomes fail than `max_failure_rate` allows, if the launcher
        cannot run any job, or if a job returns something unexpected.
        """
        self.evaluations, self._launcher_error = {}, ""
        self.files = ChunkFiles(self.folder, generation, self.space, self.objectives)
        self._chunks = self._divide(genomes, first_job)
        self._recover(self._chunks)
        fruitless = 0
        while missing := self._missing():
            before = len(self.evaluations)
            self._launch(missing)
            fruitless = 0 if len(self.evaluations) > before else fruitless + 1
            if fruitless > self.settings.retries or not self.settings.retries:
                break
            self._warn(generation, genomes)
        self._check_failures(genomes, fruitless)
        return len(self._chunks)

    def _missing(self) -> list[Chunk]:
        """The chunks in which at least one genome has no result."""
        return [s for s in self._chunks if any(g not in self.evaluations for g in s.genomes)]

    def _warn(self, generation: int, genomes: Sequence[Genome]) -> None:
        """Warn if jobs were lost and will be launched again."""
        if lost := self._missing():
            log.warning(
                "generation %d: %d of %d jobs lost; of %d genomes %d have no result and are "
                "launched again (%s)",
                generation,
                len(lost),
                len(self._chunks),
                len(genomes),
                sum(g not in self.evaluations for g in genomes),
                self._launcher_error,
            )

    def progress(self) -> int:
        """How many genomes of the current generation have a result on disk."""
        if self.settings.shard_key:
            return max(len(self.evaluations), self.files.count())
        records = sum(is_recorded(self.folder, chunk.job) for chunk in self._chunks)
        return max(len(self.evaluations), records)

    def _divide(self, genomes: Sequence[Genome], first_job: int) -> list[Chunk]:
        workers = self.settings.n_workers
        size = self.settings.shard_size or -(-len(genomes) // workers)
        count = -(-len(genomes) // size)
        return [Chunk(list(genomes[i::count]), i, first_job + i, i % workers) for i in range(count)]

    def _launch(self, chunks: list[Chunk]) -> None:
        """Run one job per chunk. From a lost job, keep the results that it has written."""
        if self.settings.shard_key:
            extra = {"prepared": self.prepared, "limit": self.limit}
            for chunk in chunks:
                self.files.write(chunk, self.evaluations, extra)
        jobs = [(chunk, self._overrides(chunk)) for chunk in chunks]
        width = self.settings.n_workers if self.settings.worker_overrides else None
        lost = []
        for chunk, returned in launched(self.launcher, jobs, width):
            if isinstance(returned, Exception):
                lost.append(chunk)
                self._launcher_error = reason(returned)
                log.debug("job %d is lost", chunk.job, exc_info=returned)
            else:
                self._store(chunk, returned)
        if lost:
            self._recover(lost)

    def _store(self, chunk: Chunk, job: JobReturn) -> None:
        """Store the results of a job that returned, or its error for genomes without a result."""
        value, raised = outcome(job)
        lines = self._lines(chunk)
        results = self._returned_results(chunk.genomes, value)
        for index, genome in enumerate(chunk.genomes):
            if index in lines:
                self.evaluations.setdefault(genome, lines[index])
            elif raised:
                self.evaluations.setdefault(genome, Evaluation({}, raised))
            elif results is not None:
                self.evaluations.setdefault(genome, self.objectives.read(results[index]))
            elif genome not in self.evaluations:
                raise ValueError(
                    f"the job for a chunk of {len(chunk.genomes)} genomes returned "
                    f"{type(value).__name__}; expected a list with one result per genome, or one "
                    'line per genome in its "results" file.'
                )

    def _lines(self, chunk: Chunk) -> dict[int, Evaluation]:
        if not self.settings.shard_key:
            return {}
        return self.files.lines(self.files.path(chunk), len(chunk.genomes))

    def _returned_results(self, genomes: Sequence[Genome], value: Any) -> list[Any] | None:
        """The results that a job returned, one per genome; None if it returned no such list."""
        if not self.settings.shard_key:
            return [value]
        return value if isinstance(value, list) and len(value) == len(genomes) else None

    def _overrides(self, chunk: Chunk) -> list[str]:
        """All overrides of the job of a chunk."""
        extra = [text.format(worker=chunk.worker) for text in self.settings.worker_overrides]
        return [*self.arguments, *self._values(chunk.genomes[0], self.files.path(chunk)), *extra]

    def _values(self, genome: Genome, path: Path) -> list[str]:
        """The overrides that tell a job which genomes to evaluate."""
        if self.settings.shard_key:
            return [f"{self.settings.shard_key}={quoted(path)}"]
        return self.space.overrides(genome)

    def _recover(self, chunks: list[Chunk]) -> None:
        """Load the results of interrupted jobs, also from an earlier process.

        An earlier process may have split the generation into other chunks. Failed genomes are
        evaluated again.
        """
        if not self.settings.shard_key:
            for chunk in chunks:
                self._load_record(chunk.job, chunk.genomes, Path())
            return
        for path, job, genomes in self.files.earlier():
            for index, evaluation in self.files.lines(path, len(genomes)).items():
                if not evaluation.failed:
                    self.evaluations.setdefault(genomes[index], evaluation)
            self._load_record(job, genomes, path)

    def _load_record(self, job: int, genomes: Sequence[Genome], path: Path) -> None:
        """Load the saved return value of a job if that job evaluated these genomes."""
        done, value = recorded(self.folder, job, self._values(genomes[0], path))
        if not done or (results := self._returned_results(genomes, value)) is None:
            return
        for genome, result in zip(genomes, results, strict=True):
            if not (evaluation := self.objectives.read(result)).failed:
                self.evaluations.setdefault(genome, evaluation)

    def _check_failures(self, genomes: Sequence[Genome], fruitless: int) -> None:
        """Count genomes without a result as failed. Raise ValueError if too many failed.

        Args:
            fruitless: launches in a row without a new result.
        """
        if self._launcher_error and not self.evaluations:
            raise ValueError(
                f"no job returned a result; the launcher failed: {self._launcher_error}"
            )
        times = f", {fruitless} times in a row" if fruitless > 1 else ""
        why = f"its job was lost{times}: {self._launcher_error}"
        for genome in genomes:
            self.evaluations.setdefault(genome, Evaluation({}, why))
        errors = [e.error for e in map(self.evaluations.__getitem__, genomes) if e.failed]
        if len(errors) > self.settings.max_failure_rate * len(genomes):
            where = next(filter(None, (failure(self.folder, s.job) for s in self._chunks)), "")
            raise ValueError(
                f"{len(errors)} of {len(genomes)} genomes failed, more than "
                f"hydra.sweeper.max_failure_rate={self.settings.max_failure_rate} allows. "
                f"First error: {errors[0]}{where}"
            )


def run_one(
    launcher: Launcher, folder: Path, overrides: Sequence[str], number: int, name: str, retries: int
) -> Any:
    """Run one job outside the generations and return its value; ValueError if it fails.

    Args:
        name: what the job is called in messages.
        retries: how often the job is launched again if its worker dies.
    """
    for left in reversed(range(1 + retries)):
        try:
            job = launch_one(launcher, overrides, number)
            break
        except Exception as error:  # Each launcher raises its own errors.
            if not left:
                raise ValueError(f"{name} did not run: {reason(error)}") from error
            log.warning("%s was lost and is launched again (%s)", name, reason(error))
    value, error_text = outcome(job)
    if error_text:
        raise ValueError(f"{name} failed: {error_text}{failure(folder, number)}")
    return value


def quoted(path: Path) -> str:
    """A path, quoted for an override."""
    return "'" + str(path).replace("'", "\\'") + "'"
