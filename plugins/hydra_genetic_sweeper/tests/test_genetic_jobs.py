"""Whole searches, as a user runs them."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from applications import APPS, BOWL, Result, command, environment

SHARDS = APPS / "shards.py"
Launch = Callable[..., Result]
FEW = ("hydra.sweeper.population=4", "hydra.sweeper.generations=2", "hydra.sweep.dir=sweep")


def results(folder: Path) -> str:
    return (folder / "sweep" / "optimization_results.yaml").read_text()


@pytest.mark.slow
def test_the_example_finds_a_point_outside_the_circle(launch: Launch, tmp_path: Path) -> None:
    done = launch(BOWL, *FEW)
    assert done.returncode == 0, done.stderr
    assert "best_params" in results(tmp_path) and "generation 2" in done.stdout + done.stderr


@pytest.mark.slow
def test_shards_find_the_least_genome_and_the_last_job_gets_it_once(
    launch: Launch, tmp_path: Path
) -> None:
    done = launch(SHARDS, "hydra.sweeper.generations=25")
    assert done.returncode == 0, done.stderr
    solution = json.loads(Path((tmp_path / "last.txt").read_text()).read_text())
    assert list(solution["params"].values()) == [0, 1, 2, 3] and solution["feasible"]
    (tmp_path / "last.txt").unlink()
    assert launch(SHARDS, "hydra.sweeper.generations=25").returncode == 0
    assert not (tmp_path / "last.txt").exists()


@pytest.mark.slow
def test_two_workers_find_what_one_does_and_share_the_work(launch: Launch, tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    assert launch(SHARDS, folder="basic").returncode == 0
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_workers=2")
    done = launch(SHARDS, *joblib, folder="joblib")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "basic") == results(tmp_path / "joblib")
    logs = [
        sorted(
            line.split(" ", 1)[1] for line in (tmp_path / f / "log.txt").read_text().splitlines()
        )
        for f in ("basic", "joblib")
    ]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_submitit_finds_what_basic_does(launch: Launch, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    assert launch(SHARDS, "hydra.sweeper.generations=2", folder="basic").returncode == 0
    submitit = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=2")
    done = launch(SHARDS, "hydra.sweeper.generations=2", *submitit, folder="submitit")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "basic") == results(tmp_path / "submitit")


@pytest.mark.slow
@pytest.mark.parametrize("lines", [3, 17, 30])
def test_a_killed_search_goes_on_to_the_same_end_and_repeats_nothing(
    launch: Launch, tmp_path: Path, lines: int
) -> None:
    assert launch(SHARDS, folder="whole").returncode == 0
    folder = tmp_path / "killed"
    folder.mkdir()
    process = subprocess.Popen(
        command(SHARDS, "seconds=0.05"), cwd=folder, env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    log = folder / "log.txt"
    while not log.exists() or log.read_text().count("\n") < lines:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = launch(SHARDS, "seconds=0.05", folder="killed")
    assert done.returncode == 0, done.stderr
    assert results(folder) == results(tmp_path / "whole")
    counts = [(tmp_path / name / "log.txt").read_text().count("\n") for name in ("whole", "killed")]
    assert counts[1] - counts[0] in (0, 1)  # the genome that was being written down


@pytest.mark.slow
@pytest.mark.parametrize(
    ("app", "overrides", "words"),
    [
        (BOWL, ["x=1,2"], "on the command line sweeps on its own"),
        (BOWL, ["hydra.sweeper.params.x='interval(5, 1)'"], "expected low below high"),
        (BOWL, ["hydra.sweeper.constraints.outside='> 0'"], 'such as ">= 0"'),
        (BOWL, ["~hydra.sweeper.objectives.height", "+hydra.sweeper.objectives.cost=minimize"],
         "returned no 'cost'"),
        (BOWL, ["hydra.sweep.dir=/proc/nowhere"], "cannot be written"),
        (SHARDS, ["genes=0"], "nothing to search"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(
    launch: Launch, app: Path, overrides: list[str], words: str
) -> None:
    done = launch(app, *overrides)
    assert done.returncode == 1
    assert words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_changed_setting_is_named_when_a_search_is_resumed(launch: Launch) -> None:
    assert launch(SHARDS, "hydra.sweeper.generations=1").returncode == 0
    done = launch(SHARDS, "hydra.sweeper.generations=2", "hydra.sweeper.population=4")
    assert done.returncode == 1 and "population was 8, is 4" in done.stderr
    assert launch(SHARDS, "hydra.sweeper.generations=2").returncode == 0
