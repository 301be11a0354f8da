"""A result as a run's log takes it: closing figures, those that runs are compared by, tests.

Pure functions from the dictionary of `result.json`; they work on a result with missing parts.
"""

from collections.abc import Mapping
from typing import Any

from sieve.report.values import look, measure, ratio

TABLES = ("kept_high", "spectrum")  # in the guise of mappings, whose keys are names of matrices


def closing(result: Mapping[str, Any]) -> dict[str, Any]:
    """The closing figures, nested as in result.json, with what is named; lists are left out."""
    nested: dict[str, Any] = {}
    for key, value in result.items():
        if isinstance(value, Mapping):
            if key not in TABLES and (inner := closing(value)):
                nested[key] = inner
        elif isinstance(value, str | int | float):
            nested[key] = value
    return nested


def headline(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures that runs are compared by, under plain names; what was not measured is left out.

    Fractions of the dense model, MiB, seconds; `drop` is of the task's metric on the test rows.
    """
    seconds = (look(result, "seconds") or {}).values()
    found = {
        "kept_fraction": measure(result, "kept_fraction.prunable"),
        "kept_fraction_model": measure(result, "kept_fraction.model"),
        "bytes_fraction": ratio(measure(result, "bytes.pruned"), measure(result, "bytes.dense")),
        "dense_accuracy": measure(result, "baseline.accuracy"),
        "accuracy": measure(result, "pruned.accuracy"),
        "drop": measure(result, "drop.point"),
        "drop_low": measure(result, "drop.low"),
        "drop_high": measure(result, "drop.high"),
        "prefill_ratio": measure(result, "speed.prefill_ratio"),
        "decode_ratio": measure(result, "speed.decode_ratio"),
        "peak_memory_mib": measure(result, "memory.peak_mib"),
        "calibration_tokens": measure(result, "calibration.tokens"),
        "evaluations": measure(result, "search.evaluations"),
        "examples": measure(result, "search.examples"),
        "stage_seconds": sum(seconds) if seconds else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def rows_per_test(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per data set on which both models were tested, the run's own first."""
    others = look(result, "also") or {}
    how = {
        "model": look(result, "model"),
        "projection": look(result, "projection"),
        "search": look(result, "search.method"),
        "recovery": look(result, "recovery.method"),
        "quantization": look(result, "quantization.method"),
        "kept_fraction": measure(result, "kept_fraction.prunable"),
    }
    return [
        {"sieved_on": result["task"], "tested_on": name}
        | how
        | {
            "domain": look(one, "domain"),
            "metric": look(one, "metric"),
            "dense_accuracy": measure(one, "baseline.accuracy"),
            "accuracy": measure(one, "pruned.accuracy"),
            "drop": measure(one, "drop.point"),
            "drop_low": measure(one, "drop.low"),
            "drop_high": measure(one, "drop.high"),
        }
        for name, one in ({result["task"]: result} | others).items()
    ]
