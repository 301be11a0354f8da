"""The end of one rank ends the others, also where they do not wait for each other."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sieve.distributed import ranks
from sieve.distributed.ranks import lost_rank


class Exit(Exception):
    """The watching thread would have ended the process."""


@pytest.fixture(autouse=True)
def raise_in_place_of_an_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(status: int) -> None:
        raise Exit(status)

    monkeypatch.setattr(ranks, "GRACE_S", 0.0)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    monkeypatch.setattr("os._exit", leave)


def start(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", code])


def test_the_end_of_a_killed_rank_ends_all_others(caplog: pytest.LogCaptureFixture) -> None:
    busy, killed = (
        start("import time; time.sleep(600)"),
        start("import os; os.kill(os.getpid(), 9)"),
    )
    with pytest.raises(Exit, match="1"):
        ranks._watch([busy, killed], parent=0)
    assert busy.wait() == -9
    assert "rank 2 was killed by signal 9" in caplog.text
    assert "Run the same command again to resume" in caplog.text


def test_ranks_that_have_finished_are_not_reported_as_lost(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = start("pass")
    child.wait()
    polls = []

    def sleep(seconds: float) -> None:
        polls.append(seconds)
        if len(polls) == 3:
            raise TimeoutError

    monkeypatch.setattr(ranks.time, "sleep", sleep)
    with pytest.raises(TimeoutError):
        ranks._watch([child], parent=0)
    assert polls == [ranks.POLL_S] * 3 and not caplog.records


def test_watching_takes_the_ranks_from_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[object] = []
    monkeypatch.setattr(ranks, "_watch", lambda children, parent: watched.append(children))
    child = start("pass")
    launcher = SimpleNamespace(procs=[child])
    ranks.watch(launcher)
    child.wait()
    assert launcher.procs == [] and watched == [[child]]


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
