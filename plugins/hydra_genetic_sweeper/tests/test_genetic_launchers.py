"""Searches under every launcher, with workers that are lost amid a generation."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from applications import (
    CHUNKS,
    JOBLIB,
    RAY,
    SLURM,
    SUBMITIT,
    Result,
    begin,
    evaluated,
    log,
    results,
    run,
)

Launch = Callable[..., Result]
pytestmark = pytest.mark.slow
LAUNCHERS = {
    "joblib": (JOBLIB[0], "hydra.launcher.n_jobs=3"),
    "submitit": SUBMITIT,
    "slurm": SLURM,
    "ray": RAY,
}
NEEDED = {
    "joblib": "hydra_joblib_launcher",
    "submitit": "hydra_submitit_launcher",
    "slurm": "hydra_submitit_launcher",
    "ray": "hydra_ray_launcher",
}
# A job of submitit's takes two seconds to begin, and one that is lost seventeen to be given up.
FEW = ("hydra.sweeper.generations=2", "hydra.sweeper.population=9", "seconds=.02")


def using(launcher: str) -> tuple[str, ...]:
    """Three workers of a launcher; the test is skipped where it is not installed."""
    pytest.importorskip(f"hydra_plugins.{NEEDED[launcher]}")
    return (*LAUNCHERS[launcher], "hydra.sweeper.n_workers=3", *FEW)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search in one process that nothing interrupts."""
    folder = tmp_path_factory.mktemp("alone")
    done = run(folder, CHUNKS, *FEW)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_worker_killed_amid_a_generation_costs_its_own_work_only(
    launch: Launch, alone: Path, tmp_path: Path, launcher: str
) -> None:
    overrides, folder = using(launcher), tmp_path / "killed"
    folder.mkdir()
    (folder / "kill-evaluate").touch()
    done = launch(CHUNKS, *overrides, folder="killed")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not (folder / "kill-evaluate").exists() and "Traceback" not in said
    assert results(folder) == results(alone)
    found = evaluated(folder)
    if launcher == "joblib":  # Which ends all its workers with the one.
        assert set(found) == set(evaluated(alone)) and len(found) <= len(evaluated(alone)) + 2
    else:
        assert found == evaluated(alone)
    if launcher == "ray":  # Which starts the job again by itself, and says so.
        assert "retries" in said
        assert sum(line.startswith("begin") for line in log(folder)) == 7
    else:
        assert said.count("jobs lost; of 9 genomes") == 1


def test_a_generation_that_is_killed_with_all_its_workers_goes_on_under_another_launcher(
    launch: Launch, alone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "whole"
    process = begin(folder, 12 + 3 + 3, *using("joblib"))  # all of the first; of the second some
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len((folder / "sweep/generations.jsonl").read_text().splitlines()) == 2
    done = launch(CHUNKS, *using("submitit"), folder="whole")
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(folder) == results(alone)
    again = len(evaluated(folder)) - len(evaluated(alone))
    assert set(evaluated(folder)) == set(evaluated(alone)) and again <= 3


def test_a_job_that_is_preempted_goes_on_from_the_queue(
    launch: Launch, alone: Path, tmp_path: Path
) -> None:
    overrides, folder = using("submitit"), tmp_path / "preempted"
    folder.mkdir()
    (folder / "preempt-evaluate").touch()
    done = launch(CHUNKS, *overrides, folder="preempted")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost" not in done.stdout and not (folder / "preempt-evaluate").exists()
    assert results(folder) == results(alone)
    assert sum(line.startswith("begin") for line in log(folder)) == 7


def test_without_slurm_its_launcher_gets_one_sentence(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("applications.with_slurm", lambda folder: {})
    pytest.importorskip("submitit")
    done = launch(CHUNKS, *SLURM, "hydra.sweeper.retries=0")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "no job ended with a result; the launcher failed: RuntimeError: Could not" in done.stderr
