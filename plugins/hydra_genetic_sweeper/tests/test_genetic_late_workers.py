"""Workers that outlive Ctrl-C are killed, and others are left alone."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event

import pytest
from hydra_plugins.hydra_genetic_sweeper._interruptions import killing_late_workers

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, as in a process of its own; a worker of pytest-xdist ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def deaf(ready: Event) -> None:
    """Ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready.set()
    time.sleep(600)


def test_after_ctrl_c_a_worker_that_goes_on_is_killed() -> None:
    ready = FORK.Event()
    worker = FORK.Process(target=deaf, args=(ready,))
    worker.start()
    assert ready.wait(60)
    with pytest.raises(KeyboardInterrupt), killing_late_workers(patience=0.1):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            worker.join(60)
    assert worker.exitcode == -signal.SIGKILL


def test_after_ctrl_c_a_worker_of_joblib_is_killed() -> None:
    loky = pytest.importorskip("joblib.externals.loky")
    pool = loky.ProcessPoolExecutor(1)
    try:
        work = pool.submit(time.sleep, 600)
        with pytest.raises(KeyboardInterrupt), killing_late_workers(patience=0.1):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            finally:
                error = work.exception(60)
        assert "SIGKILL" in str(error)
    finally:
        pool.shutdown(kill_workers=True)


def test_without_ctrl_c_and_after_the_block_workers_go_on() -> None:
    before, ready = signal.getsignal(signal.SIGINT), FORK.Event()
    worker = FORK.Process(target=deaf, args=(ready,))
    worker.start()
    assert ready.wait(60)
    with killing_late_workers(patience=0.05):
        time.sleep(0.2)
    with pytest.raises(KeyboardInterrupt), killing_late_workers(patience=0.2):
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.4)
    assert worker.is_alive() and signal.getsignal(signal.SIGINT) is before
    worker.kill()
    worker.join()


def test_other_threads_do_not_change_the_signal() -> None:
    before, inside = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with killing_late_workers():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
