"""Peak memory of this process or its GPU, and how freed memory goes back to the system."""

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc: allocations of this size get pages of their own


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _trim() -> None:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@contextmanager
def lean() -> Iterator[None]:
    """Return the memory of freed tensors to the system at once, where glibc would keep it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        mallopt(MMAP_THRESHOLD, 2**25)  # The largest value that glibc chooses by itself.
        _trim()
