"""Genomes to jobs and back: the launcher, retries, and what a killed search had finished."""

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
        self.found: dict[Genome, Evaluation] = {}  # of the generation at hand
        self.limit: dict[str, float] | None = None  # that its genomes must be better than
        self.files = ChunkFiles(self.folder, 0, space, objectives)
        self._chunks: list[Chunk] = []
        self._trouble = ""  # why the launcher failed last

    def evaluate(self, generation: int, genomes: Sequence[Genome], first_job: int) -> int:
        """Evaluate genomes of a generation into `found`; returns the number of jobs it takes.

        Raises ValueError when more of them fail than `max_failure_rate` allows, when the launcher
        runs no job at all, or when a job returned what cannot be read.
        """
        self.found, self._trouble = {}, ""
        self.files = ChunkFiles(self.folder, generation, self.space, self.objectives)
        self._chunks = self._divide(genomes, first_job)
        self._recover(self._chunks)
        fruitless = 0
        while missing := self._missing():
            before = len(self.found)
            self._launch(missing)
            fruitless = 0 if len(self.found) > before else fruitless + 1
            if fruitless > self.settings.retries or not self.settings.retries:
                break
            self._warn(generation, genomes)
        self._check_failures(genomes, fruitless)
        return len(self._chunks)

    def _missing(self) -> list[Chunk]:
        """Chunks with a genome that has no result."""
        return [s for s in self._chunks if any(g not in self.found for g in s.genomes)]

    def _warn(self, generation: int, genomes: Sequence[Genome]) -> None:
        """Say what was lost, if anything, and that it is launched again."""
        if lost := self._missing():
            log.warning(
                "generation %d: %d of %d jobs lost; of %d genomes %d have no result and are "
                "launched again (%s)",
                generation,
                len(lost),
                len(self._chunks),
                len(genomes),
                sum(g not in self.found for g in genomes),
                self._trouble,
            )

    def progress(self) -> int:
        """Genomes of the generation with a result on disk, as far as their files tell."""
        if self.settings.shard_key:
            return max(len(self.found), self.files.count())
        records = sum(is_recorded(self.folder, chunk.job) for chunk in self._chunks)
        return max(len(self.found), records)

    def _divide(self, genomes: Sequence[Genome], first_job: int) -> list[Chunk]:
        workers = self.settings.n_workers
        size = self.settings.shard_size or -(-len(genomes) // workers)
        count = -(-len(genomes) // size)
        return [Chunk(list(genomes[i::count]), i, first_job + i, i % workers) for i in range(count)]

    def _launch(self, chunks: list[Chunk]) -> None:
        """Run the jobs of chunks; one that is lost leaves what its files hold."""
        if self.settings.shard_key:
            extra = {"prepared": self.prepared, "limit": self.limit}
            for chunk in chunks:
                self.files.write(chunk, self.found, extra)
        jobs = [(chunk, self._overrides(chunk)) for chunk in chunks]
        width = self.settings.n_workers if self.settings.worker_overrides else None
        lost = []
        for chunk, returned in launched(self.launcher, jobs, width):
            if isinstance(returned, Exception):
                lost.append(chunk)
                self._trouble = reason(returned)
                log.debug("job %d is lost", chunk.job, exc_info=returned)
            else:
                self._take(chunk, returned)
        if lost:
            self._recover(lost)

    def _take(self, chunk: Chunk, job: JobReturn) -> None:
        """What a job that came back has found, and why where it has not."""
        value, raised = outcome(job)
        lines = self._lines(chunk)
        listed = self._listed(chunk.genomes, value)
        for index, genome in enumerate(chunk.genomes):
            if index in lines:
                self.found.setdefault(genome, lines[index])
            elif raised:
                self.found.setdefault(genome, Evaluation({}, raised))
            elif listed is not None:
                self.found.setdefault(genome, self.objectives.read(listed[index]))
            elif genome not in self.found:
                raise ValueError(
                    f"the job of a chunk with {len(chunk.genomes)} genomes returned "
                    f"{type(value).__name__}, expected a list with as many results, or a line for "
                    'each in its "results" file.'
                )

    def _lines(self, chunk: Chunk) -> dict[int, Evaluation]:
        if not self.settings.shard_key:
            return {}
        return self.files.lines(self.files.path(chunk), len(chunk.genomes))

    def _listed(self, genomes: Sequence[Genome], value: Any) -> list[Any] | None:
        """One result per genome as a job returned them; None where it did not."""
        if not self.settings.shard_key:
            return [value]
        return value if isinstance(value, list) and len(value) == len(genomes) else None

    def _overrides(self, chunk: Chunk) -> list[str]:
        """All overrides of a job."""
        own = [text.format(worker=chunk.worker) for text in self.settings.worker_overrides]
        return [*self.arguments, *self._values(chunk.genomes[0], self.files.path(chunk)), *own]

    def _values(self, genome: Genome, path: Path) -> list[str]:
        """The overrides that say which genomes a job evaluates."""
        if self.settings.shard_key:
            return [f"{self.settings.shard_key}={quoted(path)}"]
        return self.space.overrides(genome)

    def _recover(self, chunks: list[Chunk]) -> None:
        """What jobs that were cut short, in this process or an earlier one, had finished.

        Chunks count in whatever division of the generation they were; failures are tried again.
        """
        if not self.settings.shard_key:
            for chunk in chunks:
                self._recall(chunk.job, chunk.genomes, Path())
            return
        for path, job, genomes in self.files.earlier():
            for index, found in self.files.lines(path, len(genomes)).items():
                if not found.failed:
                    self.found.setdefault(genomes[index], found)
            self._recall(job, genomes, path)

    def _recall(self, job: int, genomes: Sequence[Genome], path: Path) -> None:
        """What the record of a job holds, where it is of these genomes."""
        done, value = recorded(self.folder, job, self._values(genomes[0], path))
        if not done or (listed := self._listed(genomes, value)) is None:
            return
        for genome, one in zip(genomes, listed, strict=True):
            if not (found := self.objectives.read(one)).failed:
                self.found.setdefault(genome, found)

    def _check_failures(self, genomes: Sequence[Genome], fruitless: int) -> None:
        """Count what has no result as failed; ValueError where that is too many.

        fruitless: launches in a row that brought no result.
        """
        if self._trouble and not self.found:
            raise ValueError(f"no job ended with a result; the launcher failed: {self._trouble}")
        times = f", {fruitless} times in a row" if fruitless > 1 else ""
        why = f"its job was lost{times}: {self._trouble}"
        for genome in genomes:
            self.found.setdefault(genome, Evaluation({}, why))
        errors = [e.error for e in map(self.found.__getitem__, genomes) if e.failed]
        if len(errors) > self.settings.max_failure_rate * len(genomes):
            where = next(filter(None, (failure(self.folder, s.job) for s in self._chunks)), "")
            raise ValueError(
                f"{len(errors)} of {len(genomes)} genomes failed, more than "
                f"hydra.sweeper.max_failure_rate={self.settings.max_failure_rate} allows; "
                f"the first: {errors[0]}{where}"
            )


def run_one(
    launcher: Launcher, folder: Path, overrides: Sequence[str], number: int, name: str, retries: int
) -> Any:
    """What one job beside the generations returned; ValueError in a sentence where it failed.

    retries: how often it is launched again where it is lost, as when its worker dies.
    """
    for left in reversed(range(1 + retries)):
        try:
            job = launch_one(launcher, overrides, number)
            break
        except Exception as error:  # Whatever the launcher makes of it.
            if not left:
                raise ValueError(f"{name} did not run: {reason(error)}") from error
            log.warning("%s was lost and is launched again (%s)", name, reason(error))
    value, why = outcome(job)
    if why:
        raise ValueError(f"{name} failed: {why}{failure(folder, number)}")
    return value


def quoted(path: Path) -> str:
    """A path as a value in the grammar of overrides."""
    return "'" + str(path).replace("'", "\\'") + "'"
