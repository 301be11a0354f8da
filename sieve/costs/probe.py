"""The device that a dry run plans for: as `conf/device` states it, or measured on this machine.

Measuring takes about a second: a matrix product in each dtype, eigendecompositions and a copy.
"""

import os
import time
from dataclasses import replace
from functools import partial

import torch
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as default_timer

from sieve.config import DeviceConfig
from sieve.costs.solving import EIGH
from sieve.projections.linear_algebra import one_thread_each
from sieve.report.values import counted
from sieve.runtime.memory import peak_memory_mib

GIB = 2**30
MIN_SECONDS = 0.2  # of a measurement, because processors change their clock rate
SIDE, EIGH_SIDE, COPIED = 768, 512, 2**24  # widths of measured matrices; floats copied
GPU_SCALE = 8  # how much wider the matrices are that a GPU multiplies and decomposes
# On a CPU: the share of a product's rate that passes reach, and the least time of a block.
CPU_UTILIZATION, CPU_LAYER_MS = 0.5, 0.3
CPU_CLOSED_FORMS = 0.75  # the same share for the products and solves of closed forms


def find_device(
    settings: DeviceConfig, accelerator: str, dtypes: set[str], min_seconds: float = MIN_SECONDS
) -> DeviceConfig:
    """The device of a run that computes in `dtypes`, with every figure.

    Figures that `settings` leaves out are measured on this machine, each for `min_seconds`.

    Raises ValueError if a named device lacks a figure, or if the run needs a GPU to measure and
    this machine has none.
    """
    kind = settings.accelerator or ("cpu" if accelerator == "cpu" else "gpu")
    missing = [name for name in ("memory_gib", "bandwidth_gb") if getattr(settings, name) is None]
    missing += [f"tflops.{name}" for name in sorted(dtypes - settings.tflops.keys())]
    if missing and settings.name not in ("auto", "cpu"):
        raise ValueError(
            f"device={settings.name} does not state device.{missing[0]}, which this run needs; set "
            "it, or set device=auto to measure this machine."
        )
    if missing and kind == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "the run needs a GPU, and this machine has none to measure; name the GPU to plan for, "
            "such as device=h100."
        )
    settings = replace(settings, accelerator=kind)
    return _measured(settings, dtypes, min_seconds) if missing else settings


def _measured(settings: DeviceConfig, dtypes: set[str], min_seconds: float) -> DeviceConfig:
    seconds = partial(_seconds, min_seconds=min_seconds)
    on_cpu, threads = settings.accelerator == "cpu", torch.get_num_threads()
    device, scale = torch.device("cpu" if on_cpu else "cuda"), 1 if on_cpu else GPU_SCALE
    tflops = dict(settings.tflops)
    for dtype in sorted(dtypes - tflops.keys()):
        ones = torch.ones(scale * SIDE, scale * SIDE, device=device, dtype=getattr(torch, dtype))
        tflops[dtype] = 2 * len(ones) ** 3 / seconds("a @ a", ones) / 1e12
    random = torch.randn(scale * EIGH_SIDE, scale * EIGH_SIDE, dtype=torch.float64, device=device)
    moment, operations = random @ random.T, EIGH * len(random) ** 3
    eigh = operations / seconds("torch.ops.sieve.eigenvectors(a)", moment)
    with one_thread_each():
        alone = operations / seconds("torch.ops.sieve.eigenvectors(a)", moment) if on_cpu else 0.0
    floats = torch.zeros(COPIED, device=device)
    copied = 2 * floats.nbytes / seconds("a.clone()", floats) / 1e9
    if on_cpu:
        name = f"cpu ({counted(threads, 'thread')})"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        name = torch.cuda.get_device_name(device)
        memory = torch.cuda.get_device_properties(device).total_memory
    spec = replace(
        settings,
        name=name,
        tflops=tflops,
        solver_utilization=eigh / tflops["float64"] / 1e12,
        thread_solver_utilization=alone / tflops["float64"] / 1e12 if on_cpu else None,
        bandwidth_gb=settings.bandwidth_gb or copied,
        memory_gib=settings.memory_gib or memory / GIB,
    )
    if on_cpu:
        spec.utilization, spec.layer_ms = CPU_UTILIZATION, CPU_LAYER_MS
        spec.overhead_gib = peak_memory_mib(device) / 1024
    return spec


def _seconds(statement: str, a: torch.Tensor, min_seconds: float) -> float:
    """Seconds of the fastest repetition of a statement about a tensor `a`."""
    threads = torch.get_num_threads()
    # With one thread, the CPU time of this process leaves out other processes.
    clock = time.process_time if a.device.type == "cpu" and threads == 1 else default_timer
    timer = Timer(statement, timer=clock, globals={"a": a}, num_threads=threads)
    return max(1e-9, min(timer.blocked_autorange(min_run_time=min_seconds).times))
