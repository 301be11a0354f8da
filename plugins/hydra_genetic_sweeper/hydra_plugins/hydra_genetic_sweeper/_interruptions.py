"""Ctrl-C ends a search even where a launcher's worker does not stop.

A terminal sends Ctrl-C to all processes of a command. A worker of joblib that gets it at a bad
moment goes on waiting for work, rarely, and the launcher then waits for the worker.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

log = logging.getLogger(__name__)
PATIENCE = 20.0  # seconds from Ctrl-C until workers that go on are killed
# Not Process.kill: the processes of joblib's loky have none.
KILL = signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL


@contextmanager
def killing_late_workers(patience: float = PATIENCE) -> Iterator[None]:
    """After Ctrl-C inside the block, kill the child processes that outlive `patience` seconds.

    The signal does what it did before. Outside the main thread nothing changes.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    timer = threading.Timer(patience, _kill_workers, [patience])
    timer.daemon = True

    def interrupted(number: int, frame: FrameType | None) -> None:
        if timer.ident is None:  # A second Ctrl-C does not start it again.
            timer.start()
        previous(number, frame)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        timer.cancel()


def _kill_workers(patience: float) -> None:
    workers = multiprocessing.active_children()
    log.warning("%d workers did not stop within %g s and are killed", len(workers), patience)
    for worker in workers:
        if worker.pid is not None:
            with suppress(ProcessLookupError):  # It has ended since.
                os.kill(worker.pid, KILL)
