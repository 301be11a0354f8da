"""`trainer=fsdp`: a run on two gloo ranks gives the results of one process."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ENVIRONMENT, arguments, finished, make_world, read_result, run_sieve
from safetensors.torch import load_file

from sieve.bank.bank import Bank
from sieve.projections.moments import Moments

RANKS = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2")
RECOVERY = (
    "share_prefix=2",  # A model that ranks share runs every row whole.
    "batch_tokens=128",
    "recovery=lora",
    "recovery.steps=4",
    "recovery.check_every=2",
    "recovery.batch_tokens=128",
    "recovery.learning_rate=3e-2",
    "search=uniform",
    "search.levels=[1,.6]",
    "tolerance=.3",
    "projection.refit=false",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def started(world: Path, name: str, *overrides: str) -> subprocess.Popen[str]:
    """A run of two ranks; Lightning starts the second from the command line of the first."""
    line = arguments(world, world / name, *RANKS, *overrides, cache=name)
    return subprocess.Popen(
        [sys.executable, "-m", "sieve.run", *line],
        cwd=world,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def artifact(world: Path, cache: str, kind: str) -> Path:
    return next((world / cache).glob(f"{kind}-*"))


@pytest.mark.slow
def test_a_run_on_two_ranks_gives_the_results_of_one_process(world: Path) -> None:
    quick = ("recovery.accumulate=2", "speed.enabled=false")
    alone = finished(world, "alone", *RECOVERY, *quick, cache="alone")
    shared = finished(world, "shared", *RANKS, *RECOVERY, cache="shared", ranks=2)
    one, two = (Moments.load(artifact(world, name, "moments")) for name in ("alone", "shared"))
    for name, entry in one.entries.items():
        other = two.entries[name]
        assert entry.count == other.count
        assert torch.dist(entry.second, other.second) <= 1e-6 * entry.second.norm()
    one, two = (Bank.load(artifact(world, name, "bank")) for name in ("alone", "shared"))
    assert one.fingerprint == two.fingerprint
    for name, held in one.factors.items():
        product = held.u @ held.v
        other = two.factors[name].u @ two.factors[name].v
        assert torch.dist(product, other) <= 1e-5 * product.norm(), name
    for key in ("baseline", "kept_fraction", "bytes", "matrices"):
        assert alone[key] == shared[key], key
    history, other = (result["recovery"]["history"] for result in (alone, shared))
    assert [entry["step"] for entry in history] == [entry["step"] for entry in other] == [0, 2, 4]
    for before, after in zip(history, other, strict=True):
        assert before["loss"] == pytest.approx(after["loss"], abs=1e-3)
    weights, others = (
        load_file(world / name / "export/model.safetensors") for name in ("alone", "shared")
    )
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-2, atol=1e-2)
    assert shared["speed"] is None  # It would measure the connection between ranks.
    assert not list((world / "shared").glob("training-*"))


def wait_for(found: Callable[[], Any], run: subprocess.Popen[str]) -> None:
    while not found():
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.05)


def running() -> dict[int, int]:
    """The parent of every process that has not ended."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
            if not lines["State"].startswith("Z"):
                found[int(lines["Pid"])] = int(lines["PPid"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank_ends_the_other_and_a_rerun_resumes(world: Path, rank: int) -> None:
    more = (*RECOVERY, "recovery.steps=12", "recovery.patience=12", "export=none")
    name = f"lost-{rank}"
    run = started(world, name, *more)
    wait_for(lambda: list((world / name).glob("training-*.parts")), run)
    (other,) = (child for child, parent in running().items() if parent == run.pid)
    lost, left = (run.pid, other) if rank == 0 else (other, run.pid)
    before = {path.name for path in (world / name).glob("[a-z]*-*")}
    os.kill(lost, signal.SIGKILL)
    _, errors = run.communicate()
    while left in running():
        time.sleep(0.05)
    assert "Run the same command again to resume" in errors
    assert "Traceback" not in errors
    assert before <= {path.name for path in (world / name).glob("[a-z]*-*")}
    if rank == 0:
        return  # The rerun takes long, so it is tested once.
    done = run_sieve(world, world / name, *RANKS, *more, cache=name, ranks=2)
    assert done.status == 0, done.stderr
    assert "resumes after step" in done.stderr
    result = read_result(world / name)
    assert result["cached"]["fit"] and result["cached"]["search"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("quantization=int8", "choose quantization=none"),
        ("projection=learned", "choose another projection"),
        ("export=onnx", "choose export=factorized or dense"),
    ],
)
def test_settings_that_need_one_device_are_refused_before_anything_is_loaded(
    world: Path, asked: str, said: str
) -> None:
    done = run_sieve(world, world / "refused", *RANKS, asked)
    assert done.status == 1 and said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.gpu
def test_one_gpu_alone_runs_as_a_rank(world: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    more = ("trainer.accelerator=gpu", "trainer.devices=1", "export=factorized")
    finished(world, "nccl", *RECOVERY, "trainer=fsdp", *more, cache="nccl")
    finished(world, "plain", *RECOVERY, "trainer=gpu", cache="plain")
    one, two = (Moments.load(artifact(world, name, "moments")) for name in ("nccl", "plain"))
    for name, entry in one.entries.items():
        other = two.entries[name].second
        assert torch.dist(entry.second, other) <= 1e-5 * other.norm()
    assert (world / "nccl/export/model.safetensors").is_file()
