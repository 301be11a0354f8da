"""How much of its parameters a task needs: every projection and allocation at three tolerances.

Selection rows choose the genome; unseen test rows measure the drop.
"""

from collections.abc import Mapping
from typing import Any

from experiments import figures
from experiments.figures import markdown
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
LEARNED = Job(CLAIM, (("subject", "medicine"), ("method", "learned"), ("tolerance", ".02")))


def jobs() -> list[Job]:
    """All runs of the sweep, and one run of the paper's training, which is slow."""
    return [*swept(CLAIM), LEARNED]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """Kept fraction and drop by tolerance, method and subject; means, and ratios of means."""
    by: dict[str, Any] = {}
    for name, result in results.items():
        subject, method, tolerance = name.removeprefix(f"{CLAIM}/").split("-")
        by.setdefault(f"0{tolerance}", {}).setdefault(method, {})[subject] = figures.chosen(result)
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
    at, mean_of, ratio = summary["at"]["0.02"], summary["mean"], summary["ratio"]["0.02"]
    rows = [
        [label, *(figures.cell(at[method].get(subject)) for subject in SUBJECTS)]
        for method, label in METHODS.items()
        if method in at
    ]
    means = []
    for method, label in METHODS.items():
        cells = [figures.cell(mean_of.get(f"0{t}", {}).get(method)) for t in TOLERANCES]
        if any(cells):
            times = figures.spread(ratio[method]) if method in ratio else ""
            means.append([label, *cells, times])
    head, tolerances = ["method", *SUBJECTS], [f"ε = {t}" for t in TOLERANCES]
    return {
        "kept": figures.with_legend(markdown(head, rows)),
        "kept-means": markdown(["method", *tolerances, "times the default's, at .02"], means),
    }
