"""The forecast of a fit knows how many blocks are solved at the same time."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from models import tiny_llama
from test_costs import planned
from threads import torch_threads

from sieve.config import DeviceConfig
from sieve.costs.closed_forms import by_lapack, fit_threads, solve_seconds
from sieve.costs.probe import find_device
from sieve.costs.stages import fit


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    with torch_threads(2):
        yield


def test_threads_of_a_cpu_solve_a_block_each() -> None:
    plan = planned(tiny_llama(num_hidden_layers=4))
    assert fit_threads(plan) == 2 and not by_lapack(plan)
    torch.set_num_threads(64)
    assert fit_threads(plan) == 4
    torch.set_num_threads(1)
    assert fit_threads(plan) == 1 and by_lapack(plan)
    gpu = replace(plan, device=replace(plan.device, accelerator="gpu"))
    assert fit_threads(gpu) == 0 and not by_lapack(gpu)
    torch.set_num_threads(2)
    plan.config.calibration.strategy = "stream"
    assert fit_threads(plan) == 1


def test_threads_that_solve_together_share_the_processor() -> None:
    plan = planned(tiny_llama())
    device = replace(plan.device, solver_utilization=0.5, thread_solver_utilization=0.4)
    plan = replace(plan, device=device)
    rate = device.tflops["float64"] * 1e12
    assert solve_seconds(plan, [(0.0, rate)]) == pytest.approx(1 / 0.5)
    assert solve_seconds(plan, [(0.0, rate)], 2) == pytest.approx(1 / (2 * 0.4))
    alone = solve_seconds(plan, [(rate, 0.0)])
    assert solve_seconds(plan, [(rate, 0.0)], 2) == pytest.approx(alone)
    assert solve_seconds(plan, [(rate, 0.0)], 1) == pytest.approx(2 * alone)
    stated = replace(plan, device=replace(device, thread_solver_utilization=None))
    assert solve_seconds(stated, [(0.0, rate)], 1) == pytest.approx(2 / 0.5)


def test_blocks_that_are_solved_together_are_in_memory_together() -> None:
    plan = planned(tiny_llama(num_hidden_layers=4))
    together = fit(plan).parts_bytes
    torch.set_num_threads(1)
    alone = fit(plan).parts_bytes
    for part in ("solver workspace", "factors of a block"):
        assert together[part] == 2 * alone[part] > 0


def test_the_last_blocks_of_a_fit_may_leave_threads_idle() -> None:
    two, three = (planned(tiny_llama(num_hidden_layers=n)) for n in (2, 3))
    writing = two.write(two.bank_bytes), three.write(three.bank_bytes)
    seconds = [fit(plan).seconds - w for plan, w in zip((two, three), writing, strict=True)]
    assert seconds[1] == pytest.approx(2 * seconds[0])


def test_a_measured_cpu_says_how_fast_one_thread_solves() -> None:
    device = find_device(DeviceConfig("cpu", "cpu"), "cpu", {"float64"}, min_seconds=0.01)
    assert device.thread_solver_utilization is not None
    assert device.thread_solver_utilization > 0 and device.solver_utilization > 0
    assert torch.get_num_threads() == 2
