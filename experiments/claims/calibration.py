"""Task-specific against task-agnostic calibration: own rows, plain text, another domain, a mixture.

The task's rows always choose the genome; only the moments come from the other source.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

from experiments import figures
from experiments.claims import kept
from experiments.jobs import Job, swept
from experiments.style import plain

matplotlib.use("svg")  # Write figures to files; do not open a display.
CLAIM = "calibration"
SOURCES = {
    "own": "its own rows",
    "mixed": "a mixture with them",
    "other": "another domain",
    "text": "plain text",
}
PLACES = {"geography": "other", "ag_news": "other", "almanac": "mixed", "reader": "mixed"}
COLORS = {"own": "#2e5a9c", "mixed": "#6a994e", "other": "#d08770", "text": "#8c8c8c"}


def jobs() -> list[Job]:
    """Four sources for two tasks of each model."""
    reader = swept(CLAIM, subject="sst2,trec", source="own,text,ag_news,reader")
    return [*swept(CLAIM), *reader]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """By task and source: kept, drop, and the curve on test rows."""
    found: dict[str, Any] = {}
    for name, result in results.items():
        subject, source = name.removeprefix(f"{CLAIM}/").split("-")
        rows = result["examples"]
        found.setdefault(subject, {})[PLACES.get(source, source)] = {
            "source": source,
            "kept": figures.kept(result),
            "drop": figures.drop(result["drop"]),
            "within": result["drop"]["point"] <= result["tolerance"] + 1e-9,
            "tokens": result["calibration"]["tokens"],
            "curve": [
                {
                    "kept": round(p["kept_fraction"], 4),
                    "accuracy": figures.share(p["accuracy"], rows),
                }
                for p in result["curve"]
            ],
        }
    whole = [entry for entry in found.values() if set(entry) == set(SOURCES)]
    times = {
        source: figures.geometric(
            [entry[source]["kept"]["value"] / entry["own"]["kept"]["value"] for entry in whole]
        )
        for source in SOURCES
        if source != "own" and whole
    }
    return {"tasks": found, "times": times}


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """Kept fraction by source, absolute and relative to the task's own rows."""
    tasks = summary["tasks"]
    lines = [
        "| calibrated on | " + " | ".join(tasks) + " | times its own rows' |",
        "|" + "---|" * (len(tasks) + 2),
    ]
    for source, label in SOURCES.items():
        cells = [kept.cell(entry.get(source)) for entry in tasks.values()]
        times = summary["times"].get(source)
        ends = f"{times['value']:.1f} ({times['low']:.1f} to {times['high']:.1f})" if times else ""
        lines.append(f"| {label} | {' | '.join(cells)} | {ends} |")
    return {CLAIM: kept.with_legend(lines)}


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Accuracy on test rows against size, a panel per task."""
    plain()
    tasks = summary["tasks"]
    figure, axes = pyplot.subplots(
        1, len(tasks), figsize=(2.7 * len(tasks), 2.7), layout="constrained", squeeze=False
    )
    for panel, (subject, entry) in zip(axes[0], tasks.items(), strict=True):
        for source, label in SOURCES.items():
            if source in entry:
                points = entry[source]["curve"]
                panel.plot(
                    [100 * p["kept"] for p in points],
                    [p["accuracy"]["value"] for p in points],
                    color=COLORS[source],
                    marker=".",
                    linewidth=1.5,
                    label=label,
                )
        panel.set_xscale("log")
        panel.set_xticks([1, 2, 5, 10, 20, 50, 90], [1, 2, 5, 10, 20, 50, 90])
        panel.minorticks_off()
        panel.set_title(subject, loc="left", fontsize=9, fontweight="bold")
        panel.set_xlabel("kept, % of prunable parameters")
    axes[0][0].set_ylabel("accuracy on test rows")
    axes[0][0].legend(frameon=False, fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
