"""What it costs: tokens, evaluations, rows, time by stage and memory of the runs of others."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import figures
from experiments.claims import adaptive, kept
from experiments.jobs import Job

STAGES = ("calibrate", "fit", "search", "refit")
LABELS = kept.METHODS | {"genetic": "genetic search", "evopress": "EvoPress", "random": "random"}


def jobs() -> list[Job]:
    """None of its own: the runs of `kept` and `adaptive` at ε = .02."""
    return [job for job in [*kept.jobs(), *adaptive.jobs()]
            if dict(job.settings)["tolerance"] == ".02"]  # fmt: skip


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """Medians over tasks by method; a stage taken from the cache is not counted."""
    by: dict[str, list[Any]] = {}
    for name, result in results.items():
        method = "genetic" if name.startswith("adaptive/") else name.split("-")[1]
        by.setdefault(method, []).append(result)
    return {
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
    }  # fmt: skip


def _median(values: list[float]) -> float:
    return float(np.median(values))


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per method."""
    heads = " | ".join(f"{stage}, s" for stage in STAGES)
    lines = [f"| method | runs | tokens | evaluations | rows scored | {heads} | peak, MiB |",
             "|" + "---|" * (len(STAGES) + 6)]  # fmt: skip
    for method, label in LABELS.items():
        if entry := summary.get(method):
            times = " | ".join(
                f"{entry['seconds'][stage]['value']:.1f}" if stage in entry["seconds"] else "–"
                for stage in STAGES
            )
            lines.append(
                f"| {label} | {entry['runs']} | {entry['tokens']:,} | {entry['evaluations']} | "
                f"{entry['rows']:,} | {times} | {entry['peak_mib']['value']:,.0f} |"
            )
    return {"cost": "\n".join(lines)}
