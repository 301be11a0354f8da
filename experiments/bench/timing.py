"""Seconds of this process, and ratios of work that takes turns."""

import gc
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from experiments.figures import Number, number

Work = Callable[[], object]


def now() -> float:
    """Processor seconds with one thread, which exclude other processes; else wall time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(work: Work) -> float:
    """Seconds of one call."""
    gc.collect()
    start = now()
    work()
    return now() - start


def ratio(first: Work, second: Work, repeats: int) -> Number:
    """Median, least and largest ratio of seconds, first over second, after a warm-up."""
    first(), second()
    ratios = [seconds(first) / seconds(second) for _ in range(repeats)]
    return number(float(np.median(ratios)), min(ratios), max(ratios), digits=3)


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in its own process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)
