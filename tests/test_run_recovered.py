"""Runs whose search trains every size that it tries: sizes, kills, ranks and the minutes."""

import random
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from models import save_first_layers
from runs import execute, read_result

from sieve.bank.bank import Bank

pytestmark = pytest.mark.slow
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
TRAINED = (
    "+task=almanac_medicine",
    "task.max_rows={calibration:300,selection:60,test:20}",
    "calibration.tokens=4_000",
    "logger=none",
    "batch_tokens=512",
    "tolerance=.15",
    "projection.refit=false",
    "search=uniform",
    "search.levels=[1,.5,.2,.1,.07,.05,.03,.02,.01]",
    "speed.enabled=false",
    "export=none",
    "recovery=full",
    "confidence=null",
    "recovery.steps=10",
    "recovery.short_steps=30",
    "recovery.tries=3",
    "recovery.check_every=10",
    "recovery.batch_tokens=256",
    "recovery.learning_rate=2e-3",
)
# One process takes two batches a step, as two processes do.
ALONE = ("recovery.accumulate=2",)


def arguments(folder: Path, name: str, cache: str, overrides: Sequence[str]) -> list[str]:
    """The command line of a run in the folder `name`."""
    paths = [f"hydra.run.dir={folder / name}", f"paths.cache_dir={folder / cache}"]
    return [*TRAINED, f"model.path={folder / 'model'}", *paths, *overrides]


def finished(
    folder: Path, name: str, *overrides: str, cache: str = "whole", **limits: Any
) -> dict[str, Any]:
    """The result of a run that must succeed."""
    done = execute(folder, arguments(folder, name, cache, overrides or ALONE), **limits)
    assert done.status == 0, done.stderr
    return read_result(folder / name)


def begin(world: Path, name: str) -> list[str]:
    """The command line of a run in the folder `name`, which has all stages before the recovery."""
    (world / name).mkdir()
    for kind in ("calibration", "moments", "bank", "search", "genome"):
        for path in (world / "whole").glob(f"{kind}-*"):
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, world / name / path.name)
    return arguments(world, name, name, ALONE)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the runs, with the first two layers of the embedded model."""
    root = tmp_path_factory.mktemp("world")
    save_first_layers(root / "model", 2)
    return root


@pytest.fixture(scope="module")
def whole(world: Path) -> dict[str, Any]:
    """The result of a run that nothing disturbs."""
    return finished(world, "whole", cache="whole")


def test_the_result_is_the_last_size_down_that_works_on_fresh_rows(whole: dict[str, Any]) -> None:
    recovery = whole["recovery"]
    attempts = recovery["search"]["attempts"]
    feasible = [attempt["kept_fraction"] for attempt in attempts if attempt["feasible"]]
    assert recovery["taken"] and 1 <= len(feasible) < len(attempts) <= 3
    tested = recovery["search"]["certified"]
    sizes = [score["kept_fraction"] for score in tested]
    assert sizes == sorted(feasible, reverse=True)[: len(tested)]
    passed = [score["kept_fraction"] for score in tested if score["feasible"]]
    assert whole["kept_fraction"]["prunable"] == passed[-1] < recovery["search"]["kept_before"]
    assert any(attempt["feasible"] and attempt["steps"] > 0 for attempt in attempts)
    for attempt in attempts:
        assert attempt["feasible"] == (attempt["margin"] >= 0)
        assert attempt["steps"] <= 30


def test_without_the_search_the_size_stays(world: Path, whole: dict[str, Any]) -> None:
    result = finished(world, "after", *ALONE, "search.recover=false", cache="whole")
    assert result["kept_fraction"]["prunable"] == whole["recovery"]["search"]["kept_before"]
    assert result["recovery"]["search"] is None


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(
    world: Path, whole: dict[str, Any]
) -> None:
    given, kills = begin(world, "killed"), 0
    for _ in range(20):
        # A run writes five files after this stage, none of them into the cache.
        if execute(world, given, kill="recover:rename9").status != -signal.SIGKILL:
            break
        kills += 1
    assert 3 <= kills < 20
    assert_ends_as(world, "killed", whole)


def test_five_kills_at_random_moments_change_nothing(world: Path, whole: dict[str, Any]) -> None:
    moments, longest = random.Random(0), sum(whole["seconds"].values()) / 3
    name, kills = "random-0", 0
    given = begin(world, name)
    while kills < 5:
        done = execute(world, given, kill_after=moments.uniform(0, longest))
        if done.status:
            assert done.status == -signal.SIGKILL, done.stderr
            kills += 1
        else:  # The run ended before its kill, so another one begins.
            assert_ends_as(world, name, whole)
            name = f"random-{kills}"
            given = begin(world, name)
    assert_ends_as(world, name, whole)


def rounded(value: Any) -> Any:
    """A record with seven digits; the ninth of a divergence can differ after a kill."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def assert_ends_as(world: Path, name: str, whole: dict[str, Any]) -> None:
    """Finish a killed run, and compare its result, its genome and its factors."""
    result = finished(world, name, cache=name)
    for key in ("baseline", "pruned", "drop", "kept_fraction", "matrices", "recovery"):
        assert rounded(result[key]) == rounded(whole[key]), key
    [path] = (world / name).glob("recovered-*.safetensors")
    banks = [Bank.load(world / folder / path.name) for folder in ("whole", name)]
    for matrix, factors in banks[0].factors.items():
        other = banks[1].factors[matrix]
        assert factors.u.equal(other.u) and factors.v.equal(other.v)


def test_two_processes_find_the_size_that_one_finds(world: Path, whole: dict[str, Any]) -> None:
    begin(world, "joined")
    joined = finished(world, "joined", *DDP, cache="joined", ranks=2)
    assert joined["kept_fraction"] == whole["kept_fraction"]
    alone, attempts = (result["recovery"]["search"]["attempts"] for result in (whole, joined))
    for key in ("kept_fraction", "feasible", "steps"):
        assert [attempt[key] for attempt in attempts] == [attempt[key] for attempt in alone]


def test_minutes_replace_the_steps(world: Path) -> None:
    result = finished(world, "timed", *ALONE, "recovery.minutes=.001", cache="whole")
    assert result["recovery"]["steps"] >= 1
