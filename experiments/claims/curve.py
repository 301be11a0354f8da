"""The accuracy curve: flat while parameters go, then a cliff. Where is its edge?

Measured on test rows at fixed sizes, in the runs of `kept`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures, plots
from experiments.claims import kept
from experiments.jobs import Job

CLAIM = "curve"
DROP = 0.02
COLORS = {
    "svd": "#c3c3c3",
    "asvd": "#a9a29a",
    "input_pca": "#d9b38c",
    "whitened": "#8c8c8c",
    "paper": "#bf616a",
    "loss_aware": "#88a9d0",
    "sieve": "#2e5a9c",
}
Points = Sequence[Mapping[str, Any]]


def jobs() -> list[Job]:
    """The runs of `kept` with a curve, one per projection."""
    return [
        job
        for job in kept.jobs()
        if dict(job.settings)["tolerance"] == ".02" and dict(job.settings)["method"] in COLORS
    ]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """The curves, with the edge and the middle of each cliff."""
    found: dict[str, Any] = {"drop": DROP, "subjects": {}}
    for name, result in results.items():
        subject, method, _ = name.removeprefix("kept/").split("-")
        rows, points = result["examples"], result["curve"]
        entry = found["subjects"].setdefault(
            subject,
            {
                "dense": figures.share(result["baseline"]["accuracy"], rows),
                "chance": result["baseline"]["chance"],
                "rows": rows,
                "methods": {},
            },
        )
        entry["methods"][method] = {
            "curve": [
                {
                    "kept": round(p["kept_fraction"], 4),
                    "accuracy": figures.share(p["accuracy"], rows),
                }
                for p in points
            ],
            "edge": edge(points),
            "half": half(points, result["baseline"]["accuracy"], result["baseline"]["chance"]),
        }
    return found


def edge(points: Points) -> dict[str, float]:
    """The smallest measured size such that it and all larger sizes drop at most `DROP`.

    The interval comes from the intervals of the drops.
    """
    return figures.number(
        _last(points, lambda p: p["drop"]["point"] <= DROP + 1e-9),
        _last(points, lambda p: (p["drop"]["low"] or 0) <= DROP + 1e-9),
        _last(points, lambda p: (p["drop"]["high"] or 0) <= DROP + 1e-9),
    )


def half(points: Points, dense: float, chance: float) -> dict[str, float]:
    """The size at which half of the accuracy above chance is lost.

    Interpolated between measured sizes on a logarithmic scale.
    """
    gap = dense - chance
    return figures.number(
        _crossed(points, [p["drop"]["point"] for p in points], gap / 2),
        _crossed(points, [p["drop"]["low"] or 0 for p in points], gap / 2),
        _crossed(points, [p["drop"]["high"] or 0 for p in points], gap / 2),
    )


def _last(points: Points, holds: Any) -> float:
    size = 1.0
    for point in sorted(points, key=lambda p: -p["kept_fraction"]):
        if not holds(point):
            break
        size = point["kept_fraction"]
    return size


def _crossed(points: Points, drops: Sequence[float], level: float) -> float:
    sizes = [1.0, *(p["kept_fraction"] for p in points)]
    lost = [0.0, *drops]
    for place in range(1, len(sizes)):
        if lost[place] > level:
            part = (level - lost[place - 1]) / (lost[place] - lost[place - 1])
            steps = np.log([sizes[place - 1], sizes[place]])
            return float(np.exp(steps[0] + max(0.0, part) * (steps[1] - steps[0])))
    return sizes[-1]


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """Edge and middle of the cliff by subject and method, in percent."""
    subjects, rows = [s for s in kept.SUBJECTS if s in summary["subjects"]], []
    for method in COLORS:
        found = [summary["subjects"][s]["methods"].get(method) for s in subjects]
        cells = [
            f"{100 * e['edge']['value']:.0f} / {100 * e['half']['value']:.1f}" if e else ""
            for e in found
        ]
        rows.append([kept.METHODS[method], *cells])
    return {CLAIM: figures.markdown(["method", *subjects], rows)}


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Accuracy against size, a panel per subject."""
    figure, axes = plots.panels(2, 3, 3.3, 2.8)
    for panel in axes.flat[len(kept.SUBJECTS) :]:
        panel.axis("off")
    for panel, subject in zip(axes.flat, kept.SUBJECTS, strict=False):
        entry = summary["subjects"].get(subject)
        if not entry:
            continue
        panel.axhspan(entry["dense"]["value"] - DROP, entry["dense"]["value"], color="#e5efdd")
        panel.axhline(entry["chance"], color="#b0b0b0", linewidth=0.8, linestyle=":")
        for method, color in COLORS.items():
            if method in entry["methods"]:
                points = entry["methods"][method]["curve"]
                sizes = [100 * p["kept"] for p in points]
                accuracy = [p["accuracy"]["value"] for p in points]
                panel.plot(sizes, accuracy, color=color, linewidth=1.5, label=method)
        panel.set_xscale("log")
        panel.set_xticks([1, 2, 5, 10, 20, 50, 90], [1, 2, 5, 10, 20, 50, 90])
        panel.minorticks_off()
        panel.set_title(subject, loc="left", fontsize=9, fontweight="bold")
    for row in axes:
        row[0].set_ylabel("accuracy on test rows")
    for panel in axes[-1]:
        panel.set_xlabel("kept, % of prunable parameters")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center", frameon=False)
    plots.save(figure, path)
