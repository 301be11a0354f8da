"""Peak memory of this process or of its GPU."""

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MMAP_THRESHOLD = -3  # glibc's malloc.h: from how many bytes on memory is taken by the page


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory held so far in MiB: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def give_back_memory() -> None:
    """Free what only cycles hold; give free pages, which glibc would keep, back to the system."""
    gc.collect()
    _trim()


def _trim() -> None:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@contextmanager
def lean() -> Iterator[None]:
    """Let freed tensors go back to the system at once, where glibc would keep their pages."""
    option: Any = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if option is None:
        yield
        return
    option(MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        option(MMAP_THRESHOLD, 2**25)  # The most that glibc itself would raise it to.
        _trim()
