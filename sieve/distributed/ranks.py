"""The end of a rank ends the others, in seconds and with one sentence.

A rank that waits for a killed one would wait for as long as the strategy's timeout. On one machine
every rank therefore watches the process that it was started by or has started; what several
machines share, torch's own timeout ends.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from subprocess import Popen
from typing import Any

log = logging.getLogger(__name__)
EVERY_S = 0.5
GRACE_S = 5.0  # for a rank to end by an error of its own
# What torch says of a peer that has gone, by gloo and by NCCL.
SIGNS = ("connection", "broken pipe", "remote process", "timed out", "timeout")
ADVICE = "run the same command again: what was finished is kept"


def watch(launcher: Any) -> None:
    """Watch, in a thread, the ranks that this one has started, or the process that has started it.

    launcher: Lightning's, or None in a rank that has started no other.
    """
    children = [] if launcher is None else list(launcher.procs)
    if children:
        launcher.procs.clear()  # Lightning's own watchman kills without a word.
    threading.Thread(target=_watch, args=(children, os.getppid()), daemon=True).start()


def _ended(children: Sequence[Popen[Any]], parent: int) -> str | None:
    """What became of the first child that has failed, or of the parent."""
    if not children and os.getppid() != parent:
        return "the process that started this rank has ended"
    for rank, child in enumerate(children, start=1):
        if status := child.poll():
            how = f"was killed by signal {-status}" if status < 0 else f"failed (status {status})"
            return f"rank {rank} {how}"
    return None


def _watch(children: Sequence[Popen[Any]], parent: int) -> None:
    while (lost := _ended(children, parent)) is None:
        time.sleep(EVERY_S)
    time.sleep(GRACE_S)
    log.error("%s, and the others cannot go on without it; %s.", lost, ADVICE)
    for child in children:
        if child.poll() is None:
            child.kill()
    logging.shutdown()
    os._exit(1)


def lost_rank(error: BaseException) -> str | None:
    """One sentence where an error says that another rank has gone, else None."""
    text = str(error).lower()
    told = "gloo" in text or "nccl" in text or "distributed" in type(error).__name__.lower()
    if not (told and any(sign in text for sign in SIGNS)):
        return None
    return f"another rank of this run has ended, and this one cannot go on without it; {ADVICE}."
