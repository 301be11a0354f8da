"""How many calibration tokens are enough, from 1,000 to 200,000."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import figures
from experiments.jobs import Job, swept

CLAIM = "tokens"
ONCE = 100_000  # one seed from here on
SIZES = (0.1, 0.05, 0.02)


def jobs() -> list[Job]:
    """News topics up to 200,000 tokens, question types up to 100,000 (all it has)."""
    fewer = {"subject": "trec", "calibration.tokens": "1_000,3_000,10_000,30_000,100_000"}
    return [
        job
        for job in [*swept(CLAIM), *swept(CLAIM, **fewer)]
        if _asked(job) < ONCE or dict(job.settings)["seed"] == "0"
    ]


def _asked(job: Job) -> int:
    return int(dict(job.settings)["calibration.tokens"])


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """By task and tokens: kept fraction, and drops at fixed sizes; means over seeds."""
    runs: dict[str, dict[str, list[Any]]] = {}
    for name, result in results.items():
        subject, tokens, _ = name.removeprefix(f"{CLAIM}/").split("-")
        runs.setdefault(subject, {}).setdefault(str(int(tokens)), []).append(result)
    return {
        subject: {
            tokens: {
                "draws": len(found),
                "tokens": round(float(np.mean([r["calibration"]["tokens"] for r in found]))),
                "kept": figures.pooled([figures.kept(r) for r in found]),
                "drop": figures.pooled([figures.drop(r["drop"]) for r in found]),
                "at": {
                    f"{size:g}": figures.pooled([figures.drop(nearest(r, size)) for r in found])
                    for size in SIZES
                },
                "calibrate_s": figures.timed(
                    float(np.median([r["seconds"]["calibrate"] for r in found]))
                ),
            }
            for tokens, found in by.items()
        }
        for subject, by in runs.items()
    }


def nearest(result: Mapping[str, Any], size: float) -> Mapping[str, float]:
    """The drop at the measured size that is nearest to a size."""
    point = min(result["curve"], key=lambda p: abs(np.log(p["kept_fraction"] / size)))
    return point["drop"]


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """Kept fraction, and drops in points at fixed sizes."""
    rows = []
    for subject, by in summary.items():
        for tokens, entry in by.items():
            lost = [f"{100 * entry['at'][f'{size:g}']['value']:.1f}" for size in SIZES]
            seconds = f"{entry['calibrate_s']['value']:.0f}"
            cells = [f"{int(tokens):,}", str(entry["draws"]), figures.cell(entry)]
            rows.append([subject, *cells, *lost, seconds])
    head = ["task", "tokens", "draws", "kept (drop)"]
    head += [*(f"lost at {100 * size:g} %" for size in SIZES), "calibrate, s"]
    return {CLAIM: figures.markdown(head, rows)}
