"""What each default brings: one of them changed at a time, the others as they are.

All runs are without the refit, which `kept` compares. The runs of `kept` with the same settings
serve here too.
"""

from collections.abc import Mapping
from typing import Any

from experiments import figures
from experiments.claims import kept, tokens
from experiments.jobs import Job, swept

CLAIM = "defaults"
SUBJECTS = ("medicine", "reviews", "trec")
SIZES = (0.1, 0.05, 0.02)  # at which the points lost on test rows are compared
DEFAULT, TOLERANCE = "sieve", ".02"
WAYS = {
    DEFAULT: "the defaults, without the refit",
    "loss_aware": "one level for all matrices, not water-filled",
    "output": "no gradients: the output error alone (`projection=output`)",
    "plain": "plain factors, not pivoted (`projection.storage=plain`)",
    "alike": "all tokens count alike (`calibration.weighting=none`)",
    "gold": "gradients of the right answers (`calibration.answers=gold`)",
}


def jobs() -> list[Job]:
    """The runs of `kept` with the same settings, and a run per task and changed default."""
    same = [
        job
        for job in kept.jobs()
        if (set(dict(job.settings).values()) & {DEFAULT, "loss_aware"})
        and dict(job.settings)["subject"] in SUBJECTS
        and dict(job.settings)["tolerance"] == TOLERANCE
    ]
    return [*same, *swept(CLAIM)]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """By way and task: kept over what the defaults keep, and the points lost at some sizes."""
    runs: dict[str, dict[str, Any]] = {way: {} for way in WAYS}
    for name, result in results.items():
        subject, way, *_ = name.partition("/")[2].split("-")
        runs[way][subject] = result
    summary: dict[str, Any] = {"ways": {}, "times": {}, "mean": {}}
    for way, by in runs.items():
        cells = {s: _cell(by[s], runs[DEFAULT][s]) for s in by if s in runs[DEFAULT]}
        summary["ways"][way] = cells
        if set(cells) == set(SUBJECTS):
            times = [cell["times"]["value"] for cell in cells.values()]
            summary["times"][way] = figures.geometric(times)
            summary["mean"][way] = {
                size: figures.mean([cell["lost"][size] for cell in cells.values()])
                for size in map(str, SIZES)
            }
    return summary


def _cell(result: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """A run beside the run with the defaults on the same task."""
    mine, ours = figures.kept(result), figures.kept(default)
    ends = (("value", "value"), ("low", "high"), ("high", "low"))
    return {
        "times": figures.number(*(mine[one] / ours[other] for one, other in ends), digits=2),
        "lost": {str(z): figures.drop(tokens.nearest(result, z)) for z in SIZES},
    }


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row per way: how often as much as the defaults keep, and mean points lost."""
    rows = []
    for way, label in WAYS.items():
        cells, means = summary["ways"][way], summary["mean"].get(way, {})
        times = [f"{cells[s]['times']['value']:.2f}" if s in cells else "" for s in SUBJECTS]
        times.append(figures.spread(summary["times"][way], 2) if way in summary["times"] else "")
        lost = [f"{100 * mean['value']:.1f}" for mean in means.values()]
        rows.append([label, *(times if way != DEFAULT else ["1"] * len(times)), *lost])
    head = ["", *SUBJECTS, "mean", *(f"lost at {100 * size:g} %" for size in SIZES)]
    return {CLAIM: figures.markdown(head, rows)}
