"""How much the choice of calibration rows matters."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import figures
from experiments.jobs import Job, swept

CLAIM = "seeds"


def jobs() -> list[Job]:
    """Three seeds of every task."""
    return swept(CLAIM)


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """Kept fraction and drop by task and seed, and the spread over seeds."""
    found: dict[str, Any] = {}
    for name, result in results.items():
        subject, seed = name.removeprefix(f"{CLAIM}/").split("-")
        found.setdefault(subject, {})[seed] = figures.chosen(result)
    spread = {}
    for subject, seeds in found.items():
        sizes = [entry["kept"]["value"] for entry in seeds.values()]
        spread[subject] = round(max(sizes) / min(sizes), 2)
    cells = [cell for seeds in found.values() for cell in seeds.values()]
    return {
        "seeds": found,
        "spread": spread,
        "median_spread": round(float(np.median(list(spread.values()))), 2),
        "within": sum(cell["within"] for cell in cells),
        "runs": len(cells),
    }


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per task."""
    numbers = sorted({seed for seeds in summary["seeds"].values() for seed in seeds})
    rows = [
        [task, *(figures.cell(seeds.get(n)) for n in numbers), f"{summary['spread'][task]:.2f}"]
        for task, seeds in summary["seeds"].items()
    ]
    head = ["task", *(f"seed {n}" for n in numbers), "largest over smallest"]
    return {CLAIM: figures.with_legend(figures.markdown(head, rows))}
