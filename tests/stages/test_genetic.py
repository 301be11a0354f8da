"""A genetic search as one command, on a tiny model."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import ENVIRONMENT, Done, arguments, finished, make_world, run_sieve

pytestmark = pytest.mark.slow
SEARCH = (
    "search=genetic",
    "hydra.sweeper.population=4",
    "hydra.sweeper.generations=3",
    "search.bottlenecks=false",
    "projection.refit=false",
    "tolerance=.1",
    "search.rounds=1",
    "speed.enabled=false",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a data set, and one finished search."""
    root = make_world(tmp_path_factory.mktemp("world"))
    done = sweep(root, "whole")
    assert done.status == 0, done.stderr
    return root


def sweep(world: Path, name: str, *overrides: str, kill: str | None = None) -> Done:
    """Run a genetic search in the folder `name`."""
    folder = f"hydra.sweep.dir={world / name}"
    return run_sieve(world, world / "unused", folder, *SEARCH, *overrides, kill=kill)


def found(world: Path, name: str) -> str:
    return (world / name / "optimization_results.yaml").read_text()


def result(world: Path, name: str) -> dict[str, Any]:
    return json.loads((world / name / "result" / "result.json").read_text())


def test_one_command_searches_confirms_and_finishes(world: Path) -> None:
    record = result(world, "whole")
    search = record["search"]
    assert search["method"] == "genetic" and len(search["generations"]) == 3
    assert search["confirmation"]["rows"] == 24  # .4 of 60
    [chosen] = [point for point in search["curve"] if point["chosen"]]
    assert chosen["feasible"] and search["confirmation"]["tried"][-1]["feasible"]
    assert record["kept_fraction"]["prunable"] == pytest.approx(chosen["kept_fraction"])
    assert record["seconds"]["evolve"] == sum(row["seconds"] for row in search["generations"])
    assert "search=genetic" in record["command"] and "sweep." not in record["command"]
    assert (world / "whole/result/export/model.safetensors").exists()
    assert "genetic" in (world / "whole/result/report.html").read_text()


@pytest.mark.slow
def test_a_killed_search_resumes_on_two_workers_with_a_model_each(world: Path) -> None:
    assert sweep(world, "killed", kill="generations.jsonl:2").status == -signal.SIGKILL
    # Jobs may run elsewhere than before: the search finds the same genomes.
    joblib = ("launcher=joblib", "launcher.workers=2")
    done = sweep(world, "killed", *joblib, "hydra.verbose=[sieve.stages.opening]")
    assert done.status == 0, done.stderr
    assert found(world, "killed") == found(world, "whole")
    logs = (world / "killed").rglob("*.log")
    assert sum(path.read_text().count("loaded ") for path in logs) == 2


KILL_ONCE = """
import os, signal
from pathlib import Path
fsync = os.fsync

def fsync_and_die(number):
    fsync(number)
    path = os.readlink(f"/proc/self/fd/{number}")
    if "/chunks/0002/" in path and path.endswith(".jsonl"):
        try:
            Path(os.environ["KILL_ONCE"]).unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = fsync_and_die
"""


@pytest.mark.slow
def test_two_workers_one_of_which_is_killed_find_what_one_process_does(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world / "hook").mkdir(exist_ok=True)
    (world / "hook" / "sitecustomize.py").write_text(KILL_ONCE)  # Of every process below.
    (world / "kill").touch()
    monkeypatch.setitem(ENVIRONMENT, "KILL_ONCE", str(world / "kill"))
    before = ENVIRONMENT.get("PYTHONPATH", "")
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", f"{world / 'hook'}:{before}")
    ray = (f"hydra.sweep.dir={world / 'ray'}", *SEARCH, "launcher=ray", "launcher.workers=2")
    command = [sys.executable, "-m", "sieve.run", *arguments(world, world / "unused", *ray)]
    done = subprocess.run(command, cwd=world, env=ENVIRONMENT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not (world / "kill").exists()
    assert found(world, "ray") == found(world, "whole")
    genomes = [(world / one / "result/genome.json").read_bytes() for one in ("whole", "ray")]
    assert genomes[0] == genomes[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "evopress"])
def test_reference_searches_run(world: Path, method: str) -> None:
    changes = ("projection.refit=false", "tolerance=.1", "search.evaluations=60", "search.seeds=[]")
    record = finished(world, method, f"search={method}", *changes)["search"]
    assert record["method"] == method and record["confirmation"]["rows"] == 24
    # A model at chance loses nothing, so random search is soon at the smallest of all genomes.
    assert {"random": 8, "evopress": 20}[method] < record["evaluations"] <= 61
    assert min(point["kept_fraction"] for point in record["curve"] if point["feasible"]) < 0.5


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hydra.mode=RUN"], "search=genetic runs as a sweep"),
        (["search.confirmation=1"], "expected a share of the selection rows"),
        (["search.judge=margin"], "choose search=genetic_margin"),
        (["search.alleles=bits"], "expected one of ranks, levels"),
        (["trainer.devices=2"], "a sweep takes one device per job"),
        (["tolerance=.1,.2"], "is a sweep, which the genetic sweeper does not accept"),
    ],
)
def test_bad_input_gets_one_sentence(world: Path, overrides: list[str], words: str) -> None:
    done = sweep(world, "bad", *overrides)
    assert done.status == 1 and words in done.stderr
    assert "Traceback" not in done.stderr
