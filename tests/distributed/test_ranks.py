"""The end of one rank ends the others, also where they do not wait for each other."""

import subprocess
import sys
from pathlib import Path

import pytest

from sieve.distributed.ranks import lost_rank

WATCHES = """
import subprocess, sys, time
from types import SimpleNamespace
from sieve.distributed import ranks
ranks.GRACE_S = 0.0
child = subprocess.Popen([sys.executable, "-c", "import os; {end}"])
launcher = SimpleNamespace(procs=[child])
ranks.watch(launcher)
assert launcher.procs == []
{then}
"""


def run(end: str, then: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WATCHES.format(end=end, then=then)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_rank_that_is_busy_ends_when_another_is_killed() -> None:
    done = run("os.kill(os.getpid(), 9)", "time.sleep(600)")
    assert done.returncode == 1
    assert "rank 1 was killed by signal 9" in done.stderr
    assert "Run the same command again to resume" in done.stderr


def test_ranks_that_have_finished_are_not_missed() -> None:
    done = run("pass", "child.wait(); time.sleep(3 * ranks.POLL_S)")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "text",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset",
        "NCCL error: remote process exited or there was a network error",
    ],
)
def test_what_torch_says_of_a_lost_rank_becomes_one_sentence(text: str) -> None:
    said = lost_rank(RuntimeError(text))
    assert said is not None and "Run the same command again" in said
    assert lost_rank(RuntimeError("the connection to the Hub was reset")) is None
    assert lost_rank(ValueError("the weights are not finite")) is None
