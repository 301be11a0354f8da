"""What the demo's export takes on disk in every format, which README shows."""

from collections.abc import Mapping
from typing import Any

from experiments.jobs import Job

CLAIM = "elsewhere"
PLAIN, INT8 = "factorized", "int8"
FORMS = (PLAIN, "dense", "gguf", "onnx", "onnx_int8")


def jobs() -> list[Job]:
    """The demo run with every format; the first setting, a default, lets them share their cache."""
    first, extra = ("tolerance", ".02"), ("speed.enabled=false",)
    by_form = [Job(CLAIM, (first, ("export", form)), extra=extra) for form in FORMS]
    return [*by_form, Job(CLAIM, (first, ("quantization", INT8)), extra=extra)]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes of the dense model's weights and of each export's, and accuracies."""
    first = next(iter(results.values()))
    return {
        "dense": {"bytes": first["bytes"]["dense"], "accuracy": first["baseline"]["accuracy"]},
        "exports": {
            name.rpartition("-")[2]: {
                "bytes": result["bytes"]["pruned"],
                "accuracy": result["export"]["accuracy"] or result["pruned"]["accuracy"],
            }
            for name, result in results.items()
        },
    }


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per engine: what to type, megabytes of weights, and what is lost."""
    return {CLAIM: ""}
