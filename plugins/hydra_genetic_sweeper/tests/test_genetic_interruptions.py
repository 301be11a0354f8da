"""Searches that are killed, stopped or fail, and resume."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from applications import (
    BOWL,
    CHUNKS,
    JOBLIB,
    Result,
    begin,
    command,
    environment,
    evaluated,
    log,
    results,
)

Launch = Callable[..., Result]
SLOW = "seconds=0.03"
PREPARE = "hydra.sweeper.prepare=['first=yes']"
pytestmark = pytest.mark.slow


def kill(process: "subprocess.Popen[str]", number: int, group: bool = False) -> tuple[str, str]:
    """Send a signal to a process, or to its group as a terminal does; return its output.

    Repeat the signal after a minute, because joblib's pool rarely keeps waiting for a worker.
    """
    send = os.killpg if group else os.kill
    send(process.pid, number)
    try:
        return process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        send(process.pid, number)
        return process.communicate(timeout=60)


@pytest.mark.slow
def test_a_search_killed_at_random_moments_ends_like_an_uninterrupted_one(
    launch: Launch, whole: Path, tmp_path: Path
) -> None:
    random, folder = np.random.default_rng(2), tmp_path / "killed"
    moments = np.sort(random.choice(np.arange(1, len(log(whole)) + 1), 3, replace=False))
    for steps in np.diff(moments, prepend=0):
        process = begin(folder, int(steps), SLOW)
        time.sleep(random.uniform(0, 0.08))
        kill(process, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    done = launch(CHUNKS, SLOW, folder="killed")
    assert done.returncode == 0, done.stderr
    assert results(folder) == results(whole)
    again = len(evaluated(folder)) - len(evaluated(whole))
    assert 0 <= again <= 3 and set(evaluated(folder)) == set(evaluated(whole))
    assert (folder / "last.txt").exists()


@pytest.mark.slow
def test_finished_jobs_of_one_genome_are_not_launched_again(launch: Launch, tmp_path: Path) -> None:
    few = ("hydra.sweeper.population=6", "hydra.sweeper.generations=2", "hydra.sweep.dir=sweep")
    assert launch(BOWL, *few, folder="whole").returncode == 0
    folder, records = tmp_path / "killed", tmp_path / "killed/sweep/returned"
    folder.mkdir()
    process = subprocess.Popen(
        command(BOWL, *few), cwd=folder, env=environment(), stdout=subprocess.DEVNULL
    )
    while len(list(records.glob("*.json"))) < 8:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert launch(BOWL, *few, folder="killed").returncode == 0
    assert results(folder) == results(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.slow
def test_a_ledger_that_cannot_be_repeated_is_refused(
    launch: Launch, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "other")
    ledger = tmp_path / "other/sweep/generations.jsonl"
    lines = ledger.read_text().splitlines()
    second = json.loads(lines[2])
    second["genomes"][0][0] = 9 - second["genomes"][0][0]
    ledger.write_text("\n".join([*lines[:2], json.dumps(second), *lines[3:]]) + "\n")
    done = launch(CHUNKS, folder="other")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "generation 2 of sweep/generations.jsonl cannot be repeated" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "group"), [("basic", False), ("joblib", True)])
def test_ctrl_c_writes_the_best_so_far_and_the_search_resumes(
    launch: Launch, whole: Path, tmp_path: Path, launcher: str, group: bool
) -> None:
    extra: tuple[str, ...] = ()
    if launcher == "joblib":
        pytest.importorskip("joblib")
        extra = JOBLIB
    folder = tmp_path / "stopped"
    process = begin(folder, 24, SLOW, *extra)
    out, err = kill(process, signal.SIGINT, group)
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err and "KeyboardInterrupt" not in out + err
    assert (out + err).count("to resume, repeat the command with hydra.sweep.dir=sweep") == 1
    assert "stopped_by: stopped by the user" in results(folder)
    assert "best_value" in results(folder)
    done = launch(CHUNKS, SLOW, *extra, folder="stopped")
    assert done.returncode == 0, done.stderr
    assert results(folder) == results(whole)


@pytest.mark.slow
def test_an_error_of_the_prepare_job_is_one_sentence(
    launch: Launch, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "raise-prepare").touch()
    done = launch(CHUNKS, PREPARE, folder="first")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the prepare job failed: RuntimeError: nothing to prepare" in done.stderr
    assert "nothing to prepare" in (folder / "sweep/failed/0.txt").read_text()
    (folder / "raise-prepare").unlink()
    assert launch(CHUNKS, PREPARE, folder="first").returncode == 0
    assert results(folder) == results(whole) and log(folder).count("first") == 2
    assert launch(CHUNKS, PREPARE, folder="first").returncode == 0
    assert log(folder).count("first") == 2


@pytest.mark.slow
def test_an_error_of_the_finalize_job_is_one_sentence_and_keeps_the_search(
    launch: Launch, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "last"
    folder.mkdir()
    (folder / "raise-finish").touch()
    done = launch(CHUNKS, folder="last")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the finalize job failed: RuntimeError: nothing to finish" in (done.stderr)
    assert results(folder) == results(whole)
    (folder / "raise-finish").unlink()
    assert launch(CHUNKS, folder="last").returncode == 0
    assert (folder / "last.txt").exists() and evaluated(folder) == evaluated(whole)


@pytest.mark.slow
def test_ctrl_c_in_the_finalize_job_keeps_the_result(
    launch: Launch, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    process = begin(folder, len(log(whole)), SLOW)
    out, err = kill(process, signal.SIGINT)
    assert process.returncode == 130 and "stopped in the finalize job" in out + err
    assert results(folder) == results(whole) and not (folder / "last.txt").exists()
    assert launch(CHUNKS, SLOW, folder="stopped").returncode == 0
    assert (folder / "last.txt").exists()
