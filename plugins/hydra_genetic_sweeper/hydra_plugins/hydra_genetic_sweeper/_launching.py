"""Jobs through Hydra's launcher, such that a worker that is lost costs its own job only.

A launcher takes several jobs in one call and hands them back together, or raises where one is lost.
Submitit's raises while the others still run, so each of its jobs is a call of its own, in a thread.
Joblib ends its other workers with the lost one, and Ray starts a lost job again three times before
it raises: one call is enough for these, and for launchers that are not known.
"""

import threading
from collections.abc import Iterator, Sequence
from itertools import groupby
from queue import SimpleQueue

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from ._chunks import Chunk
from ._records import is_lost

Job = tuple[Chunk, list[str]]  # and its overrides
Outcome = tuple[Chunk, JobReturn | Exception]  # an exception of the launcher where it was lost
APART = ("hydra_plugins.hydra_submitit_launcher",)  # modules of launchers, a call per job


def launch_one(launcher: Launcher, overrides: Sequence[str], number: int) -> JobReturn:
    """Run one job; raises what the launcher raises where the job is lost."""
    [returned] = launcher.launch([list(overrides)], initial_job_idx=number)
    if is_lost(returned):
        raise returned._return_value
    return returned


def launched(launcher: Launcher, jobs: Sequence[Job], width: int | None) -> Iterator[Outcome]:
    """Run jobs; yields each as it is known what came of it.

    width: jobs of one call, where no two jobs of one worker may run at a time; None: no limit.
    """
    if type(launcher).__module__.startswith(APART):
        yield from _apart(launcher, jobs)
        return
    for call in _calls(jobs, width):
        try:
            returned = launcher.launch([o for _, o in call], initial_job_idx=call[0][0].job)
        except Exception as error:  # A dead worker is whatever the launcher makes of it.
            yield from ((chunk, error) for chunk, _ in call)
        else:
            yield from zip((chunk for chunk, _ in call), returned, strict=True)


def _calls(jobs: Sequence[Job], width: int | None) -> Iterator[list[Job]]:
    """What one call of a launcher can take: jobs with numbers in a row."""
    for _, pairs in groupby(enumerate(jobs), key=lambda pair: pair[1][0].job - pair[0]):
        run = [job for _, job in pairs]
        step = width or len(run)
        yield from (run[i : i + step] for i in range(0, len(run), step))


def _apart(launcher: Launcher, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """A thread per worker, which runs its jobs one after the other.

    The threads are daemons: Ctrl-C ends the search, and not only once they have returned.
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
