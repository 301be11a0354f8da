"""When one rank ends, end the others within seconds and say why in one sentence.

Otherwise a rank would wait for a killed one until the strategy's timeout. On one machine, each rank
watches its parent process or the ranks that it started. Between machines, torch's timeout applies.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from subprocess import Popen

log = logging.getLogger(__name__)
POLL_S = 0.5
GRACE_S = 5.0  # for a rank to end with its own error
# Words in torch's errors about a lost peer, with gloo and with NCCL.
SIGNS = ("connection", "broken pipe", "remote process", "timed out", "timeout")
ADVICE = "Run the same command again to resume"


def watch(launcher: object) -> None:
    """Watch the ranks that this one started, or else its parent process, in a thread.

    launcher: Lightning's launcher; None in a rank that started no other.
    """
    started: list[Popen[bytes]] = getattr(launcher, "procs", [])
    children = list(started)
    started.clear()  # Lightning's own monitor would kill without a message.
    threading.Thread(target=_watch, args=(children, os.getppid()), daemon=True).start()


def _ended(children: Sequence[Popen[bytes]], parent: int) -> str | None:
    """How the first failed child, or the parent, ended; None if all are alive."""
    if not children and os.getppid() != parent:
        return "the process that started this rank has ended"
    for rank, child in enumerate(children, start=1):
        if status := child.poll():
            how = f"was killed by signal {-status}" if status < 0 else f"failed (status {status})"
            return f"rank {rank} {how}"
    return None


def _watch(children: Sequence[Popen[bytes]], parent: int) -> None:
    while (reason := _ended(children, parent)) is None:
        time.sleep(POLL_S)
    time.sleep(GRACE_S)
    log.error("%s, so all ranks stop. %s.", reason, ADVICE)
    for child in children:
        if child.poll() is None:
            child.kill()
    logging.shutdown()
    os._exit(1)


def lost_rank(error: BaseException) -> str | None:
    """A message for the user if an error says that another rank ended, else None."""
    text = str(error).lower()
    from_torch = "gloo" in text or "nccl" in text or "distributed" in type(error).__name__.lower()
    if not (from_torch and any(sign in text for sign in SIGNS)):
        return None
    return f"Another rank of this run has ended, so this one stops. {ADVICE}."
