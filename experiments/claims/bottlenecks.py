"""Bottlenecks: what each matrix must keep, and the accuracy without the neediest ones.

Each matrix is pruned alone to the lowest level within the tolerance on the selection rows. Then a
quarter of the dense model's parameters is removed, once from the neediest matrices and once from
the least needy ones, and the accuracy on test rows is measured.
"""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments import figures, plots
from experiments.figures import markdown
from experiments.jobs import Job, swept

CLAIM = "bottlenecks"
FEW = 0.1  # fraction of the matrices that count as bottlenecks


def jobs() -> list[Job]:
    """Maps of four tasks, two seeds each, and of a second task of reader-6m."""
    return [*swept(CLAIM), *swept(CLAIM, subject="sst2", seed="0")]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """Map and contrast by task and seed, overlap of tasks, stability over seeds."""
    maps: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        subject, seed = name.removeprefix(f"{CLAIM}/").split("-")
        rows, needs = result["examples"], result["search"]["bottlenecks"]
        maps.setdefault(subject, {})[seed] = {
            "model": result["model"],
            "dense": figures.share(result["baseline"]["accuracy"], rows),
            "chance": result["baseline"]["chance"],
            "need": {row["name"]: round(row["kept_fraction"], 4) for row in needs},
            "removable": sum(row["kept_fraction"] < 0.005 for row in needs),
            "needy": sum(row["kept_fraction"] > 0.05 for row in needs),
            "matrices": len(needs),
            "without": {
                side: {
                    "accuracy": figures.share(part["accuracy"], rows),
                    "matrices": part["matrices"],
                    "removed": round(part["removed"], 3),
                }
                for side, part in result["contrast"].items()
            },
        }
    return {
        "maps": maps,
        "stability": {
            s: similar(*list(seeds.values())[:2]) for s, seeds in maps.items() if len(seeds) > 1
        },
        "overlap": {
            f"{one} and {other}": similar(maps[one]["0"], maps[other]["0"])
            for one, other in combinations(maps, 2)
            if maps[one].get("0")
            and maps[other].get("0")
            and maps[one]["0"]["model"] == maps[other]["0"]["model"]
        },
    }


def similar(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """Rank correlation of two maps, and how many of their neediest matrices coincide."""
    names = sorted(one["need"])
    first, second = ([m["need"][name] for name in names] for m in (one, other))
    count = max(1, round(FEW * len(names)))
    top = [
        {n for n, _ in sorted(m["need"].items(), key=lambda item: (-item[1], item[0]))[:count]}
        for m in (one, other)
    ]
    return {
        "spearman": round(float(stats.spearmanr(first, second).statistic), 2),
        "shared": len(top[0] & top[1]),
        "of": count,
        "by_chance": round(count * count / len(names), 1),
    }


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """The contrast by task, and the similarity of maps."""
    rows = []
    for subject, seeds in summary["maps"].items():
        for seed, entry in seeds.items():
            parts = [_without(entry["without"][side]) for side in ("bottlenecks", "others")]
            counts = [str(entry[key]) for key in ("matrices", "removable", "needy")]
            dense, chance = f"{100 * entry['dense']['value']:.1f}", f"{100 * entry['chance']:.1f}"
            rows.append([subject, seed, *counts, dense, *parts, chance])
    head = ["task", "seed", "matrices", "may go alone", "need over 5 %", "dense"]
    head += ["without the neediest", "without the least needy", "chance"]
    pairs = [
        [
            f"{label}{name}",
            f"{found['spearman']:.2f}",
            f"{found['shared']} of {found['of']}",
            f"{found['by_chance']:.1f}",
        ]
        for label, group in (("two seeds of ", "stability"), ("", "overlap"))
        for name, found in summary[group].items()
    ]
    alike = ["maps", "rank correlation", "neediest shared", "by chance"]
    return {CLAIM: markdown(head, rows), f"{CLAIM}-alike": markdown(alike, pairs)}


def _without(part: Mapping[str, Any]) -> str:
    accuracy = f"{100 * part['accuracy']['value']:.1f}"
    return f"{accuracy} ({part['matrices']}, {100 * part['removed']:.0f} %)"


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """What each matrix needs: one panel per task, with layers as rows and kinds as columns."""
    maps = {s: seeds["0"] for s, seeds in summary["maps"].items() if "0" in seeds}
    figure, axes = plots.panels(1, len(maps), 2.6, 2.9)
    for panel, (subject, entry) in zip(axes[0], maps.items(), strict=True):
        kinds = list(dict.fromkeys(_kind(name) for name in entry["need"]))
        layers = sorted({_layer(name) for name in entry["need"]})
        grid = np.full((len(layers), len(kinds)), np.nan)
        for name, need in entry["need"].items():
            grid[layers.index(_layer(name)), kinds.index(_kind(name))] = 100 * need
        image = panel.imshow(np.sqrt(grid), cmap="Blues", vmin=0, vmax=10, aspect="auto")
        for (row, column), need in np.ndenumerate(np.round(grid)):
            if not need > 0:
                continue
            color = "white" if need > 40 else "black"
            panel.text(
                column, row, f"{need:.0f}", ha="center", va="center", color=color, fontsize=6
            )
        panel.set_xticks(range(len(kinds)), kinds, rotation=60, ha="right")
        panel.set_yticks(range(len(layers)), layers)
        panel.set_title(subject, loc="left", fontsize=9, fontweight="bold")
    axes[0][0].set_ylabel("layer")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=np.sqrt([0, 5, 25, 50, 100]))
    bar.ax.set_yticklabels([0, 5, 25, 50, 100])
    bar.set_label("must keep alone, %")
    plots.save(figure, path)


def _kind(name: str) -> str:
    return name.rpartition(".")[2].removesuffix("_proj")


def _layer(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdigit())
