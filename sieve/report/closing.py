"""The parts of `result.json` that go to a run's log: summary, headline numbers, test splits."""

from collections.abc import Mapping
from typing import Any

from sieve.report.result import read
from sieve.report.values import ratio

TABLES = ("kept_high", "spectrum")  # mappings with a key per matrix


def closing(record: Mapping[str, object]) -> dict[str, object]:
    """The numbers and texts, nested as in `result.json`, without lists and tables."""
    nested: dict[str, object] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            if key not in TABLES and (inner := closing(value)):
                nested[key] = inner
        elif isinstance(value, str | int | float):
            nested[key] = value
    return nested


def headline(record: Mapping[str, object]) -> dict[str, float]:
    """The measured numbers by which runs are compared, under short names.

    `drop` is the drop of the task's metric on the test rows; fractions are of the dense model.
    """
    result = read(record)
    numbers = {
        "kept_fraction": result.kept_fraction.prunable,
        "kept_fraction_model": result.kept_fraction.model,
        "bytes_fraction": ratio(result.bytes.pruned, result.bytes.dense),
        "dense_accuracy": result.baseline.accuracy,
        "accuracy": result.pruned.accuracy,
        "drop": result.drop.point,
        "drop_low": result.drop.low,
        "drop_high": result.drop.high,
        "prefill_ratio": result.speed.prefill_ratio,
        "decode_ratio": result.speed.decode_ratio,
        "peak_memory_mib": result.memory.peak_mib,
        "calibration_tokens": result.calibration.tokens,
        "evaluations": result.search.evaluations,
        "examples": result.search.examples,
        "stage_seconds": result.total_seconds,
    }
    return {name: number for name, number in numbers.items() if number is not None}


def rows_per_test(record: Mapping[str, object]) -> list[dict[str, Any]]:
    """A row per task on which both models were tested; the run's own task comes first."""
    result = read(record)
    return [
        {
            "sieved_on": result.task,
            "tested_on": task,
            "model": result.model,
            "projection": result.projection,
            "search": result.search.method or None,
            "recovery": result.recovery.method if result.recovery else None,
            "quantization": result.quantization.method if result.quantization else None,
            "kept_fraction": result.kept_fraction.prunable,
            "domain": test.domain,
            "metric": test.metric,
            "dense_accuracy": test.baseline.accuracy,
            "accuracy": test.pruned.accuracy,
            "drop": test.drop.point,
            "drop_low": test.drop.low,
            "drop_high": test.drop.high,
        }
        for task, test in {result.task: result, **result.also}.items()
    ]
