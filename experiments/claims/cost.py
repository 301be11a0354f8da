"""What it costs: tokens, evaluations, rows, time by stage and memory of the runs of others."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import figures
from experiments.claims import (
    adaptive,
    bottlenecks,
    calibration,
    facts,
    kept,
    recovery,
    sceptic,
    seeds,
    tokens,
    transfer,
)
from experiments.jobs import Job

STAGES = ("calibrate", "fit", "search", "refit")
LABELS = kept.METHODS | {"genetic": "genetic search", "evopress": "EvoPress", "random": "random"}


def jobs() -> list[Job]:
    """None of its own: those of `kept` and `adaptive` for the table, and all others for the sum."""
    others = (bottlenecks, calibration, facts, recovery, sceptic, seeds, tokens, transfer)
    return [job for claim in (kept, adaptive, *others) for job in claim.jobs()]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """Medians over tasks by method, at ε = .02; a stage taken from the cache is not counted."""
    by: dict[str, list[Any]] = {}
    for name, result in results.items():
        if not name.startswith(("kept/", "adaptive/")) or not name.endswith("-.02"):
            continue
        method = "genetic" if name.startswith("adaptive/") else name.split("-")[1]
        by.setdefault(method, []).append(result)
    minutes = sum(result["job"]["cpu_seconds"] for result in results.values()) / 60
    return {"jobs": len(results), "cpu_minutes": figures.timed(minutes), "methods": {
        method: {
            "runs": len(found),
            "tokens": round(_median([r["calibration"]["tokens"] for r in found])),
            "evaluations": round(_median([r["search"]["evaluations"] for r in found])),
            "rows": round(_median([r["search"]["examples"] for r in found])),
            "seconds": {
                stage: figures.timed(_median(times))
                for stage in STAGES
                if (times := [r["seconds"][stage] for r in found
                              if stage in r["seconds"] and not r["cached"][stage]])
            },
            "peak_mib": figures.timed(_median([r["memory"]["peak_mib"] for r in found])),
        }
        for method, found in by.items()
    }}  # fmt: skip


def _median(values: list[float]) -> float:
    return float(np.median(values))


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per method."""
    heads = " | ".join(f"{stage}, s" for stage in STAGES)
    lines = [f"| method | runs | tokens | evaluations | rows scored | {heads} | peak, MiB |",
             "|" + "---|" * (len(STAGES) + 6)]  # fmt: skip
    for method, label in LABELS.items():
        if entry := summary["methods"].get(method):
            times = " | ".join(
                f"{entry['seconds'][stage]['value']:.1f}" if stage in entry["seconds"] else "–"
                for stage in STAGES
            )
            lines.append(
                f"| {label} | {entry['runs']} | {entry['tokens']:,} | {entry['evaluations']} | "
                f"{entry['rows']:,} | {times} | {entry['peak_mib']['value']:,.0f} |"
            )
    return {"cost": "\n".join(lines)}
