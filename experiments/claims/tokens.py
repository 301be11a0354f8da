"""How many calibration tokens are enough, from 1,000 to 200,000."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot

from experiments import figures
from experiments.claims import kept
from experiments.jobs import Job, swept
from experiments.style import plain

matplotlib.use("svg")  # Write figures to files; do not open a display.
CLAIM = "tokens"
ONCE = 100_000  # one seed from here on
SIZES = (0.1, 0.05, 0.02)
COLORS = ("#2e5a9c", "#6a994e", "#bf616a")


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
                    f"{size:g}": figures.pooled([figures.drop(_nearest(r, size)) for r in found])
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


def _nearest(result: Mapping[str, Any], size: float) -> Mapping[str, float]:
    point = min(result["curve"], key=lambda p: abs(np.log(p["kept_fraction"] / size)))
    return point["drop"]


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """Kept fraction, and drops in points at fixed sizes."""
    heads = " | ".join(f"lost at {100 * size:g} %" for size in SIZES)
    lines = [
        f"| task | tokens | draws | kept (drop) | {heads} | calibrate, s |",
        "|" + "---|" * (len(SIZES) + 5),
    ]
    for subject, by in summary.items():
        for tokens, entry in by.items():
            lost = " | ".join(f"{100 * entry['at'][f'{s:g}']['value']:.1f}" for s in SIZES)
            cell = kept.cell(entry | {"within": None})
            lines.append(
                f"| {subject} | {int(tokens):,} | {entry['draws']} | {cell} | {lost} | "
                f"{entry['calibrate_s']['value']:.0f} |"
            )
    return {CLAIM: "\n".join(lines)}


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Drops in points at fixed sizes against tokens, one panel per task."""
    plain()
    figure, axes = pyplot.subplots(
        1, len(summary), figsize=(3.6 * len(summary), 2.7), layout="constrained", squeeze=False
    )
    for panel, (subject, by) in zip(axes[0], summary.items(), strict=True):
        tokens = [int(t) for t in by]
        for size, color in zip(SIZES, COLORS, strict=True):
            found = [entry["at"][f"{size:g}"] for entry in by.values()]
            panel.plot(
                tokens,
                [100 * n["value"] for n in found],
                color=color,
                marker=".",
                label=f"{100 * size:g} % kept",
            )
            panel.fill_between(
                tokens,
                [100 * n["low"] for n in found],
                [100 * n["high"] for n in found],
                color=color,
                alpha=0.12,
                linewidth=0,
            )
        panel.set_xscale("log")
        panel.set_title(subject, loc="left", fontsize=9, fontweight="bold")
        panel.set_xlabel("calibration tokens")
    axes[0][0].set_ylabel("points lost on test rows")
    axes[0][0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
