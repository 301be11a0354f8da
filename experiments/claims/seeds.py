"""How much the choice of calibration rows matters."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import figures
from experiments.claims import kept
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
        found.setdefault(subject, {})[seed] = {
            "kept": figures.kept(result),
            "drop": figures.drop(result["drop"]),
            "within": result["drop"]["point"] <= result["tolerance"] + 1e-9,
        }
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
    lines = [
        "| task | " + " | ".join(f"seed {n}" for n in numbers) + " | largest over smallest |",
        "|" + "---|" * (len(numbers) + 2),
    ]
    for subject, seeds in summary["seeds"].items():
        cells = " | ".join(kept.cell(seeds.get(n)) for n in numbers)
        lines.append(f"| {subject} | {cells} | {summary['spread'][subject]:.2f} |")
    return {CLAIM: kept.with_legend(lines)}
