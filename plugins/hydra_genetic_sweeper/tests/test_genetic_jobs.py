"""Whole searches from the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from applications import BOWL, CHUNKS, JOBLIB, Result, evaluated, log, results
from omegaconf import OmegaConf

Launch = Callable[..., Result]
FEW = ("hydra.sweeper.population=4", "hydra.sweeper.generations=2", "hydra.sweep.dir=sweep")


@pytest.mark.slow
@pytest.mark.slow
def test_the_example_runs(launch: Launch, tmp_path: Path) -> None:
    done = launch(BOWL, *FEW)
    assert done.returncode == 0, done.stderr
    assert "best_params" in results(tmp_path) and "generation 2" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.slow
def test_every_genome_of_the_front_gets_a_finalize_job(launch: Launch, tmp_path: Path) -> None:
    front = (
        "+hydra.sweeper.objectives.outside=maximize",
        "~hydra.sweeper.constraints.outside",
        "hydra.sweeper.finalize=['hydra.job.name=last']",
        "hydra.sweeper.finalize_front=true",
    )
    done = launch(BOWL, *FEW, *front)
    assert done.returncode == 0, done.stderr
    solutions = OmegaConf.load(tmp_path / "sweep/optimization_results.yaml").solutions
    assert len(solutions) > 1
    for number, solution in enumerate(solutions):
        record = json.loads((tmp_path / f"sweep/returned/{8 + number}.json").read_text())
        assert record["returned"]["height"] == pytest.approx(solution["values"]["height"])
        assert f"shape={solution['params']['shape']}" in record["overrides"]
    assert not (tmp_path / f"sweep/returned/{8 + len(solutions)}.json").exists()


@pytest.mark.slow
@pytest.mark.slow
def test_a_search_over_chunks_finds_the_optimum_and_finalizes_it_once(
    launch: Launch, tmp_path: Path
) -> None:
    done = launch(CHUNKS, "hydra.sweeper.generations=25")
    assert done.returncode == 0, done.stderr
    solution = json.loads(Path((tmp_path / "last.txt").read_text()).read_text())
    assert list(solution["params"].values()) == [0, 1, 2, 3] and solution["feasible"]
    (tmp_path / "last.txt").unlink()
    assert launch(CHUNKS, "hydra.sweeper.generations=25").returncode == 0
    assert not (tmp_path / "last.txt").exists()


@pytest.mark.slow
def test_the_limit_of_a_chunk_is_the_worst_survivor(whole: Path) -> None:
    lines = (whole / "sweep/generations.jsonl").read_text().splitlines()
    sizes: list[float] = []
    limits = []
    for number, line in enumerate(map(json.loads, lines[1:7]), 1):
        [chunk] = (whole / f"sweep/chunks/{number:04d}").glob("*.json")
        limits.append(json.loads(chunk.read_text())["limit"])
        survivors = sorted(sizes)[:8]
        assert limits[-1] == ({"size": survivors[-1]} if len(survivors) == 8 else None)
        sizes += [v["size"] for v in line["values"] if v["margin"] >= 0]
    assert limits[0] is None and limits[-1] is not None


@pytest.mark.slow
@pytest.mark.slow
def test_two_workers_find_the_same_result_each_on_its_own_device(
    launch: Launch, whole: Path, tmp_path: Path
) -> None:
    pytest.importorskip("joblib")
    device = "hydra.sweeper.worker_overrides=['device={worker}']"
    done = launch(CHUNKS, *JOBLIB, device, "hydra.sweeper.shard_size=2", folder="joblib")
    assert done.returncode == 0, done.stderr
    assert results(whole) == results(tmp_path / "joblib")
    assert evaluated(whole) == evaluated(tmp_path / "joblib")
    for worker in (0, 1):
        notes = [x.split()[0] for x in log(tmp_path / "joblib") if x.split()[-1] == str(worker)]
        assert notes == ["begin", "end"] * (len(notes) // 2) and len(notes) > 6


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize(
    ("app", "overrides", "words"),
    [
        (BOWL, ["x=1,2"], "is a sweep, which the genetic sweeper does not accept"),
        (
            BOWL,
            ["~hydra.sweeper.objectives.height", "+hydra.sweeper.objectives.cost=minimize"],
            "returned no 'cost'",
        ),
        (BOWL, ["hydra.sweep.dir=/proc/nowhere"], "cannot be written"),
        (CHUNKS, ["genes=0"], "nothing to search"),
    ],
)
def test_bad_input_gets_one_sentence(
    launch: Launch, app: Path, overrides: list[str], words: str
) -> None:
    done = launch(app, *overrides)
    assert done.returncode == 1
    assert words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.slow
def test_a_changed_setting_is_named_when_a_search_is_resumed(
    launch: Launch, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "resumed")
    done = launch(CHUNKS, "hydra.sweeper.population=4", folder="resumed")
    assert done.returncode == 1 and "population was 8, is 4" in done.stderr
    assert launch(CHUNKS, "hydra.sweeper.generations=7", folder="resumed").returncode == 0
