"""How lm-evaluation-harness scores a row of a task that Sieve wrote.

Scores equal the harness's own, but numbers that are not finite are an error: the harness would
take a NaN for the best answer. A copy beside the task's file needs neither Sieve nor torch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Results = Sequence[tuple[float, bool]]  # per choice: log-likelihood, whether it is greedy


def acc(row: Row, results: Results) -> dict[str, float]:
    """1 for the right choice by the log-likelihood, else 0."""
    return {"acc": _is_right(row, results, lambda choice: 1)}


def acc_norm(row: Row, results: Results) -> dict[str, float]:
    """1 for the right choice by the log-likelihood per character, else 0."""
    return {"acc_norm": _is_right(row, results, len)}


def acc_bytes(row: Row, results: Results) -> dict[str, float]:
    """1 for the right choice by the log-likelihood per byte, else 0."""
    return {"acc_bytes": _is_right(row, results, lambda choice: len(choice.encode()))}


def _is_right(row: Row, results: Results, size: Callable[[str], int]) -> float:
    values = [value / size(text) for (value, _), text in zip(results, row["choices"], strict=True)]
    if not all(map(math.isfinite, values)):
        raise ValueError(
            f"the model's log-likelihoods are not finite (got {values}) for the prompt that begins "
            f"{row['prompt'][:60]!r}; set dtype=float32 in --model_args."
        )
    return float(values.index(max(values)) == row["answer"])
