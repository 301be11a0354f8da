"""How much of its parameters a task needs: every projection and allocation at three tolerances.

Selection rows choose the genome; unseen test rows measure the drop.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments import figures
from experiments.jobs import Job, swept

CLAIM = "kept"
SUBJECTS = ("medicine", "reviews", "reading", "sst2", "trec")
TOLERANCES = (".01", ".02", ".05")
METHODS = {
    "svd": "SVD of the weights (LASER), uniform",
    "asvd": "ASVD, uniform",
    "input_pca": "PCA of the inputs (SliceGPT), uniform",
    "whitened": "whitened SVD (SVD-LLM), uniform",
    "learned": "the paper's, learned, uniform",
    "paper": "the paper's, at its optimum, uniform",
    "loss_aware": "loss-aware, uniform",
    "sieve": "loss-aware, water-filled",
    "refitted": "loss-aware, water-filled, refitted",
}
OURS, PAPER = "refitted", "paper"
LEGEND = "Sizes are *likely* only (`confidence=null`); † exceeds the tolerance on test rows."
HEAD = tuple(METHODS[method] for method in ("svd", "whitened", PAPER, OURS))  # shown in README
LEARNED = Job(CLAIM, (("subject", "medicine"), ("method", "learned"), ("tolerance", ".02")))


def jobs() -> list[Job]:
    """All runs of the sweep, and one run of the paper's training, which is slow."""
    return [*swept(CLAIM), LEARNED]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """Kept fraction and drop by tolerance, method and subject; means, and ratios of means."""
    by: dict[str, Any] = {}
    for name, result in results.items():
        subject, method, tolerance = name.removeprefix(f"{CLAIM}/").split("-")
        cell = {
            "kept": figures.kept(result),
            "drop": figures.drop(result["drop"]),
            "within": result["drop"]["point"] <= result["tolerance"] + 1e-9,
        }
        by.setdefault(f"0{tolerance}", {}).setdefault(method, {})[subject] = cell
    return {
        "about": about(results),
        "at": by,
        "mean": {t: {m: mean(cells) for m, cells in rows.items()} for t, rows in by.items()},
        "ratio": {t: ratios(rows) for t, rows in by.items()},
    }


def about(results: Mapping[str, Any]) -> dict[str, Any]:
    """The rows, tokens and seed that every table states."""
    first = next(iter(results.values()))
    rows = {role: first["data"]["rows"][role] for role in ("selection", "test")}
    return {
        "runs": len(results),
        "rows": rows,
        "tokens": first["calibration"]["tokens_asked"],
        "seed": first["seed"],
    }


def mean(cells: Mapping[str, Any]) -> dict[str, Any] | None:
    """Means over all subjects; None if one is missing."""
    if set(cells) != set(SUBJECTS):
        return None
    return {
        "kept": figures.mean([cell["kept"] for cell in cells.values()]),
        "drop": figures.mean([cell["drop"] for cell in cells.values()]),
        "within": sum(cell["within"] for cell in cells.values()),
    }


def ratios(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The kept fraction of another method relative to the default, over all subjects."""
    found = {}
    for method, cells in rows.items():
        shared = [s for s in cells if s in rows.get(OURS, {})]
        if method == OURS or len(shared) < len(SUBJECTS):
            continue
        found[method] = figures.geometric(
            [cells[s]["kept"]["value"] / rows[OURS][s]["kept"]["value"] for s in shared]
        )
    return found


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """The kept fractions of all subjects at .02, and their means at every tolerance."""
    rows, means = summary["at"].get("0.02", {}), summary["mean"]
    lines = ["| method | " + " | ".join(SUBJECTS) + " |", "|" + "---|" * (len(SUBJECTS) + 1)]
    for method, label in METHODS.items():
        if method in rows:
            cells = [cell(rows[method].get(subject)) for subject in SUBJECTS]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    short = [
        "| method | ε = .01 | ε = .02 | ε = .05 | times the default's, at .02 |",
        "|---|---|---|---|---|",
    ]
    for method, label in METHODS.items():
        cells = [cell(means.get(f"0{t}", {}).get(method)) for t in TOLERANCES]
        if any(cells):
            times = summary["ratio"]["0.02"].get(method)
            ends = (
                ""
                if times is None
                else (f"{times['value']:.1f} ({times['low']:.1f} to {times['high']:.1f})")
            )
            short.append(f"| {label} | {' | '.join(cells)} | {ends} |")
    head = [*lines[:2], *(line for line in lines if line[2:].startswith(HEAD))]
    return {
        "kept": with_legend(lines),
        "kept-means": "\n".join(short),
        "headline": with_legend(head),
    }


def with_legend(lines: Sequence[str]) -> str:
    """A table, with the meaning of the dagger below it if it has one."""
    table = "\n".join(lines)
    return f"{table}\n\n{LEGEND}" if "†" in table else table


def cell(found: Mapping[str, Any] | None) -> str:
    """Kept (%) and drop on test rows (points); a dagger marks drops beyond the tolerance."""
    if not found:
        return ""
    mark = "" if found["within"] is not False else " †"
    return f"{100 * found['kept']['value']:.1f} ({100 * found['drop']['value']:.1f}){mark}"
