"""The cost of the runs of `kept` and `adaptive`: tokens, evaluations, rows, time and memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import figures
from experiments.claims import adaptive, kept
from experiments.jobs import Job

STAGES = ("calibrate", "fit", "search", "refit")
TOLERANCE = 0.02
# Methods with the same moments, and partly the same banks.
BY_GRADIENT = ("loss_aware", "sieve", "refitted", "evopress", "random", "genetic")
SHARING = dict.fromkeys(BY_GRADIENT, BY_GRADIENT) | {
    method: (method, "asvd", "whitened", "paper", "input_pca")
    for method in ("whitened", "paper", "input_pca")
}
LABELS = kept.METHODS | {"genetic": "genetic search", "evopress": "EvoPress", "random": "random"}


def jobs() -> list[Job]:
    """The jobs of `kept` and `adaptive`."""
    return [*kept.jobs(), *adaptive.jobs()]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """Medians over tasks by method, at ε = .02.

    The first run that needs moments or a bank computes them, so their times come from the first
    run of the same task with the same moments or bank. A genetic search counts its whole sweep.
    """
    runs: dict[str, dict[str, list[Any]]] = {}
    for name, result in results.items():
        subject, *method, _ = name.partition("/")[2].split("-")
        label = method[0] if method else "genetic"
        runs.setdefault(label, {}).setdefault(subject, []).append(result)
    return {"methods": {method: _entry(method, runs) for method in LABELS if method in runs}}


def _entry(method: str, runs: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, Any]:
    found = [r for rs in runs[method].values() for r in rs if r["tolerance"] == TOLERANCE]
    seconds = {stage: _seconds(stage, method, runs) for stage in STAGES}
    if method == "genetic":
        seconds["search"] = [r["job"]["seconds"] for r in found]
    peak = [r["memory"]["peak_mib"] for r in found]
    return {
        "runs": len(found),
        "tokens": round(_median([r["calibration"]["tokens"] for r in found])),
        "evaluations": round(_median([r["search"]["evaluations"] for r in found])),
        "rows": round(_median([r["search"]["examples"] for r in found])),
        "seconds": {s: figures.timed(_median(times)) for s, times in seconds.items() if times},
        "peak_mib": figures.timed(_median(peak)),
    }


def _seconds(stage: str, method: str, runs: Mapping[str, Mapping[str, list[Any]]]) -> list[float]:
    """Per task, the time of a stage in the first run that did not find it in the cache."""
    alike = SHARING.get(method, (method,)) if stage in ("calibrate", "fit") else (method,)
    alike = ("sieve",) if (stage, method) == ("search", "refitted") else alike
    times = []
    for subject in runs[method]:
        tried = [r for one in alike for r in runs.get(one, {}).get(subject, [])]
        done = [r["seconds"][stage] for r in tried if r["cached"].get(stage) is False]
        times += done[:1]
    return times


def _median(values: list[float]) -> float:
    return float(np.median(values))


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per method."""
    rows = []
    for method, label in LABELS.items():
        if entry := summary["methods"].get(method):
            spent = entry["seconds"]
            times = [f"{spent[s]['value']:.1f}" if s in spent else "–" for s in STAGES]
            counts = [f"{entry[key]:,}" for key in ("runs", "tokens", "evaluations", "rows")]
            rows.append([label, *counts, *times, f"{entry['peak_mib']['value']:,.0f}"])
    head = ["method", "runs", "tokens", "evaluations", "rows scored"]
    head += [*(f"{stage}, s" for stage in STAGES), "peak, MiB"]
    return {"cost": figures.markdown(head, rows)}
