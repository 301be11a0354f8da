"""The device that a dry run reckons with: as its configuration states it, or measured here.

What is measured takes about a second: a product of two matrices in each dtype, the eigenvectors of
one, and a copy.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from sieve.config import DeviceConfig
from sieve.costs.devices import Device
from sieve.costs.solving import EIGH
from sieve.runtime.memory import peak_memory_mib

GIB = 2**30
LONG_ENOUGH = 0.2  # seconds that a measurement takes at least: processors change their pace
SIDE, EIGEN_SIDE, COPIED = 768, 320, 2**24  # of matrices that are multiplied, solved; floats copied
REACHED = 0.5  # share of a product's speed that passes through a model reach on a processor
LAYER_SECONDS = 3e-4  # of a block at least, on a processor


def find_device(settings: DeviceConfig, accelerator: str, dtypes: set[str]) -> Device:
    """The device of a run. accelerator: the trainer's; dtypes: that the run computes in.

    Raises ValueError where it is to be measured and is not there, or is stated in part only.
    """
    kind = settings.accelerator or ("cpu" if accelerator == "cpu" else "gpu")
    if kind not in ("cpu", "gpu"):
        raise ValueError(f"device.accelerator is {kind!r}, expected cpu or gpu; set it so.")
    missing = [name for name in ("memory_gib", "bandwidth_gb") if getattr(settings, name) is None]
    missing += sorted(f"tflops.{name}" for name in dtypes if name not in settings.tflops)
    for key, value in asdict(settings).items():
        numbers = value.values() if isinstance(value, dict) else [value]
        if any(isinstance(n, int | float) and n <= 0 for n in numbers if key != "overhead_gib"):
            raise ValueError(f"device.{key} is {value}, expected numbers above 0; set them so.")
    if not missing:
        return _stated(settings, kind)
    if settings.name not in ("auto", "cpu"):
        raise ValueError(
            f"device={settings.name} does not say device.{missing[0]}, which this run needs; set "
            "it, or choose device=auto to measure the machine at hand."
        )
    return _measured(settings, kind, dtypes)


def _stated(settings: DeviceConfig, kind: str, **measured: Any) -> Device:
    values: dict[str, Any] = {
        "name": settings.name,
        "memory": (settings.memory_gib or 0) * GIB,
        "flops": {name: rate * 1e12 for name, rate in settings.tflops.items()},
        "bandwidth": (settings.bandwidth_gb or 0) * 1e9,
        "utilization": settings.utilization,
        "solver_utilization": settings.solver_utilization,
        "layer_seconds": settings.layer_ms / 1e3,
        "overhead": settings.overhead_gib * GIB,
        "disk": settings.disk_gb * 1e9,
        "host": settings.host_gflops * 1e9,
        "local": kind == "cpu",
        "notes": ("by its data sheet",),
    }
    return Device(**(values | measured))


def _measured(settings: DeviceConfig, kind: str, dtypes: set[str]) -> Device:
    if kind == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "the run asks for a GPU and none is at hand to be measured; say which is meant, as "
            "device=h100."
        )
    place = torch.device("cuda" if kind == "gpu" else "cpu")
    flops = {name: rate * 1e12 for name, rate in settings.tflops.items()}
    for name in sorted(dtypes - flops.keys()):
        flops[name] = _product_rate(place, getattr(torch, name))
    found: dict[str, object] = {
        "flops": flops,
        "solver_utilization": _eigen_rate(place) / flops["float64"],
        "notes": (f"measured here with {torch.get_num_threads()} threads",),
    }
    if settings.bandwidth_gb is None:
        found["bandwidth"] = _bandwidth(place)
    if settings.memory_gib is None:
        found["memory"] = _memory(place)
    if kind == "cpu":
        own = {"utilization": REACHED, "layer_seconds": LAYER_SECONDS}
        found |= own | {"name": "cpu", "overhead": peak_memory_mib(place) * 2**20}
        found["host"] = flops["float64"] / 4
    else:
        found["name"] = torch.cuda.get_device_name(place)
    return _stated(settings, kind, **found)


def _timed(work: Callable[[], object], place: torch.device) -> float:
    """Seconds of the quickest of at least three, after one to warm up."""

    # One thread's own time does not count what other processes take.
    alone = place.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter

    def once() -> float:
        start = clock()
        work()
        if place.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    once()
    spent = [once() for _ in range(3)]
    while sum(spent) < LONG_ENOUGH:
        spent.append(once())
    return max(1e-9, min(spent))


def _product_rate(place: torch.device, dtype: torch.dtype) -> float:
    side = SIDE if place.type == "cpu" else 8 * SIDE
    a = torch.ones(side, side, device=place, dtype=dtype)
    return 2 * side**3 / _timed(lambda: a @ a, place)


def _eigen_rate(place: torch.device) -> float:
    side = EIGEN_SIDE if place.type == "cpu" else 8 * EIGEN_SIDE
    a = torch.randn(side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = (a @ a.T).to(place)
    return EIGH * side**3 / _timed(lambda: torch.linalg.eigh(a), place)


def _bandwidth(place: torch.device) -> float:
    a = torch.zeros(COPIED, device=place)
    return 2 * a.nbytes / _timed(lambda: a.clone(), place)


def _memory(place: torch.device) -> float:
    if place.type == "cuda":
        return float(torch.cuda.get_device_properties(place).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
