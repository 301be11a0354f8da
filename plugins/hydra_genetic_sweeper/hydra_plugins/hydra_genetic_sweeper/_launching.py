"""Run jobs through Hydra's launcher so that a dead worker costs as few other jobs as possible.

A launcher runs several jobs in one call. It returns all results together, or raises if a job is
lost. Submitit raises while other jobs still run, so each of its jobs gets its own call in a thread.
Joblib stops all its workers when one dies, and Ray restarts a lost job three times before it
raises: these two, and all other launchers, get one call for all jobs.
"""

import threading
from collections.abc import Iterator, Sequence
from itertools import groupby
from queue import SimpleQueue

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from ._chunks import Chunk
from ._interruptions import killing_late_workers
from ._records import is_lost

Job = tuple[Chunk, list[str]]  # a chunk and the overrides of its job
Outcome = tuple[Chunk, JobReturn | Exception]  # the launcher's exception if the job is lost
APART = ("hydra_plugins.hydra_submitit_launcher",)  # launchers with one call per job


def launch_one(launcher: Launcher, overrides: Sequence[str], number: int) -> JobReturn:
    """Run one job. If it is lost, raise the launcher's exception."""
    [returned] = launcher.launch([list(overrides)], initial_job_idx=number)
    if is_lost(returned):
        raise returned._return_value
    return returned


def launched(launcher: Launcher, jobs: Sequence[Job], width: int | None) -> Iterator[Outcome]:
    """Run jobs and yield each outcome as soon as it is available.

    Args:
        width: the most jobs per call, so that no two jobs of one worker run at the same time;
            None: no limit.
    """
    if type(launcher).__module__.startswith(APART):
        yield from _apart(launcher, jobs)
        return
    for call in _calls(jobs, width):
        try:
            with killing_late_workers():
                returned = launcher.launch([o for _, o in call], initial_job_idx=call[0][0].job)
        except Exception as error:  # Each launcher raises its own errors for a dead worker.
            yield from ((chunk, error) for chunk, _ in call)
        else:
            yield from zip((chunk for chunk, _ in call), returned, strict=True)


def _calls(jobs: Sequence[Job], width: int | None) -> Iterator[list[Job]]:
    """Group jobs into calls. The jobs of one call must have consecutive numbers."""
    for _, pairs in groupby(enumerate(jobs), key=lambda pair: pair[1][0].job - pair[0]):
        run = [job for _, job in pairs]
        step = width or len(run)
        yield from (run[i : i + step] for i in range(0, len(run), step))


def _apart(launcher: Launcher, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Run the jobs of each worker one after another, in one thread per worker.

    The threads are daemons, so that Ctrl-C ends the search without waiting for them.
    """
    done: SimpleQueue[tuple[Chunk, JobReturn | BaseException]] = SimpleQueue()

    def work(mine: Sequence[Job]) -> None:
        for chunk, overrides in mine:
            try:
                done.put((chunk, launch_one(launcher, overrides, chunk.job)))
            except BaseException as error:
                done.put((chunk, error))

    for worker in sorted({chunk.worker for chunk, _ in jobs}):
        mine = [job for job in jobs if job[0].worker == worker]
        threading.Thread(target=work, args=(mine,), daemon=True).start()
    for _ in jobs:
        chunk, outcome = done.get()
        if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
            raise outcome
        yield chunk, outcome
