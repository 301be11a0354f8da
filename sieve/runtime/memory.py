"""Peak memory of this process or its GPU, and how freed memory goes back to the system."""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc: allocations of this size get pages of their own

# The limit of a control group and what it uses, in version 2 and in version 1.
LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def free_bytes(device: torch.device) -> float:
    """Memory that this process can still take: of a GPU, or of the machine within its limits."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return min(_available_bytes(), _control_group_bytes())


def _available_bytes() -> float:
    """Memory that the machine has without swapping, or all of its memory if that is unknown."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _control_group_bytes(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Memory that is left under a container's limit; infinite without a limit.

    Cached pages of files that nobody uses count as free: the system drops them when necessary.
    """
    for limit, used in LIMITS:
        with suppress(OSError, ValueError):  # There is no such group, or its limit is "max".
            left = float((root / limit).read_text()) - float((root / used).read_text())
            lines = (root / limit).with_name("memory.stat").read_text().splitlines()
            pages = dict(line.split() for line in lines)
            return left + float(pages.get("total_inactive_file", pages.get("inactive_file", 0)))
    return float("inf")


def trim() -> None:
    """Return freed memory that glibc keeps to the system."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@contextmanager
def lean() -> Iterator[None]:
    """Return the memory of freed tensors to the system at once, although glibc would keep it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        mallopt(MMAP_THRESHOLD, 2**25)  # The largest value that glibc chooses by itself.
        trim()
